"""LooGLE: questions, clozes and summaries over whole Wikipedia articles, papers and screenplays.

Source: Li et al. 2023, arXiv 2311.04939; bigai-nlco/LooGLE at 6734382 (MIT): config/*.json,
    Evaluation/automatic_*.py, Prediction/pred_opensource_models.py.
Differs: answers and rows are parsed as literals, never run; an empty answer scores 0 (officially "None" is
    scored instead); no repetition penalty (officially 2.0); METEOR and BERTScore only where asked for; BLEU
    and ROUGE of an answer without words are 0.

Rows: `path=` is a folder with `<task>.jsonl` or `data.zip`, a zip or one such file; else data.zip of the hub
set is downloaded. Rows with qa_pairs (input, title, qa_pairs, output) and rows with one question each
(context, question, answer) are both read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from benchmarks.base import Benchmark, NumberedRows, Prediction, PromptParts, Sample, Tokenizer
from benchmarks.loogle.metrics import (
    BERTSCORE_FIX,
    bertscore,
    bleu,
    meteor,
    parse_literal,
    rouge_recall,
    score_cloze,
)
from benchmarks.text.fields import field, text_field
from benchmarks.text.metrics import load_scorer
from benchmarks.text.sources import Table, hub_file_table, local_table
from benchmarks.text.spans import find_spans
from benchmarks.text.token_counts import Window, count_tokens
from benchmarks.text.truncation import cut_middle

ARCHIVE = "data.zip"
"""That holds all tasks."""

CUTS = ("prompt", "document")
"""What may be cut, see `LoogleBenchmark.cut`."""

_QUESTIONS = PromptParts(
    "Please answer the question based on the long texts below. \n{input}\n", "Question: {Q}\n", "Answer: "
)
PROMPTS = {
    "shortdep_qa": _QUESTIONS,
    "longdep_qa": _QUESTIONS,
    "longdep_summarization": PromptParts(
        "Please generate a summary of the below paper. \n{input}\n",
        "",
        " Summarization: ",
    ),
    "shortdep_cloze": PromptParts(
        "Please fill in the clozes based on the given long texts below. "
        "Each of the placeholder '<mask-n>' in the question could be an entity of Person, Location or "
        "Organiocation. The same masks represent the same entity. Output a json format answer, for example: "
        "{'<mask-0>': 'Bob', '<mask-1>': 'Gorrosion Magazine','<mask-2>': 'Bethel Horizon'}\n{input}\n",
        " Question: {Q} What are the masked entities? \n",
        "Answer:",
    ),
}
"""Context, question and answer prefix of each task; together config/task2prompt.json."""

MAX_NEW_TOKENS = {"shortdep_qa": 300, "longdep_qa": 500, "longdep_summarization": 500, "shortdep_cloze": 50}
"""Tokens of an answer of each task."""


class LoogleQuestion(NamedTuple):
    """One question about a document.

    Attributes:
        question: its text, empty for a summary.
        reference: the answer; of a cloze, mask -> entity.
        support: sentences of the document that say it.
    """

    question: str
    reference: Any
    support: list[str]


@dataclass(frozen=True)
class LoogleBenchmark(Benchmark):
    """Options of LooGLE.

    Raises:
        ValueError: an unknown task or value, or METEOR or BERTScore is asked for and not installed.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {
        task: "exact" if task == "shortdep_cloze" else "rouge1" for task in PROMPTS
    }

    tasks: tuple[str, ...] = tuple(PROMPTS)
    path: str = ""
    """Folder with <task>.jsonl or data.zip, or one such file; empty: the hub."""
    hub: str = "bigai-nlco/LooGLE"
    revision: str = ""
    """Commit of the hub data set; empty: the newest. The suite names none."""
    max_length: int = 0
    """Tokens to which a prompt is cut; 0: what the model's window leaves beside the answer."""
    cut: str = "prompt"
    """"prompt": the official cut, which depends on the question; "document": one cut for all questions of a
    document, which share a prefill."""
    chat_template: bool = False
    """False: the bare prompt of the official script."""
    meteor: bool = False
    """METEOR too; needs nltk with WordNet."""
    bertscore: bool = False
    """BERTScore too; needs bert-score and its model."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        self.check_tasks(PROMPTS)
        self.check_choices(cut=CUTS)
        self.check_positive_or_zero(max_length="what the model's window leaves")
        if self.meteor:
            meteor("one", "one")
        if self.bertscore:
            load_scorer("bert_score", "bert-score", BERTSCORE_FIX)

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the questions document by document; see `Benchmark.samples`."""
        for task in self.tasks:
            table = self._table(task)
            shared = Window(tokenizer, window, MAX_NEW_TOKENS[task], self.chat_template)
            made = 0
            for number, row in enumerate(table.rows):
                if made == limit:
                    break
                title = str(row.get("title") or row.get("doc_id") or number)
                samples = self._samples(
                    task,
                    made,
                    row,
                    {"document": title, **table.origin},
                    shared,
                    f"loogle {task}, row {number}",
                )
                for sample in islice(samples, None if limit is None else limit - made):
                    yield sample
                    made += 1

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Clozes: share of the masks filled exactly, and with a common word. Others: ROUGE recall and BLEU.

        METEOR and BERTScore too, where they are asked for.
        """
        reference = sample.references[0] if sample.references else ""
        if sample.task == "shortdep_cloze":
            return score_cloze(reference if isinstance(reference, dict) else {}, prediction)
        reference = str(reference)
        scores = {
            **rouge_recall(reference, prediction),
            "bleu1": bleu(reference, prediction, 1),
            "bleu4": bleu(reference, prediction, 4),
        }
        if self.meteor:
            scores["meteor"] = meteor(reference, prediction)
        if self.bertscore:
            scores["bertscore"] = bertscore(reference, prediction)
        return scores

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows of the official output files, one a document: lists of answers and of references.

        They are the fields `llm_output` and `output`.
        """
        for line, row in rows:
            where = f"line {line}"
            name = self.task_of_row(row, task, where, allowed=PROMPTS)
            answers, references = (field(row, part, where=where) for part in ("llm_output", "output"))
            lists = isinstance(answers, list) and isinstance(references, list)
            if not lists or len(answers) != len(references):
                raise ValueError(f"{where}: the fields 'llm_output' and 'output' must be lists of one length")
            for position, (answer, reference) in enumerate(zip(answers, references, strict=True)):
                wanted = _masks(reference, where) if name == "shortdep_cloze" else str(reference)
                identifier = f"{name}/{line}/{position}"
                sample = Sample(identifier, name, "", "", (wanted,), weight=_weight(wanted))
                yield Prediction(sample, str(answer))

    def _table(self, task: str) -> Table:
        """The documents of a task."""
        what, member = f"loogle {task}", f"{task}.jsonl"
        if not self.path:
            return hub_file_table(self.hub, ARCHIVE, self.revision, what, member)
        return local_table(self.path, (member, ARCHIVE, task, f"data/{task}"), what, member)

    def _samples(
        self,
        task: str,
        first: int,
        row: Mapping[str, Any],
        origin: Mapping[str, Any],
        window: Window,
        where: str,
    ) -> Iterator[Sample]:
        """The questions about one document.

        Args:
            task: of the document.
            first: number of the first question within its task.
            row: the document.
            origin: of the document, for the metadata.
            window: that prompts must fit.
            where: the row stands, for errors.
        """
        template = PROMPTS[task]
        context = template.context.replace("{input}", text_field(row, "input", "context", where=where))
        questions = questions_of(row, task, where)
        texts = [template.question.replace("{Q}", question.question) for question in questions]

        # One cut for all questions leaves room for the longest.
        longest = None
        if self.cut == "document":
            longest = max(
                texts,
                key=lambda text: count_tokens(window.tokenizer, text + template.answer_prefix),
                default=None,
            )

        for position, (question, text) in enumerate(zip(questions, texts, strict=True), start=first):
            cut = cut_middle(
                PromptParts(context, text if longest is None else longest, template.answer_prefix),
                window,
                self.max_length or None,
                where=where,
                count_special=False,
                keep_context=True,
            )
            yield Sample(
                id=f"{task}/{position}",
                task=task,
                context=cut.context,
                question=text,
                references=(question.reference,),
                answer_prefix=template.answer_prefix,
                max_new_tokens=MAX_NEW_TOKENS[task],
                evidence=find_spans(cut.context, question.support),
                chat_template=self.chat_template,
                truncated=cut.truncated,
                weight=_weight(question.reference),
                metadata=origin,
            )


def questions_of(row: Mapping[str, Any], task: str, where: str) -> list[LoogleQuestion]:
    """Everything that a row asks; its field qa_pairs is a literal of Python, or "none" for summaries.

    Raises:
        ValueError: neither qa_pairs nor question and answer can be read.
    """
    if task == "longdep_summarization":
        return [LoogleQuestion("", text_field(row, "output", "answer", where=where), [])]
    if "qa_pairs" not in row:
        pairs = [{"Q": row.get("question"), "A": row.get("answer"), "S": row.get("evidence")}]
    else:
        pairs = row["qa_pairs"] if isinstance(row["qa_pairs"], list) else parse_literal(row["qa_pairs"])
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise ValueError(f"{where}: the field 'qa_pairs' is not a list of questions")
    questions = []
    for pair in pairs:
        answer = field(pair, "A", where=where)
        support = pair.get("S") or []
        sentences = [support] if isinstance(support, str) else [str(sentence) for sentence in support]
        reference = _masks(answer, where) if task == "shortdep_cloze" else str(answer)
        questions.append(LoogleQuestion(text_field(pair, "Q", where=where), reference, sentences))
    return questions


def _weight(reference: Any) -> float:
    """Of a sample in its task's mean: the number of a cloze's masks."""
    return float(len(reference)) if isinstance(reference, dict) else 1.0


def _masks(answer: Any, where: str) -> dict[str, str]:
    """The entities of a cloze, mask -> text.

    Raises:
        ValueError: they are not a mapping of texts.
    """
    masks = parse_literal(answer)
    if not isinstance(masks, dict) or not masks:
        raise ValueError(f"{where}: the answer of a cloze must be a mapping of masks to entities")
    return {str(mask): str(entity) for mask, entity in masks.items()}
