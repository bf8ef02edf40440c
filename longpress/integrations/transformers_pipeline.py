"""`pipeline("longpress-text-generation", model=…)` of transformers: contexts, questions, and a press.

    import longpress
    from transformers import pipeline

    longpress.register_pipelines()
    pipe = pipeline("longpress-text-generation", model="Qwen/Qwen3-0.6B")
    pipe(context, question="Who?", press="snapkv", compression_ratio=0.5)["answer"]

It is called as kvpress's, under whose task name it is registered too where kvpress is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from inspect import signature
from typing import Any

from transformers import AutoModelForCausalLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from longpress.integrations.press_by_name import press_of
from longpress.pipeline.facade import CompressingPipeline
from longpress.pipeline.results import Answers

TASK = "longpress-text-generation"
"""The name of the task in transformers."""

TASK_OF_KVPRESS = "kv-press-text-generation"
"""The name under which users of kvpress know such a pipeline."""

OF_KVPRESS = {
    "cache": "the compressed cache is in the answer's `.results`",
    "max_context_length": "it is called max_context_tokens here",
    "enable_thinking": "thinking is off",
}
"""Arguments of kvpress's pipeline that this one does not take, and what there is instead."""


def register_pipelines() -> None:
    """Make transformers' `pipeline(task, model=…)` know our task.

    Its name is `longpress-text-generation`; where kvpress is not installed, `kv-press-text-generation` as
    well.
    """
    tasks = [TASK] if find_spec("kvpress") else [TASK, TASK_OF_KVPRESS]
    for task in tasks:
        if task not in PIPELINE_REGISTRY.get_supported_tasks():
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class=CompressingTextGeneration, pt_model=AutoModelForCausalLM
            )


class CompressingTextGeneration(Pipeline):  # type: ignore[misc]
    """Answers about contexts that a press compresses, as a pipeline of transformers.

    Attributes:
        compressing: the pipeline of longpress that does the work.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As transformers makes it; arguments of a call that are given here are its defaults.

        Raises:
            ValueError: a model that would be compressed wrongly.
        """
        super().__init__(*args, **kwargs)
        self.compressing = CompressingPipeline(self.model, self.tokenizer)

    def __call__(self, contexts: str | Sequence[str], **given: Any) -> Answers | list[Answers]:
        """Answer questions about one context, or about each of several.

        Args:
            contexts: a text, or a list of texts, each of which is asked the same.
            given: `question` or `questions`; `press`, as `press_of` takes it, with `compression_ratio` and
                `press_options`; all else as `CompressingPipeline` is called.

        Returns:
            `{"answer": text}` for a question, `{"answers": [text, …]}` for questions; of a list of contexts,
            a list of these.

        Raises:
            ValueError: an argument that does not exist, or anything that the pipeline or the press refuses.
        """
        asked = self._sanitize_parameters(**given)[1]
        arguments = {**self._forward_params, **asked}
        ratio, options = arguments.pop("compression_ratio", None), arguments.pop("press_options", None)
        arguments["press"] = press_of(arguments.get("press"), ratio, options)
        if arguments.get("question") is None and arguments.get("questions") is None:
            arguments["question"] = ""
        if isinstance(contexts, str):
            return self.compressing(contexts, **arguments)
        return [self.compressing(context, **arguments) for context in contexts]

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What is given to a call, or as its defaults: none for preprocessing, all for the call itself.

        Raises:
            ValueError: an argument that does not exist; says what there is instead.
        """
        known = [name for name in signature(CompressingPipeline.__call__).parameters if name != "self"]
        known = [*known[1:], "compression_ratio", "press_options"]  # the first is the context
        for name in given:
            if name in OF_KVPRESS:
                raise ValueError(f"{TASK} takes no {name}: {OF_KVPRESS[name]}")
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ValueError(f"{TASK} takes no {name}; {hint}it takes {', '.join(known)}")
        return {}, given, {}

    def preprocess(self, input_: Any, **parameters: Any) -> Any:
        """Never called: a context is read by `compressing`."""
        raise NotImplementedError

    def _forward(self, input_tensors: Any, **parameters: Any) -> Any:
        """Never called: a context is read by `compressing`."""
        raise NotImplementedError

    def postprocess(self, model_outputs: Any, **parameters: Any) -> Any:
        """Never called: a context is read by `compressing`."""
        raise NotImplementedError
