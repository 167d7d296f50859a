"""The sentences of events: what happened in a simulated company, in the reader's language.

A stage notes an event as a kind and values (`World.note`); `EVENTS` has the English sentence of each kind, whose
format specifications hold in every language.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.i18n.translate import mark, tr

STAGES = {
    "data": mark("data"),
    "training": mark("training"),
    "deployment": mark("deployment"),
    "market": mark("market"),
    "finance": mark("finance"),
}
EVENTS = {
    "gate_failed": mark("gate failed: measured gain {gain:.4f} nats per token"),
    "gate_passed": mark("version {version} passed the gate with loss {loss:.4f}"),
    "run_skipped": mark("too little new data: no run"),
    "accelerators_awaited": mark("waits {days:.0f} days for accelerators: shortage"),
    "phase_failures": mark("{phase} went through {failures} failures in {hours:,.0f} h"),
    "safety_incidents": mark("{incidents} incident(s) of harmful answers: {usd:,.0f} USD"),
    "legal_claims": mark("{claims} claim(s) over {source!r}: {usd:,.0f} USD"),
    "source_withdrawn": mark("source {source!r} is withdrawn; {tokens:,.0f} tokens leave the pool"),
    "version_served": mark("version {version} serves all users (quality {quality:.3f})"),
    "canary_rollback": mark("version {version} rolled back to {before}: the canary found it bad"),
    "user_rollback": mark("version {version} rolled back to {before}: users found it bad"),
    "fleet_moved": mark("the fleet moves to {machine!r}, {times:g} times as fast"),
    "replicas_reserved": mark("{replicas:.0f} replicas reserved for {months} months"),
    "contracts": mark("contracts of {plan}: {changes}"),
    "cash_used_up": mark("cash is used up"),
    "round_refused": mark("round {round!r} finds no investors this month"),
    "round_closed": mark("round {round!r} pays in {usd:,.0f} USD"),
    "loan_drawn": mark("loan {loan!r} pays out {usd:,.0f} USD"),
    "equipment_bought": mark("{units:g} × {equipment} bought for {usd:,.0f} USD"),
    "lease_begun": mark("lease {lease!r} begins: {usd:,.0f} USD per month"),
}
_PHASES = {
    "pretraining": mark("pretraining"),
    "continued": mark("continued"),
    "fine-tuning": mark("fine-tuning"),
    "generation": mark("generation"),
    "reinforcement": mark("reinforcement"),
}
_CONTRACT_CHANGES = {
    "signed": mark("{count} signed"),
    "renewed": mark("{count} renewed"),
    "lost": mark("{count} lost"),
}


def event_in_words(kind: str, values: Mapping[str, Any]) -> str:
    """The sentence of an event (columns kind and values of `Result.events`) in the language of the moment."""
    words = dict(values)
    if kind == "phase_failures":
        words["phase"] = tr(_PHASES[values["phase"]])
    if kind == "contracts":
        counts = {
            sentence: values[change] for change, sentence in _CONTRACT_CHANGES.items() if values[change]
        }
        words["changes"] = tr(", ").join(tr(sentence, count=count) for sentence, count in counts.items())
    return tr(EVENTS[kind], **words)
