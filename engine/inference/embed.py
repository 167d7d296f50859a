"""Embeddings of a causal language model: the mean of its last hidden states over a text's tokens, of unit length.

Mean pooling (Reimers and Gurevych 2019, Sentence-BERT) is the simplest embedding from a model that was trained to
generate. A model trained for embeddings gives far better ones.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.batch import BatchChunk
from engine.errors import InputError
from engine.inference.llm import LLM


@torch.inference_mode()
def embed(llm: LLM, token_ids: list[int]) -> list[float]:
    """Embedding [hidden_size] of a text; runs between two steps, in free KV blocks.

    Raises:
        InputError: no tokens, or more than the model's context.
        QueueFullError: too few KV blocks are free.
    """
    count, longest = len(token_ids), llm.shape.max_context_tokens - 1
    if not 0 < count <= longest:
        raise InputError(f"input: found {count} tokens, allowed are 1 to {longest}")
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0][0])  # [rows, hidden]

    table = llm.scheduler.lend(count + 1)
    hook = llm.model.base_model.register_forward_hook(keep)
    total = torch.zeros(llm.shape.hidden_size, device=llm.runner.device)
    try:
        for start in range(0, count, llm.config.max_step_tokens):
            part = token_ids[start : start + llm.config.max_step_tokens]
            # A single token would run as a decode, which a GPU replays without the hook: one more makes it a prompt.
            run = part if len(part) > 1 else [*part, part[0]]
            llm.runner.run([BatchChunk(run, start, table)])
            total += seen.pop()[: len(part)].float().sum(dim=0)
    finally:
        hook.remove()
        llm.scheduler.take_back(table)
    vector: list[float] = torch.nn.functional.normalize(total / count, dim=0).tolist()
    return vector
