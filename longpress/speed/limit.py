"""What the machine could do at best: `python -m longpress.speed.limit IN OUT`.

Measures the parts of the limit on the rows of a workload.

The limit of a sweep is one plain prefill of every row, the questions of all variants as one wide matrix
product, and as many tokens as were written, each at the best rate of any batch size. There are two: with the
matrix products that PyTorch chooses by itself, and with those that longpress chooses on this processor
(`kvcache.matmul`), where they are others. Neither attention to the context while decoding nor scoring is in
them, so no engine that writes those tokens step by step with the same products reaches its limit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from kvcache.attention import attending
from kvcache.matmul import fast_products
from kvcache.modules import cache_keyword
from longpress.pipeline.clock import now
from longpress.pipeline.prompt import Prompt
from longpress.speed.workload import Workload

BATCHES = (1, 8, 16, 32, 64, 128, 256)
"""Rows decoded together, of which the best counts."""

WIDTH = 1024
"""Tokens side by side in the question pass."""


def without_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """An attention function that reads nothing: what remains is the model's matrix products and norms."""
    return query.transpose(1, 2).contiguous(), None


AttentionInterface.register("without_attention", without_attention)


def plain_prefill(model: Any, ids: Tensor) -> float:
    """Seconds of one forward pass of transformers over (1, T) ids.

    It has its own cache and its fastest attention.
    """
    cache = DynamicCache(config=model.config)
    started = now()
    model.model(input_ids=ids, **{cache_keyword(model.model): cache})
    return now() - started


def pass_seconds(model: Any, rows: int, tokens: int, repeats: int = 3) -> float:
    """Best seconds of `repeats` passes over (rows, tokens) ids without attention.

    The logits of each row's last token are computed.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 1000, (rows, tokens), generator=generator).to(model.device)
    best = float("inf")
    for _ in range(repeats):
        started = now()
        model.lm_head(model.model(input_ids=ids, use_cache=False).last_hidden_state[:, -1])
        best = min(best, now() - started)
    return best


def parts(model: Any, ids: Sequence[Tensor]) -> dict[str, Any]:
    """The parts of the limit.

    Args:
        model: of transformers.
        ids: (1, T) of each row.

    Returns:
        `prefill`: seconds per row; `question_token` and `token`: seconds each; `batches`: rows -> seconds of
        a decode step.
    """
    plain_prefill(model, ids[0][:, :500])
    prefill = [plain_prefill(model, of_row) for of_row in ids]
    before = model.config._attn_implementation
    model.set_attn_implementation("without_attention")
    steps = {rows: pass_seconds(model, rows, 1) for rows in BATCHES}
    question = pass_seconds(model, 1, WIDTH) / WIDTH
    model.set_attn_implementation(before)
    return {
        "prefill": prefill,
        "question_token": question,
        "token": min(taken / rows for rows, taken in steps.items()),
        "batches": steps,
    }


def main() -> None:
    """Measure and write `parts` with PyTorch's products, and as `fast` with those of longpress."""
    source, target = map(Path, sys.argv[1:])
    workload = Workload.read(source)
    loaded = workload.model.load()
    model: Any = loaded.model
    prompt = Prompt(loaded.tokenizer, True)
    ids = [torch.tensor([prompt.context_ids(row.context)], device=model.device) for row in workload.rows]
    with torch.no_grad():
        measured = parts(model, ids)
        with attending(model), fast_products():
            measured["fast"] = parts(model, ids)
    target.write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
