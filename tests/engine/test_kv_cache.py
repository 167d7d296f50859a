"""Blocks are never lost, never given twice, and a remembered prefix is found again until its room is needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_cache import BlockPool


def test_a_released_prefix_is_found_again() -> None:
    pool = BlockPool(4)
    table = pool.take(2)
    pool.remember(table[0], "a")
    pool.remember(table[1], "ab")
    pool.release(table)
    assert pool.free_blocks == 4
    assert pool.find_prefix(["a", "ab", "abc"], 3) == table
    assert pool.find_prefix(["a", "ab"], 1) == table[:1]
    assert pool.find_prefix(["b"], 1) == []


def test_the_oldest_tail_is_forgotten_first() -> None:
    pool = BlockPool(2)
    table = pool.take(2)
    pool.remember(table[0], "a")
    pool.remember(table[1], "ab")
    pool.release(table)
    assert pool.take(1) == [table[1]]
    assert pool.find_prefix(["a", "ab"], 2) == [table[0]]


def test_a_shared_block_is_free_only_when_nobody_holds_it() -> None:
    pool = BlockPool(2)
    table = pool.take(1)
    pool.remember(table[0], "a")
    assert pool.free_among(table) == 0
    pool.hold(table)
    pool.release(table)
    assert pool.free_blocks == 1
    pool.release(table)
    assert pool.free_blocks == 2
    assert pool.free_among(table) == 1


def test_asking_for_too_many_is_an_error() -> None:
    with pytest.raises(ValueError, match="asked for 3 blocks, 2 are free"):
        BlockPool(2).take(3)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.booleans()), max_size=40))
def test_blocks_are_neither_lost_nor_given_twice(rounds: list[tuple[int, int, bool]]) -> None:
    pool = BlockPool(12)
    tables: list[list[int]] = []
    for count, family, drop in rounds:
        if drop and tables:
            pool.release(tables.pop(0))
            continue
        hashes = [(family, i) for i in range(count)]
        shared = pool.find_prefix(hashes, count)
        missing = count - len(shared)
        if missing + pool.free_among(shared) > pool.free_blocks:
            continue
        pool.hold(shared)
        table = shared + pool.take(missing)
        for block, content in zip(table, hashes, strict=True):
            pool.remember(block, content)
        assert len(set(table)) == len(table)
        tables.append(table)
        held = {block for table in tables for block in table}
        assert len(held) + pool.free_blocks == 12
    for table in tables:
        pool.release(table)
    assert pool.free_blocks == 12
