"""Tiny models with every kind of rotary embedding that transformers has."""

from typing import Any

from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.support.byte_tokenizer import VOCABULARY
from tests.support.tiny_models import HEAD_DIM, HEADS, KV_HEADS, fill, tiny_model

WINDOW = 128
"""Tokens up to which frequencies are those of short texts, in the types where they depend on the length."""

BASE = {"rope_theta": 10000.0}
ORIGINAL = {"original_max_position_embeddings": WINDOW}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 32.0, **ORIGINAL},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "proportional": {"partial_rotary_factor": 0.5},
    "longrope": {
        "factor": 32.0,
        "short_factor": [1 + 0.1 * at for at in range(HEAD_DIM // 2)],
        "long_factor": [2.0 + at for at in range(HEAD_DIM // 2)],
        **ORIGINAL,
    },
}
if "proportional" not in ROPE_INIT_FUNCTIONS:
    del ROPES["proportional"]  # older transformers
LENGTH_DEPENDENT = ("dynamic", "longrope")


def rope_model(family: str, rope: str) -> PreTrainedModel:
    """A model of `tests.support.tiny_models`, or a PhiMoE, with a type of rotary embedding."""
    parameters = {**BASE, "rope_type": rope, **ROPES[rope]}
    own: dict[str, Any] = {"vocab_size": VOCABULARY, "rope_parameters": parameters}
    if family == "gemma3":
        local = {**BASE, "rope_type": "default"}
        own["rope_parameters"] = {"full_attention": parameters, "sliding_attention": local}
        own["sliding_window"] = 48
    if rope == "dynamic":
        own["max_position_embeddings"] = WINDOW
    if family in ("phi3", "phimoe"):
        own["original_max_position_embeddings"] = WINDOW
    if family == "phimoe":
        return _phimoe({**own, "rope_parameters": {**parameters, "short_mscale": 1.1, "long_mscale": 1.3}})
    return tiny_model(family, **own)


def _phimoe(own: dict[str, Any]) -> PreTrainedModel:
    from transformers import PhimoeConfig, PhimoeForCausalLM

    config = PhimoeConfig(
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        num_local_experts=4,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        max_position_embeddings=4096,
        sliding_window=None,
        attn_implementation="eager",
        **own,
    )
    model = PhimoeForCausalLM(config)
    fill(model)
    return model.float().eval()
