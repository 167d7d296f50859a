"""What a number format costs in quality: the perplexity of a fixed text, as the engine itself computes it.

Perplexity is exp of the mean negative log probability of each token given those before it (Jelinek et al. 1977). It is
read from the served logits, so the whole path counts: weights, activations, KV cache and attention.
"""

from __future__ import annotations

import math
from importlib.resources import files
from typing import TYPE_CHECKING

from engine.profile.profile import Quality

if TYPE_CHECKING:
    from engine.inference.llm import LLM


def fixed_text() -> str:
    """The text that perplexity is measured on: some 800 tokens of prose, reasoning and dialogue."""
    return files("engine.profiling").joinpath("perplexity_text.txt").read_text(encoding="utf-8")


def measure_quality(llm: LLM, name: str) -> Quality | None:
    """The quality of a loaded model by the name that it was loaded with; None for random weights, or a tokenizer
    that doesn't know the text.

    In another format than float32 the model is loaded once more, in float32, if it fits.
    """
    from engine.errors import InputError
    from engine.inference.llm import LLM

    if llm.tokenizer is None or name.endswith("@dummy"):
        return None
    token_ids = llm.tokenizer(fixed_text())["input_ids"]
    token_ids = token_ids[: min(llm.shape.max_context_tokens, llm.config.cache_tokens)]
    if len(token_ids) < 2:
        return None
    found = perplexity(llm, token_ids)
    if llm.shape.dtype == "float32":
        return Quality(found, found, len(token_ids))
    try:
        plain = LLM(name, llm.runner.device.type, "float32", kv_cache_tokens=2 * len(token_ids))
    except InputError:
        return Quality(found, None, len(token_ids))
    return Quality(found, perplexity(plain, token_ids), len(token_ids))


def perplexity(llm: LLM, token_ids: list[int]) -> float:
    """Perplexity of a text of at least two tokens, computed in chunks of at most 256; whatever the cache holds is
    overwritten, so nothing may be running."""
    import torch

    from engine.batch import BatchChunk

    size, chunk = llm.config.block_tokens, min(256, llm.config.max_step_tokens)
    table = range(-(-len(token_ids) // size))
    negative = 0.0
    for start in range(0, len(token_ids) - 1, chunk):
        asked = token_ids[start : min(start + chunk, len(token_ids) - 1)]
        logits = llm.runner.run([BatchChunk(asked, start, table, len(asked))])
        targets = torch.tensor(token_ids[start + 1 : start + 1 + len(asked)], device=logits.device)
        chosen = logits.float().log_softmax(dim=-1).gather(1, targets.unsqueeze(1))
        negative -= float(chosen.sum())
    return math.exp(negative / (len(token_ids) - 1))
