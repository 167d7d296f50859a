"""Models load from wherever they come, and what can't be loaded is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine import model as models
from engine.errors import InputError
from engine.llm import LLM
from engine.sampling import SamplingParams


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
    bloom = models._random_model("bloom-560m", torch.float32, "meta", 0)
    shape = models.shape_of(bloom, "bloom-560m@dummy", "bfloat16")
    assert shape.parameters == 559_214_592  # BigScience model page: 559,214,592
    assert shape.weight_bytes == 2 * shape.parameters


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
    with pytest.raises(InputError, match="cannot be loaded"):
        models.load_model(str(tmp_path))


def test_an_architecture_that_cannot_be_served_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("the check is the same, the model would be large")
    with pytest.raises(InputError, match="dtype 'int3'"):
        models.load_model("llama-tiny@dummy", dtype="int3")
    with pytest.raises(InputError, match="device 'cuda'"):
        models.load_model("llama-tiny@dummy", device="cuda")
