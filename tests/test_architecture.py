"""The house stays as it was drawn: who may import whom, what is named where, what there is only one of."""

import ast
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from longpress.catalogue import benchmarks, presses
from longpress.evaluation.options import RunOptions
from longpress.pipeline.options import PipelineOptions
from tests.support.source_tree import (
    MODULES,
    ROOT,
    TESTS,
    belongs,
    calls,
    cycles,
    imports,
    own_imports,
    texts,
    tree_of,
    within,
)

GROUND = {"longpress.catalogue", "longpress.errors"}
"""What needs the standard library alone."""
ALLOWED = {
    "kvcache": set(),
    "presses": {"kvcache"},
    "presses.__init__": {"longpress.catalogue"},
    "benchmarks": GROUND,
    "longpress.errors": set(),
    "longpress.catalogue": {"longpress.errors"},
    "longpress.models": {"kvcache", *GROUND},
    "longpress.pipeline": {"longpress.models", "presses", "kvcache"},
    "longpress.analysis": {"benchmarks", *GROUND},
    "longpress.evaluation": {
        *("longpress.analysis", "longpress.pipeline", "longpress.models"),
        *("benchmarks", "presses", "kvcache", *GROUND),
    },
    "longpress.integrations": {
        *("longpress.evaluation", "longpress.pipeline", "longpress.models"),
        *("presses", "kvcache", *GROUND),
    },
    "longpress.speed": {
        *(
            "longpress",
            "longpress.evaluation",
            "longpress.analysis",
            "longpress.pipeline",
            "longpress.models",
        ),
        *("benchmarks", "presses", "kvcache", *GROUND),
    },
    "longpress.cli": {"longpress", *GROUND},
    "longpress.__main__": {"longpress.cli"},
    "longpress": {
        *("longpress.integrations", "longpress.pipeline", "longpress.models"),
        *("presses", "kvcache"),
    },
}
"""The parts of the house and what each may import; a module belongs to the longest part of its name."""
COMMANDS = {
    *("longpress.evaluation", "longpress.analysis", "longpress.speed"),
    *("longpress.integrations", "benchmarks"),
}
"""What `longpress.cli` starts, by name and only when it is asked for."""
HEAVY = {"torch", "transformers"}
ENGINE = {
    name: path
    for name, path in within("kvcache", "longpress").items()
    if not belongs(name, "longpress.speed")
}
"""What serves every method. `longpress.speed` is left out: its subject is a sweep of certain presses."""
METHODS = {name: entry for name, entry in presses().items() if name != "none"}
BASES = {"base", "scorer", "wrapper", "support", "none", "from_kvpress"}
"""What of `presses` is no method, or is the absence of one."""


def part_of(name: str) -> str | None:
    """The part of the house to which a module belongs, or None where it is not ours."""
    of_presses = "presses.__init__" if name == "presses" else name
    fitting = [part for part in ALLOWED if belongs(of_presses, part)]
    return max(fitting, key=len, default=None)


def imported_parts(name: str) -> dict[str, str]:
    """The parts that a module imports, each with one of the modules behind it."""
    found: dict[str, str] = {}
    for imported in imports(MODULES[name]):
        module = imported if imported in MODULES else imported.rpartition(".")[0]
        part = part_of(module) if module in MODULES else None
        if part is not None:
            found.setdefault("presses" if part == "presses.__init__" else part, imported)
    return found


# Imports.


def test_imports_point_one_way() -> None:
    wrong: dict[str, set[str]] = {}
    for name in MODULES:
        part = part_of(name)
        assert part is not None, f"{name} belongs to no part of the house"
        allowed = {part, *ALLOWED[part], *(["presses"] if part == "presses.__init__" else [])}
        others = {module for other, module in imported_parts(name).items() if other not in allowed}
        wrong |= {name: others} if others else {}
    assert wrong == {}


def test_nothing_is_imported_in_a_circle() -> None:
    """Imports inside functions count: one that is hidden there to break a circle is found.

    Left out is the face of the package, longpress/__init__.py, which imports a name when a user first asks.
    """
    assert cycles(own_imports({name: path for name, path in MODULES.items() if name != "longpress"})) == []


def test_only_the_command_starts_what_is_started() -> None:
    users = {
        name
        for name in MODULES
        for part in imported_parts(name)
        if part == "longpress.speed" and not belongs(name, "longpress.speed")
    }
    assert not users, "longpress.speed measures the others; none of them needs it"
    named = {text for text in texts(MODULES["longpress.cli"]) if text in MODULES}
    assert all(any(belongs(module, part) for part in COMMANDS) for module in named)


def test_tables_and_benchmarks_name_no_torch() -> None:
    for name, path in within("benchmarks", "longpress.analysis", *GROUND).items():
        assert not {imported.split(".")[0] for imported in imports(path)} & HEAVY, name


def test_what_needs_no_torch_imports_in_less_than_a_second() -> None:
    code = "import time, longpress, longpress.analysis, benchmarks; print(time.process_time())"
    seconds = []
    for _ in range(2):  # the processor's time, of the quicker: others may be at work on this machine
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 1


def test_what_needs_no_torch_imports_without_it() -> None:
    """Through others, too: all of these modules in one process."""
    free = [name for name in within("benchmarks", "longpress.analysis", *GROUND) if "__main__" not in name]
    code = f"import sys, longpress, {', '.join(free)}; sys.exit(str({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()", done.stderr


def test_internals_of_transformers_stay_in_kvcache() -> None:
    """Loading a model is the one other place that must know them."""
    others = {
        name: sorted(inside)
        for name, path in MODULES.items()
        if not belongs(name, "kvcache") and not belongs(name, "longpress.models")
        if (inside := {module for module in imports(path) if module.startswith("transformers.models")})
    }
    assert not others


def test_kvcache_knows_no_data_and_no_configuration() -> None:
    for name, path in within("kvcache").items():
        tops = {imported.split(".")[0] for imported in imports(path)}
        assert not tops & {"datasets", "pandas", "hydra", "omegaconf"}, name


def test_no_test_imports_another() -> None:
    """What several need lies in tests/support. Programs that a test writes or starts count as well."""
    pattern = r"^\s*(?:from|import) +[\w.]*(?:\btest_\w+|\bconftest\b)"
    for name, path in TESTS.items():
        others = {
            imported
            for imported in imports(path)
            if belongs(imported, "tests") and imported != "tests" and not belongs(imported, "tests.support")
        }
        assert not others, f"{name} may not import {others}"
        written = [text for text in texts(path) if re.search(pattern, text, re.M)]
        assert not written, f"{name} writes a program that imports a test"


# Names.


def test_the_engine_imports_no_method_and_no_suite() -> None:
    for name, path in ENGINE.items():
        for imported in imports(path):
            package, _, rest = imported.partition(".")
            first = rest.split(".")[0]
            assert not (package == "presses" and first in METHODS), f"{name} imports {imported}"
            assert not (package == "benchmarks" and first in benchmarks()), f"{name} imports {imported}"
            assert not (package == "presses" and first.endswith("Press") and first != "BasePress"), name


def test_the_engine_names_no_method_and_no_suite() -> None:
    words = {"decoding"}  # the name of a press, and what the field calls the second half of inference
    names = {*METHODS, *(entry.class_name for entry in METHODS.values()), *benchmarks()} - words
    for name, path in ENGINE.items():
        assert not names & set(texts(path)), name


def test_nobody_asks_which_press_it_is() -> None:
    """A difference between presses is a value among a press's traits, or a method of it."""
    for name, call in calls(MODULES):
        if isinstance(call.func, ast.Name) and call.func.id == "isinstance":
            classes = re.findall(r"\w+Press\b", ast.unparse(call.args[1]))
            assert set(classes) <= {"BasePress"}, f"{name}:{call.lineno}: {ast.unparse(call)}"


def test_nobody_asks_a_press_for_a_trait_by_its_name() -> None:
    """Foreign presses, which have no traits, are asked by their adapter alone."""
    for name, call in calls(MODULES):
        if name == "presses.from_kvpress" or not isinstance(call.func, ast.Name):
            continue
        if call.func.id in ("hasattr", "getattr") and isinstance(call.args[1], ast.Constant):
            asked = ast.unparse(call.args[0]).lower()
            assert not re.search(r"(press|wrapper)$", asked), f"{name}:{call.lineno}: {ast.unparse(call)}"


def test_nobody_compares_methods_to_learn_what_a_press_can_do() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot | ast.Eq):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                compared = [side for side in sides if re.search(r"\b\w*Press\.\w+$|\btype\(.*\)\.\w+$", side)]
                assert not compared, f"{name}:{node.lineno}: {ast.unparse(node)}"


def test_folders_are_named_by_what_is_inside() -> None:
    anywhere = {"utils", "util", "common", "helpers", "helper", "misc", "core", "shared"}
    for path in [*MODULES.values(), *TESTS.values(), *(ROOT / "hydra_plugins").rglob("*.py")]:
        assert not anywhere & {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}, path


def test_every_module_says_what_it_is() -> None:
    others = [ROOT / "evaluate.py", *(ROOT / "hydra_plugins").rglob("*.py")]
    silent = [
        str(path.relative_to(ROOT))
        for path in [*MODULES.values(), *TESTS.values(), *others]
        if not ast.get_docstring(tree_of(path))
    ]
    assert not silent, 'begin each with """what it is"""'


# What there is only one of.


def test_an_observation_is_built_in_one_place() -> None:
    """By one method; a field of one that was built may be changed by `dataclasses.replace`."""
    classes = {
        (name, node.name): node
        for name, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Observation")
    }
    constructors = {"cls", *(class_name for _, class_name in classes)}
    methods = [
        (name, class_name, method.name)
        for (name, class_name), node in classes.items()
        for method in node.body
        if isinstance(method, ast.FunctionDef) and called_in(method) & constructors
    ]
    assert len(methods) == 1, methods
    elsewhere = [
        f"{name}:{call.lineno}"
        for name, call in calls(MODULES)
        if ast.unparse(call.func).split(".")[-1] in constructors - {"cls"}
    ]
    assert not elsewhere, "use the method"


def called_in(node: ast.AST) -> set[str]:
    """The names of what is called inside a piece of code."""
    inside = [child for child in ast.walk(node) if isinstance(child, ast.Call)]
    return {ast.unparse(call.func) for call in inside}


def test_one_road_leads_from_evidence_to_a_compressed_layer() -> None:
    """What is kept is selected, checked and applied by kvcache/compress.py, whoever asks.

    Presses hand the call on to a press inside them; that is part of the press.
    """
    on_the_road = {
        (name, call.func.attr)
        for name, call in calls(ENGINE)
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in ("select", "apply")
        and ast.unparse(call.func.value).split(".")[-1] in ("press", "self")
    }
    assert on_the_road == {("kvcache.compress", "select"), ("kvcache.compress", "apply")}


def test_one_module_looks_for_classes_in_folders() -> None:
    scanning = {
        name
        for name, call in calls(MODULES)
        if re.search(r"(?:iter_modules|walk_packages)$|glob$", ast.unparse(call.func))
        and (".py" in ast.unparse(call) or "pkgutil" in ast.unparse(call))
    }
    assert scanning == {"longpress.catalogue"}
    loading = {
        name
        for name, call in calls(MODULES)
        if ast.unparse(call.func).endswith("spec_from_file_location")
        or "SourceFileLoader" in ast.unparse(call)
    }
    assert loading == {"longpress.catalogue"}


def test_an_option_of_a_run_is_declared_once() -> None:
    """As a field of the options of the pipeline or of the run; conf/config.yaml only makes choices."""
    names = [field.name for field in fields(RunOptions)]
    assert {field.name for field in fields(PipelineOptions)} <= set(names)
    declared = [
        (path, node.name, statement.target.id)
        for path in MODULES
        for node in ast.walk(tree_of(MODULES[path]))
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and statement.target.id in names
        and statement.value is not None
        and ast.unparse(statement.value).startswith("option(")
    ]
    assert sorted(option for _, _, option in declared) == sorted(names), "each in one class"
    assert {path for path, _, _ in declared} == {"longpress.pipeline.options", "longpress.evaluation.options"}
    config = (ROOT / "conf" / "config.yaml").read_text(encoding="utf-8")
    written = {line.split(":")[0] for line in config.splitlines() if re.match(r"\w+:", line)}
    assert written <= {"defaults", "hydra"}


def test_nothing_dangerous_is_called() -> None:
    for name, call in calls(MODULES):
        called = ast.unparse(call.func)
        assert called not in ("eval", "exec", "os.system", "pickle.load", "pickle.loads"), f"{name}: {called}"


def test_every_press_can_be_imported_by_name() -> None:
    import presses as package

    for entry in presses().values():
        assert getattr(package, entry.class_name).__name__ == entry.class_name
    with pytest.raises(AttributeError, match="SnapKVPress"):
        package.SnapPress  # noqa: B018
