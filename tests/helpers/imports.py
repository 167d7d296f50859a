"""What importing something loads, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

from tests.helpers.places import ROOT


def loaded_by(modules: str, packages: Iterable[str]) -> list[str]:
    """Those of the packages that `import modules` ("one, two") brings along, sorted."""
    code = f"import {modules}, sys; print(*sorted({set(packages)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
