"""Sweeps on Ray, where Hydra looks for plugins."""

from longpress.evaluation.launch import ray


class RayLauncher(ray.RayLauncher):
    """The Ray launcher of longpress, under the only package whose classes Hydra takes for launchers."""
