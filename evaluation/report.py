"""`report.html`: one page that opens offline, from records alone: `python -m evaluation.report DIR…` needs no model.

Numbers are the strings of the tables (`tables.score_cell`, `tables.difference_cell`). Everything that came from a model or a data set
travels as JSON inside the page, "<" escaped, and is shown as text; the page's own script and style are named by hash in its
content security policy, so nothing else can run. Answers are sampled (`ANSWERS`) and contexts bounded (`CONTEXT_BYTES`); the page says so.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.keptmaps import KeptMap, read_kept_maps
from evaluation.lines import LINE, differing
from evaluation.markdown import difference_cell, score_cell
from evaluation.records import BASELINE, Record
from evaluation.scores import TABLE, scores
from evaluation.tables import read, write_whole
from evaluation.views import MISSING, SIGNIFICANT, View, line_budget, line_label, views

ANSWERS = 3000
"""Answers that the page holds; of more, the first samples of every task, those with kept maps before all."""
CONTEXT_BYTES = 12 * 2**20
"""Bytes of contexts and kept maps that the page holds."""
CHARACTERS = 2000
"""Of an answer or a reference; longer ones are cut, which is marked."""
HALF = 0.5
"""The compression ratio that the overview recommends a press for; the nearest one that was run, if it was not."""


def page(frame: pd.DataFrame, records: Sequence[Record], folders: Sequence[Path]) -> str:
    """The whole page.

    Args:
        frame: of `scores`.
        records: those it was made of.
        folders: searched for kept maps.
    """
    shown = views(frame)
    samples, contexts, note = _samples(frame, shown, records, read_kept_maps(folders))
    data = {
        "views": [_view(view) for view in shown],
        "overview": [_recommendation(view) for view in shown],
        "samples": samples,
        "note": note,
        "counts": {"records": len(records), "failed": sum(record.error is not None for record in records)},
    }
    blocks = [_block("data", data), *(_block(f"context-{at}", one) for at, one in enumerate(contexts))]
    template, style, script = (files("evaluation").joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": "\n".join(blocks)}
    for name, text in parts.items():  # data last, so that nothing in it is taken for a mark
        template = template.replace(f"@@{name}@@", text)
    return template


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: exit code 0, or 2 with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.report", description="Write report.html from records; needs no model.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="results folders; the first receives the page")
    try:
        folders = parser.parse_args(arguments).folders
        records = read(folders)
        text = page(scores(records), records, folders)
        target = folders[0] / "report.html"
        try:
            write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"the report cannot be written to {folders[0]}: {error.strerror}") from error
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(target)
    return 0


def _view(view: View) -> dict[str, Any]:
    lines = []
    for line in view.lines:
        cells = {column: _cell(line.cells[column]) for column in view.columns if column in line.cells}
        kept = float(line.kept.split()[0]) if line.kept != MISSING else None
        start = {"press": line.press, "budget": line.budget, "kept": line.kept, "keptValue": kept, "n": line.samples}
        lines.append({**start, "baseline": line.is_baseline, "cells": cells})
    metrics = {row["task"]: row["metric"] for line in view.lines for row in line.cells.values()}
    return {"title": view.title, "columns": view.columns, "averages": view.averages, "metrics": metrics, "lines": lines}


def _cell(row: Mapping[str, Any]) -> dict[str, Any]:
    """Texts of a cell as tables have them, its interval, and the numbers for drawing and sorting."""
    known = not math.isnan(row["score"])
    interval = f"{row['ci_low']:.1f} to {row['ci_high']:.1f}" if known else MISSING
    numbers = {name: _number(row[column]) for name, column in _DRAWN.items()}
    return {"text": score_cell(row), "difference": difference_cell(row), "interval": interval, "n": int(row["n"]), **numbers}


_DRAWN = {"score": "score", "low": "ci_low", "high": "ci_high", "delta": "delta", "kept": "kept_fraction"}


def _recommendation(view: View) -> dict[str, Any] | None:
    """The best line at the ratio nearest to one half, and what its lead over the others is worth; None without a compressed line."""
    ratios = [(line, row) for line in view.lines for row in list(line.cells.values())[:1] if not line.is_baseline]
    known = sorted({float(row["compression_ratio"]) for _, row in ratios if not pd.isna(row["compression_ratio"])})
    if not known:
        return None
    ratio = min(known, key=lambda one: (abs(one - HALF), one))
    column = view.columns[0]
    candidates = [line for line, row in ratios if row["compression_ratio"] == ratio and column in line.cells]
    ranked = sorted(
        (line for line in candidates if not math.isnan(line.cells[column]["score"])), key=lambda line: -line.cells[column]["score"]
    )
    if not ranked:
        return None
    best = ranked[0].cells[column]
    sure = not math.isnan(best["p_lead"]) and best["p_lead"] < SIGNIFICANT
    rows = [{"press": line.press, "kept": line.kept, **_cell(line.cells[column])} for line in ranked]
    lead = {"lead": f"{best['lead']:+.1f}", "p": f"{best['p_lead']:.2g}"} if not math.isnan(best["p_lead"]) else None
    full = next((score_cell(line.cells[column]) for line in view.lines if line.is_baseline and column in line.cells), MISSING)
    return {"ratio": f"{ratio:g}", "half": ratio == HALF, "column": column, "sure": sure, "lead": lead, "ranked": rows, "full": full}


def _samples(
    frame: pd.DataFrame, shown: Sequence[View], records: Sequence[Record], kept: Iterable[KeptMap]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Samples with their answers, the contexts they name by index, and a sentence on what was left out."""
    maps = list(kept)
    mapped = {key: at for at, one in enumerate(maps) for key in one.counts}
    place = _places(frame, shown, records)
    groups: dict[tuple[int, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((place[_table_key(record)][0], record.task, record.sample_id), []).append(record)
    of_task: dict[tuple[int, str], list[tuple[int, str, str]]] = {}
    for name in groups:
        of_task.setdefault(name[:2], []).append(name)
    for names in of_task.values():
        names.sort(key=lambda name: (not any(one.key in mapped for one in groups[name]), len(name[2]), name[2]))
    rounds = [names[at] for at in range(max(map(len, of_task.values()))) for names in of_task.values() if at < len(names)]
    chosen: list[tuple[int, str, str]] = []
    answers = 0
    for name in rounds:  # the first of every task, then the second of every task, …
        if chosen and answers + len(groups[name]) > ANSWERS:
            break
        chosen.append(name)
        answers += len(groups[name])
    contexts: list[dict[str, Any]] = []
    known: dict[int, int | None] = {}
    space, result = CONTEXT_BYTES, []
    order = {at: [(line.press, line.budget) for line in view.lines] for at, view in enumerate(shown)}
    for view, task, sample in sorted(chosen, key=lambda name: (name[0], shown[name[0]].columns.index(name[1]))):
        held = groups[view, task, sample]
        rows: list[dict[str, Any]] = []
        parts = sorted({mapped[one.key] for one in held if one.key in mapped})
        for part in parts:
            if part not in known:
                size = len(maps[part].text) + 8 * maps[part].spans.size + 3 * sum(map(len, maps[part].counts.values()))
                known[part] = len(contexts) if size <= space else None
                if size <= space:
                    space -= size
                    contexts.append(_context(maps[part]))
        for one in held:
            line = order[view].index(place[_table_key(one)][1][_line_key(one)])
            at = known.get(mapped.get(one.key, -1))
            score = "failed" if one.error is not None else MISSING if one.score is None else f"{100 * one.score:.1f}"
            text = "" if one.error is not None else _cut(one.prediction)
            rows.append({"line": line, "score": score, "answer": text, "context": at, "key": None if at is None else one.key})
        rows.sort(key=lambda row: row["line"])
        references = [_cut(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) for one in held[0].references]
        result.append({"view": view, "task": task, "id": sample, "references": references, "answers": rows})
    note = f"All {len(records):,} answers are here." if answers == len(records) else ""
    note = note or f"{answers:,} of {len(records):,} answers are here: the first {len(chosen):,} of {len(groups):,} samples, task by task."
    left = sum(part is None for part in known.values())
    return result, contexts, note + (f" {left} contexts are left out for their size." if left else "")


def _places(
    frame: pd.DataFrame, shown: Sequence[View], records: Sequence[Record]
) -> dict[tuple[Any, ...], tuple[int, dict[tuple[Any, ...], tuple[str, str]]]]:
    """Per table key its number among `shown`, and the label and budget of each of its lines by `_line_key`."""
    numbers = {names: at for at, (names, _) in enumerate(frame.groupby(list(TABLE), sort=False))}
    lines: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
    for record in records:
        lines.setdefault(_table_key(record), set()).add(_line_key(record))
    result = {}
    for table, held in lines.items():
        modes = {key[4] for key in held}
        labels: dict[tuple[str, str], str] = {}
        for press in {key[0] for key in held}:
            texts = sorted({key[1] for key in held if key[0] == press})
            labels |= {(press, text): label for text, label in zip(texts, differing([json.loads(text) for text in texts]), strict=True)}
        named = {
            key: (line_label(key[0], labels[key[:2]], key[4] and len(modes) > 1, key[6]), line_budget(key[0], key[2], key[3], key[5]))
            for key in held
        }
        result[table] = (numbers[table], named)
    return result


def _table_key(record: Record) -> tuple[Any, ...]:
    return tuple(_plain(value) for value in _TABLE(record))


def _line_key(record: Record) -> tuple[Any, ...]:
    press, parameters, ratio, *others = _LINE(record)
    return press, _plain(parameters), None if ratio is None or press == BASELINE else round(ratio, 6), *others


_TABLE, _LINE = attrgetter(*TABLE), attrgetter(*LINE)


def _plain(value: Any) -> Any:
    return value if not isinstance(value, dict) else json.dumps(value, sort_keys=True) if value else "{}"


def _context(kept: KeptMap) -> dict[str, Any]:
    """What the page shades: text, token spans and counts, in JavaScript's units (UTF-16) and byte order."""
    units = np.concatenate([[0], np.cumsum([1 + (ord(character) > 0xFFFF) for character in kept.text])]).astype("<u4")
    last = len(kept.text)
    counts = {key: _bytes(values.clip(0, 65535).astype("<u2")) for key, values in kept.counts.items()}
    evidence = {
        name: [[int(units[min(start, last)]), int(units[min(end, last)])] for start, end in one] for name, one in kept.evidence.items()
    }
    spans = _bytes(units[kept.spans.clip(0, last)].ravel())
    return {"text": kept.text, "spans": spans, "entries": kept.entries, "evidence": evidence, "questions": kept.questions, "counts": counts}


def _bytes(numbers: Any) -> str:
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} […{len(text) - CHARACTERS:,} more characters]"


def _number(value: Any) -> float | None:
    return None if pd.isna(value) or not math.isfinite(value) else round(float(value), 4)


def _block(name: str, data: Any) -> str:
    """JSON that no browser reads as markup: "<", ">" and "&" stand as escapes, and every other character is ASCII."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


if __name__ == "__main__":
    sys.exit(main())
