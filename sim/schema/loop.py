"""The loop of a scenario: whether usage flows back into training."""

from __future__ import annotations

from sim.schema.base import Section, option


class Loop(Section):
    """Usage → consented text → better model → customers → usage."""

    cut: bool = option(
        False, "yes or no", "nothing that users send is trained on: run with and without to see its worth"
    )
