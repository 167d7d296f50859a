"""What this machine is: its processor, the cores that this process may use, its memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def visible_cores() -> int:
    """Cores that this process may run on (a container or taskset may allow fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown CPU"


def memory_bytes() -> int:
    """Memory of this machine."""
    import psutil

    return int(psutil.virtual_memory().total)
