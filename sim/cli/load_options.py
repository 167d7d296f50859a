"""The load offered to a fleet and its latency objectives, as options of `flywheel capacity` and `configure`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from engine.errors import InputError

if TYPE_CHECKING:
    from sim.capacity.goals import Goal, Measure, Objective
    from sim.capacity.offered_load import OfferedLoad

_DEFAULT_TRAFFIC = "chat=0.7,code=0.3"
_NO_LIMIT_S = 1e9


@dataclass(frozen=True)
class OfferedLoadOptions:
    """The load offered to a fleet, and the latencies within which it must be served."""

    traffic: Annotated[
        str | None, typer.Option(help="Classes of requests: chat, or chat=0.7,code=0.3 (the default).")
    ] = None
    workload: Annotated[
        Path | None, typer.Option(help="Draw requests from a generator that `flywheel fit` wrote instead.")
    ] = None
    trace: Annotated[
        Path | None, typer.Option(help="Use a recorded trace instead; its arrivals are rescaled in time.")
    ] = None
    conversations: Annotated[
        str | None, typer.Option(help="Use growing conversations instead: chat or agent.")
    ] = None
    max_context_tokens: Annotated[
        int | None, typer.Option(min=2, help="Cut prompt and output together to this many tokens.")
    ] = None
    ttft: Annotated[
        float | None,
        typer.Option("--ttft", "--ttft-p95", help="Objective: time to first token, in seconds."),
    ] = None
    tpot: Annotated[
        float | None,
        typer.Option("--tpot", "--tpot-p95", help="Objective: time per output token after it, in seconds."),
    ] = None
    e2e: Annotated[
        float | None,
        typer.Option("--e2e", "--e2e-p95", help="Objective: time to the last token, in seconds."),
    ] = None
    objectives: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            metavar="CLASS:LIMITS",
            help="Objectives of one class: chat:ttft=1,tpot=0.05; repeatable.",
        ),
    ] = None
    percentile: Annotated[
        str | None,
        typer.Option(help="Statistic that the objectives limit: a percentile, or mean (default: 95)."),
    ] = None
    met: Annotated[
        float | None,
        typer.Option(help="Require instead that this share of requests meets TTFT and TPOT (goodput)."),
    ] = None

    def offered(self, max_context_tokens: int | None, block_tokens: int = 16) -> OfferedLoad:
        """The load, with drawn lengths cut to `max_context_tokens`.

        Raises:
            InputError: two kinds of load at once, or bad input of the one.
        """
        from sim.capacity.offered_load import conversation_load, fitted_load, trace_load, traffic_load

        kinds = ("traffic", "workload", "trace", "conversations")
        given = [f"--{kind}" for kind in kinds if getattr(self, kind) is not None]
        if len(given) > 1:
            raise InputError(f"found {' and '.join(given)}, allowed is one of them")
        limits: dict[str, Any] = {"max_context_tokens": max_context_tokens, "block_tokens": block_tokens}
        if self.trace is not None:
            from sim.traces.read import read_trace

            return trace_load(read_trace(self.trace, **limits), self.trace.name)
        if self.workload is not None:
            from sim.traces.fit import FittedWorkload

            return fitted_load(FittedWorkload.load(self.workload), max_context_tokens=max_context_tokens)
        if self.conversations is not None:
            return conversation_load(self.conversations, **limits)
        return traffic_load(shares_of(self.traffic or _DEFAULT_TRAFFIC), **limits)

    def goal(self, load: OfferedLoad) -> Goal:
        """The objectives as a goal; without any, those of the load's traffic classes.

        Raises:
            InputError: no objective anywhere, or a bad one.
        """
        from sim.capacity.goals import Limit, goal_of

        of_classes: dict[str, dict[Measure, Any]] = {}
        for words in self.objectives or []:
            name, of_class = _of_class(words)
            if name in of_classes:
                raise InputError(f"--objective {words}: found the class {name} twice, allowed is once")
            of_classes[name] = of_class
        if self.met is not None:
            return self._met_share(self.met, of_classes)
        statistic = _statistic(self.percentile or "95")
        common: dict[Measure, Any] = {"ttft": self.ttft, "tpot": self.tpot, "e2e": self.e2e}
        each: list[tuple[str | None, dict[Measure, Any]]] = [(None, common), *of_classes.items()]
        limits = [
            Limit(measure, statistic, limit_s, name)
            for name, given in each
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

    def _met_share(self, share: float, of_classes: dict[str, dict[Measure, Any]]) -> Goal:
        from sim.capacity.goals import MetShare

        if self.percentile is not None:
            raise InputError("found --met and --percentile, allowed is one of them")
        if self.e2e is not None or any("e2e" in limits for limits in of_classes.values()):
            raise InputError("--met: counts requests by TTFT and TPOT, found --e2e; leave one of them out")
        if self.ttft is None and self.tpot is None and not of_classes:
            raise InputError("--met: found no limits to meet, give --ttft, --tpot or --objective")
        each = {
            name: objective(limits.get("ttft", self.ttft), limits.get("tpot", self.tpot))
            for name, limits in of_classes.items()
        }
        return (MetShare(share, each or objective(self.ttft, self.tpot)),)


def objective(ttft_s: float | None, tpot_s: float | None) -> Objective:
    """The objective of these limits; None is no limit.

    Raises:
        InputError: a limit that is not above 0.
    """
    from sim.capacity.goals import Objective

    return Objective(_NO_LIMIT_S if ttft_s is None else ttft_s, _NO_LIMIT_S if tpot_s is None else tpot_s)


def shares_of(words: str) -> dict[str, float]:
    """{class: share} from "chat" or "chat=0.7,code=0.3"."""
    pairs = _pairs(words, "--traffic")
    twice = [name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number])]
    if twice:
        raise InputError(f"--traffic {words}: found the class {twice[0]} twice, allowed is once")
    return {name: 1.0 if number is None else number for name, number in pairs}


def numbers_of(words: str, option: str) -> list[int]:
    """Whole numbers ≥ 1 of a text in which commas separate them."""
    found = []
    for word in split(words, option):
        if not word.isdecimal() or len(word) > 15 or int(word) < 1:
            raise InputError(
                f"{option} {words}: found {word!r}, allowed are whole numbers ≥ 1 with commas between"
            )
        found.append(int(word))
    return found


def split(words: str, option: str) -> list[str]:
    """The words of a text in which commas separate them, without repeats."""
    found = list(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    if not found:
        raise InputError(f"{option}: found nothing, allowed are names with commas between")
    return found


def prices_of(pairs: list[str] | None) -> dict[str, float]:
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
