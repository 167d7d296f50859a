"""Server-sent events, as an OpenAI-compatible server streams its answer: bytes in any pieces, events out.

After the WHATWG HTML standard, section 9.2.6: a line ends with LF, CR or CR LF; an empty line ends an event; `data:`
lines of one event are joined with LF; lines that begin with a colon are comments; other fields mean nothing here. An
event that the stream breaks off is dropped. Network packets cut anywhere, also inside a character or between CR and LF.
"""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventParser:
    """Feed it what arrives; it gives the data of each event as soon as the event is complete."""

    def __init__(self) -> None:
        self._rest = b""  # a line that has not ended
        self._data: list[bytes] = []  # of the event that has not ended
        self._after_cr = False
        self._begins = True

    def feed(self, part: bytes) -> list[bytes]:
        """The data of the events that end in `part`, in order."""
        if not part:
            return []
        if self._after_cr and part[:1] == b"\n":  # the second half of a line end
            part = part[1:]
        self._after_cr = part[-1:] == b"\r"
        text = self._rest + part
        # Nearly all servers end lines with LF alone, and then a split is all there is to do.
        lines = _LINE_END.split(text) if b"\r" in text else text.split(b"\n")
        self._rest = lines.pop()
        if self._begins and lines:
            self._begins = False
            lines[0] = lines[0].removeprefix(_BOM)
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                self._data.append(b"")
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
