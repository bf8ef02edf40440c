"""Multirun without repeated prefills, where Hydra looks for plugins."""

from evaluation.sweeper import Folding


class FoldingSweeper(Folding):
    """`evaluation.sweeper.Folding`, under the only package whose classes Hydra takes for sweepers."""
