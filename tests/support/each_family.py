"""Parameters of laws that hold for every tiny family."""

import pytest

from tests.support.tiny_models import FAMILIES

DISTINCT = ("llama", "phi3", "gemma3")
"""Families that differ in what the cache sees: plain, fused projections, and windows with norms of heads."""


def each_family(*, but: str = "") -> pytest.MarkDecorator:
    """Run a law for the distinct families in every run of the tests, for the others among the slow ones."""
    return pytest.mark.parametrize(
        "family",
        [
            family if family in DISTINCT else pytest.param(family, marks=pytest.mark.slow)
            for family in FAMILIES
            if family != but
        ],
    )
