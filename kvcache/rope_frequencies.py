"""Rotary embeddings whose frequencies depend on the length of the text: LongRoPE and dynamic NTK.

Transformers chooses the frequencies of a forward pass by the largest position in its batch, and dynamic NTK
keeps the largest that it has met on the module. An answer would depend on the rows beside it and on whatever
was read before. Here frequencies belong to the row, and to its own prompt: those that `model.generate` uses
for the prompt alone. The prompt's context, what presses read on top of it, its question and its answer are
turned by them.

- LongRoPE has two sets of frequencies: for prompts within the original window, and for longer ones. An answer
  that outgrows the window stays with the set of its prompt, with which everything in the cache was made.
- Dynamic NTK has frequencies for every length beyond the original window. A token behind the prompt is turned
  by those of the text up to it, as `generate` does.

A *RoPE length* is the length of a text whose frequencies are meant; 0 stands for all texts within the
original window. A cache carries one for each of its rows as `rope_lengths`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kvcache.modules import attention_modules, decoder_of

_computed: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Tensor]] = WeakKeyDictionary()
"""Frequencies per embedding, by kind of layer, length and device: they are needed again at every step."""


class _Scaling(NamedTuple):
    """How one rotary embedding depends on the length of the text.

    Attributes:
        type: of transformers.
        window: longest text with the frequencies of short texts.
        grows: whether every length beyond the window has frequencies of its own.
        prefix: of the attributes that hold the frequencies of this kind of layer.
        parameters: of the configuration.
    """

    type: str
    window: int
    grows: bool
    prefix: str
    parameters: Mapping[str, Any]


def length_dependent(config: Any) -> bool:
    """Whether a configuration of transformers asks for frequencies that depend on the length of the text."""
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [given, *(one for one in given.values() if isinstance(one, Mapping))]
    types = [str(one.get("rope_type", "")) for one in kinds]
    return any("dynamic" in one or one == "longrope" for one in types) or (
        "short_mscale" in given and types[0] != "default"
    )


def rope_length(model: nn.Module, tokens: int) -> int:
    """The RoPE length of a prompt of so many tokens: equal for prompts that have the same frequencies."""
    beyond = [one for one in _scalings(_embedding(model)).values() if tokens > one.window]
    if any(one.grows for one in beyond):
        return tokens
    return max((one.window + 1 for one in beyond), default=0)


def outgrows(model: nn.Module, length: int, tokens: int) -> bool:
    """Whether a text of so many tokens that keeps the frequencies of `length` would have others by itself."""
    scalings = _scalings(_embedding(model)).values()
    return any(not one.grows and length <= one.window < tokens for one in scalings)


def turn(
    embedding: nn.Module, like: Tensor, positions: Tensor, lengths: Sequence[int], kind: str | None = None
) -> Any:
    """What the rotary embedding gives, with the frequencies of each row's own length.

    Args:
        embedding: of transformers.
        like: for dtype and device.
        positions: (R or 1, n); (3, R or 1, n) in models that also read images.
        lengths: the RoPE length of each of R rows.
        kind: of layer, in models that keep an embedding per kind.

    Returns:
        (cos, sin), each (R or 1, n, *), or one table of complex numbers in models that turn by such.
    """
    module: Any = embedding
    scaling = _scalings(embedding).get(kind)
    if scaling is None:
        return type(module).forward(module, like, positions, *(() if kind is None else (kind,)))

    # The length that counts for each row: one for all where they have the same frequencies.
    if not scaling.grows:
        lengths = [scaling.window + 1 if length > scaling.window else 0 for length in lengths]
    lengths = lengths[:1] if len(set(lengths)) == 1 else lengths
    forward = partial(_forward, module, scaling, kind, like)
    if len(lengths) == 1 and not scaling.grows:
        return forward(positions, lengths[0])

    # Else the one that counts for each token: where frequencies grow with the text, tokens of a row differ.
    rows = max(positions.shape[-2], len(lengths))
    positions = positions.expand(*positions.shape[:-2], rows, -1)
    within = positions if positions.dim() == 2 else positions.amax(0)  # (R, n)
    per_token = torch.tensor(lengths, device=within.device)[:, None].expand_as(within)
    if scaling.grows:
        per_token = torch.maximum(per_token, within + 1)
        per_token = torch.where(per_token > scaling.window, per_token, 0)
    values = per_token.unique().tolist()
    if len(values) == 1:
        return forward(positions, values[0])

    # Tokens of one length together, then all of them at their places.
    own = [(per_token.flatten() == value).nonzero()[:, 0] for value in values]
    parts = [
        forward(positions.flatten(-2)[..., None, tokens], value)
        for tokens, value in zip(own, values, strict=True)
    ]
    order = torch.cat(own).argsort()

    def placed(tables: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tables), dim=1)[0, order.to(like.device)].unflatten(0, within.shape)

    if isinstance(parts[0], Tensor):
        return placed(parts)
    return tuple(placed(tables) for tables in zip(*parts, strict=True))


@contextmanager
def frequencies_by_row(model: nn.Module) -> Iterator[None]:
    """Inside, every row of a forward pass is turned by the frequencies of its own prompt.

    That is the prompt whose RoPE length its cache carries; a cache without one is given that of the first
    pass, which is taken to read the whole prompt. The embedding itself is left as it is.
    """
    embedding: Any = _embedding(model)
    if not _scalings(embedding):
        yield
        return
    lengths: list[int] = []  # of the rows of the pass at work

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        known = rope_lengths_of(cache_of(kwargs))
        lengths[:] = _own_lengths(model, args, kwargs) if known is None else known

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = cache_of(kwargs)  # which the decoder may have made itself
        if cache is not None and rope_lengths_of(cache) is None:
            cache.rope_lengths = list(lengths)

    def forward(x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        own = lengths or [rope_length(model, int(position_ids.max()) + 1)]
        return turn(embedding, x, position_ids, own, layer_type)

    with ExitStack() as stack:
        stack.callback(decoder_of(model).register_forward_pre_hook(begin, with_kwargs=True).remove)
        for module in attention_modules(model):
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        before = embedding.__dict__.get("forward")
        embedding.forward = forward
        try:
            yield
        finally:
            if before is None:
                del embedding.forward
            else:
                embedding.forward = before


@contextmanager
def keeping_caches(model: nn.Module) -> Iterator[None]:
    """Inside, `generate` goes on with its cache where a text outgrows the original window of LongRoPE.

    Phi-3 and its kin drop the cache there, and read everything again with the frequencies of long texts: what
    has been written would be compressed as if it were part of the prompt.
    """
    usual = GenerationMixin.prepare_inputs_for_generation
    own: Any = getattr(type(model), "prepare_inputs_for_generation", usual)
    if own is usual or not outgrows(model, 0, sys.maxsize):
        yield
        return
    generating: Any = model
    generating.prepare_inputs_for_generation = partial(usual, model)
    try:
        yield
    finally:
        del generating.prepare_inputs_for_generation


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a decoder or of one of its modules; None without one."""
    cache = kwargs.get("cache")
    return kwargs.get("past_key_values") if cache is None else cache


def rope_lengths_of(cache: Any) -> list[int] | None:
    """The RoPE length of each row of a cache; None where it carries none."""
    return getattr(cache, "rope_lengths", None)


def join_rope_lengths(cache: Any, caches: Sequence[Any]) -> None:
    """Let a cache that has taken over the rows of others carry their RoPE lengths."""
    known = [rope_lengths_of(one) for one in caches]
    if all(lengths is not None for lengths in known):
        cache.rope_lengths = [length for lengths in known for length in lengths or ()]


def _own_lengths(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int]:
    """RoPE lengths of the rows of a pass, by what each of them has read at its end."""
    given = args[0] if args else kwargs.get("input_ids")
    inputs = kwargs["inputs_embeds"] if given is None else given
    positions, cache = kwargs.get("position_ids"), cache_of(kwargs)
    if positions is not None:
        ends = positions.reshape(-1, *positions.shape[-2:]).amax((0, 2)) + 1
        return [rope_length(model, end) for end in ends.tolist()]
    end = inputs.shape[1] + (0 if cache is None else int(cache.get_seq_length()))
    return [rope_length(model, end)]


def _embedding(model: nn.Module) -> Any:
    return getattr(decoder_of(model), "rotary_emb", None)


def _scalings(embedding: Any) -> dict[str | None, _Scaling]:
    """How an embedding depends on the length, per kind of layer; kinds that do not are left out."""
    types = getattr(embedding, "rope_type", None)
    if types is None or not _follows_length(type(embedding).forward):
        return {}
    scalings: dict[str | None, _Scaling] = {}
    for kind, name in types.items() if isinstance(types, Mapping) else [(None, types)]:
        parameters = embedding.config.rope_parameters
        parameters = parameters if kind is None else parameters[kind]
        of_phimoe = name != "default" and "short_mscale" in parameters
        grows = "dynamic" in name and not of_phimoe
        if grows:
            window = int(embedding.original_max_seq_len)
        elif name == "longrope" or of_phimoe:
            window = int(parameters["original_max_position_embeddings"])
        else:
            continue
        scalings[kind] = _Scaling(name, window, grows, "" if kind is None else f"{kind}_", parameters)
    return scalings


def _follows_length(forward: Callable[..., Any]) -> bool:
    """Whether transformers' own update of frequencies is wrapped around an embedding's `forward`."""
    while forward is not None:
        if forward.__globals__["__name__"] == ROPE_INIT_FUNCTIONS["longrope"].__module__:
            return True
        forward = getattr(forward, "__wrapped__", None)  # type: ignore[assignment]
    return False


def _frequencies(
    embedding: Any, scaling: _Scaling, kind: str | None, length: int, device: torch.device
) -> Tensor:
    """(r,) frequencies of a RoPE length, as transformers computes them."""
    short: Tensor = getattr(embedding, f"{scaling.prefix}original_inv_freq")
    if length <= scaling.window:
        return short.to(device)
    known, key = _computed.setdefault(embedding, {}), (kind, length, device, short.dtype)
    if key not in known:
        of_kind = {} if kind is None else {"layer_type": kind}
        # As transformers calls it: of a tensor it computes in float32, of an int in float64.
        tokens = torch.tensor(length, device=device) if scaling.grows else length
        made, _ = ROPE_INIT_FUNCTIONS[scaling.type](embedding.config, device, seq_len=tokens, **of_kind)
        known[key] = made if scaling.grows else made.to(short.dtype)
    return known[key]


def _forward(
    embedding: Any, scaling: _Scaling, kind: str | None, like: Tensor, positions: Tensor, length: int
) -> Any:
    """What an embedding gives for positions (R, n), all with the frequencies of one RoPE length."""
    if (
        "short_mscale" in scaling.parameters
    ):  # PhiMoE chooses the size of its tables, and asks for frequencies
        size = scaling.parameters["long_mscale" if length > scaling.window else "short_mscale"]
        parameters = {**scaling.parameters, "long_mscale": size, "short_mscale": size}

        def initial(config: Any, *device_and_length: Any) -> Any:
            own = device_and_length and (device_and_length[0], length)  # older ones hand on the batch's
            return embedding.rope_init_fn(embedding.config, *own)

        changed: dict[str, Any] = {
            "config": SimpleNamespace(rope_parameters=parameters),
            "rope_init_fn": initial,
        }
    else:
        frequencies = _frequencies(embedding, scaling, kind, length, like.device)
        changed = {f"{scaling.prefix}inv_freq": frequencies}
    forward = inspect.unwrap(type(embedding).forward)  # without transformers' own choice of frequencies
    return forward(_Replaced(embedding, changed), like, positions, *(() if kind is None else (kind,)))


class _Replaced:
    """A rotary embedding with other values of some attributes, for one call of its `forward`."""

    def __init__(self, embedding: nn.Module, changed: Mapping[str, Any]) -> None:
        self.__dict__.update(changed)
        self.__dict__["_embedding"] = embedding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedding, name)
