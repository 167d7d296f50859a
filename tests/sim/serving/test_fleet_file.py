"""Fleet files: what they say is what is simulated, and every mistake is one line with its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.batch import SchedulerConfig
from engine.errors import InputError
from sim.serving.fleet_config import (
    Autoscaler,
    Failures,
    Fleet,
    RateLimit,
    Retries,
    ScheduledSize,
    SpotInterruptions,
)
from sim.serving.fleet_file import load_fleet
from sim.serving.metrics import littles_law_error
from sim.serving.replay import replay_fleet
from sim.utils.paths import scenarios_dir
from sim.workload.generate import generate
from tests.helpers.profile import synthetic_profile

PROFILE = synthetic_profile()
SHIPPED = sorted((scenarios_dir() / "fleets").glob("*.yaml"))
EVERYTHING = """\
router: power_of_two
timeout_s: 30
max_outstanding: 50
seed: 7
kv_transfer_s: 0.5
kv_transfer_s_per_token: 1e-6
retries: {attempts: 3, delay_s: 2, backoff: 1.5, max_delay_s: 10}
rate_limits:
  default: {requests_per_minute: 5, tokens_per_minute: 900}
kinds:
  first:
    profile: p.json
    replicas: 2
    weight: 2
    draft_tokens: 3
    acceptance_rate: 0.5
    load_s: 4
    scheduler: {max_step_tokens: 99, max_waiting_requests: 5, prefix_caching: false}
    autoscaler:
      metric: waiting_requests
      target: 1.5
      min_replicas: 0
      max_replicas: 9
      interval_s: 5
      provisioning_s: 6
      cool_down_s: 7
      tolerance: 0.2
      period_s: 100
      schedule:
        - {at_s: 0, replicas: 1}
        - {at_s: 50, replicas: 3}
    failures: {mtbf_s: 1000, repair_s: 10}
    spot: {mean_life_s: 2000, notice_s: 3, replacement_s: 4}
  second:
    step_times: steps.csv
    preset: vllm
    price_usd_per_hour: 2
    scheduler: {num_blocks: 777}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    PROFILE.save(tmp_path / "p.json")
    rows = ["decode_batch,kv_len,prefill_chunk,prefill_kv,ms"]
    for batch in (1, 8):
        rows += [f"{batch},{context},0,0,{10 + batch}" for context in (0, 100, 1000)]
    rows += [f"0,0,{chunk},{context},{10 + chunk / 100}" for chunk in (1, 64, 512) for context in (0, 500)]
    (tmp_path / "steps.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def written(folder: Path, text: str) -> Path:
    file = folder / "fleet.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_key_arrives(folder: Path) -> None:
    fleet = load_fleet(written(folder, EVERYTHING))
    assert (fleet.router, fleet.timeout_s, fleet.max_outstanding, fleet.seed) == ("power_of_two", 30, 50, 7)
    assert (fleet.kv_transfer_s, fleet.kv_transfer_s_per_token) == (0.5, 1e-6)
    assert fleet.retries == Retries(attempts=3, delay_s=2, backoff=1.5, max_delay_s=10)
    assert fleet.rate_limits == {"default": RateLimit(requests_per_minute=5, tokens_per_minute=900)}
    first, second = fleet.kinds
    assert (first.name, first.replicas, first.weight, first.load_s) == ("first", 2, 2, 4)
    assert (first.draft_tokens, first.acceptance_rate) == (3, 0.5)
    assert first.profile == PROFILE
    assert first.price_usd_per_hour == PROFILE.hardware.price_usd_per_hour
    assert first.scheduler == SchedulerConfig(
        max_step_tokens=99, max_waiting_requests=5, prefix_caching=False
    )
    assert first.autoscaler == Autoscaler(
        metric="waiting_requests", target=1.5, min_replicas=0, max_replicas=9, interval_s=5, provisioning_s=6,
        cool_down_s=7, tolerance=0.2, period_s=100,
        schedule=(ScheduledSize(at_s=0, replicas=1), ScheduledSize(at_s=50, replicas=3)),
    )  # fmt: skip
    assert first.failures == Failures(mtbf_s=1000, repair_s=10)
    assert first.spot == SpotInterruptions(mean_life_s=2000, notice_s=3, replacement_s=4)
    assert second.profile is None
    assert second.price_usd_per_hour == 2
    assert second.step_time.step_time([], [100]) == pytest.approx(0.011)
    assert second.scheduler == SchedulerConfig(256, 2048, 16, 777, spare_blocks_per_request=0)


def test_a_file_can_name_every_field() -> None:
    assert {line.split(":")[0] for line in EVERYTHING.splitlines() if line[0] != " "} == set(
        Fleet.model_fields
    )


def test_a_preset_keeps_the_cache_and_the_given_profile_serves_who_names_none(folder: Path) -> None:
    fleet = load_fleet(written(folder, "kinds:\n  only: {preset: vllm}\n"), PROFILE)
    assert fleet.kinds[0].profile is PROFILE
    assert fleet.kinds[0].scheduler.num_blocks == PROFILE.scheduler_config().num_blocks
    assert fleet.kinds[0].scheduler.max_running_requests == 256


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_fleets_serve(file: Path) -> None:
    fleet = load_fleet(file.stem)
    assert load_fleet(file) == fleet
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# "), "a fleet opens with its story"
    requests = generate({"chat": 1.0}, 0.4, requests=300, rng=3)
    requests["tenant"] = np.where(np.arange(300) % 3, "paying", "free")
    frame, stats = replay_fleet(requests, fleet)
    assert (frame["status"] == "finished").mean() > 0.9
    assert littles_law_error(frame, stats) < 1e-9


def test_four_fleets_are_shipped() -> None:
    assert [file.stem for file in SHIPPED] == ["chat_autoscaled", "prefill_decode", "spot_mix", "tenants"]


KIND = "kinds:\n  a:\n    profile: p.json\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["found nothing", "keys of a fleet"]),
        ("- 1\n", ["no mapping"]),
        ("kinds: [\n", ["line", "not YAML"]),
        ("router: !!python/name:os.system x\n", ["tag"]),
        ("kinds: {}\n", ["line 1", "kinds", "at least one"]),
        ("router: fastest\n" + KIND, ["line 1: router", "'fastest'", "prefix_aware"]),
        ("rooter: round_robin\n" + KIND, ["line 1: rooter", "nearest is router"]),
        (KIND + "    replica: 3\n", ["line 4: kinds.a.replica", "nearest is replicas"]),
        (KIND + "    replicas: -1\n", ["line 4: kinds.a.replicas", "found -1", "≥ 0"]),
        (KIND + "    replicas: true\n", ["line 4: kinds.a.replicas", "found true", "whole number"]),
        (KIND + "    replicas: '3'\n", ["line 4", "'3' (text)", "whole number"]),
        (KIND + "    replicas: 0\n", ["line 1", "0 replicas of role serve", "autoscaler"]),
        (KIND + "    load_s: .nan\n", ["line 4: kinds.a.load_s", "nan", "≥ 0"]),
        (KIND + "    role: decode\n", ["line 1", "only role decode"]),
        (KIND + "    scheduler: {max_step_tokens: 0}\n", ["line 4", "scheduler.max_step_tokens", "found 0", "≥ 1"]),
        (KIND + "    scheduler: {blocks: 9}\n", ["line 4", "kinds.a.scheduler.blocks", "num_blocks"]),
        (KIND + "    scheduler: {num_blocks: null}\n", ["line 2", "num_blocks", "found nothing"]),
        (KIND + "    preset: tgi\n", ["line 4: kinds.a.preset", "'tgi'", "vllm"]),
        (KIND + "    step_times: steps.csv\n", ["line 2", "profile and step_times"]),
        (KIND + "    layers: 3\n", ["line 2", "layers without step_times"]),
        ("kinds:\n  a: {step_times: steps.csv}\n", ["line 2", "num_blocks", "missing"]),
        ("kinds:\n  a: {step_times: none.csv}\n", ["line 2", "none.csv", "no such file"]),
        ("kinds:\n  a: {profile: none.json}\n", ["line 2", "none.json", "no such file"]),
        ("kinds:\n  a: {profile: gpt-9}\n", ["line 2", "gpt-9", "flywheel profile"]),
        ("kinds:\n  a: {}\n", ["line 2", "no profile"]),
        (KIND + "    autoscaler: {}\n", ["line 4", "autoscaler.target", "missing", "number > 0"]),
        (
            KIND + "    autoscaler:\n      target: 2\n      max_replicas: 1\n      min_replicas: 2\n",
            ["line 4: kinds.a.autoscaler", "max_replicas 1", "min_replicas 2"],
        ),
        (
            KIND + "    autoscaler:\n      target: 2\n      schedule:\n        - {at_s: 0, replicas: 1}\n"
            "        - {at_s: 9, replicas: -1}\n",
            ["line 8", "schedule.1.replicas", "found -1", "≥ 0"],
        ),
        (
            KIND + "    autoscaler:\n      target: 2\n      schedule: [{at_s: 90000, replicas: 1}]\n",
            ["line 4", "90000", "period_s 86400"],
        ),
        (KIND + "    spot: {mean_life_s: 0}\n", ["line 4", "spot.mean_life_s", "found 0", "≥ 0.1"]),
        (KIND + "rate_limits: {x: {tokens_per_minute: 0}}\n", ["line 4", "rate_limits.x", "found 0", "> 0"]),
        (KIND + "retries: {attempts: 0}\n", ["line 4", "retries.attempts", "found 0", "≥ 1"]),
        (KIND + "kinds:\n  b: {}\n", ["line", "not YAML"]),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(folder: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        load_fleet(written(folder, text))
    message = str(refusal.value)
    assert message.startswith(str(folder / "fleet.yaml"))
    assert "\n" not in message
    assert "None" not in message
    for part in parts:
        assert part in message, message


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file, and no shipped fleet"):
        load_fleet(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_fleet(tmp_path)
