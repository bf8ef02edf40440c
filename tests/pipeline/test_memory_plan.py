"""The plan bounds what the operating system measures, in a fresh process each; nothing grows with T x T."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longpress.pipeline.memory import Shape, memory_plan
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.variants import Variant
from presses import AdaKVPress, KnormPress, MergingPress, NonePress, SnapKVPress
from tests.support.tiny_models import tiny_model

ROOT = Path(__file__).parents[2]
SHAPE = Shape.of(tiny_model("llama"))
OPTIONS = PipelineOptions()


def measured(tokens: int, variants: int, *options: str, timeout: int = 900) -> dict[str, float]:
    """Bytes that a sweep in a process of its own planned and took beside what was held before it."""
    script = ROOT / "tests" / "support" / "memory_of_a_sweep.py"
    folders = str(ROOT)
    command = [sys.executable, str(script), str(tokens), str(variants), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=os.environ | {"PYTHONPATH": folders}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] - found["at_start"] <= found["planned"], found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1024, 8192, 32768, 131072])
@pytest.mark.parametrize("variants", [1, 8, 64])
def test_a_sweep_stays_within_its_plan(tokens: int, variants: int) -> None:
    assert measured(tokens, variants)["answers"] == 2 * variants


def test_nested_variants_are_planned_once_and_others_each() -> None:
    def stored(*variants: Variant, alone: bool = False) -> float:
        options = PipelineOptions(compress_every=100 if alone else None, prefill_chunk=100)
        return memory_plan(SHAPE, 1000, variants, 50, options).stored / (SHAPE.token * 1000)

    nested = [Variant(SnapKVPress(), ratio) for ratio in (0.25, 0.5, 0.75)]
    mask = 1 / (2 * 16 * 4)  # a byte per entry beside 2 · d numbers of 4 bytes
    assert stored(*nested) == pytest.approx(0.75 + 3 * mask)
    assert stored(Variant(AdaKVPress(), 0.75), Variant(AdaKVPress(), 0.5)) == pytest.approx(0.75 + 2 * mask)
    assert stored(*nested, Variant(KnormPress(), 0.5)) == pytest.approx(4 * mask), (
        "more than all: the full cache is read in place"
    )
    assert stored(*nested, Variant(NonePress(), 0.0)) == pytest.approx(4 * mask), (
        "the full cache is there in any case"
    )
    merged = Variant(MergingPress(KnormPress()), 0.5)
    assert stored(merged, Variant(NonePress(), 0.0)) == pytest.approx(0.5 + 2 * mask), (
        "changed entries are copies"
    )
    assert stored(*nested, alone=True) == pytest.approx(1.5 + 3 * mask, abs=0.01), "each reads alone"


def test_the_plan_is_linear_in_the_context_and_counts_every_part() -> None:
    variants = [Variant(SnapKVPress(), 0.5), Variant(NonePress(), 0.0)]
    short, long = (memory_plan(SHAPE, tokens, variants, 50, OPTIONS) for tokens in (10_000, 1_000_000))
    assert 10 * short.reading < long.reading <= 100 * short.reading
    assert short.full_cache == 3 * 2 * 2 * 16 * 4 * 10_000
    assert (
        short.total
        >= short.weights + short.full_cache + short.evidence + short.work + short.stored + short.decoding
    )
    many = memory_plan(SHAPE, 10_000, variants, 50, OPTIONS, contexts=1000)
    assert many.contexts == max(int(OPTIONS.max_context_gb * 2**30), short.reading)
    assert many.decoding > short.decoding
    told = str(short)
    assert told.startswith(f"at most {short.total / 2**20:,.0f} MiB") and "full cache" in told


@pytest.mark.slow
def test_33_variants_of_a_4k_context_on_the_embedded_model_take_at_most_4_gb() -> None:
    found = measured(
        4096,
        33,
        "snapkv,knorm,keydiff,streaming_llm,tova,expected_attention,observed_attention,adakv",
        "smollm2",
    )
    assert found["peak"] <= 4e9, found
