"""Folders that hold no model, or a damaged one."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.bad_commands.configuration import RUN

FOLDERS = {
    "a folder that there is not": "missing",
    "an empty folder": "empty",
    "a file in place of a folder": "file",
    "no configuration": "no-config",
    "a torn configuration": "torn-config",
    "a configuration that is a list": "list-config",
    "a configuration that is a folder": "folder-config",
    "a configuration without a type": "untyped-config",
    "a configuration of an unknown type": "unknown-config",
    "code of the model's own": "remote-code",
    "no weights": "no-weights",
    "an empty file of weights": "empty-weights",
    "a torn file of weights": "torn-weights",
    "a file of weights that holds none": "garbage-weights",
    "weights whose header claims too much": "huge-header",
    "pickled weights": "pickle-weights",
    "an index of pickled weights": "pickle-index",
    "an index that leads out of the folder": "escaping-index",
    "weights of other shapes": "other-shapes",
    "weights of which some are missing": "lacking-weights",
    "no tokenizer": "no-tokenizer",
    "a torn tokenizer": "torn-tokenizer",
    "a torn configuration of the tokenizer": "torn-tokenizer-config",
    "code of the tokenizer's own": "tokenizer-code",
    "a tokenizer that is none": "other-tokenizer",
    "a torn chat template": "torn-template",
    "a torn configuration of generation": "torn-generation-config",
    "an encoder": "encoder",
    "a negative size": "negative-size",
    "no layers": "no-layers",
    "heads that do not divide the width": "odd-heads",
    "sizes in words": "text-sizes",
    "a negative window": "no-window",
    "a vocabulary smaller than the tokenizer's": "small-vocabulary",
    "an adapter without its base": "adapter",
    "an empty GGUF file": "empty.gguf",
    "a torn GGUF file": "torn.gguf",
    "a GGUF file that is none": "garbage.gguf",
}

CASES = {title: f"{RUN} model.path={{bad}}/models/{name}" for title, name in FOLDERS.items()}

TEXTS = {
    "torn-config": ("config.json", '{"model_type": '),
    "list-config": ("config.json", "[1]"),
    "torn-tokenizer": ("tokenizer.json", '{"version": "1.0"'),
    "torn-tokenizer-config": ("tokenizer_config.json", "["),
    "other-tokenizer": ("tokenizer.json", '{"completely": "different"}'),
    "torn-template": ("chat_template.jinja", "{% for message in"),
    "torn-generation-config": ("generation_config.json", "{"),
}
"""Files with another text than the good model's."""

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "untyped-config": {"model_type": ..., "architectures": ...},
    "unknown-config": {"model_type": "nosuch"},
    "remote-code": {
        "model_type": "nosuch",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    },
    "encoder": {"model_type": "bert", "architectures": ["BertModel"]},
    "negative-size": {"hidden_size": -64},
    "no-layers": {"num_hidden_layers": 0},
    "odd-heads": {"num_attention_heads": 7},
    "text-sizes": {"hidden_size": "wide", "num_hidden_layers": "many"},
    "no-window": {"max_position_embeddings": -5},
    "small-vocabulary": {"vocab_size": 3},
}
"""Values other than the good model's; `...`: the key is missing."""

MISSING = {
    "no-config": ["config.json"],
    "folder-config": ["config.json"],
    "no-weights": ["model.safetensors"],
    "pickle-weights": ["model.safetensors"],
    "pickle-index": ["model.safetensors"],
    "escaping-index": ["model.safetensors"],
    "no-tokenizer": ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
    "adapter": ["config.json", "model.safetensors"],
}
"""Files that are not there."""

RUNS_WHEN_IMPORTED = "raise SystemExit('ran')\n"


def fill(bad: Path, good: Path) -> None:
    """Make `bad`/models with everything that `FOLDERS` names, out of the model in the folder `good`."""
    folder = bad / "models"
    for name in FOLDERS.values():
        if name not in ("missing", "empty", "file") and not name.endswith(".gguf"):
            shutil.copytree(good, folder / name)
    (folder / "empty").mkdir()
    (folder / "file").write_text("no model")
    for name, (file, text) in TEXTS.items():
        (folder / name / file).write_text(text)
    config = json.loads((good / "config.json").read_text())
    for name, changes in CONFIGURATIONS.items():
        changed = {key: value for key, value in {**config, **changes}.items() if value is not ...}
        (folder / name / "config.json").write_text(json.dumps(changed))
    for name, lacking in MISSING.items():
        for file in lacking:
            (folder / name / file).unlink()
    (folder / "folder-config" / "config.json").mkdir()
    (folder / "remote-code" / "code.py").write_text(RUNS_WHEN_IMPORTED)
    described = json.loads((good / "tokenizer_config.json").read_text())
    own_code = {"tokenizer_class": "Nosuch", "auto_map": {"AutoTokenizer": ["code.Slow", "code.Fast"]}}
    (folder / "tokenizer-code" / "tokenizer_config.json").write_text(json.dumps({**described, **own_code}))
    (folder / "tokenizer-code" / "code.py").write_text(RUNS_WHEN_IMPORTED)
    (folder / "adapter" / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "nosuch/nosuch", "peft_type": "LORA"}'
    )
    _damage_weights(folder, good / "model.safetensors")
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "torn.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 10**6, 10**6))
    (folder / "garbage.gguf").write_bytes(bytes(range(256)) * 100)


def _damage_weights(folder: Path, good: Path) -> None:
    """What is wrong with weights, out of a good file."""
    import torch
    from safetensors.torch import load_file, save_file

    weights, stored = load_file(good), good.read_bytes()
    name = "model.safetensors"
    changed: dict[str, Callable[[], bytes]] = {
        "empty-weights": lambda: b"",
        "torn-weights": lambda: stored[: len(stored) // 2],
        "garbage-weights": lambda: b"not weights " * 1000,
        "huge-header": lambda: struct.pack("<Q", 2**62) + stored[8:],
    }
    for kind, made in changed.items():
        (folder / kind / name).write_bytes(made())
    cut = {key: weight[..., :-1].contiguous() for key, weight in weights.items()}
    save_file(cut, folder / "other-shapes" / name)
    fewer = {key: weight for key, weight in weights.items() if "down_proj" not in key}
    save_file(fewer, folder / "lacking-weights" / name)
    for kind in ("pickle-weights", "pickle-index"):
        torch.save(weights, folder / kind / "pytorch_model.bin")
    indices = {
        "pickle-index": ("pytorch_model.bin.index.json", "pytorch_model.bin"),
        "escaping-index": ("model.safetensors.index.json", "../../../../etc/nosuch.safetensors"),
    }
    for kind, (file, points_at) in indices.items():
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, points_at)}
        (folder / kind / file).write_text(json.dumps(index))
