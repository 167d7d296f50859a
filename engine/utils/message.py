"""A sentence that keeps its parts, so that it can be worded in the reader's language where it is shown.

The engine and the simulation know no languages. Where they say something that people read (what work under way is
doing, where a number comes from) they hand on the English template and its values; the text itself is the English
sentence, for logs and terminals.
"""

from __future__ import annotations

from typing import Any


class Message(str):
    """An English sentence made of `template`, with its {names} filled in by `values`."""

    __slots__ = ("template", "values")
    template: str
    values: dict[str, Any]

    def __new__(cls, template: str, /, **values: Any) -> Message:
        """Format specifications ("{loss:.3f}") hold in every language; without values the template is the text."""
        message = super().__new__(cls, template.format(**values) if values else template)
        message.template, message.values = template, values
        return message

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles keep the parts."""
        return _message, (self.template, self.values)


def _message(template: str, values: dict[str, Any]) -> Message:
    return Message(template, **values)
