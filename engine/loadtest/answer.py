"""One answer of an OpenAI-compatible server: its times and counts, and the pieces of the stream that bring it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from engine.errors import InputError


@dataclass
class Answer:
    """The answer to one request. Times are of the event loop's clock; NaN: never came."""

    status: str = "lost"  # "finished", "timed_out", "rejected" (429, 503) or "lost", as a simulated client's
    error: str = ""
    http: int = 0
    sent_s: float = float("nan")
    first_token_s: float = float("nan")
    last_token_s: float = float("nan")
    pieces: int = 0  # of the stream that brought tokens
    prompt_tokens: int | None = None  # as the server counted
    output_tokens: int | None = None
    cached_tokens: int = 0


def read_piece(event: dict[str, Any], chat: bool, answer: Answer) -> tuple[bool, bool]:
    """Whether a piece of the stream holds a token, and whether it ends the answer; its usage goes into `answer`.

    Raises:
        InputError: the piece holds an error.
    """
    if event.get("error"):
        raise InputError(f"error in the stream: {error_message(event)}")
    counted = answer.output_tokens or 0
    if usage := event.get("usage"):
        details = usage.get("prompt_tokens_details") or {}
        answer.prompt_tokens, answer.output_tokens = (
            None if usage.get(name) is None else int(usage[name])
            for name in ("prompt_tokens", "completion_tokens")
        )
        answer.cached_tokens = int(details.get("cached_tokens") or 0)
    choices = event.get("choices")
    if not choices:
        return False, False
    choice = choices[0]
    ended = choice.get("finish_reason") is not None
    if not chat:
        return bool(choice.get("text")) or not ended, ended
    delta = choice.get("delta") or {}
    says = any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls"))
    return says or (not ended and (answer.output_tokens or 0) > counted), ended


def error_message(body: bytes | dict[str, Any]) -> str:
    """The message of an error body, in OpenAI's form or any other, on one line."""
    try:
        content = json.loads(body) if isinstance(body, bytes) else body
        error = content.get("error", content.get("detail", content.get("message")))
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = body.decode(errors="replace") if isinstance(body, bytes) else body
    return one_line(str(text))


def one_line(text: str) -> str:
    """The text without line breaks, cut to 160 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:157] + "..."
