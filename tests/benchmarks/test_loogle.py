"""LooGLE: prompts, literal parsing, clozes, cuts, and scores equal to the official definitions."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base import PromptParts, Sample
from benchmarks.loogle import LoogleBenchmark
from benchmarks.loogle.metrics import bleu, parse_literal, rouge_recall, score_cloze
from benchmarks.text.spans import find_spans
from benchmarks.text.token_counts import Window
from benchmarks.text.truncation import cut_middle
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.end_to_end import check_end_to_end
from tests.support.suite_laws import check, prompt, take

TEXT = (
    "Ada Lovelace was born in London. She wrote notes on the engine of Charles Babbage.\n"
    "He lived in Devonshire Street."
)
QA = [
    {
        "S": "Ada Lovelace was born in London.",
        "Q": "Where was Ada's {birth}?",
        "A": "She was born in the city of London.",
    },
    {
        "S": ["She wrote notes on the engine of Charles Babbage.", "not there"],
        "Q": "Whose engine?",
        "A": "It was that of Charles Babbage, Esq.",
    },
]
CLOZE = [
    {"Q": "<mask-0> was born in <mask-1>.", "A": {"<mask-0>": "Ada Lovelace", "<mask-1>": "London"}},
    {"Q": "<mask-0> lived there.", "A": {"<mask-0>": "Charles Babbage"}},
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "shortdep_qa": [{"input": TEXT, "title": "Ada", "qa_pairs": str(QA), "output": "none"}],
    "longdep_qa": [
        {"context": TEXT, "question": pair["Q"], "answer": pair["A"], "evidence": pair["S"]} for pair in QA
    ],
    "longdep_summarization": [
        {
            "input": TEXT,
            "title": "1",
            "qa_pairs": "none",
            "output": "A life of Ada Lovelace, who wrote notes.",
        }
    ],
    "shortdep_cloze": [{"input": TEXT, "title": "Ada", "qa_pairs": str(CLOZE), "output": "None"}],
}
QUESTIONS = "Please answer the question based on the long texts below. \n{input}\nQuestion: {Q}\nAnswer: "
PROMPTS = {  # config/task2prompt.json
    "shortdep_qa": QUESTIONS,
    "longdep_qa": QUESTIONS,
    "longdep_summarization": "Please generate a summary of the below paper. \n{input}\n Summarization: ",
    "shortdep_cloze": "Please fill in the clozes based on the given long texts below. "
    "Each of the placeholder '<mask-n>' in the question could be an entity of Person, Location or "
    "Organiocation. The same masks represent the same entity. Output a json format answer, for example: "
    "{{'<mask-0>': 'Bob', '<mask-1>': 'Gorrosion Magazine','<mask-2>': 'Bethel Horizon'}}\n"
    "{input}\n Question: {Q} What are the masked entities? \nAnswer:",
}


def folder(path: Path) -> str:
    for task, rows in ROWS.items():
        (path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_laws(tmp_path: Path) -> None:
    benchmark = LoogleBenchmark(path=folder(tmp_path))
    samples = take(benchmark)
    check(benchmark, samples, lambda sample: str(sample.references[0]))
    assert [sample.id for sample in samples if sample.task == "longdep_qa"] == [
        "longdep_qa/0",
        "longdep_qa/1",
    ]
    assert len(samples) == 7 and [sample.id for sample in take(benchmark, 1)] == [
        f"{task}/0" for task in PROMPTS
    ]
    assert {sample.weight for sample in samples if sample.task == "shortdep_cloze"} == {1.0, 2.0}
    assert len({sample.context_id for sample in samples if sample.task == "shortdep_qa"}) == 1
    assert not any(sample.chat_template or sample.truncated for sample in samples)


def test_prompt_is_the_official_one(tmp_path: Path) -> None:
    asked = {
        "shortdep_qa": QA,
        "longdep_qa": QA,
        "longdep_summarization": [{"Q": ""}],
        "shortdep_cloze": CLOZE,
    }
    for sample in take(LoogleBenchmark(path=folder(tmp_path))):
        pair = asked[sample.task][int(sample.id.split("/")[1])]
        assert prompt(sample) == PROMPTS[sample.task].format(input=TEXT, Q=pair["Q"])


def test_evidence(tmp_path: Path) -> None:
    for sample in take(LoogleBenchmark(path=folder(tmp_path), tasks=("shortdep_qa", "longdep_qa"))):
        [(start, end)] = sample.evidence
        support = QA[int(sample.id.split("/")[1])]["S"]
        assert sample.context[start:end] == (support if isinstance(support, str) else support[0])
    assert find_spans("abcabc", ["c", "ab", "x", ""]) == ((0, 2), (2, 3))


def test_rows_of_an_archive(tmp_path: Path) -> None:
    (source := tmp_path / "rows").mkdir()
    samples = take(LoogleBenchmark(path=folder(source)))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for task in ROWS:
            archive.write(source / f"{task}.jsonl", f"data/{task}.jsonl")
    for path in (tmp_path, tmp_path / "data.zip"):
        assert [(each.id, prompt(each)) for each in take(LoogleBenchmark(path=str(path)))] == [
            (each.id, prompt(each)) for each in samples
        ]


def test_cuts(tmp_path: Path) -> None:
    tokenizer, path = byte_tokenizer(), folder(tmp_path)
    for cut in ("prompt", "document"):
        benchmark = LoogleBenchmark(path=path, tasks=("shortdep_qa",), max_length=160, cut=cut)
        samples = list(benchmark.samples(tokenizer, 10**6))
        assert all(sample.truncated and len(tokenizer.encode(prompt(sample))) <= 160 for sample in samples)
        assert len({sample.context_id for sample in samples}) == (1 if cut == "document" else 2)
        whole = [PROMPTS["shortdep_qa"].format(input=TEXT, Q=pair["Q"]) for pair in QA]
        assert prompt(samples[0]) == whole[0][:80] + whole[0][-80:]  # the longest question: both cuts agree
        assert all(prompt(sample).endswith(text[-40:]) for sample, text in zip(samples, whole, strict=True))
    with pytest.raises(
        ValueError,
        match="loogle shortdep_qa, row 0: the question takes 43 tokens, and 30 are kept at the end of a "
        "prompt cut to 60",
    ):
        list(LoogleBenchmark(path=path, tasks=("shortdep_qa",), max_length=60).samples(tokenizer, 10**6))


def test_middle_cut() -> None:
    tokenizer = byte_tokenizer()

    def cut(tail: str, limit: int) -> tuple[str, bool]:
        parts = PromptParts("0123456789", tail, "")
        window = Window(tokenizer, 10**6, 0, chat_template=False)
        left = cut_middle(parts, window, limit, where="row 0", count_special=False, keep_context=True)
        return left.context, left.truncated

    assert cut("??", 12) == ("0123456789", False)
    assert cut("??", 9) == ("012389", True)
    assert cut("", 4) == ("0189", True)
    with pytest.raises(ValueError, match="row 0: the question takes 2 tokens, and 2 are kept"):
        cut("??", 4)


@pytest.mark.parametrize(
    ("reference", "prediction", "one", "four"),
    [
        ("a b c d e", "a b c d e", 1.0, 1.0),
        ("a b c d e", "a b c d", 0.7788007830714049, 0.7788007830714049),  # brevity penalty exp(1 - 5/4)
        ("a b c d e", "a a a a a", 0.2, 0.0),
        ("a b c", "a b c", 1.0, 0.0),
        ("a\nb", "a b c d", 0.5, 0.0),
        ("a", "", 0.0, 0.0),
    ],
)
def test_bleu(reference: str, prediction: str, one: float, four: float) -> None:
    assert (bleu(reference, prediction, 1), bleu(reference, prediction, 4)) == (one, four)


def test_rouge_is_recall_of_distinct_words() -> None:
    assert rouge_recall("the cat sat on the mat", "the cat the cat") == {
        "rouge1": 0.4,
        "rouge2": 0.2,
        "rougeL": 0.4,
    }
    assert (
        rouge_recall("the cat", "...")
        == rouge_recall("the cat", "")
        == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    )


@pytest.mark.parametrize(
    ("answer", "exact", "partial"),
    [
        ("{'<mask-0>': 'Ada Lovelace', '<mask-1>': 'London'}", 1.0, 1.0),
        ('{"<mask-0>": "Ada Lovelace", "<mask-1>": "London"}', 1.0, 1.0),
        (' {"<mask-0>": "Ada King", "<mask-1>": null}', 0.0, 0.5),  # JSON
        ("{'<mask-0>': 'Ada King', '<mask-1>': 'London', '<mask-2>': 'x'}", 0.5, 1.0),
        ("{'<mask-0>': ['Ada'], '<mask-1>': 'london'}", 0.0, 0.0),
        ("dict(a=1)", 0.0, 0.0),
        ("__import__('os').getcwd()", 0.0, 0.0),
        ("['Ada Lovelace', 'London']", 0.0, 0.0),
        ("{'<mask-0>': 'Ada Lovelace'} and more", 0.0, 0.0),
    ],
)
def test_cloze(answer: str, exact: float, partial: float) -> None:
    assert score_cloze({"<mask-0>": "Ada Lovelace", "<mask-1>": "London"}, answer) == {
        "exact": exact,
        "partial": partial,
    }


def test_nothing_is_run() -> None:
    assert (
        parse_literal("print(1)") is None
        and parse_literal("[" * 100_000) is None
        and parse_literal("{'a': '\\d'}") == {"a": "\\d"}
    )


def test_official_output_files() -> None:
    benchmark = LoogleBenchmark()
    row = {
        "qa_pairs": CLOZE,
        "llm_output": [str(CLOZE[0]["A"]), "nothing"],
        "output": [pair["A"] for pair in CLOZE],
    }
    pairs = list(benchmark.read_predictions([(1, row)], "shortdep_cloze"))
    assert [(sample.id, sample.weight, benchmark.score(sample, text)["exact"]) for sample, text in pairs] == [
        ("shortdep_cloze/1/0", 2.0, 1.0),
        ("shortdep_cloze/1/1", 1.0, 0.0),
    ]  # micro average: 2 of 3 masks
    with pytest.raises(
        ValueError, match="line 1: the fields 'llm_output' and 'output' must be lists of one length"
    ):
        list(benchmark.read_predictions([(1, {"llm_output": ["a"], "output": []})], "longdep_qa"))
    with pytest.raises(ValueError, match="line 1: loogle has no task 'qa'; its tasks are shortdep_qa, "):
        list(benchmark.read_predictions([(1, row)], "qa"))


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cut='end' is not known; choose prompt or document"):
        LoogleBenchmark(cut="end")
    with pytest.raises(
        ValueError,
        match=r"loogle shortdep_qa: no shortdep_qa.jsonl or .* put the file there, or leave path empty",
    ):
        take(LoogleBenchmark(path=str(tmp_path)))
    (tmp_path / "data.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"data.zip is not a zip file; download it again"):
        take(LoogleBenchmark(path=str(tmp_path)))
    (tmp_path / "longdep_qa.jsonl").write_text('{"input": "x", "qa_pairs": "print(1)"}\n')
    with pytest.raises(
        ValueError, match="loogle longdep_qa, row 0: the field 'qa_pairs' is not a list of questions"
    ):
        take(LoogleBenchmark(path=str(tmp_path), tasks=("longdep_qa",)))
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(ValueError, match="needs the package bert-score: pip install bert-score"):
        LoogleBenchmark(bertscore=True)
    monkeypatch.setitem(sys.modules, "rouge", None)
    with pytest.raises(ValueError, match=r"needs the package rouge: pip install 'longpress\[benchmarks\]'"):
        LoogleBenchmark().score(Sample("x", "longdep_qa", "", "", ("a",)), "a")


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    (rows := tmp_path / "rows").mkdir()
    check_end_to_end(
        "loogle", tmp_path / "results", f"benchmark.path={folder(rows)}", "benchmark.tasks=[shortdep_cloze]"
    )
