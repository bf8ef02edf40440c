"""Sweeps on Ray, where Hydra looks for plugins."""

from evaluation.ray_launcher import OnRay


class RayLauncher(OnRay):
    """`evaluation.ray_launcher.OnRay`, under the only package whose classes Hydra takes for launchers."""
