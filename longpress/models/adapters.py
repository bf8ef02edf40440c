"""Folders written by PEFT: an adapter (LoRA and its kin), and the name of the model that it belongs to."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of such a folder."""

PROMPTS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
)
"""Kinds of adapters that are tokens or cache entries, not changes of weights."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """What the adapter says of itself.

    Raises:
        ValueError: it cannot be used, and why.
    """
    merge = "merge it (`peft_model.merge_and_unload().save_pretrained(FOLDER)`) and give that folder"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is no JSON: {error}") from error
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"the adapter in {folder} names no model that it belongs to; {merge}")
    if config.get("peft_type") in PROMPTS:
        raise ValueError(
            f"the adapter in {folder} is of kind {config['peft_type']}, which adds entries to the cache that "
            "is to be compressed; longpress loads adapters of weights, such as LORA"
        )
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"the adapter in {folder} has no {WEIGHTS}; save it anew with a PEFT of today")
    if not importlib.util.find_spec("peft"):
        raise ValueError(
            f"the adapter in {folder} needs the package peft; run `pip install 'longpress[peft]'`, or {merge}"
        )
    return dict(config)


def with_adapter(model: Any, folder: Path, merge: bool) -> Any:
    """The model with an adapter.

    Args:
        model: that it belongs to; changed.
        folder: of the adapter.
        merge: whether to add it to the weights, which packed ones would round; else it stays beside them.

    Raises:
        ValueError: parts of the adapter belong to no module of the model.
    """
    from peft import PeftModel, get_peft_model_state_dict  # type: ignore[import-not-found, import-untyped]

    adapted = PeftModel.from_pretrained(model, str(folder))
    with safe_open(folder / WEIGHTS, "pt") as file:
        stored = set(file.keys())
    used = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    for name in sorted(stored ^ used):
        has = "has no module for" if name in stored else "has a module that is missing in it:"
        raise ValueError(f"the adapter in {folder} does not fit: the model {has} {name}")
    return adapted.merge_and_unload() if merge else adapted.get_base_model()
