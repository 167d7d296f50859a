"""The Triton kernels against their torch references: compiled where there is a GPU, else in Triton's interpreter.

Without a GPU, `tests/engine/test_triton_interpreter.py` runs this file in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

from tests.helpers.triton import ON_GPU, RUNS_HERE

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
if RUNS_HERE:
    from engine.kernels import available
    from engine.kernels.cache_write import write_cache
    from engine.kernels.paged_decode import (
        DecodeWorkspace,
        decode_splits,
        paged_decode,
    )
    from engine.kernels.paged_prefill import paged_prefill
    from engine.kernels.softmax import Options
    from tests.helpers.reference_kernels import (
        reference_paged_decode,
        reference_paged_prefill,
        reference_write_cache,
    )

BLOCK_TOKENS = 16
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# The interpreter multiplies the bits of bfloat16 as if they were integers (Triton 3.9).
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")]


def paged_case(lengths, heads, kv_heads, head_dim, tokens, dtype=torch.float32, device=DEVICE, seed=0):
    """Random queries for `tokens` rows and a cache whose blocks lie in random order; unused slots hold NaN."""
    random = torch.Generator().manual_seed(seed)
    tables = [-(-length // BLOCK_TOKENS) for length in lengths]
    order = torch.randperm(sum(tables) + 1, generator=random).tolist()
    shape = (len(order), BLOCK_TOKENS, kv_heads, head_dim)
    keys, values = torch.full(shape, float("nan")), torch.full(shape, float("nan"))
    block_tables = torch.zeros(len(lengths), max(max(tables), 1), dtype=torch.int32)
    for request, (length, blocks) in enumerate(zip(lengths, tables, strict=True)):
        mine = [order.pop() for _ in range(blocks)]
        block_tables[request, :blocks] = torch.tensor(mine)
        for position in range(length):
            place = mine[position // BLOCK_TOKENS], position % BLOCK_TOKENS
            keys[place] = torch.randn(kv_heads, head_dim, generator=random)
            values[place] = torch.randn(kv_heads, head_dim, generator=random)
    query = torch.randn(tokens, heads, head_dim, generator=random)
    return (
        *(part.to(device, dtype) for part in (query, keys, values)),
        block_tables.to(device),
    )


OPTIONS = ("plain", "scaling", "window", "alibi", "softcap", "sinks", "all")


def all_options(heads):
    """Each option alone and all together."""
    slopes = (0.5 ** torch.arange(1, heads + 1).float()).to(DEVICE)
    sinks = torch.linspace(-2, 3, heads).to(DEVICE)
    return {
        "plain": Options(),
        "scaling": Options(scaling=0.3),
        "window": Options(window=20),
        "alibi": Options(slopes=slopes),
        "softcap": Options(softcap=2.0),
        "sinks": Options(sinks=sinks),
        "all": Options(scaling=0.2, window=33, softcap=3.0, slopes=slopes, sinks=sinks),
    }


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def assert_same(found, wanted):
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.float(), wanted.float(), atol=tolerance, rtol=tolerance)


def workspace_of(splits, requests, heads, head_dim):
    """A workspace of `splits`, filled with NaN: what no split wrote must not be read."""
    shape = (requests, heads, splits)
    nan = torch.full((*shape, head_dim), float("nan"), device=DEVICE)
    return DecodeWorkspace(nan, torch.full(shape, float("nan"), device=DEVICE))


LENGTHS = (1, 15, 16, 17, 64, 65, 150, 0)  # a block's and a tile's borders; 0 is padding


# Splits divide what a window leaves, and their join adds the sinks; the other options end in the scores.
@pytest.mark.parametrize(
    ("option", "splits"), [*((option, 1) for option in OPTIONS), ("plain", 3), ("window", 3), ("all", 3)]
)
def test_decode_options(option, splits):
    options = all_options(4)[option]
    case = paged_case(LENGTHS, 4, 2, 32, len(LENGTHS))
    lengths = int32(*LENGTHS)
    found = paged_decode(*case, lengths, options, workspace=workspace_of(splits, len(LENGTHS), 4, 32))
    assert_same(found, reference_paged_decode(*case, lengths, options))
    assert not found[-1].any()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(2, 2, 64), (9, 3, 64), (4, 1, 80), (6, 2, 96), (4, 2, 128), (71, 1, 16), (2, 1, 256)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_shapes(heads, kv_heads, head_dim, dtype):
    case = paged_case((70, 129), heads, kv_heads, head_dim, 2, dtype)
    lengths = int32(70, 129)
    found = paged_decode(*case, lengths, workspace=workspace_of(2, 2, heads, head_dim))
    assert_same(found, reference_paged_decode(*case, lengths))


def test_more_splits_than_tokens_change_nothing():
    case = paged_case((1, 40), 2, 1, 16, 2)
    found = paged_decode(*case, int32(1, 40), workspace=workspace_of(7, 2, 2, 16))
    assert_same(found, reference_paged_decode(*case, int32(1, 40)))


def test_a_long_context_is_split_and_a_full_batch_is_not():
    assert decode_splits(1, 8, 8, 64, DEVICE) == 1
    assert decode_splits(100_000, 8, 8, 8192, DEVICE) == 1
    if ON_GPU:
        assert decode_splits(1, 32, 8, 8192, DEVICE) > 1


CHUNKS = ((0, 1), (0, 70), (31, 1), (63, 66), (150, 5), (16, 0), (64, 16))  # start, tokens


def prefill_case(chunks, heads, kv_heads, head_dim, dtype=torch.float32):
    """Queries, cache, tables, first rows and starts of `chunks`."""
    tokens = [count for _, count in chunks]
    case = paged_case([sum(chunk) for chunk in chunks], heads, kv_heads, head_dim, sum(tokens), dtype)
    rows = int32(0, *(sum(tokens[: i + 1]) for i in range(len(tokens))))
    return (*case, rows, int32(*(start for start, _ in chunks))), max(tokens)


@pytest.mark.parametrize("option", OPTIONS)
def test_prefill_options(option):
    options = all_options(4)[option]
    case, longest = prefill_case(CHUNKS, 4, 2, 32)
    assert_same(paged_prefill(*case, longest, options), reference_paged_prefill(*case, options))


@pytest.mark.parametrize("window", [1, 16, 127, 1000])
def test_prefill_windows(window):
    case, longest = prefill_case(((0, 200), (100, 90)), 2, 2, 16)
    options = Options(window=window)
    assert_same(paged_prefill(*case, longest, options), reference_paged_prefill(*case, options))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(2, 2, 64), (3, 1, 64), (4, 1, 80), (6, 2, 96), (4, 2, 128), (71, 1, 16), (2, 1, 256)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_prefill_shapes(heads, kv_heads, head_dim, dtype):
    chunks = ((70, 33), (0, 18)) if heads < 71 else ((70, 5), (0, 3))  # a tile holds 64 rows: tokens × heads
    case, longest = prefill_case(chunks, heads, kv_heads, head_dim, dtype)
    # A bound longer than every chunk launches tiles that have nothing to do.
    assert_same(paged_prefill(*case, longest + 40), reference_paged_prefill(*case))


def test_the_last_token_of_a_chunk_is_a_decode():
    (query, keys, values, tables, rows, starts), longest = prefill_case(((30, 40), (0, 17)), 4, 2, 32)
    last = rows[1:].long() - 1
    decoded = paged_decode(query[last], keys, values, tables, int32(70, 17))
    assert_same(paged_prefill(query, keys, values, tables, rows, starts, longest)[last], decoded)


def test_results_go_into_the_buffer_given_through_any_strides():
    case, longest = prefill_case(CHUNKS, 4, 2, 32)
    query, *rest = case
    turned = (
        query.transpose(0, 1).contiguous().transpose(0, 1)
    )  # [heads, tokens, head_dim] in memory, as rope leaves it
    out = torch.full((len(query) + 3, 4, 32), 7.0, device=DEVICE)
    assert paged_prefill(turned, *rest, longest, out=out).data_ptr() == out.data_ptr()
    assert_same(out[: len(query)], reference_paged_prefill(*case))
    assert (out[len(query) :] == 7).all()
    wide = torch.zeros(len(query), 4, 64, device=DEVICE)[..., :32]
    decoded = paged_decode(turned[:2], *rest[:2], rest[2][1:3], int32(70, 32), out=wide[:2])
    assert_same(decoded, reference_paged_decode(query[:2], *rest[:2], rest[2][1:3], int32(70, 32)))


@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 64), (3, 80)])
@pytest.mark.parametrize("slot_type", [torch.int32, torch.int64])
def test_cache_write(kv_heads, head_dim, slot_type):
    random = torch.Generator(DEVICE).manual_seed(1)
    new = [torch.randn(kv_heads, 6, head_dim, generator=random, device=DEVICE).transpose(0, 1) for _ in "kv"]
    found = [torch.zeros(4, BLOCK_TOKENS, kv_heads, head_dim, device=DEVICE) for _ in "kv"]
    wanted = [part.clone() for part in found]
    slots = torch.tensor([0, 63, -1, 16, 15, -1], dtype=slot_type, device=DEVICE)
    write_cache(*new, *found, slots)
    reference_write_cache(*new, *wanted, slots)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert found[0].flatten(0, 1).any(-1).any(-1).sum() == 4


def test_misfits_are_refused():
    query, keys, values, tables = paged_case((5,), 4, 2, 32, 1)
    with pytest.raises(ValueError, match="doesn't fit"):
        paged_decode(query[..., :16], keys, values, tables, int32(5))
    with pytest.raises(ValueError, match="one type"):
        paged_decode(query.half(), keys, values, tables, int32(5))
    with pytest.raises(ValueError, match="one per head"):
        paged_decode(query, keys, values, tables, int32(5), Options(sinks=torch.zeros(2, device=DEVICE)))
    with pytest.raises(ValueError, match="too small"):
        paged_decode(query, keys, values, tables, int32(5), workspace=workspace_of(1, 1, 2, 32))
    with pytest.raises(ValueError, match="disagree"):
        paged_prefill(query, keys, values, tables, int32(0, 1), int32(4, 4), 1)
    with pytest.raises(ValueError, match="must be"):
        write_cache(query, query, keys, values, int32(0))


def test_kernels_are_for_gpus():
    assert not available(torch.device("cpu"))
    assert available(torch.device("cuda"))


class TestOnGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
    def test_long_contexts_in_bfloat16(self, head_dim):
        lengths = (4096, 1, 777, 2048)
        case = paged_case(lengths, 8, 2, head_dim, 4, torch.bfloat16)
        options = all_options(8)
        for name in ("plain", "window", "all"):
            found = paged_decode(*case, int32(*lengths), options[name])
            assert_same(found, reference_paged_decode(*case, int32(*lengths), options[name]))

    @pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
    def test_long_chunks_in_bfloat16(self, head_dim):
        case, longest = prefill_case(((0, 1000), (1024, 513), (90, 1)), 8, 2, head_dim, torch.bfloat16)
        options = all_options(8)
        for name in ("plain", "window", "all"):
            assert_same(
                paged_prefill(*case, longest, options[name]), reference_paged_prefill(*case, options[name])
            )

    def test_a_captured_decode_follows_lengths_and_tables(self):
        query, keys, values, tables = paged_case((900, 900, 900), 8, 2, 128, 3, torch.bfloat16)
        lengths, out = int32(1, 1, 1), torch.empty_like(query)
        workspace = DecodeWorkspace.allocate(3, 8, 2, 128, 912, DEVICE)
        paged_decode(query, keys, values, tables, lengths, out=out, workspace=workspace)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            paged_decode(query, keys, values, tables, lengths, out=out, workspace=workspace)
        for now in ((1, 16, 17), (900, 0, 64), (333, 899, 900)):
            lengths.copy_(int32(*now))
            tables.copy_(tables.roll(1, 0))
            query.normal_()
            graph.replay()
            assert_same(out, reference_paged_decode(query, keys, values, tables, lengths))


if not RUNS_HERE:
    for name in [name for name in globals() if name.startswith("test_")]:
        del globals()[name]
