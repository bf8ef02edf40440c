"""Stored answers scored again without a model."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from longpress.analysis.records import Record, read_records
from longpress.evaluation.rescore import rescore, run

RECORD = Record(
    key="k",
    model="tiny",
    benchmark="ruler",
    benchmark_version="0",
    task="vt",
    sample_id="vt/0",
    context_id="c",
    press="none",
    press_parameters={},
    compression_ratio=0.0,
    query_aware=False,
    metric="old",
    score=0.0,
    scores={"old": 0.0},
    prediction="AAAAA and bbbbb",
    references=["AAAAA", "BBBBB", "CCCCC", "DDDDD"],
    kept_fraction=1.0,
    kept_entries=[1],
    cache_bytes=1,
    full_cache_bytes=1,
    context_tokens=1,
    question_tokens=1,
    new_tokens=1,
    stop_reason="eos",
    prefill_seconds=1.0,
    observe_seconds=0.0,
    compress_seconds=0.0,
    decode_seconds=1.0,
)


def write(folder: Path, *records: Record) -> Path:
    (folder / "records").mkdir(parents=True)
    (folder / "records" / "a.jsonl").write_text(
        "".join(record.to_json() + "\n" for record in records), encoding="utf-8"
    )
    return folder


def test_answers_get_the_scores_of_today(tmp_path: Path) -> None:
    failed = replace(RECORD, key="f", sample_id="vt/1", score=None, scores={}, error="Traceback")
    source = write(tmp_path / "old", RECORD, failed)
    again, untouched = sorted(rescore(source), key=lambda record: record.sample_id)
    assert (again.score, again.metric, again.benchmark_version) == (0.5, "string_match_all", "1")
    assert untouched == failed
    run(Namespace(folder=source, out=tmp_path / "new"))
    assert {record.score for record in read_records([tmp_path / "new"])} == {0.5, None}
    assert json.loads((source / "records" / "a.jsonl").read_text().split("\n")[0])["score"] == 0.0


@pytest.mark.parametrize("kind", ["empty", "foreign", "full"])
def test_bad_folders_get_a_sentence(tmp_path: Path, kind: str) -> None:
    source = write(
        tmp_path / "old",
        *(
            []
            if kind == "empty"
            else [replace(RECORD, benchmark="nobench" if kind == "foreign" else "ruler")]
        ),
    )
    out = write(tmp_path / "new", RECORD) if kind == "full" else tmp_path / "new"
    with pytest.raises(ValueError, match=r"holds no records|no benchmark 'nobench'|already holds records"):
        run(Namespace(folder=source, out=out))
