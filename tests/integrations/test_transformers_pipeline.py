"""`pipeline("longpress-text-generation", …)` of transformers, called as users of kvpress call theirs."""

from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

import longpress
from longpress import (
    AdaKVPress,
    CompressingPipeline,
    DecodingPress,
    ExpectedAttentionPress,
    KnormPress,
    NonePress,
    SnapKVPress,
)
from longpress.integrations import transformers_pipeline
from longpress.integrations.press_by_name import press_of
from longpress.integrations.transformers_pipeline import TASK, TASK_OF_KVPRESS

CONTEXT = "The quick brown fox jumps over the lazy dog. " * 5
QUESTION = "\nWho jumps?"


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> Any:
    longpress.register_pipelines()
    return pipeline(TASK_OF_KVPRESS, model=str(model_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def ours(pipe: Any) -> CompressingPipeline:
    return CompressingPipeline(pipe.model, pipe.tokenizer)


def test_it_answers_as_our_own_pipeline(pipe: Any, ours: CompressingPipeline) -> None:
    for press in (None, ExpectedAttentionPress(compression_ratio=0.5)):
        given = {"question": QUESTION, "press": press, "max_new_tokens": 8}
        assert pipe(CONTEXT, **given) == ours(CONTEXT, **given)
    several = {
        "questions": [QUESTION, "What?"],
        "press": KnormPress(0.5),
        "answer_prefix": "The",
        "max_new_tokens": 8,
    }
    assert pipe(CONTEXT, **several) == ours(CONTEXT, **several)


def test_a_press_by_its_name_is_that_press(pipe: Any) -> None:
    named = pipe(
        CONTEXT, question=QUESTION, press="snapkv", compression_ratio=0.5, press_options={"window_size": 8}
    )
    made = pipe(CONTEXT, question=QUESTION, press=SnapKVPress(0.5, window_size=8))
    assert named == made
    assert named.results[0].context.kept_fraction == pytest.approx(0.5, abs=0.01)


def test_a_list_of_contexts_gives_a_list_of_answers(pipe: Any, ours: CompressingPipeline) -> None:
    contexts = [CONTEXT, CONTEXT[20:], "The dog sleeps. " * 9]
    answers = pipe(contexts, question=QUESTION, press="knorm", compression_ratio=0.5, max_new_tokens=8)
    assert answers == [
        ours(one, question=QUESTION, press=KnormPress(0.5), max_new_tokens=8) for one in contexts
    ]


def test_without_a_question_the_context_is_continued(pipe: Any, ours: CompressingPipeline) -> None:
    assert pipe(CONTEXT, press=KnormPress(0.5)) == ours(CONTEXT, question="", press=KnormPress(0.5))


def test_what_is_given_with_the_model_is_the_default(pipe: Any, model_folder: Path) -> None:
    made = pipeline(
        TASK,
        model=pipe.model,
        tokenizer=pipe.tokenizer,
        press="knorm",
        compression_ratio=0.5,
        max_new_tokens=3,
    )
    given = {"question": QUESTION, "press": KnormPress(0.5)}
    assert made(CONTEXT, question=QUESTION) == pipe(CONTEXT, max_new_tokens=3, **given)
    assert made(CONTEXT, question=QUESTION, max_new_tokens=5) == pipe(CONTEXT, max_new_tokens=5, **given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"press": "snapkvv", "compression_ratio": 0.5}, "did you mean snapkv"),
        ({"press": "snapkv"}, "give compression_ratio too"),
        ({"press": "snapkv", "compression_ratio": 1.5}, "compression_ratio=1.5"),
        ({"press": "snapkv", "compression_ratio": 0.5, "press_options": {"size": 3}}, "no option size"),
        ({"press": object()}, "is no press of longpress"),
        ({"cache": None}, "takes no cache: the compressed cache is in"),
        ({"max_context_length": 10}, "called max_context_tokens here"),
        ({"enable_thinking": True}, "thinking"),
        ({"max_new_token": 10}, "did you mean max_new_tokens"),
        ({"questions": ["What?"]}, "either question= or questions="),
    ],
)
def test_what_cannot_be_done_is_a_sentence(pipe: Any, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pipe(CONTEXT, question=QUESTION, **given)


def test_our_own_pipeline_says_so_where_it_is_given_names_or_lists(ours: CompressingPipeline) -> None:
    with pytest.raises(ValueError, match=r"press='snapkv' is a name; give a press such as"):
        ours(CONTEXT, question=QUESTION, press="snapkv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one context as a text"):
        ours([CONTEXT], question=QUESTION)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is no press"):
        ours(CONTEXT, question=QUESTION, press=object())  # type: ignore[arg-type]


def test_options_of_a_press_inside_another() -> None:
    assert press_of(None) == press_of("none") == NonePress()
    assert press_of("adakv", 0.5) == AdaKVPress(SnapKVPress(), 0.5)
    options = {"press": "snapkv", "press.window_size": 8, "alpha_safeguard": 0.1}
    for given in (options, dict(reversed(options.items()))):
        made = press_of("adakv", 0.5, given)
        assert made == AdaKVPress(SnapKVPress(window_size=8), 0.5, alpha_safeguard=0.1)
    assert press_of({"name": "snapkv", "window_size": 8}, 0.25) == SnapKVPress(0.25, window_size=8)
    assert press_of(SnapKVPress(0.5), 0.25) == SnapKVPress(0.25)
    assert press_of("decoding") == DecodingPress()
    with pytest.raises(ValueError, match="give its name instead"):
        press_of(SnapKVPress(0.5), 0.25, {"window_size": 8})


def test_the_name_of_kvpress_is_left_to_kvpress(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = PIPELINE_REGISTRY.supported_tasks.copy()
    for task in (TASK, TASK_OF_KVPRESS):
        tasks.pop(task, None)
    monkeypatch.setattr(PIPELINE_REGISTRY, "supported_tasks", tasks)
    monkeypatch.setattr(transformers_pipeline, "find_spec", lambda name: object())
    longpress.register_pipelines()
    assert TASK in tasks and TASK_OF_KVPRESS not in tasks
