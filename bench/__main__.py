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

from bench.plot import PARTS, draw
from bench.sweep import PRESSES, RATIOS, TASKS, Point, Row, grid, peer_grid, save
from benchmarks.ruler import RulerBenchmark
from kvcache.products import library
from pipeline.model import ModelConfig, find_model

ROOT = Path(__file__).parent.parent


def ruler_rows(length: int, tasks: Sequence[str] = TASKS) -> list[Row]:
    """One generated RULER row per task at a context of `length` tokens, for the embedded model."""
    known = find_model(ModelConfig())
    benchmark = RulerBenchmark(tasks=tuple(tasks), length=length, samples_per_task=1)
    return [
        Row(sample.task, sample.context, sample.question, sample.answer_prefix, sample.max_new_tokens)
        for sample in benchmark.samples(known.tokenizer, known.window, 1)
    ]


def run(python: str, module: str, rows: Sequence[Row], points: Sequence[Point]) -> dict[str, Any]:
    """What one engine measured, in a process of its own on one thread.

    Raises:
        ValueError: the engine failed; its last lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.json"), Path(folder, "out.json")
        save(source, rows, points)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([python, "-m", module, str(source), str(target)], env=environment, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise ValueError(f"{module} with {python} failed: {done.stderr[-2000:]}")
        measured: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return measured


def limit_seconds(parts: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    """One plain prefill of every row, the question pass as matrix products, the same tokens at the best decode rate."""
    return float(sum(parts["prefill"]) + ours["question_tokens"] * parts["question_token"] + ours["new_tokens"] * parts["token"])


def peer_seconds(measured: Mapping[str, Any], variants: int) -> float:
    """What the grid takes kvpress: per row, the full cache's seconds and `variants - 1` times the mean of its measured presses."""
    return float(sum(full + (variants - 1) * sum(others) / len(others) for full, *others in measured["seconds"]))


def different_answers(
    ours: Mapping[str, Any], peer: Mapping[str, Any], rows: Sequence[Row], points: Sequence[Point]
) -> list[dict[str, Any]]:
    """Where the two engines answered differently at `points`, what kvpress was measured on, with both answers."""
    at = [grid().index(point) for point in points]
    return [
        {"task": row.task, "press": point.press, "ratio": point.ratio, "ours": mine[place], "peer": theirs}
        for row, mine, others in zip(rows, ours["answers"], peer["answers"], strict=True)
        for point, place, theirs in zip(points, at, others, strict=True)
        if mine[place].strip() != theirs.strip()
    ]


def side_by_side(length: int, peer: str | None, points: Sequence[Point]) -> dict[str, Any]:
    """Both engines, kvpress at `points` only, and the limit on the rows of one length, one after the other."""
    rows = ruler_rows(length)
    ours = run(sys.executable, "bench.ours", rows, grid())
    parts = run(sys.executable, "bench.limit", rows, grid())
    limit, fast = limit_seconds(parts, ours), limit_seconds(parts["fast"], ours)
    n = len(rows) * len(grid())
    found = {
        "ours": ours,
        "limit": parts | {"seconds": limit, "fast_seconds": fast},
        "fraction_of_limit": limit / ours["seconds"],
        "fraction_of_fast_limit": fast / ours["seconds"],
        "variants": len(grid()),
        "observe_share_per_press": ours["observe"] / len(PRESSES) / (ours["prefill"] - ours["observe"]),
        "compress_per_variant": ours["compress"] / n,
    }
    if peer is not None:
        theirs = run(peer, "bench.peer", rows, points)
        found |= {
            "peer": theirs | {"extrapolated_seconds": peer_seconds(theirs, len(grid()))},
            "ratio_to_peer": peer_seconds(theirs, len(grid())) / ours["seconds"],
            "peer_points": [f"{point.press}@{point.ratio}" for point in points],
            "compared_answers": len(rows) * len(points),
            "different_answers": different_answers(ours, theirs, rows, points),
        }
    return found


def grows(length: int, lengths: Sequence[int]) -> dict[str, Any]:
    """One row: seconds against the number of variants at `length` tokens, and against the context's length with the whole grid."""
    wide = (*RATIOS, 0.1, 0.4, 0.6, 0.8)
    grids = {"1": grid((), ()), "8": grid(ratios=(0.5,))[1:], "32": grid()[1:], "33": grid(), "64": grid(ratios=wide)[1:]}
    rows = ruler_rows(length, ("vt",))
    variants = {name: run(sys.executable, "bench.ours", rows, points) for name, points in grids.items()}
    contexts = {
        str(tokens): variants["33"] if tokens == length else run(sys.executable, "bench.ours", ruler_rows(tokens, ("vt",)), grid())
        for tokens in lengths
    }
    return {"variants": variants, "contexts": contexts}


def summary(found: Mapping[str, Any]) -> str:
    """What a person wants to know, as lines of text."""
    lines = []
    for length, one in found["lengths"].items():
        ours, limit = one["ours"], one["limit"]
        split = ", ".join(f"{name} {ours[name]:.1f}" for name in PARTS)
        lines.append(f"{length} tokens, {one['variants']} variants, {len(ours['answers'])} rows: {ours['seconds']:.1f} s ({split})")
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
            lines.append(f"{name} variants, one row: {one['seconds']:.1f} s, of them prefill {one['prefill']:.1f}")
        for name, one in found["growth"]["contexts"].items():
            lines.append(f"{name} tokens, 33 variants, one row: {one['seconds']:.1f} s, peak memory {one['peak_bytes'] / 1e9:.2f} GB")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write; what was measured before the next part is written at once."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--peer", help="python of an environment with kvpress 0.5.5; without it only longpress is measured")
    parser.add_argument("--peer-presses", type=int, default=len(PRESSES), help="presses of the grid that kvpress is measured on")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096], help="context lengths in tokens")
    parser.add_argument("--growth", type=int, default=2048, help="context length at which the number of variants grows; 0 to leave it out")
    parser.add_argument(
        "--contexts",
        type=int,
        nargs="*",
        default=[1024, 2048, 4096, 8000],
        help="context lengths with one row each (the model's window is 8192)",
    )
    parser.add_argument("--out", type=Path, default=Path("results/speed"), help="folder to write speed.json and plots to")
    asked = parser.parse_args()
    found: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "versions": {name: version(name) for name in ("longpress", "torch", "transformers")} | {"python": platform.python_version()},
        "model": "SmolLM2-135M-Instruct (embedded), float32",
        "products": library(),
        "lengths": {},
    }
    asked.out.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        (asked.out / "speed.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for length in asked.lengths:
        one = side_by_side(length, asked.peer, peer_grid(asked.peer_presses))
        found["lengths"][str(length)] = one
        name = f"{length // 1024}k"
        found |= {f"{key}_{name}": one[key] for key in ("ratio_to_peer", "fraction_of_limit", "fraction_of_fast_limit") if key in one}
        write()
    if asked.growth:
        found["growth"] = grows(asked.growth, asked.contexts)
        write()
    print(summary(found))
    if find_spec("matplotlib"):
        draw(found, asked.out)


if __name__ == "__main__":
    main()
