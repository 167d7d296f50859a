"""Where things lie: the checkout, the app, and the team's folder of traces and measurements, which users don't have."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app.py"
SHARED = ROOT.parent / "shared"
