"""What is installed: two packages and one folder of data, which the program finds there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

from tests.helpers.places import ROOT

DATA = "model_flywheel_data"
USED = """
from sim import Scenario
from sim.utils.paths import data_dir, resolve_profile

print(Scenario.load("api_startup").name, data_dir(), resolve_profile("smollm2-135m"), sep="\\n")
"""


def test_a_wheel_holds_two_packages_and_one_data_folder_that_the_program_finds(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    ZipFile(wheel).extractall(site)
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"engine", "sim", DATA}
    data = {path.relative_to(site / DATA) for path in (site / DATA).rglob("*") if path.is_file()}
    scenarios = {path.relative_to(ROOT) for path in (ROOT / "scenarios").rglob("*.*")}
    assert data == scenarios | {Path("app.py"), Path(".streamlit/config.toml")}

    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", USED]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    name, found, profile = said.stdout.splitlines()
    assert name.startswith("API startup")
    assert Path(found) == site / DATA
    assert Path(profile).is_relative_to(site)
