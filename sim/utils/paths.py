"""Where things lie: the shipped app, scenarios and profiles, this user's cache, the profile that a run uses."""

from __future__ import annotations

from pathlib import Path

from engine.errors import InputError
from engine.utils.files import cache_dir

__all__ = [
    "cache_dir",
    "data_dir",
    "measured_profiles_dir",
    "resolve_profile",
    "scenarios_dir",
    "shipped_profiles_dir",
]

_ROOT = Path(__file__).resolve().parents[2]


def data_dir() -> Path:
    """Folder of `app.py`, `scenarios/` and `.streamlit/`: the root of a checkout, in a wheel a folder of their own."""
    packed = _ROOT / "model_flywheel_data"  # as in pyproject.toml
    return packed if packed.is_dir() else _ROOT


def scenarios_dir() -> Path:
    """Folder of the shipped scenarios."""
    return data_dir() / "scenarios"


def shipped_profiles_dir() -> Path:
    """Folder of the profiles that were measured on named machines and ship with the program."""
    return _ROOT / "engine" / "profile" / "shipped"


def measured_profiles_dir() -> Path:
    """Where `flywheel profile` leaves what it measured on this machine (below the working directory)."""
    return Path("out") / "profiles"


def resolve_profile(model: str, explicit: str | Path | None = None) -> Path:
    """Path of the profile for `model`: the one asked for, else this machine's own measurement, else the shipped one.

    Raises:
        InputError: the named file is missing, or nothing was measured or shipped for this model.
    """
    if explicit is not None:
        path = Path(explicit)
        if not path.is_file():
            raise InputError(
                f"{path}: no such profile; measure one with `flywheel profile {model} --out {path}`"
            )
        return path
    name = f"{model.replace('/', '--')}.json"
    for folder in (measured_profiles_dir(), shipped_profiles_dir()):
        if (folder / name).is_file():
            return folder / name
    shipped = sorted(path.stem for path in shipped_profiles_dir().glob("*.json"))
    raise InputError(
        f"no profile of {model!r}: measure it with `flywheel profile {model}` (shipped: {', '.join(shipped) or 'none'})"
    )
