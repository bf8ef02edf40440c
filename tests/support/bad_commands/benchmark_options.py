"""Benchmarks with options that mean nothing, and data files that are damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.bad_commands.configuration import RUN

OTHER_RUN = "run limit=1 plots=false {tiny} results={results}"
WHOLE_RUN = "run plots=false {tiny} results={results}"

OF_RULER = {
    "a task that there is not": "benchmark.tasks=[nosuch]",
    "no tasks": "benchmark.tasks=[]",
    "a task twice": "benchmark.tasks=[vt,vt]",
    "a task without a list": "benchmark.tasks=vt",
    "tasks that are a number": "benchmark.tasks=5",
    "tasks that are null": "benchmark.tasks=null",
    "one task that is null": "benchmark.tasks=[null]",
    "a length of no tokens": "benchmark.length=0",
    "a length of negative tokens": "benchmark.length=-1",
    "a length below a single needle": "benchmark.length=10",
    "a length above the model's": "benchmark.length=1000000",
    "a length in words": "benchmark.length=long",
    "no samples per task": "benchmark.samples_per_task=0",
    "a seed in words": "benchmark.seed=x",
    "a source that there is not": "benchmark.source=nosuch",
    "files without a path": "benchmark.source=files",
    "files in a folder that there is not": "benchmark.source=files benchmark.path=/nowhere",
    "a path without files": "benchmark.path={bad}",
    "a haystack that there is not": "benchmark.haystack=nosuch",
    "a haystack in a folder that there is not": (
        "benchmark.tasks=[niah_single_2] benchmark.haystack_path=/nowhere"
    ),
    "a haystack in an empty folder": "benchmark.tasks=[niah_single_2] benchmark.haystack_path={bad}/empty",
    "a haystack of bytes": "benchmark.tasks=[niah_single_2] benchmark.haystack_path={bad}/binary.txt",
    "a haystack of numbers": "benchmark.tasks=[niah_single_2] benchmark.haystack_path={bad}/list.json",
    "questions that there are not": "benchmark.questions=nosuch",
    "a template of negative tokens": "benchmark.template_tokens=-1",
}

OF_OTHERS = {
    "aime25": ("prompt=nosuch", "max_new_tokens=0", "path=/nowhere"),
    "babilong": ("length=nosuch", "tasks=[qa99]", "path=/nowhere"),
    "helmet": ("path=", "length=0", "shots=-1", "path=/nowhere", "samples_per_task=0"),
    "infinitebench": ("max_length=-1", "tasks=[nosuch]", "path=/nowhere"),
    "longbench": ("tasks=[nosuch]", "max_length=-1", "path=/nowhere", "extended=maybe"),
    "longbench_v2": ("tasks=[nosuch]", "max_length=-1", "path=/nowhere"),
    "loogle": ("cut=nosuch", "tasks=[nosuch]", "path=/nowhere", "meteor=maybe"),
    "math500": ("prompt=nosuch", "path=/nowhere"),
    "niah": ("tasks=['7']", "depths=0", "draws=-1", "haystack=nosuch", "tasks=['131072']"),
    "scbench": ("mode=nosuch", "max_turns=0", "path=/nowhere"),
    "zero_scrolls": ("split=nosuch", "max_length=-1", "path=/nowhere"),
}
"""Options that other suites refuse: their names say what they are of."""

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "longbench": (
        "qasper",
        {"input": "Q", "context": "text " * 50, "answers": ["a"], "all_classes": None, "length": 50},
    ),
    "longbench_v2": (
        "data",
        {name: "a" for name in ("question", "context", "choice_A", "choice_B", "choice_C", "choice_D")}
        | {"answer": "A"},
    ),
    "infinitebench": (
        "passkey",
        {"id": 0, "context": "text " * 50, "input": "Q", "answer": ["5"], "options": []},
    ),
    "math500": ("test", {"problem": "1+1", "answer": "2"}),
    "scbench": (
        "scbench_kv",
        {"id": 0, "context": "text " * 50, "multi_turns": [{"input": "Q", "answer": "a"}]},
    ),
    "babilong": ("qa1", {"input": "text " * 50, "question": "Where?", "target": "garden"}),
}
"""Name and a row of a file that each of these suites reads."""
WITHOUT_TASKS = ("longbench_v2", "math500")
"""Suites of one file; of the others, the task is named as the file is."""

DAMAGE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "empty": lambda row: b"",
    "blank": lambda row: b"\n \n\n",
    "binary": lambda row: bytes(range(256)) * 20,
    "utf-16": lambda row: json.dumps(row).encode("utf-16"),
    "torn": lambda row: json.dumps(row).encode()[:-5],
    "a-list": lambda row: b"[1, 2]\n",
    "a-number": lambda row: b"5\n",
    "null": lambda row: b"null\n",
    "nested-too-deep": lambda row: b'{"a":' * 100_000,
    "without-fields": lambda row: b"{}\n",
    "of-other-fields": lambda row: b'{"completely": "different"}\n',
    "of-nulls": lambda row: json.dumps(dict.fromkeys(row)).encode(),
    "of-numbers": lambda row: json.dumps(dict.fromkeys(row, 5)).encode(),
    "of-lists": lambda row: json.dumps({key: [[1]] for key in row}).encode(),
    "of-nan": lambda row: json.dumps(dict.fromkeys(row, float("nan"))).encode(),
    "of-huge-numbers": lambda row: json.dumps(dict.fromkeys(row, 10**4000)).encode(),
    "torn-in-its-second-line": lambda row: json.dumps(row).encode() + b"\n{]\n",
}
"""What may be wrong with such a file, and how it is made from the row."""

CASES = {
    **{f"ruler: {title}": f"{RUN} {typed}" for title, typed in OF_RULER.items()},
    **{
        f"{suite}: {option}": f"{OTHER_RUN} benchmark={suite} benchmark.{option}"
        for suite, options in OF_OTHERS.items()
        for option in options
    },
    **{
        f"{suite}: a file that is {damage.replace('-', ' ')}": (
            f"{WHOLE_RUN} benchmark={suite} benchmark.path={{bad}}/data/{suite}/{damage}"
            + ("" if suite in WITHOUT_TASKS else f" benchmark.tasks=[{name}]")
        )
        for suite, (name, _) in ROWS.items()
        for damage in DAMAGE
    },
}


def fill(bad: Path) -> None:
    """Make the files that the cases name, in `bad`."""
    (bad / "binary.txt").write_bytes(bytes(range(256)) * 50)
    (bad / "list.json").write_text("[1, 2]")
    for suite, (name, row) in ROWS.items():
        for damage, damaged in DAMAGE.items():
            folder = bad / "data" / suite / damage
            folder.mkdir(parents=True)
            (folder / f"{name}.jsonl").write_bytes(damaged(row))
