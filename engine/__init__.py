"""Serve, train and measure a real causal language model.

Names are loaded on first use, so that reading a Profile or scheduling a simulated batch never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.errors import InputError
    from engine.inference.llm import LLM
    from engine.profile.profile import Profile
    from engine.sampling.sampler import SamplingParams

_HOMES = {
    "LLM": "engine.inference.llm",
    "SamplingParams": "engine.sampling.sampler",
    "Profile": "engine.profile.profile",
    "InputError": "engine.errors",
}

__all__ = ["LLM", "InputError", "Profile", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
