"""What is asked of a fleet, and what it must keep, from the words of a command line (see `sim.cli.capacity`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from engine.errors import InputError

if TYPE_CHECKING:
    from sim.capacity.goals import Goal, Measure
    from sim.capacity.offered_load import OfferedLoad

TrafficOption = Annotated[
    str | None,
    typer.Option("--traffic", help="Classes of requests: chat, or chat=0.7,code=0.3 (the default)."),
]
WorkloadOption = Annotated[
    Path | None, typer.Option("--workload", help="Instead a generator that `flywheel fit` wrote.")
]
TraceOption = Annotated[
    Path | None, typer.Option("--trace", help="Instead a recorded trace, its arrivals rescaled in time.")
]
ConversationsOption = Annotated[
    str | None, typer.Option("--conversations", help="Instead conversations that grow: chat or agent.")
]
ContextOption = Annotated[
    int | None, typer.Option("--max-context-tokens", min=2, help="Cut prompt and output together to this.")
]
TtftOption = Annotated[
    float | None, typer.Option("--ttft", "--ttft-p95", help="Objective: time to first token, in seconds.")
]
TpotOption = Annotated[
    float | None,
    typer.Option("--tpot", "--tpot-p95", help="Objective: time per output token after it, in seconds."),
]
E2eOption = Annotated[
    float | None, typer.Option("--e2e", "--e2e-p95", help="Objective: until the last token, in seconds.")
]
ObjectivesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--objective", help="Of one class: chat:ttft=1,tpot=0.05; repeatable.", metavar="CLASS:LIMITS"
    ),
]
PercentileOption = Annotated[
    str | None,
    typer.Option("--percentile", help="What the objectives limit: a percentile, or mean (default: 95)."),
]
MetOption = Annotated[
    float | None,
    typer.Option("--met", help="Instead: this share of requests meets TTFT and TPOT both (goodput)."),
]

_DEFAULT_TRAFFIC = "chat=0.7,code=0.3"
NO_LIMIT_S = 1e9


def offered(
    traffic: str | None,
    workload: Path | None,
    trace: Path | None,
    conversations: str | None,
    max_context_tokens: int | None,
    block_tokens: int = 16,
) -> OfferedLoad:
    """The load that was asked for.

    Raises:
        InputError: two kinds at once, or bad input of the one.
    """
    from sim.capacity.offered_load import conversation_load, fitted_load, trace_load, traffic_load

    given = [
        name
        for name, value in (
            ("--traffic", traffic), ("--workload", workload), ("--trace", trace), ("--conversations", conversations)
        )
        if value is not None
    ]  # fmt: skip
    if len(given) > 1:
        raise InputError(f"found {' and '.join(given)}, allowed is one of them")
    if trace is not None:
        from sim.traces.read import read_trace

        requests = read_trace(trace, max_context_tokens=max_context_tokens, block_tokens=block_tokens)
        return trace_load(requests, trace.name)
    if workload is not None:
        from sim.traces.fit import FittedWorkload

        return fitted_load(FittedWorkload.load(workload), max_context_tokens=max_context_tokens)
    if conversations is not None:
        return conversation_load(
            conversations, max_context_tokens=max_context_tokens, block_tokens=block_tokens
        )
    shares = shares_of(traffic or _DEFAULT_TRAFFIC)
    return traffic_load(shares, max_context_tokens=max_context_tokens, block_tokens=block_tokens)


def goal(
    ttft: float | None,
    tpot: float | None,
    e2e: float | None,
    objectives: list[str] | None,
    percentile: str | None,
    met: float | None,
    load: OfferedLoad,
) -> Goal:
    """The goal that was asked for; without any, that of the traffic classes themselves.

    Raises:
        InputError: none anywhere, or a bad one.
    """
    from sim.capacity.goals import Limit, MetShare, Objective, goal_of

    of_classes: dict[str, dict[Measure, Any]] = {}
    for words in objectives or []:
        name, of_class = _of_class(words)
        if name in of_classes:
            raise InputError(f"--objective {words}: found the class {name} twice, allowed is once")
        of_classes[name] = of_class
    if met is not None:
        if percentile is not None:
            raise InputError("found --met and --percentile, allowed is one of them")
        if e2e is not None or any("e2e" in limits for limits in of_classes.values()):
            raise InputError("--met: counts requests by TTFT and TPOT, found --e2e; leave one of them out")
        common = Objective(NO_LIMIT_S if ttft is None else ttft, NO_LIMIT_S if tpot is None else tpot)
        if ttft is None and tpot is None and not of_classes:
            raise InputError("--met: found no limits to meet, give --ttft, --tpot or --objective")
        each = {
            name: Objective(limits.get("ttft", common.ttft_p95_s), limits.get("tpot", common.tpot_p95_s))
            for name, limits in of_classes.items()
        }
        return (MetShare(met, each or common),)
    statistic = _statistic(percentile or "95")
    common_limits: dict[Measure, Any] = {"ttft": ttft, "tpot": tpot, "e2e": e2e}
    each_limits: list[tuple[str | None, dict[Measure, Any]]] = [(None, common_limits), *of_classes.items()]
    limits = [
        Limit(measure, statistic, limit_s, name)
        for name, given in each_limits
        for measure, limit_s in given.items()
        if limit_s is not None
    ]
    if limits:
        return tuple(limits)
    from sim.workload.traffic_classes import TRAFFIC_CLASSES

    own = {each["name"]: TRAFFIC_CLASSES.get(each["name"]) for each in load.content.get("traffic", [])}
    known = {name: kind for name, kind in own.items() if kind is not None}
    if any(kind.ttft_p95_s or kind.tpot_p95_s for kind in known.values()):
        return goal_of(known, statistic)
    raise InputError("objectives: found none, give --ttft, --tpot, --e2e or --objective")


def shares_of(words: str) -> dict[str, float]:
    """{class: share} from "chat" or "chat=0.7,code=0.3"."""
    pairs = _pairs(words, "--traffic")
    twice = [name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number])]
    if twice:
        raise InputError(f"--traffic {words}: found the class {twice[0]} twice, allowed is once")
    return {name: 1.0 if number is None else number for name, number in pairs}


def numbers(words: str, option: str) -> list[int]:
    """Whole numbers ≥ 1 with commas between."""
    found = []
    for word in split(words, option):
        if not word.isdecimal() or len(word) > 15 or int(word) < 1:
            raise InputError(
                f"{option} {words}: found {word!r}, allowed are whole numbers ≥ 1 with commas between"
            )
        found.append(int(word))
    return found


def split(words: str, option: str) -> list[str]:
    """Words with commas between, each once."""
    found = list(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    if not found:
        raise InputError(f"{option}: found nothing, allowed are names with commas between")
    return found


def prices(pairs: list[str] | None) -> dict[str, float]:
    """{accelerator: USD per hour} from NAME=USD."""
    found: dict[str, float] = {}
    for pair in pairs or []:
        for name, usd in _pairs(pair, "--price"):
            if usd is None:
                raise InputError(f"--price {pair}: found no NAME=USD")
            found[name] = usd
    return found


def _of_class(words: str) -> tuple[str, dict[Measure, Any]]:
    name, colon, limits = words.partition(":")
    allowed = "allowed is CLASS:ttft=S,tpot=S,e2e=S, any of the three"
    if not colon or not name.strip():
        raise InputError(f"--objective {words}: {allowed}")
    found: dict[Measure, Any] = {}
    for measure, limit_s in _pairs(limits, "--objective"):
        if measure not in ("ttft", "tpot", "e2e") or limit_s is None:
            raise InputError(f"--objective {words}: found {measure!r}, {allowed}")
        found[measure] = limit_s  # type: ignore[index]
    return name.strip(), found


def _pairs(words: str, option: str) -> list[tuple[str, float | None]]:
    found = []
    for word in split(words, option):
        name, equals, text = word.partition("=")
        try:
            found.append((name.strip(), float(text) if equals else None))
        except ValueError:
            raise InputError(f"{option} {words}: {name}: found {text!r}, allowed is a number") from None
    return found


def _statistic(text: str) -> float | Literal["mean"]:
    if text == "mean":
        return "mean"
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"--percentile: found {text!r}, allowed is mean, or a number between 0 and 100"
        ) from None
