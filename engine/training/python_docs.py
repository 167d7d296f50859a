"""Training text that every machine has: the documentation and source text of Python's standard library.

It needs no network and no licence beyond Python's own (PSF-2.0), and holds English (help topics, docstrings,
comments) as well as code. Which files there are depends on the version of Python, so two versions give two texts;
on one version the documents and their order are always the same.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

from engine.errors import InputError
from engine.training.data import Document

MAX_MB = 20.0
_SUFFIXES = (".py", ".rst", ".txt")
# Packages that others installed, compiled files, and the module whose texts come as help topics already.
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "pydoc_data"}
_TESTS = {"test", "tests", "idle_test"}


def standard_library(max_mb: float = MAX_MB, folder: str | Path | None = None) -> list[Document]:
    """Python's help topics, then the library's own modules, then its tests, up to `max_mb` million characters.

    Within each of the three the order is that of a hash of the path, so that a smaller limit takes a fair sample
    and not the first letters of the alphabet. Files that are not UTF-8 (tests of encodings) are left out.

    Args:
        max_mb: million characters at most; a document that would pass the limit ends the text.
        folder: where the library lies; None asks this Python.

    Raises:
        InputError: `max_mb` is not above 0, or there is no source text (an interpreter in one file).
    """
    if not max_mb > 0:
        raise InputError(f"max_mb is {max_mb!r}; allowed is a number above 0")
    root = Path(folder or sysconfig.get_path("stdlib"))
    documents = _help_topics() if folder is None else []
    modules: list[Path] = []
    tests: list[Path] = []
    for path in root.rglob("*"):
        parts = set(path.relative_to(root).parts)
        if path.suffix in _SUFFIXES and not parts & _NOT_LIBRARY and path.is_file():
            (tests if parts & _TESTS else modules).append(path)
    if not modules and not documents:
        raise InputError(f"{root}: no source text of the standard library here; name files or folders")
    left = round(max_mb * 1e6) - sum(len(document.text) for document in documents)
    for path in [*_shuffled(modules, root), *_shuffled(tests, root)]:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        left -= len(text)
        if left < 0:
            break
        documents.append(Document(text, _name(path, root)))
    return documents


def _help_topics() -> list[Document]:
    """What `help("…")` knows of the language: its reference manual in short texts."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return []
    return [Document(text, f"help/{name}") for name, text in sorted(topics.items())]


def _shuffled(paths: list[Path], root: Path) -> list[Path]:
    return sorted(paths, key=lambda path: hashlib.blake2b(_name(path, root).encode()).digest())


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
