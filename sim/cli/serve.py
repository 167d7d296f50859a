"""The command `flywheel serve`: a model over HTTP as OpenAI's API, with keys, limits and the meter."""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import with_options

if TYPE_CHECKING:
    from engine.inference.llm import LLM
    from engine.usage.meter import Served, TokenPrices


@dataclass(frozen=True)
class ModelOptions:
    """How the model is loaded and batched."""

    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu"
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; weights only: int8 (CPU), fp8 (CUDA).")
    ] = "float32"
    max_running: Annotated[
        int | None, typer.Option(min=1, help="Most requests that decode together (default: 64; 256 on CUDA).")
    ] = None
    max_step_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a step (default: 512; 8192 on CUDA).")
    ] = None
    kv_cache_tokens: Annotated[
        int | None,
        typer.Option(min=16, help="Tokens that the KV cache holds (default: a share of free memory)."),
    ] = None
    draft_tokens: Annotated[int, typer.Option(min=0, help="Most tokens guessed ahead by prompt lookup.")] = 0
    seed: Annotated[int, typer.Option(help="Seed of requests without their own.")] = 0


@dataclass(frozen=True)
class HttpOptions:
    """Where the server listens, and what it accepts."""

    host: Annotated[
        str, typer.Option(help="Address to listen at; other than this machine's own needs keys.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000
    queue: Annotated[int, typer.Option(min=0, help="Most requests that may wait; more get a 429.")] = 256
    max_output_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of an answer (default: what the context has room for)."),
    ] = None
    request_timeout_s: Annotated[
        float, typer.Option(help="Most seconds of a request, its wait included.")
    ] = 600.0
    drain_s: Annotated[
        float, typer.Option(help="Seconds to finish requests in flight after a stop signal.")
    ] = 30.0
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Larger bodies get a 413.")] = 1 << 20
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log.")] = False


@with_options
def serve(
    http: HttpOptions,
    engine: ModelOptions,
    model: Annotated[
        str,
        typer.Argument(
            help="smollm2-135m (bundled), a local directory, a GGUF file, a hub id, or ARCH@dummy."
        ),
    ] = "smollm2-135m",
    served_name: Annotated[
        str | None, typer.Option(help="Name of the model for clients (default: MODEL).")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            help="Keys and usage: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE. Then keys are needed.",
            envvar="FLYWHEEL_DATABASE",
        ),
    ] = None,
    no_keys: Annotated[
        bool,
        typer.Option("--no-keys", help="Meter requests, but accept them from this machine without a key."),
    ] = False,
    scenario: Annotated[
        str | None,
        typer.Option(help="Budgets are spent at its plans' prices (default: at the measured cost)."),
    ] = None,
    price_usd_per_hour: Annotated[
        float | None, typer.Option(help="What this machine costs per hour (default: from the catalog).")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help='Append each request to this file; texts only of those with "store": true.'),
    ] = None,
) -> None:
    """Serve a model over HTTP as OpenAI's API; SIGTERM or Ctrl-C finishes what is under way and stops."""
    from engine.errors import InputError

    if (database is None or no_keys) and not _is_loopback(http.host):
        raise InputError(
            f"--host: found {http.host!r} without keys, allowed is 127.0.0.1; keys come with --database"
        )
    from engine.profile.hardware import detect
    from engine.server.server import Server, ServerConfig
    from engine.usage.api_keys import ApiKeys
    from engine.usage.meter import Meter

    machine = detect("cuda" if engine.device.startswith("cuda") else "cpu", price_usd_per_hour)
    config = ServerConfig(
        model=served_name, price_usd_per_hour=machine.price_usd_per_hour, **dataclasses.asdict(http)
    )
    prices_of = _prices_of(scenario) if scenario is not None else None

    def load() -> LLM:
        from engine.inference.llm import LLM
        from engine.models.load import quiet

        with quiet():
            return LLM(
                model,
                engine.device,
                engine.dtype,
                max_running_requests=engine.max_running,
                max_step_tokens=engine.max_step_tokens,
                kv_cache_tokens=engine.kv_cache_tokens,
                draft_tokens=engine.draft_tokens,
                seed=engine.seed,
            )

    keys = ApiKeys(database) if database is not None and not no_keys else None
    meter = Meter(database) if database is not None else None
    try:
        server = Server(
            load,
            config,
            name=model,
            keys=keys,
            meter=meter,
            prices_of=prices_of,
            on_served=_writer(store) if store is not None else None,
        )
        _log_to_stderr()
        print(f"{server.url} answers /health; {model} is being loaded …", flush=True)

        def tell(llm: LLM) -> None:
            print(f"{server.url} is ready: {server.model}, {machine.name}", flush=True)
            print(_example(server.url, server.model, llm, keys is not None), flush=True)

        server.run(tell)
    finally:
        if meter is not None:
            meter.close()
        if keys is not None:
            keys.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _example(url: str, model: str, llm: LLM, needs_key: bool) -> str:
    key = "  -H 'Authorization: Bearer KEY' \\\n" if needs_key else ""
    chats = llm.tokenizer is not None and llm.tokenizer.chat_template
    asked = '"messages": [{"role": "user", "content": "Hello"}]' if chats else '"prompt": "Hello"'
    path = "/v1/chat/completions" if chats else "/v1/completions"
    return (
        f"curl {url}{path} -H 'Content-Type: application/json' \\\n{key}"
        f'  -d \'{{"model": "{model}", {asked}, "max_tokens": 32}}\''
    )


def _prices_of(scenario: str) -> Callable[[str | None], TokenPrices | None]:
    """The token prices of a plan in the present month; None where the scenario doesn't have the plan."""
    import time

    from engine.usage.database import month_of
    from sim.billing.charges import token_prices
    from sim.scenario.scenario import Scenario

    chosen = Scenario.load(scenario)
    by_month: dict[str, dict[str, TokenPrices]] = {}

    def prices(plan: str | None) -> TokenPrices | None:
        month = month_of(time.time())
        if month not in by_month:
            by_month[month] = token_prices(chosen, month)
        return None if plan is None else by_month[month].get(plan)

    return prices


def _writer(path: Path) -> Callable[[Served], None]:
    from engine.errors import InputError
    from engine.usage.meter import log_lines

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise InputError(f"--store: {path} can't be written: {error.strerror}") from None

    def write(used: Served) -> None:
        file.write(log_lines([used]))

    return write


def _log_to_stderr() -> None:
    """One line per request, with the time in front."""
    log = logging.getLogger("engine.server")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
