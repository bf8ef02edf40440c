"""Real kvpress presses, unchanged, through the adapter: a sweep keeps what kvpress leaves in the cache.

Run where kvpress is installed: `PYTHONPATH=. python tests/support/peer/adapter.py`; prints a line per press,
exit code 1 if one differs.
"""

from __future__ import annotations

import copy
import sys

import kvpress
import torch
from transformers import DynamicCache

from kvcache.budget import Budget
from longpress.pipeline.sweep_observer import PrefilledContext, SweepObserver
from presses.from_kvpress import FromKVPress
from tests.support.tiny_models import tiny_ids, tiny_model

TOKENS, RATIOS = 203, (0.25, 0.5, 0.75)


def presses() -> list[object]:
    """Scores, wrappers, head-wise and layer-wise presses, ones that change entries, one of a user's own.

    Not LagKV, whose equal ranks leave to chance which entries stay.
    """

    class OwnPress(kvpress.ScorerPress):
        def score(self, module, hidden_states, keys, values, attentions, kwargs):
            return values.norm(dim=-1) - hidden_states.norm(dim=-1)[:, None]

    expected = kvpress.ExpectedAttentionPress
    return [
        kvpress.KnormPress(),
        kvpress.SnapKVPress(window_size=16),
        kvpress.TOVAPress(),
        kvpress.StreamingLLMPress(),
        kvpress.KeyDiffPress(),
        kvpress.CURPress(),
        expected(),
        kvpress.NonCausalAttnPress(chunk_size=64),
        kvpress.PyramidKVPress(window_size=16),
        kvpress.ChunkKVPress(press=kvpress.SnapKVPress(window_size=16), chunk_length=10),
        kvpress.ChunkPress(press=kvpress.KnormPress(), chunk_length=50),
        kvpress.BlockPress(press=kvpress.KeyDiffPress(), block_size=32),
        kvpress.CriticalKVPress(press=kvpress.KnormPress()),
        kvpress.AdaKVPress(press=expected()),
        kvpress.CriticalAdaKVPress(press=kvpress.KnormPress()),
        kvpress.KeyRerotationPress(press=kvpress.KnormPress()),
        OwnPress(),
    ]


def theirs(model, press, ratio: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per layer, kept keys and values of kvpress's own run, flattened over heads, without masked entries."""
    press = copy.deepcopy(press)
    press.compression_ratio = ratio
    cache = DynamicCache()
    with torch.no_grad(), press(model):
        model.model(input_ids=tiny_ids(TOKENS), past_key_values=cache)
    found = []
    for layer, stored in zip(model.model.layers, cache.layers, strict=True):
        masked = layer.self_attn.__dict__.pop("masked_key_indices", None)
        keep = torch.ones(stored.keys.shape[:3], dtype=torch.bool)
        if masked is not None:
            keep[tuple(masked)] = False
        found.append((stored.keys[keep], stored.values[keep]))
    return found


def ours(model, press) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The same per ratio, from one prefill through the adapter."""
    adapted = FromKVPress(press)
    observer = SweepObserver([adapted])
    with torch.no_grad(), observer(model):
        model.model(input_ids=tiny_ids(TOKENS), past_key_values=DynamicCache())
    prefilled = PrefilledContext(observer, 0.0)
    evidence = adapted.probe(prefilled.prefill, observer.evidence[adapted.identity()])
    found = []
    for ratio in RATIOS:
        layers = []
        for selection, stored in zip(
            adapted.select(evidence, Budget.of(ratio)), prefilled.prefill.cache.layers, strict=True
        ):
            keys, values = adapted.apply(stored.keys, stored.values, selection)
            real = torch.arange(keys.shape[2]) < selection.counts[..., None]
            layers.append((keys[real], values[real]))
        found.append(layers)
    return found


def rows(entries: torch.Tensor) -> torch.Tensor:
    """Entries (n, d) in an order that does not depend on how they were kept."""
    return entries[
        torch.argsort(entries.double() @ torch.linspace(1, 2, entries.shape[-1], dtype=torch.float64))
    ]


def main() -> int:
    """Compare every press at every ratio."""
    model, wrong = tiny_model("llama"), 0
    for press in presses():
        mine = ours(model, press)
        for ratio, layers in zip(RATIOS, mine, strict=True):
            pairs = zip(theirs(model, press, ratio), layers, strict=True)
            same = all(
                a.shape == b.shape and torch.allclose(rows(a), rows(b), atol=1e-6)
                for t, o in pairs
                for a, b in zip(t, o, strict=True)
            )
            wrong += not same
            print(f"{type(press).__name__:<24} {ratio:<5} {'equal' if same else 'DIFFERS'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
