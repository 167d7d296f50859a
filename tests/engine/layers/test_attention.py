"""Attention over the paged cache is softmax(QKᵀ/√d)V, whatever the blocks, the batch and the way it is computed."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from engine.batch import BatchChunk, SchedulerConfig
from engine.inference.compatibility import require_servable
from engine.inference.model_runner import ModelRunner
from engine.kernels import cpu_decode
from engine.layers.attention import (
    Attention,
    PagedCache,
    PrefillChunk,
    StepPlan,
    _attend_in_tiles,
    attend,
    attending,
    block_rows,
    group_decodes,
)
from engine.layers.linear import has_packed_products
from engine.models.load import load_model, shape_of

BLOCK = 16
HEAD_DIM = 16
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(
    how: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
) -> torch.Tensor:
    """One query, one head at a time, in float64: query [tokens, heads, head_dim], key and value from position 0."""
    query, key, value = query.double(), key.double(), value.double()
    tokens, heads, head_dim = query.shape
    out = torch.empty_like(query)
    for row in range(tokens):
        position = start + row
        first = 0 if how.window is None else max(0, position - how.window + 1)
        for head in range(heads):
            kv_head = head // (heads // key.shape[1])
            scores = key[first : position + 1, kv_head] @ query[row, head]
            scores = scores * (how.scaling if how.scaling is not None else head_dim**-0.5)
            if how.softcap is not None:
                scores = how.softcap * torch.tanh(scores / how.softcap)
            if how.slopes is not None:
                scores = scores - how.slopes[head] * torch.arange(position - first, -1, -1).double()
            out[row, head] = scores.softmax(0) @ value[first : position + 1, kv_head]
    return out


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        (256, 0),
        (257, 0),
        (300, 0),
        (1, 255),
        (5, 300),
        (127, 130),
        (128, 128),
        (129, 127),
        (130, 1),
        (200, 333),
    ],
)
def test_tiles_are_plain_attention(
    tokens: int, start: int, heads: int, kv_heads: int, dtype: torch.dtype
) -> None:
    if not has_packed_products(torch.empty(0, dtype=dtype)):
        pytest.skip(f"oneDNN has no {dtype} here")
    # Heads lie beside each other in one tensor, as the fused product leaves them.
    mixed = randn(0, tokens, heads + 1, 32).to(dtype)
    query = mixed[:, :heads]
    key, value = (randn(seed, start + tokens, kv_heads, 32).to(dtype) for seed in (1, 2))
    got = _attend_in_tiles(query * 32**-0.5, key, value, start)
    visible = torch.arange(start + tokens) <= torch.arange(start, start + tokens)[:, None]
    parts = (part.double().transpose(0, 1).unsqueeze(0) for part in (query, key, value))
    wanted = scaled_dot_product_attention(*parts, attn_mask=visible, enable_gqa=True)[0].transpose(0, 1)
    assert got.shape == query.shape
    assert got.dtype == dtype
    assert error(got, wanted) < (2e-6 if dtype == torch.float32 else 0.02)


SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.01])
OPTIONS = {
    "plain": Attention(0),
    "scaled": Attention(0, scaling=0.6),
    "window 1": Attention(0, window=1),
    "window 9": Attention(0, window=9),
    "window 270": Attention(0, window=270),
    "soft cap": Attention(0, softcap=1.5),
    "soft cap and window": Attention(0, scaling=0.4, window=20, softcap=2.0),
    "ALiBi": Attention(0, slopes=SLOPES),
}
# (tokens in the cache, tokens of the step): decodes by length, then chunks.
STEPS = {
    "decodes": [(0, 1), (15, 1), (16, 1), (40, 1), (41, 1), (300, 1)],
    "chunks": [(0, 20), (37, 19), (0, 1 + 2 * BLOCK), (290, 5), (0, 280), (130, 150)],
    "both": [(3, 1), (50, 1), (0, 17), (31, 2)],
}


def run_step(
    how: Attention, step: list[tuple[int, int]], kernel: bool, neighbours: bool, padding: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the step gives, and what is right; slots that nobody has filled hold large numbers."""
    heads, kv_heads = 4, 2
    lengths = [start + tokens for start, tokens in step]
    counts = [-(-length // BLOCK) for length in lengths]
    order = list(range(sum(counts) + 2))
    if not neighbours:
        random.Random(0).shuffle(order)
    shape = (len(order), BLOCK, kv_heads, HEAD_DIM)
    cache = PagedCache([torch.full(shape, 1e4)], [torch.full(shape, 1e4)])
    tables: list[list[int]] = []
    slots: list[int] = []
    queries, new_keys, new_values, wanted, chunks = [], [], [], [], []
    for index, ((start, tokens), count) in enumerate(zip(step, counts, strict=True)):
        table = [order.pop(0) for _ in range(count)]
        query = randn(3 * index, tokens, heads, HEAD_DIM)
        key, value = (randn(3 * index + i, start + tokens, kv_heads, HEAD_DIM) for i in (1, 2))
        its_slots = [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(start + tokens)]
        for part, content in ((cache.keys[0], key), (cache.values[0], value)):
            part.flatten(0, 1)[its_slots[:start]] = content[:start]
        if tokens == 1:
            tables.append(table)
        else:
            chunks.append(PrefillChunk(len(slots), tokens, start, block_rows([table], CPU)))
        slots += its_slots[start:]
        queries.append(query)
        new_keys.append(key[start:])
        new_values.append(value[start:])
        wanted.append(by_hand(how, query, key, value, start))
    positions = [start for start, tokens in step if tokens == 1]
    compiled = cpu_decode.decode_kernel(heads // kv_heads, HEAD_DIM, BLOCK, torch.float32) if kernel else None
    if kernel and compiled is None:
        pytest.skip("no C compiler")
    plan = StepPlan(cache, torch.tensor(slots), tables, positions, chunks, compiled)
    padded = [
        torch.cat([*parts, torch.full((padding, *parts[0].shape[1:]), 7.0)])
        for parts in (queries, new_keys, new_values)
    ]
    with attending(plan):
        out = attend(how, *padded)
        again = attend(how, *padded)  # as the next layer: with the masks of the first
    assert torch.equal(out, again)
    right = torch.cat(wanted)
    return out[: len(right)], right


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("step", "kernel"),
    [("decodes", True), ("decodes", False), ("both", True), ("both", False), ("chunks", False)],
)
def test_a_step_attends_as_by_hand(name: str, step: str, kernel: bool) -> None:
    scattered, right = run_step(OPTIONS[name], STEPS[step], kernel, neighbours=False)
    assert error(scattered, right) < 2e-6
    in_order, _ = run_step(OPTIONS[name], STEPS[step], kernel, neighbours=True, padding=3)
    assert error(in_order, scattered) < 1e-6


@settings(max_examples=200)
@given(
    st.lists(
        st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=6)
        | st.builds(
            lambda first, count: list(range(first, first + count)), st.integers(0, 9), st.integers(1, 6)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_blocks_are_gathered_in_order(tables: list[list[int]]) -> None:
    tables.sort(key=len)
    rows = block_rows(tables, CPU)
    longest = len(tables[-1])
    if isinstance(rows, slice):
        assert len(tables) == 1
        assert list(range(64))[rows] == tables[0]
    else:
        assert rows.tolist() == [table + [0] * (longest - len(table)) for table in tables]
        assert len(tables) > 1 or tables[0] != list(range(tables[0][0], tables[0][0] + longest))
    cache = PagedCache([torch.zeros(31, BLOCK, 1, 4)], [torch.zeros(31, BLOCK, 1, 4)])
    positions = [BLOCK * len(table) - 1 for table in tables]
    groups = group_decodes(tables, positions, cache)
    assert [position for group in groups for position in group.positions.tolist()] == positions
    ends = [group.first_row + len(group.positions) for group in groups]
    assert [group.first_row for group in groups] == [0, *ends[:-1]]


def test_attention_needs_a_step() -> None:
    with pytest.raises(RuntimeError, match="inside"):
        attend(Attention(0), *(torch.zeros(1, 1, 4) for _ in range(3)))


# --- the runner ---

CONFIG = SchedulerConfig(num_blocks=64, block_tokens=BLOCK)
# Of each request: tokens in the cache, tokens now, how many logits are wanted.
MIX = [
    (0, 9, 1),
    (20, 1, 1),
    (33, 4, 4),
    (3, 1, 1),
    (0, 30, 0),
    (20, 1, 1),
    (16, 20, 1),
    (50, 1, 1),
    (8, 3, 2),
]


@pytest.fixture(scope="module")
def runner() -> Any:
    model = load_model("llama-tiny@dummy")
    require_servable(model, "llama-tiny")
    return ModelRunner(model, shape_of(model, "llama-tiny", "float32"), CONFIG, "cpu", torch.float32)


def test_the_order_of_the_chunks_is_that_of_the_logits(runner: Any) -> None:
    """Chunks are packed in an order of their own; nobody sees it."""
    rng = random.Random(0)
    blocks = list(range(64))
    rng.shuffle(blocks)
    first, chunks = [], []
    for start, tokens, sample in MIX:
        ids = [rng.randrange(512) for _ in range(start + tokens)]
        table = [blocks.pop() for _ in range(-(-(start + tokens) // BLOCK))]
        if start:
            first.append(BatchChunk(ids[:start], 0, table, 0))
        chunks.append(BatchChunk(ids[start:], start, table, sample))
    assert len(runner.run(first)) == 0  # nothing is sampled
    alone = [runner.run([chunk]) for chunk in chunks]
    assert [len(rows) for rows in alone] == [sample for *_, sample in MIX]
    for seed in range(4):
        order = list(range(len(chunks)))
        if seed:
            random.Random(seed).shuffle(order)
        together = runner.run([chunks[i] for i in order])
        torch.testing.assert_close(together, torch.cat([alone[i] for i in order]), rtol=1e-5, atol=1e-5)
    keys = [cache.clone() for cache in runner.cache.keys]
    runner.run(chunks[::-1])
    for before, after in zip(keys, runner.cache.keys, strict=True):
        torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)


def test_tokens_checked_together_are_those_of_single_steps(runner: Any) -> None:
    """What a guess is checked by: the logits of several tokens at once, and of one after the other."""
    ids = [random.Random(1).randrange(512) for _ in range(60)]
    runner.run([BatchChunk(ids[:50], 0, [9, 4, 5, 6], 1)])
    at_once = runner.run([BatchChunk(ids[50:], 50, [9, 4, 5, 6], 10)])
    singly = [runner.run([BatchChunk([ids[i]], i, [9, 4, 5, 6])]) for i in range(50, 60)]
    torch.testing.assert_close(at_once, torch.cat(singly), rtol=1e-5, atol=1e-5)
    # Wrong guesses stay in the cache until the right tokens take their places.
    runner.run([BatchChunk([ids[50], 1, 2, 3], 50, [9, 4, 5, 6], 4)])
    torch.testing.assert_close(
        runner.run([BatchChunk(ids[51:], 51, [9, 4, 5, 6], 9)]), at_once[1:], rtol=1e-5, atol=1e-5
    )
