"""Write the keys and values of a step's tokens into the paged cache, in place and in one launch."""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl


def write_cache(
    key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
) -> None:
    """Write key, value [tokens, kv_heads, head_dim] into keys, values [blocks, block_tokens, kv_heads, head_dim].

    slots [tokens] int32 or int64: block · block_tokens + offset of each token; −1 is padding and writes nothing.

    Raises:
        ValueError: shapes or layouts do not match.
    """
    kv_heads, head_dim = keys.shape[2:]
    if not keys.is_contiguous() or not values.is_contiguous() or keys.shape != values.shape:
        raise ValueError("keys and values of the cache must be contiguous and of one shape")
    if key.shape != (len(slots), kv_heads, head_dim) or value.shape != key.shape:
        raise ValueError(
            f"key {tuple(key.shape)} and value {tuple(value.shape)} must be {len(slots)} × {kv_heads} × {head_dim}"
        )
    if key.stride(-1) != 1 or value.stride(-1) != 1:
        raise ValueError("key and value must be contiguous in their last dimension")
    if len(slots):
        _write_kernel[(len(slots),)](
            key,
            value,
            keys,
            values,
            slots,
            *key.stride()[:2],
            *value.stride()[:2],
            HEAD_DIM=head_dim,
            SIZE=kv_heads * head_dim,
            BLOCK=triton.next_power_of_2(kv_heads * head_dim),
            num_warps=4,
        )


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _write_kernel(
    key,
    value,
    keys,
    values,
    slots,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    HEAD_DIM: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        place = tl.arange(0, BLOCK)
        head = place // HEAD_DIM
        dim = place % HEAD_DIM
        exists = place < SIZE
        new_key = tl.load(key + token * key_stride + head * key_head_stride + dim, mask=exists)
        new_value = tl.load(value + token * value_stride + head * value_head_stride + dim, mask=exists)
        tl.store(keys + slot * SIZE + place, new_key.to(keys.dtype.element_ty), mask=exists)
        tl.store(values + slot * SIZE + place, new_value.to(values.dtype.element_ty), mask=exists)
