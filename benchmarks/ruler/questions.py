"""Questions among documents: RULER's qa_1 (SQuAD) and qa_2 (HotpotQA).

They come from the embedded subsets, a local file or the hub.

Source: NVIDIA/RULER scripts/data/synthetic/qa.py at c3f5e3b (which paragraphs go with a question). Embedded:
    the English part of XQuAD (240 paragraphs of SQuAD) and 61 rows of HotpotQA's distractor set, both CC
    BY-SA 4.0; see README.md beside this file.
Differs: documents are shuffled anew for every sample (the official permutation is the same within a run, so
    the answer's place is too). Where the ten paragraphs of a HotpotQA row do not fit, distractors are
    dropped, where the original never ends.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ruler.prompts import RulerTask
from benchmarks.text.fitting import PromptDraft, PromptRecipe
from benchmarks.text.sources import local_file

ORIGINS = ("embedded", "hub")
"""What `load_questions` accepts."""

_SQUAD_HUB, _HOTPOT_HUB = "rajpurkar/squad_v2", "hotpotqa/hotpot_qa"


class DocumentSpan(NamedTuple):
    """Characters [start, end) of a document.

    Attributes:
        document: index into `QuestionSet.documents`.
        start: the first character.
        end: the one behind the last.
    """

    document: int
    start: int
    end: int


@dataclass(frozen=True)
class Question:
    """A question, its answers, and the documents that belong to it."""

    text: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    """Documents without which it cannot be answered (indexes into `QuestionSet.documents`)."""
    related: tuple[int, ...]
    """Documents that are added before random ones: the rest of the article, or the distractors of the row."""
    evidence: tuple[DocumentSpan, ...]
    """Where the answer stands."""


@dataclass(frozen=True)
class QuestionSet:
    """All questions of one source."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]
    source: str
    """For records: which file or hub set this is."""
    together: bool
    """Whether needed and related documents always stand together in the original.

    HotpotQA's ten paragraphs do.
    """


@lru_cache(maxsize=4)
def load_questions(task: str, origin: str = "embedded", path: str = "") -> QuestionSet:
    """Questions for `qa_1` or `qa_2`.

    Args:
        task: "qa_1" (SQuAD) or "qa_2" (HotpotQA).
        origin: one of `ORIGINS`; "hub" downloads the full development set.
        path: an official JSON file (dev-v2.0.json, hotpot_dev_distractor_v1.json); when given, it is what is
            read.

    Raises:
        ValueError: unknown origin, no file at `path`, or a file of another format.
    """
    if origin not in ORIGINS:
        raise ValueError(
            f"questions={origin!r} is not known; choose one of {', '.join(ORIGINS)}, "
            "or give squad_path and hotpotqa_path"
        )
    squad = task == "qa_1"
    name, embedded = (
        ("squad", "XQuAD-en, 240 paragraphs (embedded)")
        if squad
        else ("hotpotqa", "HotpotQA distractor, 61 rows (embedded)")
    )
    if not path and origin == "hub":
        if squad:
            return _squad(_squad_hub(), f"hub {_SQUAD_HUB}")
        return _hotpotqa(_hotpot_hub(), f"hub {_HOTPOT_HUB}")
    file = local_file(
        path or Path(__file__).with_name(f"{name}.json"),
        f"{name}_path",
        f"name the official {name} JSON file, or leave {name}_path empty",
    )
    source = file.name if path else embedded
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return _squad(content["data"], source) if squad else _hotpotqa(content, source)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name}_path: {file.resolve()} is not an official {name} JSON file ({reason})"
        ) from error


def question_answering(
    task: RulerTask, label: str, question: Question, questions: QuestionSet
) -> list[PromptRecipe]:
    """The documents that a question needs, those related to it, then random others, shuffled.

    Args:
        task: texts.
        label: seeds this sample.
        question: that is asked.
        questions: the set that it is of.
    """
    rng = random.Random(label)
    order = [*question.needed, *rng.sample(question.related, len(question.related))]
    official = len(order) if questions.together else 1
    more = _others(rng, len(questions.documents), set(order))

    def build(size: int) -> PromptDraft:
        while len(order) < size:
            order.append(next(more))
        chosen = order[:size]
        random.Random(f"{label}/{size}").shuffle(chosen)

        # The documents one after another, and where the answer stands in them.
        texts, evidence, begin = [], set(), len(task.head)
        for number, document in enumerate(chosen, start=1):
            title = f"Document {number}:\n"
            begin += len(title)
            own = [span for span in question.evidence if span.document == document]
            evidence |= {(begin + span.start, begin + span.end) for span in own}
            texts.append(title + questions.documents[document])
            begin += len(questions.documents[document]) + 2

        facts: dict[str, object] = {"documents": size}
        if size < official:
            facts["note"] = f"{size} documents instead of the question's {official}"
        return PromptDraft(
            context=task.context("\n\n".join(texts)),
            question=task.question.replace("{query}", question.text),
            answer_prefix=task.answer_prefix,
            references=question.answers,
            evidence=tuple(sorted(evidence)),
            facts=facts,
        )

    return [PromptRecipe(build, minimum=len(question.needed), unit_tokens=150)]


def _squad(articles: Iterable[Mapping[str, Any]], source: str) -> QuestionSet:
    """The questions of SQuAD's JSON layout: articles of paragraphs, each with questions."""
    articles = list(articles)
    documents = sorted({paragraph["context"] for article in articles for paragraph in article["paragraphs"]})
    index = {document: position for position, document in enumerate(documents)}
    questions = []
    for article in articles:
        members = [index[paragraph["context"]] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            own = index[paragraph["context"]]
            related = tuple(dict.fromkeys(member for member in members if member != own))
            for row in paragraph["qas"]:
                if row.get("is_impossible") or not row["answers"]:
                    continue
                spans = {
                    DocumentSpan(own, start := answer["answer_start"], start + len(answer["text"]))
                    for answer in row["answers"]
                }
                answers = tuple(answer["text"] for answer in row["answers"])
                questions.append(Question(row["question"], answers, (own,), related, tuple(sorted(spans))))
    return QuestionSet(tuple(questions), tuple(documents), source, together=False)


def _hotpotqa(rows: Iterable[Mapping[str, Any]], source: str) -> QuestionSet:
    """The questions of HotpotQA's JSON layout: rows of ten paragraphs, given as sentences."""
    rows = list(rows)
    documents = sorted({_hotpot_document(*paragraph) for row in rows for paragraph in row["context"]})
    index = {document: position for position, document in enumerate(documents)}
    questions = []
    for row in rows:
        facts = {(title, number) for title, number in row["supporting_facts"]}
        needed_titles = {title for title, _ in facts}
        needed: list[int] = []
        related: list[int] = []
        spans = []
        for title, sentences in row["context"]:
            document = index[_hotpot_document(title, sentences)]
            (needed if title in needed_titles else related).append(document)
            begin = len(title) + 1
            for number, sentence in enumerate(sentences):
                if (title, number) in facts:
                    spans.append(DocumentSpan(document, begin, begin + len(sentence)))
                begin += len(sentence)
        questions.append(
            Question(row["question"], (row["answer"],), tuple(needed), tuple(related), tuple(spans))
        )
    return QuestionSet(tuple(questions), tuple(documents), source, together=True)


def _hotpot_document(title: str, sentences: Iterable[str]) -> str:
    return f"{title}\n{''.join(sentences)}"


def _squad_hub() -> list[dict[str, Any]]:
    """SQuAD's development set from the hub, in its JSON layout."""
    from datasets import load_dataset

    articles: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in load_dataset(_SQUAD_HUB, split="validation"):
        answers = [
            {"text": text, "answer_start": start}
            for text, start in zip(*row["answers"].values(), strict=True)
        ]
        articles.setdefault(row["title"], {}).setdefault(row["context"], []).append(
            {"question": row["question"], "answers": answers}
        )
    return [
        {"title": title, "paragraphs": [{"context": text, "qas": rows} for text, rows in texts.items()]}
        for title, texts in articles.items()
    ]


def _hotpot_hub() -> list[dict[str, Any]]:
    """HotpotQA's development set from the hub, in its JSON layout."""
    from datasets import load_dataset

    return [
        {
            "question": row["question"],
            "answer": row["answer"],
            "context": list(zip(row["context"]["title"], row["context"]["sentences"], strict=True)),
            "supporting_facts": list(
                zip(row["supporting_facts"]["title"], row["supporting_facts"]["sent_id"], strict=True)
            ),
        }
        for row in load_dataset(_HOTPOT_HUB, "distractor", split="validation")
    ]


def _others(rng: random.Random, n_documents: int, seen: set[int]) -> Iterator[int]:
    """Documents in random order, those in `seen` only after all others, and so on round and round."""
    while True:
        while len(seen) < n_documents:
            document = rng.randrange(n_documents)
            if document not in seen:
                seen.add(document)
                yield document
        seen = set()
