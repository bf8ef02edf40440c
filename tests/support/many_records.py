"""Schema-true records of a large sweep, in seconds: what tables and the report are measured with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from longpress.analysis.kept_maps import KeptMap, append
from longpress.analysis.records import Record, RecordWriter

TASKS = (
    *(
        "niah_single_1",
        "niah_single_2",
        "niah_single_3",
        "niah_multikey_1",
        "niah_multikey_2",
        "niah_multikey_3",
    ),
    *("niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2"),
)
"""Of RULER."""
STEPS = {"vt": 5, "cwe": 10, "fwe": 3, "niah_multivalue": 4, "niah_multiquery": 4}
"""Parts that an answer is scored by: the others are 0/1."""
RATIOS = (0.25, 0.5, 0.75, 0.9)
LAYERS, HEADS, TOKENS = 30, 3, 2000


def many_records(
    samples: int = 40,
    presses: int = 48,
    tasks: Sequence[str] = TASKS,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> Iterator[Record]:
    """Records of every task, sample, press and ratio, and of the full cache; some presses lose faster."""
    generator = np.random.default_rng(seed)
    hardness = generator.uniform(0.05, 0.5, len(tasks))
    loss = np.sort(generator.uniform(0.1, 1.2, presses))
    words = generator.integers(0, 10, (997, 24))
    variants = [
        ("none", 0.0, 0.0),
        *((f"press_{at:02d}", ratio, loss[at]) for at in range(presses) for ratio in ratios),
    ]
    for t, task in enumerate(tasks):
        steps = STEPS.get(task, 1)
        for s in range(samples):
            context = hashlib.sha256(f"{task}/{s}".encode()).hexdigest()[:16]
            ease = generator.uniform(-0.2, 0.2)
            for v, (press, ratio, slope) in enumerate(variants):
                right = float(np.clip(1 - hardness[t] + ease - slope * ratio**2, 0, 1))
                score = generator.binomial(steps, right) / steps
                length = int(TOKENS * (1 - ratio))
                said = " ".join(map(str, words[(97 * s + v) % 997]))
                yield Record(
                    key=hashlib.sha256(f"{seed}/{task}/{s}/{v}".encode()).hexdigest()[:32],
                    model="SmolLM2-135M-Instruct",
                    benchmark="ruler",
                    benchmark_version="1",
                    task=task,
                    sample_id=f"{task}/{s}",
                    context_id=context,
                    press=press,
                    press_parameters={"window_size": 64, "kernel_size": 5} if v else {},
                    compression_ratio=ratio,
                    query_aware=False,
                    metric="string_match_all",
                    score=score,
                    scores={"string_match_all": score},
                    prediction=f"The special magic numbers are {said}.",
                    references=[str(1_000_000 + 7919 * s)],
                    kept_fraction=length / TOKENS,
                    kept_entries=[length] * LAYERS,
                    cache_bytes=length * LAYERS * HEADS * 64 * 2 * 4,
                    full_cache_bytes=TOKENS * LAYERS * HEADS * 64 * 2 * 4,
                    context_tokens=TOKENS,
                    question_tokens=30,
                    new_tokens=40,
                    stop_reason="eos",
                    prefill_seconds=2.5,
                    observe_seconds=0.02,
                    compress_seconds=0.01,
                    decode_seconds=0.8,
                    revision="7e27bd9f95328f0f",
                    prompt_hash=context,
                    evidence_kept=float(1 - ratio) if task.startswith("niah") else None,
                    data={"source": "paul_graham", "depth": int(100 * s / samples)},
                    benchmark_parameters={"length": 2048, "seed": 42},
                )


def write_many(folder: Path, mapped: int = 2, **options: int) -> int:
    """Fill a results folder, with kept maps of each task's first `mapped` samples; the number of records."""
    keys: dict[str, dict[str, float]] = {}
    count = 0
    with RecordWriter(folder) as writer:
        for record in many_records(**options):
            writer.append(record)
            count += 1
            if int(record.sample_id.split("/")[1]) < mapped:
                keys.setdefault(record.sample_id, {})[record.key] = record.compression_ratio or 0.0
    generator = np.random.default_rng(1)
    text = "".join(
        f"{word} "
        for word in generator.choice(["grass", "is", "green", "the", "sky", "here", "we", "go"], TOKENS)
    )
    ends = np.cumsum([len(word) + 1 for word in text.split()])
    spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1).astype(np.int32)
    for sample, ratios in keys.items():
        entries = LAYERS * HEADS
        counts = {
            key: generator.binomial(entries, 1 - ratio, TOKENS).astype(np.int32)
            for key, ratio in ratios.items()
        }
        evidence = {sample: [[int(spans[1000, 0]), int(spans[1012, 1])]]}
        append(
            folder / "kept_maps" / "synthetic.jsonl",
            KeptMap(text, spans, entries, evidence, {sample: "What is the number?"}, counts),
        )
    return count
