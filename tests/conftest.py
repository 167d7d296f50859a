"""What every test may use: where the shared traces and measurements lie, and quiet, offline libraries."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sim.utils import paths

if "PYTEST_XDIST_WORKER" in os.environ:  # one core each: more threads than cores are many times slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell's background job ignores it, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests know the shipped profile's numbers; `make run` leaves this machine's own in the checkout.
_ROOT, _EMPTY, _OWN = Path(__file__).resolve().parents[1], TemporaryDirectory(), paths.measured_profiles_dir
paths.measured_profiles_dir = lambda: Path(_EMPTY.name) if Path.cwd() == _ROOT else _OWN()

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The team's folder of real traces and measurements; users don't have it."""
    if not SHARED.is_dir():
        pytest.skip("the team's folder shared/ is not beside this checkout")
    return SHARED
