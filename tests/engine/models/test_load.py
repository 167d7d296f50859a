"""Models load from wherever they come, and what can't be loaded is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import InputError
from engine.inference.llm import LLM
from engine.models import load as models
from engine.sampling.sampler import SamplingParams


def test_the_bundled_model_is_the_real_one() -> None:
    loaded = models.load_model("smollm2-135m")
    shape = models.shape_of(loaded, "smollm2-135m", "float32")
    assert shape.architecture == "LlamaForCausalLM"
    assert shape.parameters == 134_515_008
    assert (shape.layers, shape.hidden_size, shape.kv_heads, shape.head_dim) == (30, 576, 3, 64)
    assert shape.kv_bytes_per_token == 2 * 30 * 3 * 64 * 4
    tokenizer = models.load_tokenizer("smollm2-135m")
    assert "<|im_start|>" in tokenizer.chat_template


def test_a_damaged_conversion_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_CACHE", str(tmp_path))
    made: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        made.append(folder)
        (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 2)

    monkeypatch.setattr(models, "_convert", convert)
    source = tmp_path / "a.gguf"
    source.write_bytes(b"weights")
    folder = models._converted(source)
    assert models._converted(source) == folder
    assert len(made) == 1
    (folder / "model.safetensors").write_bytes(b"cut off")
    assert models._converted(source) == folder
    assert (folder / "model.safetensors").read_bytes() == b"weightsweights"
    assert len(made) == 2
    source.write_bytes(b"other weights")
    assert models._converted(source) != folder
    assert not list((tmp_path / "models").glob(".*")), "no half-written folder stays behind"


def test_a_local_directory_gives_the_same_tokens(tmp_path: Path) -> None:
    original = models.load_model("llama-tiny@dummy", seed=3)
    original.save_pretrained(tmp_path)
    models.load_tokenizer("llama-tiny@dummy").save_pretrained(tmp_path)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    again = LLM(str(tmp_path), kv_cache_tokens=256).generate([1, 2, 3], params)[0]
    first = LLM("llama-tiny@dummy", kv_cache_tokens=256, seed=3).generate([1, 2, 3], params)[0]
    assert again.token_ids == first.token_ids


def test_random_weights_follow_the_seed() -> None:
    first, same, other = (models.load_model("llama-tiny@dummy", seed=seed) for seed in (1, 1, 2))
    weights = [model.get_input_embeddings().weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_published_architecture_has_its_published_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "free_bytes", lambda device: 10**12)
    for name, parameters in {  # as their hub pages say
        "bloom-560m": 559_214_592,
        "bloom-7b1": 7_069_016_064,
        "llama-1b": 1_235_814_400,
        "llama-8b": 8_030_261_248,
        "qwen2.5-14b": 14_770_033_664,
        "qwen2.5-32b": 32_763_876_352,
        "mixtral-8x7b": 46_702_792_704,
        "qwen3-30b-a3b": 30_532_122_624,
    }.items():
        shape = models.shape_of(models._random_model(name, torch.bfloat16, "meta", 0), name, "bfloat16")
        assert shape.parameters == parameters, name
        assert shape.weight_bytes == 2 * parameters


def test_a_model_that_does_not_fit_says_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "free_bytes", lambda device: 2 * 10**9)
    with pytest.raises(
        InputError, match=r"bloom-7b1@dummy: needs 28\.3 GB .* 26\.3 GB more than the 2\.0 GB"
    ):
        models.load_model("bloom-7b1@dummy")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing-of-this@dummy", "allowed architectures are"),
        ("nowhere.gguf", "no such GGUF file"),
        ("nobody/has-this-model", "nobody/has-this-model"),
    ],
)
def test_what_cannot_be_loaded_is_named(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        models.load_model(name)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no config\.json"):
        models.load_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="found no weights"):
        models.load_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="cannot be loaded"):
        models.load_model(str(tmp_path))


def saved(folder: Path, **changes: torch.Tensor | None) -> str:
    """llama-tiny in a folder, some of its weights changed, None: left out."""
    models.load_model("llama-tiny@dummy").save_pretrained(folder)
    weights = load_file(folder / "model.safetensors") | changes
    kept = {key: value for key, value in weights.items() if value is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_missing_and_mismatched_weights_are_named(tmp_path: Path) -> None:
    changes = {"model.norm.weight": torch.ones(32), "model.layers.1.mlp.up_proj.weight": None}
    with pytest.raises(InputError) as error:
        models.load_model(saved(tmp_path, **changes))
    assert "model.layers.1.mlp.up_proj.weight is missing" in str(error.value)
    assert "model.norm.weight is [32], the configuration says [64]" in str(error.value)
    assert "\n" not in str(error.value)


def test_tied_weights_are_not_missing_and_unknown_ones_do_no_harm(tmp_path: Path) -> None:
    name = saved(tmp_path, **{"lm_head.weight": None, "model.extra": torch.ones(3)})
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(InputError, match=r"lm_head\.weight is missing"):
        models.load_model(name)
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    loaded = models.load_model(name)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    name = saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"found pytorch_model\.bin; allowed are \*\.safetensors"):
        models.load_model(name)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    name = saved(tmp_path)
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).write_text('')\n"
    code += "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n"
    (tmp_path / "theirs.py").write_text(code)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be loaded"):
        models.load_model(name)
    assert not ran.exists()


@pytest.mark.parametrize(("dtype", "number_bytes"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("shard", ["5GB", "200KB"])
def test_a_folder_that_does_not_fit_says_so_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, number_bytes: int, shard: str
) -> None:
    model = models.load_model("llama-tiny@dummy")
    model.save_pretrained(tmp_path, max_shard_size=shard)
    needed = number_bytes * sum(parameter.numel() for parameter in model.parameters())
    assert models._needed_bytes(str(tmp_path), models.DTYPES[dtype]) == needed
    monkeypatch.setattr(models, "free_bytes", lambda device: needed - 1)
    with pytest.raises(InputError, match=f"needs 0.0 GB in {dtype}"):
        models.load_model(str(tmp_path), dtype)
    monkeypatch.setattr(models, "free_bytes", lambda device: needed)
    models.load_model(str(tmp_path), dtype)


def test_a_gguf_file_that_cannot_be_converted_in_memory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((250, 1000), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setenv("FLYWHEEL_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "free_bytes", lambda device: 10**6)
    with pytest.raises(InputError, match=r"needs 0\.0 GB in float32 while it is converted"):
        models.load_model(str(tmp_path / "a.gguf"))


def test_longrope_is_served_up_to_where_its_frequencies_change() -> None:
    from transformers import AutoConfig

    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    sizes = {"max_position_embeddings": 512, "original_max_position_embeddings": 128}
    config = AutoConfig.for_model(
        "phi3", hidden_size=64, num_attention_heads=4, pad_token_id=0, rope_parameters=rope, **sizes
    )
    assert models._context_tokens(config) == 128
    assert models._context_tokens(AutoConfig.for_model("llama", max_position_embeddings=512)) == 512


def test_an_architecture_that_cannot_be_served_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("the check is the same, the model would be large")
    with pytest.raises(InputError, match="dtype 'int3'"):
        models.load_model("llama-tiny@dummy", dtype="int3")
    with pytest.raises(InputError, match="device 'cuda'"):
        models.load_model("llama-tiny@dummy", device="cuda")
