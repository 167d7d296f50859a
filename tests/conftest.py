"""What every test may use: where the shared traces and measurements lie, and quiet, offline libraries."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.places import SHARED

if "PYTEST_XDIST_WORKER" in os.environ:  # one core each: more threads than cores are many times slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shared machine makes any example slow now and then.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
# A shell's background job ignores it, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fixtures of a session start in an empty folder too: nothing sees what `make run` left in the checkout."""
    os.chdir(tmp_path_factory.mktemp("start"))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The team's folder of real traces and measurements; users don't have it."""
    if not SHARED.is_dir():
        pytest.skip("the team's folder shared/ is not beside this checkout")
    return SHARED
