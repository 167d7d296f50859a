"""What happens in a simulated company, told in the reader's language.

The stages note events as English sentences with numbers in them (`World.note`): what a run gives doesn't depend on
who reads it. Here stands one template for each of those sentences; `tests/sim/i18n/test_translations.py` holds every
event of the shipped scenarios against them.
"""

from __future__ import annotations

from sim.i18n.translate import mark, retell

STAGES = {
    "data": mark("data"),
    "training": mark("training"),
    "deployment": mark("deployment"),
    "market": mark("market"),
    "finance": mark("finance"),
}
# Of two that fit a sentence the longer stands first.
EVENTS = (
    mark("gate failed: measured gain {gain} nats per token"),
    mark("version {version} passed the gate with loss {loss}"),
    mark("too little new data: no run"),
    mark("waits {days} days for accelerators: shortage"),
    mark("pretraining went through {failures} failures in {hours} h"),
    mark("continued went through {failures} failures in {hours} h"),
    mark("fine-tuning went through {failures} failures in {hours} h"),
    mark("generation went through {failures} failures in {hours} h"),
    mark("reinforcement went through {failures} failures in {hours} h"),
    mark("{incidents} incident(s) of harmful answers: {usd} USD"),
    mark("{claims} claim(s) over {source}: {usd} USD"),
    mark("source {source} is withdrawn; {tokens} tokens leave the pool"),
    mark("version {version} serves all users (quality {quality})"),
    mark("version {version} rolled back to {before}: the canary found it bad"),
    mark("version {version} rolled back to {before}: users found it bad"),
    mark("the fleet moves to {machine}, {times} times as fast"),
    mark("{replicas} replicas reserved for {months} months"),
    mark("contracts of {plan}: {signed} signed, {renewed} renewed, {lost} lost"),
    mark("contracts of {plan}: {signed} signed, {renewed} renewed"),
    mark("contracts of {plan}: {signed} signed, {lost} lost"),
    mark("contracts of {plan}: {renewed} renewed, {lost} lost"),
    mark("contracts of {plan}: {signed} signed"),
    mark("contracts of {plan}: {renewed} renewed"),
    mark("contracts of {plan}: {lost} lost"),
    mark("cash is used up"),
    mark("round {round} finds no investors this month"),
    mark("round {round} pays in {usd} USD"),
    mark("loan {loan} pays out {usd} USD"),
    mark("{units} × {equipment} bought for {usd} USD"),
    mark("lease {lease} begins: {usd} USD per month"),
)


def event_in_words(what: str) -> str:
    """An event of a run (`Result.events["what"]`) in the language of the moment."""
    return retell(what, EVENTS)
