"""Serving lab and Engine: the experiments against closed forms, their figures, and each control of both pages."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from streamlit.testing.v1 import AppTest
from transformers import PreTrainedTokenizerFast

from engine.errors import InputError
from engine.profile.profile import Profile
from sim.capacity.configurations import measured_configurations, predicted_configurations
from sim.capacity.goals import Objective, goal_of
from sim.capacity.lab import (
    BatchWatch,
    HardwareComparison,
    LoadTrial,
    compare_hardware,
    try_load,
    watch_batch,
)
from sim.capacity.offered_load import traffic_load
from sim.figures import hardware, prompt, serving
from sim.figures import profile as figures_engine
from sim.figures.theme import PALETTES
from sim.utils.paths import shipped_profiles_dir
from tests.engine.inference.test_architectures import SERVED, VOCABULARY, saved
from tests.helpers.places import APP
from tests.helpers.profile import synthetic_profile

WANTED = Objective(10.0, 0.5)
CHAT = {"chat": 1.0}
PATIENCE = 200


@pytest.fixture(scope="module")
def shipped() -> Profile:
    return Profile.load(shipped_profiles_dir() / "smollm2-135m.json")


@pytest.fixture(scope="module")
def trial() -> LoadTrial:
    return try_load(synthetic_profile(speed=4.0), CHAT, 1.2, WANTED, requests=1000)


@pytest.fixture(scope="module")
def watch() -> BatchWatch:
    return watch_batch(synthetic_profile(), CHAT, 0.8, requests=150, cache_share=0.15)


@pytest.fixture(scope="module")
def comparison() -> HardwareComparison:
    fast = replace(synthetic_profile(price_usd_per_hour=2.0, speed=50.0), kind="measured")
    cheap = synthetic_profile(price_usd_per_hour=0.05, speed=2.0)
    given = measured_configurations([fast])
    found, _ = predicted_configurations("smollm2-135m", ["L40S 48 GB"])
    load = traffic_load({"chat": 1.0}, max_context_tokens=8192)
    return compare_hardware(load, goal_of(WANTED), 4.0, [*found, *given, *measured_configurations([cheap])])


# The experiments.


def test_a_trial_counts_what_its_requests_say(trial: LoadTrial) -> None:
    frame, figures = trial.frame, trial.figures
    assert len(frame) == 1000
    ttft_s = frame["first_token_s"] - frame["arrived_s"]
    rest_s = frame["finished_s"] - frame["first_token_s"]
    tpot_s = rest_s / (frame["output_tokens"] - 1).where(frame["output_tokens"] > 1)
    met = (ttft_s <= WANTED.ttft_p95_s) & ~(tpot_s > WANTED.tpot_p95_s)
    assert figures["objective_met"] == pytest.approx(met.mean())
    passed_s = frame["finished_s"].max() - frame["arrived_s"].min()
    assert figures["goodput_rps"] == pytest.approx(met.sum() / passed_s)
    assert figures["ttft_p95_s"] == pytest.approx(np.percentile(ttft_s, 95))


def test_more_replicas_never_make_it_slower_and_an_autoscaler_orders_them() -> None:
    profile = synthetic_profile()
    one = try_load(profile, CHAT, 1.0, WANTED, requests=1000)
    four = try_load(profile, CHAT, 1.0, WANTED, requests=1000, replicas=4)
    scaled = try_load(profile, CHAT, 1.0, WANTED, requests=1000, most_replicas=4)
    assert four.figures["ttft_p95_s"] < one.figures["ttft_p95_s"]
    assert one.figures["objective_met"] < scaled.figures["objective_met"] <= four.figures["objective_met"]
    assert len(one.stats.up_s) == 1
    assert 1 < len(scaled.stats.up_s) <= 4
    # Four machines, paid from the first arrival to the last answer.
    assert four.figures["cost_usd"] == pytest.approx(
        4 * profile.hardware.price_usd_per_hour * four.stats.duration_s / 3600
    )


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": 4, "most_replicas": 2}, "max_replicas 2 below min_replicas 4"),
        ({"router": "nobody"}, "router"),
        ({"requests": 0}, "requests: found 0"),
        ({"rate_rps": 0.0}, "offered load"),
    ],
)
def test_a_bad_trial_is_one_clear_line(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        try_load(synthetic_profile(), CHAT, **{"rate_rps": 1.0, "objective": WANTED, **bad})
    assert "\n" not in str(caught.value)


def test_a_small_cache_preempts_and_a_full_one_does_not(watch: BatchWatch) -> None:
    assert watch.preemptions > 0
    assert watch.steps["kv_blocks"].max() <= watch.scheduler.num_blocks
    assert watch_batch(synthetic_profile(), CHAT, 0.8, requests=150).preemptions == 0
    with pytest.raises(InputError, match="cache_share: found 0"):
        watch_batch(synthetic_profile(), CHAT, 0.8, cache_share=0.0)


def test_the_time_line_is_what_perfetto_reads(watch: BatchWatch) -> None:
    events = json.loads(watch.trace_json())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X" and event["cat"] == "request"]
    assert len(slices) == len(watch.frame)
    assert {event["name"] for event in events if event["ph"] == "C"} == {"running", "waiting", "kv_blocks"}


def test_capacity_per_dollar_is_rate_times_tokens_over_price(comparison: HardwareComparison) -> None:
    table = comparison.per_dollar
    assert list(table["tokens_per_usd"]) == sorted(table["tokens_per_usd"], reverse=True)
    assert set(table["kind"]) == {"measured", "predicted"}
    for row in table.itertuples():
        per_usd = row.capacity_rps * 3600 / row.usd_per_hour
        assert row.requests_per_usd == pytest.approx(per_usd)
        # A chat request of this mix has some 1,155 prompt and 211 output tokens.
        assert 1200 < row.tokens_per_usd / row.requests_per_usd < 1500
    best = comparison.found.cheapest
    assert best["usd_per_hour"] == pytest.approx(best["replicas"] * 0.05)


def test_comparing_can_be_cancelled() -> None:
    class Enough(Exception): ...

    def stop(fraction: float, _doing: str) -> None:
        if fraction > 0:
            raise Enough

    configurations, _ = predicted_configurations("smollm2-135m", ["L40S 48 GB", "H100 SXM 80 GB"])
    with pytest.raises(Enough):
        compare_hardware(
            traffic_load(CHAT, max_context_tokens=4096), goal_of(WANTED), 4.0, configurations, progress=stop
        )


# The figures.


def every_figure(
    trial: LoadTrial, watch: BatchWatch, comparison: HardwareComparison, shipped: Profile, theme: Any
) -> dict[str, Any]:
    weights = np.tril(np.ones((2, 5, 5))) / np.arange(1, 6)[:, None]
    labels = ["The", " cat", "\n", " <b>sat</b>", " down"]
    candidates = [_Candidate(" mat", 0.5), _Candidate(" rug", 0.25)]
    return {
        "distributions": serving.distributions(trial, theme),
        "batch": serving.batch_time_line(watch, theme),
        "per_dollar": hardware.per_dollar(comparison, theme),
        "cost": hardware.cost_against_latency(comparison, "ttft_p95_s", theme),
        "fit": figures_engine.fit_against_measured(shipped, theme),
        "roofline": figures_engine.roofline(shipped, theme),
        "attention": prompt.attention_map(weights, labels, 3, None, theme),
        "next": prompt.next_token_bars(candidates, 0.7, theme),
        "losses": prompt.token_losses(labels, [1.0, 2.0, 0.5, 4.0], 6.5, theme),
    }


class _Candidate:
    def __init__(self, text: str, probability: float) -> None:
        self.text, self.probability = text, probability


def test_every_figure_says_what_it_shows_in_both_themes(
    trial: LoadTrial, watch: BatchWatch, comparison: HardwareComparison, shipped: Profile
) -> None:
    for theme, colours in PALETTES.items():
        other = PALETTES["dark" if theme == "light" else "light"]
        for name, figure in every_figure(trial, watch, comparison, shipped, theme).items():
            assert figure.layout.title.text, name
            assert figure.layout.title.subtitle.text, name
            for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
                assert axis.title.text, name
            text = figure.to_json()
            assert "NaN" not in text, name
            assert "Infinity" not in text, name
            strangers = set(vars(other).values()) - set(vars(colours).values())
            assert not [colour for colour in strangers if colour in text], name


def test_tokens_are_shown_as_they_are_and_never_as_markup() -> None:
    assert prompt.short_label(" <b>x</b>") == "·&lt;b&gt;x&lt;/b&gt;"
    assert prompt.short_label("\n") == "↵"
    assert prompt.short_label("  ") == "··"
    assert len(prompt.short_label("incomprehensibilities")) == 12


def test_no_step_of_the_shipped_profile_is_above_its_roof(shipped: Profile) -> None:
    points = figures_engine.roofline_points(shipped)
    assert len(points) == len(shipped.measurements)
    assert (points["roof_share"] > 0.05).all()
    # The peak is a measured product, not a law: a step may come near it, not far beyond.
    assert (points["roof_share"] < 1.05).all()
    # A decode of one request does two operations per weight of four bytes, and little else.
    alone = [i for i, point in enumerate(shipped.measurements) if point.decode_contexts == (1,)]
    for i in alone:
        assert points["intensity_flop_per_byte"][i] == pytest.approx(0.5, rel=0.02)


def test_a_profile_that_is_predicted_draws_no_points() -> None:
    figure = figures_engine.fit_against_measured(synthetic_profile())
    assert "no step of it was measured" in figure.layout.title.text
    with pytest.raises(InputError, match="found no peak_flops"):
        figures_engine.roofline(synthetic_profile())


# The pages.


def settled(app: AppTest) -> AppTest:
    """Rerun until nothing is under way, as the browser's polling does."""
    app.run()
    for _ in range(PATIENCE):
        # The overview looks at luck meanwhile, which no page here waits for.
        bars = [bar for bar in app.get("progress") if not str(bar.proto.text).startswith("Luck")]
        if not bars and not any(button.key == "ask_stop" for button in app.button):
            break
        time.sleep(0.05)
        app.run()
    assert [error.value for error in app.exception] == []
    return app


def said(app: AppTest) -> str:
    """What the one error on the page says, without the marks that keep Markdown from reading it."""
    assert len(app.error) == 1
    text = re.sub(r"\\(.)", r"\1", app.error[0].value)
    assert "\n" not in text
    return text


def page(name: str, model: str | None = None) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    if model is not None:  # as if typed into the box, which a test can't
        app.session_state["engine_model"] = model
    return settled(app.switch_page(f"sim/ui/pages/{name}.py"))


def press(app: AppTest, label: str) -> AppTest:
    next(button for button in app.button if button.label == label).click()
    return settled(app)


def charts(app: AppTest) -> int:
    return len(app.get("plotly_chart"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of a few thousand weights that reads and writes the words w0 … w127, as a user would name its folder."""
    folder = saved(tmp_path_factory.mktemp("tiny"), *SERVED["llama"])
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def test_a_load_is_tried_with_each_of_its_controls() -> None:
    app = page("serving")
    assert "API startup" in app.title[0].value
    assert charts(app) == 2
    capacity = next(box for box in app.number_input if box.key.startswith("trial_rate"))
    assert capacity.value == pytest.approx(0.4, rel=0.2)
    throughput = [entry.value for entry in app.metric]
    capacity.set_value(3.0)
    app.number_input(key="trial_replicas").set_value(2)
    app.selectbox(key="trial_router").select("round_robin")
    app.selectbox(key="trial_traffic").select("code")
    app.select_slider(key="trial_requests").set_value(1000)
    app.toggle(key="trial_scales").set_value(True)
    app.number_input(key="trial_most").set_value(4)
    press(app, "Run the trial")
    assert [entry.value for entry in app.metric] != throughput
    assert not app.error
    app.number_input(key="trial_most").set_value(1)
    press(app, "Run the trial")
    assert "max_replicas 1 below min_replicas 2" in said(app)


def test_a_batch_is_watched_and_its_time_line_downloaded() -> None:
    app = page("serving")
    app.segmented_control(key="lab").set_value("batch")
    settled(app)
    app.select_slider(key="batch_requests").set_value(60)
    app.slider(key="batch_cache").set_value(10)
    app.selectbox(key="batch_traffic").select("rag")
    press(app, "Watch")
    assert charts(app) == 1
    assert not app.error
    assert any("Perfetto" in str(button.proto.label) for button in app.get("download_button"))


def test_hardware_is_ranked_and_what_cannot_serve_says_why() -> None:
    app = page("serving")
    app.segmented_control(key="lab").set_value("hardware")
    settled(app)
    assert charts(app) == 0
    app.multiselect(key="hw_accelerators").set_value(["L40S 48 GB", "H100 SXM 80 GB"])
    app.selectbox(key="hw_against").select("ttft_p95_s")
    app.number_input(key="hw_rate").set_value(2.0)
    press(app, "Compare")
    assert charts(app) == 2
    ranked = app.dataframe[0].value
    assert set(ranked["Step times"]) <= {"measured", "predicted"}
    assert list(ranked["USD per hour"]) == sorted(ranked["USD per hour"])
    app.selectbox(key="hw_model").select("llama-3.1-405b")
    press(app, "Compare")
    assert "llama-3.1-405b" in said(app)
    app.multiselect(key="hw_accelerators").set_value([])
    press(app, "Compare")
    assert "accelerators: found none" in said(app)


def test_the_fleet_of_the_company_is_drawn() -> None:
    app = page("serving")
    app.segmented_control(key="lab").set_value("fleet")
    assert charts(settled(app)) == 2


def test_the_engine_page_shows_the_profile_in_use() -> None:
    app = page("engine")
    assert app.title[0].value == "Engine"
    assert charts(app) == 2
    assert [entry.label for entry in app.metric][:2] == ["Prefill", "Decode, one request"]
    assert all("nan" not in str(entry.value) for entry in app.metric)


def test_the_model_answers_with_its_times_and_cost(tiny: str) -> None:
    app = page("engine", tiny)
    app.segmented_control(key="engine_section").set_value("ask")
    settled(app)
    app.text_area(key="ask_prompt").set_value("w5 w17 w99")
    app.number_input(key="ask_tokens").set_value(12)
    app.number_input(key="ask_temperature").set_value(0.5)
    app.number_input(key="ask_seed").set_value(3)
    app.toggle(key="ask_chat").set_value(False)
    press(app, "Answer")
    assert not app.error
    words = app.chat_message[1].markdown[0].value.split()
    assert 1 <= len(words) <= 12
    assert all(word.startswith("w") for word in words)
    shown = {entry.label: str(entry.value) for entry in app.metric}
    assert shown["Prompt → output"].startswith("3 → ")
    assert shown["Time to first token"].endswith("s")
    assert shown["Cost of this answer"].startswith("$")
    assert any("list price" in caption.value for caption in app.caption)
    # The same seed gives the same words again.
    press(app, "Answer")
    assert app.chat_message[1].markdown[0].value.split() == words
    app.text_area(key="ask_prompt").set_value("   ")
    press(app, "Answer")
    assert "empty" in said(app)


def test_an_answer_that_cannot_be_is_one_clear_line() -> None:
    app = page("engine", "no/such-model")
    app.segmented_control(key="engine_section").set_value("ask")
    settled(app)
    press(app, "Answer")
    assert "cannot be loaded" in said(app)


def test_a_look_inside_follows_layer_head_and_temperature(tiny: str) -> None:
    app = page("engine", tiny)
    app.segmented_control(key="engine_section").set_value("inside")
    settled(app)
    app.text_area(key="look_text").set_value("w5 w17 w99 w3")
    press(app, "Look")
    assert charts(app) == 3

    def titles() -> list[str]:
        return [str(text.value) for text in app.markdown if "attention" in str(text.value)] + [
            str(caption.value) for caption in app.caption
        ]

    before = titles()
    app.number_input(key="look_layer").set_value(1)
    app.selectbox(key="look_head").select(2)
    app.number_input(key="look_temperature").set_value(0.3)
    settled(app)
    assert charts(app) == 3
    assert titles() != before
    assert any("layer 1, head 2" in text.replace("\\", "") for text in titles())
    app.text_area(key="look_text").set_value("")
    press(app, "Look")
    assert "prompt: found 0 tokens" in said(app)


def test_a_measurement_can_be_cancelled(tiny: str) -> None:
    app = page("engine", tiny)
    app.run()
    app.button(key="engine_measure").click()
    app.run()
    assert app.get("progress")
    next(button for button in app.button if button.label == "Cancel").click()
    settled(app)
    assert any("cancelled" in entry.value for entry in app.info)


@pytest.mark.slow
def test_the_machine_is_measured_and_the_profile_kept(tiny: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    app = page("engine", tiny)
    app.run()
    app.button(key="engine_measure").click()
    until = time.monotonic() + 180
    app.run()
    while app.get("progress") and time.monotonic() < until:
        time.sleep(0.5)
        app.run()
    assert not app.error
    assert charts(app) == 2
    app.button(key="engine_save").click()
    settled(app)
    kept = Profile.load(tmp_path / "out" / "profiles" / f"{tiny.replace('/', '--')}.json")
    assert kept.kind == "measured"
    assert kept.model.name == tiny


@pytest.mark.slow
def test_the_bundled_model_knows_a_capital() -> None:
    app = page("engine")
    app.segmented_control(key="engine_section").set_value("ask")
    settled(app)
    app.text_area(key="ask_prompt").set_value("What is the capital of France?")
    app.number_input(key="ask_tokens").set_value(24)
    press(app, "Answer")
    assert "Paris" in app.chat_message[1].markdown[0].value
    assert not math.isnan(float(str(app.metric[1].value)))


def test_the_first_paint_loads_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from streamlit.testing.v1 import AppTest\n"
        f"app = AppTest.from_file({str(APP)!r}, default_timeout=60).run()\n"
        "app.switch_page('sim/ui/pages/engine.py').run()\n"
        "app.switch_page('sim/ui/pages/serving.py').run()\n"
        "print('torch' in sys.modules, len(app.exception))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=APP.parent, check=True
    )
    assert done.stdout.split() == ["False", "0"]
