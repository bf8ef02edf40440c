"""Memory of this process: what it holds, the most it held, and what becomes of memory that is freed."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch


def keep_freed_memory() -> None:
    """Tell the C library, for the whole process, to keep memory that is freed.

    Its pages cost more to get anew than to fill. glibc only: elsewhere, and where its own environment
    variables are set, nothing changes.
    """
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        _glibc("mallopt", mmap_threshold, 2**30)
        _glibc("mallopt", trim_threshold, 2**31 - 1)


def return_freed_memory() -> None:
    """Give what was freed back to the system.

    For use before work whose tensors have other sizes, which would not fit into the holes.
    """
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    """Call a function of the C library, where it has it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            getattr(ctypes.CDLL(None), function)(*arguments)


def held_memory_bytes() -> int:
    """Bytes that this process holds now.

    Resident memory by the kernel's count; on a GPU, what torch allocated there.
    """
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.memory_allocated()
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_memory_bytes()
    return int(statm.read_text().split()[1]) * resource.getpagesize()


def peak_memory_bytes() -> int:
    """The most bytes that this process held since it started, counted as `held_memory_bytes` does."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process that started this one held
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
