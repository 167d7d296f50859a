"""Plan against actual on a drawn company whose truth is known: books balance, causes add up, truth is found again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from sqlalchemy import select
from typer.testing import CliRunner

from engine.errors import InputError
from engine.usage.database import KEYS, REQUESTS, month_bounds_s, open_database
from sim.accounting.saas_metrics import MRR_ACCOUNTS
from sim.actuals.bank import bank_in
from sim.actuals.calibration import CHURN, CONVERSION
from sim.actuals.calibration import REQUESTS as ASKED
from sim.actuals.compare import Actuals, plan_against_actual
from sim.actuals.estimates import rate, ratio, share
from sim.actuals.files import write_actuals
from sim.actuals.signups import SIGNUPS
from sim.actuals.wording import in_words
from sim.billing.charges import plans_of
from sim.cli import actuals
from sim.figures.actuals import SHOWN, measure_by_month, revenue_bridge, week_shape
from sim.figures.theme import Theme, palette
from sim.scenario.scenario import Scenario
from sim.utils.paths import scenarios_dir
from tests.helpers.actuals import NOW_S, START, Truth, plan_of, write_company
from tests.helpers.company import closed_form_surface
from tests.helpers.postgres import new_database
from tests.helpers.profile import synthetic_profile

BANK = """date,amount_usd,category,counterparty,note
2025-12-20,50000,opening_cash,bank,
2025-12-28,-1000,office,landlord,before the first month
2026-01-10,3000.25,customers,payouts,
2026-01-15,-2100,office,landlord,
2026-02-05,-0.05,cloud,cloud,January
2026-02-15,-1900,office,landlord,
2026-03-05,-900.10,cloud,cloud,February
2026-03-06,-12.34,refunds,customer 3,
2026-03-15,-2000,office,landlord,
2026-04-15,-2000,office,landlord,
2026-05-15,-2000,office,landlord,
2026-06-15,-2000,office,landlord,
2026-06-15,-2000,office,landlord,
2026-08-01,-5,office,landlord,after the last month
"""


def compare(
    url: str, truth: Truth, bank: str | None = BANK, plan: Scenario | None = None, **options: Any
) -> Actuals:
    return plan_against_actual(
        plan or plan_of(truth),
        url,
        None if bank is None else bank_in(bank.encode(), "bank.csv"),
        now_s=NOW_S,
        profile=synthetic_profile(),
        surface=closed_form_surface(),
        **options,
    )


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Actuals]:
    url = write_company(tmp_path_factory.mktemp("actuals") / "usage.db", Truth())
    return url, compare(url, Truth())


def test_books_balance_and_hold_the_meter(company: tuple[str, Actuals]) -> None:
    url, found = company
    ledger, statements = found.books.ledger, found.books.statements
    assert ledger.trial_balance()["balance_microusd"].sum() == 0
    sheet = statements.balance_sheet(exact=True)
    assert (sheet["total_assets"] == sheet["total_liabilities"] + sheet["total_equity"]).all()
    flow = statements.cash_flow(exact=True)
    assert (flow["net_cash_flow"] == flow["closing_cash"] - flow["opening_cash"]).all()
    engine = open_database(url, create=False)
    with engine.connect() as connection:
        rows = connection.execute(select(REQUESTS)).all()
    engine.dispose()
    income = statements.income(exact=True)
    # Tokens of the paid plan at 1,000 and 4,000 USD per million are 1,000 and 4,000 micro-dollars each.
    paid = {key.key_id for key in found.metered.keys if key.plan == "paid"}
    billed = sum(1000 * row.prompt_tokens + 4000 * row.output_tokens for row in rows if row.key_id in paid)
    assert income["revenue_tokens"].sum() == billed
    cost = sum(row.cost_micro_usd for row in rows)
    # 900.15 USD went to the cloud, more than was measured: what is beyond is booked too.
    paid_in_march = 900_150_000
    assert income["serving_on_demand"].sum() == cost
    assert 0 < income["serving_reserved"].sum() == paid_in_march - (cost + ledger.balance_micro("payable"))


def test_bank_rows_by_hand(company: tuple[str, Actuals]) -> None:
    _, found = company
    income = found.books.statements.income()
    assert income["other_opex"].tolist() == [
        2100,
        1900,
        2000,
        2000,
        2000,
        2000,
    ]  # June's repeated row counts once
    assert income["sla_credits"].tolist() == [0, 0, -12.34, 0, 0, 0]
    sheet = found.books.statements.balance_sheet()
    assert sheet["cash"].iloc[-1] == pytest.approx(49000 + 3000.25 - 900.15 - 12.34 - 12000, abs=1e-9)
    assert sheet["paid_in_capital"].iloc[0] == 49000
    notes = " ".join(found.notes)
    assert "line 14 (1 in all)" in notes
    assert "Left out as outside" in notes


def test_variances_add_up_to_the_books(company: tuple[str, Actuals]) -> None:
    _, found = company
    income = found.books.statements.income(exact=True)
    revenue = found.revenue
    causes = revenue[["volume", "price", "mix", "without_usage"]].sum(axis=1)
    assert (causes == revenue["actual_micro_usd"] - revenue["planned_micro_usd"]).all()
    assert revenue["actual_micro_usd"].tolist() == income["revenue_tokens"].tolist()
    planned = found.plan.statements.income(exact=True)["revenue_tokens"].head(6)
    assert revenue["planned_micro_usd"].tolist() == planned.tolist()
    usage = found.usage
    causes = usage[["customers", "requests_per_customer", "tokens_per_request"]].sum(axis=1)
    assert (causes == usage["actual_tokens"] - usage["planned_tokens"]).all()
    sums = found.accounts.groupby("account")["variance_micro_usd"].sum()
    assert sums["other_opex"] == 0
    assert len(in_words(found)) >= 3


def test_the_forecast_begins_where_the_months_end(company: tuple[str, Actuals]) -> None:
    _, found = company
    assert found.calibrated.start_month == "2026-07"
    assert found.calibrated.horizon_months == 12
    ledger = found.books.ledger
    settled = sum(ledger.balance_micro(name) for name in ("cash", "receivable", "payable"))
    assert found.calibrated.finance.initial_cash_usd == pytest.approx(settled / 1e6)
    actual = found.months[(found.months["measure"] == "customers") & found.months["actual"].notna()]
    there = sum(
        subscription.plan == "paid" and subscription.is_there(5) for subscription in found.subscriptions.all
    )
    assert actual["actual"].iloc[-1] == there
    assert 0.85 * there <= found.calibrated.market.plans["paid"].initial_customers <= there


def test_files_can_be_read_again(company: tuple[str, Actuals], tmp_path: Path) -> None:
    _, found = company
    names = {path.name for path in write_actuals(found, tmp_path)}
    assert {"plan_actual.csv", "variance.csv", "calibrated.yaml", "actual_income.csv"} <= names
    again = Scenario.load(tmp_path / "calibrated.yaml")
    assert again.content_hash == found.calibrated.content_hash
    assert again.sources["market.plans.paid.churn_per_month"] == "measured: meter 2026-01…2026-06"
    assert "market.plans.paid.churn_per_month" in again.uncertain


def test_without_a_bank_only_the_meter_is_compared(company: tuple[str, Actuals]) -> None:
    url, _ = company
    found = compare(url, Truth(), None, months="2026-02..2026-03")
    assert found.metered.months == ["2026-02", "2026-03"]
    assert set(found.accounts["account"]) <= {"revenue_tokens", "serving_on_demand"}
    cash = found.months[found.months["measure"] == "cash_usd"]
    assert cash["actual"].isna().all()
    assert found.calibrated.start_month == "2026-04"
    assert found.calibrated.finance.initial_cash_usd == pytest.approx(found.plan.monthly["cash_usd"].iloc[2])


def test_months_at_the_edges(company: tuple[str, Actuals]) -> None:
    url, _ = company
    for months, said in (
        ("2025-12", "allowed: months of the plan"),
        ("2026-03..2026-01", "the earlier month first"),
        ("2026-3", "allowed: YYYY-MM"),
        ("2030-01", "has not begun"),
    ):
        with pytest.raises(InputError, match=said):
            compare(url, Truth(), None, months=months)
    # Months without any request, after everybody has gone.
    found = compare(url, Truth(), None, months="2026-06..2026-09")
    assert found.revenue["actual_micro_usd"].tolist()[1:] == [0, 0, 0]
    assert found.calibrated.market.plans["paid"].initial_customers == 0


def test_a_request_belongs_to_the_month_in_which_it_finished(tmp_path: Path) -> None:
    truth = Truth(months=1, free=0, paid=2, signups_free=0.0, signups_paid=0.5)
    url = write_company(tmp_path / "usage.db", truth)
    end_s = month_bounds_s(START)[1]
    engine = open_database(url)
    row = {"key_id": "key_000000", "model": "m", "prompt_tokens": 100, "cached_tokens": 0, "output_tokens": 10,
           "status": "stop", "cost_micro_usd": 7}  # fmt: skip
    with engine.begin() as connection:
        connection.execute(REQUESTS.insert(), [
            row | {"request_id": "in", "arrived_s": end_s - 9, "finished_s": end_s - 1e-3},
            row | {"request_id": "out", "arrived_s": end_s - 9, "finished_s": end_s},
        ])  # fmt: skip
    engine.dispose()
    first = compare(url, truth, None, months=START)
    both = compare(url, truth, None, months="2026-01..2026-02")
    assert both.metered.by_key["requests"].sum() == first.metered.by_key["requests"].sum() + 1
    assert both.metered.month_at(end_s - 1e-3) == 0


def covered(found: Actuals, what: str, of: str, truth: float) -> bool:
    one = next(one for one in found.calibration.estimates if (one.what, one.of) == (what, of))
    return one.low <= truth <= one.high


def truths(truth: Truth) -> dict[tuple[str, str], float]:
    return {
        (CHURN, "paid"): truth.churn_paid,
        (CHURN, "free"): truth.churn_free,
        (CONVERSION, "free"): truth.conversion,
        (ASKED, "paid"): truth.requests_paid,
        (ASKED, "free"): truth.requests_free,
        (SIGNUPS, "main"): 1.0,
    }


def check_coverage(folder: Path, seeds: int, least: float) -> None:
    truth = Truth()
    hits: list[bool] = []
    errors: list[float] = []
    for seed in range(1, seeds + 1):
        found = compare(write_company(folder / f"{seed}.db", truth, seed), truth, None)
        hits += [covered(found, what, of, value) for (what, of), value in truths(truth).items()]
        plan = found.calibrated.market.plans["paid"]
        errors.append(np.log(plan.requests_per_month / truth.requests_paid))
    assert np.mean(hits) >= least
    spread = max(float(np.std(errors, ddof=1)), 0.02) / np.sqrt(seeds)
    assert abs(np.mean(errors)) < 4 * spread + 0.02


def test_the_truth_lies_within_the_bounds(tmp_path: Path) -> None:
    # 18 bounds of 95 %: fewer than 14 are right in one of 600 cases (binomial); the seeds are fixed.
    check_coverage(tmp_path, 3, 14 / 18)


@pytest.mark.slow
def test_the_bounds_hold_their_rate(tmp_path: Path) -> None:
    # 240 bounds: 95 % ± 3 standard deviations of 1.4 %.
    check_coverage(tmp_path, 40, 0.91)


@pytest.mark.slow
def test_the_forecast_of_an_unchanged_truth_is_unbiased(tmp_path: Path) -> None:
    truth, errors = Truth(), []
    for seed in range(1, 25):
        longer = Truth(months=12)
        url = write_company(tmp_path / f"{seed}.db", longer, seed)
        found = compare(url, truth, None, months="2026-01..2026-06", plan=plan_of(longer))
        later = compare(url, truth, None, months="2026-12", plan=plan_of(longer))
        forecast = found.forecast.monthly.set_index("month").loc["2026-12", "revenue_usd"]
        errors.append(float(np.log(forecast / later.books.statements.income()["total_revenue"].iloc[0])))
    spread = float(np.std(errors, ddof=1)) / np.sqrt(len(errors))
    assert abs(np.mean(errors)) < 3 * spread


def test_other_lengths_change_the_mix_and_growth_is_seen(tmp_path: Path) -> None:
    truth = Truth(months=5, free=0, paid=25, signups_free=0.0, growth=0.2, traffic={"chat": 0.6, "code": 0.4})
    found = compare(write_company(tmp_path / "usage.db", truth), truth, None)
    shares = found.calibrated.market.traffic
    assert shares["chat"] == pytest.approx(0.6, abs=0.06)
    assert shares["code"] == pytest.approx(0.4, abs=0.06)
    assert found.calibrated.market.plans["paid"].usage_growth_per_month == pytest.approx(0.2, abs=0.04)


def test_several_segments(tmp_path: Path) -> None:
    truth = Truth(months=3, free=5, paid=10)
    plan = plan_of(truth)
    values = plan.plain()
    market = values["market"]
    market["segments"] = {
        "business": {k: market[k] for k in market if k not in ("traffic", "demand_noise", "segments")}
    }
    two = Scenario.parse(values)
    url = write_company(tmp_path / "usage.db", truth)
    engine = open_database(url)
    with engine.begin() as connection:
        moved = KEYS.update().where(KEYS.c.plan == "paid", KEYS.c.key_id < "key_000010")
        connection.execute(moved.values(plan="business/paid"))
    engine.dispose()
    found = compare(url, truth, None, plan=two)
    assert found.subscriptions.count("business/paid", 0) == 5  # keys 5 to 9
    assert found.calibrated.market.segments["business"].plans["paid"].initial_customers > 0
    causes = found.revenue[["volume", "price", "mix", "without_usage"]].sum(axis=1)
    assert (causes == found.revenue["actual_micro_usd"] - found.revenue["planned_micro_usd"]).all()
    assert found.books.ledger.trial_balance()["balance_microusd"].sum() == 0


SALARIES = "date,amount_usd,category\n2026-01-01,700000,opening_cash\n" + "".join(
    f"2026-0{month}-15,-{33_000 + month},salaries\n2026-0{month}-16,-12000,salaries_research\n"
    f"2026-0{month}-17,-500,cloud\n2026-0{month}-18,-6100,marketing\n"
    for month in (1, 2)
)
SHIPPED = sorted(path.stem for path in scenarios_dir().glob("*.yaml"))


@pytest.mark.parametrize(
    "name",
    [name if name == "three_segments" else pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED],
)
def test_every_shipped_company_can_be_compared(name: str, tmp_path: Path) -> None:
    truth = Truth(months=2, free=8, paid=8)
    plan = Scenario.load(name).override({"deployment.model": "smollm2-135m", "start_month": START})
    plans = list(plans_of(plan))
    url = write_company(tmp_path / "usage.db", truth)
    engine = open_database(url)
    with engine.begin() as connection:
        for drawn, sold in (("free", plans[0]), ("paid", plans[-1])):
            connection.execute(KEYS.update().where(KEYS.c.plan == drawn).values(plan=sold))
    engine.dispose()
    found = compare(url, truth, SALARIES, plan=plan)
    assert found.books.ledger.trial_balance()["balance_microusd"].sum() == 0
    for side, statements in (("planned", found.plan.statements), ("actual", found.books.statements)):
        income = statements.income(exact=True).head(2)
        assert income[list(MRR_ACCOUNTS)].sum(axis=1).tolist() == found.revenue[f"{side}_micro_usd"].tolist()
    causes = found.revenue[["volume", "price", "mix", "without_usage"]].sum(axis=1)
    assert (causes == found.revenue["actual_micro_usd"] - found.revenue["planned_micro_usd"]).all()
    assert found.accounts.set_index(["month", "account"]).loc[
        ("2026-01", "people_general"), "actual_micro_usd"
    ] == (33_001_000_000)


def test_posteriors_against_known_numbers() -> None:
    # Jeffreys' interval of 1 in 10 (Brown, Cai and DasGupta 2001, table of limits): 0.011 to 0.381.
    assert share(1, 10).bounds == pytest.approx((0.0110, 0.3813), abs=5e-4)
    low, high = rate(0, 2.0).bounds
    assert (low, high) == pytest.approx(
        (0.000491 / 2, 2.512 / 2), rel=2e-2
    )  # chi² with one degree of freedom, halved
    assert ratio([1.0], [1.0]) is None
    few = ratio([10.0, 20.0], [1.0, 1.0])
    assert few is not None
    assert few.bounds[1] / few.value > 10  # two customers tell next to nothing


def test_the_command(tmp_path: Path) -> None:
    truth = Truth(months=2, free=4, paid=6)
    url = write_company(tmp_path / "usage.db", truth)
    plan_of(truth, horizon_months=6, deployment__model="smollm2-135m").save(tmp_path / "plan.yaml")
    (tmp_path / "bank.csv").write_text(BANK)
    app = typer.Typer()
    app.command(epilog=actuals.EPILOG)(actuals.actuals)
    words = [
        "--database",
        url,
        "--scenario",
        str(tmp_path / "plan.yaml"),
        "--bank",
        str(tmp_path / "bank.csv"),
    ]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), "--json"], env=dict(os.environ))
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["months"] == ["2026-01", "2026-02"]
    assert (tmp_path / "out" / "calibrated.yaml").exists()
    done = CliRunner().invoke(app, words)
    assert "Measured, with 95 % bounds" in done.stdout
    done = CliRunner().invoke(app, [*words[:2], "--months", "2026-99"])
    assert isinstance(done.exception, InputError)


@pytest.mark.slow
def test_postgresql_says_the_same(tmp_path: Path) -> None:
    truth = Truth(months=2, free=3, paid=4)
    tables = [
        compare(write_company(place, truth), truth).months
        for place in (new_database(), tmp_path / "usage.db")
    ]
    assert tables[0].equals(tables[1])


def test_who_pays_before_asking_anything_has_converted(tmp_path: Path) -> None:
    # Drawn conversions come when a month opens: those of the first month leave no request on the free plan.
    truth = Truth(months=2, free=40, paid=5, conversion=0.5, churn_free=0.0, signups_free=0.0)
    found = compare(write_company(tmp_path / "usage.db", truth), truth, None)
    moved = {
        subscription.customer
        for subscription in found.subscriptions.of("paid")
        if subscription.came_from == "free"
    }
    twice = [key.customer for key in found.metered.keys]
    assert moved == {customer for customer in twice if twice.count(customer) == 2}
    converted, cases = found.subscriptions.conversions("free")
    first = sum(
        subscription.joined == 0 for subscription in found.subscriptions.of("paid") if subscription.came_from
    )
    assert (converted, cases) == (len(moved), 40 + 40 - first)


@pytest.mark.slow
def test_the_band_lies_around_the_forecast(tmp_path: Path) -> None:
    truth = Truth(months=2, free=4, paid=30)
    found = compare(write_company(tmp_path / "usage.db", truth), truth, None, runs=20, workers=1)
    ahead = found.months[found.months["forecast_low"].notna()]
    assert set(ahead["measure"]) >= {"revenue_usd", "tokens", "customers"}
    assert (ahead["forecast_low"] <= ahead["forecast_high"]).all()
    assert ahead["month"].min() == "2026-03"
    first = ahead[(ahead["measure"] == "customers") & (ahead["month"] == "2026-03")].iloc[0]
    assert first["forecast_low"] <= found.calibrated.market.plans["paid"].initial_customers + 5
    themes: tuple[Theme, ...] = ("light", "dark")
    for theme in themes:
        figures = [measure_by_month(found, measure, theme) for measure in SHOWN]
        figures += [revenue_bridge(found, theme), week_shape(found, theme)]
        colours = palette(theme)
        assert all(figure.layout.paper_bgcolor == colours.background for figure in figures)
        assert all(figure.layout.title.text for figure in figures)
