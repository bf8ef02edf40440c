"""What a run was made with: `config.yaml` and `environment.json` beside its records, without secrets."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from benchmarks.base import Sample
from kvcache.matmul import library
from longpress.catalogue import ROOT
from longpress.evaluation.config import Settings
from longpress.models.loading import LoadedModel
from longpress.pipeline.memory import MemoryPlan

PACKAGES = (
    "longpress",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "pandas",
    "hydra-core",
    "omegaconf",
)
REDACTED = "<redacted>"

_SECRET_NAME = re.compile(
    r"(?i)(^|[_\-.+~])(token|password|passwd|secret|api_?key|access_?key|credentials?)$"
)
_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_GUARANTEE = {
    "float32": "answers, greedy or drawn, do not depend on which rows are decoded together; the same "
    "command gives the same records",
    "other": "the same command with the same batch bound on the same machine gives the same records; "
    "other batches round differently and may change answers",
}


def redacted(text: str) -> str:
    """A text without secrets: tokens of known form, values of environment variables with telling names."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= 8:
            text = text.replace(value, REDACTED)
    return _SECRET.sub(REDACTED, text)


def without_secrets(value: Any) -> Any:
    """The same plain value with secrets replaced, by the names of their keys or by their form."""
    if isinstance(value, Mapping):
        return {
            key: REDACTED
            if isinstance(one, str) and one and _SECRET_NAME.search(str(key))
            else without_secrets(one)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(one) for one in value]
    return redacted(value) if isinstance(value, str) else value


def command_line(arguments: Sequence[str]) -> list[str]:
    """Arguments `key=value` without secrets."""
    shown = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        shown.append(f"{key}={REDACTED}" if equals and _SECRET_NAME.search(key) else redacted(argument))
    return shown


def write_description(
    folder: Path,
    settings: Settings,
    made_with: Mapping[str, Any],
    prompts: Mapping[str, Any],
    sample_ids: Sequence[str],
    samples: Sequence[Sample],
) -> None:
    """Write `config.yaml` and `environment.json`, each whole or not at all.

    Args:
        folder: of the results; exists.
        settings: what is run.
        made_with: the environment; with several workers, that of one of them.
        prompts: what stands around contexts and questions, see `RecordBuilder.described`.
        sample_ids: `Sample.answer_id` of all samples of the run, done or not.
        samples: those that are answered now.
    """
    made = {
        **made_with,
        "prompts": dict(prompts),
        "workers": settings.options.workers,
        "n_samples": len(sample_ids),
        "sample_ids_sha256": _sha256(sorted(sample_ids)),
        "contexts_sha256": _sha256(sorted({sample.context_id for sample in samples})),
    }
    _write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(without_secrets(settings.resolved))))
    _write(folder / "environment.json", json.dumps(made, indent=2) + "\n")


def write_memory(folder: Path, planned: MemoryPlan, at_start: int, peak: int) -> None:
    """Add to `environment.json` what memory was planned and what was taken, in bytes.

    `planned_in_host_memory_bytes` is of each context that is offloaded.

    `within_plan`: the peak is at most what was held at the start (the interpreter, its libraries and the
    weights) and what the plan allows beside the weights. Loading may reach more than that for a moment; then
    the run itself is not told apart.
    """
    path = folder / "environment.json"
    made = json.loads(path.read_text(encoding="utf-8"))
    made["memory"] = {
        "planned_bytes": planned.total,
        "planned_beside_weights_bytes": planned.beside_weights,
        "planned_in_host_memory_bytes": planned.on_host,
        "held_at_start_bytes": at_start,
        "peak_memory_bytes": peak,
        "within_plan": peak <= at_start + planned.beside_weights,
    }
    _write(path, json.dumps(made, indent=2) + "\n")


def environment(loaded: LoadedModel) -> dict[str, Any]:
    """What the numbers depend on besides the configuration."""
    cuda = torch.cuda.is_available()
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": command_line(sys.argv),
        "code": git_state(ROOT),
        "device": str(loaded.device),
        "device_name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "dtype": loaded.dtype,
        "threads": torch.get_num_threads(),
        "cpu_float32_products": library(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "guarantee": _GUARANTEE.get(loaded.dtype, _GUARANTEE["other"]),
        "model_revision": loaded.revision,
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the code and whether it was changed since; both None outside a git checkout."""

    def git(*arguments: str) -> str | None:
        try:  # no lock: a killed run must not leave one in the checkout
            done = subprocess.run(
                ["git", "--no-optional-locks", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _sha256(values: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
