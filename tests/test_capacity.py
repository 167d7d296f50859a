"""The capacity surface: sustained rates keep the objective, theory gives the saturation, the cache is safe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_company import closed_form_surface
from helpers_profile import synthetic_profile

from engine.errors import InputError
from engine.scheduler import SchedulerConfig
from sim import capacity
from sim.capacity import CapacitySurface, Objective, capacity_surface
from sim.serving import replay_with_stats, summary
from sim.workload import generate

PROFILE = synthetic_profile()
OBJECTIVE = Objective(ttft_p95_s=10.0, tpot_p95_s=0.5)
LATENCIES = ("ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s", "e2e_p95_s")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def surface(cache: Path) -> CapacitySurface:
    return capacity_surface(PROFILE, {"chat": 1.0}, OBJECTIVE, cache_dir=cache)


def test_latency_and_work_grow_with_the_rate(surface: CapacitySurface) -> None:
    table = surface.table
    assert table["rate_rps"].is_monotonic_increasing
    for name in LATENCIES:
        assert table[name].is_monotonic_increasing, name
    assert table["busy_fraction"].between(0, 1 + 1e-9).all()
    assert (np.diff(table["batch_mean"]) > -0.05 * table["batch_mean"].iloc[1:]).all()
    np.testing.assert_allclose(table["load"], table["rate_rps"] / surface.saturation_rps)
    assert (table["ttft_p95_s"] >= table["ttft_p50_s"]).all()
    assert (table["tpot_p95_s"] >= table["tpot_p50_s"]).all()


def test_capacity_is_where_the_objective_is_reached(surface: CapacitySurface) -> None:
    assert 0 < surface.capacity_rps < surface.saturation_rps
    kept, missed = surface.at(surface.capacity_rps), surface.at(surface.capacity_rps * 1.03)
    assert kept["ttft_p95_s"] <= OBJECTIVE.ttft_p95_s * (1 + 1e-9)
    assert kept["tpot_p95_s"] <= OBJECTIVE.tpot_p95_s * (1 + 1e-9)
    assert missed["ttft_p95_s"] > OBJECTIVE.ttft_p95_s or missed["tpot_p95_s"] > OBJECTIVE.tpot_p95_s


def test_other_requests_find_about_the_same_latency(surface: CapacitySurface) -> None:
    rate_rps = 0.6 * surface.saturation_rps
    requests = generate({"chat": 1.0}, rate_rps, requests=4000, rng=99, max_context_tokens=8192)
    frame, stats = replay_with_stats(requests, PROFILE.step_time_model(), PROFILE.scheduler_config())
    found, expected = summary(frame, stats), surface.at(rate_rps)
    for name in LATENCIES:
        assert found[name] == pytest.approx(float(expected[name]), rel=0.15), name
    assert found["busy_fraction"] == pytest.approx(float(expected["busy_fraction"]), rel=0.05)


def test_tokens_per_request_are_those_of_the_traffic(surface: CapacitySurface) -> None:
    assert surface.prompt_tokens_mean == pytest.approx(1155, rel=0.01)
    assert surface.output_tokens_mean == pytest.approx(211, rel=0.01)


def test_a_looser_objective_allows_more(surface: CapacitySurface, cache: Path) -> None:
    loose = capacity_surface(PROFILE, {"chat": 1.0}, Objective(600.0, 60.0), cache_dir=cache)
    tight = capacity_surface(PROFILE, {"chat": 1.0}, Objective(10.0, 0.05), cache_dir=cache)
    assert tight.capacity_rps < surface.capacity_rps < loose.capacity_rps < loose.saturation_rps
    assert tight.saturation_rps == pytest.approx(surface.saturation_rps)
    assert loose.capacity_rps == pytest.approx(0.95 * loose.saturation_rps)


def test_twice_the_speed_is_twice_the_rate_at_half_the_latency(surface: CapacitySurface, cache: Path) -> None:
    fast = capacity_surface(
        synthetic_profile(speed=2.0), {"chat": 1.0}, Objective(5.0, 0.25), cache_dir=cache
    )
    assert fast.saturation_rps == pytest.approx(2 * surface.saturation_rps, rel=1e-6)
    assert fast.capacity_rps == pytest.approx(2 * surface.capacity_rps, rel=1e-6)
    np.testing.assert_allclose(fast.table["ttft_p95_s"] * 2, surface.table["ttft_p95_s"], rtol=1e-6)


def test_one_request_at_a_time_saturates_at_the_inverse_of_its_service(cache: Path) -> None:
    config = SchedulerConfig(max_running_requests=1, prefix_caching=False)
    alone = capacity_surface(PROFILE, {"code": 1.0}, Objective(600.0, 60.0), config, cache_dir=cache)
    busy = alone.table["busy_fraction"] / alone.table["load"]
    # Of a single server, utilisation is load.
    assert busy.iloc[3:-1].to_numpy() == pytest.approx(1.0, rel=0.08)


def test_at_takes_arrays_and_goes_on_beyond_the_table() -> None:
    surface = closed_form_surface(0.4, 0.5)
    rates = np.array([[0.0, 0.1, 0.25], [0.4, 0.5, 2.0]])
    found = surface.at(rates)
    assert all(values.shape == rates.shape for values in found.values())
    assert all(np.isfinite(values).all() for values in found.values())
    assert found["ttft_p95_s"][0, 2] == pytest.approx(1.5 / 0.5, rel=0.01)
    assert found["busy_fraction"][0, 0] == 0
    assert found["output_tokens_per_s"][0, 0] == 0
    for name in LATENCIES:
        assert (np.diff(found[name].reshape(-1)) >= 0).all(), name
    assert found["ttft_p95_s"][1, 1] > 10 * found["ttft_p95_s"][1, 0]
    assert found["busy_fraction"].max() == 1.0
    assert surface.at(0.3)["ttft_p95_s"].shape == ()


def test_an_objective_out_of_reach_says_what_is_in_reach(cache: Path) -> None:
    with pytest.raises(InputError, match=r"ttft_p95_s 0\.5.*best achievable.*2\.\d") as refusal:
        capacity_surface(PROFILE, {"chat": 1.0}, Objective(0.5, 0.5), cache_dir=cache)
    assert "\n" not in str(refusal.value)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"objective\.tpot_p95_s"):
            Objective(1.0, bad)
    with pytest.raises(InputError, match=r"traffic\.chats"):
        capacity_surface(PROFILE, {"chats": 1.0}, OBJECTIVE, cache_dir=cache)


def test_the_cache_gives_the_same_and_survives_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "REQUESTS_PER_RATE", 200)  # many surfaces, none looked at closely

    def ask() -> tuple[CapacitySurface, list[str]]:
        heard: list[str] = []
        found = capacity_surface(
            PROFILE,
            {"chat": 2.0},  # shares are relative: the same traffic
            OBJECTIVE,
            cache_dir=tmp_path,
            progress=lambda done, what: heard.append(f"{done:.2f} {what}"),
        )
        return found, heard

    first, simulated = ask()
    assert len(simulated) > 10
    assert [float(line.split()[0]) for line in simulated] == sorted(float(x.split()[0]) for x in simulated)
    again, read = ask()
    assert len(read) == 1
    assert again.capacity_rps == first.capacity_rps
    assert again.table.equals(first.table)
    assert again.provenance == first.provenance
    (path,) = tmp_path.rglob("*.json")
    whole = path.read_text()
    for damaged in (whole[: len(whole) // 2], "[]", "{}", whole.replace('"method": ', '"method": 9')):
        path.write_text(damaged)
        repaired, heard = ask()
        assert len(heard) > 10
        assert repaired.table.equals(first.table)
        assert json.loads(path.read_text()) == json.loads(whole)


def test_every_input_is_part_of_the_key(
    surface: CapacitySurface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "REQUESTS_PER_RATE", 400)
    small = SchedulerConfig(max_running_requests=2)
    few = capacity_surface(PROFILE, {"chat": 1.0}, Objective(600, 60), small, cache_dir=tmp_path)
    other = capacity_surface(PROFILE, {"chat": 1.0}, Objective(600, 60), small, seed=1, cache_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 2
    assert few.saturation_rps < surface.saturation_rps
    assert few.saturation_rps != other.saturation_rps
    assert few.saturation_rps == pytest.approx(other.saturation_rps, rel=0.1)
    assert few.provenance["profile"] == PROFILE.content_hash
