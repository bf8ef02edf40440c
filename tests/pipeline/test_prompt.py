"""Laws of the prompt, over kinds of tokenizers and of chat templates.

What the model reads is what the template makes of context and question; its ids are those of the whole prompt
wherever the tokenizer marks the beginning of a text.
"""

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.utils.chat_template_utils as clock

from longpress import CompressingPipeline, Question
from longpress.models.chat_template import ChatTemplate, turn_end
from longpress.models.loading import eos_token_ids
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.prompt import Prompt
from presses import KnormPress, NonePress
from tests.support.byte_tokenizer import TEMPLATE, VOCABULARY, byte_tokenizer
from tests.support.made_up_tokenizers import (
    INSTRUCTION,
    MARKING,
    SPECIAL,
    TOKENIZERS,
    prose,
    sentencepiece_bpe,
)
from tests.support.tiny_models import tiny_model

CONTEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "The quick brown fox jumps. ",
    "A fox,  and a dog.\n",
    "on the",
    "Ünï\tcode — 中文 (x",
)
QUESTIONS = (
    ("Who jumps over the dog?\n", " Answer:"),
    ("\nWhere does it jump?", ""),
    (" And the dog", "\nIt"),
    ("", "Answer: "),
)
TEMPLATES = {
    "plain": TEMPLATE,
    "stripped": "{% for m in messages %}<user>{{ m['content'] | trim }}{% endfor %}<assistant>",
    "stripped in front": "<user>{{ messages[0].content.lstrip() }}<assistant>",
    "in parts": "<user>{{ messages[0].content[0].text }}<assistant>",
    "in parts of several kinds": "<user>{% for p in messages[0].content if p.type == 'text' %}{{ p.text }}"
    "{% endfor %}<assistant>",
    "thinking": "<user>{{ messages[0].content }}<assistant>"
    "{% if not enable_thinking %}<think></think>{% endif %}",
    "a date": "Today: {{ strftime_now('%d %B %Y') }}\n<user>{{ messages[0].content }}<assistant>",
}
REFUSED = {
    "twice": "<user>{{ messages[0].content }}\nAgain: {{ messages[0].content }}<assistant>",
    "upper case": "<user>{{ messages[0].content | upper }}<assistant>",
    "other case, of plain words alone": "<user>{{ messages[0].content | capitalize }}<assistant>",
    "marks": "<user>{{ messages[0].content | e }}<assistant>",
    "as JSON": "<user>{{ messages[0].content | tojson }}<assistant>",
    "lines": "<user>{{ messages[0].content | replace('\n', ' ') }}<assistant>",
    "not at all": "<user><assistant>",
    "cut": "<user>{{ messages[0].content[:10] }}<assistant>",
    "an error": "<user>{{ messages[0].content }}{{ raise_exception('tools only') }}",
}


def with_template(template: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_question_that_is_seen_while_compressing_ends_as_it_does_behind_the_context() -> None:
    tokenizer = with_template(TEMPLATES["stripped"])
    pipeline = CompressingPipeline(tiny_model("llama", vocab_size=VOCABULARY), tokenizer)
    asked = [Question("Who jumps? \n", " It", max_new_tokens=2)]
    for query_aware in (False, True):
        [result] = pipeline(CONTEXTS[1], questions=asked, query_aware=query_aware).results
        read = result.context.tokens + result.answer.question_tokens
        assert read == len(tokenizer(rendered(tokenizer, CONTEXTS[1] + "Who jumps?") + " It").input_ids)


def rendered(tokenizer: Any, text: str) -> str:
    """One message, as transformers renders it: as text, or in parts where the template shows no text."""
    for content in (text, [{"type": "text", "text": text}]):
        shown = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        if text.strip() in shown:
            return shown
    raise AssertionError(shown)


# Templates.


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_what_the_template_makes_of_context_and_question(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = with_template(TEMPLATES[name])
    prompt = Prompt(tokenizer)

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Fixed":
            return cls(2024, 7, 26)

    monkeypatch.setattr(clock, "datetime", Fixed)
    for context in CONTEXTS:
        for question, prefix in QUESTIONS:
            ids = prompt.ids(context, [(question, prefix)])
            read = tokenizer.decode(ids.context + ids.questions[0])
            assert read == rendered(tokenizer, context + question) + prefix


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_changes_or_repeats_a_message_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=r"the chat template .*model\.chat_template=off"):
        Prompt(with_template(REFUSED[name]))
    assert Prompt(with_template(REFUSED[name]), chat_template=False).ids("a", [("b", "")]).joint == 0


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%Y-%m-%d, %d %b %Y (%A) %%d %-d') }}|{{ messages[0].content }}",
        "{% macro day() %}{{ strftime_now('%d') | int + 1 }}{% endmacro %}"
        "{{ day() }}|{{ messages[0].content }}",
        "\n  {% if strftime_now is defined %}{% set d = strftime_now('%d %b %Y') %}{% endif %}\n"
        "{{ d }}{{ messages[0].content }}",
    ],
)
def test_the_date_is_that_of_the_option_and_not_of_the_clock(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is that which transformers renders on that day."""

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Fixed":
            return cls(2025, 1, 9)

    monkeypatch.setattr(clock, "datetime", Fixed)
    tokenizer = with_template(template)
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "~"}], tokenize=False)
    monkeypatch.undo()
    prompt = Prompt(tokenizer, date="2025-01-09")
    assert f"{prompt.before}~{prompt.after}" == expected
    assert Prompt(tokenizer).before != prompt.before
    assert not prompt.template.is_first and not Prompt(tokenizer).template.is_first


def test_a_template_with_a_date_of_its_own_is_told_another_only_where_it_is_asked_for() -> None:
    own = "{% if date_string is not defined %}{% set date_string = 'no day' %}{% endif %}{{ date_string }}"
    tokenizer = with_template(own + "{{ messages[0].content }}")
    assert ChatTemplate.of(tokenizer).before == "no day" and ChatTemplate.of(tokenizer).is_first
    other = ChatTemplate.of(tokenizer, date="2025-01-09")
    assert other.before == "09 Jan 2025" and not other.is_first


# Tokenizers.


@pytest.mark.parametrize("name", MARKING)
@pytest.mark.parametrize("template", [None, INSTRUCTION])
def test_parts_together_are_the_whole_prompt(name: str, template: str | None) -> None:
    tokenizer = TOKENIZERS[name]()
    tokenizer.chat_template = template
    prompt = Prompt(tokenizer)
    assert prompt.marks_beginning
    for context in CONTEXTS:
        asked = [question for question in QUESTIONS if template or question[0]]
        ids = prompt.ids(context, asked)
        for (question, prefix), behind in zip(asked, ids.questions, strict=True):
            text = prompt.before + context + question + prompt.after + prefix
            whole = tokenizer(text, add_special_tokens=False).input_ids
            assert ids.context + behind == [*prompt.front, *whole]
            assert prompt.ids(context, [(question, prefix)]).joint <= ids.joint
        assert ids.joint == 0 or context.endswith(" ")


@pytest.mark.parametrize("name", sorted(set(TOKENIZERS) - set(MARKING)))
def test_parts_are_tokenised_apart_where_that_is_right(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    prompt = Prompt(tokenizer)
    assert not prompt.marks_beginning
    for context in CONTEXTS:
        ids = prompt.ids(context, QUESTIONS)
        for (question, prefix), behind in zip(QUESTIONS, ids.questions, strict=True):
            text = question + prompt.after + prefix
            assert behind == tokenizer(text, add_special_tokens=False).input_ids
            assert behind == prompt.question_ids(question, prefix)
        assert ids.context == prompt.context_ids(context) and ids.joint == 0


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_bare_prompt_has_in_front_what_the_tokenizer_puts_there_and_nothing_behind(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    prompt = Prompt(tokenizer, chat_template=False)
    for context in CONTEXTS:
        text = context + " Who?"
        ids = prompt.ids(context, [(" Who?", "")])
        read = tokenizer(text).input_ids[: len(ids.context) + len(ids.questions[0])]
        assert ids.context + ids.questions[0] == read
        assert prompt.prompt_tokens().before == len(prompt.front)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_where_tokens_stand_is_known_without_offsets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = Prompt(TOKENIZERS[name](), chat_template=False)
    for context in CONTEXTS:
        spans = prompt.token_spans(context)
        assert spans is not None and len(spans) == len(prompt.context_ids(context))
        at = context.index(context.split()[-1])
        found = prompt.evidence_tokens(context, [(at, len(context))])
        covered = [context[slice(*spans[position])] for position in found]
        assert context.split()[-1][-1:] in "".join(covered)
        monkeypatch.setattr(prompt, "_offsets", lambda text: None)
        without = prompt.token_spans(context)
        if without is not None and name != "words":
            ends = [last for _, last in spans]
            assert len(without) == len(spans) and [last for _, last in without][-1] == ends[-1]
        monkeypatch.undo()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer_answers_questions_with_evidence(name: str) -> None:
    """A diagnostic that cannot be had is absent; the answer is there."""
    tokenizer = TOKENIZERS[name]()
    pipeline = CompressingPipeline(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)
    context = "The quick brown fox jumps over the lazy dog. " * 3
    question = Question("Who jumps?", " It is", max_new_tokens=3, evidence=((4, 19),))
    for query_aware in (False, True):
        answers = pipeline(
            context,
            questions=[question],
            press=[(NonePress(), 0.0), (KnormPress(), 0.5)],
            query_aware=query_aware,
        )
        for result in answers.results:
            assert result.error is None and result.context.evidence_kept


@pytest.mark.parametrize("name", [*MARKING, "bytes behind two special tokens"])
def test_the_full_cache_answers_as_generate_does_to_the_whole_prompt(name: str) -> None:
    """Also where a token stands across the joint, and for several questions at once."""
    tokenizer = TOKENIZERS[name]()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    pipeline = CompressingPipeline(model, tokenizer)
    context = "The quick brown fox jumps over the lazy dog. "
    asked = [Question(text, " Answer:", max_new_tokens=4) for text in ("Who jumps?\n", "\nWhere?", " And")]
    results = pipeline(context, questions=asked, press=[(NonePress(), 0.0)]).results
    for question, result in zip(asked, results, strict=True):
        text = context + question.text + question.answer_prefix
        whole = [*Prompt(tokenizer).front, *tokenizer(text, add_special_tokens=False).input_ids]
        prompt = {"input_ids": torch.tensor([whole]), "attention_mask": torch.ones(1, len(whole))}
        written = model.generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
        expected = [token for token in written[0, len(whole) :].tolist() if token not in pipeline.eos_ids]
        assert result.answer.token_ids == expected
        assert result.context.tokens + result.answer.question_tokens == len(whole)
        assert result.joint_tokens == (1 if name.startswith("SentencePiece") else result.joint_tokens)


# Ends.


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}<user>{{ m.content }}<|im_end|>\n{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }} </s>{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("{% for m in messages %}### {{ m.role }}: {{ m.content }}\n### End <s>{% endfor %}", None),
        ("{% for m in messages %}{{ m.content[0].text }}<|im_end|>{% endfor %}", "<|im_end|>"),
        ("{% if messages[1] %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}", None),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_puts_there(template: str, end: str | None) -> None:
    tokenizer = sentencepiece_bpe()
    tokenizer.chat_template = template
    assert turn_end(tokenizer) == (None if end is None else SPECIAL.index(end))


def test_ends_are_those_of_the_checkpoint_of_the_template_and_of_the_option() -> None:
    tokenizer = sentencepiece_bpe()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    model = tiny_model("llama", vocab_size=900)
    model.generation_config.eos_token_id = [7, 2]
    assert eos_token_ids(model, tokenizer) == [2, 5, 7]
    options = PipelineOptions(end_tokens=("[INST]",))
    assert CompressingPipeline(model, tokenizer, options=options).eos_ids == [2, 3, 5, 7]
    with pytest.raises(ValueError, match=r"end_tokens: 'two words' is \d+ tokens of this model's tokenizer"):
        eos_token_ids(model, tokenizer, ["two words"])


def test_an_answer_ends_where_the_template_ends_a_turn() -> None:
    """The checkpoint names another end: without the template's, the model would talk on to the limit."""
    model, tokenizer = tiny_model("llama", vocab_size=VOCABULARY), byte_tokenizer()
    context, question = "The fox jumps over the dog. " * 3, Question("Who?", max_new_tokens=12)
    ids = CompressingPipeline(model, tokenizer)(context, questions=[question]).results[0].answer.token_ids
    end = next(token for token in ids[3:] if token not in ids[:3])
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(end)]})
    ending = PipelineOptions(end_tokens=(tokenizer.convert_ids_to_tokens(end),))
    answer = (
        CompressingPipeline(model, tokenizer, options=ending)(context, questions=[question]).results[0].answer
    )
    assert answer.token_ids == ids[: ids.index(end)] and answer.stop_reason == "eos"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_same_holds_for_sentencepiece_itself(kind: str, tmp_path: Path) -> None:
    """Python code around a model that SentencePiece has made, without offsets."""
    import sentencepiece
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(filter(str.strip, prose())),
        model_prefix=str(tmp_path / "pieces"),
        vocab_size=700,
        model_type=kind,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = SentencePieceBackend(vocab_file=str(tmp_path / "pieces.model"), legacy=True, **names)
    prompt = Prompt(tokenizer)
    assert prompt.marks_beginning and not tokenizer.is_fast
    for context in CONTEXTS:
        asked = [question for question in QUESTIONS if question[0]]
        ids = prompt.ids(context, asked)
        for (question, prefix), behind in zip(asked, ids.questions, strict=True):
            assert ids.context + behind == tokenizer(context + question + prefix).input_ids
    spans = prompt.token_spans(CONTEXTS[0])
    assert spans is not None and CONTEXTS[0][slice(*spans[-1])] == "."
