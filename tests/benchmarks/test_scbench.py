"""SCBench: prompts of both modes, the cut, the rule of every kind of turn, official prediction files."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base import Sample
from benchmarks.scbench import COLUMNS, TASKS, ScbenchBenchmark, templates
from benchmarks.scbench.metrics import first_function, similarity
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.end_to_end import check_end_to_end
from tests.support.suite_laws import check, prompt, take

ONE = "def add(left, right):\n    total = left + right\n    return total"
TWO = "def sub(left, right):\n    result = left - right\n    print(left, right)\n    return result"
OPTIONS = ["Bob the cat", "Ann", "Cleo of Crete", "Dan"]
TURNS: dict[str, list[dict[str, Any]]] = {
    "scbench_kv": [
        {"input": 'Key: "k1"\nvalue:', "answer": "5c1e-aa"},
        {"input": 'Key: "k2"\nvalue:', "answer": "77aa-{b}"},
    ],
    "scbench_prefix_suffix": [
        {"input": "Prefix: x1", "answer": "x1 middle y1"},
        {"input": "Prefix: x2", "answer": "x2 middle y2"},
    ],
    "scbench_vt": [
        {"input": "Value 12345?", "answer": ["VAA", "VBB", "VCC"]},
        {"input": "Value 9?", "answer": ["VDD"]},
    ],
    "scbench_repoqa": [
        {"input": "adds", "answer": ONE, "name": "add"},
        {"input": "subtracts", "answer": TWO, "name": "sub"},
    ],
    "scbench_qa_eng": [{"input": "Who?", "answer": "Bob"}, {"input": "Where?", "answer": "in {Paris}"}],
    "scbench_qa_chn": [
        {"input": "谁？", "answer": "王小明"},
        {"input": "哪里？", "answer": ["北京", "在北京"]},
    ],
    "scbench_choice_eng": [
        {"input": "Who?", "answer": "Cleo of Crete", "options": OPTIONS},
        {"input": "Why?", "answer": "Ann", "options": OPTIONS},
    ],
    "scbench_many_shot": [
        {"input": "Sentence: x\nOptions:\n(A) a\n(B) b", "answer": "(B)"},
        {"input": "Sentence: y", "answer": "(A)"},
    ],
    "scbench_summary": [
        {"input": "Summarise paper 1.", "answer": "A paper on tests."},
        {"input": "Paper 2.", "answer": "One on benches."},
    ],
    "scbench_mf": [
        {"input": "The maximum number is", "answer": 91},
        {"input": "The median is", "answer": 4.5},
    ],
    "scbench_summary_with_needles": [
        {"input": "Summarise.", "answer": "A paper on tests.", "task": "scbench_summary"},
        {"input": "The key?", "answer": "71432", "task": "scbench_passkey"},
    ],
    "scbench_repoqa_and_kv": [
        {"input": "adds", "answer": ONE, "name": "add", "task": "scbench_repoqa"},
        {"input": "Key k?", "answer": "c0ffee", "task": "scbench_kv"},
    ],
}
FOUND = f"5c1e-aa, 77aa-{{b}}; x1 middle y1; x2 middle y2; 71432; c0ffee\n{ONE}\n\n{TWO}\n"
CONTEXT = "A long text begins here. " + FOUND + "It goes on for a while and ends here."


def folder(path: Path) -> str:
    for task, turns in TURNS.items():
        row = {"id": 0, "context": CONTEXT, "multi_turns": turns, "lang": "python", "repo": "made/up"}
        other = {**row, "id": 1, "context": CONTEXT + "!"}
        (path / f"{task}.jsonl").write_text(
            "".join(json.dumps(each) + "\n" for each in (row, other)), encoding="utf-8"
        )
    return str(path)


def gold(sample: Sample) -> str:
    if sample.task.endswith("scbench_repoqa"):
        return f"Here it is:\n```python\n{sample.references[0]}\n```\n"
    return (
        ", ".join(map(str, sample.references)) if sample.task == "scbench_vt" else str(sample.references[0])
    )


@pytest.mark.parametrize("mode", ["multi_turn", "multi_request"])
def test_laws(mode: str, tmp_path: Path) -> None:
    benchmark = ScbenchBenchmark(path=folder(tmp_path), mode=mode)
    samples = take(benchmark)
    check(benchmark, samples, gold, exempt=("f1_official",))
    assert len(samples) == 48 and {sample.task for sample in samples} == {
        column for columns in COLUMNS.values() for column in columns
    }
    assert len(take(benchmark, 1)) == 12 and take(benchmark, 3)[:3] == samples[:3]
    for task in TASKS:
        contexts = [sample.context_id for sample in samples if sample.id.startswith(task + "/")]
        assert contexts[0] == contexts[1] != contexts[2] == contexts[3]
    for sample in samples:
        if sample.task.endswith(("kv", "prefix_suffix", "repoqa", "passkey")):
            [(start, end)] = sample.evidence
            assert sample.context[start:end] == sample.references[0]


def test_multi_turn_prompts_are_the_official_ones(tmp_path: Path) -> None:
    for sample in take(ScbenchBenchmark(path=folder(tmp_path))):
        task, number, position = sample.id.split("/")
        fields = [
            {
                "input": turn["input"],
                "question": turn["input"],
                **{
                    f"OPTION_{letter}": option
                    for letter, option in zip("ABCD", turn.get("options", ""), strict=False)
                },
                "prefix": {
                    "The maximum number is": "What is the maximum number?",
                    "The median is": "What is the median?",
                }.get(turn["input"]),
            }
            for turn in TURNS[task]
        ]
        official = templates()["first"][task].format(context=CONTEXT + "!" * int(number), **fields[0])
        if position == "1":
            official += templates()["follow_up"][task].format(pre_ans=TURNS[task][0]["answer"], **fields[1])
        assert prompt(sample) == official


def test_multi_request_prompts(tmp_path: Path) -> None:
    samples = {
        sample.id: sample for sample in take(ScbenchBenchmark(path=folder(tmp_path), mode="multi_request"))
    }
    kv = samples["scbench_kv/0/1"]
    assert (
        kv.context
        == f"Extract the value corresponding to the specified key in the JSON object below.\n\n{CONTEXT}"
    )
    assert kv.question == 'Key: "k2"\nvalue:'
    assert prompt(samples["scbench_qa_eng/0/1"]).endswith("ends here.Question: Where?\nAnswer:")
    mf = samples["scbench_mf/0/1"]
    assert (
        mf.context == f"The maximum number is\n\n{CONTEXT}"
        and mf.question == "What is the median?\n\nThe median is"
    )


def test_cut(tmp_path: Path) -> None:
    path, tokenizer = folder(tmp_path), byte_tokenizer()
    benchmark = ScbenchBenchmark(path=path, tasks=("scbench_kv",), max_length=500, chat_template=False)
    first, second = benchmark.samples(tokenizer, 10**6, 2)
    whole = templates()["first"]["scbench_kv"].format(context=CONTEXT, input='Key: "k1"\nvalue:')
    assert (
        first.truncated and prompt(first) == whole[:100] + whole[-100:]
    )  # 500 tokens less two answers of 150
    assert first.context == second.context
    for sample in ScbenchBenchmark(path=path, tasks=("scbench_kv",)).samples(tokenizer, 480):
        assert len(tokenizer.encode(prompt(sample))) + sample.max_new_tokens + 2 <= 480
    with pytest.raises(
        ValueError,
        match=r"scbench scbench_kv, row 0: the question takes \d+ tokens, and \d+ are kept at the end",
    ):
        list(ScbenchBenchmark(path=path, tasks=("scbench_kv",)).samples(tokenizer, 188))


@pytest.mark.parametrize(
    ("task", "references", "label_is_text", "prediction", "scores"),
    [
        ("scbench_kv", ("ab-c",), True, "It is ab-c.", (1,)),
        ("scbench_kv", ("ab-c",), True, "AB-C", (0,)),
        ("scbench_vt", ("VAA", "VBB", "VCC"), False, "vaa and VBB", (0.67,)),
        ("scbench_qa_eng", ("Bob",), True, "it was BOBBY", (1,)),
        ("scbench_qa_chn", ("北京",), True, "北", (2 / 3, 1)),
        ("scbench_qa_chn", ("北京",), False, "北", (2 / 3, 2 / 3)),
        ("scbench_many_shot", ("(B)",), True, "(A)", (1, 0)),  # both hold a bracket
        ("scbench_many_shot", ("(B)",), True, "B", (1, 1)),
        ("scbench_many_shot", ("A",), True, "certainly", (1, 0)),
        ("scbench_choice_eng", ("C", "Cleo"), True, "C. Cleo", (1, 1)),
        ("scbench_choice_eng", ("C", "Cleo"), True, "answer is: C", (1, 1)),
        ("scbench_choice_eng", ("B", "Ann"), True, "Ann", (0, 1)),  # begins with an A
        ("scbench_choice_eng", ("C", "Cleo"), True, "I think BC or C", (0, 1)),
        ("scbench_choice_eng", ("C", "Cleo"), True, "Both", (0, 0)),
        ("scbench_mf", (91,), False, "91.7", (1, 1)),
        ("scbench_mf", (-5,), False, "-5", (0, 1)),
        ("scbench_mf", (4.5,), False, "about 4.5", (1, 1)),
        ("scbench_mf", ("91",), True, "It is 91", (1, 1)),
        ("scbench_summary_with_needles/scbench_passkey", ("71432",), True, "The key is 71432, not 5", (1,)),
        ("scbench_summary_with_needles/scbench_passkey", ("71432",), True, "5 or 71432", (0,)),
    ],
)
def test_rules(
    task: str, references: tuple[Any, ...], label_is_text: bool, prediction: str, scores: tuple[float, ...]
) -> None:
    sample = Sample("x", task, "", "", references, metadata={"label_is_text": label_is_text})
    assert tuple(ScbenchBenchmark().score(sample, prediction).values()) == pytest.approx(scores)


def test_functions() -> None:
    assert first_function(f"```python\nimport os\n\n{ONE}\n\n{TWO}\n```", "python") == ONE
    assert first_function(f"```\n{ONE}\n", "python") == f"```\n{ONE}"  # no block is closed
    assert first_function("```go\nfunc a() {}\n```", "go") == "func a() {}\n"
    assert first_function("```python\nnot python\n```", "python") == "not python\n"
    assert similarity(ONE, ONE) == 1 and 0 < similarity(ONE, TWO) < 0.8 and similarity("", ONE) == 0
    functions = [{"name": "add", "needle": ONE}, {"name": "sub", "needle": TWO}]
    wanted = Sample(
        "x",
        "scbench_repoqa",
        "",
        "",
        (ONE,),
        metadata={"name": "add", "lang": "python", "functions": functions},
    )
    scores = [
        ScbenchBenchmark().score(wanted, text)["pass@1"]
        for text in (ONE, TWO, ONE.replace("total", "sum_of_all"), "")
    ]
    assert scores == [1, 0, 0, 0]


def test_official_prediction_files() -> None:
    benchmark = ScbenchBenchmark()
    row = {
        "id": 0,
        "turn_idx": 1,
        "prediction": ONE,
        "ground_truth": ONE,
        "task": "scbench_repoqa",
        "lang": "python",
        "repo": "r",
        "func_name": "add",
    }
    other = {**row, "ground_truth": TWO, "func_name": "sub"}
    key = {"id": 0, "turn_idx": 0, "prediction": "c0ffee", "ground_truth": "c0ffee", "task": "scbench_kv"}
    pairs = list(benchmark.read_predictions([(1, row), (2, other), (3, key)], "scbench_repoqa_and_kv"))
    assert [sample.task for sample, _ in pairs] == [
        f"scbench_repoqa_and_kv/scbench_{kind}" for kind in ("repoqa", "repoqa", "kv")
    ]
    assert [next(iter(benchmark.score(*pair).values())) for pair in pairs] == [1, 0, 1]
    choice = [(1, {"prediction": "B", "ground_truth": ["Ann", "B"]})]
    assert [
        benchmark.score(*pair)["accuracy"]
        for pair in benchmark.read_predictions(choice, "scbench_choice_eng")
    ] == [1]
    for rows, task, message in (
        ([(1, {})], None, "line 1: no field 'data_name'; name the task on the command line: scbench/TASK"),
        ([(1, {})], "kv", "line 1: scbench has no task 'kv'"),
        (
            [(1, {"task": "x"})],
            "scbench_repoqa_and_kv",
            "line 1: the field 'task' must be one of scbench_repoqa, scbench_kv",
        ),
        ([(2, {"prediction": "x"})], "scbench_kv", "line 2: no field 'ground_truth' or 'label'"),
    ):
        with pytest.raises(ValueError, match=message):
            list(benchmark.read_predictions(rows, task))


def test_averages() -> None:
    assert ScbenchBenchmark(tasks=("scbench_kv", "scbench_repoqa_and_kv")).averages() == {
        "average": [
            ("scbench_kv",),
            ("scbench_repoqa_and_kv/scbench_repoqa", "scbench_repoqa_and_kv/scbench_kv"),
        ]
    }
    assert set(ScbenchBenchmark().averages()) == {
        "average",
        "string_retrieval",
        "semantic_retrieval",
        "global_information",
        "multi_tasking",
    }


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode='chat' is not known; choose multi_turn or multi_request"):
        ScbenchBenchmark(mode="chat")
    with pytest.raises(ValueError, match="max_turns=0 must be at least 1"):
        ScbenchBenchmark(max_turns=0)
    with pytest.raises(
        ValueError,
        match=r"scbench scbench_kv: no scbench_kv.jsonl or multi_turn_kv.jsonl or .*; put the file there",
    ):
        take(ScbenchBenchmark(path=str(tmp_path)))
    for turns, message in (
        ([{"input": "x"}], "turn 0: no field 'answer'"),
        ([], "the field 'multi_turns' must be a list of turns"),
        ([{"input": "x", "answer": 1}], "the input says nowhere what to find"),
    ):
        (file := tmp_path / "rows.jsonl").write_text(json.dumps({"context": "c", "multi_turns": turns}))
        with pytest.raises(ValueError, match=message):
            take(ScbenchBenchmark(path=str(file), tasks=("scbench_mf",)))


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    (rows := tmp_path / "rows").mkdir()
    check_end_to_end(
        "scbench", tmp_path / "results", f"benchmark.path={folder(rows)}", "benchmark.tasks=[scbench_kv]"
    )
