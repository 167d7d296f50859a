"""Simulated users of a served model: they send their own texts piece by piece over HTTP; what they allow is collected.

A user sends his pieces one after the other, as a person does, and many users send at a time. Some allow the company
to keep what they send; some pieces are sent twice, as happens when an answer is slow or bad.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.inference.llm import LLM
from engine.training.cleaning import CleaningRules
from engine.training.data import Document, select
from engine.usage.meter import Served
from engine.utils.progress import Progress

_THREADS = 16  # users at a time


@dataclass(frozen=True)
class SimulatedUsage:
    """How many users there are and what each does."""

    users: int = 60
    requests_per_user: int = 20
    prompt_characters: int = 160
    output_tokens: int = 16
    consent_share: float = 0.5  # of the users
    resend_share: float = 0.15  # of the requests are sent once more

    def __post_init__(self) -> None:
        for name in ("users", "requests_per_user", "output_tokens"):
            if not getattr(self, name) > 0:
                raise InputError(f"loop: {name} is {getattr(self, name)!r}; allowed is a number above 0")
        if not 0 < self.consent_share <= 1:
            raise InputError(f"loop: consent_share is {self.consent_share!r}; allowed is above 0, at most 1")
        if not 0 <= self.resend_share <= 1:
            raise InputError(f"loop: resend_share is {self.resend_share!r}; allowed is 0 to 1")
        if self.prompt_characters < CleaningRules().min_characters:
            raise InputError(
                f"loop: prompt_characters is {self.prompt_characters}; allowed is "
                f"{CleaningRules().min_characters} or more, shorter text is cleaned away"
            )


def serve_users(
    model: Path,
    senders: Sequence[str],
    config: SimulatedUsage,
    rng: np.random.Generator,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[list[Served], float, float, int]:
    """Let the users send their texts: the usage log, the engine's and the wall's seconds, and who consented.

    The log is sorted by user; a user's requests stand in the order in which they were sent.
    """
    consents = rng.permutation(len(senders)) < max(round(config.consent_share * len(senders)), 1)
    requests: list[list[str]] = []
    for text in senders:
        starts = range(
            0, min(len(text), config.requests_per_user * config.prompt_characters), config.prompt_characters
        )
        pieces = [text[start : start + config.prompt_characters] for start in starts]
        again = rng.random(len(pieces)) < config.resend_share
        requests.append(
            [prompt for prompt, twice in zip(pieces, again, strict=True) for prompt in [prompt] * (1 + twice)]
        )
    from engine.server.server import Server, ServerConfig  # with what only a server needs

    total, done, lock = sum(map(len, requests)), 0, threading.Lock()
    log: list[Served] = []
    llm = LLM(str(model), device=device)
    begun = time.perf_counter()
    with Server(llm, ServerConfig(port=0), on_served=log.append) as server:

        def use(user: int) -> None:
            nonlocal done
            for prompt in requests[user]:
                _send(server.url, prompt, f"user-{user:04d}", bool(consents[user]), config.output_tokens)
                with lock:
                    done += 1
                    if progress is not None:
                        progress(done / total, f"served {done} of {total} requests")

        with ThreadPoolExecutor(_THREADS) as pool:
            for finished in [pool.submit(use, user) for user in range(len(senders))]:
                finished.result()
        served = sorted(log, key=lambda each: each.user)
        return served, server.engine.busy_s, time.perf_counter() - begun, int(consents.sum())


def _send(url: str, prompt: str, user: str, store: bool, output_tokens: int) -> None:
    """Post one request; a prompt that is too long for the model is sent in two halves."""
    body = {"prompt": prompt, "max_tokens": output_tokens, "temperature": 0.0, "user": user, "store": store}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        if error.code != 400 or len(prompt) < 8:
            raise
        middle = len(prompt) // 2
        for half in (prompt[:middle], prompt[middle:]):
            _send(url, half, user, store, output_tokens)


def collect(served: Sequence[Served]) -> tuple[list[Document], dict[str, int]]:
    """One text per user who allowed it, of what cleaning and deduplication left; and what they removed."""
    sent = [Document(each.text, each.user) for each in served if each.text is not None]
    selection = select(sent, CleaningRules())
    by_user: dict[str, list[str]] = defaultdict(list)
    for document in selection.documents:
        by_user[document.source].append(document.text)
    return [Document("".join(texts), user) for user, texts in by_user.items()], selection.removed
