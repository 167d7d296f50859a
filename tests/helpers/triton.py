"""Tests of Triton code: on a GPU in this process, else in Triton's interpreter in one of its own.

Triton decides between the two when it is imported, which importing transformers does already.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
ON_GPU = torch.cuda.is_available()
RUNS_HERE = ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"


def _version(module):
    return tuple(int(part) for part in module.__version__.split(".")[:2])


needs_working_interpreter = pytest.mark.skipif(
    _version(triton) < (3, 7) and _version(np) >= (2, 4),
    reason="the interpreter of Triton before 3.7 fails with NumPy 2.4",
)


def run_in_interpreter(file: str) -> subprocess.CompletedProcess[str]:
    """Run a test file where `RUNS_HERE` is true."""
    command = [sys.executable, "-m", "pytest", file, "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
