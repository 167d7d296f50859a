"""Runs of a study: the same bits wherever they are made, whole after any kill, and a reason for each that failed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engine.errors import InputError
from sim.company.simulate import simulate
from sim.scenario.metrics import OUTCOMES, shown
from sim.scenario.scenario import Scenario
from sim.study.runs.options import RunOptions
from sim.study.runs.outcomes import outcomes_of
from sim.study.runs.run_points import CHUNK, Point, run_points
from sim.study.runs.workers import place
from tests.helpers.places import ROOT

PRICE = "market.price_usd_per_mtok_output"
COLUMNS = ("cash_usd", "customers")
RUNS = 22  # two whole chunks and a part of one


def company() -> Scenario:
    return Scenario.load("api_startup").override({"horizon_months": 3})


def points(count: int) -> list[Point]:
    return [
        Point({PRICE: 0.5 + index / 100, "deployment.min_replicas": 1 + index % 3}, index)
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def known() -> pd.DataFrame:
    """Runs made one after the other in this process."""
    return run_points(company(), points(RUNS), RunOptions(workers=0), monthly=COLUMNS)


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_row_is_what_simulate_gives(known: pd.DataFrame) -> None:
    result = simulate(company().override(points(RUNS)[7].overrides), seed=7)
    row = known.iloc[7]
    assert (row["run"], row["seed"], row[f"in.{PRICE}"], row["error"]) == (7, 7, 0.5 + 7 / 100, "")
    assert result.headline["cash_usd_end"] == row["out.cash_usd_end"]
    assert row["out.profit_usd_total"] == result.monthly["net_income_usd"].sum()
    np.testing.assert_array_equal(row["month.cash_usd"], result.monthly["cash_usd"])
    assert {name.removeprefix("out.") for name in known if name.startswith("out.")} == set(OUTCOMES)


def test_any_number_of_workers_gives_the_same_bits(known: pd.DataFrame) -> None:
    for workers in (1, 2):
        with place(workers, None, 1) as here:
            for _ in range(2):  # the same workers serve one call after the other
                same(run_points(company(), points(RUNS), RunOptions(place=here), monthly=COLUMNS), known)


def test_a_folder_gives_the_same_bits_and_is_only_read_again(tmp_path: Path, known: pd.DataFrame) -> None:
    same(
        run_points(
            company(), points(RUNS), RunOptions(workers=0, folder=tmp_path / "study"), monthly=COLUMNS
        ),
        known,
    )
    told: list[tuple[float, str]] = []
    again = run_points(
        company(),
        points(RUNS),
        RunOptions(
            workers=0,
            folder=tmp_path / "study",
            progress=lambda fraction, what: told.append((fraction, what)),
        ),
        monthly=COLUMNS,
    )
    same(again, known)
    assert told == [(1.0, f"{RUNS} runs known")]
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == ["runs.parquet", "study.json"]


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"points": points(RUNS - 1)}, "runs, points"),
        ({"scenario": company().override({"market.signup_cost_usd": 99.0})}, "scenario"),
        ({"monthly": ("cash_usd",)}, "monthly"),
        ({"about": {"until": "x"}}, "about"),
    ],
)
def test_a_folder_of_another_study_is_refused(
    change: dict[str, Any], differs: str, tmp_path: Path, known: pd.DataFrame
) -> None:
    options: dict[str, Any] = {"scenario": company(), "points": points(RUNS), "monthly": COLUMNS}
    folder = tmp_path / "study"
    from sim.study.runs.run_folder import RunFolder
    from sim.study.runs.run_points import _task

    RunFolder(folder, _task(company(), points(RUNS), None, list(COLUMNS), None)[1])
    with pytest.raises(InputError, match="holds another study") as error:
        run_points(**{**options, **change}, options=RunOptions(workers=0, folder=folder))
    assert f"differs in: {differs})" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_part_is_run_again(tmp_path: Path, known: pd.DataFrame) -> None:
    folder = tmp_path / "study"

    def cancel(fraction: float, what: str) -> None:
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_points(
            company(), points(RUNS), RunOptions(workers=0, folder=folder, progress=cancel), monthly=COLUMNS
        )
    parts = sorted((folder / "parts").glob("*.parquet"))
    assert len(parts) >= 2
    parts[0].write_bytes(parts[0].read_bytes()[:100])
    (folder / "parts" / ".000003.parquet.1.partial").write_bytes(b"half")
    same(run_points(company(), points(RUNS), RunOptions(workers=0, folder=folder), monthly=COLUMNS), known)


CHILD = """
import sys
sys.path.insert(0, {root!r})
from tests.sim.study.test_runs import COLUMNS, RUNS, company, points
from sim.study.runs.options import RunOptions
from sim.study.runs.run_points import run_points
from pathlib import Path
run_points(company(), points(RUNS), RunOptions(workers=int(sys.argv[2]), folder=Path(sys.argv[1])), monthly=COLUMNS)
"""


@pytest.mark.parametrize("rounds", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_study_killed_at_any_moment_goes_on(rounds: int, tmp_path: Path, known: pd.DataFrame) -> None:
    """SIGKILL at moments spread over the whole study, each in what the kill before it left."""
    folder = tmp_path / "study"
    code = CHILD.format(root=str(ROOT))
    kills = 0
    rng = np.random.default_rng()
    for turn in range(rounds):
        parts_wanted = 3 * turn // rounds
        workers = str(turn % 2)
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), workers], start_new_session=True, cwd=tmp_path
        )
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            there = len(list((folder / "parts").glob("[0-9]*"))) if (folder / "parts").exists() else 0
            if there >= parts_wanted and (folder / "study.json").exists():
                time.sleep(float(rng.uniform(0, 0.1)))
                break
            time.sleep(0.002)
        # The parent alone: its workers must end by themselves.
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        assert json.loads((folder / "study.json").read_text(encoding="utf-8"))["runs"] == RUNS
        for part in (folder / "parts").glob("[0-9]*.parquet"):
            number = int(part.stem)
            runs = pd.read_parquet(part)
            assert runs["run"].tolist() == list(range(number * CHUNK, min(RUNS, (number + 1) * CHUNK)))
    assert kills >= 2, "killed in mid-run, not after it"
    same(run_points(company(), points(RUNS), RunOptions(workers=0, folder=folder), monthly=COLUMNS), known)
    assert _workers_are_gone()


def _workers_are_gone() -> bool:
    """Whether no worker is left whose parent died."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        orphans = 0
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            orphans += b"sim.study.runs.worker" in command and parent == 1
        if not orphans:
            return True
        time.sleep(0.2)
    return False


def test_a_point_that_cannot_be_run_is_a_row_with_its_reason() -> None:
    asked = [
        Point({PRICE: 1.0}, 1),
        Point({PRICE: -1.0}, 1),
        Point({"market.pricee": 1.0}, 1),
        Point({"deployment.model": "no-such-model"}, 1),
        Point({"deployment.ttft_p95_s": 1e-4}, 1),
    ]
    runs = run_points(company(), asked, RunOptions(workers=0), monthly=("cash_usd",))
    reasons = [
        "",
        "allowed: a number ≥ 0",
        "unknown key, nearest is",
        "no profile of 'no-such-model'",
        "ttft_p95_s",
    ]
    for error, reason in zip(runs["error"], reasons, strict=True):
        assert (reason in error) if reason else error == ""
    assert runs["out.cash_usd_end"].isna().tolist() == [False, True, True, True, True]
    assert runs[f"in.{PRICE}"].tolist()[:2] == [1.0, -1.0]
    assert math.isnan(runs[f"in.{PRICE}"].iloc[2])
    assert [len(values) for values in runs["month.cash_usd"]] == [3, 0, 0, 0, 0]


def test_runs_stop_where_they_are_told_to_whatever_the_workers(known: pd.DataFrame) -> None:
    seen: list[int] = []

    def enough(runs: pd.DataFrame) -> bool:
        seen.append(len(runs))
        return len(runs) >= 2 * CHUNK

    for workers in (0, 1):
        same(
            run_points(company(), points(RUNS), RunOptions(workers=workers), monthly=COLUMNS, stop=enough),
            known.iloc[: 2 * CHUNK],
        )
    assert seen == [CHUNK, 2 * CHUNK] * 2


def test_an_exception_of_the_progress_ends_the_workers() -> None:
    class Cancelled(Exception):
        pass

    def cancel(fraction: float, what: str) -> None:
        if fraction > 0:
            raise Cancelled(what)

    with pytest.raises(Cancelled, match=r"of 22 runs"):
        run_points(company(), points(RUNS), RunOptions(workers=1, progress=cancel))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in children:
        assert b"sim.study.runs.worker" not in Path(f"/proc/{child}/cmdline").read_bytes()


def test_a_killed_worker_is_one_line() -> None:
    def kill_one(fraction: float, what: str) -> None:
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            if b"sim.study.runs.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)

    with pytest.raises(InputError, match="ended with status -9"):
        run_points(company(), points(RUNS), RunOptions(workers=1, progress=kill_one))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monthly": ("cash",)}, "monthly: found 'cash'.*nearest is cash_usd"),
        ({"monthly": ("month",)}, "monthly: found 'month'"),
        ({"options": RunOptions(workers=-1)}, "workers: found -1"),
    ],
)
def test_wrong_questions_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_points(company(), points(3), **{"options": RunOptions(workers=0), **options})


def test_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'model-flywheel\[ray\]'"):
        run_points(company(), points(3), RunOptions(ray_address="local"))


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bits(known: pd.DataFrame, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    options = RunOptions(workers=2, ray_address="local", folder=tmp_path / "study")
    same(run_points(company(), points(RUNS), options, monthly=COLUMNS), known)
    assert not ray.is_initialized(), "what was started is ended"


def test_outcomes_are_those_of_the_months() -> None:
    poor = company().override({"finance.initial_cash_usd": 60_000.0, "horizon_months": 12})
    result = simulate(poor, seed=1)
    found = outcomes_of(result)
    cash = result.monthly["cash_usd"].to_numpy()
    assert found["ruined"] == 1.0
    month = int(found["cash_out_month_index"])
    assert cash[month] < 0 <= cash[:month].min()
    assert result.headline["cash_out_month"] == result.monthly["month"][month]
    assert math.isnan(found["breakeven_month_index"])
    assert found["cash_usd_min"] == cash.min()
    assert found["cash_usd_end"] == cash[-1]
    assert found["runway_months_min"] == 0.0


def test_outcomes_are_shown_in_human_units() -> None:
    assert shown("cash_usd_end", -1.25e6) == "−$1.25M"
    assert shown("gross_margin_last12", 0.684) == "68.4%"
    assert shown("breakeven_month_index", math.inf) == "never"
    assert shown("breakeven_month_index", 15.0) == "month 15"
