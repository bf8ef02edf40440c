"""RULER: the laws over all tasks and lengths, the official definition in numbers, and rows made elsewhere."""

import json
import random
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.base import Sample
from benchmarks.ruler import RulerBenchmark
from benchmarks.ruler.prompts import NOISE, TASKS, find_evidence, split_prompt
from benchmarks.ruler.questions import load_questions
from benchmarks.ruler.words import word_lists
from benchmarks.text.fitting import PromptDraft, PromptRecipe, PromptTokenCounter, fit_prompt
from tests.support.end_to_end import check_end_to_end
from tests.support.word_tokenizer import WordTokenizer

DATA = Path(__file__).parent / "data" / "ruler"
LENGTHS = (512, 1024, 2048, 4096, 16384)
OFFICIAL = tuple(sorted(folder.name for folder in (DATA / "official").iterdir()))
WIDE = 10**6


def make(task: str, length: int = 2048, limit: int | None = 4, **options: Any) -> list[Sample]:
    benchmark = RulerBenchmark(
        tasks=(task,), length=length, haystack=options.pop("haystack", "walden"), **options
    )
    return list(benchmark.samples(WordTokenizer(), WIDE, limit))


def headline(sample: Sample, prediction: str) -> float:
    scores = RulerBenchmark().score(sample, prediction)
    assert next(iter(scores)) == RulerBenchmark.metrics[sample.task]
    return next(iter(scores.values()))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("task", TASKS)
def test_laws(task: str, length: int) -> None:
    tokenizer, count = WordTokenizer(), WordTokenizer()
    samples = list(
        RulerBenchmark(tasks=(task,), length=length, haystack="walden").samples(tokenizer, WIDE, 4)
    )
    assert len(samples) == 4
    assert tokenizer.characters <= 6 * sum(
        len(sample.context) + 1000 for sample in samples
    )  # a few countings of a long text
    assert len({sample.id for sample in samples}) == 4
    rng = random.Random(0)
    for sample in samples:
        parts = [sample.context, sample.question, sample.answer_prefix]
        used = (
            max(len(count.encode("".join(parts))), sum(len(count.encode(part)) for part in parts))
            + sample.max_new_tokens
        )
        assert used == sample.metadata["length"] <= length
        if TASKS[task].kind != "qa":  # whole documents leave gaps
            assert used >= length - max(80, length // 100)
        assert headline(sample, ", ".join(sample.references)) == 1
        assert headline(sample, ", ".join(sample.references).upper()) == 1
        assert headline(sample, "") == 0
        assert 0 <= headline(sample, "".join(rng.choices(string.printable, k=500))) <= 1
        share = headline(sample, sample.references[0])
        assert share == 1 if task.startswith("qa") else share >= 1 / len(sample.references)
        assert all(reference in sample.context for reference in sample.references)
        assert sample.evidence
        for start, end in sample.evidence:
            assert 0 <= start < end <= len(sample.context)
        json.dumps(dict(sample.metadata), allow_nan=False)


@pytest.mark.parametrize("task", TASKS)
def test_deterministic_and_a_smaller_limit_is_a_prefix(task: str) -> None:
    ten = make(task, 1024, 10)
    assert make(task, 1024, 3) == ten[:3]
    assert make(task, 1024, None, samples_per_task=10) == ten
    assert [sample.context for sample in make(task, 1024, 3, seed=7)] != [
        sample.context for sample in ten[:3]
    ]


def test_tasks_do_not_depend_on_their_order() -> None:
    tasks = ("niah_multikey_1", "vt", "cwe", "qa_1")
    forth = RulerBenchmark(tasks=tasks, length=1024, haystack="walden").samples(WordTokenizer(), WIDE, 2)
    back = RulerBenchmark(tasks=tasks[::-1], length=1024, haystack="walden").samples(WordTokenizer(), WIDE, 2)
    assert sorted(forth, key=lambda sample: sample.id) == sorted(back, key=lambda sample: sample.id)


NIAH = {
    # task: sentences hidden, answers, values' pattern, keys' pattern
    "niah_single_1": (1, 1, r"\d{7}", r"[^:]+-[^:]+"),
    "niah_single_2": (1, 1, r"\d{7}", r"[^:]+-[^:]+"),
    "niah_single_3": (1, 1, r"[0-9a-f-]{36}", r"[^:]+-[^:]+"),
    "niah_multikey_1": (4, 1, r"\d{7}", r"[^:]+-[^:]+"),
    "niah_multikey_2": (0, 1, r"\d{7}", r"[^:]+-[^:]+"),
    "niah_multikey_3": (0, 1, r"[0-9a-f-]{36}", r"[0-9a-f-]{36}"),
    "niah_multivalue": (4, 4, r"\d{7}", r"[^:]+-[^:]+"),
    "niah_multiquery": (4, 4, r"\d{7}", r"[^:]+-[^:]+"),
}


@pytest.mark.parametrize("task", NIAH)
def test_needles(task: str) -> None:
    hidden, answers, value, key = NIAH[task]
    for sample in make(task, 4096):
        needles = re.findall(
            rf"One of the special magic (?:numbers|uuids) for ({key}) is: ({value})\.", sample.context
        )
        lines = sample.metadata.get("lines", 0) if hidden == 0 else 0
        assert len(needles) == (hidden or lines + 1)
        assert len(sample.references) == answers == len(sample.evidence)
        asked = {k for k, v in needles if v in sample.references}
        assert len(asked) == (4 if task == "niah_multiquery" else 1)
        assert all(k in sample.question and k in sample.answer_prefix for k in asked)
        assert len({k for k, _ in needles}) == (1 if task == "niah_multivalue" else len(needles))
        for start, end in sample.evidence:
            assert sample.context[start:end].startswith("One of the special magic ")
            assert any(
                sample.context[start:end].endswith(f" is: {reference}.") for reference in sample.references
            )
        if task == "niah_single_1":
            assert sample.context.count(NOISE) == sample.metadata["lines"]
        single = answers == 1
        assert sample.context.startswith("A special magic " if single else "Some special magic ")
        assert sample.question.startswith("What is the special" if single else "What are all the special")
        assert sample.answer_prefix.endswith(" is" if single else " are") and sample.answer_prefix.startswith(
            " The special magic "
        )
        assert sample.max_new_tokens == 128


def test_queries_are_joined_as_in_the_original() -> None:
    sample = make("niah_multiquery", limit=1)[0]
    assert re.fullmatch(
        r"What are all the special magic numbers for \S.*, .*, .*, and .* mentioned in the provided text\?",
        sample.question,
    )


def test_words_come_from_both_lists() -> None:
    lists = word_lists()
    assert len(lists.all) > 8000 and len(lists.nouns) > 6000 and len(lists.adjectives) > 800
    key = re.search(r"for (\S+(?: \S+)?) mentioned", make("niah_single_1", limit=1)[0].question)
    assert key is not None
    assert any(
        key[1] == f"{adjective}-{noun}"
        for adjective in lists.adjectives
        for noun in [key[1].removeprefix(f"{adjective}-")]
    )


def test_needles_stand_at_the_forty_depths() -> None:
    drawn = {depth for sample in make("niah_multivalue", 512, 40) for depth in sample.metadata["depths"]}
    assert drawn <= {round(100 * step / 39) for step in range(40)}
    assert min(drawn) < 10 and max(drawn) > 90


def test_variable_tracking() -> None:
    for sample in make("vt", 2048):
        example, main = sample.context.split("\n\nMemorize and track")
        value = re.search(r"assigned the value (\d{5}) in", sample.question)
        assert value is not None and 10_000 <= int(value[1]) < 99_999
        first, *later = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\d{5})", main)
        assert first[1] == value[1]
        assert [name for name, _ in [first, *later]] == list(sample.references)
        assert [before for _, before in later] == list(sample.references[:-1])
        assert len(sample.references) == 5 == len(sample.evidence) == len(set(sample.references))
        assert main.count(NOISE) == sample.metadata["lines"]
        assert len(re.findall(r"VAR [A-Z]{3} = ", example)) == 5
        assert re.search(r"they are:  [A-Z]{3}(?: [A-Z]{3}){4}$", example)
        assert len(WordTokenizer().encode(example)) <= 520  # 500 tokens without the names
        assert sample.answer_prefix == (
            " Answer: According to the chain(s) of variable assignment in the text above, "
            f"5 variables are assigned the value {value[1]}, they are: "
        )


@pytest.mark.parametrize(("length", "common", "uncommon", "shown"), [(2048, 6, 1, 40), (4096, 30, 3, 190)])
def test_common_words(length: int, common: int, uncommon: int, shown: int) -> None:
    for sample in make("cwe", length):
        example, main = (
            part.rsplit("\nQuestion:", 1)[0]
            for part in re.split(r"\n(?=Below is)", sample.context + sample.question)
        )
        listed = [word for _, word in re.findall(r"(\d+)\. ([^\d]+?)(?= \d|$)", main.split("\n", 1)[1])]
        counts = Counter(listed)
        assert {word for word, n in counts.items() if n == common} == set(sample.references) and len(
            sample.references
        ) == 10
        assert set(counts.values()) == {common, uncommon}
        assert len(counts) == sample.metadata["distinct_words"]
        assert len(sample.evidence) == 10 * common
        assert len(re.findall(r"\d+\. ", example.split("\n", 1)[1])) == shown
        assert re.search(r"in the list are: 1\. .* 10\. \S", sample.context)


def test_frequent_words() -> None:
    for sample in make("fwe", 4096):
        words = sample.context.split("coded words. ")[1].split()
        (top, noise), *ranked = Counter(words).most_common(5)
        assert top == "..." and [word for word, _ in ranked[:3]] == list(sample.references)
        assert ranked[2][1] > ranked[3][1]
        assert noise / len(words) == pytest.approx(6 / 3.14159**2, abs=0.03)
        assert sample.metadata["vocabulary"] == (4096 - 50) // 50
        assert all(re.fullmatch("[a-z]{6}", word) for word in set(words) - {"..."})
        assert len(sample.evidence) == sum(n for _, n in ranked[:3])


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_questions_have_their_documents(task: str) -> None:
    found = load_questions(task)
    for sample in make(task, 4096, 10):
        question = found.questions[sample.metadata["question"]]
        assert question.text in sample.question and question.answers == sample.references
        numbers = [int(number) for number in re.findall(r"^Document (\d+):$", sample.context, re.MULTILINE)]
        assert numbers == list(range(1, sample.metadata["documents"] + 1))
        assert all(found.documents[needed] in sample.context for needed in question.needed)
        if task == "qa_2":
            assert sample.metadata["documents"] >= 10 and all(
                found.documents[document] in sample.context for document in question.related
            )
        spans = [found.documents[document][start:end] for document, start, end in question.evidence]
        assert sorted(sample.context[start:end] for start, end in sample.evidence) == sorted(set(spans))
        assert "embedded" in sample.metadata["questions"]


def test_fewer_documents_than_the_question_has_are_recorded() -> None:
    notes = [sample.metadata["note"] for sample in make("qa_2", 512)]
    assert all(re.fullmatch(r"\d documents instead of the question's 10", note) for note in notes)


def test_documents_repeat_when_there_are_too_few(tmp_path: Path) -> None:
    paragraph = {
        "context": "The sky is blue.",
        "qas": [{"question": "Which colour?", "answers": [{"text": "blue", "answer_start": 11}]}],
    }
    other = {
        "context": "The grass is green.",
        "qas": [{"question": "Who?", "answers": [], "is_impossible": True}],
    }
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph, other]}]}))
    samples = make("qa_1", 1024, 5, squad_path=str(file))
    assert len(samples) == 1 and samples[0].metadata["documents"] > 20
    assert len(samples[0].evidence) == samples[0].context.count("blue")


def test_template_tokens_are_taken_off_the_length() -> None:
    plain, templated = make("fwe", 1024, 1)[0], make("fwe", 1024, 1, template_tokens=100)[0]
    assert len(templated.context) < len(plain.context) and templated.metadata["length"] <= 1024


def test_a_length_that_cannot_hold_a_task_is_refused_with_what_it_takes() -> None:
    for task in TASKS:
        with pytest.raises(ValueError, match=rf"length=90 is too short for {task} .* it takes \d+"):
            make(task, 90)


def test_generation_ends_whatever_the_length() -> None:
    for task in TASKS:
        for length in range(200, 800, 60):
            try:
                assert all(sample.metadata["length"] <= length for sample in make(task, length, 2))
            except ValueError as error:
                assert "too short" in str(error)


def test_a_prompt_longer_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="length=4096 exceeds the model's window of 2048"):
        next(RulerBenchmark(length=4096).samples(WordTokenizer(), 2048))
    with pytest.raises(ValueError, match=r"row vt/0 takes .* the model's window has 512"):
        list(
            RulerBenchmark(tasks=("vt",), source="files", path=str(DATA / "official")).samples(
                WordTokenizer(), 512
            )
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("niah",)}, "its tasks are niah_single_1"),
        ({"source": "web"}, "choose one of generated, files, hub"),
        ({"source": "files"}, "give path"),
        ({"path": "somewhere"}, "set source=files"),
        ({"haystack": "novels"}, "choose one of auto"),
        ({"questions": "mine"}, "choose embedded or hub"),
        ({"length": 0}, "length=0 must be at least 1"),
        ({"samples_per_task": 0}, "samples_per_task=0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RulerBenchmark(**options)


@pytest.mark.parametrize("task", OFFICIAL)
def test_official_rows(task: str) -> None:
    samples = list(
        RulerBenchmark(tasks=(task,), source="files", path=str(DATA / "official")).samples(
            WordTokenizer(), WIDE
        )
    )
    official = rows(DATA / "official" / task / "validation.jsonl")
    assert len(samples) == len(official) == 2
    generated = make(task, limit=1)[0]
    for sample, row in zip(samples, official, strict=True):
        assert sample.context + sample.question + sample.answer_prefix == row["input"] + row["answer_prefix"]
        assert sample.answer_prefix == row["answer_prefix"] and sample.references == tuple(row["outputs"])
        assert sample.max_new_tokens == TASKS[task].max_new_tokens and sample.chat_template
        assert headline(sample, ", ".join(row["outputs"])) == 1
        assert headline(sample, row["outputs"][0]) == pytest.approx(
            1 / len(row["outputs"]) if task != "qa_1" else 1
        )
        # the generator writes the same words around what differs
        assert (
            sample.context[:40] == generated.context[:40] and sample.question[:30] == generated.question[:30]
        )
        assert re.sub(r"\d{5}|for \S+ mentioned", "", sample.answer_prefix) == re.sub(
            r"\d{5}|for .* mentioned", "", generated.answer_prefix
        )
        if task != "qa_1":
            found = {
                reference
                for start, end in sample.evidence
                for reference in row["outputs"]
                if reference in sample.context[start:end]
            }
            assert found == set(row["outputs"])
    assert [sample.id for sample in samples] == [f"{task}/0", f"{task}/1"]


def test_older_rows_with_the_answer_prefix_inside_input() -> None:
    older = DATA / "older"
    for sample, row in zip(
        RulerBenchmark(tasks=("niah_multikey_3",), source="files", path=str(older)).samples(
            WordTokenizer(), WIDE
        ),
        rows(older / "niah_multikey_3" / "validation.jsonl"),
        strict=True,
    ):
        assert sample.context + sample.question + sample.answer_prefix == row["input"]
        assert sample.answer_prefix.startswith(" The special magic uuid for ") and sample.question.endswith(
            "?"
        )
        assert len(sample.evidence) == 1


def test_rows_with_a_model_template_keep_it_and_get_no_other(tmp_path: Path) -> None:
    row = rows(DATA / "official" / "vt" / "validation.jsonl")[0]
    folder = tmp_path / "vt"
    folder.mkdir()
    (folder / "validation.jsonl").write_text(json.dumps({**row, "input": f"[INST] {row['input']} [/INST]"}))
    sample = next(
        RulerBenchmark(tasks=("vt",), source="files", path=str(tmp_path)).samples(WordTokenizer(), WIDE)
    )
    assert (
        not sample.chat_template
        and sample.question.endswith(" [/INST]")
        and sample.context.startswith("[INST] ")
    )


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_in_the_columns_of_the_hub_set(suffix: str, tmp_path: Path) -> None:
    file = DATA / "prepared.jsonl"
    if suffix == "parquet":
        pandas = pytest.importorskip("pandas")
        pandas.DataFrame(rows(file)).to_parquet(file := tmp_path / "prepared.parquet")
    tasks = ("vt", "cwe", "qa_1", "niah_multikey_3")
    prepared = list(
        RulerBenchmark(tasks=tasks, source="files", path=str(file)).samples(WordTokenizer(), WIDE)
    )
    official = list(
        RulerBenchmark(tasks=tasks, source="files", path=str(DATA / "official")).samples(
            WordTokenizer(), WIDE, 1
        )
    )
    for left, right in zip(prepared, official, strict=True):
        assert (left.id, left.context, left.question, left.answer_prefix) == (
            right.id,
            right.context,
            right.question,
            right.answer_prefix,
        )
        assert (left.references, left.max_new_tokens, left.evidence) == (
            right.references,
            right.max_new_tokens,
            right.evidence,
        )


def test_the_space_at_the_joint_goes_back_to_the_answer_prefix(tmp_path: Path) -> None:
    row = rows(DATA / "prepared.jsonl")[0]
    moved = {**row, "question": row["question"] + " ", "answer_prefix": row["answer_prefix"].lstrip(" ")}
    (file := tmp_path / "rows.jsonl").write_text(json.dumps(moved))
    sample = next(
        RulerBenchmark(tasks=(row["task"],), source="files", path=str(file)).samples(WordTokenizer(), WIDE)
    )
    assert (sample.question, sample.answer_prefix) == (row["question"], row["answer_prefix"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"input": "x"}', "line 1: no field 'outputs'"),
        ('{"outputs": ["x"]}', "line 1: no field 'input'"),
        ('{"input": "x", "outputs": ["x"]}', "line 1: this is not a prompt of vt"),
        ('{"input": "x", "outputs": []}', "line 1: the field 'outputs'"),
        ('\n{"input": ', "line 2: not JSON"),
        ("[1]", "line 1: a list, where a JSON object"),
    ],
)
def test_broken_rows_name_their_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "vt").mkdir()
    (tmp_path / "vt" / "validation.jsonl").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        list(RulerBenchmark(tasks=("vt",), source="files", path=str(tmp_path)).samples(WordTokenizer(), WIDE))


def test_missing_files_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file at .*qa_1/validation\.jsonl"):
        list(
            RulerBenchmark(tasks=("qa_1",), source="files", path=str(tmp_path)).samples(WordTokenizer(), WIDE)
        )
    with pytest.raises(ValueError, match="has no row of fwe; it has cwe, niah_multikey_3, qa_1, vt"):
        list(
            RulerBenchmark(tasks=("fwe",), source="files", path=str(DATA / "prepared.jsonl")).samples(
                WordTokenizer(), WIDE
            )
        )
    with pytest.raises(ValueError, match=r"rows are read from \.jsonl, \.json, \.parquet, \.csv files"):
        list(
            RulerBenchmark(tasks=("vt",), source="files", path=str(DATA / "README.md")).samples(
                WordTokenizer(), WIDE
            )
        )
    (broken := tmp_path / "squad.json").write_text('{"data": [1]}')
    with pytest.raises(ValueError, match="is not an official squad JSON file"):
        make("qa_1", squad_path=str(broken))


def sample_of(task: str, *references: str) -> Sample:
    return Sample("x/0", task, "", "", references)


@pytest.mark.parametrize(
    ("task", "references", "prediction", "expected"),
    [
        ("vt", ("ABC", "DEF", "GHI", "JKL"), "abc and def", 0.5),  # share, upper and lower case alike
        ("qa_1", ("Denver Broncos", "Broncos", "The Broncos"), "broncos won", 1.0),  # any reference
        ("qa_2", ("yes",), "no", 0.0),
        ("niah_single_1", ("1234567",), "123\n4567", 0.0),
        (
            "niah_single_1",
            ("1234567",),
            "123\x004567",
            0.0,
        ),  # a control character becomes a line break, it does not vanish
        ("niah_single_1", ("1234567",), "\x01 1234567\t", 1.0),
        ("cwe", ("a", "b"), "   \n\t ", 0.0),
        ("fwe", ("aaa", "bbb", "ccc"), "aaa aaa aaa", 1 / 3),  # a repeated answer counts once
    ],
)
def test_official_score(task: str, references: tuple[str, ...], prediction: str, expected: float) -> None:
    assert headline(sample_of(task, *references), prediction) == pytest.approx(expected)


def test_predictions_are_read_with_the_task_from_the_command_or_the_row() -> None:
    benchmark = RulerBenchmark()
    row = {"index": 317, "input": "…", "outputs": ["ABCDE", "FGHIJ"], "pred": "ABCDE", "others": {}}
    [(sample, prediction)] = benchmark.read_predictions([(1, row)], "vt")
    assert benchmark.score(sample, prediction) == {"string_match_all": 0.5}
    [(sample, _)] = benchmark.read_predictions([(3, {**row, "task": "qa_1"})], None)
    assert benchmark.score(sample, prediction) == {"string_match_part": 1.0}
    [(sample, _)] = benchmark.read_predictions([(3, {"output": "one", "pred": "One"})], "qa_2")
    assert benchmark.score(sample, "One") == {"string_match_part": 1.0}
    for wrong, message in [
        ({"outputs": ["x"]}, "line 9: no field 'pred'"),
        ({"pred": "x"}, "line 9: no field 'output'"),
        ({"pred": "x", "outputs": [1]}, "line 9: the field 'outputs'"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(benchmark.read_predictions([(9, wrong)], "vt"))
    with pytest.raises(ValueError, match="line 9: no field 'task'"):
        list(benchmark.read_predictions([(9, row)], None))


def test_split_prompt_takes_the_last_question() -> None:
    sample = make("cwe", limit=1)[0]
    prompt = sample.context + sample.question + sample.answer_prefix
    assert split_prompt(TASKS["cwe"], prompt) == (sample.context, sample.question, sample.answer_prefix)
    assert sample.context.count(sample.question) == 1  # the example asks the same
    assert split_prompt(TASKS["vt"], "nothing of the kind") is None


def test_evidence_does_not_run_across_needles() -> None:
    needle = "One of the special magic numbers for {} is: {}."
    context = f"{needle.format('a-b', '1111111')} {needle.format('c-d', '2222222')}"
    [(start, end)] = find_evidence(TASKS["niah_multikey_1"], context, ("2222222",))
    assert context[start:end] == "One of the special magic numbers for c-d is: 2222222."


def test_fit_finds_the_largest_size_and_falls_back() -> None:
    counter = PromptTokenCounter(WordTokenizer())

    def recipe(minimum: int, maximum: int | None = None, note: str = "") -> PromptRecipe:
        return PromptRecipe(
            lambda size: PromptDraft("word " * size, "", "", ()),
            minimum,
            unit_tokens=3,
            maximum=maximum,
            note=note,
        )

    fitted = fit_prompt([recipe(1)], counter, 1000)
    assert not isinstance(fitted, int) and fitted.tokens == 1000
    fitted = fit_prompt([recipe(1, maximum=70)], counter, 1000)
    assert not isinstance(fitted, int) and fitted.tokens == 70
    fitted = fit_prompt([recipe(200), recipe(5, note="smaller")], counter, 100)
    assert not isinstance(fitted, int) and (fitted.tokens, fitted.note) == (100, "smaller")
    assert fit_prompt([recipe(200), recipe(50)], counter, 40) == 50


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    check_end_to_end("ruler", tmp_path / "results", "benchmark.length=1024", "benchmark.haystack=walden")
