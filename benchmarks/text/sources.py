"""Where rows come from: a local file or folder, a plain hub data set, or a file of one.

Nothing that was downloaded is executed: script data sets (a builder in Python) are read from their archives
with `zipfile`. `datasets`, `pandas` and `huggingface_hub` are imported when they are needed.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from benchmarks.text.jsonl import json_lines, read_rows

Rows = list[dict[str, Any]]

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
"""Of files that hold rows."""

Download = TypeVar("Download")


class Table(NamedTuple):
    """Rows, and where they came from.

    Attributes:
        rows: at least one.
        source: name of the file or hub data set.
        revision: commit of the hub data set; None for a local file, and where the hub could not say.
    """

    rows: Rows
    source: str
    revision: str | None

    @property
    def origin(self) -> dict[str, Any]:
        """What a sample's metadata say about it."""
        return {"source": self.source, "revision": self.revision}


def embedded_json(file: str, name: str) -> Any:
    """The content of a JSON file that lies beside a module.

    Args:
        file: the module's `__file__`.
        name: of the JSON file.
    """
    return json.loads(Path(file).with_name(name).read_text(encoding="utf-8"))


def local_file(path: str | Path, what: str, fix: str) -> Path:
    """`path`, if a file stands there.

    Args:
        path: to look at.
        what: is read from it, for the error.
        fix: what the user should do, for the error.

    Raises:
        ValueError: one sentence that names the file, the place it was looked for, and the fix.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{what}: no file at {file.resolve()}; {fix}")
    return file


def file_rows(file: Path) -> Rows:
    """Rows of a `.jsonl`, `.csv`, `.json` (a list of objects) or `.parquet` file.

    Raises:
        ValueError: the file is missing or broken, or of another kind; names it.
    """
    if file.suffix in (".jsonl", ".csv"):
        return [row for _, row in read_rows(file)]
    if not file.is_file():
        raise ValueError(f"no file at {file.resolve()}")
    if file.suffix == ".parquet":
        import pandas

        return _plain(pandas.read_parquet(file).to_dict("records"))
    if file.suffix != ".json":
        raise ValueError(f"{file}: rows are read from {', '.join(SUFFIXES)} files")
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return [row for _, row in read_rows(file)]  # JSON lines under the other name
        raise ValueError(f"{file}: not JSON ({error})") from error
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: a list of JSON objects is expected")
    return rows


def archive_rows(archive: Path, member: str, what: str) -> Rows:
    """Rows of the `.jsonl` member of a zip file whose path ends in `member`.

    Raises:
        ValueError: no zip file, no such member, or a broken line.
    """
    try:
        with zipfile.ZipFile(archive) as files:
            names = [name for name in files.namelist() if name.endswith(member) and "__MACOSX" not in name]
            if not names:
                known = ", ".join(files.namelist()[:10])
                raise ValueError(f"{what}: {archive.name} has no member {member}; it has {known}")
            with files.open(min(names, key=len)) as lines:
                return [row for _, row in json_lines(lines, f"{archive.name}/{member}")]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{what}: {archive.resolve()} is not a zip file; download it again") from error


def local_table(path: str | Path, names: Sequence[str], what: str, member: str = "") -> Table:
    """Rows of a file, of the first of several in a folder, or of an archive.

    Args:
        path: the file or folder.
        names: to look for in the folder, in this order. One with a suffix is taken as it is, to others any of
            `SUFFIXES` may be added.
        what: is read, for errors.
        member: of an archive (`.zip`) that is read.

    Raises:
        ValueError: there is no such file, it is broken, or has no row; names what was looked for, and where.
    """
    place = Path(path).expanduser()
    endings = {name: [""] if Path(name).suffix else SUFFIXES for name in names}
    candidates = [place, *(place / f"{name}{ending}" for name in names for ending in endings[name])]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        wanted = dict.fromkeys(f"{name}{'' if Path(name).suffix else '.jsonl'}" for name in names)
        looked_for = " or ".join(sorted(wanted, key=lambda name: name.endswith(".zip")))
        raise ValueError(
            f"{what}: no {looked_for} in {place.resolve()}; "
            "put the file there, or leave path empty to download it"
        )
    rows = archive_rows(file, member, what) if member and file.suffix == ".zip" else file_rows(file)
    return _table(rows, file.name, None, what)


def hub_table(repository: str, config: str | None, split: str, revision: str, what: str) -> Table:
    """Rows of a plain hub data set.

    Args:
        repository: of the data set.
        config: of the data set; None where it has one only.
        split: of the data set.
        revision: commit, branch or tag; "" for the newest.
        what: is read, for errors.

    Raises:
        ValueError: it could not be read, or has no row; names the data set, the reason and the fix.
    """

    def download() -> Table:
        from datasets import load_dataset

        commit = hub_commit(repository, revision)
        rows = [dict(row) for row in load_dataset(repository, config, split=split, revision=commit)]
        return Table(rows, repository, commit)

    name = "/".join(part for part in (repository, config, split) if part)
    return _table(*_from_hub(download, f"{what}: hub data set {name}"), what)


def hub_file_table(repository: str, file: str, revision: str, what: str, member: str = "") -> Table:
    """Rows of one file of a hub data set, which is downloaded once.

    Args:
        repository: of the data set.
        file: in it.
        revision: commit, branch or tag; "" for the newest.
        what: is read, for errors.
        member: that is read, where the file is an archive.

    Raises:
        ValueError: it could not be downloaded, is broken, or has no row; names the file, the reason and the
            fix.
    """

    def download() -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision or None))

    path = _from_hub(download, f"{what}: {file} of hub data set {repository}")
    in_snapshot = re.search(r"snapshots/([0-9a-f]{40})/", path.as_posix())
    commit = in_snapshot[1] if in_snapshot else revision or None
    rows = archive_rows(path, member, what) if member else file_rows(path)
    return _table(rows, repository, commit, what)


def hub_commit(repository: str, revision: str) -> str | None:
    """The commit behind a revision ("" for the newest); what was asked for where the hub does not answer."""
    try:
        from huggingface_hub import HfApi

        commit: str | None = HfApi().dataset_info(repository, revision=revision or None, timeout=20).sha
    except Exception:  # a cached copy can still be read
        return revision or None
    return commit


def _table(rows: Rows, source: str, revision: str | None, what: str) -> Table:
    """The table that these make.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError(f"{what}: {source} has no row")
    return Table(rows, source, revision)


def _from_hub(download: Callable[[], Download], what: str) -> Download:
    """What was downloaded.

    Raises:
        ValueError: nothing was; names the reason and the fix.
    """
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
