"""What the server knows of an HTTP request, from its arrival to its line in the access log."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from engine.usage.api_keys import ApiKey

ANONYMOUS = ApiKey(
    key_id="anonymous", prefix="", name="anonymous", customer="anonymous", plan=None, requests_per_minute=None,
    tokens_per_minute=None, budget_micro_usd_per_month=None, priority=0, created_s=0.0, expires_at_s=None,
    revoked_s=None,
)  # fmt: skip


@dataclass
class RequestContext:
    """One HTTP request: its id, its key, and what the access log and the meter record of it."""

    method: str
    path: str
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    arrived_s: float = field(default_factory=time.time)  # Unix time
    begun_s: float = field(default_factory=time.perf_counter)  # the same moment on the monotonic clock
    key: ApiKey = ANONYMOUS
    status: int = 0  # of the response; 0: none was sent
    outcome: str = "-"  # a status of the meter
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first_token_s: float | None = None  # since arrival
    prompt: str = ""  # logged if the server is configured to
    headers: dict[str, str] = field(default_factory=dict)  # added to the response

    def log_line(self) -> str:
        """The request's line in the access log."""
        first = "-" if self.first_token_s is None else f"{self.first_token_s:.3f}"
        line = (
            f"{self.request_id} {self.key.key_id} {self.method} {self.path} {self.status} {self.outcome} "
            f"prompt={self.prompt_tokens} cached={self.cached_tokens} output={self.output_tokens} "
            f"first_s={first} total_s={time.perf_counter() - self.begun_s:.3f}"
        )
        return f"{line} text={self.prompt!r}" if self.prompt else line
