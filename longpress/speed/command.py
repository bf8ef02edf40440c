"""Measure how fast a sweep is: beside kvpress on the same rows, and against the machine's limit.

Without a further word, a grid of presses and ratios is swept at several context lengths, by longpress and, if
--peer names a Python that has it, by kvpress; and the limit of the machine is measured on the same rows. Then
the number of variants and the length of the context grow. `bench scoring` measures what scoring costs each
press, `bench workers` what several worker processes save.
"""

from __future__ import annotations

import json
import os
import platform
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longpress import __version__
from longpress.speed.measured_model import EMBEDDED, SHAPES, MeasuredModel
from longpress.speed.workload import PRESSES, RATIOS, WIDE_PRESSES, WIDE_RATIOS, grid, peer_grid

OUT = Path("results/speed")
"""The folder that is written to by default."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
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
        help="context length at which the number of variants grows; 0 to leave growth out",
    )
    parser.add_argument(
        "--contexts",
        type=int,
        nargs="*",
        default=[1024, 2048, 4096, 8000],
        help="context lengths with one row each (the embedded model's window is 8192)",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write speed.json and plots to")
    parser.set_defaults(measure=_sweep)

    others = parser.add_subparsers(title="other measurements", metavar="{scoring,workers}")
    scoring = others.add_parser(
        "scoring", help="what scoring costs each press", description="What scoring costs each press."
    )
    scoring.add_argument("--tokens", type=int, default=2048, help="length of the context")
    scoring.add_argument("--repeats", type=int, default=3, help="of which the best counts")
    scoring.add_argument("--out", type=Path, default=None, help="JSON file to write")
    scoring.set_defaults(measure=_scoring)

    workers = others.add_parser(
        "workers", help="what several processes save", description="What several worker processes save."
    )
    workers.add_argument("--workers", type=int, default=2, help="processes of the second run")
    workers.add_argument("--contexts", type=int, default=80, help="RULER samples")
    workers.add_argument("--length", type=int, default=1024, help="tokens of each")
    workers.add_argument("--out", type=Path, default=OUT, help="folder to write workers.json to")
    workers.set_defaults(measure=_workers)


def run(arguments: Namespace) -> None:
    """Measure, print, write.

    Raises:
        ValueError: what is measured failed.
    """
    measure: Callable[[Namespace], None] = arguments.measure
    measure(arguments)


def _sweep(arguments: Namespace) -> None:
    """Both engines and the limit; what was measured before the next part is written at once."""
    from longpress.speed.comparison import growth, side_by_side
    from longpress.speed.plot import draw
    from longpress.speed.summary import summary

    model = MeasuredModel.named(arguments.model, arguments.dtype, arguments.device)
    presses, ratios = (WIDE_PRESSES, WIDE_RATIOS) if arguments.wide else (PRESSES, RATIOS)
    of_peer = peer_grid(arguments.peer_presses, presses, ratios)
    measured: dict[str, Any] = {**environment(model), "lengths": {}}

    for length in arguments.lengths:
        comparison = side_by_side(model, length, grid(presses, ratios), arguments.peer, of_peer)
        measured["lengths"][str(length)] = comparison
        for name in ("ratio_to_peer", "fraction_of_limit", "fraction_of_fast_limit"):
            if name in comparison:
                measured[f"{name}_{length // 1024}k"] = comparison[name]
        _write(measured, arguments.out / "speed.json")
    if arguments.growth:
        measured["growth"] = growth(model, arguments.growth, arguments.contexts)
        _write(measured, arguments.out / "speed.json")

    print(summary(measured))
    if find_spec("matplotlib"):
        draw(measured, arguments.out)


def _scoring(arguments: Namespace) -> None:
    """What scoring costs each press."""
    from longpress.speed.scoring import scoring_costs, table

    costs = scoring_costs(arguments.tokens, arguments.repeats)
    if arguments.out is not None:
        _write(costs, arguments.out)
    print(table(costs["rows"]))


def _workers(arguments: Namespace) -> None:
    """What several worker processes save."""
    from longpress.speed.workers import workers_speedup

    measured = workers_speedup(arguments.workers, arguments.contexts, arguments.length)
    _write(measured, arguments.out / "workers.json")
    print(json.dumps(measured, indent=1))


def environment(model: MeasuredModel) -> dict[str, Any]:
    """What the numbers depend on: machine, versions, model, and whose matrix products are used."""
    import torch

    from kvcache.matmul import library

    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": 1,
            "card": torch.cuda.get_device_name(model.device) if model.device.startswith("cuda") else None,
        },
        "versions": {
            "longpress": __version__,
            "torch": version("torch"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "model": model.label,
        "products": library(),
    }


def _write(content: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
