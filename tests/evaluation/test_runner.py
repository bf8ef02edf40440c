"""Runs of the real command on a tiny model: shared prefill, resume, growth of a table, bad input."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from longpress.analysis.kept_maps import read_kept_maps
from tests.support.running import ROOT, command, content, records, run
from tests.support.warm_command import Command, completed


@pytest.fixture(scope="session")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    results = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        command(model_folder, results), capture_output=True, text=True, check=False, timeout=300
    )  # as users start it
    assert done.returncode == 0, done.stdout + done.stderr
    return results, done.stdout


def test_a_run_fills_the_folder_and_prints_the_table(finished: tuple[Path, str]) -> None:
    results, printed = finished
    found = records(results)
    assert len(found) == len({record["key"] for record in found}) == 2 * 3 * 5
    assert {(r["press"], r["compression_ratio"]) for r in found} == {
        ("none", 0),
        *((p, r) for p in ("knorm", "snapkv") for r in (0.25, 0.5)),
    }
    for name in ("scores.csv", "scores.parquet", "table.md", "table.tex", "config.yaml", "environment.json"):
        assert (results / name).is_file(), name
    assert "knorm" in printed
    assert "95 % interval" in printed
    for record in found:
        tokens = record["context_tokens"]
        assert record["kept_entries"] == [int(tokens * (1 - record["compression_ratio"]))] * 3
        assert record["cache_bytes"] == sum(record["kept_entries"]) * 2 * 2 * 16 * 4
        assert record["kept_fraction"] == pytest.approx(record["kept_entries"][0] / tokens)


def test_a_finished_run_is_a_no_op(finished: tuple[Path, str], model_folder: Path) -> None:
    results, _ = finished
    before = {path: path.read_bytes() for path in (results / "records").iterdir()}
    again = run(model_folder, results)
    assert "nothing to do" in again.stderr
    assert "knorm" in again.stdout
    assert {path: path.read_bytes() for path in (results / "records").iterdir()} == before


def test_another_press_joins_the_same_table(
    finished: tuple[Path, str], model_folder: Path, tmp_path: Path
) -> None:
    run(model_folder, tmp_path, "press=knorm")
    run(model_folder, tmp_path, "press=snapkv")
    assert content(tmp_path) == content(finished[0])
    assert len(records(tmp_path)) == len(records(finished[0]))


def test_fidelity_stands_in_records_and_tables(model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path, "fidelity=true", "press=[knorm,decoding]", "limit=1", "benchmark.tasks=[vt]")
    found = {(r["press"], r["compression_ratio"]): r for r in records(tmp_path)}
    full, pressed, acting = (
        found["none", 0],
        found["knorm", 0.5],
        next(r for (press, _), r in found.items() if press == "decoding"),
    )
    assert (full["answer_kl"], full["reference_kl"], full["answer_agreement"]) == (0, 0, 1)
    assert pressed["reference_nll"] > 0 and pressed["answer_kl"] > 0
    assert acting["answer_kl"] is None and acting["score"] is not None
    assert "knorm" in (tmp_path / "fidelity.md").read_text(encoding="utf-8")
    assert (tmp_path / "fidelity.csv").is_file()


def kill_after(seconds: float, model_folder: Path, results: Path) -> None:
    process = Command(results.with_name(f"{results.name} printed"), *command(model_folder, results)[1:])
    deadline = time.monotonic() + 120
    while (
        seconds < 0
        and not list(results.glob("records/*.jsonl"))
        and time.monotonic() < deadline
        and not process.ended
    ):
        time.sleep(0.005)
    time.sleep(abs(seconds))
    process.kill()


def test_tokens_and_thresholds_stand_beside_ratios(model_folder: Path, tmp_path: Path) -> None:
    budgets = ["press=knorm", "budget_tokens=[100,100000]", "threshold=-5", "limit=1", "benchmark.tasks=[vt]"]
    run(model_folder, tmp_path, *budgets)
    found = {
        (r["compression_ratio"], r["budget_tokens"], r["threshold"]): r
        for r in records(tmp_path)
        if r["press"] == "knorm"
    }
    assert found.keys() == {
        (0.25, None, None),
        (0.5, None, None),
        (None, 100, None),
        (None, 100000, None),
        (None, None, -5),
    }
    assert found[None, 100, None]["kept_entries"] == [100] * 3
    assert found[None, 100000, None]["kept_fraction"] == 1
    assert 0 < found[None, None, -5]["kept_fraction"] < 1
    assert len({record["key"] for record in records(tmp_path)}) == 6
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert all(
        f" {text} |" in table for text in ("budget", "100 tokens", "100000 tokens", "score ≥ -5", "0.25")
    )
    assert "nothing to do" in run(model_folder, tmp_path, *budgets).stderr


@pytest.mark.parametrize(
    "delays",
    [(-0.01, -0.05), pytest.param((1.0, -0.1, -0.0, -0.2, 3.0, -0.02), marks=pytest.mark.slow)],
    ids=str,
)
def test_killed_runs_lose_and_repeat_nothing(
    finished: tuple[Path, str], model_folder: Path, tmp_path: Path, delays: tuple[float, ...]
) -> None:
    for delay in delays:
        kill_after(delay, model_folder, tmp_path)
    run(model_folder, tmp_path)
    assert content(tmp_path) == content(finished[0])
    whole = [record["key"] for record in records(tmp_path)]
    assert len(whole) == len(set(whole))


def test_a_torn_line_is_done_again(finished: tuple[Path, str], model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    for path in (finished[0] / "records").iterdir():
        (tmp_path / "records" / path.name).write_bytes(path.read_bytes()[:-100])
    run(model_folder, tmp_path)
    from longpress.analysis.records import read_records

    assert {record.key for record in read_records([tmp_path])} == {key for key, *_ in content(finished[0])}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["press=snapkvv"], "Could not find 'press/snapkvv'"),
        (["benchmark=rulr"], "Could not find 'benchmark/rulr'"),
        (["compression_ratio=1.0"], "must be a number in [0, 1)"),
        (["compression_ratio=[0.5,half]"], "must be a number in [0, 1)"),
        (["compression_ratio=[]"], "names no ratio"),
        (["budget_tokens=0"], "budget_tokens=0 must be a whole number"),
        (["threshold=high"], "threshold='high' must be a finite number"),
        (["press=adakv", "threshold=0.5"], "adakv takes no threshold"),
        (["limit=0"], "limit=0 must be at least 1"),
        (["compresion_ratio=0.5"], "no option compresion_ratio; did you mean compression_ratio?"),
        (["presses.snapkv.windw_size=3"], "windw_size"),
        (["presses.snapkv.window_size=wide"], "wide"),
        (["presses.snapkv.window_size=0"], "window_size=0 must be at least 1"),
        (["presses_dir=/nowhere"], "no folder at /nowhere"),
        (["benchmark.tasks=[vt,cwe2]"], "cwe2"),
        (["benchmark.source=files", "benchmark.path=/nowhere"], "/nowhere"),
        (["model.path=/nowhere/model"], "/nowhere/model"),
        (["model.dtype=float7"], "float7"),
        (["prefill_chunk=0"], "prefill_chunk=0"),
        (["compress_every=0"], "compress_every=0"),
        (
            ["prefill=chunked", "prefill_chunk=500"],
            "there is no option prefill; did you mean compress_every?",
        ),
        (["max_batch_gb=0"], "max_batch_gb=0"),
        (["offload=sometimes"], "offload='sometimes' must be 'auto'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_gets_one_sentence_and_loses_nothing(
    model_folder: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = completed(*command(model_folder, tmp_path, *arguments)[1:])
    assert done.returncode != 0
    assert sentence in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("**/*.jsonl"))


def test_help_names_every_press_and_benchmark_within_a_second() -> None:
    from longpress.catalogue import benchmarks, presses

    check = (
        "import sys, time, runpy; sys.argv = ['evaluate.py', '--help', 'press=[tova,cap]']\n"
        "try: runpy.run_path('evaluate.py', run_name='__main__')\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'pandas', 'numpy', 'scipy'} & set(sys.modules)\n"
        "    print('heavy:', heavy, file=sys.stderr); print(time.process_time(), file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):  # the processor's time, of the quickest: others may be at work on this machine
        done = subprocess.run(
            [sys.executable, "-c", check], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert "heavy: set()" in done.stderr
        seconds.append(float(done.stderr.split()[-1]))
    assert min(seconds) < 1
    assert all(f"  {name} " in done.stdout for name in [*presses(), *benchmarks()])
    assert "  cap:\n    name: cap\n" in done.stdout


def test_a_press_of_ones_own_needs_one_file(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text(
        '"""Mine: large values stay."""\n'
        "from dataclasses import dataclass\nfrom presses.scorer import ScorerPress\n\n\n"
        "@dataclass(frozen=True)\nclass MinePress(ScorerPress):\n    power: float = 2.0\n\n"
        "    def score(self, layer):\n        return layer.values.norm(dim=-1) ** self.power\n"
    )
    results = tmp_path / "results"
    run(
        model_folder,
        results,
        f"presses_dir={tmp_path / 'own'}",
        "press=[mine,adakv]",
        "presses.mine.power=1",
        "presses.adakv.press=mine",
        "limit=1",
    )
    found = {record["press"]: record for record in records(results)}
    assert found["mine"]["press_parameters"] == {"power": 1.0}
    assert found["adakv"]["press_parameters"]["press"]["press"] == "mine"


def test_a_run_records_what_it_keeps_of_the_first_samples(finished: tuple[Path, str]) -> None:
    results, _ = finished
    by_key = {record["key"]: record for record in records(results)}
    maps = list(read_kept_maps([results]))
    assert sorted(name for one in maps for name in one.questions) == [
        f"{task}/{at}" for task in ("niah_single_1", "vt") for at in (0, 1)
    ]
    for one in maps:
        assert one.counts
        for key, counts in one.counts.items():
            record = by_key[key]
            entries = sum(
                sum(heads) if isinstance(heads, list) else heads * 2 for heads in record["kept_entries"]
            )
            assert int(counts.sum()) == entries, "the map adds up to the measured entries"
            assert len(counts) == record["context_tokens"] and counts.max() <= one.entries
            evidence = one.evidence[record["sample_id"]]
            inside = [any(a < end and start < b for a, b in evidence) for start, end in one.spans]
            assert counts[inside].mean() / one.entries == pytest.approx(record["evidence_kept"], abs=1e-6)
    assert '"context":0' in (results / "report.html").read_text()


def test_in_query_aware_runs_every_question_has_a_map_of_its_own(model_folder: Path, tmp_path: Path) -> None:
    run(
        model_folder,
        tmp_path,
        "query_aware=true",
        "press=snapkv",
        "compression_ratio=0.5",
        "limit=1",
        "kept_maps=1",
    )
    found = {record["key"]: record for record in records(tmp_path)}
    maps = list(read_kept_maps([tmp_path]))
    assert len(maps) == 2 and {key for one in maps for key in one.counts} == set(found)
    for one in maps:
        (question,) = one.questions.values()
        assert question and one.text.endswith(question)
        assert all(len(counts) == found[key]["context_tokens"] for key, counts in one.counts.items())


def test_compression_while_reading_is_recorded_with_its_peak_and_stands_in_lines_of_its_own(
    model_folder: Path, tmp_path: Path
) -> None:
    short = ["press=knorm", "compression_ratio=0.5", "benchmark.tasks=[niah_single_1]", "limit=1"]
    run(model_folder, tmp_path, *short)
    done = run(model_folder, tmp_path, *short, "compress_every=500")
    assert "knorm (prefill chunked/500)" in done.stdout
    of = {(r["press"], r["prefill"]): r for r in records(tmp_path)}
    assert set(of) == {
        (press, prefill) for press in ("none", "knorm") for prefill in ("shared", "chunked/500")
    }
    tokens = of["knorm", "shared"]["context_tokens"]
    chunks = [500] * (tokens // 500) + [tokens % 500]
    assert of["knorm", "chunked/500"]["kept_entries"] == [sum(n // 2 for n in chunks)] * 3
    assert of["knorm", "shared"]["peak_entries"] == tokens * 2 * 3
    assert (
        of["knorm", "chunked/500"]["peak_entries"]
        == max(sum(n // 2 for n in chunks[:at]) + chunks[at] for at in range(len(chunks))) * 6
    )
    maps = {key: counts for one in read_kept_maps([tmp_path]) for key, counts in one.counts.items()}
    assert (
        maps[of["knorm", "chunked/500"]["key"]].sum() == sum(of["knorm", "chunked/500"]["kept_entries"]) * 2
    )
    refused = run(model_folder, tmp_path, "press=kvzip", "compress_every=500", code=2)
    assert "press kvzip needs the whole context" in refused.stdout + refused.stderr
