"""Matrix products on a CPU with weights laid out once for the products that read them.

oneDNN keeps a weight in the order in which its kernels read it; torch's own `Linear` hands the plain matrix to MKL
at every call. Measured on two cores of an AMD EPYC (Zen 5), float32, the products of SmolLM2-135M: 26 ms for one row
with MKL, 9–12 ms packed (the memory's speed); 580 ms against 245 ms for 512 rows.

int8: each output's weights are rounded to 8 bits with a scale of their own, each token's activations too, and the
products are of integers (the scheme of LLM.int8(), Dettmers et al. 2022, without its outlier columns). A token's
scale depends on nothing else in the batch. The vocabulary's product takes activations of 15 bits, as two rows of 8:
it decides between close candidates.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.errors import InputError

_LEVELS = 127


def has_packed_products(tensor: torch.Tensor) -> bool:
    """Whether oneDNN multiplies tensors of this type on this machine."""
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
    """A linear layer with weights of 8 bits and activations rounded to 8 bits per row, or to 15 if `fine`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, fine: bool = False) -> None:
        """`weight` [out, in], `bias` [out] or none."""
        super().__init__()
        self.scales = weight.abs().amax(dim=1).clamp_min(1e-12).float() / _LEVELS
        rounded = (weight / self.scales[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zero_points = torch.zeros(len(self.scales), dtype=torch.int32)
        self.bias = bias
        self.fine = fine

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [..., in], float32, to [..., out]."""
        flat = rows.reshape(-1, rows.shape[-1])
        largest = flat.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12)
        levels = flat * (_LEVELS / largest)
        if self.fine:
            coarse = levels.round()
            both = self._product(torch.cat([coarse, (levels - coarse) * (2 * _LEVELS)]))
            out = both[: len(flat)] + both[len(flat) :] / (2 * _LEVELS)
        else:
            out = self._product(levels)
        out *= largest
        if self.bias is not None:
            out += self.bias
        return out.view(*rows.shape[:-1], -1)

    def _product(self, levels: torch.Tensor) -> torch.Tensor:
        unsigned = (levels + 128.5).to(torch.uint8)  # cut off after adding a half: rounded
        return torch.ops.onednn.qlinear_pointwise.default(
            unsigned, 1 / _LEVELS, 128, self.weight, self.scales, self.zero_points, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip


def pack_linears(model: Any, int8: bool = False) -> None:
    """Replace the linear layers of a model on a CPU by packed or 8-bit ones, one by one (the plain weights go).

    Raises:
        InputError: 8-bit products asked for on a processor without them (AVX512-VNNI).
    """
    if int8:
        require_int8()
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            weight, bias = weight_of(child)
            if weight is not None and (int8 or has_packed_products(weight)):
                packed = Int8Linear(weight, bias, fine=child is head) if int8 else PackedLinear(weight, bias)
                setattr(module, name, packed)


def require_int8() -> None:
    """Raise an InputError where the processor has no products of 8-bit integers that can't overflow."""
    if not torch.cpu._is_vnni_supported():
        raise InputError("dtype 'int8': this processor has no AVX512-VNNI; allowed here: float32, bfloat16")


def weight_of(module: torch.nn.Module) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The weight [out, in] and bias of a linear layer; none of anything else."""
    from transformers.pytorch_utils import Conv1D

    if type(module) is torch.nn.Linear:
        return module.weight.detach(), None if module.bias is None else module.bias.detach()
    if type(module) is Conv1D:
        return module.weight.detach().t(), module.bias.detach()
    return None, None
