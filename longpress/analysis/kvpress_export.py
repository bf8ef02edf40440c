"""Export results to another tool's layout: folders for the kvpress leaderboard.

Source: NVIDIA/kvpress at 8bb29b9, evaluation/evaluate.py (folder names, config.yaml, predictions.csv,
    metrics.json) and evaluation/benchmarks/*/calculate_metrics.py. One folder per run, that is per data set,
    model, press and budget:
    `<dataset>__<data_dir>__<model>__<press>__<ratio>[__fraction<share>][__query_aware]/`.
Differs: predictions.csv has the columns that records know (no question, answer prefix and token limit) and
    also `sample_id` and `score`; metrics are means of the recorded scores. config.yaml has kvpress's fields,
    and `kept_fraction` as it was measured.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import OmegaConf

from benchmarks.base import Benchmark, LeaderboardRun
from longpress.analysis.records import BASELINE, Record
from longpress.analysis.result_io import read
from longpress.analysis.tables.row_keys import RowKey, TableKey, parameters_text
from longpress.catalogue import benchmarks, find

NO_PRESS = "no_press"
"""What kvpress calls the full cache."""


class _Folder(NamedTuple):
    """One folder to write: its configuration, the records of its run, and what the run is."""

    config: Mapping[str, Any]
    records: Sequence[Record]
    run: LeaderboardRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("layout", choices=["kvpress"], help="kvpress: the folders that its leaderboard takes")
    parser.add_argument("folder", type=Path, metavar="DIR", help="results folder of a run")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="what a press is called there, e.g. mine=its_name",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the folders, and print where they are.

    Raises:
        ValueError: a name is not OURS=THEIRS, or as `kvpress`.
    """
    unclear = [name for name in arguments.name if name.count("=") != 1]
    if unclear:
        raise ValueError(f"--name {unclear[0]}: give OURS=THEIRS")
    names = dict(name.split("=") for name in arguments.name)
    print(*kvpress(read([arguments.folder]), arguments.out, names), sep="\n")


def kvpress(records: Iterable[Record], out: Path, names: Mapping[str, str] | None = None) -> list[Path]:
    """Write one folder per run into `out`.

    Args:
        records: of any number of models, presses and budgets; of a budget in tokens the folder is named after
            the measured ratio.
        out: folder, made if missing.
        names: press as it is called here -> as kvpress's registry calls it, where they differ.

    Returns:
        The folders, sorted.

    Raises:
        ValueError: no record; failed samples; a benchmark that the leaderboard does not take; two runs of one
            name; or a folder that is already there.
    """
    rows: dict[tuple[TableKey, RowKey], list[Record]] = defaultdict(list)
    for record in records:
        rows[TableKey.of(record), RowKey.of(record)].append(record)
    if not rows:
        raise ValueError("there are no records to export")

    # everything is checked before anything is written
    planned: dict[Path, _Folder] = {}
    for of_row in rows.values():
        for folder in _folders(of_row, names or {}):
            path = out / _folder_name(folder.config)
            if path in planned:
                raise ValueError(
                    f"two rows of these results would both be {path.name}; export them to different folders"
                )
            if path.exists():
                raise ValueError(f"{path} is already there; give another OUT, or remove it")
            planned[path] = folder
    for path, folder in planned.items():
        _write(path, folder)
    return sorted(planned)


def _folders(records: Sequence[Record], names: Mapping[str, str]) -> list[_Folder]:
    """What kvpress would have run to get one row of a table.

    Raises:
        ValueError: failed samples, or answers that are not greedy.
    """
    failed = [record for record in records if record.score is None]
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(records)} samples of press {records[0].press} failed, such as "
            f"{failed[0].sample_id}; run the same command again, which redoes them, then export"
        )
    if records[0].generation_parameters:
        raise ValueError(
            "the kvpress leaderboard takes greedy answers alone, and these were generated with "
            f"{', '.join(parameters_text(records[0].generation_text))}"
        )
    config, folders = _config(records, names), []
    for leaderboard_run in _runs(records):
        of_run = [record for record in records if record.task in leaderboard_run.tasks]
        changed = {
            "dataset": leaderboard_run.dataset,
            "data_dir": leaderboard_run.data_dir,
            "fraction": _fraction(of_run, leaderboard_run),
        }
        folders.append(_Folder({**config, **changed}, of_run, leaderboard_run))
    return folders


def _config(records: Sequence[Record], names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of kvpress's configuration that do not depend on the data set, in its order."""
    first = records[0]
    kept = sum(record.kept_fraction for record in records) / len(records)
    parameters = ", ".join(f"{key}={value}" for key, value in first.press_parameters.items())
    ratio = first.compression_ratio if first.compression_ratio is not None else round(1 - kept, 4)
    budget: dict[str, Any] = (
        {"compression_ratio": ratio} if first.threshold is None else {"threshold": first.threshold}
    )
    return {
        "dataset": "",
        "data_dir": "",
        "model": first.model,
        "device": None,
        "press_name": names.get(first.press, NO_PRESS if first.press == BASELINE else first.press),
        **budget,
        "key_channel_compression_ratio": None,
        "fraction": 1.0,
        "max_new_tokens": None,
        "max_context_length": None,
        "query_aware": first.query_aware,
        "needle_depth": None,
        "compression_interval": None,
        "target_size": None,
        "hidden_states_buffer_size": None,
        "output_dir": "./results",
        "log_level": "INFO",
        "model_kwargs": {"dtype": first.dtype},
        "press_init_command": f"{first.press}({parameters})",
        "seed": first.seed,
        "fp8": False,
        "kept_fraction": round(kept, 6),
    }


def _runs(records: Sequence[Record]) -> list[LeaderboardRun]:
    """What the benchmark says that kvpress would have run, from the weighted mean score of each task."""
    entry = find(records[0].benchmark, benchmarks(), "benchmark")
    options = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in records[0].benchmark_parameters.items()
    }
    benchmark: Benchmark = entry.load()(**options)
    scores: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    for record in records:
        scores[record.task] += 100 * record.weight * (record.score or 0.0)
        weights[record.task] += record.weight
    return benchmark.leaderboard({task: scores[task] / weights[task] for task in sorted(scores)})


def _fraction(records: Sequence[Record], leaderboard_run: LeaderboardRun) -> float:
    """Share of the suite's samples, where it has a fixed number a task; 1 elsewhere."""
    size = benchmarks()[records[0].benchmark].options.get("samples_per_task")
    if size is None or not isinstance(size.default, int):
        return 1.0
    return min(1.0, round(len(records) / (size.default * len(leaderboard_run.tasks)), 3))


def _folder_name(config: Mapping[str, Any]) -> str:
    """The name that kvpress gives a run; "/" is "--" in it, so that none leads out of the folder."""
    budget = config.get("threshold", config.get("compression_ratio"))
    parts = [str(config[name]) for name in ("dataset", "data_dir", "model", "press_name")]
    parts.append(f"{budget:.2f}")
    if config["fraction"] < 1:
        parts.append(f"fraction{config['fraction']:.3f}")
    if config["query_aware"]:
        parts.append("query_aware")
    return "__".join(parts).replace("/", "--")


def _write(path: Path, folder: _Folder) -> None:
    """One folder's files."""
    path.mkdir(parents=True)
    records = folder.records
    predictions = pd.DataFrame(
        {
            "task": [record.task for record in records],
            "sample_id": [record.sample_id for record in records],
            "answer": [json.dumps(record.references, ensure_ascii=False) for record in records],
            "predicted_answer": [record.prediction for record in records],
            "compression_ratio": [round(1 - record.kept_fraction, 6) for record in records],
            "score": [record.score for record in records],
        }
    ).sort_values(["task", "sample_id"])
    predictions.to_csv(path / "predictions.csv", index=False, lineterminator="\n")
    (path / "metrics.json").write_text(json.dumps(folder.run.metrics, indent=4) + "\n", encoding="utf-8")
    config = OmegaConf.to_yaml(OmegaConf.create(dict(folder.config)))
    (path / "config.yaml").write_text(config, encoding="utf-8")
