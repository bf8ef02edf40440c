"""Several worker processes against one on the same contexts: `python -m longpress.speed.workers` runs both, start included."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from longpress.analysis.records import read_records
from longpress.evaluation.workers import count_cores

ROOT = Path(__file__).parents[2]


def measure(workers: int = 2, contexts: int = 80, length: int = 1024) -> dict[str, Any]:
    """Run one sweep on the embedded model with one process and with several of one thread each.

    Args:
        workers: processes of the second run.
        contexts: RULER samples; enough that starting Python and loading the model does not decide.
        length: tokens of each.

    Returns:
        `seconds` of the whole command with "1" and with `workers` processes, `workers_speedup`, their ratio;
        `same_answers`, whether both gave the same records; what was run.

    Raises:
        subprocess.CalledProcessError: a run failed.
    """
    rows = [
        "model=smollm2",
        "benchmark=ruler",
        "benchmark.tasks=[vt,niah_multikey_1]",
        f"benchmark.length={length}",
    ]
    sweep = [
        "benchmark.haystack=walden",
        f"limit={contexts // 2}",
        "press=[knorm,snapkv]",
        "compression_ratio=0.5",
        "kept_maps=0",
    ]
    seconds, answers = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, workers):
            results = Path(folder) / str(count)
            command = [sys.executable, "evaluate.py", *rows, *sweep, f"workers={count}", f"results={results}"]
            started = time.perf_counter()
            subprocess.run(
                command,
                check=True,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
            )
            seconds[str(count)] = time.perf_counter() - started
            answers.append({(record.key, record.prediction) for record in read_records([results])})
    return {
        "workers": workers,
        "contexts": contexts // 2 * 2,
        "length": length,
        "cores": count_cores(),
        "threads": 1,
        "seconds": seconds,
        "workers_speedup": seconds["1"] / seconds[str(workers)],
        "same_answers": answers[0] == answers[1],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m longpress.speed.workers", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="processes of the second run")
    parser.add_argument("--contexts", type=int, default=80, help="RULER samples")
    parser.add_argument("--length", type=int, default=1024, help="tokens of each")
    parser.add_argument(
        "--out", type=Path, default=Path("results/speed"), help="folder to write workers.json to"
    )
    asked = parser.parse_args()
    found = measure(asked.workers, asked.contexts, asked.length)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "workers.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
