"""Presses that follow kvpress's interface, as its users write them, without kvpress."""

from dataclasses import dataclass

import torch

CALLS: list[int] = []
"""The layers whose scores `NormPress` was asked for, in order."""


class BasePress:
    def post_init_from_model(self, model):
        pass

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        raise NotImplementedError

    def forward_hook(self, module, input, kwargs, output):
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        assert kwargs["cache_position"][-1] + 1 == kwargs["hidden_states"].shape[1]
        layer.keys, layer.values = self.compress(
            module, kwargs["hidden_states"], layer.keys, layer.values, output[1], kwargs
        )
        return output

    def __call__(self, model):
        raise AssertionError("a shared prefill enters no other press")


@dataclass
class ScorerPress(BasePress):
    compression_ratio: float = 0.0

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        scores = self.score(module, hidden_states, keys, values, attentions, kwargs)
        best = scores.topk(max(1, int(keys.shape[2] * (1 - self.compression_ratio))), dim=-1).indices
        best = best[..., None].expand(-1, -1, -1, module.head_dim)
        return keys.gather(2, best), values.gather(2, best)


@dataclass
class NormPress(ScorerPress):
    power: float = 1.0

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        CALLS.append(module.layer_idx)
        module.note = "left behind"
        return -(keys.norm(dim=-1) ** self.power)


@dataclass
class RatioNormPress(NormPress):
    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return super().score(module, hidden_states, keys, values, attentions, kwargs) * (
            1 + self.compression_ratio
        )


@dataclass
class WrappedPress(BasePress):
    press: NormPress

    @property
    def compression_ratio(self):
        return self.press.compression_ratio

    @compression_ratio.setter
    def compression_ratio(self, ratio):
        self.press.compression_ratio = ratio

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        return self.press.compress(module, hidden_states, keys, values, attentions, kwargs)


@dataclass
class MaskingPress(BasePress):
    compression_ratio: float = 0.0

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        scores = -keys.norm(dim=-1)
        worst = (
            scores.flatten(1)
            .topk(int(scores[0].numel() * self.compression_ratio), largest=False)
            .indices.flatten()
        )
        module.masked_key_indices = (torch.zeros_like(worst), worst // keys.shape[2], worst % keys.shape[2])
        return keys, values


class OnlyScore:
    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return -keys.norm(dim=-1)
