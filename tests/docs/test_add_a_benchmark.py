"""The benchmark of the page on adding one holds the laws of all suites, and runs as the page says."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.base import Benchmark, Sample, group_by_context
from tests.support import suite_laws
from tests.support.documents import ROOT, blocks, commands

PAGE = ROOT / "docs" / "add-a-benchmark.md"
FILE = next(block for block in blocks(PAGE, "python") if block.caption)


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    place = tmp_path / "codes.py"
    place.write_text(FILE.text, encoding="utf-8")
    specification = importlib.util.spec_from_file_location("codes_of_the_page", place)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
        made: Benchmark = module.CodesBenchmark()
        yield made
    finally:
        del sys.modules[specification.name]


def gold(sample: Sample) -> str:
    return str(sample.references[0])


def test_it_holds_the_laws_of_all_suites(benchmark: Benchmark) -> None:
    samples = suite_laws.take(benchmark, limit=6)
    suite_laws.check(benchmark, samples, gold)
    assert suite_laws.take(benchmark, limit=2) == [
        sample for sample in samples if int(sample.id[-1]) < 2 and "/0-" in sample.id
    ]


def test_questions_share_their_context_and_the_answer_stands_in_the_evidence(benchmark: Benchmark) -> None:
    samples = suite_laws.take(benchmark, limit=4)
    assert [len(group) for group in group_by_context(samples)] == [2, 2, 2, 2]
    for sample in samples:
        ((start, end),) = sample.evidence
        assert gold(sample) in sample.context[start:end]


def test_predictions_are_read(benchmark: Benchmark) -> None:
    rows = [(1, {"task": "short", "reference": "123456", "prediction": "It is 123456."})]
    ((sample, prediction),) = benchmark.read_predictions(rows, None)
    assert benchmark.score(sample, prediction) == {"found": 1.0}
    with pytest.raises(ValueError, match="line 1"):
        list(benchmark.read_predictions([(1, {"task": "short"})], None))


@pytest.mark.slow
def test_the_command_of_the_page_runs_with_no_other_edit(tmp_path: Path) -> None:
    for folder in ("presses", "kvcache", "benchmarks", "longpress", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / FILE.caption).write_text(FILE.text, encoding="utf-8")
    words = next(
        words
        for block in blocks(PAGE, "bash")
        for words in commands(block)
        if words[:2] == ["longpress", "run"]
    )
    ran = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    assert "codes on smollm2" in ran.stdout and "streaming_llm" in ran.stdout
