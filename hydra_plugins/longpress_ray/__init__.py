"""Sweeps on Ray, where Hydra looks for plugins."""

from longpress.evaluation.launch.ray import OnRay


class RayLauncher(OnRay):
    """`longpress.evaluation.launch.ray.OnRay`, under the only package whose classes Hydra takes for launchers."""
