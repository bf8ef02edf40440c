"""Folders that a run cannot fill."""

from pathlib import Path

from tests.support.bad_commands.configuration import RUN

FOLDERS = {
    "a file": "{bad}/results/file",
    "a folder whose records are a file": "{bad}/results/records-file",
    "a folder whose record file is a folder": "{bad}/results/record-folder",
    "a folder with records of a later version": "{bad}/results/newer",
    "a folder with packed records that are not packed": "{bad}/results/no-gzip",
    "a folder in the way of what is written": "{bad}/results/config-folder",
    "a folder that nobody may write": "/proc/longpress",
    "a folder inside a device": "/dev/null/results",
    "a name that is too long": "x" * 300,
}

CASES = {title: f"{RUN} results={folder}" for title, folder in FOLDERS.items()}


def fill(bad: Path) -> None:
    """Make the folders that the cases name, in `bad`."""
    for name in ("records-file", "record-folder/records/a.jsonl", "newer/records", "no-gzip/records"):
        (bad / "results" / name).mkdir(parents=True)
    (bad / "results" / "file").write_text("x")
    (bad / "results" / "records-file" / "records").write_text("x")
    (bad / "results" / "newer" / "records" / "a.jsonl").write_text('{"schema": 99}\n')
    (bad / "results" / "no-gzip" / "records" / "a.jsonl.gz").write_text('{"schema": 99}\n')
    (bad / "results" / "config-folder" / "config.yaml" / "x").mkdir(parents=True)
