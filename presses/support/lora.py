"""Low-rank adapters (LoRA) in the format of the library PEFT, added to a model's projections for a while.

The model stays as it is. An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`,
whose tensors are named `base_model.model.<module>.lora_A.weight` (r, in) and `….lora_B.weight` (out, r).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from kvcache.linear import device_of, size_of
from presses.support.weights import read

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""Parts of the names of an adapter's tensors."""

REFUSED: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
}
"""Fields of an adapter's configuration, and the values that they have in plain adapters of linear layers."""


@dataclass(frozen=True)
class Adapter:
    """What is added to the outputs y of linear modules: y + scale · B(A x).

    Attributes:
        pairs: module name to A (r, in) and B (out, r).
        scales: module name to scale.
        description: what was looked for, for error messages.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    scales: Mapping[str, float]
    description: str


def read_adapter(source: str | None, revision: str, description: str) -> Adapter:
    """An adapter from a local folder or the hub; the arguments are those of `presses.support.weights.read`.

    Raises:
        ValueError: there is none, or it is more than low-rank matrices beside linear modules.
    """
    config = json.loads(read(source, "adapter_config.json", revision, description))
    unusual = {name: config[name] for name, plain in REFUSED.items() if config.get(name) not in plain}
    if config.get("peft_type") != "LORA" or unusual:
        given = unusual or {"peft_type": config.get("peft_type")}
        raise ValueError(
            f"{description}: {given} is not supported; only plain LoRA adapters of linear modules are"
        )
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ValueError(
            f"{description}: ranks that differ from module to module (rank_pattern, alpha_pattern) are not "
            "supported"
        )
    tensors = read(source, "adapter_model.safetensors", revision, description)
    names = sorted(name.removeprefix(PREFIX).removesuffix(DOWN) for name in tensors if name.endswith(DOWN))
    lacking = [name for name in names if f"{PREFIX}{name}{UP}" not in tensors]
    if not names or lacking or len(tensors) != 2 * len(names):
        raise ValueError(
            f"{description}: adapter_model.safetensors must hold pairs {PREFIX}MODULE{DOWN} and {UP}, got "
            f"{sorted(tensors)[:3]}"
        )
    pairs = {name: (tensors[f"{PREFIX}{name}{DOWN}"], tensors[f"{PREFIX}{name}{UP}"]) for name in names}
    power = 0.5 if config.get("use_rslora") else 1.0
    scales = {name: config["lora_alpha"] / down.shape[0] ** power for name, (down, _) in pairs.items()}
    return Adapter(pairs, scales, description)


@contextmanager
def adapted(model: nn.Module, adapter: Adapter) -> Iterator[None]:
    """Inside, the adapter takes part in the model's projections, computed in float32.

    Raises:
        ValueError: the model has no such modules, or of other sizes.
    """
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name, (down, up) in adapter.pairs.items():
            module: Any = modules.get(name)
            of_module = None if module is None else size_of(module)
            size = (up.shape[0], down.shape[1])
            if module is None or of_module not in (None, size):  # packed ones do not tell
                has = "no such module" if module is None else f"one with weights {of_module}"
                raise ValueError(
                    f"{adapter.description}: made for a module {name} with weights {size}, but the model has "
                    f"{has}"
                )
            parts = down.float().to(device_of(module)), up.float().to(device_of(module))
            stack.callback(module.register_forward_hook(partial(_add, *parts, adapter.scales[name])).remove)
        yield


def _add(down: Tensor, up: Tensor, scale: float, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return (output + args[0].float() @ down.T @ up.T * scale).to(output.dtype)
