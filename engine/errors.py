"""Errors caused by the input, as opposed to errors of the program.

The text is for people. What code needs to know of an error is in its class and its attributes.
"""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """Bad input: the message is one line that names the file, the key or line, what was found and what is allowed.

    The command line prints it and exits with status 2; the app shows it beside the field.

    Attributes:
        key: parameter or option that is wrong; "" if the error belongs to none.
        allowed: what is allowed instead, as the message says it; "" if not given apart.
        reason: the message without the id of the engine's request in front of it.
    """

    def __init__(self, message: str, *, key: str = "", allowed: str = "", request_id: Any = None) -> None:
        """The text is `message`, behind the key and the request's id if there are any."""
        self.key, self.allowed = key, allowed
        self.reason = f"{key}: {message}" if key else message
        super().__init__(self.reason if request_id is None else f"request {request_id}: {self.reason}")


class TooLongError(InputError):
    """A request has more tokens than the model's context or the KV cache holds."""


class DoesNotFitError(InputError):
    """The accelerators have too little memory for a model's weights and its KV cache."""


class QueueFullError(InputError):
    """The queue or the KV cache has no room now; the same request may be accepted later.

    Attributes:
        retry_after_s: seconds after which to try again.
    """

    def __init__(self, message: str, *, retry_after_s: int = 1, request_id: Any = None) -> None:
        super().__init__(message, request_id=request_id)
        self.retry_after_s = retry_after_s
