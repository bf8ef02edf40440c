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

import ast
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import sources
from benchmarks.base import Benchmark, Sample, Tokenizer, check_tasks
from benchmarks.metrics import load_scorer

_QA = ("Please answer the question based on the long texts below. \n{input}\n", "Question: {Q}\n", "Answer: ")
PROMPTS = {
    "shortdep_qa": _QA,
    "longdep_qa": _QA,
    "longdep_summarization": (
        "Please generate a summary of the below paper. \n{input}\n",
        "",
        " Summarization: ",
    ),
    "shortdep_cloze": (
        "Please fill in the clozes based on the given long texts below. Each of the placeholder '<mask-n>' in the question could be an "
        "entity of Person, Location or Organiocation. The same masks represent the same entity. Output a json format answer, for example: "
        "{'<mask-0>': 'Bob', '<mask-1>': 'Gorrosion Magazine','<mask-2>': 'Bethel Horizon'}\n{input}\n",
        " Question: {Q} What are the masked entities? \n",
        "Answer:",
    ),
}
"""Context, question and answer prefix of each task; together config/task2prompt.json."""
MAX_NEW_TOKENS = {"shortdep_qa": 300, "longdep_qa": 500, "longdep_summarization": 500, "shortdep_cloze": 50}


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
    """"prompt": the official cut, which depends on the question; "document": one cut for all questions of a document, which share a
    prefill."""
    chat_template: bool = False
    """False: the bare prompt of the official script."""
    meteor: bool = False
    """METEOR too; needs nltk with WordNet."""
    bertscore: bool = False
    """BERTScore too; needs bert-score and its model."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        check_tasks(self.tasks, tuple(PROMPTS), "loogle")
        if self.cut not in ("prompt", "document"):
            raise ValueError(f"loogle: cut={self.cut!r} is not known; choose prompt or document")
        if self.max_length < 0:
            raise ValueError(
                f"loogle: max_length={self.max_length} must be at least 1 token, or 0 for the model's window"
            )
        if self.meteor:
            meteor("one", "one")
        if self.bertscore:
            load_scorer("bert_score", "bert-score", "pip install bert-score")

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the questions document by document; see `Benchmark.samples`."""
        for task in self.tasks:
            rows, origin = self._rows(task)
            if not rows:
                raise ValueError(f"loogle {task}: {origin['source']} has no row")
            length = self.max_length or window - MAX_NEW_TOKENS[task] - (64 if self.chat_template else 8)
            made = 0
            for number, row in enumerate(rows):
                if limit is not None and made >= limit:
                    break
                where = f"loogle {task}, row {number}"
                text = sources.text_field(row, ["input", "context"], where)
                pairs = questions(row, task, where)
                head, ask, prefix = PROMPTS[task]
                context = head.replace("{input}", text)
                tails = [ask.replace("{Q}", question) + prefix for question, _, _ in pairs]
                longest = (
                    max(tails, key=lambda tail: sources.count_tokens(tokenizer, tail))
                    if self.cut == "document"
                    else None
                )
                for (question, answer, support), tail in list(zip(pairs, tails, strict=True))[
                    : None if limit is None else limit - made
                ]:
                    cut, truncated = sources.cut_middle(context, longest or tail, tokenizer, length)
                    yield Sample(
                        id=f"{task}/{made}",
                        task=task,
                        context=cut,
                        question=ask.replace("{Q}", question),
                        references=(answer,),
                        answer_prefix=prefix,
                        max_new_tokens=MAX_NEW_TOKENS[task],
                        evidence=sources.find_spans(cut, support),
                        chat_template=self.chat_template,
                        truncated=truncated,
                        weight=float(len(answer)) if isinstance(answer, dict) else 1.0,
                        metadata={"document": str(row.get("title") or row.get("doc_id") or number), **origin},
                    )
                    made += 1

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Clozes: share of the masks filled exactly, and with a common word. Others: ROUGE recall, BLEU; METEOR, BERTScore if asked for."""
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

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows of the official output files: `llm_output` and `output`, lists of answers and references of one document."""
        for line, row in rows:
            name, where = task if task is not None else row.get("task"), f"line {line}"
            if name not in PROMPTS:
                given = (
                    "no field 'task'; name it on the command line: loogle/TASK"
                    if name is None
                    else f"loogle has no task {name!r}"
                )
                raise ValueError(f"{where}: {given}; its tasks are {', '.join(PROMPTS)}")
            answers, references = (
                sources.field(row, ["llm_output"], where),
                sources.field(row, ["output"], where),
            )
            if (
                not isinstance(answers, list)
                or not isinstance(references, list)
                or len(answers) != len(references)
            ):
                raise ValueError(f"{where}: the fields 'llm_output' and 'output' must be lists of one length")
            for position, (answer, reference) in enumerate(zip(answers, references, strict=True)):
                gold = _masks(reference, where) if name == "shortdep_cloze" else str(reference)
                weight = float(len(gold)) if isinstance(gold, dict) else 1.0
                yield (
                    Sample(f"{name}/{line}/{position}", name, "", "", (gold,), weight=weight),
                    answer if isinstance(answer, str) else str(answer),
                )

    def _rows(self, task: str) -> tuple[sources.Rows, dict[str, Any]]:
        what = f"loogle {task}"
        if not self.path:
            archive, commit = sources.hub_file(self.hub, "data.zip", self.revision, what)
            return sources.archive_rows(archive, f"{task}.jsonl", what), {
                "source": self.hub,
                "revision": commit,
            }
        place = Path(self.path).expanduser()
        archive = place if place.suffix == ".zip" else place / "data.zip"
        if archive.is_file() and not (place / f"{task}.jsonl").is_file():
            return sources.archive_rows(archive, f"{task}.jsonl", what), {
                "source": archive.name,
                "revision": None,
            }
        rows, file = sources.local_rows(place, (task, f"data/{task}"), what)
        return rows, {"source": file.name, "revision": None}


def questions(row: Mapping[str, Any], task: str, where: str) -> list[tuple[str, Any, list[str]]]:
    """Question, reference and supporting sentences of everything a row asks; qa_pairs is a literal of Python, or "none" for summaries.

    Raises:
        ValueError: neither qa_pairs nor question and answer can be read.
    """
    if task == "longdep_summarization":
        return [("", sources.text_field(row, ["output", "answer"], where), [])]
    if "qa_pairs" not in row:
        pairs = [{"Q": row.get("question"), "A": row.get("answer"), "S": row.get("evidence")}]
    else:
        pairs = row["qa_pairs"] if isinstance(row["qa_pairs"], list) else parse_literal(row["qa_pairs"])
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise ValueError(f"{where}: the field 'qa_pairs' is not a list of questions")
    found = []
    for pair in pairs:
        answer = sources.field(pair, ["A"], where)
        support = pair.get("S") or []
        sentences = [support] if isinstance(support, str) else [str(sentence) for sentence in support]
        gold = _masks(answer, where) if task == "shortdep_cloze" else str(answer)
        found.append((sources.text_field(pair, ["Q"], where), gold, sentences))
    return found


def parse_literal(text: Any) -> Any:
    """A text read as a literal of Python, else as JSON; None if it is neither. Nothing is run."""
    if not isinstance(text, str):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None


def score_cloze(reference: Mapping[str, str], prediction: str) -> dict[str, float]:
    """Share of the masks that are equal, and that share a word with the reference; 0 if the answer is no mapping."""
    answer = parse_literal(prediction)
    if not isinstance(answer, dict) or not reference:
        return {"exact": 0.0, "partial": 0.0}
    exact = sum(mask in answer and answer[mask] == text for mask, text in reference.items())
    filled = {mask: value for mask, value in answer.items() if isinstance(value, str)}
    partial = sum(
        bool(set(text.split()) & set(filled.get(mask, "").split())) for mask, text in reference.items()
    )
    return {"exact": exact / len(reference), "partial": partial / len(reference)}


def rouge_recall(reference: str, prediction: str) -> dict[str, float]:
    """Recall of ROUGE-1, ROUGE-2 and ROUGE-L of the package `rouge`; 0 where it finds no word or gives up on a very long sentence.

    Raises:
        ValueError: the package is missing.
    """
    package = load_scorer("rouge", "rouge")
    scores = {}
    for name, metric in (("rouge1", "rouge-1"), ("rouge2", "rouge-2"), ("rougeL", "rouge-l")):
        try:
            with ThreadPoolExecutor(
                1
            ) as fresh:  # an empty stack: the caller's depth must not decide how far the package may recurse
                scorer = package.Rouge(metrics=[metric], stats=["r"])
                [found] = fresh.submit(scorer.get_scores, prediction, reference).result()
            scores[name] = min(1.0, max(0.0, float(found[metric]["r"])))
        except (ValueError, RecursionError, AssertionError):
            scores[name] = 0.0
    return scores


def bleu(reference: str, prediction: str, n: int) -> float:
    """BLEU of one sentence with all weight on n-grams of one length: brevity penalty times clipped precision; words between spaces.

    As nltk's `sentence_bleu` with weights (1, 0, 0, 0) or (0, 0, 0, 1), which gives 2e-308 instead of 0 where
    no n-gram matches.
    """
    wanted, given = reference.replace("\n", " ").split(), prediction.replace("\n", " ").split()
    counted = Counter(zip(*(given[start:] for start in range(n)), strict=False))
    allowed = Counter(zip(*(wanted[start:] for start in range(n)), strict=False))
    shared = (counted & allowed).total()
    if not shared:
        return 0.0
    brevity = 1.0 if len(given) > len(wanted) else math.exp(1 - len(wanted) / len(given))
    return min(1.0, brevity * shared / counted.total())


def meteor(reference: str, prediction: str) -> float:
    """METEOR on the sets of words, sorted, since the official order of a set changes from run to run.

    Raises:
        ValueError: nltk or WordNet is missing.
    """
    package = load_scorer("nltk.translate.meteor_score", "nltk")
    words: Sequence[list[str]] = [
        sorted(set(text.replace("\n", " ").split())) for text in (reference, prediction)
    ]
    try:
        return float(package.single_meteor_score(*words))
    except LookupError as error:
        raise ValueError(
            "loogle: METEOR needs WordNet; run python -m nltk.downloader wordnet, or set meteor=false"
        ) from error


def bertscore(reference: str, prediction: str) -> float:
    """Element 1 of what `bert_score.score([reference], [prediction], lang="EN")` gives, as officially called; 0 for empty text.

    Raises:
        ValueError: the package is missing.
    """
    if not prediction.strip():
        return 0.0
    package = load_scorer("bert_score", "bert-score", "pip install bert-score")
    return min(1.0, max(0.0, float(package.score([reference], [prediction], lang="EN")[1])))


def _masks(answer: Any, where: str) -> dict[str, str]:
    """The entities of a cloze, mask -> text.

    Raises:
        ValueError: they are not a mapping of texts.
    """
    masks = parse_literal(answer)
    if not isinstance(masks, dict) or not masks:
        raise ValueError(f"{where}: the answer of a cloze must be a mapping of masks to entities")
    return {str(mask): str(entity) for mask, entity in masks.items()}
