"""Several worker processes against one on the same contexts, the start of Python included."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from longpress.analysis.records import read_records
from longpress.evaluation.workers import count_cores


def workers_speedup(workers: int, contexts: int, length: int) -> dict[str, Any]:
    """Run one sweep on the embedded model with one process and with several of one thread each.

    Args:
        workers: processes of the second run.
        contexts: RULER samples; enough that starting Python and loading the model does not decide.
        length: tokens of each.

    Returns:
        `seconds` of the whole command with "1" and with `workers` processes, `workers_speedup`, their ratio;
        `same_answers`, whether both gave the same records; what was run.

    Raises:
        ValueError: a run failed; its last lines.
    """
    sweep = [
        "model=smollm2",
        "benchmark=ruler",
        "benchmark.tasks=[vt,niah_multikey_1]",
        f"benchmark.length={length}",
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
            given = [*sweep, f"workers={count}", f"results={results}"]
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "longpress", "run", *given],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                raise ValueError(f"the sweep with workers={count} failed: {done.stderr[-2000:]}")
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
