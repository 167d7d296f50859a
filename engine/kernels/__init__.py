"""Attention over a paged KV cache on a GPU, written in Triton, and on a CPU, written in C.

The modules import triton: import them only where `available` says so. A kernel is compiled at its first call for a
combination of head size, type and options, so call it once before a CUDA graph is captured.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch


def available(device: torch.device) -> bool:
    """Whether the kernels can run on tensors of `device`."""
    return device.type == "cuda" and find_spec("triton") is not None
