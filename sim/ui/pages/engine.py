"""Page Engine: the real model on this machine. What it measures, what it answers and costs, what goes on inside it."""

from __future__ import annotations

import shutil
from typing import NamedTuple

import streamlit as st

from engine.errors import InputError
from engine.profile.profile import Profile
from engine.utils.progress import Progress
from sim.company.profile_rows import profile_rows
from sim.figures import profile as figures_engine
from sim.i18n import numbers
from sim.i18n.translate import mark, tr
from sim.ui import components, sidebar, url_state
from sim.ui.jobs import bench, profile_of
from sim.ui.model_session import Choice, model_session
from sim.ui.pages import engine_prompt
from sim.utils.paths import measured_profiles_dir

_BUNDLED = "smollm2-135m"
_DTYPES = {"cpu": ("float32", "bfloat16", "int8"), "cuda": ("bfloat16", "float16", "float32", "fp8")}
_BUDGETS_S = {
    10: mark("10 s: a first look"),
    50: mark("50 s: as flywheel profile"),
    180: mark("3 min: quieter"),
}
SECTIONS = {
    "measure": mark("Measure"),
    "ask": mark("Ask the model"),
    "inside": mark("Look inside"),
}


def _choice() -> Choice:
    """The model, device and number format that this page works with."""
    asked = sidebar.asked()
    known = [_BUNDLED, asked[0].deployment.model if asked else None, st.session_state.get("engine_model")]
    models = dict.fromkeys(name for name in known if name)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        model = st.selectbox(
            tr("Model"),
            list(models),
            key="engine_model",
            accept_new_options=True,
            persist_state="session",
            width=320,
            help=tr(
                "The bundled model, a folder, a GGUF file, a hub id that is in the local cache, or a published "
                "architecture with random weights as NAME@dummy."
            ),
        )
        devices = ["cuda", "cpu"] if shutil.which("nvidia-smi") else ["cpu", "cuda"]
        device = st.selectbox(tr("Device"), devices, key="engine_device", persist_state="session", width=120)
        dtype = st.selectbox(
            tr("Number format"),
            _DTYPES[device],
            key=f"engine_dtype_{device}",
            persist_state="session",
            width=160,
        )
    return Choice(model or _BUNDLED, device, dtype)


def _profile_in_use(model: str) -> Profile | None:
    try:
        return profile_of(model)
    except InputError:
        return None


def _measure(choice: Choice) -> None:
    used = _profile_in_use(choice.model)
    with st.container(border=True):
        st.markdown(f"**{tr('Profile this machine now')}**")
        st.caption(
            tr(
                "Steps of the real engine are timed over a grid of prompts and batches, in a process of its own, and "
                "the step-time model is fitted to them. The machine should be idle meanwhile."
            )
        )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            budget_s = st.selectbox(
                tr("Measuring time"),
                list(_BUDGETS_S),
                format_func=lambda seconds: tr(_BUDGETS_S[seconds]),
                key="engine_budget",
                persist_state="session",
                width=260,
            )
            training = st.toggle(
                tr("Training steps too"),
                key="engine_training",
                persist_state="session",
                help=tr(
                    "An eighth of the time goes to optimizer steps: what training costs on this machine."
                ),
            )
            key = ("profile", choice, budget_s, training)
            pressed = st.button(
                tr("Measure"), type="primary", icon=":material/straighten:", key="engine_measure"
            )
        if pressed:
            bench().forget(key)
            st.session_state["measuring"] = key

            def measured(progress: Progress) -> Profile:
                return model_session().measure(choice, float(budget_s), training, progress)

            bench().start(key, measured, lane="engine")
        fresh = _fresh()
    shown = fresh or used
    if shown is None:
        st.info(
            tr("Nothing was measured of {model} yet.", model=components.plain(choice.model)),
            icon=":material/straighten:",
        )
        return
    if fresh is not None:
        _keep(fresh)
    _show(shown, used if fresh is not None else None)


def _fresh() -> Profile | None:
    """What was measured on this page; until then its progress."""
    job = bench().find(st.session_state.get("measuring"))
    return None if job is None else components.outcome(job, tr("Measuring"))


def _keep(fresh: Profile) -> None:
    """Offer to make the measurement the one that runs of this model use."""
    path = measured_profiles_dir() / f"{fresh.model.name.replace('/', '--')}.json"
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            tr("Use it in all runs"),
            icon=":material/save:",
            key="engine_save",
            help=tr(
                "Saved as {path}: companies that serve this model are then simulated with it.", path=path
            ),
        ):
            try:
                fresh.save(path)
                st.toast(tr("Saved as {path}", path=path), icon=":material/check:")
            except OSError as error:
                st.error(components.plain(f"{path}: {error.strerror}"), icon=":material/error:")
        st.download_button(
            tr("Profile (JSON)"),
            lambda: _as_file(fresh),
            file_name=path.name,
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
            key="engine_profile_file",
        )


def _as_file(profile: Profile) -> bytes:
    return profile.canonical_json().encode()


def _show(profile: Profile, before: Profile | None) -> None:
    """Headline speeds, fit and roofline of a profile; `before` is what runs use now, if that is another."""
    measured = profile.kind == "measured"
    st.badge(
        tr("measured {date}", date=profile.created_at[:10]) if measured else tr("predicted, not measured"),
        icon=":material/straighten:" if measured else ":material/query_stats:",
        color="green" if measured else "orange",
        help=tr("{model} on {machine}", model=profile.model.name, machine=profile.hardware.name),
    )
    old = [None] * 4 if before is None else _speeds(before)
    with st.grid(4, min_column_width=170, gap="small"):
        for speed, was in zip(_speeds(profile), old, strict=True):
            note = None if was is None else tr("in use: {value}", value=was.shown)
            components.metric(speed.label, speed.shown, note=note, help=components.plain(speed.meaning))
    with st.grid(2, min_column_width=340, gap="medium"):
        components.chart(
            figures_engine.fit_against_measured(profile, components.theme()), "fit_against_measured"
        )
        try:
            components.chart(
                figures_engine.roofline(profile, components.theme()),
                "roofline",
                figures_engine.roofline_points(profile),
            )
        except InputError as error:
            st.info(components.plain(str(error)), icon=":material/roofing:")
    with st.expander(tr("The profile in numbers"), icon=":material/table:"):
        st.table(
            {components.plain(label): components.plain(value) for label, value in profile_rows(profile)},
            border="horizontal",
            alt=tr("What the profile measured"),
        )


class _Speed(NamedTuple):
    label: str
    meaning: str
    value: float
    shown: str


def _speeds(profile: Profile) -> list[_Speed]:
    """What a profile comes to: prompt and output tokens per second, and what an output token costs."""
    cost = profile.cost
    context = cost.reference_context_tokens
    chunk = min(512, int(profile.scheduler.get("max_step_tokens", 512)))
    full_s = profile.step_time(decode_contexts=[context] * cost.efficient_batch)

    def rate(label: str, meaning: str, tokens_per_s: float) -> _Speed:
        return _Speed(label, meaning, tokens_per_s, tr("{count} tokens/s", count=numbers.count(tokens_per_s)))

    return [
        rate(
            tr("Prefill"),
            tr("Prompt tokens per second in a step of {count} of them.", count=chunk),
            chunk / profile.step_time(prefill=[(chunk, 0)]),
        ),
        rate(
            tr("Decode, one request"),
            tr(
                "Output tokens per second of a request that is alone, at a context of {count}.", count=context
            ),
            1 / profile.step_time(decode_contexts=[context]),
        ),
        rate(
            tr("Decode, {count} requests", count=cost.efficient_batch),
            tr("Output tokens per second of the smallest batch that is nearly as good as the largest."),
            cost.efficient_batch / full_s,
        ),
        _Speed(
            tr("A million output tokens"),
            tr(
                "At full load, at {price} per hour ({source}, {date}).",
                price=numbers.usd(profile.hardware.price_usd_per_hour),
                source=profile.hardware.price_source,
                date=profile.hardware.price_date,
            ),
            cost.usd_per_mtok_output_full,
            numbers.usd(cost.usd_per_mtok_output_full),
        ),
    ]


st.title(tr("Engine"))
st.caption(tr("The real model on this machine: measure it, ask it, look inside it."))
chosen = _choice()
section = url_state.choice(
    st.segmented_control,
    tr("What to do"),
    {name: tr(title) for name, title in SECTIONS.items()},
    key="engine_section",
    label_visibility="collapsed",
)
if section == "measure":
    _measure(chosen)
elif section == "ask":
    engine_prompt.ask(chosen, _profile_in_use(chosen.model))
else:
    engine_prompt.inspect_prompt(chosen)
