"""What holds for every suite, whoever adds one."""

import ast
from pathlib import Path

from longpress.catalogue import benchmarks


def test_every_suite_runs_end_to_end() -> None:
    """Its tests take it from rows to a table on the embedded model (tests/support/end_to_end.py)."""
    called = {
        node.args[0].value
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "check_end_to_end"
        and isinstance(node.args[0], ast.Constant)
    }
    assert called == set(benchmarks())
