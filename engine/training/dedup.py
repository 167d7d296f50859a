"""Near-duplicate texts: MinHash signatures, banded locality-sensitive hashing, exact check.

The resemblance of two texts is the Jaccard similarity of their sets of five-word shingles. The fraction of
equal entries of two MinHash signatures estimates it (Broder 1997, "On the resemblance and containment of
documents"). Texts that agree in all rows of one band of the signature are candidates (Leskovec, Rajaraman,
Ullman, "Mining of massive datasets", section 3.4); each candidate pair is decided on its true similarity.
Forty lines of numpy do what is needed here, so there is no dependency for it.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.utils.message import Message
from engine.utils.progress import Progress

SHINGLE_WORDS = 5
BANDS, ROWS = (
    32,
    4,
)  # a pair of similarity 0.8 becomes a candidate with probability 1 − (1 − 0.8⁴)³² > 0.99999998
_WORD = re.compile(r"\w+")
_rng = np.random.default_rng(0x5EED)
_MULTIPLIERS = _rng.integers(0, 2**64, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _rng.integers(0, 2**64, BANDS * ROWS, dtype=np.uint64)
_POSITIONS = _rng.integers(0, 2**64, SHINGLE_WORDS, dtype=np.uint64) | np.uint64(1)

Hashes = NDArray[np.uint64]


def near_duplicates(
    texts: Sequence[str], similarity: float = 0.8, progress: Progress | None = None
) -> list[int | None]:
    """For each text, the index of an earlier *kept* text that resembles it by at least `similarity`, or None.

    Texts with None are the ones to keep. The order of the input decides which of two duplicates stays. Texts
    without any word are never duplicates of each other.
    """
    kept_shingles: dict[int, Hashes] = {}
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    word_hashes: dict[str, int] = {}
    verdicts: list[int | None] = []
    for index, text in enumerate(texts):
        shingles = shingle_hashes(text, word_hashes)
        verdict = None
        if shingles.size:
            bands = [
                (band, row.tobytes()) for band, row in enumerate(signature(shingles).reshape(BANDS, ROWS))
            ]
            candidates = sorted({earlier for band in bands for earlier in buckets.get(band, ())})
            verdict = next(
                (
                    earlier
                    for earlier in candidates
                    if jaccard(shingles, kept_shingles[earlier]) >= similarity
                ),
                None,
            )
            if verdict is None:
                kept_shingles[index] = shingles
                for band in bands:
                    buckets[band].append(index)
        verdicts.append(verdict)
        if progress is not None and index % 256 == 0:
            progress(index / len(texts), Message("looking for near-duplicates"))
    return verdicts


def shingle_hashes(text: str, word_hashes: dict[str, int] | None = None) -> Hashes:
    """Sorted distinct 64-bit hashes of the five-word shingles of `text`; case and punctuation don't count.

    A text of fewer words is one shingle. `word_hashes` is a memo that many calls may share.
    """
    memo = {} if word_hashes is None else word_hashes
    words = _WORD.findall(text.casefold())
    for word in words:
        if word not in memo:
            memo[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    hashes = np.array([memo[word] for word in words], dtype=np.uint64)
    length = min(SHINGLE_WORDS, hashes.size)
    if length == 0:
        return hashes
    windows = np.lib.stride_tricks.sliding_window_view(hashes, length)
    return np.unique((windows * _POSITIONS[:length]).sum(axis=1, dtype=np.uint64))  # modulo 2⁶⁴


def signature(shingles: Hashes) -> Hashes:
    """MinHash signature [BANDS · ROWS] of a non-empty set of shingle hashes, by multiply-shift hashing."""
    lowest = np.full(_MULTIPLIERS.shape, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, shingles.size, 4096):  # a long text shall not need a matrix of its length
        block = shingles[start : start + 4096, None] * _MULTIPLIERS + _OFFSETS
        np.minimum(lowest, block.min(axis=0), out=lowest)
    return lowest


def jaccard(one: Hashes, other: Hashes) -> float:
    """Size of the intersection over the size of the union of two sorted sets; 0 for two empty ones."""
    shared = np.intersect1d(one, other, assume_unique=True).size
    union = one.size + other.size - shared
    return shared / union if union else 0.0
