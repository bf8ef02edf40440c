"""Runs of the real command on a tiny model: how they are started, and what they leave behind."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import tiny_model
from tests.support.warm_command import ROOT, completed

TASKS = ["benchmark=ruler", "benchmark.tasks=[niah_single_1,vt]", "benchmark.length=2048", "plots=false"]
SWEEP = ["press=[knorm,snapkv]", "compression_ratio=[0.25,0.5]", *TASKS, "limit=3"]


def save_tiny_model(folder: Path, chat_template: bool = True) -> Path:
    """A tiny Llama and a tokenizer of bytes, as `model=hub model.path=…` reads them; the folder."""
    tiny_model("llama", vocab_size=VOCABULARY).save_pretrained(folder)
    byte_tokenizer(chat_template).save_pretrained(folder)
    return folder


def of_model(folder: Path) -> list[str]:
    """The overrides that choose it."""
    return ["model=hub", f"model.path={folder}", "model.name=tiny"]


def command(model_folder: Path, results: Path, *arguments: str) -> list[str]:
    """Two presses at two ratios on three samples of two tasks; `arguments` have the last word."""
    given = [*SWEEP, *of_model(model_folder), f"results={results}", *arguments]
    return [sys.executable, str(ROOT / "evaluate.py"), *given]


def run(
    model_folder: Path, results: Path, *arguments: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """`command`, in a warmed-up process, with the exit code that is expected."""
    done = completed(*command(model_folder, results, *arguments)[1:])
    assert done.returncode == code, done.stdout + done.stderr
    return done


def multirun_command(model_folder: Path, results: Path, *arguments: str) -> list[str]:
    """Two samples of two tasks, under what `arguments` name; `-m` among them is put first."""
    flag, rest = [one for one in arguments if one == "-m"], [one for one in arguments if one != "-m"]
    given = [*TASKS, "limit=2", f"results={results}", *of_model(model_folder), *rest]
    return [sys.executable, str(ROOT / "evaluate.py"), *flag, *given]


def multirun(
    model_folder: Path, results: Path, *arguments: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """`multirun_command`, in a warmed-up process, with the exit code that is expected."""
    done = completed(*multirun_command(model_folder, results, *arguments)[1:])
    assert done.returncode == code, done.stdout + done.stderr
    return done


def records(results: Path) -> list[dict]:
    """Every line of a folder's record files."""
    lines = [
        line
        for path in sorted((results / "records").glob("*.jsonl"))
        for line in path.read_text().split("\n")
        if line
    ]
    return [json.loads(line) for line in lines]


def content(results: Path) -> set[tuple]:
    """What must not depend on how the run went."""
    return {
        (
            r["key"],
            r["sample_id"],
            r["press"],
            r["compression_ratio"],
            r["prediction"],
            r["score"],
            str(r["kept_entries"]),
        )
        for r in records(results)
    }


def table(results: Path) -> str:
    """The printed scores, without the seconds that follow them."""
    return (results / "table.md").read_text(encoding="utf-8").split("### Cost")[0]
