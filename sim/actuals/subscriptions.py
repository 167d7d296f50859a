"""Customers in the meter: joining, last use, churn and conversion of each.

Models a customer base as read from its API keys. A subscription is a customer on a plan: all keys on it together. It
begins with its first key. It ends

- on a plan with a fee or a contract: when its last key ends (until then the fee is owed, used or not);
- on other plans: in the month of its last request, when a stated number of whole months without any follows
  (`inactive_months`), or when its last key ends. The last `inactive_months` of the comparison are undecided, so
  they count in no churn.

A customer on a free plan converts in the month of the first key on the plan that it converts to, and is counted there
alone from then on. A subscription without a fee and without any request is no customer. The months of a trial are no
churn: a customer without requests after them didn't convert.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim.actuals.meter import Metered, month_fraction
from sim.billing.charges import last_month, month_index, plans_of
from sim.scenario.plans import plan_key, split_key

if TYPE_CHECKING:
    from engine.usage.api_keys import ApiKey
    from sim.scenario.scenario import Scenario
    from sim.scenario.schema import Plan


@dataclass
class Subscription:
    """One subscription; months are counted from the first of the comparison, below 0 before it.

    `last`: the last month in which it was a customer, as far as seen. `ended`: it is known to have left at the end of
    `last`. `converted`: the month from which it is counted on another plan. `use`: by month: requests, prompt, cached
    and output tokens; `exposure`: part of each month in which it was a customer.
    """

    customer: str
    plan: str
    joined: int
    last: int
    ended: bool
    by_fee: bool
    converted: int | None = None
    came_from: str | None = None  # the free plan that it converted from
    use: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    exposure: dict[int, float] = field(default_factory=dict)

    def is_there(self, month: int) -> bool:
        """Whether it was a customer in this month."""
        return self.joined <= month <= self.last


@dataclass(frozen=True)
class Subscriptions:
    """All subscriptions of the comparison's months.

    `sure_months`: months in which churn can be read from usage. `never_used`: subscriptions without a request.
    """

    all: tuple[Subscription, ...]
    months: int
    inactive_months: int
    never_used: int
    unknown_keys: int

    @property
    def sure_months(self) -> int:
        """Months from the first on in which a departure would have been seen."""
        return max(0, self.months - self.inactive_months)

    def of(self, plan: str) -> list[Subscription]:
        """The subscriptions of a plan."""
        return [subscription for subscription in self.all if subscription.plan == plan]

    def count(self, plan: str, month: int) -> int:
        """Customers of a plan in a month."""
        return sum(subscription.is_there(month) for subscription in self.of(plan))

    def churn(self, plan: str, settings: Plan) -> tuple[int, int]:
        """(left, cases): months of customers who could have left at their end; on a contract the ends of terms."""
        left = cases = 0
        trial = settings.trial.months if settings.trial is not None else 0
        for subscription in self.of(plan):
            until = self.months if subscription.by_fee else self.sure_months
            for month in range(max(0, subscription.joined + trial), min(subscription.last + 1, until)):
                if (
                    settings.contract is not None
                    and (month - subscription.joined + 1) % settings.contract.months
                ):
                    continue
                cases += 1
                left += subscription.ended and month == subscription.last and subscription.converted is None
        return left, cases

    def conversions(self, plan: str) -> tuple[int, int]:
        """(converted, cases): months at whose beginning a customer of a free plan could have begun to pay."""
        converted = cases = 0
        for subscription in self.of(plan):
            cases += max(0, min(subscription.last + 1, self.months) - max(0, subscription.joined))
            if subscription.converted is not None and 0 <= subscription.converted < self.months:
                cases += (
                    subscription.converted > subscription.last
                )  # the month of the change itself was open too
                converted += 1
        return converted, cases

    def trials(self, plan: str, trial_months: int) -> tuple[int, int]:
        """(began to pay, trials that ended and whose outcome is known)."""
        paying = ended = 0
        for subscription in self.of(plan):
            ends = subscription.joined + trial_months  # the first paid month
            if subscription.joined < 0 or ends >= (self.months if subscription.by_fee else self.sure_months):
                continue
            ended += 1
            paying += subscription.last >= ends
        return paying, ended

    def joined(self, plan: str, month: int) -> int:
        """Subscriptions begun in a month, without conversions from a free plan."""
        return sum(
            subscription.joined == month and subscription.came_from is None for subscription in self.of(plan)
        )


def read_subscriptions(
    metered: Metered, scenario: Scenario, *, inactive_months: int = 1, default_plan: str | None = None
) -> Subscriptions:
    """Read all subscriptions (see the module for the rules)."""
    plans = {name: plan for name, (_, plan) in plans_of(scenario).items()}
    grouped: dict[tuple[str, str], list[ApiKey]] = defaultdict(list)
    unknown = 0
    for key in sorted(metered.keys, key=lambda key: key.created_s):
        plan = key.plan or default_plan
        if plan is None or plan not in plans:
            unknown += 1
        elif key.created_s < metered.end_s:
            grouped[key.customer, plan].append(key)
    rows: dict[tuple[str, int], object] = {
        (str(row.key_id), int(str(row.month_index))): row for row in metered.by_key.itertuples(index=False)
    }
    subscriptions: dict[tuple[str, str], Subscription] = {}
    never_used = 0
    unused: list[tuple[str, str]] = []
    for (customer, plan), keys in grouped.items():
        subscription = _life(metered, customer, plan, keys, plans[plan], rows, inactive_months)
        if subscription is None:
            # Payment may precede the first free request: conversions are known after all keys are read.
            joined = metered.month_at(keys[0].created_s)
            subscription = Subscription(customer, plan, joined, joined - 1, False, False)
            unused.append((customer, plan))
        subscriptions[customer, plan] = subscription
    _convert(subscriptions, scenario)
    for name in unused:
        if subscriptions[name].converted is None:
            never_used += subscriptions.pop(name).joined >= 0
    return Subscriptions(
        tuple(subscriptions.values()), len(metered.months), inactive_months, never_used, unknown
    )


def _life(
    metered: Metered,
    customer: str,
    plan: str,
    keys: list[ApiKey],
    settings: Plan,
    rows: dict[tuple[str, int], object],
    inactive_months: int,
) -> Subscription | None:
    from sim.scenario.plans import is_paying

    months = len(metered.months)
    use: dict[int, tuple[int, int, int, int]] = {}
    last_s = -math.inf
    for month in range(months):
        found = [rows[key.key_id, month] for key in keys if (key.key_id, month) in rows]
        if found:
            names = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")
            sums = [sum(int(getattr(row, name)) for row in found) for name in names]
            use[month] = (sums[0], sums[1], sums[2], sums[3])
            last_s = max(last_s, *(float(getattr(row, "last_s")) for row in found))  # noqa: B009
    by_fee = is_paying(settings) and (settings.monthly_fee_usd > 0 or settings.contract is not None)
    ends = max(last_month(key) for key in keys) - month_index(metered.months[0])
    joined = metered.month_at(keys[0].created_s)
    if by_fee:
        last, ended = int(min(ends, months - 1)), ends < months
        if last < 0:
            return None
    else:
        if not use:
            return None
        last = max(use)
        joined = min(joined, min(use))
        ended = last < months - inactive_months or ends < months
    subscription = Subscription(customer, plan, joined, last, bool(ended), by_fee, use=use)
    born_s, end_s = keys[0].created_s, max(key.ends_s for key in keys)
    for month in range(max(0, joined), last + 1):
        label = metered.months[month]
        begins = month_fraction(label, born_s)
        until = month_fraction(label, end_s) if math.isfinite(end_s) else 1.0
        if subscription.ended and month == last and not by_fee:
            until = min(until, month_fraction(label, last_s))
        subscription.exposure[month] = max(until - begins, 0.0)
    return subscription


def _convert(subscriptions: dict[tuple[str, str], Subscription], scenario: Scenario) -> None:
    """Mark subscriptions that converted from a free plan."""
    for name, (_, plan) in plans_of(scenario).items():
        if plan.converts_to is None:
            continue
        target = plan_key(split_key(scenario.market, name)[0], plan.converts_to)
        for (customer, on), subscription in subscriptions.items():
            after = subscriptions.get((customer, target)) if on == name else None
            if after is None or after.joined < subscription.joined or after.last < after.joined:
                continue
            subscription.converted, after.came_from = after.joined, name
            subscription.last = min(subscription.last, after.joined - 1)
            for month in [month for month in subscription.exposure if month >= after.joined]:
                del subscription.exposure[month]
