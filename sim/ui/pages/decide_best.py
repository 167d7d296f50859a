"""Page Decide, Find the best: the setting of several levers that serves one or two goals, under conditions."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from engine.errors import InputError
from engine.utils.progress import Progress
from sim.figures.compare import meanings
from sim.figures.decide import candidates, goal_name, keys_of, measure_name, measure_value, plain, setting
from sim.i18n import numbers
from sim.i18n.translate import tr
from sim.scenario.conditions import parse_goal
from sim.scenario.scenario import Scenario
from sim.study.levers import key_facts, lever_key, numeric_keys, parse_lever
from sim.study.optimise import Optimum, optimise
from sim.study.runs.options import RunOptions
from sim.ui import components
from sim.ui.lever_inputs import FIRST_KEY, MOST_SEEDS, bounds, key_label, number_in, say_changed, set_bounds
from sim.ui.study_jobs import apply, study

if TYPE_CHECKING:
    from engine.profile.profile import Profile

GOALS = (
    "max cash_usd_end",
    "max profit_usd_total",
    "max arr_usd_end",
    "max gross_margin_last12",
    "max customers_end",
    "max model_quality_end",
    "max p10(cash_usd_end)",
    "max cash_usd_min",
    "min p(ruined)",
    "min serving_cost_usd_per_mtok_last",
    "min cac_payback_months_last",
    "min ttft_p95_s_max",
)
CONDITIONS = (
    "p(ruined) <= 5%",
    "cash_usd_min >= 0",
    "gross_margin_last12 >= 60%",
    "served_fraction_min >= 99%",
)
FIRST_LEVERS = (FIRST_KEY, "market.marketing_usd_per_month")
MOST_LEVERS = 8
_TRIALS, _SEEDS = (16, 40, 100, 300, 1000), (1, 2, 4, 8, 16)
Asked = tuple[
    tuple[str, ...], tuple[str, ...], tuple[str, ...], int, int
]  # levers, goals, conditions, trials, seeds


def draw(company: Scenario, profile: Profile) -> None:
    """Draw the form and, once submitted, its answer."""
    _asked(company)  # first: a link fills the form
    _ask(company)
    _answer(company, profile)


def _ask(company: Scenario) -> None:
    """Levers with their ranges, goals, conditions; stores the submitted form in the address."""
    keys = numeric_keys(company)
    with st.container(border=True):
        chosen = st.multiselect(
            tr("Levers"),
            keys,
            [key for key in FIRST_LEVERS if key in keys],
            format_func=key_label,
            key="levers_turned",
            max_selections=MOST_LEVERS,
            persist_state="session",
            help=tr("Price, plan mix, fleet, cadence, hiring: any number of the scenario."),
        )
        levers = []
        with st.grid(2, min_column_width=300, gap="small"):
            for key in chosen:
                with st.container(gap="xxsmall"):
                    facts = key_facts(company, key)
                    st.caption(components.plain(f"{meanings([key])[0]} [{tr(facts.unit)}]"))
                    low, high = bounds(facts, "turn")
                    levers.append(f"{key}={low:.12g}..{high:.12g}")
        with st.grid(4, min_column_width=170, gap="small"):
            goal = st.selectbox(
                tr("Goal"), GOALS, format_func=goal_name, key="goal_1", persist_state="session"
            )
            second = st.selectbox(
                tr("Second goal"),
                ["", *GOALS],
                format_func=lambda text: goal_name(text) if text else tr("none"),
                key="goal_2",
                persist_state="session",
                help=tr(
                    "With two goals there is no single best: the Pareto front shows what one costs the other."
                ),
            )
            trials = st.select_slider(tr("Candidates"), _TRIALS, 40, key="trials", persist_state="session")
            seeds = st.select_slider(
                tr("Seeds of each"), _SEEDS, 4, key="trial_seeds", persist_state="session",
                help=tr("What is chosen is run again at four times as many fresh seeds."),
            )  # fmt: skip
        held = st.pills(
            tr("Conditions"),
            CONDITIONS,
            selection_mode="multi",
            default=[CONDITIONS[0]],
            key="conditions",
            persist_state="session",
        )
        with st.grid(2, min_column_width=260, gap="small"):
            more = st.text_input(
                tr("More conditions"), key="more_conditions", persist_state="session", max_chars=300,
                placeholder="ttft_p95_s_max <= 5; customers_end >= 500",
            )  # fmt: skip
            other = st.text_input(
                tr("More levers"), key="more_levers", persist_state="session", max_chars=300,
                placeholder="training.cadence_months=2..12; deployment.headroom=0.1..0.6",
                help=tr("KEY=LOW..HIGH, KEY=LOW..HIGH log, or KEY=a,b,c; with ; between."),
            )  # fmt: skip
        pressed = st.button(tr("Search"), type="primary", icon=":material/search:", key="search_best")
    if pressed:
        asked = (
            (*levers, *_split(other)),
            tuple(dict.fromkeys(text for text in (goal, second) if text)),
            (*held, *_split(more)),
            int(trials),
            int(seeds),
        )
        st.session_state["optimum_asked"] = (asked, company)
        for name, value in zip(("vary", "goal", "subject-to"), asked[:3], strict=True):
            if value:
                st.query_params[name] = list(value)
            else:
                st.query_params.pop(name, None)
        st.query_params["trials"], st.query_params["trial_seeds"] = str(trials), str(seeds)


def _asked(company: Scenario) -> tuple[Asked, Scenario] | None:
    """The submitted form, by the button or by a link, and its scenario."""
    words = st.query_params
    if "optimum_asked" not in st.session_state and "vary" in words:
        asked = (
            tuple(words.get_all("vary")[:MOST_LEVERS]),
            tuple(words.get_all("goal")[:2]) or (GOALS[0],),
            tuple(words.get_all("subject-to")[:MOST_LEVERS]),
            number_in(words.get("trials", "40"), _TRIALS[-1]),
            number_in(words.get("trial_seeds", "4"), MOST_SEEDS),
        )
        st.session_state["optimum_asked"] = (asked, company)
        with suppress(InputError):  # the study shows the error
            _fill_in(asked, company)
    found: tuple[Asked, Scenario] | None = st.session_state.get("optimum_asked")
    return found


def _fill_in(asked: Asked, company: Scenario) -> None:
    """Fill the form from a link."""
    levers, goals, conditions, trials, seeds = asked
    parsed = {text: parse_lever(text, company) for text in levers}
    ranges = {text: lever for text, lever in parsed.items() if not lever.choices and not lever.log}
    for lever in ranges.values():
        set_bounds(key_facts(company, lever.key), "turn", lever.low, lever.high)
    st.session_state["levers_turned"] = [lever.key for lever in ranges.values()]
    st.session_state["more_levers"] = "; ".join(text for text in levers if text not in ranges)
    for name, goal in zip(("goal_1", "goal_2"), goals, strict=False):
        if goal in GOALS:
            st.session_state[name] = goal
    st.session_state["conditions"] = [text for text in conditions if text in CONDITIONS]
    st.session_state["more_conditions"] = "; ".join(text for text in conditions if text not in CONDITIONS)
    for name, count, known in (("trials", trials, _TRIALS), ("trial_seeds", seeds, _SEEDS)):
        if count in known:
            st.session_state[name] = count


def _answer(now: Scenario, profile: Profile) -> None:
    """Draw the result of the search, for the scenario of its submission."""
    found_question = _asked(now)
    if found_question is None:
        st.caption(
            tr(
                "Every candidate meets the same luck; what is chosen is run again at seeds that the search has not "
                "seen. Press Search."
            )
        )
        return
    asked, company = found_question
    levers, goals, conditions, trials, seeds = asked
    # Another model has another profile, which the runs then find by themselves.
    own = None if "deployment.model" in map(lever_key, levers) else profile

    def work(progress: Progress) -> Optimum:
        return optimise(
            company,
            levers,
            goals,
            conditions,
            trials=trials,
            seeds=seeds,
            fresh_seeds=max(4 * seeds, 2),
            options=RunOptions(profile=own, progress=progress),
        )

    about = (company.canonical_json(), profile.content_hash, asked)
    found = study("optimise", tr("The search"), about, work)
    if found is None:
        return
    say_changed(company, now)
    components.chart(candidates(found, components.theme()), "candidates", found.trials)
    if len(found.chosen):
        _best_table(now, found)
    else:
        for row in found.nearest.to_dict(orient="records"):
            st.warning(
                components.plain(tr("Nearest to the conditions: {setting}", setting=setting(found, row)))
            )


def _best_table(company: Scenario, found: Optimum) -> None:
    """The chosen settings beside the company as it is, at fresh seeds, and a button that takes one over."""
    keys, goals = keys_of(found), [(goal, parse_goal(goal).measure) for goal in found.goals]
    rows = []
    for number, row in enumerate(
        [*found.chosen.to_dict(orient="records"), *found.today.to_dict(orient="records")]
    ):
        today = number == len(found.chosen)
        line = {tr("Candidate"): tr("as it is") if today else str(number + 1)}
        line |= {key: numbers.UNKNOWN if today else plain(row[key]) for key in keys}
        for goal, measure in goals:
            low, high = (measure_value(measure, row[f"{goal} {end}"]) for end in ("low", "high"))
            value = measure_value(measure, row[goal])
            line[goal_name(goal)] = (
                value
                if low == numbers.UNKNOWN
                else tr("{value} ({low} to {high})", value=value, low=low, high=high)
            )
            line[tr("in the search: {goal}", goal=measure_name(measure))] = (
                numbers.UNKNOWN if today else measure_value(measure, row[f"{goal} (search)"])
            )
        if found.conditions:
            line[tr("Conditions")] = tr("hold") if row["holds"] else tr("broken")
        rows.append(line)
    st.dataframe(pd.DataFrame(rows), hide_index=True, height="content", alt=tr("The best candidates"))
    st.caption(
        tr(
            "At {fresh} seeds that the search has not seen, with 95% intervals. What the search itself saw is too "
            "good: the best of many noisy candidates was lucky too. {runs} runs, {method}.",
            fresh=found.fresh_seeds,
            runs=numbers.count(found.runs),
            method=found.method,
        )
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        taken = 0
        if len(found.chosen) > 1:
            taken = st.selectbox(
                tr("Candidate"),
                range(len(found.chosen)),
                format_func=lambda number: f"{number + 1}: {setting(found, found.chosen.iloc[number])}",
                key=f"taken {len(found.chosen)}",
            )
        best = found.chosen.iloc[taken]
        st.button(
            tr("Apply to the scenario"),
            type="primary",
            icon=":material/check:",
            key="apply_best",
            on_click=apply,
            args=(company, {key: _setting(company, key, best[key]) for key in keys}),
        )


def _setting(company: Scenario, key: str, value: Any) -> Any:
    """A lever's value as the schema takes it: whole numbers whole, others to six digits."""
    if isinstance(value, str):
        return value
    try:
        whole = key_facts(company, key).whole
    except InputError:
        return value
    return round(float(value)) if whole else float(f"{float(value):.6g}")


def _split(text: str) -> list[str]:
    return [word.strip() for word in text.split(";") if word.strip()]
