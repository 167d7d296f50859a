"""Page Compare: scenarios side by side at the same seeds, and why two of them differ, by terms that add up."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from engine.errors import InputError
from engine.utils.progress import Progress
from sim.figures.compare import COLUMNS, difference, meanings, side_by_side, signed, sum_in_words
from sim.i18n import numbers
from sim.i18n.translate import mark, tr
from sim.scenario.metrics import OUTCOMES, shown
from sim.scenario.scenario import Scenario
from sim.study.compare import Comparison, compare
from sim.study.differences import ABSENT, differences, grouped
from sim.study.explain import (
    BY_ACCOUNT,
    EXACT_GROUPS,
    Explanation,
    explain_by_account,
    explain_by_assumption,
)
from sim.study.runs.options import RunOptions
from sim.ui import components, scenario_store, sidebar, url_state
from sim.ui.study_jobs import dropdown, studied, study, with_seed

ON_SHOW = "on_show"  # the scenario of the sidebar with all its changes, among the names of scenarios
MOST = 6  # scenarios: as many colours as readers can distinguish
_SEEDS = {"4": mark("4 seeds"), "8": mark("8 seeds"), "16": mark("16 seeds"), "1": mark("1 seed")}
_HEADLINE = (
    "arr_usd_end",
    "revenue_usd_total",
    "profit_usd_total",
    "gross_margin_last12",
    "cash_usd_end",
    "cash_usd_min",
    "ruined",
    "breakeven_month_index",
    "customers_end",
    "ltv_to_cac_last",
    "compute_share_of_revenue",
    "serving_cost_usd_per_mtok_last",
    "model_quality_end",
)
EXPLAINED = (
    "cash_usd_end",
    "profit_usd_total",
    "revenue_usd_total",
    "arr_usd_end",
    "cash_usd_min",
    "gross_margin_total",
    "customers_end",
    "serving_cost_usd_per_mtok_last",
)
_ASK_ABOVE_RUNS = 200  # a study of more is not begun unasked


def choices(name: str, changed: bool) -> dict[str, str]:
    """{option: what it is called}: the scenario on show first, its unchanged file where they differ, all others."""
    others = [other for other in scenario_store.scenario_names() if changed or other != name]
    now = tr("{name} (changed)", name=name) if changed else name
    return {ON_SHOW: now, **{other: other for other in others}}


def chosen(options: dict[str, str], usual: list[str]) -> list[str]:
    """The scenarios to compare; in the address as `with=NAME`, once for each, unless they are the usual ones."""
    before = st.session_state.get("compared")
    if before is None:
        before = [one for one in st.query_params.get_all("with") if one in options][:MOST] or usual
    elif before == st.session_state.get("compared_usual"):
        before = usual  # the visitor has chosen nothing: what is usual may have changed
    st.session_state["compared"] = [one for one in before if one in options]
    st.session_state["compared_usual"] = usual
    found: list[str] = st.multiselect(
        tr("Scenarios"),
        list(options),
        key="compared",
        format_func=options.__getitem__,
        max_selections=MOST,
        persist_state="session",
        help=tr("The first is what the others are compared with."),
    )
    if found != usual:
        st.query_params["with"] = found
    else:
        st.query_params.pop("with", None)
    return found


def loaded(names: list[str], options: dict[str, str], now: Scenario) -> dict[str, Scenario]:
    """{name: scenario} of what was chosen; shows an error for each that can't be read."""
    found = {}
    for name in names:
        try:
            found[options[name]] = now if name == ON_SHOW else with_seed(scenario_store.load(name), now.seed)
        except InputError as error:
            st.error(components.plain(str(error)), icon=":material/error:")
    return found


def headline(found: Comparison) -> None:
    """The numbers that matter of each scenario, and what the others have more or less than the first."""
    everything = st.toggle(tr("All outcomes"), key="all_outcomes", persist_state="session")
    first = found.names[0]
    lines: dict[str, dict[str, str]] = {}
    for row in found.headline.to_dict(orient="records"):
        outcome = row["outcome"]
        if not everything and outcome not in _HEADLINE:
            continue
        line = lines.setdefault(tr(row["label"]), {})
        line[row["scenario"]] = shown(outcome, row["value"])
        if row["scenario"] != first:
            column = tr("difference") if len(found.names) == 2 else tr("{name} − first", name=row["scenario"])
            line[column] = _apart(outcome, row)
    table = pd.DataFrame(lines.values(), index=pd.Index(lines, name=tr("Outcome")))
    st.dataframe(table, height="content", alt=tr("Outcomes of each scenario"))
    st.caption(
        tr(
            "Simulated: means of {seeds} common seeds, unsure assumptions at their medians. ± is the 95% interval "
            "of the difference, paired by seed.",
            seeds=found.seeds,
        )
    )


def _apart(outcome: str, row: dict[Any, Any]) -> str:
    value, low, high = row["difference"], row["difference_low"], row["difference_high"]
    if value == 0:
        return "="
    text = signed(outcome, value)
    if high > low:
        text += f" ± {signed(outcome, (high - low) / 2).lstrip('+')}"
    return text if not low <= 0 <= high else tr("{difference} (may be chance)", difference=text)


def by_month(found: Comparison) -> None:
    """One monthly number of every scenario."""
    labels = {column: tr(metric.title) for column, metric in COLUMNS.items()}
    column = url_state.choice(
        st.pills, tr("By month"), labels, key="metric", label_visibility="collapsed", persist_state="session"
    )
    data = found.monthly[found.monthly["column"] == column]
    components.chart(side_by_side(found, column, components.theme()), f"compare_{column}", data)


def why(a: Scenario, b: Scenario, names: tuple[str, str], seeds: int) -> None:
    """The difference of two explained: by account of the ledger, and by the assumptions that were changed."""
    st.subheader(tr("Why {b} differs from {a}", a=names[0], b=names[1]))
    outcome = url_state.choice(
        dropdown,
        tr("Outcome to explain"),
        {name: tr(OUTCOMES[name].label) for name in EXPLAINED},
        key="explain",
        persist_state="session",
        width=360,
    )
    about = (a.canonical_json(), b.canonical_json(), outcome, names, seeds)
    with st.grid(2, min_column_width=340, gap="small"):
        _by_assumption(a, b, outcome, names, seeds, about)
        _by_account(a, b, outcome, names, seeds, about)


def _by_account(
    a: Scenario, b: Scenario, outcome: str, names: tuple[str, str], seeds: int, about: tuple[Any, ...]
) -> None:
    if outcome not in BY_ACCOUNT:
        st.info(
            tr(
                "Only cash, profit and revenue are sums of accounts: the other outcomes have no such picture."
            ),
            icon=":material/account_balance:",
        )
        return

    def work(progress: Progress) -> Explanation:
        progress(0.0, mark("books of both scenarios"))
        return explain_by_account(a, b, outcome, names=names, seeds=seeds)

    found = study("account", tr("Accounts"), about, work)
    if found is not None:
        _waterfall(found, "by_account")


def _by_assumption(
    a: Scenario, b: Scenario, outcome: str, names: tuple[str, str], seeds: int, about: tuple[Any, ...]
) -> None:
    changed = differences(a, b)
    if not changed:
        st.info(tr("No assumption differs between the two."), icon=":material/equal:")
        return
    groups = len(grouped(changed, EXACT_GROUPS))
    runs = seeds * 2 ** min(groups, EXACT_GROUPS)  # at most: beyond so many groups orders are drawn
    asked = st.session_state.setdefault("explain_asked", set())
    if runs > _ASK_ABOVE_RUNS and about not in asked:
        with st.container(border=True, height="stretch"):
            st.markdown(f"**{tr('By changed assumption')}**")
            st.caption(
                tr(
                    "{count} assumptions differ, in {groups} groups: up to {runs} runs tell what each is worth.",
                    count=len(changed),
                    groups=groups,
                    runs=numbers.count(runs),
                )
            )
            if st.button(tr("Explain by assumption"), icon=":material/play_arrow:", key="by_assumption"):
                asked.add(about)
                st.rerun()
        return

    def work(progress: Progress) -> Explanation:
        return explain_by_assumption(
            a, b, outcome, names=names, seeds=seeds, options=RunOptions(progress=progress)
        )

    found = study("assumption", tr("Assumptions"), about, work)
    if found is not None:
        _waterfall(found, "by_assumption")


def _waterfall(found: Explanation, key: str) -> None:
    components.chart(
        difference(found, components.theme()),
        key,
        found.bars,
        beneath=lambda: st.caption(components.plain(tr("It adds up: {sum}", sum=sum_in_words(found)))),
    )


def changes(found: Comparison) -> None:
    """Every assumption that differs."""
    if not len(found.changes):
        return
    st.subheader(tr("Assumptions that differ"))
    table = found.changes.copy()
    for name in found.names:
        table[name] = [tr(ABSENT) if value == ABSENT else url_state.as_text(value) for value in table[name]]
    table.insert(1, "meaning", meanings(table["key"].tolist()))
    st.dataframe(
        table,
        hide_index=True,
        height="content" if len(table) <= 10 else 380,
        column_config={"key": tr("Key"), "meaning": tr("Meaning")},
        alt=tr("Assumptions that differ"),
    )


result = sidebar.run_on_show()
name, now = st.session_state["scenario"], studied(result)
components.heading(result, tr("Scenarios side by side, and their difference explained term by term."))
try:
    changed = bool(differences(scenario_store.load(name), now))
except InputError:
    changed = False
options = choices(name, changed)
other = next((one for one in options if one not in (ON_SHOW, name)), ON_SHOW)
with st.container(horizontal=True, vertical_alignment="bottom"):
    picked = chosen(options, [name, ON_SHOW] if changed else [ON_SHOW, other])
    seeds = int(
        url_state.choice(
            st.segmented_control,
            tr("Runs of each"),
            {count: tr(label) for count, label in _SEEDS.items()},
            key="seeds",
            persist_state="session",
            width="content",
        )
    )
companies = loaded(picked, options, now)
if len(companies) < 2:
    st.info(tr("Choose two scenarios or more."), icon=":material/compare_arrows:")
    st.stop()
both = list(companies.items())
about = (
    tuple((label, company.canonical_json()) for label, company in both),
    seeds,
    result.profile.content_hash,
)


def compared(progress: Progress) -> Comparison:
    """All chosen scenarios at the same seeds."""
    return compare(companies, seeds=seeds, monthly=tuple(COLUMNS), options=RunOptions(progress=progress))


comparison = study("compare", tr("Comparison"), about, compared)
if comparison is not None:
    headline(comparison)
    by_month(comparison)
why(both[0][1], both[1][1], (both[0][0], both[1][0]), seeds)
if comparison is not None:
    changes(comparison)
