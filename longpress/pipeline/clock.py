"""Seconds of work: a GPU works on while the process goes ahead, and a plain clock would time the asking."""

from __future__ import annotations

import time

import torch


def now() -> float:
    """Seconds on a steady clock, read when the GPUs of this process have done what they were asked to."""
    if torch.cuda.is_initialized():
        for card in range(torch.cuda.device_count()):
            if torch.cuda.memory_allocated(
                card
            ):  # to wait for a card that others use would take memory there
                torch.cuda.synchronize(card)
    return time.perf_counter()
