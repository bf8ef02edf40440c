"""What is published under results/ is what its records say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from evaluation.records import read_records
from evaluation.scores import scores

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted(path.parent for path in (ROOT / "results").glob("*/scores.csv") if list(path.parent.glob("records/*.jsonl.gz")))


def test_something_is_published() -> None:
    assert ROOT / "results" / "ruler-2k-smollm2" in PUBLISHED


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_scores_come_from_the_records(folder: Path) -> None:
    frame, csv = scores(read_records([folder])), pd.read_csv(folder / "scores.csv")
    assert len(frame) == len(csv)
    for name in ("score", "ci_low", "ci_high", "delta", "p_value", "kept_fraction", "n"):
        assert frame[name].to_numpy(dtype=float) == pytest.approx(csv[name].to_numpy(dtype=float), nan_ok=True, abs=1e-6), name
    for path in folder.rglob("*"):
        if path.suffix in (".yaml", ".json", ".md", ".tex", ".csv"):
            assert str(ROOT) not in path.read_text(encoding="utf-8"), f"{path.name} names a path of the machine it was made on"
