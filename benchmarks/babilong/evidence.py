"""Where the facts stand that answer a question of BABILong, whose rows do not name them."""

from __future__ import annotations

import re

from benchmarks.text.spans import Spans

OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
"""Each direction and the one it is called from the other side."""


def find_facts(task: str, text: str, question: str, target: str) -> Spans:
    """The sentence that answers a question of qa1, qa4 or qa5, if it is found; nothing for other tasks.

    These three tasks have one supporting fact each: the last sentence that says it.
    """
    patterns = {"qa1": _whereabouts, "qa4": _directions, "qa5": _giving}
    pattern = patterns[task](question, target) if task in patterns else ""
    spans = [match.span() for match in re.finditer(pattern, text)] if pattern else []
    return tuple(spans[-1:])


def _whereabouts(question: str, target: str) -> str:
    """Pattern of the sentence of qa1 that says where somebody went; empty for another question."""
    person = re.match(r"Where is (\w+)\?", question)
    return rf"\b{person[1]} (?:\w+ ){{1,2}}to the {re.escape(target)}\." if person else ""


def _directions(question: str, target: str) -> str:
    """Pattern of the sentence of qa4 that says on which side of a place another lies, from either of them."""
    parts = re.match(r"What is (?:the (\w+) (\w+) of|(\w+) of the (\w+))\?", question)
    if not parts:
        return ""
    one, side, other_side, other = parts.groups()
    left, side, right = (one, side, target) if one else (target, other_side, other)
    return rf"The (?:{left} is {side} of the {right}|{right} is {OPPOSITE.get(side, side)} of the {left})\."


def _giving(question: str, target: str) -> str:
    """Pattern of the sentence of qa5 that says who gives what to whom; empty for another question."""
    give = r"(?:gave|handed|passed)"
    forms = [
        (r"What did (\w+) give to (\w+)\?", r"{0} {give} the {target} to {1}\."),
        (r"Who did (\w+) give the (\w+) to\?", r"{0} {give} the {1} to {target}\."),
        (r"Who gave the (\w+) to (\w+)\?", r"{target} {give} the {0} to {1}\."),
        (r"Who gave the (\w+)\?", r"{target} {give} the {0} to \w+\."),
        (r"Who received the (\w+)\?", r"\w+ {give} the {0} to {target}\."),
    ]
    for form, sentence in forms:
        if parts := re.match(form, question):
            return rf"\b{sentence.format(*parts.groups(), give=give, target=re.escape(target))}"
    return ""
