"""Which models can be compressed; the others are refused.

They are refused in a sentence before any work, instead of silently wrong numbers after it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kvcache.attention import attending
from kvcache.cache import CompressedCache
from kvcache.hooks.prefill import observing
from kvcache.latent import is_latent
from kvcache.layer_state import cache_layer, states_of
from kvcache.linear import device_of
from kvcache.modules import (
    attention_modules,
    cache_keyword,
    cached_by_layers,
    decoder_of,
    has_state,
    readers_of_other_layers,
    windows_of,
)
from kvcache.projections import has_kv_heads, head_size, kv_heads
from kvcache.rope_frequencies import length_dependent, rope_length
from kvcache.storage import KVView

# fmt: off
TESTED = frozenset((
    "apertus", "arcee", "bitnet", "cohere", "cohere2", "cwm", "exaone4", "gemma", "gemma2", "gemma3_text",
    "glm", "glm4", "gpt_oss", "granite", "granitemoe", "llama", "ministral", "mistral", "mixtral", "olmo2",
    "olmo3", "olmoe", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
))
# fmt: on
"""Model types whose answers, queries and keys our tests compare with transformers' own.

Models of other types are tried before they are used.
"""

KINDS = {"full_attention", "sliding_attention", "linear_attention", "conv", "hybrid", "mlp", "moe"}
"""Kinds of layers that are supported, as configurations name them: the last five hold a state, keys and
values beside a state, or nothing."""

TRIED, PREFIX = 24, 20
"""Tokens of the trial, and how many of them are read before the others, which then read the cache."""

NEIGHBOUR_PREFIX, FAR = 12, 8192
"""Tokens that the other row of the trial reads before, and where it begins in a model without a window."""

_correct: WeakSet[nn.Module] = WeakSet()


def check_model(model: nn.Module) -> None:
    """Refuse a model that would be compressed wrongly: by its structure, or by a trial.

    Models of a type that our tests do not know, or with code of their own, are tried: the model reads a few
    tokens of two texts, apart and together, once per model object. A model on the meta device is judged by
    its structure alone.

    Raises:
        ValueError: one sentence about what is in the way.
    """
    if model in _correct:
        return
    check_structure(model)
    config: Any = model.config
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    is_known = config.get_text_config().model_type in TESTED
    has_own_code = not type(decoder_of(model)).__module__.startswith("transformers.")
    if not is_known or has_own_code or has_state(model):  # whose kernels differ by machine
        _try(model)
    _correct.add(model)


def check_structure(model: nn.Module) -> None:
    """Refuse what is no stack of layers that each cache keys and values of heads.

    Each layer may attend to all of the context or within a sliding window.

    Raises:
        ValueError: one sentence about what is in the way.
    """
    # The stack: layers with keys and values of their own, read fully or within a window, or with a state.
    name, modules = type(model).__name__, attention_modules(model)
    growing = [at for at, cached in enumerate(cached_by_layers(model)) if cached.entries]
    if [getattr(module, "layer_idx", None) for module in modules] != growing:
        raise ValueError(
            f"{name} caches keys and values in {len(growing)} layers, of which longpress finds the attention "
            f"of {len(modules)}: it does not know this kind of attention"
        )
    config: Any = model.config
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - KINDS
    if "chunked_attention" in kinds:
        raise ValueError(
            f"{name} attends within chunks of the context, and scales queries by the longest row of a batch; "
            "longpress supports full and sliding attention"
        )
    if "indexed_attention" in kinds:
        raise ValueError(
            f"{name} reads of its cache what an indexer picks by keys of its own, anew for every token; "
            "longpress does not evict from two caches that depend on each other"
        )
    if kinds:
        raise ValueError(
            f"{name} has layers of kind {', '.join(sorted(kinds))}; longpress supports full and sliding "
            "attention, and leaves linear attention, state spaces and short convolutions as they are"
        )
    if (getattr(text, "num_kv_shared_layers", None) or 0) != len(readers_of_other_layers(model)):
        raise ValueError(
            f"{name} shares one cache among several layers in a way that longpress does not support"
        )
    if getattr(text, "attention_chunk_size", None):
        raise ValueError(f"{name} attends within chunks of the context, which longpress does not support")
    if getattr(text, "kv_lora_rank", None) and not all(map(is_latent, modules)):
        raise ValueError(f"{name} caches latent vectors in a way that longpress does not support")

    # Its attention modules: what is read of them exists, and heads are as the configuration says.
    for index, module in enumerate(modules):
        kind = type(module).__name__
        needed = ("config", "layer_idx", "kv_lora_rank" if is_latent(module) else "head_dim")
        lacking = [attribute for attribute in needed if not hasattr(module, attribute)]
        if not lacking and not has_kv_heads(module):
            lacking = ["num_key_value_groups"]
        if lacking:
            raise ValueError(
                f"{kind} of {name} has no {lacking[0]}: longpress does not know this kind of attention"
            )
        parameters = inspect.signature(module.forward).parameters.values()
        if inspect.Parameter.VAR_KEYWORD not in {parameter.kind for parameter in parameters}:
            raise ValueError(
                f"{kind} of {name} does not hand keywords on to an attention function, which longpress needs"
            )
        size = getattr(getattr(module, "k_proj", None), "out_features", 0)
        if size not in (0, kv_heads(module) * head_size(module)):
            raise ValueError(
                f"layer {index} of {name} has other heads than its configuration says, which longpress does "
                "not support"
            )


@torch.no_grad()
def _try(model: nn.Module) -> None:
    """Compare what the model computes by itself with what it computes with our attention and cache.

    Raises:
        ValueError: it differs, or nothing could be computed.
    """
    config: Any = model.config
    name, decoder = type(model).__name__, decoder_of(model)
    embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    vocabulary = config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (2, TRIED), generator=generator).to(device_of(embedding))
    row, neighbour = _TrialRow(ids[:1], PREFIX, 0), _neighbour(model, ids[1:])
    training = model.training
    try:
        model.eval()
        own = decoder(input_ids=row.ids, use_cache=False).last_hidden_state[0, PREFIX:]
        (with_ours,) = _with_our_cache(model, [row])
        (neighbour_alone,) = _with_our_cache(model, [neighbour])
        beside = _with_our_cache(model, [neighbour, row])
    except Exception as error:  # whatever an unknown model raises
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{name} cannot be compressed: its attention fails with longpress's cache ({first})"
        ) from error
    finally:
        model.train(training)
    typical = float(_relative_errors(with_ours, own).median())
    tolerance = 1e-3 if own.dtype in (torch.float32, torch.float64) else 0.1
    if not typical <= tolerance:
        if has_state(model) and not _relative_errors(_continued(model, row.ids), own).median() <= tolerance:
            raise ValueError(
                f"{name} reads several tokens behind a cached state otherwise than in one piece, with "
                "transformers' own cache too; questions behind a context would be read wrongly, so it is not "
                "supported"
            )
        raise ValueError(
            f"{name} computes {typical:.1%} else with longpress's attention than with its own; it is not "
            "supported"
        )
    for found, alone in zip(beside, (neighbour_alone, with_ours), strict=True):
        typical = float(_relative_errors(found, alone).median())
        if not typical <= tolerance:
            raise ValueError(
                f"{name} computes {typical:.1%} else for a text when another one, of another length, stands "
                "beside it in the batch, so answers would depend on their neighbours; it is not supported"
            )


class _TrialRow(NamedTuple):
    """A text of the trial.

    Attributes:
        ids: (1, n).
        prefix: tokens that are read before the others.
        start: position of the first one.
    """

    ids: Tensor
    prefix: int
    start: int


def _neighbour(model: nn.Module, ids: Tensor) -> _TrialRow:
    """A shorter text of ids (1, n) that stands far behind in the window.

    So whatever a model makes of the largest position in a batch, or in its cache, shows in the other row.
    """
    config: Any = model.config
    window = getattr(config.get_text_config(), "max_position_embeddings", None) or FAR
    length = NEIGHBOUR_PREFIX + TRIED - PREFIX
    start = window if length_dependent(config) else max(0, window - length)
    return _TrialRow(ids[:, :length], NEIGHBOUR_PREFIX, start)


def _relative_errors(found: Tensor, wanted: Tensor) -> Tensor:
    """(n,) per token, of hidden states (n, D)."""
    return (found.float() - wanted.float()).norm(dim=-1) / wanted.float().norm(dim=-1)


def _continued(model: nn.Module, ids: Tensor) -> Tensor:
    """(n, D) of the last tokens, which read the first `PREFIX` in a cache of transformers."""
    config: Any = model.config
    decoder = decoder_of(model)
    cache = {cache_keyword(decoder): DynamicCache(config=config.get_text_config())}
    decoder(input_ids=ids[:, :PREFIX], use_cache=True, **cache)
    positions = torch.arange(PREFIX, ids.shape[1], device=ids.device)[None]
    output = decoder(input_ids=ids[:, PREFIX:], position_ids=positions, use_cache=True, **cache)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def _with_our_cache(model: nn.Module, rows: Sequence[_TrialRow]) -> Tensor:
    """(R, n, D) of the rows' last tokens, which read those before in a cache such as compressed ones are."""
    config: Any = model.config
    decoder = decoder_of(model)
    keyword = cache_keyword(decoder)
    with attending(model):
        # Each row's first tokens by themselves.
        read = []
        for row in rows:
            read.append(DynamicCache(config=config.get_text_config()))
            places = torch.arange(row.start, row.start + row.prefix, device=row.ids.device)[None]
            with observing(model, lambda layer, cache: None):
                decoder(
                    input_ids=row.ids[:, : row.prefix],
                    position_ids=places,
                    use_cache=True,
                    **{keyword: read[-1]},
                )

        # The last ones together.
        ends = [row.start + row.prefix for row in rows]
        layers = []
        for index, window in enumerate(windows_of(model)):
            kept = [
                KVView.of_cache_layer(cache.layers[index], end, window, like=rows[0].ids)
                for cache, end in zip(read, ends, strict=True)
            ]
            states = [states_of(cache)[index] for cache in read]
            layers.append(cache_layer(kept, states, ends))
        last = torch.cat([row.ids[:, row.prefix :] for row in rows])
        positions = torch.tensor(ends, device=last.device)[:, None] + torch.arange(
            last.shape[1], device=last.device
        )
        lengths = [rope_length(model, row.start + row.ids.shape[1]) for row in rows]
        ours = CompressedCache(layers, lengths)
        output = decoder(input_ids=last, position_ids=positions, use_cache=True, **{keyword: ours})
    hidden: Tensor = output.last_hidden_state
    return hidden
