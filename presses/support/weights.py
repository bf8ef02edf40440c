"""Learned weights of presses: found on disk, on the Hugging Face hub or at an address.

They are read once, as data and never as code. What was read is remembered by file and time of change, so a
second model never gets the weights of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy
import torch
from torch import Tensor, nn

from kvcache.attention import attending
from kvcache.hooks.prefill import Prefill, observing
from kvcache.modules import cache_keyword, decoder_of
from kvcache.observation import LayerObservation


def model_name(module: nn.Module) -> str:
    """Name or path under which the model of an attention module was loaded, "" if it has none."""
    config: Any = module.config
    name = str(getattr(config, "_name_or_path", "") or "").rstrip("/")
    return "" if name == "None" else name  # transformers' name of a model made from a state dict


def last_part(name: str) -> str:
    """`organisation/model` or a path to `model`."""
    return name.rsplit("/", 1)[-1]


def read(source: str | None, file: str, revision: str, description: str) -> Any:
    """What a file holds: a mapping of tensors (.safetensors), data (.pt), a tensor (.npy), or else text.

    Args:
        source: a local file, a local folder with `file` inside, a hub id, or an address beginning with
            https:// of a folder.
        file: name below the source.
        revision: of a hub repository: a branch, tag or commit.
        description: of what is looked for, for the error message: "query filters of MODEL".

    Raises:
        ValueError: nothing found, or it cannot be read; what was looked for, where, and what to do.
    """
    if not source:
        raise ValueError(
            f"no {description} are published; give `weights=PATH` to a local file, or a press that needs none"
        )
    path = _find(source, file, revision, description)
    try:
        return _load(path, path.stat().st_mtime_ns)
    except Exception as error:  # whatever a damaged, foreign or unsafe file makes its reader raise
        raise ValueError(
            f"no {description}: {path} cannot be read as data of its kind ({type(error).__name__})"
        ) from error


def checked(tensor: Any, shape: tuple[int, ...], description: str) -> Tensor:
    """`tensor`, which must have this shape.

    Raises:
        ValueError: it has another, or is none.
    """
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(
            f"{description} must have the shape {shape} of this model, got {got}; these weights belong to "
            "another model"
        )
    return tensor


def named(tensors: Any, name: str, shape: tuple[int, ...], description: str) -> Tensor:
    """Entry `name` of what `read` gave, which must have this shape.

    Raises:
        ValueError: it has another, or there is none.
    """
    if not isinstance(tensors, Mapping) or name not in tensors:
        raise ValueError(f"the file with {description} holds no {name!r}; it is in another format")
    return checked(tensors[name], shape, f"{name} of {description}")


def observe_pieces(
    model: nn.Module, pieces: Iterable[Sequence[int]], on_layer: Callable[[LayerObservation], None]
) -> None:
    """Let the model read pieces of text, for presses that learn from them (`calibrate`).

    Args:
        model: that reads.
        pieces: of text, as token ids.
        on_layer: called after each layer's attention, with what it has read.
    """
    from transformers import DynamicCache

    decoder = decoder_of(model)
    device = next(model.parameters()).device
    for piece in pieces:
        ids = torch.tensor([list(piece)], device=device)
        with torch.no_grad(), observing(model, lambda layer, _: on_layer(layer)):
            decoder(input_ids=ids, **{cache_keyword(decoder): DynamicCache()})


def prefilled(
    model: nn.Module, piece: Sequence[int], on_layer: Callable[[LayerObservation], None]
) -> Prefill:
    """As `observe_pieces` for one piece; gives the finished prefill, on which a press may `probe`."""
    from transformers import DynamicCache

    decoder = decoder_of(model)
    config: Any = model.config
    ids = torch.tensor([list(piece)], device=next(model.parameters()).device)
    prefill = Prefill(model, DynamicCache(config=config.get_text_config()), token_ids=ids)

    def observe(layer: LayerObservation, _: Any) -> None:
        prefill.layers.append(layer.index)
        on_layer(layer)

    with torch.no_grad(), attending(model), observing(model, observe):
        decoder(input_ids=ids, use_cache=True, **{cache_keyword(decoder): prefill.cache})
    return prefill


def _find(source: str, file: str, revision: str, description: str) -> Path:
    local = Path(source).expanduser()
    if local.is_file():
        return local
    if local.is_dir():
        if (local / file).is_file():
            return local / file
        raise ValueError(f"no {description}: the folder {source} has no file {file}")
    try:
        return _fetch(source, file, revision)
    except Exception as error:  # of many kinds: no network, no such repository, no such file, no permission
        raise ValueError(
            f"no {description}: looked for {file} at {source} (revision {revision}), which is neither a "
            f"local path nor reachable ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}); give `weights=PATH` to a "
            "local copy, or choose a model for which they are published"
        ) from error


@cache
def _fetch(source: str, file: str, revision: str) -> Path:
    if source.startswith("https://"):
        folder = Path(torch.hub.get_dir()) / "longpress" / quote(source, safe="")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / file).exists():
            torch.hub.download_url_to_file(f"{source}/{file}", str(folder / file), progress=False)
        return folder / file
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, file, revision=revision))


@lru_cache(maxsize=8)
def _load(path: Path, changed: int) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)
    if path.suffix == ".npy":
        return torch.from_numpy(numpy.load(path, allow_pickle=False))
    return path.read_text(encoding="utf-8")
