"""The wheel, installed: its commands and `import longpress` work in a folder full of a user's own things."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from longpress import __version__
from tests.support.made_up_records import ruler_record, write_records
from tests.support.running import TASKS, of_model

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "hydra_plugins", "kvcache", "longpress", "presses")
NONSENSE = "raise RuntimeError('this is a module of the user')\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*PACKAGES, "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "evaluate.py"):
        shutil.copy(ROOT / name, source)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *flags, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stdout + done.stderr
    (built,) = folder.glob("longpress-*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin/` of a new environment that holds the wheel, and what this one has beside longpress itself."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        wheel,
    ]
    subprocess.run(install, check=True)
    folders = {"base": str(environment), "platbase": str(environment)}
    site_packages = Path(sysconfig.get_path("purelib", vars=folders))
    # a folder named in a .pth file is searched, but the .pth files in it are not read: an editable install
    # of this checkout, which is one of those, stays outside
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, in which names of ours mean something else."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "pipeline.py").write_text(NONSENSE)
    for name in ("models", "evaluation", "analysis", "benchmarks", "presses", "conf"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(NONSENSE)
        (folder / name / "base.py").write_text(NONSENSE)
    return folder


def run(programs: Path, folder: Path, program: str, *arguments: str) -> str:
    """What a program of the environment prints in a folder, where it must not fail."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [programs / program, *arguments],
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def test_it_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    information = f"longpress-{__version__}.dist-info/"
    source = wheel.parent / "source"
    files = {path for name in PACKAGES for path in (source / name).rglob("*") if path.is_file()}
    expected = {str(path.relative_to(source)) for path in files}
    expected |= {f"longpress/{path.relative_to(source)}" for path in (source / "conf").rglob("*.yaml")}
    assert {name for name in names if not name.startswith(information)} == expected
    assert f"{information}licenses/LICENSE" in names


@pytest.mark.parametrize("starts", [["longpress"], ["python", "-m", "longpress"]], ids=" ".join)
def test_the_command_starts(starts: list[str], programs: Path, folder: Path) -> None:
    assert "longpress run experiment=demo" in run(programs, folder, *starts, "--help")
    assert run(programs, folder, *starts, "--version") == f"longpress {__version__}\n"
    assert "snapkv" in run(programs, folder, *starts, "ls", "presses")
    assert "ruler" in run(programs, folder, *starts, "ls", "benchmarks")
    assert "demo" in run(programs, folder, *starts, "ls", "experiments")


def test_tables_are_made_from_records(programs: Path, folder: Path, tmp_path: Path) -> None:
    presses = [("none", 0.0), ("knorm", 0.5)]
    records = [
        ruler_record(f"{press}{n}", press=press, ratio=ratio, at=n, context_id=f"c{n}")
        for press, ratio in presses
        for n in range(3)
    ]
    write_records(tmp_path / "results", records)
    run(programs, folder, "longpress", "tables", str(tmp_path / "results"), "--out", "made")
    assert "knorm" in (folder / "made" / "table.md").read_text(encoding="utf-8")
    assert (folder / "made" / "scores.csv").exists() and (folder / "made" / "report.html").exists()


def test_a_script_imports_it_in_no_time(programs: Path, folder: Path) -> None:
    script = folder / "script.py"
    script.write_text(
        "import json, sys, time\n"
        "start = time.process_time()\n"
        "import longpress\n"
        "print(json.dumps([time.process_time() - start, longpress.__file__, 'torch' in sys.modules]))\n"
    )
    seconds, file, torch = json.loads(run(programs, folder, "python", str(script)))
    assert Path(file).is_relative_to(programs.parent)
    assert seconds < 0.2 and not torch


@pytest.mark.parametrize(
    "module", ["longpress.analysis", "longpress.analysis.tables.scores", "benchmarks.ruler"]
)
def test_parts_that_need_no_torch_import_none(module: str, programs: Path, tmp_path: Path) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules, {module}.__file__)"
    torch, file = run(programs, tmp_path, "python", "-c", code).split()
    assert torch == "False" and Path(file).is_relative_to(programs.parent)


def test_the_library_works_beside_what_does_not_hide_it(programs: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "user", ignore=shutil.ignore_patterns("presses"))
    script = tmp_path / "user" / "script.py"
    script.write_text(
        "from longpress import CompressingPipeline, SnapKVPress, load_model\nprint(SnapKVPress(0.5))\n"
    )
    assert "SnapKVPress(" in run(programs, tmp_path / "user", "python", str(script))


def test_the_demonstration_runs(programs: Path, folder: Path) -> None:
    printed = run(programs, folder, "longpress", "run", "experiment=demo", "limit=1")
    assert "snapkv" in printed
    assert (folder / "results" / "demo" / "table.md").exists()


def test_worker_processes_find_the_packages(programs: Path, folder: Path, model_folder: Path) -> None:
    asked = [*TASKS, *of_model(model_folder), "limit=2", "press=knorm", "workers=2", "results=two"]
    assert "knorm" in run(programs, folder, "python", "-m", "longpress", "run", *asked)
