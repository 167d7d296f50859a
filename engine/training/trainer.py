"""Train a causal language model: AdamW, cosine schedule, validation, checkpoints, and what the run took.

The second stage of the life of a language model. The loss is transformers' own `forward(labels=...)`: the
mean negative log-likelihood of the next token, in nats. Throughput is compared with the machine's peak as
model FLOP utilisation, MFU = 6·N · tokens/s / peak FLOP/s (Chowdhery et al. 2022, arXiv:2204.02311,
appendix B, without the term of attention).
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.errors import InputError
from engine.models.build import build_model, parameters_in_products
from engine.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    restore_training,
    save_checkpoint,
    training_tensors,
)
from engine.training.config import TrainConfig, TrainReport
from engine.training.data import PreparedData, Tokens, prepare, read_documents, train_tokenizer
from engine.training.optimizer import (
    batch_rows,
    evaluate,
    learning_rate,
    new_optimizer,
    optimizer_step,
    peak_flops,
)
from engine.training.python_docs import MAX_MB, standard_library
from engine.training.scaling_law import TRAINING_FLOP, training_flop
from engine.utils.memory import peak_memory_bytes, reset_peak_memory
from engine.utils.message import Message
from engine.utils.progress import Progress, part_of

DEFAULT_TOKENIZER = "smollm2-135m"
OnStep = Callable[[int, float | None, float | None], None]  # step, its loss, validation loss after it


@dataclass
class _State:
    """Where a run stands; JSON beside the tensors of a checkpoint."""

    step: int = 0
    train_losses: list[float] = field(default_factory=list)
    validation_losses: list[tuple[int, float]] = field(default_factory=list)
    timed_tokens: int = 0  # the first step of a process is warm-up and not timed, unless there is no other
    timed_s: float = 0.0
    training_s: float = 0.0
    wall_s: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def best(self) -> tuple[int, float]:
        return min(self.validation_losses, key=lambda entry: entry[1])


def run_training(
    paths: Sequence[str | Path] | None,
    out_dir: str | Path,
    config: TrainConfig,
    tokenizer_name: str | None = None,
    progress: Progress | None = None,
    *,
    resume: bool = False,
    library_mb: float = MAX_MB,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Texts in, model out: read, prepare, train, evaluate; write model, tokenizer and `report.json`.

    Args:
        paths: text files, JSONL files, folders; None: the standard library of this Python.
        out_dir: afterwards a folder that `AutoModelForCausalLM.from_pretrained` and `LLM` load.
        config: the run.
        tokenizer_name: what `engine.models.load` loads (None: that of `config.model`, else the bundled one), or
            "bpe:SIZE" for a byte-level BPE of that many tokens learnt from the texts.
        progress: called with the fraction done and what is being done.
        resume: continue from the last checkpoint in `out_dir`, if there is one.
        library_mb: million characters of the standard library at most, where that is the text.
        on_step: called with each step's number, its loss, and the validation loss where it was measured (at step 0 too,
            which has no other).

    Raises:
        InputError: bad texts, a bad configuration, or a checkpoint of another run.
    """
    out_dir = Path(out_dir)
    documents = standard_library(library_mb) if paths is None else read_documents(paths)
    name = tokenizer_name or config.model or DEFAULT_TOKENIZER
    tokenizer = _tokenizer(name, [document.text for document in documents])
    data = prepare(
        documents,
        tokenizer,
        config.sequence_tokens,
        validation_fraction=config.validation_fraction,
        progress=part_of(progress, 0.0, 0.1),
    )
    model = new_model(config, data)
    report = train(
        config,
        data,
        part_of(progress, 0.1, 1.0),
        out_dir=out_dir,
        model=model,
        resume=resume,
        on_step=on_step,
    )
    save_model(out_dir, model, tokenizer)
    report.save(out_dir / "report.json")
    return report


def train(
    config: TrainConfig,
    data: PreparedData,
    progress: Progress | None = None,
    *,
    out_dir: str | Path | None = None,
    model: Any = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Train on `data.train`, validate on `data.validation`.

    Args:
        config: the run.
        data: what `engine.training.data.prepare` gave.
        progress: called after every step.
        out_dir: where checkpoints go, below `checkpoints/`; needed when `config.checkpoint_every` is set.
        model: a causal language model of transformers to train in place; one after `config` when None.
        resume: continue from the last checkpoint in `out_dir`. The losses are then those of a run that was
            never interrupted.
        on_step: as for `run_training`.

    Raises:
        InputError: the model lacks tokens of the data, the loss is no longer a number, or the checkpoint is
            of another run.
    """
    device = torch.device(config.device)
    if config.checkpoint_every and out_dir is None:
        raise InputError("training: checkpoint_every is set, but there is no out_dir to write to")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else []):
        model = (new_model(config, data) if model is None else model).to(device)
        if model.config.vocab_size < data.vocab_size:
            raise InputError(
                f"training: the tokenizer has {data.vocab_size} tokens, the model {model.config.vocab_size}"
            )
        folder = Path(out_dir) / "checkpoints" if out_dir else None
        return _train(config, data, progress, model, folder, resume, on_step or (lambda *_: None))


def _train(
    config: TrainConfig,
    data: PreparedData,
    progress: Progress | None,
    model: Any,
    folder: Path | None,
    resume: bool,
    on_step: OnStep,
) -> TrainReport:
    optimizer = new_optimizer(model, config)
    fingerprint = _fingerprint(config, data)
    state, best_weights = _State(), None
    saved = checkpoints(folder) if folder else []
    if saved and resume:
        state, best_weights = _resume(saved[-1], model, optimizer, fingerprint)
    for path in [] if resume else saved:
        shutil.rmtree(path)  # of an earlier run; it must not be resumed from by mistake
    validation = data.validation[: config.max_validation_sequences]
    evaluate_every = config.evaluate_every or max(config.steps // 10, 1)
    started = time.perf_counter() - state.wall_s
    reset_peak_memory(torch.device(config.device))
    if not state.validation_losses:
        state.validation_losses.append((0, evaluate(model, validation, config)))
        on_step(0, None, state.validation_losses[0][1])
    first, stopped_early = state.step + 1, False
    for step in range(first, config.steps + 1):
        begun = time.perf_counter()
        loss = _step(model, optimizer, data.train, step, config, state)
        elapsed = time.perf_counter() - begun
        state.step, state.training_s = step, state.training_s + elapsed
        state.train_losses.append(loss)
        if step > first or config.steps == 1:
            state.timed_s, state.timed_tokens = (
                state.timed_s + elapsed,
                state.timed_tokens + config.step_tokens,
            )
        if step % evaluate_every == 0 or step == config.steps:
            state.validation_losses.append((step, evaluate(model, validation, config)))
            if config.patience and state.best[0] == step:
                best_weights = {name: value.detach().clone() for name, value in model.named_parameters()}
            since_best = sum(done > state.best[0] for done, _ in state.validation_losses)
            stopped_early = config.patience is not None and since_best >= config.patience
        measured_at, measured = state.validation_losses[-1]
        on_step(step, loss, measured if measured_at == step else None)
        state.wall_s = time.perf_counter() - started
        if (
            folder
            and config.checkpoint_every
            and (step % config.checkpoint_every == 0 or step == config.steps)
        ):
            tensors = training_tensors(model, optimizer)
            tensors |= {f"best.{name}": value for name, value in (best_weights or {}).items()}
            save_checkpoint(folder, step, tensors, {"fingerprint": fingerprint, **asdict(state)})
        if progress is not None:
            text = Message(
                "step {step} of {steps}, loss {loss:.3f}", step=step, steps=config.steps, loss=loss
            )
            progress(step / config.steps, text)
        if stopped_early:
            break
    if best_weights:  # early stopping keeps the weights that validated best
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(best_weights[name])
    state.wall_s = time.perf_counter() - started
    return _report(config, data, model, state, stopped_early)


def _step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    sequences: Tokens,
    step: int,
    config: TrainConfig,
    state: _State,
) -> float:
    """One optimizer step (1-based) and its mean loss; what is random in it depends on seed and step alone."""
    torch.manual_seed(int(np.random.SeedSequence([config.seed, step]).generate_state(1)[0]))
    rows = batch_rows(step, len(sequences), config)
    batches = [
        torch.from_numpy(sequences[chosen].astype(np.int64))
        for chosen in np.split(rows, config.accumulation_steps)
    ]
    rate = learning_rate(step, config)
    loss = optimizer_step(model, optimizer, batches, rate, config)
    if not math.isfinite(loss):
        raise InputError(f"training: the loss is {loss} at step {step}; lower learning_rate ({rate:g})")
    state.peak_memory_bytes = max(state.peak_memory_bytes, peak_memory_bytes(torch.device(config.device)))
    return loss


def _report(
    config: TrainConfig, data: PreparedData, model: Any, state: _State, stopped_early: bool
) -> TrainReport:
    import transformers

    peak, peak_source = peak_flops(config)
    in_products, yields = parameters_in_products(model), data.report
    tokens = state.step * config.step_tokens
    tokens_per_s = state.timed_tokens / state.timed_s if state.timed_s else 0.0
    best_step, best_loss = state.best
    kept_loss = best_loss if config.patience else state.validation_losses[-1][1]
    return TrainReport(
        architecture=model.config.architectures[0] if model.config.architectures else type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=state.step,
        tokens=tokens,
        validation_loss=kept_loss,
        perplexity=math.exp(min(kept_loss, 700.0)),
        initial_validation_loss=state.validation_losses[0][1],
        best_step=best_step,
        stopped_early=stopped_early,
        tokens_per_s=tokens_per_s,
        training_s=state.training_s,
        wall_s=state.wall_s,
        training_flop=training_flop(in_products, tokens),
        mfu=TRAINING_FLOP * in_products * tokens_per_s / peak,
        peak_flops=peak,
        peak_flops_source=peak_source,
        peak_memory_bytes=state.peak_memory_bytes,
        config=asdict(config),
        software={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        train_losses=state.train_losses,
        validation_losses=state.validation_losses,
        data={
            **asdict(yields),
            "cleaning_yield": yields.cleaning_yield,
            "duplicate_share": yields.duplicate_share,
        },
    )


def _resume(
    path: Path, model: Any, optimizer: torch.optim.Optimizer, fingerprint: str
) -> tuple[_State, dict[str, torch.Tensor] | None]:
    tensors, raw = load_checkpoint(path, next(model.parameters()).device)
    if raw.get("fingerprint") != fingerprint:
        raise InputError(f"{path}: the checkpoint is of a run with another configuration or other data")
    restore_training(model, optimizer, tensors)
    state = _State(**{entry.name: raw[entry.name] for entry in fields(_State)})
    state.validation_losses = [(step, loss) for step, loss in state.validation_losses]
    best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
    return state, best or None


def _fingerprint(config: TrainConfig, data: PreparedData) -> str:
    # The peak doesn't change a single loss; checkpoints may come more or less often.
    settings = {
        key: value for key, value in asdict(config).items() if key not in ("peak_flops", "checkpoint_every")
    }
    text = json.dumps(settings, sort_keys=True) + data.report.content_hash
    return hashlib.sha256(text.encode()).hexdigest()


def new_model(config: TrainConfig, data: PreparedData) -> Any:
    """The model that a run starts from: `config.model`, or new weights after the configuration and its seed."""
    if config.model is not None:
        from engine.models.load import load_model

        return load_model(config.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_model(
            config.architecture,
            layers=config.layers,
            hidden_size=config.hidden_size,
            vocab_size=data.vocab_size,
            context_tokens=config.sequence_tokens,
            eos_token_id=data.eos_token_id,
            attention_heads=config.attention_heads,
        )


def sample_text(folder: str | Path, prompt: str, tokens: int, *, device: str = "cpu", seed: int = 0) -> str:
    """Load what was saved with the engine that serves, and continue `prompt`; a seed gives the same words."""
    from engine.inference.llm import LLM
    from engine.sampling.sampler import SamplingParams

    llm = LLM(str(folder), device=device)
    ids = list(llm.tokenizer(prompt)["input_ids"])[: llm.shape.max_context_tokens - 1]
    room = llm.shape.max_context_tokens - len(ids)
    params = SamplingParams(max_tokens=min(tokens, room), temperature=0.7, seed=seed)
    return llm.generate([ids], params)[0].text


def save_model(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write what `from_pretrained` and `LLM` read; files move to `folder` only once all of them are written."""
    from transformers.utils import logging

    bar_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # there is one of ours already
    partial = folder / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    finally:
        if bar_enabled:
            logging.enable_progress_bar()
    for file in sorted(partial.iterdir()):
        file.replace(folder / file.name)
    partial.rmdir()


def _tokenizer(name: str, texts: Sequence[str]) -> Any:
    if name.startswith("bpe:"):
        if not name[4:].isdecimal():
            raise InputError(f"tokenizer {name!r}: allowed is bpe:SIZE with a whole number, bpe:4096 for one")
        return train_tokenizer(texts, int(name[4:]))
    from engine.models.load import load_tokenizer

    return load_tokenizer(name)
