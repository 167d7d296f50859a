"""A tiny model of random weights with the bundled tokenizer, served."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from engine import LLM
from engine.models.load import load_tokenizer, quiet
from engine.server.server import Server, ServerConfig

CONTEXT_TOKENS = 2048
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For matrices this small a second one only waits; to be imported by the test modules."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def tiny_model() -> str:
    """Folder of the model; its name for clients is "tiny"."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tempfile.mkdtemp(prefix="flywheel-tiny-")
    tokenizer = load_tokenizer("smollm2-135m")
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49_152, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT_TOKENS,
                eos_token_id=tokenizer.eos_token_id, initializer_range=0.3,
            )
        )  # fmt: skip
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def tiny_llm(**options: Any) -> LLM:
    """A model to serve; another one of the same weights."""
    return LLM(tiny_model(), **{"kv_cache_tokens": 8192, **options})


def serving(llm: LLM | Callable[[], LLM], *, keys: Any = None, meter: Any = None, on_served: Any = None,
            prices_of: Any = None, **config: Any) -> Server:  # fmt: skip
    """A server on a free port, to be used in a `with` block."""
    return Server(
        llm, ServerConfig(**{"port": 0, "model": "tiny", **config}), keys=keys, meter=meter, on_served=on_served,
        prices_of=prices_of,
    )  # fmt: skip


def client(server: Server, key: str = "none") -> openai.OpenAI:
    """OpenAI's client, which doesn't try again."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


def post(server: Server, path: str, body: Any, key: str | None = None, **headers: str) -> httpx.Response:
    """Post a body, JSON or bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **headers}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    return httpx.post(f"{server.url}{path}", content=content, headers=sent, timeout=60)


def database(folder: Path) -> str:
    """A fresh SQLite database."""
    return f"sqlite:///{folder / 'usage.db'}"
