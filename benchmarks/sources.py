"""Where rows come from: a local file or folder, a plain hub data set, or an archive on the hub. Nothing is executed that was downloaded.

Script data sets (a builder in Python) are read from their archives with `zipfile`; `datasets` and
`huggingface_hub` are imported when they are needed.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.base import Tokenizer
from benchmarks.jsonl import read_rows

Rows = list[dict[str, Any]]
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
_Made = TypeVar("_Made")


def file_rows(file: Path) -> Rows:
    """Rows of a `.jsonl`, `.json` (a list of objects), `.parquet` or `.csv` file.

    Raises:
        ValueError: the file is missing or broken, or of another kind; names it.
    """
    if file.suffix == ".jsonl":
        return [row for _, row in read_rows(file)]
    if not file.is_file():
        raise ValueError(f"no file at {file.resolve()}")
    if file.suffix == ".parquet":
        import pandas

        return _plain(pandas.read_parquet(file).to_dict("records"))
    if file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return list(csv.DictReader(lines))
    if file.suffix != ".json":
        raise ValueError(f"{file}: rows are read from {', '.join(SUFFIXES)} files")
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        if (
            isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        ):  # JSON lines under the other name
            return [row for _, row in read_rows(file)]
        raise ValueError(f"{file}: not JSON ({error})") from error
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: a list of JSON objects is expected")
    return rows


def local_rows(path: str | Path, names: Sequence[str], what: str) -> tuple[Rows, Path]:
    """Rows of the file `path`, or of the first of `names` (without suffix) that stands in the folder `path`.

    Returns:
        The rows, and the file they came from.

    Raises:
        ValueError: there is no such file; names what was looked for, and where.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return file_rows(place), place
    for name in names:
        for suffix in SUFFIXES:
            if (file := place / (name + suffix)).is_file():
                return file_rows(file), file
    wanted = " or ".join(f"{name}.jsonl" for name in names)
    raise ValueError(
        f"{what}: no {wanted} in {place.resolve()}; put the file there, or leave path empty to download it"
    )


def hub_rows(
    repository: str, config: str | None, split: str, revision: str, what: str
) -> tuple[Rows, str | None]:
    """Rows of a plain hub data set.

    Returns:
        The rows, and the commit they came from (None where the hub could not say).

    Raises:
        ValueError: it could not be read; names the data set, the reason and the fix.
    """

    def download() -> tuple[Rows, str | None]:
        from datasets import load_dataset

        commit = hub_commit(repository, revision)
        return [dict(row) for row in load_dataset(repository, config, split=split, revision=commit)], commit

    name = "/".join(part for part in (repository, config, split) if part)
    return _from_hub(download, f"{what}: hub data set {name}")


def hub_file(repository: str, file: str, revision: str, what: str) -> tuple[Path, str | None]:
    """One file of a hub data set, downloaded once.

    Returns:
        Its path, and the commit it came from.

    Raises:
        ValueError: it could not be downloaded; names the file, the data set, the reason and the fix.
    """

    def download() -> tuple[Path, str | None]:
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision or None))
        found = re.search(r"snapshots/([0-9a-f]{40})/", path.as_posix())
        return path, found[1] if found else revision or None

    return _from_hub(download, f"{what}: {file} of hub data set {repository}")


def hub_commit(repository: str, revision: str) -> str | None:
    """The commit behind a revision ("" for the newest); what was asked for where the hub does not answer."""
    try:
        from huggingface_hub import HfApi

        commit: str | None = HfApi().dataset_info(repository, revision=revision or None, timeout=20).sha
    except Exception:  # a cached copy can still be read
        return revision or None
    return commit


def archive_rows(archive: Path, member: str, what: str) -> Rows:
    """Rows of the `.jsonl` member of a zip file whose path ends in `member`.

    Raises:
        ValueError: no zip file, no such member, or a broken line.
    """
    if not archive.is_file():
        raise ValueError(
            f"{what}: no file at {archive.resolve()}; put the archive there, or leave path empty to download it"
        )
    try:
        with zipfile.ZipFile(archive) as files:
            names = [name for name in files.namelist() if name.endswith(member) and "__MACOSX" not in name]
            if not names:
                raise ValueError(
                    f"{what}: {archive.name} has no member {member}; it has {', '.join(files.namelist()[:10])}"
                )
            lines = files.read(min(names, key=len)).decode("utf-8").split("\n")
    except zipfile.BadZipFile as error:
        raise ValueError(f"{what}: {archive.resolve()} is not a zip file; download it again") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{archive.name}/{member}, line {number}: not JSON ({error})") from error
    return rows


def field(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """The first of the fields `names` that a row has.

    Raises:
        ValueError: it has none; names place and fields.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ValueError(
        f"{where}: no field {' or '.join(map(repr, names))}; its fields are {', '.join(map(str, row)) or 'none'}"
    )


def text_field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The same, and it is text.

    Raises:
        ValueError: it has none, or it is not text.
    """
    value = field(row, names, where)
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: the field {names[0]!r} is a {type(value).__name__}, where text is expected"
        )
    return value


def count_tokens(tokenizer: Tokenizer, *parts: str) -> int:
    """Tokens of texts that are tokenised apart, without special tokens."""
    return sum(len(tokenizer.encode(part, add_special_tokens=False)) for part in parts if part)


def check_window(
    name: str, prompt: Sequence[str], max_new_tokens: int, tokenizer: Tokenizer, window: int, fix: str
) -> None:
    """Refuse a prompt that does not fit, for suites without a rule to cut it.

    Raises:
        ValueError: prompt and answer exceed the window.
    """
    if sum(len(part.encode("utf-8", "surrogatepass")) for part in prompt) + max_new_tokens <= window:
        return  # a token holds at least one byte
    tokens = count_tokens(tokenizer, *prompt) + max_new_tokens
    if tokens > window:
        raise ValueError(
            f"{name} takes {tokens} tokens, the model's window has {window}, and the suite has no rule to cut prompts; {fix}"
        )


def cut_middle(context: str, tail: str, tokenizer: Tokenizer, limit: int) -> tuple[str, bool]:
    """Cut the prompt `context + tail` in its middle, as LongBench and its kin do: its first and last `int(limit / 2)` tokens stay.

    Returns:
        What is left of the context, and whether anything was cut. The tail (question and answer prefix)
        always stays whole.

    Raises:
        ValueError: the tail alone takes the half that is kept.
    """
    if len((context + tail).encode("utf-8", "surrogatepass")) <= limit:
        return context, False  # a token holds at least one byte
    tokens = tokenizer.encode(context + tail, add_special_tokens=False)
    if len(tokens) <= limit:
        return context, False
    half, behind = int(limit / 2), count_tokens(tokenizer, tail)
    if half <= behind:
        raise ValueError(
            f"a question of {behind} tokens does not fit behind a context cut to {limit} tokens; use a longer max_length or model window"
        )
    head, end = (
        tokenizer.decode(tokens[:half], skip_special_tokens=True),
        tokenizer.decode(tokens[-half:], skip_special_tokens=True),
    )
    if end.endswith(tail):
        return head + end[: len(end) - len(tail)], True
    return head + tokenizer.decode(
        tokens[-half:-behind] if behind else tokens[-half:], skip_special_tokens=True
    ), True


def find_spans(text: str, wanted: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Where each of `wanted` first stands in a text, in order; what does not stand there is left out."""
    found = {(start, start + len(part)) for part in wanted if part and (start := text.find(part)) >= 0}
    return tuple(sorted(found))


def _from_hub(download: Callable[[], _Made], what: str) -> _Made:
    try:
        return download()
    except Exception as error:  # network, permission, missing file, changed layout: all the same to the user
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{what} could not be read ({reason}); check network and revision, or give path=FOLDER_OR_FILE"
        ) from error


def _plain(rows: Rows) -> Rows:
    """The same rows with lists instead of arrays, since a table file gives numpy values."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return [{key: plain(value) for key, value in row.items()} for row in rows]
