"""C sources that ship with the program, compiled here at first use.

A C compiler makes a library in less than a second, once: it stays in the user's cache folder under the hash of its
source, its options and the processor. Where there is no compiler, or it fails, the caller does without.
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
from collections.abc import Sequence
from pathlib import Path

from engine.utils.files import cache_dir
from engine.utils.machine import cpu_model


def load_compiled(
    source: Path, options: Sequence[str], link_options: Sequence[str] = ()
) -> ctypes.CDLL | None:
    """The library made of `source` and the headers beside it, from the cache or compiled now.

    None without a working compiler.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler, source, options, link_options)))
    except (OSError, subprocess.SubprocessError):
        return None


def _compiled(compiler: str, source: Path, options: Sequence[str], link_options: Sequence[str]) -> Path:
    texts = [file.read_text(encoding="utf-8") for file in (source, *sorted(source.parent.glob("*.h")))]
    parts = (compiler, *options, platform.machine(), cpu_model(), *texts)
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    library = cache_dir() / "kernels" / f"{name}.so"
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        compiled, linked = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        run = functools.partial(subprocess.run, check=True, capture_output=True, timeout=60)
        run([compiler, *options, "-fPIC", "-c", str(source), "-o", str(compiled)])
        run([compiler, "-shared", str(compiled), *link_options, "-o", str(linked)])
        linked.replace(library)
    return library
