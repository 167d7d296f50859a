"""What every test may use: where the shared traces and measurements lie, and quiet, offline libraries."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one core each: more threads than cores are many times slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # in the background shells ignore it, and children inherit that

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The team's folder of real traces and measurements; users don't have it."""
    if not SHARED.is_dir():
        pytest.skip("the team's folder shared/ is not beside this checkout")
    return SHARED
