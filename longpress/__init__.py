"""A benchmark harness for KV-cache compression in long-context language models.

    from longpress import AdaKVPress, CompressingPipeline, SnapKVPress, load_model

Every name is imported when it is first asked for, so that `import longpress` takes no time and needs no
torch. Presses are called as in their papers, with `Press` behind: `SnapKVPress`, `PyramidKVPress`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

PUBLIC = {
    "Budget": "kvcache.budget",
    "CompressingPipeline": "longpress.pipeline.facade",
    "PipelineOptions": "longpress.pipeline.options",
    "Question": "longpress.pipeline.prompt",
    "Request": "longpress.pipeline.results",
    "Variant": "longpress.pipeline.variants",
    "load_model": "longpress.models.loading",
}
"""Public names beside the presses, and the modules that hold them."""


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(PUBLIC[name]), name)
    if name.endswith("Press"):
        return getattr(import_module("presses"), name)
    raise AttributeError(f"longpress has no {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted([*PUBLIC, *import_module("presses").__all__])
