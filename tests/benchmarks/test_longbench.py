"""LongBench: official prompts and cuts, scorers and their oddities, published scores, LongBench-E."""

import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base import Sample
from benchmarks.longbench import LongbenchBenchmark
from benchmarks.longbench.tasks import ALL_21, COLUMNS, ENGLISH_16, EXTENDED_13, prompts
from benchmarks.score_command import score_file
from benchmarks.text import metrics
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.end_to_end import check_end_to_end
from tests.support.suite_laws import check, prompt, take

PUBLISHED = json.loads(
    (Path(__file__).parent / "data" / "longbench" / "scored_predictions.json").read_text(encoding="utf-8")
)["rows"]
# config/dataset2prompt.json (first 16 digits of the prompt's SHA-256), dataset2maxlen.json, eval.py
OFFICIAL = {
    "narrativeqa": ("aada7ed24b06abac", 128, "qa_f1"),
    "qasper": ("0fbdd123fe7f83d6", 128, "qa_f1"),
    "multifieldqa_en": ("20b4666a2de8a1f7", 64, "qa_f1"),
    "multifieldqa_zh": ("344b3a4e557cd547", 64, "qa_f1_zh"),
    "hotpotqa": ("9ec4ae308865bd0c", 32, "qa_f1"),
    "2wikimqa": ("9ec4ae308865bd0c", 32, "qa_f1"),
    "musique": ("9ec4ae308865bd0c", 32, "qa_f1"),
    "dureader": ("ae53329f51b17908", 128, "rouge_zh"),
    "gov_report": ("91c25d585b189ced", 512, "rouge"),
    "qmsum": ("dca23b678fe0183b", 512, "rouge"),
    "multi_news": ("2af3f28c40b902e6", 512, "rouge"),
    "vcsum": ("3e5d8241bc9b512e", 512, "rouge_zh"),
    "trec": ("0eff8bebdba99d91", 64, "classification"),
    "triviaqa": ("00a802e6377e72fc", 32, "qa_f1"),
    "samsum": ("a68d884234907eef", 128, "rouge"),
    "lsht": ("f3edabdf7fae53d6", 64, "classification"),
    "passage_count": ("986550b6c61009c6", 32, "count"),
    "passage_retrieval_en": ("39b96b7fa52bdd2a", 32, "retrieval"),
    "passage_retrieval_zh": ("c1e2346e245eb365", 32, "retrieval_zh"),
    "lcc": ("6a1f24cf0bb83cd9", 64, "code_sim"),
    "repobench-p": ("ee9ec182ea5ffeb7", 64, "code_sim"),
}
GOLD = {
    "qa_f1": ["Bob Dylan", "the singer"],
    "qa_f1_zh": ["财政总收入增长了25.89%。"],
    "rouge": ["Emilia is still angry. She left."],
    "rouge_zh": ["测试服和体验服有区别。"],
    "classification": ["Individual"],
    "count": ["46"],
    "retrieval": ["Paragraph 2"],
    "retrieval_zh": ["段落2"],
    "code_sim": ["    return {name: 1}  "],
}
CLASSES = ["Food", "Individual", "Date"]


class Rounded(LongbenchBenchmark):
    """The package `rouge` adds 1e-8 to a denominator, so that a gold answer has 1 - 5e-9."""

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        return {metric: round(value, 7) for metric, value in super().score(sample, prediction).items()}


def row(task: str, number: int = 0, length: int = 100) -> dict[str, Any]:
    context = f"{task} {{input}} {number}. " + " ".join(f"word{at}" for at in range(60))
    if task == "passage_retrieval_zh":
        context = "段落1：一。\n\n段落2：二，\n{number}二。\n\n段落20：三。"
    elif task == "passage_retrieval_en":
        context = f"Paragraph 1: One.\n\nParagraph 2: Two,\ntwo {number}.\n\nParagraph 20: Three."
    return {
        "input": ""
        if task in ("gov_report", "multi_news", "vcsum", "passage_count", "lcc")
        else f"What {number}?\n",
        "context": context,
        "answers": GOLD[OFFICIAL[task][2]],
        "length": length,
        "dataset": task,
        "language": prompts()[task]["language"],
        "all_classes": CLASSES if OFFICIAL[task][2] == "classification" else None,
        "_id": f"{task}-{number}",
    }


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def folder(path: Path) -> str:
    for task in ALL_21:
        write(path / f"{task}.jsonl", [row(task, number) for number in range(2)])
    for task in EXTENDED_13:
        write(
            path / f"{task}_e.jsonl",
            [row(task, number, length) for number, length in enumerate((8000, 3999, 4000, 7999, 0))],
        )
    return str(path)


def test_laws(tmp_path: Path) -> None:
    benchmark = Rounded(path=folder(tmp_path), tasks=ALL_21)
    samples = take(benchmark)
    assert len(samples) == 42 and take(benchmark, 1) == [
        sample for sample in samples if sample.id.endswith("/0")
    ]
    check(
        benchmark,
        [sample for sample in samples if sample.id.endswith("/0")],
        lambda sample: str(sample.references[0]),
    )


@pytest.mark.parametrize("assistant_prefix", [True, False])
def test_prompts_are_the_official_ones(tmp_path: Path, assistant_prefix: bool) -> None:
    assert tuple(OFFICIAL) == ALL_21
    benchmark = LongbenchBenchmark(path=folder(tmp_path), tasks=ALL_21, assistant_prefix=assistant_prefix)
    for sample in take(benchmark):
        fixed, (digest, limit, metric) = prompts()[sample.task], OFFICIAL[sample.task]
        template = fixed["context"] + fixed["question"] + fixed["answer_prefix"]
        assert hashlib.sha256(template.encode()).hexdigest().startswith(digest)
        assert prompt(sample) == template.format(**row(sample.task, int(sample.id[-1])))
        assert (sample.max_new_tokens, benchmark.metrics[sample.task]) == (limit, metric)
        assert sample.chat_template == (
            sample.task not in ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
        )
        assert (sample.stop, sample.min_new_tokens) == ((("\n",), 1) if sample.task == "samsum" else ((), 0))
        assert assistant_prefix or not sample.answer_prefix
        assert (
            sample.metadata["row"] == f"{sample.task}-{sample.id[-1]}" and sample.metadata["revision"] is None
        )


def test_evidence(tmp_path: Path) -> None:
    tasks = ("passage_retrieval_en", "passage_retrieval_zh")
    samples = take(LongbenchBenchmark(path=folder(tmp_path), tasks=tasks), 1)
    found = [sample.context[start:end] for sample in samples for start, end in sample.evidence]
    assert found == ["Paragraph 2: Two,\ntwo 0.", "段落2：二，\n{number}二。"]


def official_cut(text: str, limit: int) -> str:
    tokenizer = byte_tokenizer()
    tokens = tokenizer(text).input_ids
    half = int(limit / 2)
    return (
        text if len(tokens) <= limit else tokenizer.decode(tokens[:half]) + tokenizer.decode(tokens[-half:])
    )


@pytest.mark.parametrize("limit", [401, 540, 10**6])
def test_the_whole_prompt_is_cut_in_its_middle(tmp_path: Path, limit: int) -> None:
    path, cut = folder(tmp_path), 0
    for task in ALL_21:
        if task == "passage_retrieval_en" and limit == 401:
            continue  # the question alone is longer
        for sample in LongbenchBenchmark(path=path, tasks=(task,), max_length=limit).samples(
            byte_tokenizer(), 10**6
        ):
            fixed = prompts()[task]
            whole = "".join(fixed[part] for part in ("context", "question", "answer_prefix")).format(
                **row(task, int(sample.id[-1]))
            )
            assert prompt(sample) == official_cut(whole, limit)
            assert (
                sample.truncated == (len(whole.encode()) > limit)
                and sample.answer_prefix == fixed["answer_prefix"]
            )
            cut += sample.truncated
    assert bool(cut) == (limit < 10**6)


def test_margins_of_the_suite(tmp_path: Path) -> None:
    benchmark = LongbenchBenchmark(path=folder(tmp_path), tasks=("gov_report",))
    for window, limit in ((4096, 3500), (8192, 7500), (16384, 15500), (32768, 31500), (1024, 500)):
        assert [
            sample.metadata["max_length"] for sample in benchmark.samples(byte_tokenizer(), window, 1)
        ] == [limit]


def test_code_to_complete_may_be_cut_but_no_other_question(tmp_path: Path) -> None:
    long = "x = 1\n" * 100
    for task in ("repobench-p", "hotpotqa"):
        write(tmp_path / f"{task}.jsonl", [{**row(task), "input": long}])
    [sample] = LongbenchBenchmark(path=str(tmp_path), tasks=("repobench-p",), max_length=300).samples(
        byte_tokenizer(), 10**6
    )
    fixed = prompts()["repobench-p"]
    whole = "".join(fixed[part] for part in ("context", "question", "answer_prefix")).format(
        **{**row("repobench-p"), "input": long}
    )
    assert prompt(sample) == official_cut(whole, 300) and sample.answer_prefix == "Next line of code:\n"
    with pytest.raises(
        ValueError,
        match="longbench hotpotqa, row 0: the question takes 618 tokens, and 150 are kept at the end",
    ):
        list(
            LongbenchBenchmark(path=str(tmp_path), tasks=("hotpotqa",), max_length=300).samples(
                byte_tokenizer(), 10**6
            )
        )


def test_published_row_scores() -> None:
    benchmark = LongbenchBenchmark()
    read = list(benchmark.read_predictions(enumerate(PUBLISHED, start=1), None))
    assert len(read) == 140 and len({sample.task for sample, _ in read}) == 8
    for (sample, prediction), published in zip(read, PUBLISHED, strict=True):
        assert benchmark.score(sample, prediction)[benchmark.metrics[sample.task]] == pytest.approx(
            published["score"], abs=1e-9
        )


def test_command_scores_a_file(tmp_path: Path) -> None:
    rows = [row for row in PUBLISHED if row["dataset"] == "trec"]
    result = score_file(LongbenchBenchmark(), "trec", write(tmp_path / "trec.jsonl", rows))
    mean = round(100 * sum(row["score"] for row in rows) / len(rows), 2)
    assert result["tasks"] == {"trec": {"classification": mean, "n": 20, "empty": 0}}
    assert result["averages"] == {"average": None, "category_average": None}


def test_averages() -> None:
    averages = LongbenchBenchmark(tasks=ALL_21).averages()
    assert list(averages) == ["average", "category_average", "category_average_zh"]
    assert (
        averages["average"] == [(task,) for task in ENGLISH_16] and LongbenchBenchmark().tasks == ENGLISH_16
    )
    assert [len(group) for group in averages["category_average"]] == [3, 3, 3, 3, 2, 2]
    code = ("lcc", "repobench-p")
    singles = [("multifieldqa_zh",), ("dureader",), ("vcsum",), ("lsht",), ("passage_retrieval_zh",), code]
    assert sorted(averages["category_average_zh"]) == sorted(singles)
    assert list(LongbenchBenchmark(tasks=("trec",)).averages()) == ["average", "category_average"]
    assert list(LongbenchBenchmark(tasks=("lsht",)).averages()) == ["category_average_zh"]
    assert LongbenchBenchmark(tasks=("lcc",)).averages() == {"average": [(task,) for task in ENGLISH_16]}


def test_longbench_e(tmp_path: Path) -> None:
    benchmark = LongbenchBenchmark(path=folder(tmp_path), extended=True)
    assert benchmark.tasks == tuple(COLUMNS) and len(COLUMNS) == 39
    samples = take(benchmark)
    assert [sample.id for sample in samples[:5]] == [
        f"qasper_e_{row}" for row in ("0-4k/1", "0-4k/4", "4-8k/2", "4-8k/3", "8k+/0")
    ]
    assert [sample.id for sample in take(benchmark, 1)[:3]] == [
        "qasper_e_0-4k/1",
        "qasper_e_4-8k/2",
        "qasper_e_8k+/0",
    ]
    assert all(
        benchmark.score(sample, str(sample.references[0]))[benchmark.metrics[sample.task]] > 0.999
        for sample in samples
    )
    averages = benchmark.averages()
    assert (
        list(averages) == ["average", "average_0-4k", "average_4-8k", "average_8k+"]
        and len(averages["average"]) == 13
    )
    assert LongbenchBenchmark(tasks=("qasper",), extended=True) == LongbenchBenchmark(
        tasks=("qasper_e",), extended=True
    )
    assert LongbenchBenchmark(tasks=("trec_e_8k+",)).averages().keys() == averages.keys()
    rows = [
        {"pred": "46", "answers": ["46"], "all_classes": None, "length": length}
        for length in (1, 9000, 5000, 8000)
    ]
    scored = score_file(LongbenchBenchmark(), "passage_count_e", write(tmp_path / "file.jsonl", rows))[
        "tasks"
    ]
    assert {task: cell["n"] for task, cell in scored.items()} == {
        "passage_count_e_0-4k": 1,
        "passage_count_e_4-8k": 1,
        "passage_count_e_8k+": 2,
    }


@pytest.mark.parametrize(
    ("task", "references", "prediction", "score"),
    [
        ("qasper", ["The cat"], "a CAT!", 1.0),
        ("qasper", ["no", "yes it is"], "yes", 0.5),
        ("trec", ["Date"], "\n\nDate\nFood", 1.0),
        ("trec", ["Date"], " \nDate", 0.0),  # only line breaks are stripped
        ("trec", ["Date"], "Date Food", 0.5),
        ("triviaqa", ["Rome"], "\nRome\nQuestion: more", 1.0),
        ("hotpotqa", ["Rome"], "\nRome\nQuestion: more", 0.5),
        ("passage_count", ["46"], "46 or 47, 046", 1 / 3),
        ("passage_retrieval_en", ["Paragraph 4"], "4, Paragraph 14", 0.5),
        ("passage_retrieval_en", ["Four"], "4", 0.0),
        ("lcc", ["x = 1"], "\n\n```python\n# comment\nx = 1\ny", 1.0),
        ("lcc", ["x = 1"], "   \nx = 1", 0.5),  # a line of spaces is a line: 2 * 2 / 8
        ("lcc", ["x = 1"], "`", 0.0),
        ("lcc", ["abc"], "ab", 0.8),
        ("gov_report", ["One. Two."], "...", 0.0),
        ("gov_report", ["word " * 2000], "word " * 2000, 0.0),  # the package recurses too deep
    ],
)
def test_oddities_of_the_scorers(task: str, references: list[str], prediction: str, score: float) -> None:
    benchmark = LongbenchBenchmark()
    sample = Sample("x", task, "", "", tuple(references), metadata={"all_classes": CLASSES})
    assert benchmark.score(sample, prediction) == {benchmark.metrics[task]: pytest.approx(score)}


def test_the_loop_that_skips_names() -> None:
    assert metrics.classification("Food", "Food", ["Food", "Foo", "Fo"]) == 0.5
    assert metrics.classification("Food", "Food", ["Foo", "Fo", "Food"]) == 0.5
    assert metrics.classification("Food", "Food", ["Foo", "Food"]) == 1.0


def test_rows_of_the_archive_and_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    (snapshot := tmp_path / "snapshots" / commit).mkdir(parents=True)
    with zipfile.ZipFile(snapshot / "data.zip", "w") as archive:
        archive.writestr("data/trec.jsonl", json.dumps(row("trec"), ensure_ascii=False) + "\n")
        archive.writestr("data/trec_e.jsonl", json.dumps(row("trec", 7), ensure_ascii=False) + "\n")
    asked = []

    def download(repository: str, file: str, **options: Any) -> str:
        asked.append((repository, file, options["revision"]))
        return str(snapshot / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    [hub] = take(LongbenchBenchmark(tasks=("trec",), revision="main"))
    assert asked[0] == ("zai-org/LongBench", "data.zip", "main")
    assert (hub.metadata["source"], hub.metadata["revision"]) == ("zai-org/LongBench", commit)
    for path in (snapshot, snapshot / "data.zip"):
        [local] = take(LongbenchBenchmark(tasks=("trec",), path=str(path)))
        assert prompt(local) == prompt(hub) and local.metadata["source"] == "data.zip"
    [extended] = take(LongbenchBenchmark(tasks=("trec_e",), path=str(snapshot)))
    assert "trec {input} 7." in extended.context and extended.id == "trec_e_0-4k/0"


def test_no_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    source = "longbench trec: data.zip of hub data set zai-org/LongBench"
    expected = rf"^{source} could not be read \(no route to host\); .* path="
    with pytest.raises(ValueError, match=expected):
        take(LongbenchBenchmark(tasks=("trec",)))


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._quiet_jieba.cache_clear()
    for module in ("rouge", "jieba", "rapidfuzz.fuzz", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, module, None)
    for score in (
        metrics.rouge_l,
        metrics.qa_f1_zh,
        metrics.edit_similarity,
        lambda one, other: metrics.rouge_lsum(one, [other]),
    ):
        with pytest.raises(ValueError, match=r"needs the package .*: pip install 'longpress\["):
            score("a", "b")
    metrics._quiet_jieba.cache_clear()


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longbench has no task 'trek'"):
        LongbenchBenchmark(tasks=("trek",))
    with pytest.raises(ValueError, match="longbench has no task 'musique'; its tasks are qasper_e"):
        LongbenchBenchmark(tasks=("musique",), extended=True)
    with pytest.raises(ValueError, match="max_length=-1 must be positive"):
        LongbenchBenchmark(max_length=-1)
    with pytest.raises(
        ValueError, match=r"longbench narrativeqa: no narrativeqa.jsonl or data/.* in .*; put the file there"
    ):
        take(LongbenchBenchmark(path=str(tmp_path)))
    write(tmp_path / "trec.jsonl", [{**row("trec"), "answers": "Food"}])
    with pytest.raises(ValueError, match="longbench trec, row 0: the field 'answers' is not a list of texts"):
        take(LongbenchBenchmark(path=str(tmp_path), tasks=("trec",)))
    write(tmp_path / "trec_e.jsonl", [{**row("trec"), "length": "long"}])
    with pytest.raises(ValueError, match="trec_e, row 0: the field 'length' is a str"):
        take(LongbenchBenchmark(path=str(tmp_path), tasks=("trec_e",)))
    good = {"pred": "x", "answers": ["x"], "all_classes": None, "length": 3}
    for line, name, message in (
        ({**good, "pred": None}, "trec", "line 7: no field 'pred'"),
        ({"pred": "x"}, "trec", "line 7: no field 'answers'"),
        (good, None, "line 7: no field 'dataset'; name the task on the command line"),
        (good, "trek", "line 7: longbench has no task 'trek'"),
        ({**good, "length": None}, "trec_e", "line 7: no field 'length'"),
        ({**good, "all_classes": "Food"}, "trec", "line 7: the field 'all_classes' is not a list of texts"),
    ):
        with pytest.raises(ValueError, match=message):
            list(LongbenchBenchmark().read_predictions([(7, line)], name))


def test_word_tokenizer_keeps_the_question_whole(tmp_path: Path) -> None:
    for sample in take(
        LongbenchBenchmark(path=folder(tmp_path), tasks=("hotpotqa", "qmsum"), max_length=120)
    ):
        fixed = prompts()[sample.task]
        assert sample.truncated and sample.question == fixed["question"].format(
            **row(sample.task, int(sample.id[-1]))
        )


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    (rows := tmp_path / "rows").mkdir()
    check_end_to_end(
        "longbench",
        tmp_path / "results",
        f"benchmark.path={folder(rows)}",
        "benchmark.tasks=[qasper,samsum,lcc]",
    )
