"""The cost of scoring is measured for every press of the catalogue, or it is said why it cannot be."""

from itertools import pairwise

from longpress.catalogue import presses
from longpress.speed.scoring import shares
from tests.support.tiny_models import tiny_ids, tiny_model


def test_every_press_has_a_row() -> None:
    prefill, *rows = shares(tiny_model("llama"), tiny_ids(64), repeats=1)
    assert prefill["press"] == "(prefill)"
    assert prefill["seconds"] > 0
    assert sorted(row["press"] for row in rows) == sorted(presses())
    measured = [row for row in rows if "share" in row]
    assert all(left["share"] >= right["share"] >= 0 for left, right in pairwise(measured))
    assert {row["press"] for row in rows if "refused" in row} == {
        name
        for name, entry in presses().items()
        if "weights" in entry.options and not entry.options["weights"].default
    }
    assert all("weights=PATH" in row["refused"] for row in rows if "refused" in row)
