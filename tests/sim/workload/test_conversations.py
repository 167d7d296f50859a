"""Conversations whose prompts grow by what was said, and users who wait for their answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from sim.workload.conversations import CONVERSATION_CLASSES, ConversationClass, closed_loop, conversations
from sim.workload.requests import check_requests

PLAIN = ConversationClass("plain", 50, 80, 100, 150, turns_mean=3, think_s_mean=10, system_tokens=100)


def test_each_turn_holds_all_that_was_said_before() -> None:
    frame = conversations(PLAIN, 1.0, sessions=500, rng=1)
    for _, talk in frame.groupby("session"):
        said = talk["prompt_tokens"] + talk["output_tokens"]
        added = talk["prompt_tokens"].iloc[1:].to_numpy() - said.iloc[:-1].to_numpy()
        assert (added >= 1).all()  # what the user says next
        assert talk["prompt_tokens"].iloc[0] > 100
        assert talk["turn"].tolist() == list(range(len(talk)))


def test_turns_wait_for_the_answer_before() -> None:
    frame = conversations(PLAIN, 1.0, sessions=500, rng=1)
    first = frame["turn"] == 0
    rows = np.arange(len(frame))
    assert (frame["after"] == np.where(first, -1, rows - 1)).all()
    assert frame["arrived_s"].isna().equals(~first)
    assert frame.loc[first, "arrived_s"].is_monotonic_increasing
    assert (frame.loc[~first, "think_s"] > 0).all()
    check_requests(frame)


def test_prefixes_grow_block_by_block_and_are_shared() -> None:
    frame = conversations(PLAIN, 1.0, sessions=60, rng=2, block_tokens=16)
    assert (frame["prefix_hashes"].map(len) == frame["prompt_tokens"] // 16).all()
    longest: dict[int, list[int]] = {}
    for session, keys in zip(frame["session"], frame["prefix_hashes"], strict=True):
        before = longest.get(session, [])
        assert keys[: len(before)] == before
        longest[session] = keys
    system = 100 // 16
    everything = [key for keys in longest.values() for key in keys[system:]]
    assert len(set(everything)) == len(everything)  # nothing but the system prompt is common
    assert len({tuple(keys[:system]) for keys in longest.values()}) == 1
    other = conversations(PLAIN, 1.0, sessions=60, rng=3, block_tokens=16)
    assert other["prefix_hashes"].iloc[0][:system] == frame["prefix_hashes"].iloc[0][:system]
    assert not set(everything) & {key for keys in other["prefix_hashes"] for key in keys[system:]}
    assert all(0 <= key < 2**63 for key in everything)


def test_turns_and_think_times_have_their_means() -> None:
    frame = conversations(PLAIN, 1.0, sessions=20_000, rng=4)
    turns = frame.groupby("session").size()
    assert turns.mean() == pytest.approx(3, rel=0.03)
    assert (turns == 1).mean() == pytest.approx(1 / 3, rel=0.05)  # geometric
    think_s = frame.loc[frame["turn"] > 0, "think_s"]
    assert think_s.mean() == pytest.approx(10, rel=0.03)
    assert think_s.std() == pytest.approx(10, rel=0.05)  # exponential
    chat = conversations("chat", 1.0, sessions=20_000, rng=4)
    think_s = chat.loc[chat["turn"] > 0, "think_s"]
    assert think_s.median() == pytest.approx(20, rel=0.05)
    assert think_s.mean() == pytest.approx(40, rel=0.08)


def test_numbers_of_turns_can_be_given() -> None:
    kind = ConversationClass(
        "two", 5, 5, 5, 5, turns_mean=1, think_s_mean=0, turns_shares=(0.0, 3.0, 0.0, 1.0)
    )
    turns = conversations(kind, 1.0, sessions=4000, rng=5).groupby("session").size()
    assert set(turns) == {2, 4}
    assert (turns == 4).mean() == pytest.approx(0.25, abs=0.03)


def test_a_longer_window_begins_with_the_same_conversations() -> None:
    short, long = (conversations(PLAIN, 0.5, duration_s=seconds, rng=6) for seconds in (200, 800))
    pd.testing.assert_frame_equal(short, long.iloc[: len(short)])
    pd.testing.assert_frame_equal(short, conversations(PLAIN, 0.5, duration_s=200, rng=6))


@settings(max_examples=30, deadline=None)
@given(st.integers(102, 4000), st.integers(0, 50), st.integers(1, 64))
def test_conversations_end_where_the_context_does(longest: int, seed: int, block_tokens: int) -> None:
    frame = conversations(
        PLAIN, 1.0, sessions=30, rng=seed, max_context_tokens=longest, block_tokens=block_tokens
    )
    assert frame["session"].nunique() == 30
    assert ((frame["prompt_tokens"] + frame["output_tokens"]) <= longest).all()
    assert (frame["prompt_tokens"] > 100).all()
    assert (frame["output_tokens"] >= 1).all()
    check_requests(frame)


def test_no_conversation_at_all_is_an_empty_frame() -> None:
    assert conversations(PLAIN, 1.0, sessions=0).empty


@pytest.mark.parametrize(("users", "requests"), [(3, 11), (5, 5), (8, 3), (1, 4)])
def test_users_ask_again_only_after_their_answer(users: int, requests: int) -> None:
    frame = closed_loop(users, {"chat": 1.0}, requests=requests, think_s_mean=2.0, rng=1)
    assert len(frame) == requests
    checked = check_requests(frame)
    for user, asked in checked.groupby("user"):
        assert asked["after"].tolist() == [-1, *asked.index[:-1]]
        assert asked.index[0] == user
    assert frame["arrived_s"].notna().sum() == min(users, requests)


def test_closed_think_times_and_lengths_are_those_asked_for() -> None:
    frame = closed_loop(10, {"code": 1.0}, requests=30_000, think_s_mean=4.0, rng=2)
    assert frame.loc[frame["after"] >= 0, "think_s"].mean() == pytest.approx(4.0, rel=0.03)
    assert frame["prompt_tokens"].median() == pytest.approx(1469, rel=0.05)
    fixed = closed_loop(10, {"code": 1.0}, requests=50, think_s_mean=3.0, think_s_median=3.0)
    assert fixed.loc[fixed["after"] >= 0, "think_s"].tolist() == pytest.approx([3.0] * 40)
    at_once = closed_loop(4, {"code": 1.0}, requests=8, think_s_mean=0.0)
    assert at_once["arrived_s"].iloc[:4].tolist() == [0, 0, 0, 0]


def test_every_class_says_where_its_numbers_come_from() -> None:
    assert all("assumed" in kind.source for kind in CONVERSATION_CLASSES.values())


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: conversations("chatt", 1.0, sessions=1), ["'chatt'", "agent, chat"]),
        (lambda: conversations(PLAIN, 1.0, sessions=1, max_context_tokens=101), ["found 101", "≥ 102"]),
        (lambda: conversations(PLAIN, 1.0, sessions=1, block_tokens=0), ["block_tokens", "0"]),
        (lambda: conversations(PLAIN, 0.0, sessions=1), ["rate_rps"]),
        (lambda: _talk(turns_mean=0.5), ["turns_mean", "0.5"]),
        (lambda: _talk(think_s_mean=-1.0), ["think_s_mean", "-1"]),
        (lambda: _talk(think_s_median=20.0), ["think_s_median", "20"]),
        (lambda: _talk(turns_shares=(0.0,)), ["turns_shares"]),
        (lambda: _talk(system_tokens=-5), ["system_tokens", "-5"]),
        (lambda: _talk(user_tokens_mean=1.0), ["user_tokens", "mean 1.0"]),
        (lambda: closed_loop(0, {"chat": 1}, requests=1, think_s_mean=1), ["users", "found 0"]),
        (lambda: closed_loop(1, {"chat": 1}, requests=0, think_s_mean=1), ["requests", "found 0"]),
        (lambda: closed_loop(1, {"chat": 1}, requests=1, think_s_mean=math.inf), ["think_s_mean", "inf"]),
    ],
)
def test_impossible_talk_is_refused(make: Any, parts: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        make()
    assert all(part in str(refusal.value) for part in parts)


def _talk(**fields: Any) -> ConversationClass:
    good = {
        "user_tokens_median": 10,
        "user_tokens_mean": 20,
        "output_tokens_median": 10,
        "output_tokens_mean": 20,
        "turns_mean": 2,
        "think_s_mean": 10.0,
    }
    return ConversationClass("talk", **{**good, **fields})
