"""The decode attention of a CPU as machine code: `paged_decode.c`, compiled here, for this processor and model.

torch has no attention over a paged cache for a CPU: blocks would be copied together first, at several times the bytes.
A C compiler makes the kernel in less than a second, once (it stays in the user's cache folder); on a machine without
one the engine attends by torch, several times slower at long contexts.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from engine.files import cache_dir
from engine.hardware import cpu_model

_SOURCE = Path(__file__).with_name("paged_decode.c")
# Sums may be reordered, as vectors need; nothing else of IEEE is given up, and the processor's modes stay as they are.
_FLAGS = ("-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
          "-fassociative-math", "-fopenmp")  # fmt: skip
_FORMATS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}

Kernel = Callable[..., None]


@functools.cache
def decode_kernel(shared: int, head_dim: int, block_tokens: int, dtype: torch.dtype) -> Kernel | None:
    """The C function for `shared` query heads per KV head; None without a compiler, or for another number format."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None or dtype not in _FORMATS:
        return None
    sizes = (f"-DG={shared}", f"-DD={head_dim}", f"-DBLOCK={block_tokens}")
    options = (*_FLAGS, *_FORMATS[dtype], *sizes)
    try:
        function = ctypes.CDLL(str(_compiled(compiler, options))).paged_decode
    except (OSError, subprocess.SubprocessError):
        return None
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


def _compiled(compiler: str, options: tuple[str, ...]) -> Path:
    """The shared library of the kernel with these options, from the cache or made now."""
    parts = (compiler, *options, platform.machine(), cpu_model(), _SOURCE.read_text(encoding="utf-8"))
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    library = cache_dir() / "kernels" / f"{name}.so"
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        parts_file, made = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        run = functools.partial(subprocess.run, check=True, capture_output=True, timeout=60)
        run([compiler, *options, "-c", str(_SOURCE), "-o", str(parts_file)])
        run([compiler, "-shared", str(parts_file), *_openmp(), "-o", str(made)])
        made.replace(library)
    return library


def _openmp() -> list[str]:
    """torch's own OpenMP library where it brings one: two would fight for the cores."""
    own = sorted(Path(torch.__file__).with_name("lib").glob("libgomp*.so*"))
    return [str(own[0])] if own else ["-fopenmp"]
