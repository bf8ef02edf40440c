"""Models of lm-evaluation-harness whose prompts a press compresses: `--model longpress`.

    import longpress.integrations.lm_eval_model
    arguments = "pretrained=…,press=snapkv,compression_ratio=0.5"
    lm_eval.simple_evaluate(model="longpress", model_args=arguments, …)

or, as a command, `longpress lm-eval run --model longpress --model_args …`. Of a prompt everything but its
last tokens is compressed; these are read on top of it, and what follows is written (`generate_until`) or
scored (`loglikelihood`: the context is compressed, its continuation is not).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from longpress.integrations.press_by_name import press_of
from longpress.models.configs import EMBEDDED, ModelConfig
from longpress.models.loading import load_model
from longpress.pipeline.facade import CompressingPipeline
from longpress.pipeline.prompt import Question

PRESS_OPTION = "press."
"""What a field of the press begins with among the model's arguments, as in `press.window_size=32`."""

GREEDY = {"do_sample": (False, None), "temperature": (0, 0.0, None), "num_beams": (1, None)}
"""Options of generation that change what is written, and the values that mean greedy decoding.

Of all other options, only the limit and the stop strings are followed.
"""

HARMLESS = ("attention_mask", "top_p", "top_k", "use_cache")
"""Options of generation that change nothing where decoding is greedy."""


@register_model("longpress")
class CompressingLM(HFLM):  # type: ignore[misc]
    """A model of transformers, loaded as `--model hf` loads it, behind contexts that a press compresses.

    Attributes:
        prompts: that writes and scores.
    """

    def __init__(
        self,
        pretrained: Any,
        press: Any = None,
        compression_ratio: float | None = None,
        last_tokens: int = 1,
        **given: Any,
    ) -> None:
        """A loaded model and its press.

        Args:
            pretrained: as of `--model hf`; also the name of an embedded model, such as "smollm2".
            press: name of a press, or a press; None: the full cache.
            compression_ratio: fraction of the entries that is removed.
            last_tokens: of a prompt, so many are read behind what is compressed: the length of the question,
                where it is not to be seen while compressing.
            given: fields of the press, as `press.window_size`; all else is given to `HFLM`.

        Raises:
            ValueError: no such press, field or model.
        """
        options = {
            name.removeprefix(PRESS_OPTION): given.pop(name)
            for name in list(given)
            if name.startswith(PRESS_OPTION)
        }
        chosen = press_of(press, compression_ratio, options)
        if isinstance(pretrained, str) and _is_ours(pretrained, given):
            loaded = load_model(
                ModelConfig(
                    path=pretrained,
                    gguf_file=given.pop("gguf_file", None),
                    dtype=given.pop("dtype", "auto"),
                    device=given.get("device") or "auto",
                )
            )
            pretrained, given = loaded.model, {"tokenizer": loaded.tokenizer, **given}
        super().__init__(pretrained, **given)
        if self.backend != "causal":
            raise ValueError(f"{pretrained} is no decoder-only model, and longpress compresses no other")
        pipeline = CompressingPipeline(self.model, self.tokenizer, max_length=self.max_length)
        self.prompts = pipeline.token_prompts(chosen, last_tokens)

    def tok_batch_encode(
        self, strings: Sequence[str], padding_side: str = "left", **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, T): each text is encoded alone, so that no text decides how another begins."""
        rows = [super(CompressingLM, self).tok_batch_encode([text], **options)[0][0] for text in strings]
        ids = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=self.tokenizer.pad_token_id, padding_side=padding_side
        )
        ones = [torch.ones_like(row) for row in rows]
        mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=padding_side)
        return ids, mask

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """(B, T + n): prompts (B, T), padded on the left, and what is written behind each.

        Raises:
            ValueError: anything but greedy decoding.
        """
        for name, value in options.items():
            if name not in HARMLESS and (name not in GREEDY or value not in GREEDY[name]):
                raise ValueError(
                    f"longpress decodes greedily in lm-eval, so {name}={value} cannot be followed; leave it "
                    "out of --gen_kwargs, or take another task"
                )
        mask = options["attention_mask"]
        prompts = [ids[own == 1].tolist() for ids, own in zip(context, mask, strict=True)]
        question = Question("", max_new_tokens=max_length - context.shape[1], stop=tuple(stop))
        written = [answer.token_ids for answer in self.prompts.answers(prompts, question)]
        longest, end = max(map(len, written)), self.eot_token_id
        padded = [[*ids, *[end] * (longest - len(ids))] for ids in written]
        return torch.cat((context, torch.tensor(padded, dtype=torch.long, device=context.device)), dim=1)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Per request (key, context ids, continuation ids) the log-probability, and whether it is greedy.

        A context of one token, as for an empty text, has nothing to compress, and is read as it is.
        """
        several = [at for at, (_, context, _) in enumerate(requests) if len(context) > 1]
        single = [at for at in range(len(requests)) if len(requests[at][1]) == 1]
        plain = super()._loglikelihood_tokens(
            [requests[at] for at in single], disable_tqdm=True, override_bs=override_bs
        )
        found: dict[int, tuple[float, bool]] = dict(zip(single, plain, strict=True))

        # Equal contexts side by side, the longest first: they are read once for all their continuations.
        several.sort(key=lambda at: (-len(requests[at][1]), requests[at][1]))
        size = override_bs or (1 if self.batch_size == "auto" else int(self.batch_size))
        bar = tqdm(total=len(several), disable=disable_tqdm or self.rank != 0, desc="loglikelihood requests")
        for batch in _batches(several, requests, size):
            kept = [self._cut(requests[at][1], requests[at][2]) for at in batch]
            likelihoods = self.prompts.likelihoods(kept, [requests[at][2] for at in batch])
            found |= {at: tuple(one) for at, one in zip(batch, likelihoods, strict=True)}  # type: ignore[misc]
            bar.update(len(batch))
        bar.close()
        return [found[at] for at in range(len(requests))]

    def _cut(self, context: list[int], continuation: list[int]) -> list[int]:
        """The end of a context that is too long for the model with its continuation, as lm-eval cuts it."""
        return context[-max(2, self.max_length + 1 - len(continuation)) :]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "loglikelihood_rolling scores whole texts, in which there is no context to compress; use "
            "--model hf for such tasks"
        )

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refused, where it is to store answers: lm-eval's cache tells neither models nor presses apart.

        Raises:
            ValueError: `--use_cache` is given.
        """
        if getattr(cache_hook, "dbdict", None) is not None:
            raise ValueError(
                "--use_cache finds answers by their prompts alone, so those of another press would be taken; "
                "leave it out"
            )
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results: also the press, and what it kept of the contexts."""
        press, fractions = self.prompts.variant.press, self.prompts.kept_fractions
        return {
            **super().get_model_info(),
            "press": press.name,
            "press_parameters": press.parameters(),
            "compression_ratio": press.compression_ratio,
            "last_tokens": self.prompts.last_tokens,
            "kept_fraction": fmean(fractions) if fractions else None,
        }


def _is_ours(pretrained: str, given: Mapping[str, Any]) -> bool:
    """Whether longpress loads a model itself: one inside a package, or of a GGUF file."""
    return pretrained in EMBEDDED or pretrained.endswith(".gguf") or given.get("gguf_file") is not None


def _batches(
    order: Sequence[int], requests: Sequence[tuple[Any, list[int], list[int]]], size: int
) -> list[list[int]]:
    """Requests in batches of `size`; those of one context are not parted, so that it is read once."""
    batches: list[list[int]] = []
    for at in order:
        same = bool(batches) and requests[batches[-1][-1]][1] == requests[at][1]
        if batches and (same or len(batches[-1]) < size):
            batches[-1].append(at)
        else:
            batches.append([at])
    return batches
