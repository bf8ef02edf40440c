"""Metrics of SCBench: the official rule of each kind of turn first.

A repaired one stands beside it where the official rule misjudges.

Source: microsoft/MInference scbench/compute_scores.py and repo_qa_utils.py at fb56c91 (MIT).
Differs: no rule raises; repoqa takes the first function of a Python answer by `ast` and the whole code block
    of other languages, where the original parses all six languages with tree-sitter.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.text.choices import official_choice
from benchmarks.text.metrics import best, character_f1, load_scorer, rouge_lsum


class Rule(NamedTuple):
    """How a kind of turn is scored.

    Attributes:
        metric: the headline.
        score: the metrics, the headline first, of references, a prediction and a sample's metadata.
    """

    metric: str
    score: Callable[[Sequence[Any], str, Mapping[str, Any]], dict[str, float]]


def retrieval(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """kv, prefix_suffix: whether the answer contains the value."""
    return {
        "substring": float(any(str(reference) in prediction for reference in references if str(reference)))
    }


def tracing(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """vt: share of the variables contained, letters alike, rounded to two digits."""
    contained = [str(reference).lower() in prediction.lower() for reference in references if str(reference)]
    return {"string_match": round(sum(contained) / len(contained), 2) if contained else 0.0}


def english_answer(
    references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]
) -> dict[str, float]:
    """qa_eng: whether the answer contains the reference, letters alike; not an F1."""
    text = prediction.strip().upper()
    return {
        "substring": float(any(str(reference).upper() in text for reference in references if str(reference)))
    }


def chinese_answer(
    references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]
) -> dict[str, float]:
    """qa_chn: F1 of characters.

    `f1_official` compares with every single character of a reference that is a text and not a list.
    """
    texts = [str(reference) for reference in references]
    letters = "".join(texts) if metadata.get("label_is_text", True) else texts
    return {
        "f1": best(character_f1(prediction, text) for text in texts),
        "f1_official": best(character_f1(prediction, text) for text in letters),
    }


def many_shot(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """many_shot: officially, whether any character of the label occurs in the answer.

    Repaired: whether the first lone letter is that of the label.
    """
    texts = [str(reference) for reference in references]
    official = "".join(texts) if metadata.get("label_is_text", True) else texts
    wanted = {_letter(text) or text.strip() for text in texts}
    given = _letter(prediction) or prediction.strip()
    return {
        "accuracy": float(any(text.upper() in prediction.strip().upper() for text in official if text)),
        "accuracy_repaired": float(bool(given) and given in wanted),
    }


def choice(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """choice_eng: the rule of InfiniteBench on [letter, text].

    Repaired: the first letter A to D that stands alone, else the whole text.
    """
    labels, text = [str(reference) for reference in references], prediction.strip()
    letter = re.search(r"(?<![A-Za-z])[A-D](?![A-Za-z])", text)
    repaired = letter is not None and letter[0] in labels
    return {
        "accuracy": float(official_choice(text, labels)),
        "accuracy_repaired": float(repaired or (bool(text) and text in labels)),
    }


def math_find(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """mf: the first number in the answer, cut to an integer for integer labels; repaired: with its sign."""
    label = references[0] if references else None
    try:
        wanted = float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {"accuracy": 0.0, "accuracy_repaired": 0.0}
    is_whole_text = isinstance(label, str) and re.fullmatch(r"\s*-?[0-9]+\s*", label) is not None
    whole = isinstance(label, int) or is_whole_text

    def equal(pattern: str) -> float:
        number = re.search(pattern, prediction)
        if number is None or len(number[0]) > 300:
            return 0.0
        value = float(number[0])
        return float((int(value) if whole else value) == wanted)

    return {"accuracy": equal(r"\d+\.\d+|\d+"), "accuracy_repaired": equal(r"-?\d+\.\d+|-?\d+")}


def summary(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """summary: ROUGE-Lsum F without stemming."""
    return {"rougeLsum": rouge_lsum(prediction, map(str, references))}


def passkey(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """Needles among summaries: whether the first run of digits is the key."""
    digits = re.search(r"[0-9]+", prediction)
    return {
        "accuracy": float(digits is not None and digits[0] in [str(reference) for reference in references])
    }


def repository(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """repoqa: whether the code is most similar to the wanted function, among those asked about.

    These are the functions of its repository, and the BLEU must be at least 0.8. `similarity` is the BLEU
    (smoothing method 4) with the wanted function.
    """
    code = first_function(prediction, str(metadata.get("lang", "")))
    wanted = str(references[0]) if references else ""
    functions = list(metadata.get("functions", ())) or [{"name": metadata.get("name"), "needle": wanted}]
    similar = [similarity(code, str(function["needle"])) for function in functions]
    highest = max(similar)
    named = functions[similar.index(highest)]["name"] if highest > 0 else None
    passed = named is not None and named == metadata.get("name", named) and highest >= 0.8
    return {"pass@1": float(passed), "similarity": similarity(code, wanted)}


def first_function(answer: str, language: str) -> str:
    """The first function of the first code block that has one, in Python.

    In other languages, and where no block has one, the whole first block; the answer where there is no block.
    """
    fenced = r"^```(?:\w+)?[^\S\n]*\n(.*?)^```"
    blocks: list[str] = re.findall(fenced, answer.strip(), re.DOTALL | re.MULTILINE)
    for block in blocks if language == "python" else []:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nodes = list(ast.walk(ast.parse(block)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        if functions:
            return ast.get_source_segment(block, min(functions, key=lambda node: node.lineno)) or block
    return blocks[0] if blocks else answer.strip()


def similarity(code: str, function: str) -> float:
    """BLEU of two functions, words between white space, nltk's smoothing method 4.

    Raises:
        ValueError: the package nltk is missing.
    """
    bleu = load_scorer("nltk.translate.bleu_score", "nltk")
    words = [re.split(r"\s+", text.strip()) for text in (function, code)]
    if not code.strip() or not function.strip():
        return 0.0
    if words[0] == words[1]:
        return 1.0
    score = bleu.sentence_bleu([words[0]], words[1], smoothing_function=bleu.SmoothingFunction().method4)
    return min(1.0, max(0.0, float(score)))


def _letter(text: str) -> str | None:
    """The first capital that stands alone."""
    letter = re.search(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", text)
    return letter[0] if letter else None


RULES = {
    "scbench_kv": Rule("substring", retrieval),
    "scbench_prefix_suffix": Rule("substring", retrieval),
    "scbench_vt": Rule("string_match", tracing),
    "scbench_repoqa": Rule("pass@1", repository),
    "scbench_qa_eng": Rule("substring", english_answer),
    "scbench_qa_chn": Rule("f1", chinese_answer),
    "scbench_choice_eng": Rule("accuracy", choice),
    "scbench_many_shot": Rule("accuracy", many_shot),
    "scbench_summary": Rule("rougeLsum", summary),
    "scbench_mf": Rule("accuracy", math_find),
    "scbench_passkey": Rule("accuracy", passkey),
}
"""Kind of turn -> how it is scored."""
