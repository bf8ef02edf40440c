"""Multirun without repeated prefills, where Hydra looks for plugins."""

from longpress.evaluation.launch.sweeper import Folding


class FoldingSweeper(Folding):
    """`longpress.evaluation.launch.sweeper.Folding`, under the only package whose classes Hydra takes for sweepers."""
