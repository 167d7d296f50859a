"""Matrix products of a served model: weights laid out once for the products that read them, or in 8 bits.

On a CPU oneDNN keeps a weight in the order in which its kernels read it; torch's own `Linear` hands the plain matrix
to MKL at every call. Measured on two cores of an AMD EPYC (Zen 5), float32, the products of SmolLM2-135M: 26 ms for
one row with MKL, 9–12 ms packed (the memory's speed); 580 ms against 245 ms for 512 rows.

int8 (CPU): each output's weights are rounded to 8 bits with a scale of their own, each token's activations too, and
the products are of integers (the scheme of LLM.int8(), Dettmers et al. 2022, without its outlier columns). Where
rounding costs the most, activations have 15 bits, as two rows of 8: in the vocabulary's product, which decides between
close candidates, and in queries and keys, which are multiplied with each other. fp8 (CUDA):
the same with E4M3 numbers (Micikevicius et al. 2022). A token's scale depends on nothing else in the batch.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from engine.errors import InputError

# Number formats of weights only, and what everything else is computed in beside them.
COMPUTE_DTYPES = {"int8": "float32", "fp8": "bfloat16"}
_LEVELS = 127
# What families call the products for queries, keys and values.
_QUERIES_AND_KEYS = {"qkv", "q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn"}


def has_packed_products(tensor: torch.Tensor) -> bool:
    """oneDNN multiplies tensors of this type on this machine."""
    if tensor.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if tensor.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return tensor.dtype == torch.float32


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """rows [..., in] · weightᵀ [out, in] + bias by oneDNN; `weight` packed, or plain and contiguous."""
    return torch.ops.mkldnn._linear_pointwise.default(rows, weight, bias, "none", [], "")


class PackedLinear(torch.nn.Module):
    """A linear layer with its weight in oneDNN's order."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """`weight` [out, in], `bias` [out] or none."""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.bias = bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [..., in] to [..., out]."""
        return product(rows, self.weight, self.bias)


class Int8Linear(torch.nn.Module):
    """A linear layer with 8-bit weights and activations rounded to 8 bits per row, or to 15 if `fine`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, fine: bool = False) -> None:
        """`weight` [out, in], `bias` [out] or none."""
        super().__init__()
        scales = weight.abs().amax(dim=1).clamp_min(1e-12).double() / _LEVELS
        zeros = torch.zeros(len(scales), dtype=torch.long)
        # These tensors are to leave torch one day; its fastest products take them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight.float(), scales, zeros, 0, torch.qint8)
            self.weight = torch.ops.quantized.linear_prepack(rounded, None)
        self.bias = bias
        self.fine = fine

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [..., in], float32, to [..., out]."""
        flat = rows.reshape(-1, rows.shape[-1])
        largest = flat.abs().amax(-1, keepdim=True).clamp_min_(1e-12)
        levels = flat / largest
        if self.fine:
            coarse = (levels * _LEVELS).round_().div_(_LEVELS)
            both = _int8_product(torch.cat([coarse, (levels - coarse) * (2 * _LEVELS)]), self.weight)
            out = both[: len(flat)].add_(both[len(flat) :], alpha=1 / (2 * _LEVELS))
        else:
            out = _int8_product(levels, self.weight)
        out.mul_(largest)
        if self.bias is not None:
            out += self.bias
        return out.view(*rows.shape[:-1], out.shape[-1])


def _int8_product(levels: torch.Tensor, weight: Any) -> torch.Tensor:
    """levels [rows, in] between -1 and 1, rounded to ±127 steps, times the 8-bit weight."""
    # `_op`: past a check of the arguments in Python that takes as long as a small product.
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default._op(
        levels, 1 / _LEVELS, _LEVELS, weight
    )


class Fp8Linear(torch.nn.Module):
    """A linear layer with weights in E4M3, scaled per output, and activations in E4M3, scaled per row."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """`weight` [out, in], both multiples of 16; `bias` [out] or none."""
        super().__init__()
        self.scales, self.weight = _to_fp8(weight)
        self.bias = bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [..., in], bfloat16, to [..., out]."""
        scales, flat = _to_fp8(rows.reshape(-1, rows.shape[-1]))
        out = torch._scaled_mm(
            flat, self.weight.t(), scales, self.scales.t(), self.bias, out_dtype=rows.dtype
        )
        return out.view(*rows.shape[:-1], out.shape[-1])


def _to_fp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales [rows, 1] and the rows divided by them, in E4M3."""
    scales = rows.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return scales, (rows / scales).to(torch.float8_e4m3fn)


def prepare_products(model: Any, weights: str | None = None) -> None:
    """Replace the linear layers of a model, one by one, so that the plain weights are freed.

    On a CPU by packed ones; with `weights` "int8" (CPU) or "fp8" (CUDA) by quantised ones. The vocabulary projection
    stays in bfloat16 beside fp8.
    """
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            weight, bias = weight_of(child)
            if weight is None:
                continue
            if weights == "int8":
                fine = child is head or name in _QUERIES_AND_KEYS
                setattr(module, name, Int8Linear(weight, bias, fine))
            elif weights == "fp8" and child is not head and _fits_fp8(weight):
                setattr(module, name, Fp8Linear(weight, bias))
            elif weights is None and has_packed_products(weight):
                setattr(module, name, PackedLinear(weight, bias))


def _fits_fp8(weight: torch.Tensor) -> bool:
    return weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0


def weight_bytes(model: Any, weights: str | None = None) -> int:
    """Bytes of a plain model's parameters after `prepare_products` with these weights."""
    plain = sum(parameter.nbytes for parameter in model.parameters())
    if weights is None:
        return plain
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    for module in model.modules():
        weight, _ = weight_of(module)
        if weight is not None and (weights == "int8" or (module is not head and _fits_fp8(weight))):
            plain -= (0 if module is head and tied else weight.nbytes) - weight.numel()
    return plain


def require_weights(dtype: str, device: str) -> None:
    """Check that the device can multiply these 8-bit weights without overflow.

    Raises:
        InputError: it cannot.
    """
    if dtype == "int8" and not (device == "cpu" and torch.cpu._is_vnni_supported()):
        raise InputError(
            "dtype 'int8': allowed on a processor with VNNI only; allowed here: float32, bfloat16"
        )
    on_cuda = device.startswith("cuda") and torch.cuda.is_available()
    if dtype == "fp8" and not (on_cuda and torch.cuda.get_device_capability(device) >= (8, 9)):
        raise InputError(
            "dtype 'fp8': allowed on CUDA devices from Ada and Hopper on; allowed here: bfloat16"
        )


def weight_of(module: torch.nn.Module) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Weight [out, in] and bias of a linear layer; None of any other module."""
    from transformers.pytorch_utils import Conv1D

    if type(module) is torch.nn.Linear:
        return module.weight.detach(), None if module.bias is None else module.bias.detach()
    if type(module) is Conv1D:
        conv: Any = module
        return conv.weight.detach().t(), conv.bias.detach()
    return None, None
