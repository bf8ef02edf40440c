"""What a fork of the warmed-up process finds done: all imports of the commands, the scan of the catalogue."""

import gc
from importlib import import_module

from longpress.catalogue import benchmarks, presses
from longpress.cli import COMMANDS

for name in (
    *(command.module for name, command in COMMANDS.items() if name != "bench"),
    *("longpress.evaluation.runner", "longpress.evaluation.workers", "longpress.pipeline.facade"),
    *("longpress.analysis.tables.fidelity", "longpress.analysis.plots.draw", "longpress.analysis.kept_maps"),
    *("benchmarks.__main__", "pyarrow.parquet", "scipy.stats", "transformers.models.llama.modeling_llama"),
    "tests.support.warm_command",
):
    import_module(name)
presses()
benchmarks()
gc.freeze()
