"""What a fork of the warmed-up process finds done: everything that the commands import, and the scan of the catalogue."""

import gc
from importlib import import_module

from longpress.catalogue import benchmarks, presses

for name in (
    *("evaluation.runner", "evaluation.workers", "evaluation.rescore", "evaluation.calibrate"),
    *("analysis.tables.write", "analysis.tables.fidelity", "analysis.plots.draw", "analysis.report.page"),
    *("analysis.kept_maps", "analysis.compare", "analysis.kvpress_export"),
):
    import_module(f"longpress.{name}")
for name in (
    "benchmarks.__main__",
    "pyarrow.parquet",
    "transformers.models.llama.modeling_llama",
    "tests.support.warm_command",
):
    import_module(name)
presses()
benchmarks()
gc.freeze()
