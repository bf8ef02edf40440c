"""What a tokenizer's chat template puts around a user's message, and how it ends an assistant's turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date as calendar_date
from typing import Any

FIRST_DATE = "2024-07-26"
"""The date that templates print unless another is asked for: that of Llama 3.1's template itself."""

FIRST_SWITCHES: Mapping[str, Any] = {"enable_thinking": False}
"""The switches that templates are given unless others are asked for."""

OTHER_DATE = "2001-02-03"
"""A date that has nothing in common with `FIRST_DATE`: a template that prints the date shows both apart."""

MESSAGE = "~~~~~longpress context~~~~~"
"""The message that is rendered to see what stands around it: a text that no template contains."""

UNEVEN = " \n\t<i>A  b</i> \"c\" 'd' & {e} \u00dcn\u00ef\n\n- f\\g \n\t "
"""A message with what a template may change: white space around and inside, upper and lower case, marks."""

TURN = "~~~~~longpress answer~~~~~"
"""The assistant's turn that is rendered to see what ends it."""

DIRECTIVES = "aAbBcdDeFGgHIjklmMnprRSsTtuUVwWxXyYzZ"
"""Letters that may stand behind "%" in the format of a date."""


@dataclass(frozen=True)
class ChatTemplate:
    """The text that a chat template puts around a user's message.

    Attributes:
        before: in front of the message.
        after: behind it, up to where the assistant's answer begins.
        strips_start: whether white space at the start of the message is removed.
        strips_end: whether white space at its end is removed.
        in_parts: whether the message is given as a list of parts, since the template reads no plain text.
        is_first: whether the first version of longpress rendered the same text on every day.
    """

    before: str
    after: str
    strips_start: bool
    strips_end: bool
    in_parts: bool
    is_first: bool

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        *,
        date: str = FIRST_DATE,
        switches: Mapping[str, Any] = FIRST_SWITCHES,
        system: str = "",
    ) -> ChatTemplate:
        """Render the template of a tokenizer that has one around a message, and compare what comes out.

        Args:
            tokenizer: of transformers.
            date: that templates print as today's, as YYYY-MM-DD.
            switches: of the template itself.
            system: the system message in front of the user's; empty for none.

        Raises:
            ValueError: the template cannot be rendered, leaves the system message out, shows the user's more
                than once, or changes it in another way than by removing white space around it.
        """
        # As text or, where that is not shown, as a list of parts.
        in_parts = False
        try:
            text = _around(tokenizer, MESSAGE, in_parts, date, switches, system)
        except ValueError:
            text = ""
        if MESSAGE not in text:
            in_parts = True
            text = _around(tokenizer, MESSAGE, in_parts, date, switches, system)
        shown = text.count(MESSAGE)
        if shown > 1:
            raise ValueError(
                f"the chat template shows a message {shown} times, so that the model would read the context "
                f"again after it was compressed; {_WITHOUT}"
            )
        if not shown:
            raise ValueError(f"the chat template does not show a message as it was written; {_WITHOUT}")
        before, after = text.split(MESSAGE)
        if system.strip() not in before + after:
            raise ValueError(
                "the chat template does not show the system prompt as it was written; leave system_prompt out"
            )

        # White space around a message may be removed; anything else must stay as it was written.
        uneven = _around(tokenizer, UNEVEN, in_parts, date, switches, system)
        kept = {
            before + _stripped(UNEVEN, start, end) + after: (start, end)
            for start in (False, True)
            for end in (False, True)
        }
        if uneven not in kept:
            raise ValueError(
                "the chat template changes the text of a message (its case, marks or white space), so that "
                f"the context would not be what the benchmark wrote; {_WITHOUT}"
            )

        # What the first version rendered: the same switches, and no date.
        first = _around(tokenizer, MESSAGE, in_parts, FIRST_DATE, FIRST_SWITCHES)
        is_first = not in_parts and text == first
        if _asks_for_date(tokenizer):
            is_first &= first == _around(tokenizer, MESSAGE, in_parts, OTHER_DATE, FIRST_SWITCHES)
        return cls(before, after, *kept[uneven], in_parts, is_first)

    def stripped(self, context: str, question: str) -> tuple[str, str]:
        """Context and question as the template shows them: perhaps without white space around both."""
        return (
            _stripped(context, self.strips_start, False),
            _stripped(question, False, self.strips_end),
        )


_WITHOUT = "use model.chat_template=off, or a tokenizer with another template"
"""What to do with a template that cannot be used."""


def turn_end(tokenizer: Any) -> int | None:
    """The token that ends an assistant's turn in the chat template; None without template or such a token.

    It is the first special or added token behind the turn, where white space alone stands in front of it.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    messages = [("user", MESSAGE), ("assistant", TURN)]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    for in_parts in (False, True):
        try:
            text = render(tokenizer, messages, in_parts=in_parts, generation_prompt=False)
        except Exception:  # a template may take no such conversation, and then says nothing of its end
            continue
        if TURN in text:
            behind = text.rpartition(TURN)[2]
            ids: list[int] = tokenizer(behind, add_special_tokens=False, verbose=False).input_ids
            at = next((at for at, token in enumerate(ids) if token in special), len(ids))
            if at < len(ids) and not tokenizer.decode(ids[:at]).strip():
                return ids[at]
    return None


def render(
    tokenizer: Any,
    messages: Sequence[tuple[str, str]],
    *,
    in_parts: bool = False,
    generation_prompt: bool = True,
    date: str = FIRST_DATE,
    switches: Mapping[str, Any] = FIRST_SWITCHES,
) -> str:
    """The text of a conversation, on a fixed day.

    Args:
        tokenizer: with a chat template.
        messages: role and text of each.
        in_parts: whether texts are given as lists of parts.
        generation_prompt: whether the beginning of an assistant's turn follows.
        date: that the template prints as today's, as YYYY-MM-DD; unless it is `FIRST_DATE`, templates that
            have a date of their own are told it too.
        switches: of the template itself.
    """
    options = dict(switches)
    day = calendar_date.fromisoformat(date)
    if date != FIRST_DATE:
        options["date_string"] = day.strftime("%d %b %Y")
    if _asks_for_date(tokenizer):
        options["chat_template"] = _date_macro(day) + source(tokenizer)
    text: str = tokenizer.apply_chat_template(
        [
            {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
            for role, text in messages
        ],
        tokenize=False,
        add_generation_prompt=generation_prompt,
        **options,
    )
    return text


def _around(
    tokenizer: Any,
    message: str,
    in_parts: bool,
    date: str,
    switches: Mapping[str, Any],
    system: str = "",
) -> str:
    """One user message, rendered, behind a system message if there is one.

    Raises:
        ValueError: the template cannot be rendered.
    """
    try:
        messages = [("system", system)] if system else []
        messages.append(("user", message))
        return render(tokenizer, messages, in_parts=in_parts, date=date, switches=switches)
    except Exception as error:  # of Jinja, or whatever the template raises
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(f"the chat template cannot be rendered ({reason}); {_WITHOUT}") from error


def _stripped(text: str, start: bool, end: bool) -> str:
    text = text.lstrip() if start else text
    return text.rstrip() if end else text


def source(tokenizer: Any) -> str:
    """The text of the chat template, of several the one for messages without tools."""
    template = tokenizer.chat_template
    return str(template if isinstance(template, str) else tokenizer.get_chat_template())


def _asks_for_date(tokenizer: Any) -> bool:
    return "strftime_now" in source(tokenizer)


def _date_macro(day: calendar_date) -> str:
    """The beginning of a template in which `strftime_now` gives a fixed day, at midnight.

    It takes the place of transformers' own function, which reads the clock and cannot be replaced by an
    argument.
    """
    replaced = "".join(
        f" | replace('%{flag}{letter}', '{day.strftime(f'%{flag}{letter}')}')"
        for letter in DIRECTIVES
        for flag in ("", "-")
    )
    return (
        "{%- macro strftime_now(format) -%}{{- format | replace('%%', '\\x00')"
        + replaced
        + " | replace('\\x00', '%') -}}{%- endmacro %}\n"
    )
