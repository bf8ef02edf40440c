"""Batches of contexts of different lengths inside `with press(model)`.

Each context is read alone, without its padding. So a press sees what it would see of the context by itself,
no module's state and no maximum over the batch enters a row, and the rows share one compressed cache, from
which all of them go on together.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from kvcache.cache import CompressedLayer, PaddedPrefill
from kvcache.layer_state import LayerState, cache_layer
from kvcache.modules import cache_keyword, decoder_of, windows_of
from kvcache.rope_frequencies import join_rope_lengths
from kvcache.storage import KVView

MADE_ANEW = ("attention_mask", "cache_position")
"""Arguments of a batch's pass that a row's own pass goes without: the model makes them itself."""


@contextmanager
def reading_rows_alone(model: nn.Module) -> Iterator[None]:
    """Inside, a prefill of a padded batch is one prefill per row, and the compressed cache tells positions.

    To be entered inside `observing(model)`, which then sees each row as a batch of one. Padding is what a
    two-dimensional `attention_mask` hides: left, right or both. Later passes continue every row behind its
    own tokens, whatever `position_ids` say.

    Raises:
        ValueError: a mask or an argument that cannot be followed row by row.
    """
    decoder, keyword = decoder_of(model), cache_keyword(decoder_of(model))
    passes: list[_PaddedBatch | None] = []  # those at work, the outermost first; None: no padded batch
    masks: list[Tensor] = []  # that the modules around the decoder were given, the outermost first

    def remember_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = _mask_of_tokens(_by_name(module, args, kwargs))
        if mask is not None:
            masks.append(mask)

    def forget_masks(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        masks.clear()

    def begin(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        passes.append(None)
        given = _by_name(module, args, kwargs)
        cache, mask = given.get(keyword), _mask_of_tokens(given)
        if masks and mask is None:
            mask = given["attention_mask"] = masks[0]  # a multimodal model hands on what it has made of it
        masks.clear()

        # Later passes: the cache knows where each row goes on.
        if isinstance(cache, Cache) and cache.get_seq_length():
            first = next((layer for layer in cache.layers if isinstance(layer, CompressedLayer)), None)
            return None if first is None else ((), _continued(first, given))

        if not isinstance(cache, DynamicCache | None):
            raise ValueError(
                f"a {type(cache).__name__} cannot be compressed; give a DynamicCache or none, and leave "
                "cache_implementation out of `generate`"
            )

        # A prefill: the first row of a padded batch now, the others when it is done.
        if mask is None or bool((mask == 1).all()):
            return None
        batch = passes[-1] = _PaddedBatch.of(model, given, keyword)
        return (), batch.inputs(0)

    def end(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        batch = passes.pop()
        if batch is None or output is None:  # none where the pass has failed
            return None
        outputs = [output, *(decoder(**batch.inputs(row)) for row in range(1, len(batch.rows)))]
        batch.join_caches()
        return batch.joined(outputs)

    with ExitStack() as stack:
        for module in _around(model, decoder):
            stack.callback(module.register_forward_pre_hook(remember_mask, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(forget_masks, always_call=True).remove)
        stack.callback(decoder.register_forward_pre_hook(begin, with_kwargs=True, prepend=True).remove)
        stack.callback(decoder.register_forward_hook(end, with_kwargs=True, always_call=True).remove)
        yield


def _around(model: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """The modules that the decoder lies in, the outermost first."""
    path = next(name for name, module in model.named_modules() if module is decoder)
    parts = path.split(".") if path else []
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `module`, each under its name."""
    positional = inspect.signature(module.forward).bind_partial(*args).arguments if args else {}
    return {**positional, **kwargs}


def _inputs(given: dict[str, Any]) -> Tensor:
    """The ids (B, n) or embeddings (B, n, D) among the arguments of a call."""
    ids = given.get("input_ids")
    inputs: Tensor = given["inputs_embeds"] if ids is None else ids
    return inputs


def _mask_of_tokens(given: dict[str, Any]) -> Tensor | None:
    """The mask (B, columns) among the arguments of a call.

    None where there is none, or a mapping of what a model has made of one.

    Raises:
        ValueError: a mask of another kind, which nothing here follows.
    """
    mask = given.get("attention_mask")
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() != 2:
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)} says of pairs of tokens what may be seen, which "
            "presses do not follow; give one value per token, 0 for padding"
        )
    return mask


@dataclass(frozen=True, eq=False)
class _PaddedBatch:
    """A prefill of B contexts, of which each has its own number of tokens among T columns.

    Attributes:
        model: that reads.
        mask: (B, T) bool, which columns are a row's own tokens.
        rows: per row, the columns (t,) of its tokens.
        given: the arguments of the call by name, mask, positions and cache left out.
        keyword: name of the cache's argument.
        cache: that is to hold all rows; None where nothing is cached.
        caches: of each row.
    """

    model: nn.Module
    mask: Tensor
    rows: list[Tensor]
    given: dict[str, Any]
    keyword: str
    cache: Cache | None
    caches: list[DynamicCache]

    @classmethod
    def of(cls, model: nn.Module, given: dict[str, Any], keyword: str) -> _PaddedBatch:
        """The batch of a call, by its arguments, with a mask (B, T) among them.

        Raises:
            ValueError: a mask or an argument that cannot be followed row by row.
        """
        config: Any = model.config
        text = config.get_text_config()
        inputs, mask = _inputs(given), given["attention_mask"]
        _check_mask(mask, tuple(inputs.shape[:2]))
        rows = [row.nonzero()[:, 0] for row in mask.to(inputs.device) == 1]
        given = {
            name: value for name, value in given.items() if name not in ("attention_mask", "cache_position")
        }
        _check_positions(given.pop("position_ids", None), rows)
        _check_tensors(given, tuple(mask.shape))

        # A cache for all rows, and one each.
        cache, use_cache = given.pop(keyword, None), given.get("use_cache")
        if cache is None and (text.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=text)
        caches = [] if cache is None else [DynamicCache(config=text) for _ in rows]
        return cls(model, mask == 1, rows, given, keyword, cache, caches)

    def inputs(self, row: int) -> dict[str, Any]:
        """The arguments with which the row is read alone, as a batch of one without padding."""
        columns, shape = self.rows[row], self.mask.shape
        inputs = {
            name: value[row, columns.to(value.device)][None] if _is_per_token(value, shape) else value
            for name, value in self.given.items()
        }
        return {**inputs, self.keyword: self.caches[row]} if self.caches else inputs

    def join_caches(self) -> None:
        """Put what each row's cache holds into the cache of the batch."""
        if self.cache is None:
            return
        windows = windows_of(self.model)
        tokens = [len(columns) for columns in self.rows]
        self.cache.layers[:] = [
            _layer_of_rows([cache.layers[index] for cache in self.caches], tokens, window, self.mask)
            for index, window in enumerate(windows)
        ]
        for layer in self.cache.layers:
            if isinstance(layer, CompressedLayer):
                layer.padded_prefill = PaddedPrefill(self.mask, layer.start)
        join_rope_lengths(self.cache, self.caches)

    def joined(self, outputs: Sequence[Any]) -> Any:
        """The rows' outputs, each a batch of one, as that of the whole batch.

        Raises:
            ValueError: an output that has not one vector per token.
        """
        first = outputs[0]
        if first is None or isinstance(first, bool | int | float | str):
            return first
        if isinstance(first, Cache):
            return self.cache
        if isinstance(first, ModelOutput):
            return type(first)(**{name: self.joined([part[name] for part in outputs]) for name in first})
        if isinstance(first, tuple | list):
            return type(first)(self.joined(parts) for parts in zip(*outputs, strict=True))
        if all(isinstance(part, Tensor) and part.shape[:2] == (1, 1) for part in outputs):
            return torch.cat(
                list(outputs)
            )  # of each row's last token, all that Gemma 4 computes in `generate`
        if not (isinstance(first, Tensor) and first.shape[:2] == (1, len(self.rows[0]))):
            raise ValueError(
                f"an output of {type(self.model).__name__} has not one vector per token, so those of the "
                "contexts of a padded batch cannot be put together; ask for hidden states and logits only"
            )
        whole = first.new_zeros(*self.mask.shape, *first.shape[2:])
        for row, (columns, part) in enumerate(zip(self.rows, outputs, strict=True)):
            whole[row, columns] = part[0]
            whole[row, int(columns[-1]) + 1 :] = part[0, -1]  # so `generate` goes on from a row's own end
        return whole


def _check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a mask that is none of the tokens of a prefill.

    Raises:
        ValueError: another shape than (B, T), other values than 0 and 1, or a row without tokens.
    """
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}, but the model is given {shape[0]} contexts "
            f"of {shape[1]} columns; give one value per column"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask must be 1 for tokens and 0 for padding, and nothing else")
    empty = (mask == 0).all(-1).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"row {empty[0]} of the batch is nothing but padding; give it at least one token")


def _check_positions(positions: Tensor | None, rows: Sequence[Tensor]) -> None:
    """Refuse positions other than those that count a row's tokens, from wherever they begin.

    Args:
        positions: (B or 1, T), or several of them (*, B or 1, T), or None.
        rows: per row, the columns of its tokens.

    Raises:
        ValueError: such positions.
    """
    if positions is None:
        return
    per_row = positions.flatten(0, -3) if positions.dim() > 2 else positions[None]  # (*, B or 1, T)
    for row, columns in enumerate(rows):
        own = per_row[:, row if per_row.shape[1] > 1 else 0][:, columns.to(positions.device)]
        steps = own.diff(dim=-1)
        if not bool((steps == 1).all()) and len(columns) == int(columns[-1] - columns[0]) + 1:
            raise ValueError(
                f"position_ids of row {row} do not count its tokens one by one; in a padded batch, leave "
                "position_ids out"
            )


def _check_tensors(given: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Refuse tensors of which it is not known what part belongs to a row.

    Raises:
        ValueError: there is one.
    """
    for name, value in given.items():
        if isinstance(value, Tensor) and value.numel() > 1 and not _is_per_token(value, shape):
            raise ValueError(
                f"{name} of shape {tuple(value.shape)} cannot be divided among the contexts of a padded "
                "batch; give contexts one at a time"
            )


def _is_per_token(value: Any, shape: Sequence[int]) -> bool:
    """Whether a value is a tensor (B, T, *) with something for every column."""
    return isinstance(value, Tensor) and tuple(value.shape[:2]) == tuple(shape)


def _layer_of_rows(layers: Sequence[Any], tokens: Sequence[int], window: int | None, like: Tensor) -> Any:
    """One layer of the rows' caches, compressed or full, as one of the cache of the batch.

    Args:
        layers: of each row, a batch of one.
        tokens: of each row's context.
        window: the layer's sliding window or None.
        like: tells the device where nothing grows.
    """
    kept: list[KVView] = []
    starts: list[int] = []
    decode_hooks: list[Any] = []
    for layer, length in zip(layers, tokens, strict=True):
        if isinstance(layer, CompressedLayer):
            kept += layer.kept()
            starts += layer.start.tolist()
            decode_hooks += layer.decode_hooks
        else:
            kept.append(KVView.of_cache_layer(layer, length, window, like))
            starts.append(length)
            decode_hooks.append(None)
    return cache_layer(kept, [LayerState.of_row(layer) for layer in layers], starts, 0, decode_hooks)


def _continued(layer: CompressedLayer, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a pass over a compressed cache, at the positions where its rows go on.

    Args:
        layer: any of the cache.
        given: the arguments by name.

    Raises:
        ValueError: the mask hides more than the padding that the cache was filled without.
    """
    inputs, mask = _inputs(given), _mask_of_tokens(given)
    n = inputs.shape[1]
    if mask is not None:
        _check_mask_of_later_pass(layer, mask, n)
        given = {name: value for name, value in given.items() if name != "attention_mask"}
    next_positions = (layer.start + layer.lengths).to(inputs.device)
    return {**given, "position_ids": next_positions[:, None] + torch.arange(n, device=inputs.device)}


def _check_mask_of_later_pass(layer: CompressedLayer, mask: Tensor, n: int) -> None:
    """Refuse a mask (R, columns) over n new tokens that hides more than the padding of the prefill.

    Raises:
        ValueError: such a mask.
    """
    if not bool((mask[:, -n:] == 1).all()):
        raise ValueError(
            "new tokens on top of a compressed cache must come without padding: give each row the same number"
        )
    before, padded = mask[:, :-n] == 1, layer.padded_prefill
    if padded is None:
        if not bool(before.all()):
            raise ValueError("attention_mask hides tokens of a compressed cache, which has read them")
        return
    columns = padded.mask.shape[1]
    read = int((layer.start + layer.lengths - padded.starts)[0])
    if not (
        before.shape[1] == columns + read
        and bool((before[:, :columns] == padded.mask.to(before.device)).all())
        and bool(before[:, columns:].all())
    ):
        raise ValueError(
            f"attention_mask does not fit the compressed cache, which has read {columns} columns with their "
            f"padding and {read} tokens since: give {columns + read + n} columns for {n} new tokens"
        )
