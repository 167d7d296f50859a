"""The engine's matrix products are those of torch, up to what their number format rounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from engine import LLM, SamplingParams
from engine.errors import InputError
from engine.layers.fused_layer import fuse_layers
from engine.layers.linear import (
    Fp8Linear,
    Int8Linear,
    PackedLinear,
    _to_fp8,
    has_packed_products,
    prepare_products,
    require_weights,
    weight_bytes,
    weight_of,
)

ROWS = [1, 2, 3, 7, 64]
needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="the processor has no VNNI")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, over all numbers."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


# --- packed ---


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_that_of_torch(rows: int, dtype: torch.dtype, bias: bool) -> None:
    if not has_packed_products(torch.empty(0, dtype=dtype)):
        pytest.skip(f"oneDNN has no {dtype} here")
    plain = torch.nn.Linear(72, 40, bias=bias).to(dtype)
    packed = PackedLinear(*weight_of(plain))  # type: ignore[arg-type]
    for given in (
        randn(rows, 72),
        randn(2, rows, 72),
        randn(72, rows).t(),
        randn(rows, 144)[:, ::2],
        randn(rows, 3, 72)[:, 1],
    ):
        given = given.to(dtype)
        wanted = linear(given.double(), plain.weight.double(), plain.bias.double() if bias else None)
        got = packed(given)
        assert got.dtype == dtype
        assert got.shape == wanted.shape
        assert error(got, wanted) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("rows", ROWS)
def test_a_packed_product_is_that_of_conv1d(rows: int) -> None:
    from transformers.pytorch_utils import Conv1D

    plain = Conv1D(40, 72)
    plain.bias.copy_(randn(40))
    packed = PackedLinear(*weight_of(plain))  # type: ignore[arg-type]
    given = randn(1, rows, 72)
    torch.testing.assert_close(packed(given), plain(given), rtol=1e-5, atol=1e-6)


# --- int8 ---


@needs_vnni
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_product_is_close(rows: int, bias: bool) -> None:
    weight, given = randn(96, 256, seed=1) * torch.logspace(-3, 3, 96)[:, None], randn(rows, 256)
    offset = randn(96, seed=2) * torch.logspace(-3, 3, 96) if bias else None
    exact = linear(given.double(), weight.double(), None if offset is None else offset.double())
    scale = weight.norm(dim=1)  # the outputs' own sizes: each is rounded by itself
    errors = [error(Int8Linear(weight, offset, fine)(given) / scale, exact / scale) for fine in (False, True)]
    # Uniform rounding of normal numbers, largest of 256 about 3σ: 3 / 127 / √12 = 0.7 %, of both 1 %.
    assert 0.003 < errors[1] < 0.009
    assert errors[0] < 0.014


@needs_vnni
def test_int8_needs_each_output_its_own_scale_and_each_row_its_own() -> None:
    weight, given = randn(32, 64, seed=1), randn(5, 64)
    plain = Int8Linear(weight)(given)
    powers = torch.tensor([2.0**power for power in range(-8, 8)] * 2)
    torch.testing.assert_close(Int8Linear(weight * powers[:, None])(given), plain * powers, rtol=1e-6, atol=0)
    rows = torch.tensor([1e-6, 1.0, 1e6, 0.0, 3.0])[:, None]
    torch.testing.assert_close(Int8Linear(weight)(given * rows), plain * rows, rtol=1e-2, atol=1e-7)


@needs_vnni
@pytest.mark.parametrize("fine", [False, True])
def test_an_int8_row_does_not_feel_the_others(fine: bool) -> None:
    weight, bias = randn(100, 576, seed=1), randn(100, seed=2)
    layer = Int8Linear(weight, bias, fine)
    given = randn(64, 576)
    given[7] *= 1e4
    given[9, 3] = 300.0  # an outlier
    given[11] = 0.0
    together = layer(given)
    for row in range(64):
        assert torch.equal(layer(given[row : row + 1])[0], together[row])
    for rows in ROWS:
        assert torch.equal(layer(given[-rows:]), together[-rows:])
    assert torch.equal(together[11], bias)
    wanted = linear(given.double(), weight.double(), bias.double())
    assert error(together[9], wanted[9]) < (0.01 if fine else 0.1)
    assert torch.isfinite(together).all()


@needs_vnni
@pytest.mark.parametrize("fine", [False, True])
def test_an_int8_product_takes_rows_of_any_shape(fine: bool) -> None:
    layer = Int8Linear(randn(48, 64, seed=1), randn(48, seed=2), fine)
    given = randn(64, 6).t()
    assert not given.is_contiguous()
    assert torch.equal(layer(given), layer(given.contiguous()))
    batch = randn(5, 2, 64).transpose(0, 1)
    assert torch.equal(layer(batch), layer(batch.contiguous()))
    assert layer(batch).shape == (2, 5, 48)
    assert torch.equal(layer(given[2]), layer(given)[2])
    for shape in ((0, 64), (1, 0, 64)):
        assert layer(torch.empty(shape)).shape == (*shape[:-1], 48)
    before = given.clone()
    layer(given)
    assert torch.equal(given, before), "the rows were changed"


@needs_vnni
def test_fine_activations_are_many_times_as_exact() -> None:
    weight = torch.randint(-127, 128, (64, 256), generator=torch.Generator().manual_seed(0)).float()
    weight[:, 0] = 127.0  # so that whole numbers are the levels
    given = randn(16, 256)
    wanted = given.double() @ weight.double().t()
    coarse, fine = (error(Int8Linear(weight, None, fine)(given), wanted) for fine in (False, True))
    assert 0.003 < coarse < 0.012
    assert fine < coarse / 20
    assert fine < 1e-4  # 15 bits


@needs_vnni
def test_a_step_that_samples_nothing_runs_in_int8() -> None:
    llm = LLM("llama-tiny@dummy", dtype="int8", kv_cache_tokens=512, max_step_tokens=16)
    wide = LLM("llama-tiny@dummy", dtype="int8", kv_cache_tokens=512)
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    prompt = list(range(50))
    assert llm.generate(prompt, params)[0].token_ids == wide.generate(prompt, params)[0].token_ids


# --- fp8 ---


def fp8(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Fp8Linear:
    layer = Fp8Linear(weight.bfloat16(), None if bias is None else bias.bfloat16())
    try:
        layer(torch.zeros(2, weight.shape[1], dtype=torch.bfloat16))
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"no fp8 product here: {str(error).splitlines()[0][:80]}")
    return layer


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_an_fp8_product_is_close(rows: int, bias: bool) -> None:
    weight, given = randn(96, 256, seed=1).bfloat16(), randn(rows, 256).bfloat16()
    offset = randn(96, seed=2).bfloat16() if bias else None
    got = fp8(weight, offset)(given)
    assert got.dtype == torch.bfloat16
    wanted = linear(given.double(), weight.double(), None if offset is None else offset.double())
    # 3 bits of mantissa: a rounding error of up to 1/16, uniform over a binade about 2.6 %, of both 3.7 %.
    assert 0.01 < error(got, wanted) < 0.05


def test_an_fp8_row_does_not_feel_the_others() -> None:
    weight, bias = randn(96, 256, seed=1), randn(96, seed=2).bfloat16()
    layer = fp8(weight, bias)
    given = randn(64, 256).bfloat16()
    given[7] *= 1e4
    given[9, 3] = 300.0
    given[11] = 0.0
    together = layer(given)
    scales, levels = _to_fp8(given)
    for row in range(64):
        its_scales, its_levels = _to_fp8(given[row : row + 1])
        assert torch.equal(its_scales[0], scales[row])
        assert torch.equal(its_levels[0].float(), levels[row].float())
        # The sums may be taken in another order: the last bit of bfloat16.
        alone = layer(given[row : row + 1])[0]
        torch.testing.assert_close(alone, together[row], rtol=2**-7, atol=2**-9)
    assert torch.equal(together[11], bias)
    assert torch.isfinite(together).all()
    small = fp8(weight)
    torch.testing.assert_close(small(given * 2**-20), small(given) * 2**-20, rtol=1e-2, atol=0)


def test_an_fp8_product_takes_rows_of_any_shape() -> None:
    layer = fp8(randn(48, 64, seed=1), randn(48, seed=2))
    given = randn(64, 6).bfloat16().t()
    assert torch.equal(layer(given), layer(given.contiguous()))
    batch = randn(5, 2, 64).bfloat16().transpose(0, 1)
    assert torch.equal(layer(batch), layer(batch.contiguous()))
    assert layer(batch).shape == (2, 5, 48)


# --- whole models ---


def small_model(family: str, dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    common: dict[str, Any]
    if family == "gpt2":
        common = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}
    else:
        common = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
        common |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    with torch.inference_mode(False):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, **(common | sizes)), dtype=dtype
        ).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def kept_bytes(model: Any) -> int:
    """What is kept, each piece of memory once: parameters, biases, 8-bit weights; scales are left out."""
    pieces: dict[int, int] = {}
    for module in model.modules():
        tensors = [
            *module._parameters.values(),
            *(getattr(module, name, None) for name in ("weight", "bias")),
        ]
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                # A packed weight tells its logical size.
                pieces[id(tensor)] = tensor.numel() * tensor.element_size()
        if isinstance(module, Int8Linear):
            weight, _ = torch.ops.quantized.linear_unpack(module.weight)
            pieces[id(module)] = weight.numel() * weight.element_size()
    return sum(pieces.values())


MODELS = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("gpt2", {}),
    ("llama", {"intermediate_size": 100, "vocab_size": 130}),  # fp8 wants multiples of 16
]


ODD = {"gate_proj", "up_proj", "down_proj", "gate_up", "down"}


@pytest.mark.parametrize(("family", "sizes"), MODELS)
@pytest.mark.parametrize("weights", [None, "int8", "fp8"])
@pytest.mark.parametrize("fused", [True, False])
def test_every_product_is_replaced_and_its_bytes_counted(
    family: str, sizes: dict, weights: str | None, fused: bool
) -> None:
    if weights == "int8" and not torch.cpu._is_vnni_supported():
        pytest.skip("the processor has no VNNI")
    model = small_model(family, torch.bfloat16 if weights == "fp8" else torch.float32, **sizes)
    tokens = torch.arange(12).unsqueeze(0)
    wanted = model(tokens).logits if not fused else None
    predicted = weight_bytes(model, weights)
    if fused:
        fuse_layers(model)
    linears = {name for name, module in model.named_modules() if weight_of(module)[0] is not None}
    assert "lm_head" in linears
    prepare_products(model, weights)
    modules = dict(model.named_modules())
    kind = {None: PackedLinear, "int8": Int8Linear, "fp8": Fp8Linear}[weights]
    replaced = {name for name in linears if isinstance(modules[name], kind)}
    left = {"lm_head"} if weights == "fp8" else set()
    if weights == "fp8" and sizes.get("intermediate_size") == 100:
        left |= {name for name in linears if name.rpartition(".")[2] in ODD}
    assert linears - replaced == left
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    kept = kept_bytes(model)
    if weights is None and model.config.tie_word_embeddings:
        # What a step reads is counted: the embedding, of which it reads a few rows, is beside the packed head.
        kept -= model.get_input_embeddings().weight.nbytes
    assert kept == predicted
    if weights == "int8":
        fine = {name for name in replaced if modules[name].fine}
        asked = ("qkv", "q_proj", "k_proj", "v_proj", "attn.c_attn", "lm_head")
        assert fine == {name for name in replaced if name.endswith(asked)}
    if wanted is not None:
        assert error(model(tokens).logits, wanted) < {None: 1e-5, "int8": 0.05, "fp8": 0.2}[weights]


def test_half_precision_on_a_cpu_stays_as_it_is() -> None:
    model = small_model("llama", torch.float16)
    prepare_products(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


@pytest.mark.parametrize(
    ("dtype", "device", "said"),
    [
        ("fp8", "cpu", "'fp8': allowed on CUDA devices from Ada and Hopper on"),
        ("int8", "cuda", "'int8': allowed on a processor with VNNI only"),
    ],
)
def test_where_eight_bits_are_not_multiplied_is_said(dtype: str, device: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        require_weights(dtype, device)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=said):
        LLM("llama-tiny@dummy", dtype=dtype, device=device)


def test_eight_bits_without_the_machine_for_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(InputError, match="VNNI only; allowed here: float32, bfloat16"):
        require_weights("int8", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="'fp8': allowed on CUDA"):
        require_weights("fp8", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, refused in (((8, 0), True), ((8, 9), False), ((9, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, its=capability: its)
        if refused:
            with pytest.raises(InputError, match="Ada and Hopper"):
                require_weights("fp8", "cuda")
        else:
            require_weights("fp8", "cuda:0")
    for plain in ("float32", "bfloat16", "float16"):
        require_weights(plain, "cpu")
