"""Page Uncertainty: what chance and unsure assumptions do to the outcome, and which of them decide it."""

from __future__ import annotations

import math
from typing import Any, cast

import pandas as pd
import streamlit as st

from engine.errors import InputError
from engine.utils.progress import Progress
from sim.figures.compare import meanings
from sim.figures.study import fan, indices, row_of, ruin, spread, tornado
from sim.i18n import numbers as human
from sim.i18n.translate import mark, tr
from sim.scenario.metrics import MAIN_OUTCOMES, MONTHLY, OUTCOMES, shown
from sim.scenario.scenario import Scenario
from sim.study.levers import key_facts
from sim.study.monte_carlo import MonteCarlo, monte_carlo
from sim.study.runs.options import RunOptions
from sim.study.sampling import Sampling
from sim.study.sensitivity import Method, Sensitivity, sensitivity
from sim.study.wording import in_words, quantity
from sim.ui import components, sidebar, url_state
from sim.ui.study_jobs import dropdown, studied, study

FANS = ("cash_usd", "revenue_usd", "gross_margin")
SWING = 0.2  # of a lever that the scenario gives no distribution: assumed, and marked so
_RUNS = {"200": "200", "50": "50", "500": "500", "1000": "1,000", "5000": "5,000"}
_SAMPLING = {"lhs": mark("Latin hypercube"), "sobol": mark("Sobol' sequence"), "random": mark("random")}
_UNTIL = {
    "all": mark("all runs are done"),
    "p(ruined) ± 2%": mark("ruin is known to ± 2 points"),
    "p(ruined) ± 1%": mark("ruin is known to ± 1 point"),
    "cash_usd_end ± 5%": mark("mean cash at the end is known to ± 5%"),
}
_METHODS = {
    "tornado": mark("Tornado: one at a time"),
    "morris": mark("Morris: screening"),
    "sobol": mark("Sobol': shares of the variance"),
}
_SCOPES = {
    "unsure": mark("those with a distribution"),
    "all": mark("every number (±20% where unsure how much)"),
}
_SAMPLES = {"16": "16", "64": "64", "256": "256"}
_TABLE = (*MAIN_OUTCOMES, "serving_cost_usd_per_mtok_last")
# Undefined in many runs or almost always the same number: a histogram of them is of no use.
OUTCOME_NAMES = [name for name in OUTCOMES if name not in ("ruined", "cash_out_month_index")]


def assumed(scenario: Scenario) -> Scenario:
    """The scenario with ±20 % around each lever, as a triangular distribution within what the schema allows."""
    for lever in sidebar.LEVERS:
        try:
            facts = key_facts(scenario, lever.key)
        except InputError:
            continue
        if facts.whole or not facts.value:
            continue
        ends = (facts.value * (1 - SWING), facts.value * (1 + SWING))
        low, high = (min(max(end, facts.low), facts.high) for end in ends)
        text = f"~ triangular(low={low:.6g}, mode={facts.value:.6g}, high={high:.6g})"
        try:
            scenario = scenario.override({lever.key: text})
        except InputError:
            continue  # two levers that bound each other: this one stays as it is
    return scenario


def with_distributions(scenario: Scenario) -> tuple[Scenario, bool]:
    """(what is studied, whether its distributions are assumed here): the scenario's own, else ±20 % if wanted."""
    if scenario.uncertain:
        return scenario, False
    st.info(
        tr(
            "No assumption of this scenario has a distribution (write one on the page Scenario, such as "
            "`~ lognormal(median=2, sigma=0.3)`), so its runs differ by chance alone."
        ),
        icon=":material/info:",
    )
    wanted = st.toggle(
        tr("Vary the levers of the sidebar by ±20% (assumed)"), True, key="assume", persist_state="session"
    )
    return (assumed(scenario), True) if wanted else (scenario, False)


def inputs_of_runs() -> dict[str, Any]:
    """How many runs, drawn how, until when, and which targets."""
    with st.grid(4, min_column_width=170, gap="small"):
        runs = url_state.choice(dropdown, tr("Runs"), _RUNS, key="runs", persist_state="session")
        labels = {name: tr(text) for name, text in _UNTIL.items()}
        until = url_state.choice(
            dropdown,
            tr("Stop when"),
            labels,
            key="until",
            persist_state="session",
            help=tr("Looked at after each 256 runs; the number of runs is then the most there will be."),
        )
        labels = {name: tr(text) for name, text in _SAMPLING.items()}
        sampling = url_state.choice(dropdown, tr("Drawn by"), labels, key="sampling", persist_state="session")
        targets = st.text_input(
            tr("More targets"),
            key="targets",
            bind="query-params",
            persist_state="session",
            placeholder="gross_margin_last12 >= 60%; customers_end >= 500",
            help=tr("Conditions on an outcome, with ; between; those of the scenario are asked anyway."),
        )
    return {
        "runs": int(runs),
        "until": () if until == "all" else (until,),
        "sampling": cast(Sampling, sampling),
        "targets": tuple(text.strip() for text in targets.split(";") if text.strip()),
    }


def many_runs(company: Scenario, options: dict[str, Any]) -> MonteCarlo | None:
    """The study with these options, in the background."""
    profile, seed = result.profile, result.seed

    def work(progress: Progress) -> MonteCarlo:
        return monte_carlo(
            company, seed=seed, fans=FANS, options=RunOptions(profile=profile, progress=progress), **options
        )

    about = (company.canonical_json(), profile.content_hash, seed, tuple(options.items()))
    return study("monte carlo", tr("Monte Carlo"), about, work)


def numbers(found: MonteCarlo) -> None:
    """Draw four key numbers, and what the study was."""
    end = found.ruin.iloc[-1]
    with st.grid(4, min_column_width=160, gap="small"):
        components.metric(
            tr("Out of cash by the end"),
            human.percent(end["probability"], 1),
            found.ruin["probability"],
            tr("95%: {low} to {high}", low=human.percent(end["low"], 1), high=human.percent(end["high"], 1)),
            tr("Share of runs in which a month closed with less than nothing in the bank."),
        )
        for name, series in (("cash_usd_end", "cash_usd"), ("revenue_usd_total", "revenue_usd")):
            row = row_of(found, name)
            components.metric(
                tr("{what}, median", what=tr(OUTCOMES[name].label)),
                shown(name, row["p50"]),
                found.fans[series]["p50"],
                tr("9 of 10: {low} to {high}", low=shown(name, row["p5"]), high=shown(name, row["p95"])),
            )
        row = row_of(found, "gross_margin_last12")
        components.metric(
            tr("{what}, median", what=tr(MONTHLY["gross_margin"].label)),
            shown("gross_margin_last12", row["p50"]),
            found.fans["gross_margin"]["p50"].clip(lower=-2),
            tr(
                "9 of 10: {low} to {high}",
                low=shown("gross_margin_last12", row["p5"]),
                high=shown("gross_margin_last12", row["p95"]),
            ),
        )
    words = [
        tr(
            "{runs} simulated runs, {count} unsure assumptions ({sampling})",
            runs=human.count(len(found.runs) - found.failed),
            count=len(found.uncertain),
            sampling=tr(_SAMPLING[found.sampling]),
        )
    ]
    for asked, met in zip(found.precision["asked"], found.precision["met"], strict=True):
        words += [tr("{asked}: reached", asked=asked) if met else tr("{asked}: not reached", asked=asked)]
    if found.failed:
        reason = found.runs["error"][found.runs["error"] != ""].iloc[0]
        words.append(tr("{count} runs could not be made: {reason}", count=found.failed, reason=reason))
    st.caption(components.plain(" · ".join(words)))


def pictures(found: MonteCarlo) -> None:
    """Fans, ruin, and one outcome's distribution with the targets beside it."""
    theme = components.theme()
    with st.grid(2, min_column_width=340, gap="small"):
        components.chart(ruin(found, theme), "ruin", found.ruin)
        for column in FANS:
            components.chart(fan(found, column, theme), f"fan_{column}", found.fans[column])
    labels = {name: tr(OUTCOMES[name].label) for name in ["cash_usd_end", *OUTCOME_NAMES]}
    outcome = url_state.choice(
        dropdown, tr("Outcome"), labels, key="outcome", persist_state="session", width=360
    )
    data = found.runs[
        ["run", "seed", *(name for name in map(str, found.runs) if name.startswith("in.")), f"out.{outcome}"]
    ]
    with st.grid(2, min_column_width=340, gap="small"):
        components.chart(spread(found, outcome, theme), "spread", data)
        with st.container(border=True, height="stretch"):
            targets(found)
    percentiles(found)


def targets(found: MonteCarlo) -> None:
    """Draw the share of runs that meet each target."""
    st.markdown(f"**{tr('Targets')}**")
    if len(found.targets):
        st.table(
            {
                tr("Target"): [f"`{text}`" for text in found.targets["target"]],
                tr("Met in"): [human.percent(value, 1) for value in found.targets["probability"]],
                tr("95% interval"): [
                    tr("{low} to {high}", low=human.percent(low, 1), high=human.percent(high, 1))
                    for low, high in zip(found.targets["low"], found.targets["high"], strict=True)
                ],
            },
            border="horizontal",
            alt=tr("Targets"),
        )
    else:
        st.caption(tr("None: write one into the field More targets, such as `cash_usd_min >= 0`."))


def percentiles(found: MonteCarlo) -> None:
    """Draw the percentiles of the main outcomes."""
    st.subheader(tr("Percentiles"))
    table = found.outcomes.set_index("outcome").loc[list(_TABLE)]
    st.dataframe(
        pd.DataFrame(
            {
                tr("Outcome"): [tr(OUTCOMES[name].label) for name in table.index],
                **{
                    level: [shown(name, value) for name, value in zip(table.index, table[level], strict=True)]
                    for level in ("p5", "p25", "p50", "p75", "p95")
                },
                tr("mean"): [_mean(name, row) for name, row in table.iterrows()],
            }
        ),
        hide_index=True,
        height="content",
        alt=tr("Percentiles of the outcomes"),
    )


def _mean(name: Any, row: pd.Series) -> str:
    if math.isnan(row["mean"]):
        return human.UNKNOWN
    half = shown(name, (row["mean_high"] - row["mean_low"]) / 2).removeprefix(tr("month {number}", number=""))
    return f"{shown(name, row['mean'])} ± {half}"


def distributions(company: Scenario, are_assumed: bool) -> None:
    """Draw the table of distributions."""
    if not company.uncertain:
        return
    st.subheader(tr("Distributions in use"))
    keys = list(company.uncertain)
    rows = []
    for key, meaning in zip(keys, meanings(keys), strict=True):
        distribution, unit = company.uncertain[key], key_facts(company, key).unit
        low, high = (quantity(float(distribution.quantile(share)), unit) for share in (0.05, 0.95))
        origin = tr("assumed here: ±20%") if are_assumed else company.sources.get(key, tr("the scenario's"))
        rows.append((meaning, str(distribution), tr("{low} to {high}", low=low, high=high), origin, key))
    columns = [tr("Meaning"), tr("Distribution"), tr("9 of 10 draws"), tr("Origin"), tr("Key")]
    st.dataframe(
        pd.DataFrame(rows, columns=columns), hide_index=True, height="content", alt=tr("Distributions in use")
    )
    st.caption(tr("Type over a distribution on the page Scenario; a plain number there makes it certain."))


def what_decides(company: Scenario, ready: bool) -> None:
    """Which assumptions decide an outcome: a tornado at once, indices on request."""
    st.subheader(tr("What decides the outcome"))
    if not ready:
        st.caption(tr("Follows when the runs above are done."))
        return
    asked = question(company)
    if asked is None:
        return
    outcome, method, scope, samples = asked
    keys = list(company.uncertain) if scope == "unsure" and company.uncertain else None
    profile = result.profile

    def work(progress: Progress) -> Sensitivity:
        return sensitivity(
            company,
            outcome,
            method=cast(Method, method),
            keys=keys,
            samples=samples,
            options=RunOptions(profile=profile, progress=progress),
        )

    about = (company.canonical_json(), profile.content_hash, asked)
    found = study("sensitivity", tr("Sensitivity"), about, work)
    if found is None:
        return
    with st.grid(2, min_column_width=340, gap="small"):
        picture = tornado if method == "tornado" else indices
        components.chart(picture(found, components.theme()), method, found.table)
        with st.container(border=True, height="stretch"):
            count = min(10, len(found.table))
            st.markdown(f"**{tr('The {count} assumptions that decide it', count=count)}**")
            st.markdown("\n".join(components.plain(line).replace("\\.", ".", 1) for line in in_words(found)))
            for note in found.notes:
                st.caption(tr(note))
            if len(found.skipped):
                st.caption(tr("{count} assumptions were not varied.", count=len(found.skipped)))


def question(company: Scenario) -> tuple[str, str, str, int] | None:
    """(outcome, method, scope, samples) of the form; default: tornado of cash over uncertain assumptions."""
    usual = ("cash_usd_end", "tornado", "unsure" if company.uncertain else "all", 64)
    labels = {
        "p(ruined)": tr("Probability of ruin"),
        **{name: tr(OUTCOMES[name].label) for name in OUTCOME_NAMES},
    }
    with st.form("sensitivity", border=True):
        with st.grid(4, min_column_width=170, gap="small"):
            names = list(labels)
            outcome = st.selectbox(
                tr("Outcome"),
                names,
                index=names.index("cash_usd_end"),
                format_func=labels.__getitem__,
                key="decides",
                persist_state="session",
            )
            method = st.selectbox(
                tr("Method"),
                list(_METHODS),
                format_func=lambda name: tr(_METHODS[name]),
                key="method",
                persist_state="session",
            )
            scope = st.selectbox(
                tr("Assumptions"),
                list(_SCOPES),
                index=list(_SCOPES).index(usual[2]),
                format_func=lambda name: tr(_SCOPES[name]),
                key="scope",
                persist_state="session",
            )
            samples = st.selectbox(
                tr("Samples"),
                list(_SAMPLES),
                index=1,
                key="samples",
                persist_state="session",
                help=tr("Trajectories of Morris, base sample of Sobol'; a tornado needs none."),
            )
        if st.form_submit_button(tr("Analyse"), type="primary", icon=":material/insights:"):
            st.session_state["sensitivity_asked"] = (
                company.canonical_json(),
                (outcome, method, scope, int(samples)),
            )
    asked = st.session_state.get("sensitivity_asked")
    if asked is not None and asked[0] == company.canonical_json():
        found: tuple[str, str, str, int] = asked[1]
        return found
    if not company.uncertain:
        st.caption(tr("Every number would have to be tried: press Analyse."))
        return None
    return usual


result = sidebar.run_on_show()
components.heading(
    result, tr("What chance and unsure assumptions do to the outcome, and which of them decide it.")
)
company, are_assumed = with_distributions(studied(result))
study_of_many = many_runs(company, inputs_of_runs())
if study_of_many is not None:
    numbers(study_of_many)
    pictures(study_of_many)
distributions(company, are_assumed)
what_decides(company, ready=study_of_many is not None)
