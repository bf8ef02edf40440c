"""The model that a GGUF file describes: configuration and weights as transformers has them.

Everything that the file states of its model is applied, or refused in a sentence; nothing is passed over.
Four families are read here, the others by transformers, after which `settle` compares what it made with the
file.
Source: llama.cpp, which writes and reads these files (gguf-py/gguf/constants.py, convert_hf_to_gguf.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma3TextConfig, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from longpress.models.gguf_file import GGUFFile

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of modules in GGUF -> in transformers' Llama."""

_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
"""Names of the norms of queries and keys in GGUF -> in transformers."""

_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are no weights: what each rotary frequency is divided by."""

_ENDS = ("eos", "eot", "eom")
"""Special tokens of GGUF that end an answer: of the text, of the turn, of a message to a tool."""


@dataclass(frozen=True)
class Family:
    """What tells families apart that are read here.

    Attributes:
        config: class of transformers.
        names: of modules in GGUF -> in transformers.
        pairs: whether rows of queries and keys lie in rotary pairs, side by side.
        norm_offset: what the file adds to the weights of norms.
    """

    config: type[Any]
    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_NAMES))
    pairs: bool = False
    norm_offset: float = 0.0


FAMILIES = {
    "llama": Family(LlamaConfig, pairs=True),
    "qwen2": Family(Qwen2Config),
    "qwen3": Family(Qwen3Config, {**_NAMES, **_HEAD_NORMS}),
    "gemma3": Family(
        Gemma3TextConfig,
        {
            **_NAMES,
            **_HEAD_NORMS,
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        norm_offset=1.0,
    ),
}
"""`general.architecture` of the files that are read here."""

_EXACT = {
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("v_head_dim", "head_dim"),
    "vocab_size": ("vocab_size",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok", "top_k_experts"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "ssm.conv_kernel": ("linear_conv_kernel_dim",),
    "ssm.state_size": ("linear_key_head_dim",),
    "ssm.group_count": ("linear_num_key_heads",),
    "ssm.time_step_rank": ("linear_num_value_heads",),
    "full_attention_interval": ("full_attention_interval",),
    "shortconv.l_cache": ("conv_L_cache",),
}
"""Sizes -> attributes of transformers' configurations, the first that is there; they must agree."""

_SETTABLE = {
    "context_length": ("max_position_embeddings",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "norm_epsilon", "layer_norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "residual_scale": ("residual_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "attention.scale": ("attention_multiplier",),
}
"""Other properties -> attributes, likewise; where they differ the file's value counts."""

_NEEDED = (
    "embedding_length",
    "feed_forward_length",
    "block_count",
    "attention.head_count",
    "context_length",
)
"""Whole numbers without which a file is not read here."""

_ROPE = (
    "freq_base",
    "freq_base_swa",
    "dimension_count",
    "scale_linear",
    "scaling.type",
    "scaling.factor",
    "scaling.original_context_length",
    "scaling.attn_factor",
    "scaling.yarn_beta_fast",
    "scaling.yarn_beta_slow",
    "scaling.finetuned",
)
"""Keys below `rope.` that are applied (the last one tells nothing about the computation)."""

_SAYS_NOTHING = {
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.layer_norm_epsilon": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "nextn_predict_layers": (0,),
}
"""Keys -> values that change nothing."""


def is_own(gguf: GGUFFile) -> bool:
    """Whether the model is read here, and not by transformers."""
    return gguf.architecture in FAMILIES and not gguf.stated.get("expert_count")


def config_of(gguf: GGUFFile) -> PretrainedConfig:
    """The architecture as transformers describes it, of a file for which `is_own` holds.

    Raises:
        ValueError: the file lacks a property, or states one that cannot be applied.
    """
    stated = _plain(gguf)
    for key in _NEEDED:
        if not isinstance(stated.get(key), int):
            raise _refusal(gguf, key, stated.get(key))
    rows = gguf.tensors["token_embd.weight"].shape[0]
    if stated.get("vocab_size", rows) != rows:
        raise _refusal(gguf, "vocab_size", stated["vocab_size"])
    heads, size = stated["attention.head_count"], head_size(stated)
    if stated.get("attention.value_length", size) != size:
        raise _refusal(gguf, "attention.value_length", stated["attention.value_length"])
    if stated.get("rope.dimension_count", size) != size:
        raise _refusal(gguf, "rope.dimension_count", stated["rope.dimension_count"])

    # Everything that is applied below; what else there is would be lost.
    gemma = gguf.architecture == "gemma3"
    applied = {*_NEEDED, *(f"rope.{key}" for key in _ROPE), "vocab_size", "attention.head_count_kv"}
    applied |= {"attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon"}
    if gemma:
        applied |= {"attention.sliding_window", "attention.sliding_window_pattern"}
        applied |= {"attn_logit_softcapping", "final_logit_softcapping"}
    else:
        applied -= {"rope.freq_base_swa"}
    for key, value in stated.items():
        window_is_whole = key == "attention.sliding_window" and value >= stated["context_length"]
        differs = isinstance(value, list) and key != "attention.sliding_window_pattern"  # from layer to layer
        known = key in applied or window_is_whole or value in _SAYS_NOTHING.get(key, ())
        if differs or not known:
            raise _refusal(gguf, key, value)

    rope = {"rope_theta": float(stated.get("rope.freq_base", 10000.0)), **scaling_of(gguf, size // 2)}
    options: dict[str, Any] = _of_gemma3(gguf, stated, rope) if gemma else {"rope_parameters": rope}
    biased = {
        name.split(".")[2] for name in gguf.tensors if name.startswith("blk.") and name.endswith(".bias")
    }
    if gguf.architecture != "qwen2":  # which has its biases always
        options["attention_bias"] = "attn_q" in biased
    if gguf.architecture == "llama":
        options["mlp_bias"] = "ffn_up" in biased
    return FAMILIES[gguf.architecture].config(
        vocab_size=rows,
        hidden_size=stated["embedding_length"],
        intermediate_size=stated["feed_forward_length"],
        num_hidden_layers=stated["block_count"],
        num_attention_heads=heads,
        num_key_value_heads=stated.get("attention.head_count_kv", heads),
        head_dim=size,
        max_position_embeddings=stated["context_length"],
        rms_norm_eps=stated.get("attention.layer_norm_rms_epsilon", 1e-6),
        tie_word_embeddings="output.weight" not in gguf.tensors,
        **special_ids(gguf),
        **options,
    )


def weights_of(gguf: GGUFFile, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every parameter of the model, dequantised, under transformers' names.

    Of a file for which `is_own` holds.

    Raises:
        ValueError: a tensor that a model of this family does not have.
    """
    family, stated = FAMILIES[gguf.architecture], _plain(gguf)
    heads = {
        "attn_q": stated["attention.head_count"],
        "attn_k": stated.get("attention.head_count_kv", stated["attention.head_count"]),
    }
    weights = {}
    for name in gguf.tensors:
        if name in _FACTORS:  # in the configuration
            continue
        *block, module, kind = name.split(".")
        if module not in family.names or kind not in ("weight", "bias"):
            raise ValueError(
                f"{gguf.path} has a tensor {name} that a {gguf.architecture} does not have; give a folder in "
                "safetensors format"
            )
        tensor = gguf.numbers(name)
        if family.pairs and module in heads:
            tensor = _half_split(tensor, heads[module])
        if module.endswith("norm"):
            tensor = tensor - family.norm_offset
        prefix = f"model.layers.{block[1]}." if block else ""
        weights[f"{prefix}{family.names[module]}.{kind}"] = tensor.to(dtype)
    return weights


def settle(gguf: GGUFFile, architecture: Any) -> None:
    """Give transformers' configuration of a GGUF file what it lacks of what the file states.

    Args:
        gguf: of a family that is not read here.
        architecture: that transformers made of it; changed.

    Raises:
        ValueError: the file states what cannot be applied, or other sizes.
    """
    text, stated = architecture.get_text_config(), _plain(gguf)
    for key, value in stated.items():
        if value in _SAYS_NOTHING.get(key, ()) or key.removeprefix("rope.") in _ROPE:
            continue
        if key == "attention.head_count_kv" and isinstance(value, list) and 0 in value:
            value = max(value)  # LFM2: 0 in layers of another kind
        names = _EXACT.get(key) or _SETTABLE.get(key) or ()
        name = next((name for name in names if getattr(text, name, None) is not None), None)
        name = name or next((name for name in names if hasattr(text, name)), None)
        if name is None:
            raise _refusal(gguf, key, value)
        if not _same(getattr(text, name), value):
            if key in _EXACT:
                raise _refusal(gguf, key, value)
            setattr(text, name, value)
    text.tie_word_embeddings = "output.weight" not in gguf.tensors
    for name, ids in special_ids(gguf).items():
        setattr(text, name, ids)

    # Rotary embedding: base, share of a head's channels, scaling.
    if not hasattr(text, "rope_parameters"):
        if any(key.startswith("rope.") for key in stated):
            raise _refusal(
                gguf, "rope", {key: value for key, value in stated.items() if key.startswith("rope.")}
            )
        return
    size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    turned = int(stated.get("rope.dimension_count", size))
    own = dict(text.rope_parameters or {})
    nested = "full_attention" in own
    if "rope.freq_base_swa" in stated and not nested:
        raise _refusal(gguf, "rope.freq_base_swa", stated["rope.freq_base_swa"])
    of_full = dict(own["full_attention"] if nested else own)
    of_full.update(scaling_of(gguf, turned // 2))
    if "rope.freq_base" in stated:
        of_full["rope_theta"] = float(stated["rope.freq_base"])
    if turned != size or "partial_rotary_factor" in of_full:
        of_full["partial_rotary_factor"] = turned / size
        if hasattr(text, "partial_rotary_factor"):
            text.partial_rotary_factor = turned / size
    if nested and "rope.freq_base_swa" in stated:
        own["sliding_attention"] = {
            **own["sliding_attention"],
            "rope_theta": float(stated["rope.freq_base_swa"]),
        }
    text.rope_parameters = {**own, "full_attention": of_full} if nested else of_full
    original = of_full.get("original_max_position_embeddings")
    if original and hasattr(text, "original_max_position_embeddings"):
        text.original_max_position_embeddings = original


def check_all_is_read(gguf: GGUFFile, skeleton: torch.nn.Module) -> None:
    """Refuse a file with more or fewer numbers than the model that transformers makes of it.

    Raises:
        ValueError: some would be lost.
    """
    in_file = sum(
        math.prod(tensor.shape)
        for name, tensor in gguf.tensors.items()
        if name not in _FACTORS and "nextn" not in name
    )
    held = {id(tensor): tensor.numel() for tensor in skeleton.parameters()}
    stored = set(skeleton.state_dict())
    kept = {id(tensor): tensor.numel() for name, tensor in skeleton.named_buffers() if name in stored}
    in_model = sum(held.values())
    if in_file not in (in_model, in_model + sum(kept.values())):
        raise ValueError(
            f"{gguf.path} has {in_file:,} weights, but transformers' {type(skeleton).__name__} has "
            f"{in_model:,}: some would be lost; give a folder in safetensors format"
        )


def scaling_of(gguf: GGUFFile, pairs: int) -> dict[str, Any]:
    """How rotary frequencies are scaled, as transformers' `rope_parameters` say it.

    Args:
        gguf: the file.
        pairs: number of rotary frequencies.

    Raises:
        ValueError: a kind of scaling, or tables of another size, that cannot be applied.
    """
    stated = _plain(gguf)
    of_scaling = {
        key.removeprefix("rope.scaling."): value
        for key, value in stated.items()
        if key.startswith("rope.scaling.")
    }
    kind, factor = of_scaling.get("type", "none"), float(of_scaling.get("factor") or 0.0)
    if kind == "none" and stated.get("rope.scale_linear", 1.0) not in (0.0, 1.0):
        kind, factor = "linear", float(stated["rope.scale_linear"])
    original = of_scaling.get("original_context_length")
    attention = of_scaling.get("attn_factor")
    tables = {name: gguf.numbers(name).tolist() for name in _FACTORS if name in gguf.tensors}
    if any(len(table) != pairs for table in tables.values()):
        raise ValueError(
            f"{gguf.path}: its table of rotary factors has another size than its {pairs} frequencies; "
            "convert the model anew"
        )
    if attention is not None and kind not in ("yarn", "longrope") and not tables:
        raise _refusal(gguf, "rope.scaling.attn_factor", attention)

    if "rope_factors_long.weight" in tables:  # Phi-3 and its kin: short tables up to the original length
        window = int(stated["context_length"])
        original = int(original or window)
        of_model = {
            "short_factor": tables.get("rope_factors_short.weight", tables["rope_factors_long.weight"]),
            "long_factor": tables["rope_factors_long.weight"],
            "original_max_position_embeddings": original,
            "factor": window / original,
        }
        return {
            "rope_type": "longrope",
            **of_model,
            **({} if attention is None else {"attention_factor": attention}),
        }
    if "rope_freqs.weight" in tables:  # Llama 3.1: one table for all lengths
        if kind not in ("none", "linear"):
            raise _refusal(gguf, "rope.scaling.type", kind)
        table = [one * (factor or 1.0 if kind == "linear" else 1.0) for one in tables["rope_freqs.weight"]]
        if all(one == 1.0 for one in table):
            return {"rope_type": "default"}
        known = _as_llama3(table, float(stated.get("rope.freq_base", 10000.0)))
        if known is not None and attention is None:
            return known
        return {
            "rope_type": "longrope",
            "short_factor": table,
            "long_factor": table,
            "factor": 1.0,
            "original_max_position_embeddings": int(stated["context_length"]),
            "attention_factor": 1.0 if attention is None else attention,
        }
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and factor:
        betas = {
            name: float(of_scaling[f"yarn_{name}"])
            for name in ("beta_fast", "beta_slow")
            if f"yarn_{name}" in of_scaling
        }
        if attention is not None:  # llama.cpp multiplies YaRN's own by it
            betas["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
        length = int(original or int(stated["context_length"]) / factor)
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length, **betas}
    raise _refusal(gguf, "rope.scaling.type", kind)


def special_ids(gguf: GGUFFile) -> dict[str, Any]:
    """Ids of special tokens, as transformers names them; several may end an answer."""
    ids = {
        name: gguf.metadata.get(f"tokenizer.ggml.{stored}_token_id")
        for name, stored in {"bos_token_id": "bos", "pad_token_id": "padding"}.items()
    }
    ends = [gguf.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS]
    different = list(dict.fromkeys(end for end in ends if end is not None))
    return {**ids, "eos_token_id": different[0] if len(different) == 1 else different or None}


def head_size(stated: Mapping[str, Any]) -> int:
    """Channels of a head."""
    by_heads = stated["embedding_length"] // stated["attention.head_count"]
    return int(stated.get("attention.key_length") or stated.get("rope.dimension_count") or by_heads)


def _as_llama3(table: Sequence[float], theta: float) -> dict[str, Any] | None:
    """The parameters of which a table of factors was made, if it is one of Llama 3.1 or 3.2.

    There, frequencies with short waves stay, those with long ones are divided by a factor, with a slope
    between, where the length of the original window shows. None: another table.
    """
    factor, low, high = max(table), 1.0, 4.0
    waves = [2 * math.pi * theta ** (index / len(table)) for index in range(len(table))]
    slopes = [
        (wave, (1 / one - 1 / factor) / (1 - 1 / factor))
        for wave, one in zip(waves, table, strict=True)
        if 1.0 < one < factor
    ]
    windows = {round(wave * (low + share * (high - low))) for wave, share in slopes} or {8192}
    for window in windows:
        expected = []
        for wave in waves:
            share = min(max((window / wave - low) / (high - low), 0.0), 1.0)
            expected.append(1 / ((1 - share) / factor + share))
        if all(math.isclose(one, other, rel_tol=1e-5) for one, other in zip(table, expected, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": window,
            }
    return None


def _of_gemma3(gguf: GGUFFile, stated: Mapping[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """What the configuration of Gemma 3 has beyond that of a Llama."""
    layers, pattern = stated["block_count"], stated.get("attention.sliding_window_pattern", 6)
    slides = pattern if isinstance(pattern, list) else [(layer + 1) % pattern != 0 for layer in range(layers)]
    if len(slides) != layers or "attention.sliding_window" not in stated:
        raise _refusal(gguf, "attention.sliding_window_pattern", pattern)
    largest = 62  # layers of the 27B model, the only one whose scale is not that of its head size
    by_heads = stated["embedding_length"] // stated["attention.head_count"]
    return {
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
        "sliding_window": stated["attention.sliding_window"],
        "query_pre_attn_scalar": by_heads if layers == largest else head_size(stated),
        "attn_logit_softcapping": stated.get("attn_logit_softcapping"),
        "final_logit_softcapping": stated.get("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": float(stated.get("rope.freq_base_swa", 10000.0)),
            },
        },
    }


def _plain(gguf: GGUFFile) -> dict[str, Any]:
    """What the file states of its architecture; lists of one number per layer, all alike, as the number."""
    plain = {}
    for key, value in gguf.stated.items():
        alike = isinstance(value, list) and len(set(value)) == 1 and key != "attention.sliding_window_pattern"
        plain[key] = value[0] if alike else value
    return plain


def _same(one: Any, other: Any) -> bool:
    """Whether two values agree, floating-point numbers to the digits of float32."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def _refusal(gguf: GGUFFile, key: str, value: Any) -> ValueError:
    """The sentence about a property that would be lost."""
    told = str(value)
    return ValueError(
        f"{gguf.path} states {gguf.architecture}.{key}={told[:60]}{'…' if len(told) > 60 else ''}, which "
        "longpress cannot apply; give the model as a folder in safetensors format"
    )


def _half_split(tensor: Tensor, n_heads: int) -> Tensor:
    """Rows of a projection to queries or keys (or its bias), in transformers' order.

    GGUF has the two of a rotary pair side by side, transformers has them half a head apart.
    """
    pairs = tensor.reshape(n_heads, -1, 2, *tensor.shape[1:])  # (heads, d/2, 2, …)
    return pairs.transpose(1, 2).reshape(tensor.shape)
