"""How a scaling law is measured unless said otherwise, and which keys of a scenario hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import InputError

if TYPE_CHECKING:
    from engine.training.scaling_law import ScalingConstants

SIZES = "2x32,2x48,2x72,3x96"
VOCAB_SIZE = 512
LIBRARY_MB = 4.0
RECIPE: dict[str, Any] = {
    "architecture": "bloom",
    "batch_sequences": 8,
    "sequence_tokens": 64,
    "learning_rate": 4e-3,
}


def scenario_keys(law: ScalingConstants) -> dict[str, float]:
    """The constants of the law as {dotted scenario key: value}."""
    return {
        "training.loss_irreducible": law.E,
        "training.loss_a": law.A,
        "training.loss_alpha": law.alpha,
        "training.loss_b": law.B,
        "training.loss_beta": law.beta,
    }


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """[(layers, width)] of "2x32,3x96".

    Raises:
        InputError: a word is not LAYERSxWIDTH.
    """
    sizes = []
    for word in text.split(","):
        layers, cross, width = word.strip().partition("x")
        if not (cross and layers.isdecimal() and width.isdecimal() and int(layers) and int(width)):
            raise InputError(f"--sizes: found {word.strip()!r}; allowed is LAYERSxWIDTH, 2x32 for one")
        sizes.append((int(layers), int(width)))
    return sizes
