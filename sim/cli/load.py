"""The command `flywheel load`, and `flywheel profile --endpoint URL`: a server measured from outside."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import InputError
from engine.utils.files import check_writable, write_atomically
from sim.cli.options import JsonFlag
from sim.cli.terminal import print_json, print_table, progress_bar, save_and_show
from sim.i18n import numbers
from sim.utils import paths

if TYPE_CHECKING:
    import pandas as pd

    from engine.loadtest.client import Endpoint
    from engine.loadtest.result import LoadResult
    from engine.profile.profile import Profile
    from engine.profiling.endpoint_options import Known, SurveyOptions

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Name of the model at the server (default: its only model).")
]
KeyOption = Annotated[
    str | None, typer.Option("--key", envvar="OPENAI_API_KEY", help="API key, sent as a bearer token.")
]
ChatFlag = Annotated[
    bool, typer.Option("--chat", help="Use /v1/chat/completions instead of /v1/completions.")
]

_DEFAULT_RATE_RPS = 2.0
_CHECK_SHARE = 0.5  # of the budget of time
_MEASURES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "late": "Sender late by"}


def load(
    url: Annotated[str, typer.Argument(help="Address of the server, such as http://127.0.0.1:8000.")],
    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests per second (default: 2, or the trace's own); a trace is rescaled in time."
        ),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Number of requests (default: 100, or all of a trace).")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    arrivals: Annotated[str, typer.Option(help="Arrival process: poisson or constant.")] = "poisson",
    trace: Annotated[
        Path | None,
        typer.Option(help="Trace of arrivals and lengths, in a format that `flywheel replay` reads."),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Closed loop: keep this many requests in flight, instead of a rate."),
    ] = None,
    model: ModelOption = None,
    key: KeyOption = None,
    chat: ChatFlag = False,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="Sampling temperature.")] = 0.0,
    goal: Annotated[
        list[str] | None,
        typer.Option(help="Latency limit: ttft, tpot, e2e or itl; repeatable.", metavar="NAME=SECONDS"),
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Seconds after which a request is abandoned.")] = 600.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and prompts.")] = 0,
    out: Annotated[Path | None, typer.Option(help="CSV file with one row per request.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Send requests to an OpenAI-compatible server at fixed times, and measure the latencies of its clients."""
    from engine.loadtest.client import Endpoint
    from engine.loadtest.load import LoadOptions, run_load

    goals = _goals(goal or [])
    if out is not None:
        check_writable(out)
    if concurrency is not None and rate is not None:
        raise InputError("found --rate and --concurrency, allowed is one of them")
    offered = _offered(rate, requests, prompt_tokens, output_tokens, arrivals, trace, seed)
    endpoint = Endpoint(url, model, key, chat, temperature)
    with progress_bar("load", redraws_per_s=4.0) as report:
        result = run_load(endpoint, offered, LoadOptions(concurrency, timeout_s, seed), report)
    if out is not None:
        write_atomically(out, result.requests.to_csv(index=False))
    _show(result, goals, url, out, as_json)
    if result.unfinished:
        raise typer.Exit(130)


def profile_endpoint(
    endpoint: Endpoint,
    known: Known,
    options: SurveyOptions,
    out: Path | None,
    *,
    check: bool,
    as_json: bool,
) -> None:
    """Measure a served model from outside, save its profile and print it.

    Raises:
        InputError: the server can't be reached or refuses, or too little is known of it.
    """
    from engine.profiling.endpoint import measure_endpoint

    if out is not None:
        check_writable(out)
    with progress_bar(f"profile {endpoint.url}", redraws_per_s=4.0) as report:
        measured = measure_endpoint(endpoint, known, options, report)
        if check:
            report(1.0, "checking with a backlog")
            measured = checked_with_backlog(measured, endpoint, _CHECK_SHARE * options.budget_s, options.seed)
    name = measured.model.name
    save_and_show(
        measured, out or paths.measured_profiles_dir() / f"{name.replace('/', '--')}.json", name, as_json
    )
    if not as_json:
        print_table("Where the limits come from", list(measured.method["sources"].items()))
        if "check" in measured.method:
            print(f"Check: {_check_words(measured.method['check'])}")
        for note in measured.method["notes"]:
            print(f"Note: {note}")


def checked_with_backlog(profile: Profile, endpoint: Endpoint, budget_s: float, seed: int = 0) -> Profile:
    """The profile with a check in its method: a backlog served by the endpoint, and the same backlog replayed.

    The backlog is twice as many requests as may run at once, of varied lengths; fewer if its replay takes longer than
    `budget_s` seconds.
    """
    import numpy as np
    import pandas as pd

    from engine.loadtest.load import LoadOptions, run_load
    from sim.serving.replay import equal_replicas, replay_fleet
    from sim.validation.compare import Lengths

    config, most = profile.scheduler_config(), profile.model.max_context_tokens
    count = 2 * config.max_running_requests
    lengths = Lengths().draw(count, np.random.default_rng(seed), min(most, config.cache_tokens))
    offered = pd.DataFrame({"arrived_s": 0.0, **lengths})
    while True:
        frame, _ = replay_fleet(offered, equal_replicas(profile.step_time_model(), config))
        replayed_s = float(frame["finished_s"].max())
        if replayed_s <= budget_s or len(offered) <= 4:
            break
        offered = offered.iloc[: max(4, int(len(offered) * budget_s / replayed_s))]
    result = run_load(endpoint, offered, LoadOptions(seed=seed))
    done = result.requests[result.requests["status"] == "finished"]
    checked: dict[str, Any] = {"requests": len(offered), "finished": len(done), "replayed_s": replayed_s}
    if len(done):
        checked["measured_s"] = float(done["finished_s"].max())
    return replace(profile, method={**profile.method, "check": checked})


def _check_words(check: dict[str, Any]) -> str:
    if check["finished"] < check["requests"]:
        return f"only {check['finished']} of a backlog of {check['requests']} requests were answered"
    measured_s, replayed_s = check["measured_s"], check["replayed_s"]
    return (
        f"a backlog of {check['requests']} requests took {measured_s:.1f} s, its replay with this profile "
        f"{replayed_s:.1f} s ({replayed_s / measured_s - 1:+.1%})"
    )


def _offered(
    rate: float | None,
    requests: int | None,
    prompt_tokens: int,
    output_tokens: int,
    arrivals: str,
    trace: Path | None,
    seed: int,
) -> pd.DataFrame:
    import pandas as pd

    from engine.loadtest.load import arrival_times

    if trace is None:
        times = arrival_times(_DEFAULT_RATE_RPS if rate is None else rate, requests or 100, arrivals, seed)
        return pd.DataFrame(
            {"arrived_s": times, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
        )
    from sim.traces.read import read_trace

    read = read_trace(trace)
    if "after" in read and (read["after"] >= 0).any():
        raise InputError(
            f"{trace}: after: found requests that wait for others' answers, allowed here is a time of arrival for each"
        )
    offered = read.iloc[:requests].copy()
    offered["arrived_s"] -= offered["arrived_s"].iloc[0]
    if rate is not None:
        if not 0 < rate < math.inf:
            raise InputError(f"--rate {rate}: a positive number of requests per second is allowed")
        span_s = float(offered["arrived_s"].iloc[-1])
        if span_s > 0:
            offered["arrived_s"] *= (len(offered) - 1) / rate / span_s
    return offered


def _goals(pairs: list[str]) -> dict[str, float]:
    from engine.loadtest.result import GOALS

    goals: dict[str, float] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            limit_s = float(text)
        except ValueError:
            limit_s = math.nan
        if name.strip() not in GOALS or not equals or not 0 < limit_s < math.inf:
            raise InputError(f"--goal {pair}: allowed is {'|'.join(GOALS)}=SECONDS, such as ttft=0.5")
        goals[name.strip()] = limit_s
    return goals


def _show(result: LoadResult, goals: dict[str, float], url: str, out: Path | None, as_json: bool) -> None:
    if result.requests.empty:
        raise InputError(f"{url}: no request has ended, so there is nothing to sum up")
    found = result.summary(goals)
    if not found["finished"]:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in found["errors"].items())
        first = result.requests["error"].iloc[0]
        raise InputError(f"{url}: none of {found['requests']} requests was answered ({kinds}): {first}")
    if as_json:
        print_json({**found, "notes": result.notes, "out": None if out is None else str(out)})
        return
    print_table(f"Load on {url}", _rows(result, found, goals))
    for note in result.notes:
        print(f"Note: {note}")
    if out is not None:
        print(f"Requests: {out}")


def _rows(result: LoadResult, found: dict[str, Any], goals: dict[str, float]) -> list[tuple[str, str]]:
    loop = "open loop" if result.concurrency is None else f"closed loop of {result.concurrency}"
    rows = [
        ("Requests", f"{found['requests']:,} ({loop})"),
        ("Finished", f"{found['finished']:,}"),
        *((f"Failed: {kind}", f"{count:,}") for kind, count in found["errors"].items()),
    ]
    if found["unfinished"]:
        rows.append(("Interrupted, or not sent", f"{found['unfinished']:,}"))
    rows += [
        ("Duration", numbers.seconds(found["duration_s"])),
        ("Throughput, requests", f"{found['requests_per_s']:,.3g} per s"),
        ("Throughput, prompt tokens", f"{found['prompt_tokens_per_s']:,.4g} per s"),
        ("Throughput, output tokens", f"{found['output_tokens_per_s']:,.4g} per s"),
    ]
    for name, label in _MEASURES.items():
        if math.isnan(found[f"{name}_mean_s"]) or (name == "late" and result.concurrency is not None):
            continue
        values = ", ".join(
            f"{which} {numbers.seconds(found[f'{name}_{which}_s'])}"
            for which in ("mean", "p50", "p95", "p99")
        )
        rows.append((label, values))
    for name, limit_s in goals.items():
        rows.append((f"{_MEASURES[name]} within {limit_s:g} s", numbers.percent(found[f"{name}_met"], 1)))
    if goals:
        rows.append(
            ("Goodput", f"{numbers.percent(found['goodput'], 1)}, {found['goodput_rps']:,.3g} requests per s")
        )
    return rows
