"""Page Decide, Reach a target: the value of an assumption at which an outcome comes to a number."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import streamlit as st

from engine.errors import InputError
from engine.utils.progress import Progress
from sim.figures.decide import curve, measure_name, measure_value, with_interval
from sim.i18n import numbers
from sim.i18n.translate import tr
from sim.scenario.conditions import parse_condition, parse_measure
from sim.scenario.scenario import Scenario
from sim.study.goal_seek import GoalSeek, goal_seek
from sim.study.levers import key_facts, numeric_keys, parse_bounds
from sim.study.runs.options import RunOptions
from sim.ui import components
from sim.ui.lever_inputs import FIRST_KEY, MOST_SEEDS, bounds, key_label, number_in, say_changed, set_bounds
from sim.ui.study_jobs import apply, study

if TYPE_CHECKING:
    from engine.profile.profile import Profile

MEASURES = (
    "profit_usd_total",
    "cash_usd_end",
    "cash_usd_min",
    "p(ruined)",
    "gross_margin_last12",
    "arr_usd_end",
    "customers_end",
    "runway_months_min",
    "breakeven_month_index",
    "cac_payback_months_last",
    "ltv_to_cac_last",
    "serving_cost_usd_per_mtok_last",
    "ttft_p95_s_max",
    "model_quality_end",
)
_RELATIONS = ("=", ">=", "<=")
Asked = tuple[str, str, str, int]  # key, condition, bounds, seeds


def draw(company: Scenario, profile: Profile) -> None:
    """Draw the form and, once submitted, its answer."""
    _asked(company)  # first: a link fills the form
    _ask(company)
    _answer(company, profile)


def _ask(company: Scenario) -> None:
    """What to change, which outcome, which target; stores the submitted form in the address."""
    keys = numeric_keys(company)
    with st.container(border=True):
        with st.grid(2, min_column_width=300, gap="small"):
            key = st.selectbox(
                tr("Change"),
                keys,
                index=keys.index(FIRST_KEY) if FIRST_KEY in keys else 0,
                format_func=key_label,
                key="seek_key",
                persist_state="session",
                help=tr("Every number of the scenario; type to search."),
            )
            facts = key_facts(company, key)
            with st.container(gap="xsmall"):
                low, high = bounds(facts, "seek")
                unit = f" [{tr(facts.unit)}]" if facts.unit else ""
                now = numbers.UNKNOWN if facts.value is None else f"{facts.value:.6g}"
                st.caption(components.plain(tr("Now {value}{unit}", value=now, unit=unit)))
        with st.grid(4, min_column_width=150, gap="small"):
            outcome = st.selectbox(
                tr("until"),
                MEASURES,
                format_func=lambda text: measure_name(parse_measure(text)),
                key="seek_outcome",
                persist_state="session",
            )
            relation = st.selectbox(tr("is"), _RELATIONS, key="seek_relation", persist_state="session")
            target = st.text_input(
                tr("Target"),
                "0",
                key="seek_target",
                persist_state="session",
                max_chars=30,
                help=tr("A number: 70%, 1.5M, 300k, 12."),
            )
            seeds = st.number_input(
                tr("Seeds"), 2, MOST_SEEDS, 8, key="seek_seeds", persist_state="session",
                help=tr("Runs for each value tried, unsure assumptions drawn: more of them narrow the interval."),
            )  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="center"):
            pressed = st.button(tr("Seek"), type="primary", icon=":material/target:", key="seek")
            log = st.toggle(
                tr("By equal factors"), low > 0 and high / low > 20, key=f"log {key}", persist_state="session",
                help=tr("Values spread on a logarithmic scale."),
            )  # fmt: skip
    if pressed:
        between = f"{low:.12g}..{high:.12g}{' log' if log else ''}"
        st.session_state["seek_asked"] = (
            (key, f"{outcome} {relation} {target}", between, int(seeds)),
            company,
        )
        st.query_params["change"], st.query_params["until"] = key, f"{outcome} {relation} {target}"
        st.query_params["between"], st.query_params["seek_seeds"] = between, str(int(seeds))


def _asked(company: Scenario) -> tuple[Asked, Scenario] | None:
    """The submitted form, by the button or by a link, and its scenario."""
    words = st.query_params
    if "seek_asked" not in st.session_state and "change" in words:
        asked = (
            words["change"],
            words.get("until", "profit_usd_total = 0"),
            words.get("between", "0.1..5 log"),
            number_in(words.get("seek_seeds", "8"), MOST_SEEDS),
        )
        st.session_state["seek_asked"] = (asked, company)
        with suppress(InputError):  # the study shows the error
            _fill_in(asked, company)
    found: tuple[Asked, Scenario] | None = st.session_state.get("seek_asked")
    return found


def _fill_in(asked: Asked, company: Scenario) -> None:
    """Fill the form from a link."""
    key, until, between, seeds = asked
    facts, condition = key_facts(company, key), parse_condition(until)
    low, high, log = parse_bounds(between)
    st.session_state["seek_key"] = key
    set_bounds(facts, "seek", low, high)
    st.session_state[f"log {key}"] = log
    if str(condition.measure) in MEASURES and condition.relation in _RELATIONS:
        st.session_state["seek_outcome"] = str(condition.measure)
        st.session_state["seek_relation"] = condition.relation
        st.session_state["seek_target"] = until.rpartition(condition.relation)[2].strip()
    st.session_state["seek_seeds"] = max(seeds, 2)


def _answer(now: Scenario, profile: Profile) -> None:
    """Draw the result of goal seek, for the scenario of its submission."""
    found_question = _asked(now)
    if found_question is None:
        st.caption(
            tr("At which price, load or cost does margin, runway or payback reach a value? Press Seek.")
        )
        return
    asked, company = found_question
    key, until, between, seeds = asked

    def work(progress: Progress) -> GoalSeek:
        low, high, log = parse_bounds(between)
        options = RunOptions(profile=profile, progress=progress)
        return goal_seek(company, key, until, low, high, log=log, seeds=seeds, options=options)

    about = (company.canonical_json(), profile.content_hash, asked)
    found = study("goal seek", tr("Goal seek"), about, work)
    if found is None:
        return
    say_changed(company, now)
    components.chart(curve(found, components.theme()), "goal_seek", found.scan)
    whole = key_facts(company, key).whole
    measure = parse_condition(found.condition).measure
    for number, row in enumerate(found.crossings.to_dict(orient="records")):
        with st.container(horizontal=True, vertical_alignment="center", border=True):
            words = tr("{key}: {value}", key=found.key, value=with_interval(row, found.unit))
            if row["kind"] == "jump":
                words += " · " + tr(
                    "jumps from {before} to {after}",
                    before=measure_value(measure, row["outcome_below"]),
                    after=measure_value(measure, row["outcome_above"]),
                )
            st.markdown(components.plain(words))
            value = round(row["value"]) if whole else float(f"{row['value']:.6g}")
            st.button(
                tr("Apply to the scenario"),
                icon=":material/check:",
                key=f"apply_{number}",
                on_click=apply,
                args=(now, {found.key: value}),
            )
    failed = found.scan[found.scan["error"] != ""]
    if len(failed):
        st.caption(
            components.plain(
                tr(
                    "{count} values could not be run: {reason}",
                    count=len(failed),
                    reason=failed["error"].iloc[0],
                )
            )
        )
