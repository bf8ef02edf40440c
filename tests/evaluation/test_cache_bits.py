"""`cache_bits` as an axis of a sweep: lines of the table, keys of records, the plan, what is no size."""

import json
from pathlib import Path

import pandas as pd
import pytest

from longpress.evaluation.config import Settings, composed, register, settings
from longpress.evaluation.record_builder import key_of_variant
from tests.support.running import run, save_tiny_model


def checked(*overrides: str) -> Settings:
    register()
    return settings(composed(overrides))


def lines(*overrides: str) -> list[tuple[str, float | None, int | None]]:
    return [
        (label, variant.budget.ratio, variant.cache_bits) for label, variant in checked(*overrides).variants
    ]


def test_every_press_at_every_size_and_the_full_cache_beside_them() -> None:
    assert lines("press=[knorm]", "compression_ratio=[0.25,0.5]", "cache_bits=[8,4]") == [
        ("none", 0.0, None),
        ("none@8bit", 0.0, 8),
        ("none@4bit", 0.0, 4),
        *((f"knorm@{bits}bit", ratio, bits) for bits in (8, 4) for ratio in (0.25, 0.5)),
    ]
    assert lines("press=knorm", "cache_bits=[null,2]", "baseline=false") == [
        ("knorm", 0.5, None),
        ("knorm@2bit", 0.5, 2),
    ]
    assert lines("press=knorm") == [("none", 0.0, None), ("knorm", 0.5, None)]
    with pytest.raises(ValueError, match=r"cache_bits=3 must be one of 16, 8, 4, 2"):
        lines("press=knorm", "cache_bits=3")


def test_keys_of_other_records_stay_as_they_were() -> None:
    plain, four, two = (
        variant for _, variant in checked("press=knorm", "cache_bits=[null,4,2]", "baseline=false").variants
    )
    assert key_of_variant(plain) == ["knorm", {}, 0.5]
    assert key_of_variant(four) == ["knorm", {}, 0.5, {"cache_bits": 4}]
    assert key_of_variant(two) != key_of_variant(four)


@pytest.mark.slow
def test_a_sweep_over_sizes(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    results = tmp_path / "results"
    planned = run(tmp_path / "model", results, "cache_bits=[8,2]", "plan=true").stdout
    assert "11 variants" in planned
    printed = run(tmp_path / "model", results, "cache_bits=[8,2]").stdout
    assert "snapkv@2bit" in printed
    found = [
        json.loads(line)
        for path in (results / "records").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert {(record["press"], record["cache_bits"]) for record in found} == {
        ("none", None),
        *((f"{press}@{bits}bit", bits) for press in ("none", "knorm", "snapkv") for bits in (8, 2)),
    }
    assert len({record["key"] for record in found}) == len(found)
    frame = pd.read_csv(results / "scores.csv")
    kept = frame[frame["task"] == "vt"].set_index(["press", "compression_ratio"])["kept_fraction"]
    assert 0.25 < kept["none@8bit", 0.0] < 0.31
    assert 0.05 < kept["knorm@2bit", 0.5] < 0.07
    assert set(frame["cache_bits"].dropna()) == {8, 2}
    assert "nothing to do" in run(tmp_path / "model", results, "cache_bits=[8,2]").stderr
