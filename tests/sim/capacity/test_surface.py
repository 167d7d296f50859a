"""The capacity surface: sustained rates keep the objective, theory gives the saturation, the cache is safe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engine.batch import SchedulerConfig
from engine.errors import InputError
from engine.profile.profile import Profile
from engine.profile.step_time import RooflineStepTime
from sim.capacity import surface as capacity
from sim.capacity.goals import Limit, MetShare, Objective, goal_of
from sim.capacity.offered_load import OfferedLoad, conversation_load, fitted_load, trace_load, traffic_load
from sim.capacity.surface import CapacitySurface, capacity_surface, fleet_capacity, replica_fleet
from sim.serving.fleet_config import Fleet, ReplicaSpec
from sim.serving.metrics import summary
from sim.serving.replay import equal_replicas, replay_fleet
from sim.traces.fit import fit
from sim.workload.arrivals import MarkovModulated
from sim.workload.generate import generate
from sim.workload.traffic_classes import TrafficClass
from tests.helpers.company import closed_form_surface
from tests.helpers.profile import synthetic_profile

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
    frame, stats = replay_fleet(
        requests, equal_replicas(PROFILE.step_time_model(), PROFILE.scheduler_config())
    )
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
    assert len(simulated) > 5
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
        assert len(heard) > 5
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


def _equal_steps(step_s: float) -> RooflineStepTime:
    """Every step takes the same time, whatever is in it."""
    return RooflineStepTime(step_s, (0,), (0.0,), (0,), (0.0,), 0.0, 0.0, 0.0, 0.0)


def _exponential_load(mean_tokens: float) -> OfferedLoad:
    """Poisson arrivals of one-token prompts with geometric answers: exponential service, one at a time."""

    def draw(rate_rps: float, requests: int, seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        return pd.DataFrame(
            {
                "arrived_s": rng.standard_exponential(requests).cumsum() / rate_rps,
                "prompt_tokens": 1,
                "output_tokens": np.maximum(
                    1, np.rint(rng.standard_exponential(requests) * mean_tokens)
                ).astype(int),
            }
        )

    return OfferedLoad("exponential", {"exponential": mean_tokens}, draw)


@pytest.mark.parametrize("load", [0.5, 0.75])
def test_a_single_exponential_server_sustains_what_theory_says(load: float, tmp_path: Path) -> None:
    # M/M/1: the mean time in the system is S / (1 − ρ), so a limit of S / (1 − load) is reached at that load.
    service_s = 200 * 0.01
    one_by_one = SchedulerConfig(max_running_requests=1, prefix_caching=False)
    fleet = Fleet(kinds=(ReplicaSpec(step_time=_equal_steps(0.01), scheduler=one_by_one),))
    limit = Limit("e2e", "mean", service_s / (1 - load))
    found = fleet_capacity(fleet, _exponential_load(200), [limit], cache_dir=tmp_path)
    assert found.capacity_rps == pytest.approx(load / service_s, rel=0.03)
    assert found.saturation_rps == pytest.approx(1 / service_s, rel=0.02)
    assert found.capacity_low_rps <= load / service_s <= found.capacity_high_rps
    assert found.capacity_high_rps < 1.2 * found.capacity_low_rps


def test_a_slower_replica_is_read_off_the_same_curve(surface: CapacitySurface, cache: Path) -> None:
    slow = capacity_surface(synthetic_profile(speed=0.8), {"chat": 1.0}, OBJECTIVE, cache_dir=cache)
    assert surface.capacity_at(1.25) == pytest.approx(slow.capacity_rps, rel=0.03)
    assert surface.capacity_at(1.0) == pytest.approx(surface.capacity_rps)
    assert surface.capacity_at(100.0) == 0.0
    assert surface.capacity_at(1.25) < surface.capacity_rps < surface.capacity_at(0.8)


def test_the_interval_holds_other_seeds(surface: CapacitySurface, cache: Path) -> None:
    assert surface.capacity_low_rps < surface.capacity_rps < surface.capacity_high_rps
    other = capacity_surface(PROFILE, {"chat": 1.0}, OBJECTIVE, seed=5, cache_dir=cache)
    assert surface.capacity_low_rps * 0.98 < other.capacity_rps < surface.capacity_high_rps * 1.02


QUICK = 4000
MIX = traffic_load({"chat": 0.7, "code": 0.3}, max_context_tokens=8192)


def test_each_class_can_have_its_own_objective(tmp_path: Path) -> None:
    fleet = replica_fleet(PROFILE)

    def sustained(goal: object) -> float:
        return fleet_capacity(fleet, MIX, goal, requests=QUICK, cache_dir=tmp_path).capacity_rps  # type: ignore[arg-type]

    both = sustained(goal_of({"chat": Objective(20.0, 0.5), "code": Objective(10.0, 2.0)}))
    chat = sustained(goal_of({"chat": Objective(20.0, 0.5)}))
    code = sustained(goal_of({"code": Objective(10.0, 2.0)}))
    assert both == pytest.approx(min(chat, code), rel=0.02)
    assert chat != pytest.approx(code, rel=0.02)
    own = TrafficClass("code", 1469, 2048, 13, 28, ttft_p95_s=10.0, tpot_p95_s=2.0)
    assert sustained(goal_of({"code": own})) == code


def test_stricter_statistics_and_shares_sustain_less(tmp_path: Path) -> None:
    fleet = replica_fleet(PROFILE)

    def sustained(*goal: Limit | MetShare) -> float:
        return fleet_capacity(fleet, MIX, goal, requests=QUICK, cache_dir=tmp_path).capacity_rps

    by_statistic = [sustained(Limit("ttft", statistic, 12.0)) for statistic in ("mean", 90, 95, 99)]
    assert by_statistic == sorted(by_statistic, reverse=True)
    by_share = [sustained(MetShare(share, Objective(12.0, 0.5))) for share in (0.5, 0.9, 0.95)]
    assert by_share == sorted(by_share, reverse=True)
    # Both at once is harder than each percentile by itself.
    assert by_share[-1] <= sustained(Limit("ttft", 95, 12.0), Limit("tpot", 95, 0.5)) * 1.01
    with pytest.raises(InputError, match=r"best achievable"):
        sustained(Limit("ttft", 99.9, 1.0))


def test_more_replicas_sustain_more_than_their_number(tmp_path: Path) -> None:
    goal = goal_of(OBJECTIVE)
    rates = [
        fleet_capacity(
            replica_fleet(PROFILE, replicas=n), MIX, goal, requests=QUICK, cache_dir=tmp_path
        ).capacity_rps
        for n in (1, 2, 4)
    ]
    assert 2 * rates[0] * 0.98 < rates[1]
    assert 2 * rates[1] * 0.98 < rates[2]


def test_prefill_and_decode_pools_and_doors_are_searched_too(tmp_path: Path) -> None:
    times, config = PROFILE.step_time_model(), PROFILE.scheduler_config()
    pools = Fleet(
        kinds=tuple(
            ReplicaSpec(name=role, step_time=times, scheduler=config, role=role)
            for role in ("prefill", "decode")
        ),
        kv_transfer_s=0.05,
    )
    goal = goal_of(Objective(20.0, 0.2))
    split = fleet_capacity(pools, MIX, goal, requests=QUICK, cache_dir=tmp_path)
    assert 0 < split.capacity_rps < split.saturation_rps
    # Whoever is refused is infinitely late: a door that is too narrow costs capacity.
    narrow = replica_fleet(PROFILE).model_copy(update={"max_outstanding": 3})
    wide = fleet_capacity(replica_fleet(PROFILE), MIX, goal, requests=QUICK, cache_dir=tmp_path)
    few = fleet_capacity(narrow, MIX, goal, requests=QUICK, cache_dir=tmp_path)
    assert few.capacity_rps < wide.capacity_rps


def test_any_load_comes_at_the_rate_asked_for(tmp_path: Path) -> None:
    recorded = generate({"chat": 1.0}, 3.0, requests=600, rng=1, max_context_tokens=8192)
    loads = [
        MIX,
        traffic_load({"chat": 1.0}, process=MarkovModulated((1.0, 4.0), (30.0, 10.0))),
        fitted_load(fit(recorded)),
        trace_load(recorded),
        conversation_load("chat", max_context_tokens=8192),
    ]
    for load in loads:
        for rate_rps in (0.3, 20.0):
            frame = load.at(rate_rps, 2000)
            assert len(frame) / frame["arrived_s"].max() == pytest.approx(rate_rps), load.name
        pd.testing.assert_frame_equal(load.at(2.0, 2000, 3), load.at(2.0, 2000, 3))
        json.dumps(load.content)
    goal = [Limit("e2e", 95, 200.0)]
    for load in loads[1:]:
        found = fleet_capacity(replica_fleet(PROFILE), load, goal, requests=2000, cache_dir=tmp_path)
        assert 0 < found.capacity_rps <= 0.951 * found.saturation_rps, load.name
    assert loads[3].at(1.0, 10)["prompt_tokens"].tolist() == recorded["prompt_tokens"].tolist()


def test_a_fleet_is_cached_by_content(tmp_path: Path) -> None:
    heard: list[str] = []

    def ask(fleet: Fleet, load: OfferedLoad, seed: int = 0) -> CapacitySurface:
        heard.clear()
        return fleet_capacity(
            fleet,
            load,
            goal_of(OBJECTIVE),
            requests=2000,
            seed=seed,
            cache_dir=tmp_path,
            progress=lambda _part, what: heard.append(what),
        )

    first = ask(replica_fleet(PROFILE), MIX)
    assert len(heard) > 5
    # The same content from other objects, one of them through its file.
    PROFILE.save(tmp_path / "profile.json")
    again = ask(
        replica_fleet(Profile.load(tmp_path / "profile.json")),
        traffic_load({"code": 0.3, "chat": 0.7}, max_context_tokens=8192),
    )
    assert heard == ["capacity known"]
    assert again.table.equals(first.table)
    assert again.strains == first.strains
    assert (again.capacity_rps, again.capacity_low_rps) == (first.capacity_rps, first.capacity_low_rps)
    assert again.provenance == first.provenance
    for fleet, load, seed in (
        (replica_fleet(PROFILE, replicas=2), MIX, 0),
        (replica_fleet(PROFILE), traffic_load({"chat": 1.0}, max_context_tokens=8192), 0),
        (replica_fleet(PROFILE), MIX, 1),
    ):
        ask(fleet, load, seed)
        assert len(heard) > 5


def test_what_cannot_be_searched_says_so_in_one_line(tmp_path: Path) -> None:
    fleet = replica_fleet(PROFILE)
    recorded = generate({"chat": 1.0}, 3.0, requests=600, rng=1)
    cases = [
        (lambda: fleet_capacity(fleet, MIX, [], cache_dir=tmp_path), "at least one limit"),
        (
            lambda: fleet_capacity(fleet, MIX, goal_of({"rag": OBJECTIVE}), cache_dir=tmp_path),
            "rag ttft_p95_s.*no requests.*chat, code",
        ),
        (
            lambda: fleet_capacity(fleet, MIX, [MetShare(0.9, {"chat": OBJECTIVE})], cache_dir=tmp_path),
            "'code'.*no objective",
        ),
        (lambda: Limit("ttft", 0, 1.0), "statistic"),
        (lambda: Limit("latency", 95, 1.0), "'latency'.*ttft, tpot"),  # type: ignore[arg-type]
        (lambda: Limit("ttft", 95, float("nan")), "ttft_p95_s.*nan"),
        (lambda: MetShare(1.0, OBJECTIVE), "share"),
        (lambda: goal_of({"chat": TrafficClass("chat", 1, 1, 1, 1)}), "found none"),
        (lambda: trace_load(recorded[:50]), "50 requests"),
        (lambda: trace_load(recorded.assign(arrived_s=1.0)), "one time"),
        (lambda: conversation_load("chats"), "'chats'.*agent, chat"),
        (lambda: MIX.at(0.0, 100), "above 0"),
    ]
    for ask, said in cases:
        with pytest.raises(InputError, match=said) as refusal:
            ask()
        assert "\n" not in str(refusal.value)
