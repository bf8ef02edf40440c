"""Multirun without repeated prefills, where Hydra looks for plugins."""

from longpress.evaluation.launch import sweeper


class FoldingSweeper(sweeper.FoldingSweeper):
    """The sweeper of longpress, under the only package whose classes Hydra takes for sweepers."""
