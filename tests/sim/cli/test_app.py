"""The command line as a user meets it: results, and one clear line with status 2 on bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer.main

from sim.cli import app
from sim.utils import paths
from tests.helpers.imports import loaded_by
from tests.helpers.places import ROOT

DEFAULT = ROOT / "scenarios" / "api_startup.yaml"
GROUPS = ("keys", "study", "validate")
Flywheel = Callable[..., tuple[int, str, str]]


@pytest.fixture
def flywheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Flywheel:
    """Run the command line in an empty working directory; gives (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flywheel", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def edited(tmp_path: Path, old: str, new: str) -> Path:
    """A copy of the default scenario with one piece of text replaced."""
    text = DEFAULT.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "edited.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def assert_refused(outcome: tuple[int, str, str], *parts: str) -> None:
    """Status 2, nothing on standard output, one line on standard error that holds every part."""
    status, out, err = outcome
    assert status == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err


def test_run_writes_the_four_outputs(flywheel: Flywheel, tmp_path: Path) -> None:
    status, out, _ = flywheel("run", DEFAULT, "--seed", "7", "--out", "there")
    assert status == 0
    assert "Report: there/report.html" in out
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert names == {"report.html", "monthly.csv", "ledger.parquet", "result.json"}
    ledger = pd.read_parquet(tmp_path / "there" / "ledger.parquet")
    assert len(ledger) > 1000
    assert len(pd.read_csv(tmp_path / "there" / "monthly.csv")) == 36
    html = (tmp_path / "there" / "report.html").read_text(encoding="utf-8")
    loaded = re.findall(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[^>]*>""", html)
    assert loaded == [], "the report must open without network"


def test_run_is_reproducible_and_overrides_change_it(flywheel: Flywheel) -> None:
    words = ("run", DEFAULT, "--seed", "7", "--json")
    first, again = (json.loads(flywheel(*words)[1]) for _ in range(2))
    assert first == again
    dearer = json.loads(flywheel(*words, "--set", "market.price_usd_per_mtok_output=2.0")[1])
    assert dearer["headline"] != first["headline"]


def test_more_runs_tell_the_uncertainty_in_the_report(flywheel: Flywheel, tmp_path: Path) -> None:
    words = ("run", DEFAULT, "--set", "horizon_months=3", "--format", "html", "--runs", "4")
    status, out, _ = flywheel(*words, "--out", "one")
    assert status == 0
    assert "4 runs, 12 uncertain assumptions" in " ".join(out.split())
    assert flywheel(*words, "--out", "two")[0] == 0
    one, two = ((tmp_path / folder / "report.html").read_text(encoding="utf-8") for folder in ("one", "two"))
    assert one == two
    assert "<h2>Uncertainty</h2>" in one
    assert "--set horizon_months=3 --runs 4</pre>" in one


def test_replay_reports_every_request(flywheel: Flywheel, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(
        "arrived_s,prompt_tokens,output_tokens\n0,100,10\n0.5,50,20\n1.0,10,5\n"
    )
    status, out, _ = flywheel("replay", "trace.csv", "--out", "each.csv", "--json")
    assert status == 0
    assert json.loads(out)["requests"] == 3
    each = pd.read_csv(tmp_path / "each.csv")
    assert (each["finished_s"] > each["first_token_s"]).all()


@pytest.mark.parametrize(
    ("pair", "parts"),
    [
        (
            "market.price_usd_per_mtok_outputs=1",
            ["market.price_usd_per_mtok_outputs", "price_usd_per_mtok_output"],
        ),
        ("market.price_usd_per_mtok_output=-1", ["market.price_usd_per_mtok_output", "-1"]),
        ("market.price_usd_per_mtok_output=cheap", ["market.price_usd_per_mtok_output", "cheap"]),
        ("horizon_months=0", ["horizon_months", "0"]),
        ("marketing", ["KEY=VALUE"]),
    ],
)
def test_a_bad_override_is_one_line(flywheel: Flywheel, tmp_path: Path, pair: str, parts: list[str]) -> None:
    assert_refused(flywheel("run", DEFAULT, "--set", pair), *parts)
    assert not (tmp_path / "out").exists()


def test_a_bad_scenario_file_is_one_line(flywheel: Flywheel, tmp_path: Path) -> None:
    assert_refused(flywheel("run", "nowhere.yaml"), "nowhere.yaml")
    assert_refused(flywheel("run", tmp_path), str(tmp_path))
    unknown = edited(tmp_path, "price_usd_per_mtok_output:", "price_usd_per_mtok_ouptut:")
    assert_refused(flywheel("run", unknown), "edited.yaml", "ouptut", "price_usd_per_mtok_output", "line")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: A\nmarket: {price: [1, 2\n")
    assert_refused(flywheel("run", broken), "broken.yaml", "line 3", "column 1")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert_refused(flywheel("run", empty), "empty.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00name")
    assert_refused(flywheel("run", binary), "binary.yaml")
    tagged = tmp_path / "tagged.yaml"
    tagged.write_text("name: !!python/object/apply:os.system ['touch owned']\n")
    assert_refused(flywheel("run", tagged), "tagged.yaml")
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out").exists()


def test_a_bad_profile_is_one_line(flywheel: Flywheel, tmp_path: Path) -> None:
    shipped = paths.shipped_profiles_dir() / "smollm2-135m.json"
    assert_refused(flywheel("run", DEFAULT, "--profile", "none.json"), "none.json", "flywheel profile")
    truncated = tmp_path / "truncated.json"
    truncated.write_text(shipped.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    assert_refused(flywheel("run", DEFAULT, "--profile", truncated), "truncated.json", "line")
    other = tmp_path / "other.json"
    content = json.loads(shipped.read_text(encoding="utf-8"))
    content["model"]["name"] = "gpt2"
    other.write_text(json.dumps(content), encoding="utf-8")
    assert_refused(flywheel("run", DEFAULT, "--profile", other), "other.json", "gpt2", "smollm2-135m")
    assert not (tmp_path / "out").exists()


def test_a_bad_trace_is_one_line(flywheel: Flywheel, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_s,prompt_tokens,output_tokens\n0,100,10\n1,0,20\n")
    assert_refused(flywheel("replay", trace), "trace.csv", "3", "prompt_tokens")
    trace.write_text("when,prompt\n1,2\n")
    assert_refused(flywheel("replay", trace), "trace.csv", "arrived_s")


def light_load(tmp_path: Path) -> Path:
    """A trace in which half of the requests don't wait: the median of the queue times is 0 in most batches of it."""
    random = np.random.default_rng(1)
    arrivals = zip(random.exponential(2.0, 400).cumsum(), random.integers(10, 200, 400), strict=True)
    rows = [f"{time_s:.4f},{prompt},30" for time_s, prompt in arrivals]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(["arrived_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return trace


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--fleet", "tenants", "--replicas", "3"), ["--fleet", "--replicas"]),
        (("--fleet", "tenants", "--router", "round_robin"), ["--fleet", "--router"]),
        (("--fleet", "tenants", "--step-times", "x.csv"), ["--fleet", "--step-times"]),
        (("--step-times", "x.csv", "--profile", "x.json"), ["--step-times", "--profile"]),
        (("--layers", "3"), ["--layers", "--step-times"]),
        (("--timeline-replicas", "0"), ["--timeline-replicas", "--timeline"]),
        (("--out", "each.csv", "--timeline", "t.json", "--timeline-replicas", "7"), ["replicas", "7"]),
        (("--out", "each.csv", "--timeline", "each.csv"), ["each.csv", "another file"]),
        (("--out", "trace.csv"), ["trace.csv", "the trace"]),
        (("--out", "."), ["--out", "folder"]),
        (("--out", "trace.csv/each.csv"), ["--out", "trace.csv", "folder"]),
        (("--ttft-p95", "0"), ["ttft_p95_s", "above 0"]),
        (("--replicas", "1000000"), ["--replicas", "100000"]),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_written(
    flywheel: Flywheel, tmp_path: Path, words: tuple[str, ...], parts: list[str]
) -> None:
    trace = light_load(tmp_path)
    content = trace.read_bytes()
    assert_refused(flywheel("replay", "trace.csv", *words), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.csv"]
    assert trace.read_bytes() == content


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("capacity", "--met", "0.9", "--ttft", "1", "--percentile", "99"), ["--met", "--percentile"]),
        (("capacity", "--ttft", "1", "--max-context-tokens", "0"), ["--max-context-tokens"]),
        (("capacity", "--objective", "chat:ttft=1", "--objective", "chat:ttft=2"), ["chat", "twice"]),
        (("capacity", "--traffic", "chat=0.5,chat=0.2", "--ttft", "1"), ["chat", "twice"]),
        (("capacity", "--ttft", "1", "--seed", "-1"), ["--seed"]),
        (("capacity", "--ttft", "1", "--out", "."), ["--out", "folder"]),
        (("generate", "chat", "--duration", "1e18"), ["duration_s", "1e+08"]),
        (("generate", "chat", "--out", "."), ["--out", "folder"]),
    ],
)
def test_wrong_questions_of_load_are_one_line(
    flywheel: Flywheel, tmp_path: Path, words: tuple[str, ...], parts: list[str]
) -> None:
    assert_refused(flywheel(*words), *parts)
    assert not list(tmp_path.iterdir())


def test_a_light_load_and_a_name_in_brackets_are_printed(flywheel: Flywheel, tmp_path: Path) -> None:
    light_load(tmp_path).rename(tmp_path / "[bold]:smile:.csv")
    status, out, err = flywheel("replay", "[bold]:smile:.csv", "--out", "deep/each.csv")
    assert status == 0, err
    assert "[bold]:smile:.csv" in out
    assert (tmp_path / "deep" / "each.csv").is_file()


def test_wrong_words_are_one_line(flywheel: Flywheel) -> None:
    assert_refused(flywheel("run", "api_startup", "--seed", "x"), "--seed", "integer")
    assert_refused(flywheel("run", "--nothing"), "--nothing")
    assert_refused(flywheel("nothing"), "nothing")
    assert_refused(flywheel("replay"), "trace")
    status, out, err = flywheel()
    assert status == 2
    assert "profile" in out + err


def test_every_command_has_help_with_an_example(flywheel: Flywheel) -> None:
    root = typer.main.get_command(app.app)
    commands = [
        *root.commands,
        *(f"{group} {name}" for group in GROUPS for name in root.commands[group].commands),
    ]
    for command in set(commands) - set(GROUPS):
        status, out, _ = flywheel(*command.split(), "--help")
        assert status == 0
        assert f"Example: flywheel {command}" in " ".join(out.split())


def test_the_console_script_exits_with_2() -> None:
    script = shutil.which("flywheel", path=str(Path(sys.executable).parent))
    assert script, "install the package first: make test does"
    done = subprocess.run([script, "run", "nowhere.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "pydantic", "scipy", "pandas", "numpy", "simpy", "plotly", "sqlalchemy")
    assert loaded_by("sim.cli", heavy) == []
