"""A benchmark harness for KV-cache compression in long-context language models.

    from longpress import AdaKVPress, CompressingPipeline, SnapKVPress, load_model

Every name is imported when it is first asked for, so that `import longpress` takes no time and needs no
torch. Presses are called as in their papers, with `Press` behind: `SnapKVPress`, `PyramidKVPress`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors read; a test holds it equal to `PUBLIC`
    from kvcache.budget import Budget as Budget
    from longpress.integrations.transformers_pipeline import register_pipelines as register_pipelines
    from longpress.models.loading import load_model as load_model
    from longpress.pipeline.facade import CompressingPipeline as CompressingPipeline
    from longpress.pipeline.options import PipelineOptions as PipelineOptions
    from longpress.pipeline.prompt import Question as Question
    from longpress.pipeline.results import Request as Request
    from longpress.pipeline.variants import Variant as Variant

__version__ = "0.1.0"

PUBLIC = {
    "Budget": "kvcache.budget",
    "CompressingPipeline": "longpress.pipeline.facade",
    "PipelineOptions": "longpress.pipeline.options",
    "Question": "longpress.pipeline.prompt",
    "Request": "longpress.pipeline.results",
    "Variant": "longpress.pipeline.variants",
    "load_model": "longpress.models.loading",
    "register_pipelines": "longpress.integrations.transformers_pipeline",
}
"""Public names beside the presses, and the modules that hold them."""


def __getattr__(name: str) -> Any:
    if name == "__all__":  # for `from longpress import *`
        return __dir__()
    if name in PUBLIC:
        _check_packages()
        return getattr(import_module(PUBLIC[name]), name)
    if name.endswith("Press"):
        _check_packages()
        return getattr(import_module("presses"), name)
    raise AttributeError(
        f"longpress has no {name!r}; it has {', '.join(PUBLIC)} and every press, as SnapKVPress"
    )


def __dir__() -> list[str]:
    _check_packages()
    presses = [name for name in import_module("presses").__all__ if name.endswith("Press")]
    return sorted(["__version__", *PUBLIC, *presses])


def _check_packages() -> None:
    """Refuse a folder beside a user's script that would be imported in place of a package of ours.

    Raises:
        ImportError: there is one; names it.
    """
    for package in ("kvcache", "presses"):
        spec = find_spec(package)
        if spec is None:
            continue  # importing it says so
        found = [Path(folder).resolve() for folder in spec.submodule_search_locations or [spec.origin or ""]]
        if Path(__file__).resolve().parents[1] / package not in found:
            raise ImportError(
                f"{found[0]} is imported in place of the package {package} that longpress comes with; "
                "rename it, or start Python with -P, which leaves out the folder of the script"
            )
