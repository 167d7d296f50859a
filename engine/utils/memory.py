"""The most memory a piece of work took, on the device it ran on."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import torch

_PROC = Path("/proc/self")


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, where that can be done: on CUDA, and on Linux (`clear_refs`, see proc(5))."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            (_PROC / "clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Most bytes since `reset_peak_memory`: allocated on CUDA, resident for this whole process on a CPU.

    Where the peak cannot be reset it is that of the process since it began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    with contextlib.suppress(OSError):
        peak = re.search(r"^VmHWM:\s+(\d+) kB", (_PROC / "status").read_text(), re.MULTILINE)
        if peak:
            return int(peak[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
