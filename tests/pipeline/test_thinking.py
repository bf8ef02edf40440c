"""Thoughts: switched by the template, ended where they end, kept apart from the answer that is scored."""

from collections.abc import Mapping
from random import Random

import pytest
import torch

from longpress import CompressingPipeline, Question, Request
from longpress.pipeline import decode
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.prompt import Prompt
from longpress.pipeline.rows import Answer
from presses import KnormPress, NonePress
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.thinking_templates import HARMONY_TOKENS, TEMPLATES, thinking_tokenizer
from tests.support.tiny_models import tiny_model

CONTEXT = "The quick brown fox jumps over the lazy dog. "
EOS = "<eos>"


def pipeline_of(template: str, **options) -> CompressingPipeline:
    model = tiny_model("llama", vocab_size=VOCABULARY + len(HARMONY_TOKENS))
    return CompressingPipeline(
        model, thinking_tokenizer(template), options=PipelineOptions(temperature=1.0, **options)
    )


def written(answer: Answer) -> str:
    """All that was read behind the question."""
    return byte_tokenizer().decode(answer.token_ids)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch):
    """Answers of a model that says what a test chooses, by the seed of the question, and then ends."""

    def answers(
        template: str,
        scripts: Mapping[int, str],
        *,
        prefix: str = "",
        max_new_tokens: int = 400,
        stop: tuple[str, ...] = (),
        min_new_tokens: int = 0,
        **options,
    ) -> list[Answer]:
        pipeline = pipeline_of(template, **options)
        tokenizer = pipeline.tokenizer
        said: dict[Random, list[int]] = {}

        def drawn(logits, _, generators):
            tokens = []
            for generator in generators:
                if generator not in said:
                    first = generator.random()
                    seed = next(seed for seed in scripts if Random(seed).random() == first)
                    said[generator] = tokenizer(scripts[seed] + EOS, add_special_tokens=False).input_ids
                script = said[generator]
                tokens.append(script.pop(0) if script else tokenizer.eos_token_id)
            return torch.tensor(tokens)

        monkeypatch.setattr(decode, "drawn", drawn)
        questions = [
            Question("Who?", prefix, max_new_tokens, min_new_tokens, stop, seed=seed) for seed in scripts
        ]
        results = next(pipeline.stream([Request(CONTEXT, questions)]))
        for result in results:
            assert result.error is None, result.error
        return [result.answer for result in results]

    return answers


def test_what_follows_the_thought_is_the_answer(say) -> None:
    (answer,) = say("qwen", {0: "<think>\nMaybe \\boxed{1}.\n</think>\n\n\\boxed{2}"}, thinking="on")
    assert (answer.thought, answer.text) == ("Maybe \\boxed{1}.", "\\boxed{2}")
    assert (answer.thought_end, answer.stop_reason) == ("closed", "eos")
    assert answer.thinking_tokens == len("<think>\nMaybe \\boxed{1}.\n</think>")
    assert len(answer.token_ids) == len("<think>\nMaybe \\boxed{1}.\n</think>\n\n\\boxed{2}")


@pytest.mark.parametrize("template", ["opened", "deepseek"])
def test_a_thought_that_the_template_begins(say, template: str) -> None:
    (answer,) = say(template, {0: "Hm.</think>Yes."}, thinking="on")
    assert (answer.thought, answer.text, answer.thought_end) == ("Hm.", "Yes.", "closed")


def test_without_a_switch_thoughts_are_left_out_by_default(say) -> None:
    assert say("opened", {0: "Hm.</think>Yes."})[0].text == "Yes."
    thinks, answers = say("self", {0: "<think>Hm.</think>Yes.", 1: "Yes. <think>"})
    assert (thinks.text, thinks.thought) == ("Yes.", "Hm.")
    assert (answers.text, answers.thought, answers.thought_end) == ("Yes. <think>", "", "")


def test_the_final_channel_of_harmony_is_the_answer(say) -> None:
    spoken = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    direct = "<|channel|>final<|message|>No."
    thinks, answers = say("harmony", {0: spoken, 1: direct}, end_tokens=("<|return|>", "<|end|>"))
    assert thinks.text == "Yes."
    assert thinks.thought.startswith("Hm.")
    assert thinks.thought_end == "closed"
    assert (answers.text, answers.thought) == ("No.", "")
    # in the final channel the end of a message is the end of the answer
    assert say("harmony", {0: spoken + "<|end|>more"}, end_tokens=("<|end|>",))[0].text == "Yes."


def test_a_thought_is_closed_at_its_limit_and_the_answer_has_its_own(say) -> None:
    script = "<think>" + "so " * 100
    (answer,) = say("qwen", {0: script}, thinking="on", max_thinking_tokens=16, max_new_tokens=9)
    raw = written(answer)
    assert raw.startswith("<think>so so so \n</think>\n\n")
    assert (answer.thought, answer.thought_end, answer.thinking_tokens) == ("so so so", "limit", 16)
    # the model goes on with what it would have said; the answer is as long as it may be
    assert len(answer.text) <= 9
    assert answer.stop_reason == "length"
    assert len(answer.token_ids) == 16 + len("\n</think>\n\n") + 9


def test_without_a_limit_of_its_own_the_thought_shares_that_of_the_answer(say) -> None:
    open_, closed = say(
        "qwen",
        {0: "<think>" + "so " * 100, 1: "<think></think>" + "so " * 100},
        thinking="on",
        max_new_tokens=20,
    )
    assert (open_.text, open_.thought_end, open_.stop_reason) == ("", "open", "length")
    assert open_.thought == "so so so so s"
    assert (closed.text, closed.stop_reason) == ("so so", "length")
    assert len(open_.token_ids) == len(closed.token_ids) == 20


def test_an_answer_that_ends_within_its_thought_is_empty(say) -> None:
    (answer,) = say("qwen", {0: "<think>It is \\boxed{2}"}, thinking="on")
    assert (answer.text, answer.thought, answer.thought_end) == ("", "It is \\boxed{2}", "open")


def test_the_answer_prefix_is_read_behind_the_thought(say) -> None:
    prefix = "Answer:"
    for template in ("qwen", "opened"):
        prompt = Prompt(thinking_tokenizer(template), thinking="on")
        read = prompt.ids(CONTEXT, [("Who?", prefix)]).questions[0]
        assert prefix not in prompt.decode(read)
    unheard = "#" * len(prefix)  # what the model would write while the prefix is read
    (answer,) = say("opened", {0: f"Hm.</think>{unheard} It is 2."}, prefix=prefix, thinking="on")
    assert answer.text == "It is 2."
    assert written(answer) == "Hm.</think>Answer: It is 2."
    (answer,) = say(
        "opened", {0: "so " * 50}, prefix=prefix, thinking="on", max_thinking_tokens=6, max_new_tokens=4
    )
    raw = written(answer)
    assert raw.startswith("so so \n</think>\n\nAnswer:")
    # where nothing is thought, the prefix is where it always was
    off = Prompt(thinking_tokenizer("qwen"))
    assert off.decode(off.ids(CONTEXT, [("Who?", prefix)]).questions[0]).endswith(prefix)


def test_stop_strings_and_least_lengths_count_behind_the_thought(say) -> None:
    script = {0: "<think>one\ntwo</think>three\nfour"}
    (answer,) = say("qwen", script, thinking="on", stop=("\n",))
    assert (answer.text, answer.stop_reason) == ("three", "stop_string")
    (answer,) = say("qwen", script, thinking="on", stop=("\n",), min_new_tokens=8)
    assert answer.thought == "one\ntwo"


def test_an_answer_with_a_thought_does_not_depend_on_its_neighbours(say) -> None:
    scripts = {
        0: "<think>a</think>b",
        1: "<think>" + "so " * 30,
        2: "none at all",
        3: "<think>c</think>\n\nd",
    }
    options = {"thinking": "on", "max_thinking_tokens": 20, "max_new_tokens": 12, "prefix": "It is"}
    together = [(answer.thought, answer.text) for answer in say("qwen", scripts, **options)]
    for place, (seed, script) in enumerate(scripts.items()):
        (alone,) = say("qwen", {seed: script}, **options)
        assert (alone.thought, alone.text) == together[place]
    backwards = say("qwen", dict(reversed(scripts.items())), **options)
    assert [(answer.thought, answer.text) for answer in backwards] == together[::-1]
    assert [(one.thought, one.text) for one in say("qwen", scripts, max_batch_gb=1e-9, **options)] == together


@pytest.mark.parametrize(
    ("template", "thinking", "behind"),
    [
        ("qwen", "auto", "<assistant><think>\n\n</think>\n\n"),
        ("qwen", "off", "<assistant><think>\n\n</think>\n\n"),
        ("qwen", "on", "<assistant>"),
        ("deepseek", "auto", "<assistant></think>"),
        ("deepseek", "off", "<assistant></think>"),
        ("deepseek", "on", "<assistant><think>"),
        ("opened", "on", "<assistant><think>\n"),
        ("self", "on", "<assistant>"),
        ("self", "off", "<assistant>"),
        ("none", "off", "<assistant>"),
        ("none", "auto", "<assistant>"),
        ("harmony", "on", "<|end|><|start|>assistant"),
        ("harmony", "high", "<|end|><|start|>assistant"),
    ],
)
def test_the_template_s_own_switch_is_used(template: str, thinking: str, behind: str) -> None:
    prompt = Prompt(thinking_tokenizer(template), thinking=thinking)
    assert prompt.after == behind
    if template == "harmony":
        assert f"Reasoning: {'high' if thinking == 'high' else 'medium'}" in prompt.before


@pytest.mark.parametrize(
    ("template", "options", "said"),
    [
        ("none", {"thinking": "on"}, "no switch for thinking"),
        ("none", {"thinking": "low"}, "no reasoning_effort"),
        ("qwen", {"thinking": "high"}, "no reasoning_effort"),
        ("opened", {"thinking": "off"}, "always begins a thought"),
        ("harmony", {"thinking": "off"}, "always thinks"),
        ("qwen", {"max_thinking_tokens": 5}, "leads to no thought; set thinking=on"),
        ("none", {"max_thinking_tokens": 5}, "leads to no thought"),
        ("qwen", {"thinking": "on", "chat_template": False}, "no chat template around them"),
        ("qwen", {"system_prompt": "Be brief.", "chat_template": False}, "no chat template around them"),
    ],
)
def test_what_a_template_cannot_do_is_refused(template: str, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Prompt(thinking_tokenizer(template), **options)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_system_prompt_stands_in_front(template: str) -> None:
    prompt = Prompt(thinking_tokenizer(template), system_prompt="Be brief.")
    assert "Be brief." in prompt.before
    assert "Be brief." in str(prompt.beyond_first("c", "q"))


def test_a_template_that_leaves_the_system_prompt_out_is_refused() -> None:
    tokenizer = thinking_tokenizer("none")
    tokenizer.chat_template = "{{ messages[-1]['content'] }}<assistant>"
    with pytest.raises(ValueError, match="does not show the system prompt"):
        Prompt(tokenizer, system_prompt="Be brief.")


def test_room_is_counted_for_thought_and_answer() -> None:
    question = Question("Who?", "It is", max_new_tokens=10)
    plain = Prompt(thinking_tokenizer("qwen")).most_tokens(question)
    shared = Prompt(thinking_tokenizer("qwen"), thinking="on").most_tokens(question)
    own = Prompt(thinking_tokenizer("qwen"), thinking="on", max_thinking_tokens=100).most_tokens(question)
    assert (plain, shared, own) == (10, 15, 100 + len("\n</think>\n\n") + 15)

    pipeline = pipeline_of("qwen", thinking="on", max_thinking_tokens=5000)
    with pytest.raises(ValueError, match="model's window is 4096"):
        pipeline(CONTEXT, question=question)
    small = pipeline_of("qwen", thinking="on", max_thinking_tokens=100)
    large = pipeline_of("qwen", thinking="on", max_thinking_tokens=1000)
    request = Request(CONTEXT, [question], [(NonePress(), 0.0), (KnormPress(), 0.5)])
    assert large.plan(request).decoding > small.plan(request).decoding


def test_thinking_is_told_from_not_thinking_by_the_key() -> None:
    told = [
        Prompt(thinking_tokenizer("qwen"), **options).beyond_first("c", "q")
        for options in ({}, {"thinking": "on"}, {"thinking": "on", "max_thinking_tokens": 5})
    ]
    assert told[0] == {}
    assert told[1] != told[2]
    # thoughts are left out of answers that held them
    assert Prompt(thinking_tokenizer("opened")).beyond_first("c", "q")
