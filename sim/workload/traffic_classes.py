"""Classes of traffic, and how many tokens their prompts and answers have.

Token lengths of a class are lognormal, given by median and mean (mean / median =
exp(σ²/2), so σ = sqrt(2·ln(mean / median))), or empirical: a table of quantiles, read linearly between its rows. A
rank correlation between prompt and output is brought in by a Gaussian copula: Spearman's ρ between the lengths needs
the correlation 2·sin(π·ρ/6) between the normal numbers they are drawn from (Kruskal 1958). Pictures and sound enter a
prompt as tokens too, drawn on top of its text.

What the lognormal gets wrong of the Azure traces: their longest prompts are more frequent (p95 of the conversation
trace 4,083 tokens, drawn 2,317) and their longest answers less so (451 against 660). `flywheel fit` takes a table
where that matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from engine.errors import InputError

FloatArray = NDArray[np.float64]
Quantiles = tuple[tuple[float, float], ...]  # rows of (share of requests, tokens)

PIXELS_PER_IMAGE_TOKEN_SIDE = 28  # Qwen2-VL: a patch of 28 × 28 pixels is a token
AUDIO_TOKENS_PER_S = 25.0  # Qwen2-Audio: an output frame of its encoder spans 40 ms; the Gemini API counts 32

_AZURE = "Azure LLM inference trace 2023, {} (CC-BY 4.0), median and mean of {} requests"
_NORMAL = NormalDist()


@dataclass(frozen=True)
class TrafficClass:
    """One kind of request: token lengths, a beginning that all of them share, and what latency they need.

    Raises:
        InputError: a length below 1 token, a mean below its median, a quantile table that does not rise from 0 to 1,
            a rank correlation outside [−1, 1], a negative shared prefix, an objective that is no time above 0.
    """

    name: str
    prompt_tokens_median: float  # of the text
    prompt_tokens_mean: float
    output_tokens_median: float
    output_tokens_mean: float
    # First tokens of every prompt (system prompt, tools): the prefix cache finds them.
    shared_prefix_tokens: int = 0
    source: str = "assumed"
    prompt_quantiles: Quantiles | None = None  # in place of the lognormal
    output_quantiles: Quantiles | None = None
    rank_correlation: float = 0.0  # Spearman's, of the text's and the answer's tokens
    media_tokens_median: float = 0.0  # of pictures or sound, on top of the text; lognormal; 0 for none
    media_tokens_mean: float = 0.0
    ttft_p95_s: float | None = None  # latency objective of this class; None: none of its own
    tpot_p95_s: float | None = None

    def __post_init__(self) -> None:
        for what in ("prompt", "output", "media"):
            median, mean = getattr(self, f"{what}_tokens_median"), getattr(self, f"{what}_tokens_mean")
            quantiles = None if what == "media" else getattr(self, f"{what}_quantiles")
            if quantiles is not None:
                self._check_quantiles(f"{what}_quantiles", quantiles)
            elif not (1 <= median <= mean < math.inf) and not (what == "media" and median == mean == 0):
                raise InputError(
                    f"traffic class {self.name}: {what}_tokens: found median {median} and mean {mean}, "
                    "allowed is 1 ≤ median ≤ mean"
                )
        if self.shared_prefix_tokens < 0:
            raise InputError(
                f"traffic class {self.name}: shared_prefix_tokens: found {self.shared_prefix_tokens}, allowed is ≥ 0"
            )
        if not -1 <= self.rank_correlation <= 1:
            raise InputError(
                f"traffic class {self.name}: rank_correlation: found {self.rank_correlation}, allowed is −1 to 1"
            )
        for name in ("ttft_p95_s", "tpot_p95_s"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise InputError(
                    f"traffic class {self.name}: {name}: found {limit}, allowed is a time above 0 s"
                )

    def _check_quantiles(self, name: str, quantiles: Quantiles) -> None:
        table = np.array(quantiles, dtype=np.float64)
        right = (
            table.ndim == 2
            and table.shape[1] == 2
            and np.isfinite(table).all()
            and table[0, 0] == 0
            and table[-1, 0] == 1
            and (np.diff(table[:, 0]) > 0).all()
            and (np.diff(table[:, 1]) >= 0).all()
            and table[0, 1] >= 1
        )
        if not right:
            raise InputError(
                f"traffic class {self.name}: {name}: allowed are rows (share, tokens) with shares that rise from 0 to "
                "1 and tokens ≥ 1 that never fall"
            )


def image_tokens(width_px: float, height_px: float) -> int:
    """Tokens of a picture: one for each 28 × 28 pixels, both sides rounded to whole patches.

    Source: Qwen2-VL (huggingface.co/Qwen/Qwen2-VL-7B-Instruct, discussion 47); other models cut and count otherwise.

    Raises:
        InputError: a side that is no number above 0.
    """
    for name, side in (("width_px", width_px), ("height_px", height_px)):
        if not 0 < side < math.inf:
            raise InputError(f"image_tokens: {name}: found {side}, allowed is a number above 0")
    side_px = PIXELS_PER_IMAGE_TOKEN_SIDE
    return max(1, round(width_px / side_px)) * max(1, round(height_px / side_px))


def audio_tokens(seconds: float) -> int:
    """Tokens of recorded sound: 25 per second, at least one.

    Source: the frames of 40 ms that Qwen2-Audio's encoder gives (arXiv 2407.10759); the Gemini API counts 32 per
    second (ai.google.dev/gemini-api/docs/tokens).

    Raises:
        InputError: no time above 0.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"audio_tokens: seconds: found {seconds}, allowed is a number above 0")
    return max(1, round(seconds * AUDIO_TOKENS_PER_S))


TRAFFIC_CLASSES: dict[str, TrafficClass] = {
    kind.name: kind
    for kind in (
        TrafficClass("chat", 1020, 1155, 129, 211, source=_AZURE.format("conversation", "19,366")),
        TrafficClass("code", 1469, 2048, 13, 28, source=_AZURE.format("code", "8,819")),
        TrafficClass("rag", 1800, 2200, 180, 240, source="assumed: a question and some retrieved passages"),
        TrafficClass(
            "agent",
            2400,
            3600,
            120,
            200,
            shared_prefix_tokens=1024,
            source="assumed: tools described first, then a growing history",
        ),
        TrafficClass(
            "image",
            60,
            110,
            150,
            230,
            media_tokens_median=image_tokens(1024, 768),
            media_tokens_mean=1300,
            source="assumed: a question about a picture of 1024 × 768 pixels, some larger or several; "
            "28 × 28 pixels a token as in Qwen2-VL",
        ),
        TrafficClass(
            "speech",
            40,
            60,
            60,
            100,
            media_tokens_median=audio_tokens(12),
            media_tokens_mean=audio_tokens(20),
            source="assumed: 12 s of speech, 20 s on average; 25 tokens per second as in Qwen2-Audio",
        ),
    )
}


def lognormal_sigma(median: float, mean: float) -> float:
    """σ of the lognormal distribution with this median and mean; 0 when they are equal."""
    return math.sqrt(2 * math.log(mean / median))


def traffic_mix(
    traffic: Mapping[str, float], classes: Mapping[str, TrafficClass] | None = None
) -> list[tuple[TrafficClass, float]]:
    """Classes and their shares of requests, scaled to add up to 1, in the order of their names.

    Args:
        traffic: share of requests by name.
        classes: what the names stand for; None takes TRAFFIC_CLASSES.

    Raises:
        InputError: an unknown class, a share that is no number ≥ 0, or nothing but zeros.
    """
    known = TRAFFIC_CLASSES if classes is None else classes
    for name, share in traffic.items():
        if name not in known:
            raise InputError(f"traffic.{name}: unknown class, allowed: {', '.join(sorted(known))}")
        if not (isinstance(share, (int, float)) and 0 <= share < math.inf):
            raise InputError(f"traffic.{name}: found {share!r}, allowed is a share ≥ 0")
    total = math.fsum(traffic.values())
    if total <= 0:
        raise InputError("traffic: no class has a share above 0")
    return [(known[name], traffic[name] / total) for name in sorted(traffic) if traffic[name] > 0]


def token_lengths(
    median: float, mean: float, quantiles: Quantiles | None, z: FloatArray
) -> NDArray[np.int64]:
    """Whole tokens ≥ 1 at these standard normal numbers: from the quantile table, or lognormal without one."""
    if quantiles is None:
        lengths = median * np.exp(lognormal_sigma(median, mean) * z)
    else:
        from scipy.special import ndtr  # slow to import, and lognormal lengths don't need it

        shares, tokens = np.array(quantiles, dtype=np.float64).T
        lengths = np.interp(ndtr(z), shares, tokens)
    return np.maximum(1, np.rint(np.minimum(lengths, 2**40))).astype(np.int64)


def correlated(z: FloatArray, own: FloatArray, rank_correlation: float, stratified: bool) -> FloatArray:
    """Standard normal numbers made of `own`, correlated with `z` so that their ranks have this correlation.

    Stratified numbers are put in another order and not changed, so they still cover their distribution evenly.
    """
    if rank_correlation == 0:
        return own
    pearson = 2 * math.sin(math.pi * rank_correlation / 6)
    mixed = pearson * z + math.sqrt(max(0.0, 1 - pearson**2)) * own
    if not stratified:
        return mixed
    ordered = np.empty_like(own)
    ordered[np.argsort(mixed)] = np.sort(own)
    return ordered


def uniform(rng: np.random.Generator, count: int, stratified: bool) -> FloatArray:
    """Numbers in [0, 1); stratified: one from each of `count` equal slices, in random order."""
    if stratified:
        return np.asarray((rng.permutation(count) + rng.random(count)) / max(count, 1), dtype=np.float64)
    return rng.random(count)


def standard_normal(rng: np.random.Generator, count: int, stratified: bool) -> FloatArray:
    """Standard normal numbers; stratified: one from each of `count` equally likely slices, in random order."""
    if not stratified:
        return rng.standard_normal(count)
    drawn = np.clip(uniform(rng, count, True), 1e-12, 1 - 1e-12)
    # The standard library's inverse: loading scipy would take longer than these few hundred numbers.
    return np.array([_NORMAL.inv_cdf(u) for u in drawn.tolist()], dtype=np.float64)
