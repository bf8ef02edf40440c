"""Records survive torn and corrupt lines, odd characters, several writers and reordered keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from longpress.analysis.records import NewerRecordError, Record, RecordWriter, read_records, record_key
from tests.support.made_up_records import ruler_record, write_lines


def test_a_line_gives_the_record_back() -> None:
    record = ruler_record(press_parameters={"press": {"window_size": 32}}, error=None, evidence_kept=0.5)
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "text", ["a\u2028b\u2029c\x85d\ne\rf\x0bg\x0ch", "\ud800 lone", "emoji \U0001f600", 'quote " \\u2028']
)
def test_any_prediction_is_one_line(tmp_path: Path, text: str) -> None:
    record = ruler_record(prediction=text)
    assert len(record.to_json().splitlines()) == 1
    with RecordWriter(tmp_path) as writer:
        writer.append(record)
        writer.append(replace(record, key="other"))
    assert [read.prediction for read in read_records([tmp_path])] == [text, text]


def test_a_torn_last_line_is_skipped(tmp_path: Path) -> None:
    write_lines(tmp_path, ruler_record("a").to_json(), ruler_record("b").to_json()[:-40].encode())
    assert [record.key for record in read_records([tmp_path])] == ["a"]


@pytest.mark.parametrize(
    "line",
    [
        b"\x00\x00\x00\n",
        b"{}\n",
        b"[1]\n",
        b'"text"\n',
        b"\n",
        b"[" * 100_000 + b"\n",
        ruler_record("b").to_json().replace('"vt"', '"v\0t"').encode() + b"\n",
        ruler_record("b").to_json().encode().replace(b"text", b"te\xff\xfext") + b"\n",
        ruler_record("b").to_json().replace('"score": 0.5', '"score": 1.5').encode() + b"\n",
        ruler_record("b").to_json().replace('"score": 0.5', '"score": NaN').encode() + b"\n",
        ruler_record("b").to_json().replace('"score": 0.5', '"score": "0.5"').encode() + b"\n",
        ruler_record("b").to_json().replace('"key": "b"', '"key": ["b"]').encode() + b"\n",
        ruler_record("b").to_json().replace('"kept_fraction": 1.0', '"kept_fraction": NaN').encode() + b"\n",
        ruler_record("b").to_json().replace('"task": "vt", ', "").encode() + b"\n",
    ],
)
def test_a_corrupt_line_is_skipped_and_those_around_it_are_read(tmp_path: Path, line: bytes) -> None:
    write_lines(tmp_path, ruler_record("a").to_json(), line, ruler_record("c").to_json())
    assert [record.key for record in read_records([tmp_path])] == ["a", "c"]


def test_a_newer_record_is_refused_with_its_file(tmp_path: Path) -> None:
    write_lines(tmp_path, ruler_record("a").to_json().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(NewerRecordError, match=r"a\.jsonl: record schema 2 .* update longpress"):
        list(read_records([tmp_path]))


def test_older_records_take_defaults_and_unknown_fields_are_ignored() -> None:
    row = json.loads(ruler_record().to_json())
    del row["weight"], row["benchmark_parameters"]
    row["something_else"] = 1
    assert Record.from_json(json.dumps(row)) == ruler_record()


def test_a_key_counts_once_and_a_success_wins(tmp_path: Path) -> None:
    failed = ruler_record("a", score=None, error="Traceback")
    write_lines(tmp_path, failed.to_json(), ruler_record("b", score=0.1).to_json(), name="1")
    write_lines(
        tmp_path,
        ruler_record("a").to_json(),
        ruler_record("b", score=0.9).to_json(),
        failed.to_json(),
        name="2",
    )
    found = {record.key: record for record in read_records([tmp_path, tmp_path])}
    assert found["a"].score == 0.5
    assert found["b"].score == 0.1
    assert len(found) == 2


def test_key_does_not_depend_on_order_but_on_content() -> None:
    assert record_key({"a": 1, "b": {"c": 2, "d": 3}}) == record_key({"b": {"d": 3, "c": 2}, "a": 1})
    assert record_key({"a": 1}) != record_key({"a": 2})
    assert record_key({"a": [1, 2]}) != record_key({"a": [2, 1]})


def test_fields_in_any_order_are_the_same_record() -> None:
    row = json.loads(ruler_record().to_json())
    assert Record.from_json(json.dumps(dict(reversed(row.items())))) == ruler_record()


def test_not_a_number_is_never_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        ruler_record(score=float("nan")).to_json()


def test_a_writer_with_nothing_to_write_leaves_no_file(tmp_path: Path) -> None:
    with RecordWriter(tmp_path):
        pass
    assert not (tmp_path / "records").exists()
    assert list(read_records([tmp_path])) == []


def test_names_that_no_file_can_hold_become_ones_that_tables_can_write() -> None:
    given = ruler_record(
        model="a\ud800b", press="😀", press_parameters={"\udfff": "\ud83d"}, prediction="\ud800"
    )
    back = Record.from_json(given.to_json())
    assert (back.model, back.press, back.press_parameters, back.prediction) == (
        "a?b",
        "😀",
        {"?": "?"},
        "\ud800",
    )
