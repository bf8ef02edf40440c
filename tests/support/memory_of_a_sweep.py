"""Run as a script: one sweep of a few contexts in a fresh process; prints the memory planned and taken.

Usage, with the repository and tests/ on PYTHONPATH: memory_of_a_sweep.py TOKENS VARIANTS [PRESS,PRESS…
[smollm2]]
"""

import json
import sys
import time

import torch

from longpress import CompressingPipeline, Question, Request
from longpress.catalogue import presses
from longpress.models.host_memory import held_memory_bytes, peak_memory_bytes
from longpress.models.loading import load_model
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.variants import Variant
from tests.support.byte_tokenizer import VOCABULARY, byte_tokenizer
from tests.support.tiny_models import tiny_model

NAMES = ("snapkv", "knorm", "streaming_llm", "tova", "expected_attention", "keydiff", "adakv", "pyramidkv")


def tiny(tokens: int) -> tuple[CompressingPipeline, list[str]]:
    """A model of little width, and two contexts of bytes."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    model = tiny_model(
        "llama", vocab_size=VOCABULARY, max_position_embeddings=2 * tokens + 200, head_dim=16, **shape
    )
    text = bytes(
        torch.randint(97, 122, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    ).decode()
    return CompressingPipeline(model, byte_tokenizer(), options=PipelineOptions(prefill_chunk=4096)), [
        text,
        text[7:] + text[:7],
    ]


def embedded(tokens: int) -> tuple[CompressingPipeline, list[str]]:
    """The embedded model, and three contexts of numbers; a digit is a token."""
    loaded = load_model()
    digits = "".join(str(at) for at in range(tokens))[: tokens - 100]
    return CompressingPipeline(loaded.model, loaded.tokenizer, max_length=loaded.window), [
        digits,
        digits[1:],
        digits[2:],
    ]


def variants(names: list[str], n: int) -> list[Variant]:
    """The full cache, and presses at one ratio after the other."""
    catalogue = presses()
    made = {name: catalogue[name].load()() for name in names}
    ratios = [0.25, 0.5, 0.75, 0.9, 0.1, 0.2, 0.3, 0.4]
    return [
        Variant(catalogue["none"].load()()),
        *(Variant(made[name], ratio) for ratio in ratios for name in names),
    ][:n]


def main() -> None:
    """Sweep, measure, print."""
    tokens, n = int(sys.argv[1]), int(sys.argv[2])
    names = sys.argv[3].split(",") if len(sys.argv) > 3 else list(NAMES)
    pipeline, texts = (embedded if len(sys.argv) > 4 else tiny)(tokens)
    pipeline("warm " * 40, question="Why?", max_new_tokens=2, press=variants(names, len(names)))
    requests = [Request(text, [Question("Who?", max_new_tokens=8)], variants(names, n)) for text in texts]
    planned = max(
        (pipeline.plan(request, len(requests)) for request in requests), key=lambda plan: plan.total
    )
    at_start, started, answers = held_memory_bytes(), time.perf_counter(), 0
    for results in pipeline.stream(requests):
        for result in results:
            assert result.error is None, result.error
            answers += 1
    report = {
        "planned": planned.beside_weights,
        "at_start": at_start,
        "peak": peak_memory_bytes(),
        "answers": answers,
    }
    print(json.dumps(report | {"seconds": round(time.perf_counter() - started, 1), "plan": str(planned)}))


if __name__ == "__main__":
    main()
