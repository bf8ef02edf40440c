"""Weights in 8 or 4 bits, as the quantizers of transformers make them while a model is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Quantizer:
    """A way to store weights.

    Attributes:
        packages: that it needs.
        config: from the type of numbers in which the model computes to transformers' configuration.
    """

    packages: tuple[str, ...]
    config: Callable[[torch.dtype], Any]


def _bitsandbytes(bits: int) -> Quantizer:
    def config(dtype: torch.dtype) -> Any:
        from transformers import BitsAndBytesConfig

        if bits == 8:
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)

    return Quantizer(("bitsandbytes", "accelerate"), config)


def _quanto(weights: str) -> Quantizer:
    def config(dtype: torch.dtype) -> Any:
        from transformers import QuantoConfig

        return QuantoConfig(weights=weights)

    return Quantizer(("optimum-quanto", "accelerate"), config)


def _torchao_int8() -> Quantizer:
    def config(dtype: torch.dtype) -> Any:
        from torchao.quantization import Int8WeightOnlyConfig  # type: ignore[import-not-found, import-untyped]
        from transformers import TorchAoConfig

        return TorchAoConfig(quant_type=Int8WeightOnlyConfig())

    return Quantizer(("torchao", "accelerate"), config)


QUANTIZERS = {
    "bitsandbytes-4bit": _bitsandbytes(4),
    "bitsandbytes-8bit": _bitsandbytes(8),
    "quanto-int8": _quanto("int8"),
    "quanto-int4": _quanto("int4"),
    "torchao-int8": _torchao_int8(),
}
"""Values of `model.quantization`: nf4 and LLM.int8 of bitsandbytes, weights alone of quanto and torchao."""

_MODULES = {"optimum-quanto": "optimum.quanto"}
"""Packages whose module has another name."""


def check_quantization(name: str | None) -> None:
    """Refuse an unknown value of `model.quantization`, and one whose packages are missing.

    Raises:
        ValueError: says what there is, or what to install.
    """
    if name is None:
        return
    if name not in QUANTIZERS:
        raise ValueError(f"model.quantization={name} is unknown; use one of {', '.join(QUANTIZERS)}, or null")
    for package in QUANTIZERS[name].packages:
        if not _is_installed(_MODULES.get(package, package)):
            raise ValueError(
                f"model.quantization={name} needs the package {package}; run "
                f"`pip install 'longpress[{name.split('-')[0]}]'`"
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
