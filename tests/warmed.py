"""What a fork of the warmed-up process finds done: everything that the commands import, and the scan of the catalogue."""

import gc
from importlib import import_module

from evaluation.catalogue import benchmarks, presses

for name in (
    *("runner", "workers", "tables", "fidelity", "plots", "report", "keptmaps", "compare", "rescore", "export", "calibrate"),
    *("benchmarks.__main__", "pyarrow.parquet", "transformers.models.llama.modeling_llama", "warm_command"),
):
    import_module(name if "." in name or name == "warm_command" else f"evaluation.{name}")
presses()
benchmarks()
gc.freeze()
