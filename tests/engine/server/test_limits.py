"""Who may ask and how much: keys, limits, budgets, the queue, bad requests; and the meter behind it all."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from engine import LLM
from engine.errors import InputError, QueueFullError
from engine.server.rate_limits import TokenBucket
from engine.server.server import Server, ServerConfig
from engine.usage.api_keys import ApiKeys
from engine.usage.meter import Meter, TokenPrices
from tests.helpers.server import HELLO, client, database, one_thread, post, serving, tiny_llm  # noqa: F401

PRIVATE = "my secret words"
ASK = {"prompt": "Hello", "max_tokens": 4, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return tiny_llm(max_running_requests=4)


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Server]:
    with serving(llm, max_output_tokens=100, queue=4) as running:
        yield running


class Shop:
    """A server with keys and a meter."""

    def __init__(self, url: str, llm: LLM, **options: Any) -> None:
        self.keys, self.meter = ApiKeys(url), Meter(url)
        self.server = serving(llm, keys=self.keys, meter=self.meter, price_usd_per_hour=3600.0, **options)

    def __enter__(self) -> Shop:
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()
        self.meter.close()
        self.keys.close()


BODIES: list[tuple[bytes, str]] = [
    (b"{", "not JSON"),
    (b"\xff\xfe\xff", "body"),
    (b'{"prompt": "\xff"}', "body"),
    (b'{"prompt": "\\ud800"}', "unicode"),
    (b"[]", "JSON object"),
    (b"[" * 50_000, "body"),
    (b'{"max_tokens": 3}', "prompt"),
    (b'{"prompt": ""}', "prompt"),
    (b'{"prompt": []}', "prompt"),
    (b'{"prompt": [49152]}', "49152"),
    (b'{"prompt": [-1]}', "prompt"),
    (b'{"prompt": {"a": 1}}', "prompt"),
    (b'{"prompt": "x", "max_tokens": "5"}', "max_tokens"),
    (b'{"prompt": "x", "max_tokens": -1}', "max_tokens"),
    (b'{"prompt": "x", "max_tokens": 0}', "max_tokens"),
    (b'{"prompt": "x", "max_tokens": 101}', "up to 100"),
    (b'{"prompt": "x", "max_tokens": true}', "max_tokens"),
    (b'{"prompt": "x", "max_tokens": 1e3}', "max_tokens"),
    (b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}", "body"),
    (b'{"prompt": "x", "temperature": NaN}', "temperature"),
    (b'{"prompt": "x", "temperature": -0.1}', "temperature"),
    (b'{"prompt": "x", "n": 5}', "n: found 5"),
    (b'{"prompt": "x", "n": -1}', "n: "),
    (b'{"prompt": "x", "stop": ["a", "b", "c", "d", "e"]}', "stop"),
    (b'{"prompt": "x", "stop": ""}', "stop"),
    (b'{"prompt": "x", "logit_bias": {"yes": 1}}', "logit_bias"),
    (b'{"prompt": "x", "logit_bias": {"99999": 1}}', "99999"),
    (b'{"prompt": "x", "stream_options": {"include_usage": true}}', "stream"),
    (b'{"prompt": "x", "echo": true, "logprobs": 1}', "logprobs"),
    (b'{"prompt": "x", "response_format": {"type": "json_schema"}}', "response_format"),
    (b'{"prompt": "x", "response_format": {"type": "json_object"}, "max_tokens": 1}', "at least 2"),
    (b'{"prompt": "x", "tools": []}', "tools: not known"),
]


@pytest.mark.parametrize(("body", "part"), BODIES, ids=[body[:60].decode("latin-1") for body, _ in BODIES])
def test_bad_bodies_are_told_in_openais_words(server: Server, body: bytes, part: str) -> None:
    answer = post(server, "/v1/completions", body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert part in error["message"]
    assert len(error["message"]) < 500


def test_other_ways_to_ask_wrongly(server: Server) -> None:
    assert post(server, "/v1/completions", {**ASK, "model": "gpt-9"}).status_code == 404
    assert post(server, "/v1/nothing", ASK).json()["error"]["message"] == "Not Found"
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    assert (
        post(
            server, "/v1/completions", json.dumps(ASK).encode(), **{"Content-Type": "text/plain"}
        ).status_code
        == 400
    )
    assert httpx.get(f"{server.url}/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert post(server, "/tokenize", {"prompt": "a", "messages": HELLO}).status_code == 400
    assert (
        post(server, "/v1/embeddings", {"input": ["a " * 3000]}).json()["error"]["code"]
        == "context_length_exceeded"
    )
    chat = post(server, "/v1/chat/completions", {"messages": [{"role": "robot", "content": "x"}]})
    assert chat.status_code == 400
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert post(server, "/v1/chat/completions", {"messages": picture}).status_code == 400


@pytest.mark.parametrize("text", ["word " * 200_000, "x" * 1_000_000, "日本 " * 140_000])
def test_a_megabyte_of_text_is_told_to_be_too_long(server: Server, text: str) -> None:
    answer = post(server, "/v1/completions", json.dumps({"prompt": text}, ensure_ascii=False).encode())
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_bodies_that_are_too_large_are_refused(server: Server) -> None:
    most = server.config.max_body_bytes
    for size in (most + 1, 20 * most):  # the first is read to its end, the other not
        try:
            answer = post(server, "/v1/completions", b" " * size)
        except httpx.WriteError:  # the server closed while the rest was on its way
            assert size > most + 1
            continue
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


def test_the_client_library_knows_the_errors(server: Server) -> None:
    ai = client(server)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        ai.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048"):
        ai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 3000}])


def test_a_full_queue_answers_429_and_when_to_come_back(server: Server) -> None:
    answers: list[httpx.Response] = []
    body = {**ASK, "max_tokens": 100}
    threads = [
        threading.Thread(target=lambda: answers.append(post(server, "/v1/completions", body)))
        for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8  # four run, four wait
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert server.engine.open_samples == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asked"), [("completions", ASK), ("chat/completions", {"messages": HELLO, "max_tokens": 4})]
)
def test_every_full_queue_is_a_429(
    server: Server, llm: LLM, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any], stream: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise QueueFullError("2 requests wait already, allowed are 2", request_id=7)

    body = {**asked, "stream": stream}
    with monkeypatch.context() as patched:  # the model's own limit
        patched.setattr(llm.scheduler, "add", refuse)
        check_queue_full(post(server, f"/v1/{path}", body), "2 requests wait already, allowed are 2")
    monkeypatch.setattr(server.engine, "open_samples", 8)  # four run, four wait: the server's limit
    check_queue_full(
        post(server, f"/v1/{path}", body), "The server is overloaded: its queue is full; try again later"
    )


def test_embeddings_without_room_are_a_429(server: Server, llm: LLM) -> None:
    table = llm.scheduler.lend(llm.config.cache_tokens)
    try:
        check_queue_full(post(server, "/v1/embeddings", {"input": "Hello"}), "The KV cache is full now")
    finally:
        llm.scheduler.take_back(table)


def check_queue_full(answer: httpx.Response, message: str) -> None:
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert (error["message"], error["type"], error["code"]) == (message, "rate_limit_error", "queue_full")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_keys_are_needed_where_there_are_keys(llm: LLM, tmp_path: Path) -> None:
    with Shop(database(tmp_path), llm) as shop:
        _, good = shop.keys.create("good", customer="Acme")
        revoked_id, revoked = shop.keys.create("revoked", customer="Acme")
        _, expired = shop.keys.create("expired", customer="Acme", expires_at=time.time() + 0.3)
        assert client(shop.server, revoked).models.list().data[0].id == "tiny"
        shop.keys.revoke(revoked_id)
        time.sleep(0.4)
        for secret in (None, "fw-", "fw-wrong", revoked, expired):
            answer = post(shop.server, "/v1/completions", ASK, secret)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client(shop.server, "fw-wrong").models.list()
        assert post(shop.server, "/v1/completions", ASK, good).status_code == 200
        assert httpx.get(f"{shop.server.url}/health").status_code == 200


def test_the_meter_has_it_before_the_client_sees_the_end(llm: LLM, tmp_path: Path) -> None:
    with Shop(database(tmp_path), llm) as shop:
        key_id, secret = shop.keys.create("k", customer="Acme")
        ai, reader = client(shop.server, secret), Meter(database(tmp_path))
        for stream in (False, True):
            asked: Any = {
                "model": "tiny",
                "messages": HELLO,
                "max_tokens": 5,
                "extra_body": {"ignore_eos": True},
            }
            begun = time.time()
            if stream:
                identity = [chunk.id for chunk in ai.chat.completions.create(**asked, stream=True)][-1]
            else:
                identity = ai.chat.completions.create(**asked).id
            row = reader.frame().set_index("request_id").loc[identity.removeprefix("chatcmpl-")]
            assert row.key_id == key_id
            assert (row.prompt_tokens, row.output_tokens, row.status, row.model) == (31, 5, "length", "tiny")
            assert row.cached_tokens == (16 if stream else 0)
            assert begun <= row.arrived_s <= row.first_token_s <= row.finished_s <= time.time()
            # At a dollar per second the cost is the engine's time, which is less than all time.
            assert 0 < row.cost_micro_usd <= (time.time() - begun) * 1e6
        post(shop.server, "/v1/embeddings", {"input": "Hello there"}, secret)
        assert reader.frame().iloc[-1].output_tokens == 0
        assert reader.frame().iloc[-1].prompt_tokens == 2
        reader.close()


def test_a_text_doesnt_wait_for_the_meter_but_its_end_does(llm: LLM, tmp_path: Path) -> None:
    with Shop(database(tmp_path), llm) as shop:
        _, secret = shop.keys.create("k", customer="Acme")
        whole = post(shop.server, "/v1/completions", ASK, secret).json()["choices"][0]["text"]
        locked = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")  # the meter can't write
        asked: Any = {**ASK, "extra_body": {"ignore_eos": True}}
        del asked["ignore_eos"]
        stream = client(shop.server, secret).completions.create(model="tiny", stream=True, **asked)
        text, reason = "", None
        for chunk in stream:
            text, reason = text + chunk.choices[0].text, chunk.choices[0].finish_reason
            if text == whole and locked.in_transaction:
                assert reason is None
                assert len(shop.meter.frame()) == 1
                locked.execute("ROLLBACK")
        assert (text, reason) == (whole, "length")
        assert len(shop.meter.frame()) == 2
        locked.close()


def test_costs_share_the_engines_time(llm: LLM, tmp_path: Path) -> None:
    with Shop(database(tmp_path), llm) as shop:
        _, secret = shop.keys.create("k", customer="Acme")
        bodies = [{**ASK, "prompt": list(range(length)), "max_tokens": 40} for length in (2, 300, 2, 300)]
        threads = [
            threading.Thread(target=post, args=(shop.server, "/v1/completions", body, secret))
            for body in bodies
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        frame = shop.meter.frame()
        assert frame.cost_micro_usd.sum() == pytest.approx(shop.server.engine.busy_s * 1e6, abs=4)
        by_prompt = frame.groupby("prompt_tokens").cost_micro_usd.mean()
        assert by_prompt[300] > by_prompt[2]


def test_a_cancelled_request_is_metered(llm: LLM, tmp_path: Path) -> None:
    with Shop(database(tmp_path), llm) as shop:
        _, secret = shop.keys.create("k", customer="Acme")
        stream = client(shop.server, secret).completions.create(
            model="tiny", prompt="x", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        for _, _ in zip(range(3), stream, strict=False):
            pass
        stream.close()
        until = time.monotonic() + 20
        while (frame := shop.meter.frame()).empty and time.monotonic() < until:
            time.sleep(0.01)
        assert list(frame.status) == ["cancelled"]
        assert 3 <= frame.output_tokens[0] < 2000


def test_rates_are_limited_per_key(llm: LLM, tmp_path: Path) -> None:
    with Shop(database(tmp_path), llm) as shop:
        _, slow = shop.keys.create("slow", customer="Acme", requests_per_minute=2)
        _, other = shop.keys.create("other", customer="Acme")
        answers = [post(shop.server, "/v1/completions", ASK, slow) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
        assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"
        error = answers[2].json()["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert 1 <= int(answers[2].headers["Retry-After"]) <= 30
        assert post(shop.server, "/v1/completions", ASK, other).status_code == 200
        assert "x-ratelimit-limit-requests" not in post(shop.server, "/v1/completions", ASK, other).headers


def test_tokens_are_limited_by_what_was_used(llm: LLM, tmp_path: Path) -> None:
    with Shop(database(tmp_path), llm) as shop:
        _, secret = shop.keys.create("k", customer="Acme", tokens_per_minute=60)
        first = post(shop.server, "/v1/completions", {**ASK, "prompt": [5] * 10, "max_tokens": 10}, secret)
        assert first.headers["x-ratelimit-remaining-tokens"] == "40"
        # May use up to the limit, uses 11, and gives the rest back.
        stopped = {
            "prompt": [5] * 10,
            "max_tokens": 20,
            "stop_token_ids": list(range(64)),
            "logit_bias": {"7": 100},
        }
        assert post(shop.server, "/v1/completions", stopped, secret).json()["usage"]["completion_tokens"] == 1
        third = post(shop.server, "/v1/completions", {**ASK, "prompt": [5] * 10, "max_tokens": 10}, secret)
        assert third.status_code == 200
        assert int(third.headers["x-ratelimit-remaining-tokens"]) in range(
            8, 14
        )  # 60 - 20 - 11 - 20, and some time
        refused = post(shop.server, "/v1/completions", {**ASK, "prompt": [5] * 30}, secret)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "tokens"
        assert (
            "Request too large"
            in post(shop.server, "/v1/completions", {**ASK, "prompt": [5] * 61}, secret).text
        )


def test_a_bucket_holds_a_minute_and_refills_evenly() -> None:
    bucket = TokenBucket(60, 60.0, 0.0)
    bucket.level -= 60
    assert bucket.wait_s(30) == pytest.approx(30)
    bucket.refill(12.0)
    assert bucket.level == pytest.approx(12)
    bucket.refill(1000.0)
    assert bucket.level == 60
    bucket.level -= 90  # used more than was taken
    assert bucket.full_in_s == pytest.approx(90)


def test_a_spent_budget_ends_service_until_next_month(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.usage.meter.SPENT_FRESH_S", 0.0)
    with Shop(database(tmp_path), llm) as shop:
        _, poor = shop.keys.create("poor", customer="Acme", budget_usd_per_month=0.000001)
        assert post(shop.server, "/v1/completions", ASK, poor).status_code == 200  # nothing is spent yet
        refused = post(shop.server, "/v1/completions", ASK, poor)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == refused.json()["error"]["code"] == "insufficient_quota"


def test_budgets_are_spent_at_the_plans_prices(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.usage.meter.SPENT_FRESH_S", 0.0)
    prices = {"dear": TokenPrices(10**9, 10**9, 10**9), "free": TokenPrices(0, 0, 0)}  # 1000 USD per million
    with Shop(database(tmp_path), llm, prices_of=lambda plan: prices.get(plan or "")) as shop:
        for plan, expected in (("dear", 429), ("free", 200)):
            _, secret = shop.keys.create(plan, customer="Acme", plan=plan, budget_usd_per_month=0.005)
            assert (
                post(shop.server, "/v1/completions", ASK, secret).status_code == 200
            )  # 5 tokens, half a cent
            assert post(shop.server, "/v1/completions", ASK, secret).status_code == expected


def test_urgent_keys_are_served_first(llm: LLM, tmp_path: Path) -> None:
    with Shop(database(tmp_path), llm) as shop:
        _, patient = shop.keys.create("patient", customer="Acme")
        urgent_id, urgent = shop.keys.create("urgent", customer="Acme", priority=5)
        body = {**ASK, "max_tokens": 60}
        threads = [
            threading.Thread(target=post, args=(shop.server, "/v1/completions", body, patient))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while shop.server.engine.open_samples < 12 and time.monotonic() < until:
            time.sleep(0.005)
        post(shop.server, "/v1/completions", body, urgent)
        for thread in threads:
            thread.join()
        order = list(shop.meter.frame().key_id)  # four run at a time: the urgent one is among the next four
        assert order.index(urgent_id) < 9


def test_a_request_that_waits_too_long_is_given_up(llm: LLM, tmp_path: Path) -> None:
    with Shop(database(tmp_path), llm, request_timeout_s=0.25) as shop:
        _, secret = shop.keys.create("k", customer="Acme")
        answer = post(shop.server, "/v1/completions", {**ASK, "max_tokens": 2000}, secret)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert 0 < answer.json()["usage"]["completion_tokens"] < 2000
        assert list(shop.meter.frame().status) == ["timeout"]


def test_nothing_of_a_prompt_is_logged_unless_asked(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    for log_prompts in (False, True):
        with serving(llm, log_prompts=log_prompts) as server, caplog.at_level(logging.DEBUG):
            caplog.clear()
            post(server, "/v1/completions", {**ASK, "prompt": PRIVATE})
            post(server, "/v1/completions", {**ASK, "prompt": PRIVATE, "max_tokens": -1})
            messages = [{"role": "user", "content": PRIVATE}]
            post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 2, "stream": True})
            broken = server.engine.submit
            server.engine.submit = _fail  # type: ignore[method-assign, assignment]
            assert post(server, "/v1/completions", {**ASK, "prompt": PRIVATE}).status_code == 500
            server.engine.submit = broken  # type: ignore[method-assign]
        own = [record.getMessage() for record in caplog.records if record.name.startswith("engine")]
        assert any("POST /v1/completions 200 length prompt=" in line for line in own)
        assert any("ZeroDivisionError" in line for line in own)
        assert any("secret" in record.getMessage() for record in caplog.records) == log_prompts


def _fail(ticket: Any) -> None:
    raise ZeroDivisionError(PRIVATE)


def test_an_engine_that_fails_tells_everybody() -> None:
    llm = tiny_llm()

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    with serving(llm) as server:
        llm.runner.run = fail  # type: ignore[method-assign]
        assert post(server, "/v1/completions", ASK).status_code == 503
        deadline = time.monotonic() + 10
        while server.engine.ready and time.monotonic() < deadline:
            time.sleep(0.01)


def test_bad_configurations_are_refused(server: Server) -> None:
    for change, message in (
        ({"queue": -1}, "queue: found -1"), ({"request_timeout_s": 0}, "request_timeout_s"), ({"port": 70000}, "port"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            ServerConfig(**change)
    with pytest.raises(InputError, match="in use"):
        serving(tiny_llm, port=int(server.url.rpartition(":")[2]))
