"""The compiled decode attention against torch's, and the engine without a compiler."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from engine import LLM, SamplingParams
from engine.kernels import cpu_decode
from engine.utils import c_compiler

BLOCK_TOKENS = 16
LENGTHS = (1, 15, 16, 17, 64, 65, 200)
pytestmark = pytest.mark.skipif(
    cpu_decode.decode_kernel(1, 16, BLOCK_TOKENS, torch.float32) is None, reason="no C compiler here"
)


def plain_decode(query, keys, values, tables, length, scaling, window, slopes):
    """One request in plain torch, float32: query [heads, head_dim]."""
    heads, head_dim = query.shape
    positions = torch.arange(length)
    slots = tables[positions // BLOCK_TOKENS].long() * BLOCK_TOKENS + positions % BLOCK_TOKENS
    key, value = (part.flatten(0, 1)[slots].float().transpose(0, 1) for part in (keys, values))
    mask = torch.zeros(heads, 1, length) if slopes is None else slopes[:, None, None] * positions.float()
    if window is not None:
        mask = mask.masked_fill(positions < length - window, float("-inf"))
    return scaled_dot_product_attention(
        query.float().view(heads, 1, head_dim), key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    ).squeeze(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "window", "alibi"),
    [(9, 3, 64, None, False), (4, 4, 80, None, True), (8, 1, 128, 24, False), (2, 1, 16, 1, True)],
)
def test_it_attends_as_torch_does(dtype, heads, kv_heads, head_dim, window, alibi):
    random = torch.Generator().manual_seed(1)
    width = -(-max(LENGTHS) // BLOCK_TOKENS)
    blocks = width * len(LENGTHS)
    keys, values = (
        torch.randn(blocks, BLOCK_TOKENS, kv_heads, head_dim, generator=random).to(dtype) for _ in range(2)
    )
    tables = torch.randperm(blocks, generator=random).to(torch.int32).view(len(LENGTHS), width)
    wide = torch.randn(len(LENGTHS), heads + 2, head_dim, generator=random).to(dtype)
    query = wide[:, :heads]  # rows are further apart than they are long
    slopes = torch.rand(heads, generator=random) if alibi else None
    kernel = cpu_decode.decode_kernel(heads // kv_heads, head_dim, BLOCK_TOKENS, dtype)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    found = cpu_decode.paged_decode(kernel, query, keys, values, tables, lengths, 0.2, window, slopes)
    for row, length in enumerate(LENGTHS):
        wanted = plain_decode(query[row], keys, values, tables[row], length, 0.2, window, slopes)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found[row].float(), wanted, atol=tolerance, rtol=tolerance)
        alone = cpu_decode.paged_decode(
            kernel, *(query[[row]], keys, values, tables[[row]], lengths[[row]]), 0.2, window, slopes
        )
        assert torch.equal(alone[0], found[row])  # the batch makes no difference, not even in rounding


def test_large_scores_and_equal_ones():
    keys = torch.zeros(1, BLOCK_TOKENS, 1, 16)
    keys[0, 3] = 1e4
    values = torch.arange(16.0).view(1, BLOCK_TOKENS, 1, 1).expand(1, BLOCK_TOKENS, 1, 16).contiguous()
    kernel = cpu_decode.decode_kernel(1, 16, BLOCK_TOKENS, torch.float32)
    arrays = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([16], dtype=torch.int32)
    for sign, wanted in ((1.0, 3.0), (-1.0, (120 - 3) / 15), (0.0, 7.5)):
        found = cpu_decode.paged_decode(
            kernel, sign * torch.ones(1, 1, 16), keys, values, *arrays, None, None, None
        )
        torch.testing.assert_close(found, torch.full((1, 1, 16), wanted))


def test_without_a_compiler_the_tokens_are_the_same(monkeypatch):
    def tokens():
        llm = LLM("llama-tiny@dummy")
        prompts = [[i, 7, 9] * 9 for i in range(1, 5)]
        return llm.runner.kernel, [o.token_ids for o in llm.generate(prompts, SamplingParams(max_tokens=20))]

    kernel, with_it = tokens()
    cpu_decode.decode_kernel.cache_clear()
    monkeypatch.setattr(c_compiler.shutil, "which", lambda _name: None)
    no_kernel, without = tokens()
    cpu_decode.decode_kernel.cache_clear()
    assert kernel is not None
    assert no_kernel is None
    assert with_it == without


def test_a_kernel_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setattr(c_compiler, "cache_dir", lambda: tmp_path)
    cpu_decode.decode_kernel.cache_clear()
    assert cpu_decode.decode_kernel(3, 32, 16, torch.float32) is not None
    (library,) = (tmp_path / "kernels").iterdir()
    made = library.stat().st_mtime_ns
    cpu_decode.decode_kernel.cache_clear()
    assert cpu_decode.decode_kernel(3, 32, 16, torch.float32) is not None
    assert [path.stat().st_mtime_ns for path in (tmp_path / "kernels").iterdir()] == [made]
