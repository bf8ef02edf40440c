"""The clock that waits for GPUs, on made-up ones."""

import re
import time
from pathlib import Path

import pytest
import torch

from longpress.pipeline import clock
from longpress.pipeline.clock import now


def test_it_waits_for_the_cards_in_use_and_touches_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    def wait(card: int) -> None:
        waited.append(card)
        time.sleep(0.02)  # work that was asked for and is not done

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda card: (100, 0, 5)[card])
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    asked = time.perf_counter()
    assert now() - asked >= 0.04
    assert waited == [0, 2]


def test_without_cards_it_is_the_steady_clock() -> None:
    before = time.perf_counter()
    assert before <= now() <= time.perf_counter()


def test_the_pipeline_reads_no_other_clock() -> None:
    folder = Path(clock.__file__).parent
    others = {
        path.name
        for path in folder.glob("*.py")
        if re.search(r"perf_counter|monotonic|time\.time", path.read_text(encoding="utf-8"))
    }
    assert others == {"clock.py"}
