"""Metrics of SCBench: the official rule of each kind of turn first, a repaired one beside it where the official rule misjudges.

Source: microsoft/MInference scbench/compute_scores.py and repo_qa_utils.py at fb56c91 (MIT).
Differs: no rule raises; repoqa takes the first function of a Python answer by `ast` and the whole code block
    of other languages, where the original parses all six languages with tree-sitter.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.metrics import best, character_f1, load_scorer, rouge_lsum

Rule = Callable[[Sequence[Any], str, Mapping[str, Any]], dict[str, float]]


def retrieval(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """kv, prefix_suffix: whether the answer contains the value."""
    return {
        "substring": float(any(str(reference) in prediction for reference in references if str(reference)))
    }


def tracing(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """vt: share of the variables contained, letters alike, rounded to two digits."""
    found = [str(reference).lower() in prediction.lower() for reference in references if str(reference)]
    return {"string_match": round(sum(found) / len(found), 2) if found else 0.0}


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
    """qa_chn: F1 of characters; `f1_official` compares with every single character of a reference that is a text and not a list."""
    texts = [str(reference) for reference in references]
    letters = "".join(texts) if metadata.get("label_is_text", True) else texts
    return {
        "f1": best(character_f1(prediction, text) for text in texts),
        "f1_official": best(character_f1(prediction, text) for text in letters),
    }


def many_shot(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """many_shot: officially any character of the label occurs in the answer; repaired: the first lone letter is that of the label."""
    texts = [str(reference) for reference in references]
    official = "".join(texts) if metadata.get("label_is_text", True) else texts
    wanted, given = (
        {_letter(text) or text.strip() for text in texts},
        _letter(prediction) or prediction.strip(),
    )
    return {
        "accuracy": float(any(text.upper() in prediction.strip().upper() for text in official if text)),
        "accuracy_repaired": float(bool(given) and given in wanted),
    }


def choice(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """choice_eng: the rule of InfiniteBench on [letter, text]; repaired: the first letter A to D that stands alone, else the whole text."""
    labels, text = [str(reference) for reference in references], prediction.strip()
    letter = re.search(r"(?<![A-Za-z])[A-D](?![A-Za-z])", text)
    repaired = letter is not None and letter[0] in labels
    return {
        "accuracy": float(bool(text) and _official_choice(labels, text)),
        "accuracy_repaired": float(repaired or (bool(text) and text in labels)),
    }


def math_find(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """mf: the first number in the answer, cut to an integer for integer labels; repaired: with its sign."""
    label = references[0] if references else None
    try:
        wanted = float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {"accuracy": 0.0, "accuracy_repaired": 0.0}
    whole = isinstance(label, int) or (
        isinstance(label, str) and re.fullmatch(r"\s*-?[0-9]+\s*", label) is not None
    )

    def equal(pattern: str) -> float:
        found = re.search(pattern, prediction)
        if found is None or len(found[0]) > 300:
            return 0.0
        value = float(found[0])
        return float((int(value) if whole else value) == wanted)

    return {"accuracy": equal(r"\d+\.\d+|\d+"), "accuracy_repaired": equal(r"-?\d+\.\d+|-?\d+")}


def summary(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """summary: ROUGE-Lsum F without stemming."""
    return {"rougeLsum": min(1.0, rouge_lsum(prediction, [str(reference) for reference in references]))}


def passkey(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """Needles among summaries: whether the first run of digits is the key."""
    digits = re.search(r"[0-9]+", prediction)
    return {
        "accuracy": float(digits is not None and digits[0] in [str(reference) for reference in references])
    }


def repository(references: Sequence[Any], prediction: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """repoqa: whether the code is most similar to the wanted function among those asked about in its repository, with BLEU of at least 0.8.

    `similarity` is the BLEU (smoothing method 4) with the wanted function.
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
    """The first function of an answer's first code block, of Python; else the whole first block, or the answer where there is none."""
    blocks: list[str] = re.findall(
        r"^```(?:\w+)?[^\S\n]*\n(.*?)^```", answer.strip(), re.DOTALL | re.MULTILINE
    )
    for block in blocks if language == "python" else []:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nodes = [
                    node
                    for node in ast.walk(ast.parse(block))
                    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                ]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if nodes:
            return ast.get_source_segment(block, min(nodes, key=lambda node: node.lineno)) or block
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
    return min(
        1.0,
        max(
            0.0,
            float(
                bleu.sentence_bleu([words[0]], words[1], smoothing_function=bleu.SmoothingFunction().method4)
            ),
        ),
    )


def _official_choice(labels: Sequence[str], text: str) -> bool:
    if text[0] in "ABCD":
        return text[0] in labels
    if text in labels:
        return True
    for mark in ("\n", '"', "'", ".", ",", "?", "!", "{", "}"):
        text = text.replace(mark, " ")
    text = re.sub(" +", " ", text)
    for prefix in ("answer is:", "answer:", "answer is", "option is"):
        if (place := text.find(prefix)) >= 0:
            rest = text[place + len(prefix) + 1 :]
            return any(rest.startswith(label) for label in labels)
    words = [word for word in text.split() if word in "ABCD"]  # "AB" and "BCD" are found too, as officially
    return bool(words) and words[0] in labels


def _letter(text: str) -> str | None:
    found = re.search(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", text)
    return found[0] if found else None


RULES: dict[str, tuple[str, Rule]] = {
    "scbench_kv": ("substring", retrieval),
    "scbench_prefix_suffix": ("substring", retrieval),
    "scbench_vt": ("string_match", tracing),
    "scbench_repoqa": ("pass@1", repository),
    "scbench_qa_eng": ("substring", english_answer),
    "scbench_qa_chn": ("f1", chinese_answer),
    "scbench_choice_eng": ("accuracy", choice),
    "scbench_many_shot": ("accuracy", many_shot),
    "scbench_summary": ("rougeLsum", summary),
    "scbench_mf": ("accuracy", math_find),
    "scbench_passkey": ("accuracy", passkey),
}
"""Kind of turn -> name of its headline metric, and the rule."""
