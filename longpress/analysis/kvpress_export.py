"""Export to other tools' layouts: `python -m longpress.analysis.kvpress_export kvpress DIR OUT` writes folders for the kvpress leaderboard.

Source: NVIDIA/kvpress at 8bb29b9, evaluation/evaluate.py (folder names, config.yaml, predictions.csv,
    metrics.json) and evaluation/benchmarks/*/calculate_metrics.py. One folder per run, that is per data set,
    model, press and budget:
    `<dataset>__<data_dir>__<model>__<press>__<ratio>[__fraction<share>][__query_aware]/`.
Differs: predictions.csv has the columns that records know (no question, answer prefix and token limit) and
    also `sample_id` and `score`; metrics are means of the recorded scores. config.yaml has kvpress's fields,
    and `kept_fraction` as it was measured.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from benchmarks.base import Benchmark, LeaderboardRun
from longpress.analysis.records import BASELINE, Record
from longpress.analysis.result_io import read
from longpress.analysis.tables.row_keys import LINE
from longpress.analysis.tables.scores import TABLE
from longpress.arguments import Parser, command, exit_code
from longpress.catalogue import benchmarks, find

NO_PRESS = "no_press"
"""What kvpress calls the full cache."""


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
    lines: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        lines[tuple(json.dumps(getattr(record, name), sort_keys=True) for name in (*TABLE, *LINE))].append(
            record
        )
    if not lines:
        raise ValueError("there are no records to export")
    planned: dict[Path, tuple[Any, list[Record], LeaderboardRun]] = {}
    for rows in lines.values():
        failed = [row for row in rows if row.score is None]
        if failed:
            raise ValueError(
                f"{len(failed)} of {len(rows)} samples of press {rows[0].press} failed, such as {failed[0].sample_id}; "
                "run the same command again, which redoes them, then export"
            )
        config, runs = _config(rows, names or {}), _runs(rows)
        for run in runs:
            mine = [row for row in rows if row.task in run.tasks]
            whole = {
                **config,
                "dataset": run.dataset,
                "data_dir": run.data_dir,
                "fraction": _fraction(mine, run),
            }
            folder = out / _folder(whole)
            if folder in planned:
                raise ValueError(
                    f"two lines of these results would both be {folder.name}; export them to folders of their own"
                )
            if folder.exists():
                raise ValueError(f"{folder} is already there; give another OUT, or remove it")
            planned[folder] = whole, mine, run
    for folder, (config, rows, run) in planned.items():
        _write(folder, config, rows, run)
    return sorted(planned)


@exit_code
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        prog="python -m longpress.analysis.kvpress_export",
        description="Export results to another tool's layout.",
    )
    parser.add_argument("layout", choices=["kvpress"], help="kvpress: the folders that its leaderboard takes")
    parser.add_argument("folder", type=Path, metavar="DIR", help="results folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="what a press is called there, e.g. mine=its_name",
    )
    given = parser.parse_args(arguments)
    unclear = [name for name in given.name if name.count("=") != 1]
    if unclear:
        raise ValueError(f"--name {unclear[0]}: give OURS=THEIRS")
    written = kvpress(read([given.folder]), given.out, dict(name.split("=") for name in given.name))
    print(*written, sep="\n")


def _config(rows: Sequence[Record], names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of kvpress's configuration that do not depend on the data set, in its order."""
    first = rows[0]
    kept = sum(row.kept_fraction for row in rows) / len(rows)
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


def _runs(rows: Sequence[Record]) -> list[LeaderboardRun]:
    entry = find(rows[0].benchmark, benchmarks(), "benchmark")
    options = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in rows[0].benchmark_parameters.items()
    }
    benchmark: Benchmark = entry.load()(**options)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        sums[row.task][0] += 100 * row.weight * (row.score or 0.0)
        sums[row.task][1] += row.weight
    return benchmark.leaderboard({task: total / weight for task, (total, weight) in sorted(sums.items())})


def _fraction(rows: Sequence[Record], run: LeaderboardRun) -> float:
    """Share of the suite's samples, where it has a fixed number a task; 1 elsewhere."""
    size = benchmarks()[rows[0].benchmark].options.get("samples_per_task")
    if size is None or not isinstance(size.default, int):
        return 1.0
    return min(1.0, round(len(rows) / (size.default * len(run.tasks)), 3))


def _folder(config: Mapping[str, Any]) -> str:
    budget = config.get("threshold", config.get("compression_ratio"))
    parts = [*(str(config[name]) for name in ("dataset", "data_dir", "model", "press_name")), f"{budget:.2f}"]
    parts += [f"fraction{config['fraction']:.3f}"] if config["fraction"] < 1 else []
    return "__".join([*parts, *(["query_aware"] if config["query_aware"] else [])]).replace("/", "--")


def _write(folder: Path, config: Mapping[str, Any], rows: Sequence[Record], run: LeaderboardRun) -> None:
    folder.mkdir(parents=True)
    table = pd.DataFrame(
        {
            "task": [row.task for row in rows],
            "sample_id": [row.sample_id for row in rows],
            "answer": [json.dumps(row.references, ensure_ascii=False) for row in rows],
            "predicted_answer": [row.prediction for row in rows],
            "compression_ratio": [round(1 - row.kept_fraction, 6) for row in rows],
            "score": [row.score for row in rows],
        }
    ).sort_values(["task", "sample_id"])
    table.to_csv(folder / "predictions.csv", index=False, lineterminator="\n")
    (folder / "metrics.json").write_text(json.dumps(run.metrics, indent=4) + "\n", encoding="utf-8")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))), encoding="utf-8")


if __name__ == "__main__":
    command(main)
