"""What a server keeps of a request for its owner: who sent it, how much, and the text only where that was allowed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Served:
    """One line of the usage log; `text` is what the user sent, and None unless the user allowed to keep it."""

    user: str
    prompt_tokens: int
    output_tokens: int
    latency_s: float
    text: str | None


def log_lines(log: Iterable[Served]) -> str:
    """The usage log as JSON lines."""
    return "".join(json.dumps(asdict(used)) + "\n" for used in log)
