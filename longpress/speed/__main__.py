"""`python -m bench --peer PYTHON`: longpress and kvpress side by side, and both against the machine's limit."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.ruler import RulerBenchmark
from kvcache.matmul import library
from longpress.models.loading import ModelConfig, find_model
from longpress.speed.plot import PARTS, draw
from longpress.speed.subject import EMBEDDED, SHAPES, Subject
from longpress.speed.sweep import PRESSES, RATIOS, TASKS, WIDE, Point, Row, grid, peer_grid, save

ROOT = Path(__file__).parents[2]


def ruler_rows(subject: Subject, length: int, tasks: Sequence[str] = TASKS) -> list[Row]:
    """One generated RULER row per task at a context of `length` tokens of the embedded tokenizer."""
    known = find_model(ModelConfig())
    benchmark = RulerBenchmark(tasks=tuple(tasks), length=length, samples_per_task=1)
    return [
        Row(sample.task, sample.context, sample.question, sample.answer_prefix, sample.max_new_tokens)
        for sample in benchmark.samples(known.tokenizer, subject.window or known.window, 1)
    ]


def run(
    python: str, module: str, subject: Subject, rows: Sequence[Row], points: Sequence[Point]
) -> dict[str, Any]:
    """What one engine measured, in a process of its own on one thread.

    Raises:
        ValueError: the engine failed; its last lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.json"), Path(folder, "out.json")
        save(source, subject, rows, points)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [python, "-m", module, str(source), str(target)],
            env=environment,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        if done.returncode:
            raise ValueError(f"{module} with {python} failed: {done.stderr[-2000:]}")
        measured: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return measured


def card(device: str) -> str | None:
    """Name of the GPU that holds the model, None for a CPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def limit_seconds(parts: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    """One plain prefill of every row, the question pass as matrix products, the same tokens at the best decode rate."""
    return float(
        sum(parts["prefill"])
        + ours["question_tokens"] * parts["question_token"]
        + ours["new_tokens"] * parts["token"]
    )


def peer_seconds(measured: Mapping[str, Any], variants: int) -> float:
    """What the grid takes kvpress: per row, the full cache's seconds and `variants - 1` times the mean of its measured presses."""
    return float(
        sum(full + (variants - 1) * sum(others) / len(others) for full, *others in measured["seconds"])
    )


def different_answers(
    ours: Mapping[str, Any],
    peer: Mapping[str, Any],
    rows: Sequence[Row],
    points: Sequence[Point],
    measured: Sequence[Point],
) -> list[dict[str, Any]]:
    """Where the two engines answered differently at those of `points` that kvpress was measured on, with both answers."""
    at = [points.index(point) for point in measured]
    return [
        {"task": row.task, "press": point.press, "ratio": point.ratio, "ours": mine[place], "peer": theirs}
        for row, mine, others in zip(rows, ours["answers"], peer["answers"], strict=True)
        for point, place, theirs in zip(measured, at, others, strict=True)
        if mine[place].strip() != theirs.strip()
    ]


def side_by_side(
    subject: Subject, length: int, points: Sequence[Point], peer: str | None, measured: Sequence[Point]
) -> dict[str, Any]:
    """Both engines, kvpress at `measured` of the `points` only, and the limit on the rows of one length, one after the other."""
    rows = ruler_rows(subject, length)
    ours = run(sys.executable, "longpress.speed.ours", subject, rows, points)
    parts = run(sys.executable, "longpress.speed.limit", subject, rows, points)
    limit, fast = limit_seconds(parts, ours), limit_seconds(parts["fast"], ours)
    presses = {point.press for point in points if point.press != "none"}
    found = {
        "ours": ours,
        "limit": parts | {"seconds": limit, "fast_seconds": fast},
        "fraction_of_limit": limit / ours["seconds"],
        "fraction_of_fast_limit": fast / ours["seconds"],
        "variants": len(points),
        "observe_share_per_press": ours["observe"] / len(presses) / (ours["prefill"] - ours["observe"]),
        "compress_per_variant": ours["compress"] / (len(rows) * len(points)),
    }
    if peer is not None:
        theirs = run(peer, "longpress.speed.peer", subject, rows, measured)
        found |= {
            "peer": theirs | {"extrapolated_seconds": peer_seconds(theirs, len(points))},
            "ratio_to_peer": peer_seconds(theirs, len(points)) / ours["seconds"],
            "peer_points": [f"{point.press}@{point.ratio}" for point in measured],
            "compared_answers": len(rows) * len(measured),
            "different_answers": different_answers(ours, theirs, rows, points, measured),
        }
    return found


def grows(subject: Subject, length: int, lengths: Sequence[int]) -> dict[str, Any]:
    """One row: seconds against the number of variants at `length` tokens, and against the context's length with the whole grid."""
    wide = (*RATIOS, 0.1, 0.4, 0.6, 0.8)
    grids = {
        "1": grid((), ()),
        "8": grid(ratios=(0.5,))[1:],
        "32": grid()[1:],
        "33": grid(),
        "64": grid(ratios=wide)[1:],
    }
    rows = ruler_rows(subject, length, ("vt",))
    variants = {
        name: run(sys.executable, "longpress.speed.ours", subject, rows, points)
        for name, points in grids.items()
    }
    contexts = {str(length): variants["33"]} if length in lengths else {}
    for tokens in (one for one in lengths if one != length):
        contexts[str(tokens)] = run(
            sys.executable, "longpress.speed.ours", subject, ruler_rows(subject, tokens, ("vt",)), grid()
        )
    return {"variants": variants, "contexts": contexts}


def summary(found: Mapping[str, Any]) -> str:
    """What a person wants to know, as lines of text."""
    lines = []
    for length, one in found["lengths"].items():
        ours, limit = one["ours"], one["limit"]
        split = ", ".join(f"{name} {ours[name]:.1f}" for name in PARTS)
        lines.append(
            f"{length} tokens, {one['variants']} variants, {len(ours['answers'])} rows: {ours['seconds']:.1f} s ({split})"
        )
        lines.append(
            f"  peak memory {ours['peak_bytes'] / 1e9:.2f} GB; {one['fraction_of_limit']:.2f} of the limit with PyTorch's products "
            f"({limit['seconds']:.1f} s), {one['fraction_of_fast_limit']:.2f} with those chosen here ({limit['fast_seconds']:.1f} s)"
        )
        share = one["observe_share_per_press"]
        lines.append(
            f"  scoring costs a press {share:.1%} of a prefill on average; selecting, a variant and row {one['compress_per_variant']:.3f} s"
        )
        if "peer" in one:
            lines.append(
                f"  kvpress {one['peer']['extrapolated_seconds']:.0f} s, extrapolated from {len(one['peer_points'])} variants: "
                f"{one['ratio_to_peer']:.1f} times as long; answers differ in {len(one['different_answers'])} of {one['compared_answers']}"
            )
            lines += [
                f"    {one_['task']} {one_['press']}@{one_['ratio']}: {one_['ours']!r} | {one_['peer']!r}"
                for one_ in one["different_answers"]
            ]
    if "growth" in found:
        for name, one in found["growth"]["variants"].items():
            lines.append(
                f"{name} variants, one row: {one['seconds']:.1f} s, of them prefill {one['prefill']:.1f}"
            )
        for name, one in found["growth"]["contexts"].items():
            lines.append(
                f"{name} tokens, 33 variants, one row: {one['seconds']:.1f} s, peak memory {one['peak_bytes'] / 1e9:.2f} GB"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write; what was measured before the next part is written at once."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--peer", help="python of an environment with kvpress 0.5.5; without it only longpress is measured"
    )
    parser.add_argument(
        "--model",
        choices=[EMBEDDED, *SHAPES],
        default=EMBEDDED,
        help="the embedded one, or a shape with random weights",
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the weights"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (one card)")
    parser.add_argument(
        "--wide", action="store_true", help="ten presses at five ratios instead of eight at four"
    )
    parser.add_argument(
        "--peer-presses",
        type=int,
        default=len(PRESSES),
        help="presses of the grid that kvpress is measured on",
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[2048, 4096], help="context lengths in tokens"
    )
    parser.add_argument(
        "--growth",
        type=int,
        default=2048,
        help="context length at which the number of variants grows; 0 to leave it out",
    )
    parser.add_argument(
        "--contexts",
        type=int,
        nargs="*",
        default=[1024, 2048, 4096, 8000],
        help="context lengths with one row each (the model's window is 8192)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/speed"), help="folder to write speed.json and plots to"
    )
    asked = parser.parse_args()
    subject, shape = (
        Subject.of(asked.model, asked.dtype, asked.device),
        WIDE if asked.wide else (PRESSES, RATIOS),
    )
    found: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": 1,
            "card": card(subject.device),
        },
        "versions": {name: version(name) for name in ("longpress", "torch", "transformers")}
        | {"python": platform.python_version()},
        "model": subject.label,
        "products": library(),
        "lengths": {},
    }
    asked.out.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        (asked.out / "speed.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for length in asked.lengths:
        one = side_by_side(subject, length, grid(*shape), asked.peer, peer_grid(asked.peer_presses, *shape))
        found["lengths"][str(length)] = one
        name = f"{length // 1024}k"
        found |= {
            f"{key}_{name}": one[key]
            for key in ("ratio_to_peer", "fraction_of_limit", "fraction_of_fast_limit")
            if key in one
        }
        write()
    if asked.growth:
        found["growth"] = grows(subject, asked.growth, asked.contexts)
        write()
    print(summary(found))
    if find_spec("matplotlib"):
        draw(found, asked.out)


if __name__ == "__main__":
    main()
