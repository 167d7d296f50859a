"""Page Training lab: train a small model here, measure and use the scaling law, plan a run."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine.errors import InputError
from engine.profile.hardware import CATALOG, Accelerator
from engine.training.scaling_law import BESIROGLU_2024, ScalingConstants, load_law, loss_interval
from engine.utils.json_file import read_json_object
from engine.utils.progress import Progress
from sim.figures.training import loss_curve, planned_loss, scaling_law
from sim.i18n import numbers
from sim.i18n.translate import mark, tr
from sim.planner.training import published_mfu, run_of
from sim.training.memory import zero_bytes
from sim.training.run import RunPlan
from sim.training.scaling_recipe import LIBRARY_MB, RECIPE, SIZES, VOCAB_SIZE, parse_sizes, scenario_keys
from sim.ui import components, sidebar, url_state
from sim.ui.jobs import Job, bench
from sim.ui.process_tasks import run_apart

_VIEWS = {
    "train": mark("Train here"),
    "law": mark("Scaling law"),
    "plan": mark("Plan a run"),
    "company": mark("Runs of the company"),
}
_LAW_FILE = Path("out/scaling.json")
_MODELS_DIR = Path("out/training-lab")
_SIZES = np.array([1e8, 1e9, 1e10, 1e11])


@st.cache_resource(show_spinner=False)
def step_messages() -> dict[Hashable, list[dict[str, Any]]]:
    """Messages of each training so far, by the key of its job."""
    return {}


def train_here() -> None:
    """A form for a small Transformer, its live loss curve, and what came out."""
    st.caption(
        tr(
            "A real training on this machine, in a process of its own: clean, deduplicate, split, tokenize, then "
            "backpropagation with AdamW and validation. The text is the standard library of this Python."
        )
    )
    with st.form("training", border=True):
        with st.grid(4, min_column_width=150, gap="small"):
            architecture = st.selectbox(tr("Architecture"), ["bloom", "llama", "gpt2"], key="architecture")
            layers = st.number_input(tr("Layers"), 1, 24, 4, key="layers")
            width = st.number_input(tr("Hidden size"), 16, 1024, 128, 16, key="hidden_size")
            steps = st.number_input(tr("Optimizer steps"), 10, 20_000, 200, 50, key="steps")
            batch = st.number_input(tr("Sequences per step"), 1, 256, 8, key="batch")
            length = st.number_input(tr("Tokens per sequence"), 16, 1024, 128, 16, key="sequence")
            rate = st.number_input(
                tr("Learning rate"), 1e-5, 1e-1, 2e-3, 1e-4, format="%.4g", key="rate",
                help=tr("At the top of the cosine schedule."),
            )  # fmt: skip
            text_mb = st.number_input(
                tr("Text (million characters)"), 0.1, 20.0, 2.0, 0.5, key="library_mb",
                help=tr("Cleaning, deduplicating and learning the tokenizer take some 5 s for each."),
            )  # fmt: skip
            prompt = st.text_input(
                tr("Prompt of the sample"), "Return the", max_chars=200, key="sample_prompt"
            )
        begun = st.form_submit_button(tr("Train"), type="primary", icon=":material/model_training:")
    if begun:
        config: dict[str, Any] = {
            "architecture": architecture,
            "layers": int(layers),
            "hidden_size": int(width),
            "steps": int(steps),
            "batch_sequences": int(batch),
            "sequence_tokens": int(length),
            "learning_rate": float(rate),
            "evaluate_every": max(int(steps) // 20, 1),
        }
        st.session_state["training_asked"] = (tuple(sorted(config.items())), float(text_mb), prompt)
    asked = st.session_state.get("training_asked")
    if asked is None:
        return
    config, text_mb, prompt = dict(asked[0]), asked[1], asked[2]
    key = ("training", *asked)
    folder = _MODELS_DIR / f"{config['architecture']}-{config['layers']}x{config['hidden_size']}"
    if bench().find(key) is None:
        step_messages()[key] = []

    def work(progress: Progress) -> dict[str, Any]:
        run_apart(
            "training",
            {
                "out_dir": str(folder),
                "config": config,
                "texts": None,
                "tokenizer": "bpe:2048",
                "library_mb": text_mb,
                "prompt": prompt,
                "sample_tokens": 60,
            },
            progress=progress,
            on_message=step_messages().setdefault(key, []).append,
        )
        return read_json_object(folder / "report.json")

    job = bench().start(key, work)
    live_curve(job, key, int(config["steps"]))
    report = components.outcome(job, tr("Training"))
    if report is not None:
        trained(report, step_messages()[key], folder)


@components.fragment(run_every=1.0)
def live_curve(job: Job[Any], key: Hashable, steps: int) -> None:
    """The loss so far; drawn again every second while the run goes on."""
    found = [message for message in step_messages().get(key, []) if "step" in message]
    frame = pd.DataFrame(found, columns=["step", "loss", "validation_loss"]).astype(float)
    if len(frame):
        components.chart(loss_curve(frame, steps, components.theme()), "loss_curve", frame)


def trained(report: dict[str, Any], messages: list[dict[str, Any]], folder: Path) -> None:
    """Draw time, loss and sample of a finished training."""
    data = report["data"]
    rows = {
        tr("Model"): tr(
            "{name}, {count} parameters",
            name=report["architecture"],
            count=numbers.count(report["parameters"]),
        ),
        tr("Text"): tr(
            "{characters} characters; {kept} survive cleaning, {duplicates} of that are duplicates",
            characters=numbers.count(data["steps"][0]["characters"]),
            kept=numbers.percent(data["cleaning_yield"]),
            duplicates=numbers.percent(data["duplicate_share"], 1),
        ),
        tr("Trained on"): tr(
            "{tokens} tokens in {steps} steps", tokens=numbers.count(report["tokens"]), steps=report["steps"]
        ),
        tr("Validation loss"): tr(
            "{before} → {after} nats per token, perplexity {perplexity}",
            before=f"{report['initial_validation_loss']:.3f}",
            after=f"{report['validation_loss']:.3f}",
            perplexity=numbers.count(report["perplexity"]),
        ),
        tr("Speed"): tr(
            "{speed} tokens/s, MFU {mfu}",
            speed=numbers.count(report["tokens_per_s"]),
            mfu=numbers.percent(report["mfu"], 1),
        ),
        tr("Compute"): tr(
            "{flop} FLOP in {time}",
            flop=numbers.count(report["training_flop"]),
            time=numbers.seconds(report["training_s"]),
        ),
        tr("Model folder"): str(folder),
    }
    with st.container(border=True):
        st.markdown(f"**{tr('What came out')}**")
        st.table(rows, border="horizontal", alt=tr("What came out"))
    samples = [message["sample"] for message in messages if "sample" in message]
    if samples:
        st.caption(tr("The engine that serves continues the prompt with the new model:"))
        st.code(samples[-1], language=None, wrap_lines=True)


def law_view() -> None:
    """The scaling law in use, published or measured here, and a button to measure it."""
    law, points = law_in_use()
    sizes = _SIZES if points is None else np.unique(points["parameters"].to_numpy())
    components.chart(scaling_law(law, sizes, points, components.theme()), "scaling_law", points)
    if points is not None:
        st.caption(
            tr(
                "Measured here: {file}. In a scenario, in place of the published constants:",
                file=str(_LAW_FILE),
            )
        )
        lines = [
            f"  {key.removeprefix('training.')}: {value:.6g}" for key, value in scenario_keys(law).items()
        ]
        st.code("\n".join(["training:", *lines]), language="yaml")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        minutes = st.number_input(tr("Minutes to train for"), 0.5, 60.0, 3.0, 0.5, key="law_minutes")
        measure = st.button(
            tr("Measure the law here"),
            icon=":material/straighten:",
            help=tr("Trains 4 sizes on 4 token counts each."),
        )
    key = ("scaling", minutes)
    if measure:
        bench().forget(key)
        st.session_state["law_asked"] = key
    if st.session_state.get("law_asked") != key:
        return

    def work(progress: Progress) -> str:
        run_apart(
            "scaling",
            {
                "path": str(_LAW_FILE),
                "config": {**RECIPE, "steps": 1},
                "sizes": parse_sizes(SIZES),
                "vocab_size": VOCAB_SIZE,
                "minutes": minutes,
                "library_mb": LIBRARY_MB,
            },
            progress=progress,
        )
        return str(_LAW_FILE)

    if components.outcome(bench().start(key, work), tr("Measuring the law")) is not None:
        del st.session_state["law_asked"]
        st.rerun()


def law_in_use() -> tuple[ScalingConstants, pd.DataFrame | None]:
    """The law measured here with its points, else the published one."""
    if not _LAW_FILE.is_file():
        return BESIROGLU_2024, None
    try:
        return load_law(_LAW_FILE), pd.DataFrame(read_json_object(_LAW_FILE)["points"])
    except (InputError, KeyError) as error:
        st.warning(components.plain(str(error)), icon=":material/warning:")
        return BESIROGLU_2024, None


@dataclass(frozen=True)
class _PlanInputs:
    """What the visitor plans: a run of training on machines of the catalog."""

    parameters: float
    tokens: float
    row: Accelerator
    accelerators: int
    mfu: float  # fraction of the peak
    price_usd_per_hour: float  # of an accelerator; 0: unknown
    law: ScalingConstants


def plan_view() -> None:
    """Size, data and machines of a run: what it takes, what it costs, and which loss the law predicts."""
    asked = _plan_inputs()
    try:
        plan = run_of(
            asked.parameters, asked.tokens, asked.row, asked.accelerators, asked.mfu, asked.price_usd_per_hour
        )
    except InputError as error:
        st.error(components.plain(str(error)), icon=":material/error:")
        return
    _plan_cards(plan, asked)
    if asked.law.draws:
        bottom, top = loss_interval(asked.parameters, asked.tokens, asked.law)
        st.caption(
            tr(
                "90 % of the law's bootstrap: {low} to {high} nats per token.",
                low=f"{bottom:.3f}",
                high=f"{top:.3f}",
            )
        )
    components.chart(
        planned_loss(asked.parameters, asked.tokens, asked.law, components.theme()),
        "planned_loss",
        pd.DataFrame([asdict(plan)]),
    )
    st.caption(
        tr(
            "Planned, not measured: compute is 6·N·D, failures, checkpoints and power by the defaults of "
            "`flywheel plan`."
        )
    )


def _plan_inputs() -> _PlanInputs:
    """Draw the inputs of the plan."""
    rows = {row.name: row for row in CATALOG if row.peak_bf16_flops}
    low, middle, high = published_mfu()
    laws = {"published": BESIROGLU_2024}
    measured, points = law_in_use()
    if points is not None:
        laws["measured"] = measured
    with st.grid(4, min_column_width=150, gap="small"):
        billions = st.number_input(
            tr("Parameters (billion)"), 0.001, 10_000.0, 7.0, 1.0, format="%.4g", key="n", bind="query-params"
        )
        billion_tokens = st.number_input(
            tr("Training tokens (billion)"),
            0.001,
            1e6,
            140.0,
            10.0,
            format="%.4g",
            key="d",
            bind="query-params",
        )
        names = list(rows)
        name = st.selectbox(
            tr("Accelerator"),
            names,
            index=next((i for i, one in enumerate(names) if one.startswith("H100 SXM")), 0),
            key="accelerator",
            bind="query-params",
        )
        count = st.number_input(
            tr("Accelerators"), 1, 1_000_000, 64, 8, key="accelerators", bind="query-params"
        )
        mfu = st.number_input(
            tr("MFU (% of peak)"), 1.0, 100.0, round(100 * middle, 1), 1.0, key="mfu", bind="query-params",
            help=tr(
                "Published runs: {low} to {high}, median {middle}.",
                low=numbers.percent(low), high=numbers.percent(high), middle=numbers.percent(middle),
            ),
        )  # fmt: skip
        price = st.number_input(
            tr("Price (USD per accelerator-hour)"), 0.0, 1000.0, rows[name].price_usd_per_hour or 0.0, 0.1,
            key=f"price_{name}",
            help=rows[name].price_source or tr("No list price in the catalog: give one."),
        )  # fmt: skip
        which = st.selectbox(
            tr("Scaling law"), list(laws), format_func=lambda name: tr(_LAW_NAMES[name]), key="law"
        )
    return _PlanInputs(
        billions * 1e9, billion_tokens * 1e9, rows[name], int(count), mfu / 100, price, laws[which]
    )


def _plan_cards(plan: RunPlan, asked: _PlanInputs) -> None:
    """Draw what the plan takes and costs, and whether the state fits."""
    with st.grid(4, min_column_width=150, gap="small"):
        components.metric(
            tr("Time"),
            _days(plan.hours),
            note=tr("{share} of it is work", share=numbers.percent(plan.effective_fraction)),
        )
        components.metric(
            tr("Cost"),
            numbers.usd(plan.cost_usd) if asked.price_usd_per_hour else numbers.UNKNOWN,
            note=tr("{hours} accelerator-hours", hours=numbers.count(plan.accelerator_hours)),
        )
        components.metric(tr("Compute (FLOP)"), f"{plan.flop:.2e}", note=tr("6·N·D"))
        components.metric(
            tr("Failures"),
            numbers.count(plan.failures),
            note=tr("95 %: {low} to {high}", low=plan.failures_low, high=plan.failures_high),
            help=tr(
                "Node failures at the rate of Llama 3's run; each costs a restart and the work since a checkpoint."
            ),
        )
        components.metric(
            tr("Checkpoints"),
            numbers.count(plan.checkpoints),
            note=tr("one every {time}", time=_days(plan.checkpoint_interval_s / 3600)),
        )
        components.metric(
            tr("Energy"),
            tr("{count} MWh", count=numbers.count(plan.energy_kwh / 1000))
            if plan.energy_kwh
            else numbers.UNKNOWN,
            note=tr("{tonnes} t CO2", tonnes=numbers.count(plan.co2_kg / 1000)),
        )
        components.metric(
            tr("Tokens per parameter"),
            numbers.count(asked.tokens / asked.parameters),
            note=tr("20 is compute-optimal"),
        )
        state = zero_bytes(asked.parameters, asked.accelerators)
        components.metric(
            tr("Memory for the state"),
            f"{numbers.count(state / 1e9)} GB",
            note=tr("of {memory} GB per accelerator", memory=numbers.count(asked.row.memory_bytes / 1e9)),
            help=tr(
                "Weights, gradients and AdamW's moments, shared out over all (ZeRO 3); activations come on top."
            ),
        )
    if state > asked.row.memory_bytes:
        st.warning(tr("The state doesn't fit: take more accelerators."), icon=":material/memory:")


_LAW_NAMES = {"published": mark("Besiroglu et al. 2024 (published)"), "measured": mark("measured here")}


def _days(hours: float) -> str:
    if hours < 1:
        return tr("{count} min", count=numbers.count(hours * 60))
    if hours < 48:
        return tr("{count} h", count=numbers.count(hours))
    return tr("{count} days", count=numbers.count(hours / 24)) if math.isfinite(hours) else numbers.UNKNOWN


def company_view() -> None:
    """The training runs of the company on show."""
    result = sidebar.run_on_show()
    components.figures(result, "versions")
    table = result.monthly[
        ["month", "training_flop", "compute_training_usd", "model_version", "model_loss", "model_quality"]
    ]
    st.dataframe(
        table[table["training_flop"] > 0],
        hide_index=True,
        column_config={
            "month": tr("Month"),
            "training_flop": st.column_config.NumberColumn("FLOP", format="scientific"),
            "compute_training_usd": st.column_config.NumberColumn(tr("Training compute"), format="dollar"),
            "model_version": tr("Version in use"),
            "model_loss": st.column_config.NumberColumn(tr("Loss (nats per token)"), format="%.3f"),
            "model_quality": st.column_config.NumberColumn(tr("Quality"), format="%.3f"),
        },
        alt=tr("Months with training"),
    )


st.title(tr("Training lab"))
view = url_state.choice(
    st.segmented_control,
    tr("View"),
    {name: tr(label) for name, label in _VIEWS.items()},
    key="training_view",
    label_visibility="collapsed",
)
{"train": train_here, "law": law_view, "plan": plan_view, "company": company_view}[view]()
