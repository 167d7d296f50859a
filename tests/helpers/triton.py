"""Where Triton's code can run: on a GPU, or in its interpreter if `TRITON_INTERPRET` chose that before the import."""

from __future__ import annotations

import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
ON_GPU = torch.cuda.is_available()
RUNS_HERE = ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"
