"""Decode attention on a CPU: `paged_decode.c`, compiled on this machine for its processor and the model.

torch has no attention over a paged cache on a CPU: blocks would be copied together first, at several times the bytes.
Without a C compiler the engine attends by torch, several times slower at long contexts.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from engine.utils.c_compiler import load_compiled

_SOURCE = Path(__file__).with_name("paged_decode.c")
# Sums may be reordered, as vectors need; nothing else of IEEE is given up, and the processor's modes stay as they are.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
          "-fassociative-math", "-fopenmp")  # fmt: skip
_FORMATS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}

Kernel = Callable[..., None]


@functools.cache
def decode_kernel(shared: int, head_dim: int, block_tokens: int, dtype: torch.dtype) -> Kernel | None:
    """Compiled function for `shared` query heads per KV head; None without a compiler or for other number formats."""
    if dtype not in _FORMATS:
        return None
    sizes = (f"-DG={shared}", f"-DD={head_dim}", f"-DBLOCK={block_tokens}")
    library = load_compiled(_SOURCE, (*_FLAGS, *_FORMATS[dtype], *sizes), _openmp())
    if library is None:
        return None
    function = library.paged_decode
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 5 + [ctypes.c_float]
    return function


def paged_decode(
    kernel: Kernel,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float | None,
    window: int | None,
    slopes: torch.Tensor | None,
) -> torch.Tensor:
    """As `engine.kernels.paged_decode.paged_decode`, on a CPU.

    query, result [requests, heads, head_dim]; keys, values [blocks, block_tokens, kv_heads, head_dim], contiguous;
    tables [requests, most_blocks], lengths [requests], int32, the query's token included; slopes [heads] float32.
    """
    requests, heads, head_dim = query.shape
    if query.stride()[1:] != (head_dim, 1):
        query = query.contiguous()
    out = torch.empty(requests, heads, head_dim, dtype=query.dtype)
    kernel(
        query.data_ptr(), keys.data_ptr(), values.data_ptr(), tables.data_ptr(), lengths.data_ptr(),
        None if slopes is None else slopes.data_ptr(), out.data_ptr(), requests, keys.shape[2], tables.shape[1],
        query.stride(0), window or 0, scaling or head_dim**-0.5,
    )  # fmt: skip
    return out


def _openmp() -> list[str]:
    """torch's own OpenMP library where it brings one: two would fight for the cores."""
    own = sorted(Path(torch.__file__).with_name("lib").glob("libgomp*.so*"))
    return [str(own[0])] if own else ["-fopenmp"]
