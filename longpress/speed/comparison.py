"""longpress and kvpress side by side on the same rows, and both against the machine's limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ruler import RulerBenchmark
from longpress.catalogue import ROOT
from longpress.models.loading import ModelConfig, find_model
from longpress.speed.measured_model import MeasuredModel
from longpress.speed.workload import RATIOS, TASKS, GridVariant, Row, Workload, grid

PACKAGES = ("kvcache", "longpress", "presses")
"""What an engine imports of ours."""


def ruler_rows(model: MeasuredModel, length: int, tasks: Sequence[str] = TASKS) -> list[Row]:
    """One generated RULER row per task at a context of `length` tokens of the embedded tokenizer."""
    known = find_model(ModelConfig())
    benchmark = RulerBenchmark(tasks=tuple(tasks), length=length, samples_per_task=1)
    return [
        Row(sample.task, sample.context, sample.question, sample.answer_prefix, sample.max_new_tokens)
        for sample in benchmark.samples(known.tokenizer, model.window or known.window, 1)
    ]


def measure(module: str, workload: Workload, python: str = sys.executable) -> dict[str, Any]:
    """What one engine measured, in a process of its own on one thread.

    Our packages are put beside the process by themselves: kvpress's environment has other versions of what
    lies beside them in ours.

    Args:
        module: of the engine.
        workload: that it measures.
        python: of the environment that it runs in.

    Raises:
        ValueError: the engine failed; its last lines.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package in PACKAGES:
            (folder / package).symlink_to(ROOT / package, target_is_directory=True)
        source, target = folder / "in.json", folder / "out.json"
        workload.save(source)
        done = subprocess.run(
            [python, "-m", module, str(source), str(target)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": name, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            cwd=folder,
        )
        if done.returncode:
            raise ValueError(f"{module} with {python} failed: {done.stderr[-2000:]}")
        measured: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return measured


def limit_seconds(parts: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    """What our workload would take at the machine's limit.

    One plain prefill of every row, the questions as matrix products, the same tokens at the best decode rate.

    Args:
        parts: what `longpress.speed.limit` measured.
        ours: what `longpress.speed.ours` measured.
    """
    question = ours["question_tokens"] * parts["question_token"]
    answer = ours["new_tokens"] * parts["token"]
    return float(sum(parts["prefill"]) + question + answer)


def peer_seconds(measured: Mapping[str, Any], variants: int) -> float:
    """What the whole grid takes kvpress, extrapolated.

    Per row, the full cache's seconds, and `variants - 1` times the mean of the presses that were measured.

    Args:
        measured: what `longpress.speed.peer` measured, the full cache first.
        variants: of the grid.
    """
    return float(
        sum(full + (variants - 1) * sum(others) / len(others) for full, *others in measured["seconds"])
    )


def different_answers(
    ours: Mapping[str, Any],
    peer: Mapping[str, Any],
    rows: Sequence[Row],
    variants: Sequence[GridVariant],
    of_peer: Sequence[GridVariant],
) -> list[dict[str, Any]]:
    """Where the two engines answered differently, with both answers.

    Args:
        ours: what `longpress.speed.ours` measured.
        peer: what `longpress.speed.peer` measured.
        rows: of both.
        variants: of ours.
        of_peer: those among them that kvpress was measured on.
    """
    places = [variants.index(variant) for variant in of_peer]
    return [
        {
            "task": row.task,
            "press": variant.press,
            "ratio": variant.ratio,
            "ours": our_answers[place],
            "peer": answer,
        }
        for row, our_answers, peer_answers in zip(rows, ours["answers"], peer["answers"], strict=True)
        for variant, place, answer in zip(of_peer, places, peer_answers, strict=True)
        if our_answers[place].strip() != answer.strip()
    ]


def side_by_side(
    model: MeasuredModel,
    length: int,
    variants: Sequence[GridVariant],
    peer: str | None,
    of_peer: Sequence[GridVariant],
) -> dict[str, Any]:
    """Both engines and the limit on the rows of one length, one after the other.

    Args:
        model: that answers.
        length: tokens of a context.
        variants: of the grid.
        peer: python of kvpress's environment; None to leave kvpress out.
        of_peer: the variants that kvpress is measured on.
    """
    rows = ruler_rows(model, length)
    workload = Workload(model, rows, variants)
    ours = measure("longpress.speed.ours", workload)
    parts = measure("longpress.speed.limit", workload)
    limit, fast = limit_seconds(parts, ours), limit_seconds(parts["fast"], ours)
    presses = {variant.press for variant in variants if variant.press != "none"}
    comparison = {
        "ours": ours,
        "limit": {**parts, "seconds": limit, "fast_seconds": fast},
        "fraction_of_limit": limit / ours["seconds"],
        "fraction_of_fast_limit": fast / ours["seconds"],
        "variants": len(variants),
        "observe_share_per_press": ours["observe"] / len(presses) / (ours["prefill"] - ours["observe"]),
        "compress_per_variant": ours["compress"] / (len(rows) * len(variants)),
    }
    if peer is not None:
        theirs = measure("longpress.speed.peer", Workload(model, rows, of_peer), peer)
        extrapolated = peer_seconds(theirs, len(variants))
        comparison |= {
            "peer": {**theirs, "extrapolated_seconds": extrapolated},
            "ratio_to_peer": extrapolated / ours["seconds"],
            "peer_points": [variant.label for variant in of_peer],
            "compared_answers": len(rows) * len(of_peer),
            "different_answers": different_answers(ours, theirs, rows, variants, of_peer),
        }
    return comparison


def growth(model: MeasuredModel, length: int, lengths: Sequence[int]) -> dict[str, Any]:
    """Seconds of one row against the number of variants, and against the length of the context.

    Args:
        model: that answers.
        length: tokens of the context with which the number of variants grows.
        lengths: tokens of the contexts that are swept with the whole grid.

    Returns:
        `variants`: number -> what was measured; `contexts`: length -> what was measured.
    """
    grids = {
        "1": grid((), ()),
        "8": grid(ratios=(0.5,))[1:],
        "32": grid()[1:],
        "33": grid(),
        "64": grid(ratios=(*RATIOS, 0.1, 0.4, 0.6, 0.8))[1:],
    }
    rows = ruler_rows(model, length, ("vt",))
    by_variants = {
        name: measure("longpress.speed.ours", Workload(model, rows, variants))
        for name, variants in grids.items()
    }
    by_length = {str(length): by_variants["33"]} if length in lengths else {}
    for tokens in lengths:
        if tokens != length:
            workload = Workload(model, ruler_rows(model, tokens, ("vt",)), grid())
            by_length[str(tokens)] = measure("longpress.speed.ours", workload)
    return {"variants": by_variants, "contexts": by_length}
