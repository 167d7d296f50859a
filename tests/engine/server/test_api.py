"""The surface, with OpenAI's own client against a real server; the engine itself says what has to come out."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

from engine import LLM, SamplingParams
from engine.server.server import Server
from engine.usage.meter import Served
from tests.helpers.server import (  # noqa: F401
    CONTEXT_TOKENS,
    HELLO,
    client,
    one_thread,
    post,
    serving,
    tiny_llm,
    tiny_model,
)

GREEDY = SamplingParams(max_tokens=12)
LOG: list[Served] = []


@pytest.fixture(scope="module")
def alone() -> LLM:
    """The same weights, without a server."""
    return tiny_llm()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(tiny_llm(), on_served=LOG.append) as running:
        yield running


@pytest.fixture(scope="module")
def ai(server: Server) -> openai.OpenAI:
    return client(server)


def test_completions_are_those_of_the_engine(ai: openai.OpenAI, alone: LLM) -> None:
    answer = ai.completions.create(model="tiny", prompt="Once upon a time", max_tokens=12, temperature=0)
    expected = alone.generate("Once upon a time", GREEDY)[0]
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == "tiny"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == 12


def test_a_stream_adds_up_to_the_whole_answer(ai: openai.OpenAI, alone: LLM) -> None:
    chunks = list(ai.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=20, temperature=0, stream=True,
        stream_options={"include_usage": True},
    ))  # fmt: skip
    expected = alone.chat(HELLO, SamplingParams(max_tokens=20))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "length"
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 20
    assert chunks[-1].usage.prompt_tokens == len(expected.prompt_token_ids)


@pytest.mark.parametrize("way", ["completions", "chat"])
def test_a_stream_can_count_each_token(ai: openai.OpenAI, way: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked: Any = {
        "model": "tiny",
        "max_tokens": 200,
        "temperature": 0,
        "stream": True,
        "stream_options": options,
    }
    if way == "chat":
        chunks = list(ai.chat.completions.create(messages=HELLO, **asked))[1:]
    else:
        chunks = list(ai.completions.create(prompt="Hello", **asked))
    # A token each, or several where the loop was late; then that it is over, and the sum.
    *counts, over, total = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(set(counts))
    assert len(counts) > 3
    assert (counts[-1], over, total) == (200, 200, 200)


def test_pieces_are_sent_at_once(server: Server, ai: openai.OpenAI) -> None:
    # With Nagle's algorithm the second piece of an answer waits for the client's acknowledgement of the first.
    ai.models.list()
    found = [each.transport for each in server._uvicorn.server_state.connections if each.transport]
    assert found
    for transport in found:
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_samples_and_seeds(ai: openai.OpenAI, alone: LLM) -> None:
    asked: Any = {
        "model": "tiny",
        "prompt": "Say:",
        "max_tokens": 8,
        "n": 3,
        "temperature": 1.0,
        "top_p": 0.9,
        "seed": 7,
    }
    first, again = ai.completions.create(**asked), ai.completions.create(**asked)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 3
    params = SamplingParams(max_tokens=8, temperature=1.0, top_p=0.9, n=3, seed=7)
    assert texts == [sample.text for sample in alone.generate("Say:", params)[0].samples]
    assert first.usage is not None
    assert first.usage.completion_tokens == 24
    streamed = ["", "", ""]
    for chunk in ai.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


def test_several_prompts_and_token_ids(ai: openai.OpenAI, alone: LLM) -> None:
    prompts = ["One", "Two and", "Three and more"]
    answer = ai.completions.create(model="tiny", prompt=prompts, max_tokens=6, temperature=0)
    expected = [output.text for output in alone.generate(prompts, SamplingParams(max_tokens=6))]
    assert [choice.text for choice in answer.choices] == expected
    ids = [alone.tokenizer(prompt)["input_ids"] for prompt in prompts]
    answer = ai.completions.create(model="tiny", prompt=ids, max_tokens=6, temperature=0)
    assert [(choice.index, choice.text) for choice in answer.choices] == list(enumerate(expected))
    echoed = ai.completions.create(model="tiny", prompt="One", max_tokens=6, temperature=0, echo=True)
    assert echoed.choices[0].text == "One" + expected[0]


def test_a_stop_string_ends_the_text_before_it(ai: openai.OpenAI, alone: LLM) -> None:
    text = alone.generate("Once upon a time", GREEDY)[0].text
    stop = text[len(text) // 2 :][:3]
    answer = ai.completions.create(
        model="tiny", prompt="Once upon a time", max_tokens=12, temperature=0, stop=[stop]
    )
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities_are_the_models(ai: openai.OpenAI, alone: LLM) -> None:
    answer = ai.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    expected = alone.chat(HELLO, SamplingParams(max_tokens=6, logprobs=3))
    assert [each.logprob for each in content] == pytest.approx(
        [each.logprob for each in expected.logprobs], abs=1e-4
    )
    assert all(len(each.top_logprobs) == 3 for each in content)
    assert all(each.top_logprobs[0].logprob == each.logprob for each in content)  # greedy
    assert b"".join(bytes(each.bytes) for each in content).decode(errors="replace") == expected.text
    text = ai.completions.create(model="tiny", prompt="Hello", max_tokens=4, temperature=0, logprobs=2)
    probabilities = text.choices[0].logprobs
    assert [len(each) for each in probabilities.top_logprobs] == [2] * 4
    assert sum(math.exp(value) for value in probabilities.top_logprobs[0].values()) <= 1
    assert probabilities.text_offset[0] == 0
    events = ai.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3, stream=True
    )
    streamed = [
        one for event in events if event.choices[0].logprobs for one in event.choices[0].logprobs.content
    ]
    assert [each.token for each in streamed] == [each.token for each in content]


def test_json_objects(ai: openai.OpenAI) -> None:
    for seed in range(4):
        answer = ai.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=24, seed=seed, response_format={"type": "json_object"}
        )
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_biases_and_penalties_reach_the_engine(ai: openai.OpenAI, alone: LLM) -> None:
    token = alone.tokenizer(" yes")["input_ids"][0]
    biased = ai.completions.create(
        model="tiny", prompt="Say", max_tokens=5, temperature=0, logit_bias={str(token): 100}
    )
    assert biased.choices[0].text == " yes" * 5
    both: Any = {"logit_bias": {token: 30.0}, "frequency_penalty": 2.0, "presence_penalty": 1.5}
    expected = alone.generate("Say", SamplingParams(max_tokens=5, **both))[0].text
    answer = ai.completions.create(
        model="tiny", prompt="Say", max_tokens=5, temperature=0, frequency_penalty=2.0, presence_penalty=1.5,
        logit_bias={str(token): 30}, extra_body={"top_k": 5, "min_p": 0.1, "ignore_eos": True},
    )  # fmt: skip
    assert answer.choices[0].text == expected


def test_models_and_tokens(server: Server, ai: openai.OpenAI, alone: LLM) -> None:
    assert [model.id for model in ai.models.list()] == ["tiny"]
    assert ai.models.retrieve("tiny").id == "tiny"
    found = post(server, "/tokenize", {"prompt": "Grüße, 世界"}).json()
    assert found["tokens"] == alone.tokenizer("Grüße, 世界")["input_ids"]
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == CONTEXT_TOKENS
    assert post(server, "/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "Grüße, 世界"}
    assert post(server, "/tokenize", {"messages": HELLO}).json()["tokens"] == alone.chat_prompt(HELLO)


def test_embeddings_are_the_mean_of_the_last_hidden_states(server: Server, ai: openai.OpenAI) -> None:
    from transformers import AutoModel, AutoTokenizer

    texts = ["A short text.", "x", "Another text, " * 200]  # one token; more than a step has
    answer = ai.embeddings.create(model="tiny", input=texts)
    plain, tokenizer = AutoModel.from_pretrained(tiny_model()), AutoTokenizer.from_pretrained(tiny_model())
    for text, found in zip(texts, answer.data, strict=True):
        with torch.no_grad():
            hidden = plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        expected = (hidden / hidden.norm()).numpy()
        np.testing.assert_allclose(found.embedding, expected, atol=2e-4)
    raw = post(server, "/v1/embeddings", {"input": "x", "encoding_format": "base64"}).json()["data"][0][
        "embedding"
    ]
    vector = np.frombuffer(base64.b64decode(raw), "<f4")
    np.testing.assert_allclose(vector, answer.data[1].embedding, rtol=1e-6)
    assert server.engine.llm.scheduler.free_blocks == server.engine.llm.config.num_blocks


def test_many_clients_at_once_get_what_each_gets_alone(server: Server, alone: LLM) -> None:
    prompts = [f"Client {index} says {'very ' * (index % 7)}" for index in range(40)]
    expected = [output.text for output in alone.generate(prompts, SamplingParams(max_tokens=10 + 3))]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as ai:

            async def one(index: int) -> str:
                asked: Any = {"model": "tiny", "prompt": prompts[index], "max_tokens": 13, "temperature": 0}
                if index % 2:
                    return (await ai.completions.create(**asked)).choices[0].text
                parts = await ai.completions.create(**asked, stream=True)
                return "".join([part.choices[0].text async for part in parts])

            return await asyncio.gather(*(one(index) for index in range(len(prompts))))

    steps: list[int] = []
    llm = server.engine.llm
    told = llm.on_step
    llm.on_step = lambda step: (steps.append(len(step.decodes)), told(step))[0]
    try:
        assert asyncio.run(ask()) == expected
    finally:
        llm.on_step = told
    assert max(steps) > 8  # they shared batches


def test_the_owner_keeps_texts_of_those_who_allow_it(ai: openai.OpenAI) -> None:
    LOG.clear()
    ai.completions.create(
        model="tiny", prompt="Keep this", max_tokens=3, user="ann", extra_body={"store": True}
    )
    ai.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3, user="bob", store=False)
    ai.completions.create(model="tiny", prompt="Not this", max_tokens=3)
    assert [(used.user, used.text) for used in LOG] == [("ann", "Keep this"), ("bob", None), ("", None)]
    assert LOG[0].prompt_tokens == 2
    assert LOG[0].output_tokens == 3


def metric(server: Server, name: str, **labels: str) -> float:
    from prometheus_client.parser import text_string_to_metric_families

    text = httpx.get(f"{server.url}/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise AssertionError(f"no {name} {labels} in {text}")


def test_metrics_count_what_was_served(server: Server, ai: openai.OpenAI) -> None:
    tokens = [
        "prompt_tokens_total",
        "generation_tokens_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
    ]
    times = ["inter_token_latency_seconds", "time_to_first_token_seconds", "e2e_request_latency_seconds"]
    times += ["request_time_per_output_token_seconds", "request_queue_time_seconds"]
    names = tokens + [f"{name}_count" for name in times]
    before = {name: metric(server, f"vllm:{name}") for name in names}
    ended = metric(server, "vllm:request_success_total", finished_reason="length")
    ids = list(range(100, 140))  # two full blocks of 16
    for _ in range(2):
        ai.completions.create(
            model="tiny", prompt=ids, max_tokens=6, temperature=0, extra_body={"ignore_eos": True}
        )
    gained = {name: metric(server, f"vllm:{name}") - before[name] for name in names}
    assert gained == {
        "prompt_tokens_total": 40 + 8, "generation_tokens_total": 12, "prefix_cache_queries_total": 80,
        "prefix_cache_hits_total": 32, "inter_token_latency_seconds_count": 10,
        "time_to_first_token_seconds_count": 2, "e2e_request_latency_seconds_count": 2,
        "request_time_per_output_token_seconds_count": 2, "request_queue_time_seconds_count": 2,
    }  # fmt: skip
    assert metric(server, "vllm:request_success_total", finished_reason="length") == ended + 2
    assert metric(server, "vllm:num_requests_running") == 0
    assert metric(server, "vllm:kv_cache_usage_perc") == 0
    assert metric(server, "vllm:num_preemptions_total") == 0


def test_a_client_that_goes_away_frees_its_blocks(server: Server) -> None:
    import socket

    scheduler = server.engine.llm.scheduler
    aborted = metric(server, "vllm:request_success_total", finished_reason="abort")
    for stream in (True, False):
        body = json.dumps(
            {"prompt": "Go on", "max_tokens": 2000, "stream": stream, "ignore_eos": True, "n": 2}
        ).encode()
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
            client.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            if stream:
                assert b"200 OK" in client.recv(4096)
            until = time.monotonic() + 30
            while len(scheduler.running) < 2 and time.monotonic() < until:
                time.sleep(0.005)
            assert len(scheduler.running) == 2
            assert scheduler.free_blocks < server.engine.llm.config.num_blocks
        while scheduler.running and time.monotonic() < until:
            time.sleep(0.005)
        assert scheduler.running == []
        assert scheduler.free_blocks == server.engine.llm.config.num_blocks
    assert metric(server, "vllm:request_success_total", finished_reason="abort") == aborted + 4
    assert server.engine.open_samples == 0


def test_health_and_readiness(server: Server) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
    described = httpx.get(f"{server.url}/openapi.json").json()
    assert "422" not in json.dumps(described)
    assert {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/metrics"} <= set(
        described["paths"]
    )
