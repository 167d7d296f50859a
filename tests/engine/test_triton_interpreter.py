"""Tests of Triton code without a GPU: in Triton's interpreter, in one process of their own.

Triton decides between compiler and interpreter when it is imported, which importing transformers does already.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.places import ROOT
from tests.helpers.triton import RUNS_HERE, triton

FILES = ("tests/engine/kernels/test_kernels.py", "tests/engine/inference/test_cuda_graphs.py")


def _version(module):
    return tuple(int(part) for part in module.__version__.split(".")[:2])


@pytest.mark.skipif(RUNS_HERE, reason="those files run their tests themselves")
@pytest.mark.skipif(
    _version(triton) < (3, 7) and _version(np) >= (2, 4),
    reason="the interpreter of Triton before 3.7 fails with NumPy 2.4",
)
def test_kernels_and_steps_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", *FILES, "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout
