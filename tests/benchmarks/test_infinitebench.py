"""InfiniteBench: official prompts and cut, typed labels, scorers with their oddities, scored predictions."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base import Sample
from benchmarks.infinitebench import TASKS, InfinitebenchBenchmark, prompts, template_fields, typed_labels
from benchmarks.score_command import score_file
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.end_to_end import check_end_to_end
from tests.support.suite_laws import check, prompt, take

SCORED = json.loads(
    (Path(__file__).parent / "data" / "infinitebench" / "scored_predictions.json").read_text(encoding="utf-8")
)["rows"]
OFFICIAL = {  # prompt.py (first 16 digits of the SHA-256, gaps named as here), eval_utils.py
    "passkey": ("32a0f730f8746b1a", 6),
    "number_string": ("f519b51c90c40022", 12),
    "kv_retrieval": ("afa97419dd69cd74", 50),
    "longbook_sum_eng": ("897e95259c5b906a", 1200),
    "longbook_choice_eng": ("a7d1a4a0a0fef1dd", 40),
    "longbook_qa_eng": ("658a3b345f204ec8", 40),
    "longbook_qa_chn": ("6b4b8912907d07b6", 40),
    "math_find": ("df2334891e94023e", 3),
    "math_calc": ("ebf0b348e08e938f", 30000),
    "code_run": ("8cfbec4288592e77", 5),
    "code_debug": ("7e20a50e06048dce", 5),
    "longdialogue_qa_eng": ("0483f9f01c709be7", 40),
}
NOISE = "The grass is green. The sky is {blue}. The sun is yellow. Here we go. There and back again.\n" * 8
PASSKEY = "The pass key is 10433. Remember it. 10433 is the pass key."
STRING = "The sequence of digits is 3000077442. Remember it. 3000077442 is the sequence of digits."
OPTIONS = ["Walking Georgie", "Fighting", "B", "None of these"]
FIND = "The value of the numbers below. The smallest number of the list is: "
ROWS: dict[str, dict[str, Any]] = {
    "passkey": {
        "context": NOISE + PASSKEY + "\n" + NOISE,
        "input": "What is the pass key?",
        "answer": ["10433"],
    },
    "number_string": {
        "context": NOISE + STRING + "\n" + NOISE,
        "input": "What is the sequence of digits?",
        "answer": ["3000077442"],
    },
    "kv_retrieval": {
        "context": 'JSON data:\n{"k-1": "v-1", "k-2": "v-2"}',
        "input": '\nKey: "k-2"\nThe value is: ',
        "answer": ["v-2"],
    },
    "longbook_sum_eng": {"context": "A book.", "input": "", "answer": ["It ends well.\nAll are happy."]},
    "longbook_choice_eng": {
        "context": "A book.",
        "input": "What?",
        "answer": ["Walking Georgie"],
        "options": OPTIONS,
    },
    "longbook_qa_eng": {"context": "A book.", "input": "Where?", "answer": ["in world war 1", "at war"]},
    "longbook_qa_chn": {"context": "一本书。", "input": "谁？", "answer": ["《红楼梦》"]},
    "math_find": {"context": "[3, 88, 7]", "input": FIND, "answer": [3]},
    "math_calc": {"context": "1 + 3 - 2", "input": "", "answer": [1, 4, 2]},
    "code_run": {
        "context": "def func_1(x):\n    return x",
        "input": "Please give me the value of func_1(-7).",
        "answer": [-7],
    },
    "code_debug": {"context": "def a(): 1 / 0", "input": "", "answer": ["Fighting"], "options": OPTIONS},
    "longdialogue_qa_eng": {"context": "$$MASK$$: Hello.", "input": "", "answer": ["ACE ROTHSTEIN", "ACE"]},
}


def folder(path: Path) -> str:
    for task, row in ROWS.items():
        lines = [
            json.dumps({"id": number, "options": [], **row}, ensure_ascii=False) + "\n" for number in range(2)
        ]
        (path / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(path)


def gold(sample: Sample) -> str:
    if sample.task == "code_debug":
        return f"{sample.references[1]}: {sample.references[0]}"
    return " ".join(map(str, sample.references)) if sample.task == "math_calc" else str(sample.references[0])


def test_laws(tmp_path: Path) -> None:
    benchmark = InfinitebenchBenchmark(path=folder(tmp_path))
    samples = take(benchmark)
    assert len(samples) == 24 and take(benchmark, 1) == samples[::2]
    check(benchmark, samples[::2], gold, exempt=["accuracy_first_name"])


def test_prompts_are_the_official_ones(tmp_path: Path) -> None:
    assert set(OFFICIAL) == set(TASKS)
    for sample in take(InfinitebenchBenchmark(path=folder(tmp_path)), 1):
        fixed, (digest, limit) = prompts()[sample.task], OFFICIAL[sample.task]
        template = fixed["context"] + fixed["question"] + fixed["answer_prefix"]
        assert hashlib.sha256(template.encode()).hexdigest().startswith(digest)
        assert prompt(sample) == template.format(**template_fields(sample.task, ROWS[sample.task], ""))
        assert (
            sample.max_new_tokens == limit
            and not sample.chat_template
            and sample.metadata["max_length"] == 131_072
        )


def test_gaps() -> None:
    assert template_fields("code_run", ROWS["code_run"], "") | {"context": "", "input": ""} == {
        "context": "",
        "input": "",
        "func_call": "func_1(-7)",
        "func": "func_1",
    }
    assert template_fields("math_find", ROWS["math_find"], "")["prefix"] == (
        # the widest match, as upstream
        "What is the value of the numbers below. the smallest number in the following list?"
    )
    assert template_fields("code_debug", ROWS["code_debug"], "")["option_d"] == "None of these"


def test_evidence(tmp_path: Path) -> None:
    samples = take(InfinitebenchBenchmark(path=folder(tmp_path)), 1)
    found = {sample.task: [sample.context[start:end] for start, end in sample.evidence] for sample in samples}
    known = {"passkey": [PASSKEY], "number_string": [STRING], "kv_retrieval": ['"k-2": "v-2"']}
    assert found == {**{task: [] for task in TASKS}, **known}


@pytest.mark.parametrize("limit", [400, 1401, 1500])
def test_the_whole_prompt_is_cut_in_its_middle(tmp_path: Path, limit: int) -> None:
    tokenizer = byte_tokenizer()
    [sample] = InfinitebenchBenchmark(path=folder(tmp_path), tasks=("passkey",), max_length=limit).samples(
        tokenizer, 10**6, 1
    )
    fixed = prompts()["passkey"]
    tokens = tokenizer.encode(
        "".join(fixed[part] for part in ("context", "question", "answer_prefix")).format(**ROWS["passkey"])
    )
    assert (
        prompt(sample) == tokenizer.decode(tokens[: limit // 2] + tokens[-(limit - limit // 2) :])
        and sample.truncated
    )


def test_evidence_that_is_cut_in_two(tmp_path: Path) -> None:
    tokenizer, path = byte_tokenizer(), folder(tmp_path)
    pieces = {}
    for limit in range(1400, 1760, 40):
        [sample] = InfinitebenchBenchmark(path=path, tasks=("passkey",), max_length=limit).samples(
            tokenizer, 10**6, 1
        )
        pieces[limit] = [sample.context[start:end] for start, end in sample.evidence]
        assert all(PASSKEY.startswith(piece) or PASSKEY.endswith(piece) for piece in pieces[limit])
    assert any(len(found) == 1 and found[0] != PASSKEY for found in pieces.values()) and pieces[1720] == [
        PASSKEY
    ]


def test_small_windows_shorten_long_answers(tmp_path: Path) -> None:
    [sample] = InfinitebenchBenchmark(path=folder(tmp_path), tasks=("math_calc",)).samples(
        byte_tokenizer(), 1000, 1
    )
    assert sample.max_new_tokens == 500 and sample.metadata["max_length"] == 500


def test_scored_predictions(tmp_path: Path) -> None:
    benchmark = InfinitebenchBenchmark()
    read = list(benchmark.read_predictions(enumerate(SCORED, start=1), None))
    assert len({sample.task for sample, _ in read}) == 10 and len(read) == 92
    for (sample, prediction), row in zip(read, SCORED, strict=True):
        scores = benchmark.score(sample, prediction)
        official = (
            scores["accuracy_first_name"]
            if sample.task == "longdialogue_qa_eng"
            else next(iter(scores.values()))
        )
        assert official == pytest.approx(row["score"], abs=1e-9)
    assert {type(sample.references[0]) for sample, _ in read if sample.task in ("code_run", "math_find")} <= {
        int,
        float,
    }
    assert {
        type(sample.references[0])
        for sample, _ in read
        if sample.task in ("passkey", "kv_retrieval", "number_string")
    } == {str}
    rows = [row for row in SCORED if row["task"] == "passkey"]
    (file := tmp_path / "file.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score_file(benchmark, "passkey", str(file))["tasks"]["passkey"]["n"] == 10


@pytest.mark.parametrize(
    ("task", "labels", "prediction", "score"),
    [
        ("passkey", ("10433",), "is 10433. 5", 1),
        ("passkey", ("10433",), "1 10433", 0),
        ("kv_retrieval", ("v-2",), 'the "v-2".', 1),
        ("kv_retrieval", ("v-2",), "xv-2", 0),
        ("longbook_choice_eng", ("Walking", "A"), "A whole sentence", 1),
        ("longbook_choice_eng", ("Walking", "A"), "Dogs. The answer is: A", 0),  # the first letter decides
        ("longbook_choice_eng", ("Walking", "A"), "Walking", 1),
        ("longbook_choice_eng", ("Walking", "A"), "so the answer is:  A", 1),
        ("longbook_choice_eng", ("Walking", "A"), "so the answer is:", 0),
        ("longbook_choice_eng", ("Walking", "A"), "it is A I think", 1),
        ("longbook_choice_eng", ("Walking", "A"), "it is BC or A", 0),  # "BC" is part of "ABCD"
        ("code_debug", ("crash", "B"), "B. crash", 1),
        ("code_debug", ("crash", "B"), "B", 0),
        ("code_debug", ("crash", "B"), "The answer is:crash", 0),  # one character is skipped
        ("code_debug", ("crash", "B"), "The answer is: crash", 1),
        ("code_run", (-7,), "it is: -7.", 1),
        ("code_run", (-7,), "-7 is it", 0),
        ("code_run", (10,), "1_0", 1),  # a number for Python
        ("math_find", (3,), "3.9", 1),
        ("math_find", (3,), "it is 3", 1),
        ("math_find", (3.5,), "3.50", 1),
        ("math_find", (3.5,), "3", 0),
        ("math_find", (-3,), "-3", 0),  # the minus is not read
        ("math_calc", (1, 4, 2), "[1, 4, 3]", 2 / 3),
        ("math_calc", (1, 4, 2), "0 1 4 2", 0),
        ("longbook_qa_chn", ("红楼梦",), "红", 0.5),
        ("longbook_qa_eng", ("in world war 1", "at war"), "The war!", 2 / 3),
        ("longdialogue_qa_eng", ("ACE ROTHSTEIN", "ACE"), "Ace", 1),
        ("longdialogue_qa_eng", ("ACE ROTHSTEIN", "ACE"), "Rothstein", 0),
    ],
)
def test_oddities_of_the_scorers(task: str, labels: tuple[Any, ...], prediction: str, score: float) -> None:
    benchmark = InfinitebenchBenchmark()
    assert benchmark.score(Sample("x", task, "", "", labels), prediction)[
        benchmark.metrics[task]
    ] == pytest.approx(score)


def test_old_rule_of_names() -> None:
    sample = Sample("x", "longdialogue_qa_eng", "", "", ("ACE", "ACE ROTHSTEIN"))
    assert InfinitebenchBenchmark().score(sample, '"Ace".') == {"accuracy": 1.0, "accuracy_first_name": 1.0}
    assert InfinitebenchBenchmark().score(sample, "Place") == {"accuracy": 1.0, "accuracy_first_name": 0.0}


def test_types_are_restored() -> None:
    assert typed_labels("code_run", ["-7"], (), "") == (-7,)
    assert typed_labels("math_find", ["3.5"], (), "") == (3.5,) and typed_labels("math_find", 3, (), "") == (
        3,
    )
    assert typed_labels("math_calc", [["1", "4"]], (), "") == (1, 4)
    assert typed_labels("passkey", 10433, (), "") == ("10433",)
    assert typed_labels("code_debug", "b", ["a", "b", "c", "d"], "") == ("b", "B")
    assert typed_labels("longbook_choice_eng", ["b", "B"], (), "") == ("b", "B")
    for task, label, message in (
        ("code_run", ["x"], "here: the label 'x' is not a number"),
        ("code_debug", ["x"], "here: the answer 'x' is not among the options"),
        ("passkey", [], "here: the label .* is not one of passkey"),
    ):
        with pytest.raises(ValueError, match=message):
            typed_labels(task, label, ["a"], "here")


def test_rows_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    (snapshot := tmp_path / "snapshots" / commit).mkdir(parents=True)
    folder(snapshot)
    asked = []

    def download(repository: str, file: str, **options: Any) -> str:
        asked.append((repository, file, options["repo_type"], options["revision"]))
        return str(snapshot / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    [sample] = InfinitebenchBenchmark(tasks=("code_run",)).samples(byte_tokenizer(), 10**6, 1)
    assert asked == [("xinrongzhang2022/InfiniteBench", "code_run.jsonl", "dataset", None)]
    assert sample.references == (-7,) and sample.metadata["revision"] == commit


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="infinitebench has no task 'pass'"):
        InfinitebenchBenchmark(tasks=("pass",))
    with pytest.raises(ValueError, match="max_length=-1 must be positive"):
        InfinitebenchBenchmark(max_length=-1)
    with pytest.raises(
        ValueError, match=r"infinitebench passkey: no passkey.jsonl in .*; put the file there"
    ):
        take(InfinitebenchBenchmark(path=str(tmp_path)))
    for task, change, message in (
        (
            "code_run",
            {"input": "?"},
            "infinitebench code_run, row 0: the question '\\?' holds nothing like func_",
        ),
        (
            "code_debug",
            {"options": ["a"]},
            "infinitebench code_debug, row 0: the field 'options' is not a list of four texts",
        ),
        ("passkey", {"answer": None}, "infinitebench passkey, row 0: no field 'answer'"),
    ):
        (tmp_path / f"{task}.jsonl").write_text(json.dumps({**ROWS[task], **change}))
        with pytest.raises(ValueError, match=message):
            take(InfinitebenchBenchmark(path=str(tmp_path), tasks=(task,)))
    for row, name, message in (
        ({"pred": "x"}, "passkey", "line 2: no field 'ground_truth' or 'label'"),
        ({"label": "x"}, "passkey", "line 2: no field 'prediction' or 'pred'"),
        ({"pred": "x", "label": "x"}, None, "line 2: no field 'task'"),
    ):
        with pytest.raises(ValueError, match=message):
            list(InfinitebenchBenchmark().read_predictions([(2, row)], name))


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    (rows := tmp_path / "rows").mkdir()
    check_end_to_end(
        "infinitebench",
        tmp_path / "results",
        f"benchmark.path={folder(rows)}",
        "benchmark.tasks=[passkey,kv_retrieval]",
    )
