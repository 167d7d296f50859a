"""The flywheel once, in small and for real: train, serve, collect what users sent, train again, compare.

1. A base model is trained on bought text. 2. It is served over HTTP (`engine.server`). 3. Simulated users, each with
a text of its own (a file), send it piece by piece and ask for the continuation; some allow the company to keep what
they send, and some send a piece twice. 4. What was allowed is cleaned and deduplicated. 5. Two models are
trained from the same start by the same recipe: on the base text and the collected text, and, as a control, on the
base text and as many tokens of further bought text. 6. All three are judged on the text of users who never sent
anything. The control shows what a collected token is worth in bought ones: a scenario's `data.feedback_quality`.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.errors import InputError
from engine.feedback.simulated_users import SimulatedUsage, collect, serve_users
from engine.training.cleaning import CleaningRules
from engine.training.config import TrainConfig, TrainReport
from engine.training.data import Document, PreparedData, Tokens, pack, prepare, select, tokenize
from engine.training.optimizer import evaluate, threads_for
from engine.training.trainer import new_model, save_model, train
from engine.usage.meter import log_lines
from engine.utils.files import write_atomically
from engine.utils.progress import Progress, part_of

# Users of the default text write network and test code; everything else in the library is the bought text.
USER_PACKAGES = ("asyncio", "concurrent", "email", "http", "logging", "multiprocessing", "unittest", "urllib")
_PIECES = CleaningRules(max_document_characters=4000)  # so that a tenth of little text is some of them
_MOST_CHARACTERS_PER_TOKEN = 6  # of bought text, what cleaning removes included


@dataclass(frozen=True)
class LoopConfig:
    """One round of the loop; with the texts it determines both models."""

    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            architecture="bloom",
            layers=2,
            hidden_size=64,
            batch_sequences=4,
            sequence_tokens=128,
            learning_rate=4e-3,
            max_validation_sequences=200,
            validation_fraction=0.1,
        )
    )
    base_tokens: int = 150_000  # of the first training, one pass
    epochs: float = 2.0
    held_out_users: int = 25
    vocab_size: int = 512
    usage: SimulatedUsage = field(default_factory=SimulatedUsage)

    def __post_init__(self) -> None:
        for name in ("base_tokens", "epochs", "held_out_users"):
            if not getattr(self, name) > 0:
                raise InputError(f"loop: {name} is {getattr(self, name)!r}; allowed is a number above 0")


@dataclass(frozen=True)
class VersionLoss:
    """A model on the text of users who never sent anything, and on held-out bought text; nats per token."""

    trained_tokens: int
    training_s: float
    users_loss: float
    base_loss: float
    accepted_share: float  # of the users' tokens, those that the model would have proposed first

    @property
    def perplexity(self) -> float:
        """Perplexity of the users' text."""
        return math.exp(min(self.users_loss, 700.0))


@dataclass(frozen=True)
class LoopReport:
    """Losses, tokens and costs of one round."""

    before: VersionLoss
    after: VersionLoss  # with the collected text
    bought: VersionLoss  # with as much bought text instead
    parameters: int
    users: int
    consenting_users: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    serving_s: float  # of the engine at work
    serving_wall_s: float
    median_latency_s: float
    consented_tokens: int  # prompts and answers of users who allow to keep what they send
    collected_tokens: int  # left after cleaning and deduplication
    removed: dict[str, int]  # requests, by reason
    wall_s: float
    config: dict[str, Any]

    @property
    def gain(self) -> float:
        """Nats per token that the round gained on the text of users who sent nothing."""
        return self.before.users_loss - self.after.users_loss

    @property
    def feedback_yield(self) -> float:
        """Collected tokens per token of usage (prompts and answers) of those who allow it; nothing is selected."""
        return self.collected_tokens / self.consented_tokens

    @property
    def feedback_quality(self) -> float | None:
        """Gain by a collected token over gain by a bought one; None where bought text gained nothing."""
        by_bought = self.before.users_loss - self.bought.users_loss
        return self.gain / by_bought if by_bought > 0 else None

    @property
    def quality_per_nat(self) -> float | None:
        """k of quality = exp(−k·loss) when quality is the share of accepted tokens; None without a gain."""
        if not (self.gain > 0 and self.before.accepted_share > 0 and self.after.accepted_share > 0):
            return None
        return math.log(self.after.accepted_share / self.before.accepted_share) / self.gain

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object, the ratios included."""
        judged = {
            name: {**asdict(judgement), "perplexity": judgement.perplexity}
            for name, judgement in (("before", self.before), ("after", self.after), ("bought", self.bought))
        }
        ratios = {
            "gain_nats_per_token": self.gain,
            "feedback_yield": self.feedback_yield,
            "feedback_quality": self.feedback_quality,
            "quality_per_nat": self.quality_per_nat,
        }
        return {**asdict(self), **judged, **ratios}


def quick(config: LoopConfig) -> LoopConfig:
    """The same round in about a fifth of the time; its gain is less certain."""
    return replace(
        config,
        base_tokens=60_000,
        epochs=1.0,
        held_out_users=10,
        usage=replace(config.usage, users=24, requests_per_user=12),
        training=replace(config.training, hidden_size=48, max_validation_sequences=64),
    )


def is_users(document: Document) -> bool:
    """Whether a document of the standard library belongs to its users in this play."""
    return document.source.partition("/")[0] in USER_PACKAGES


def run_loop(
    base: Sequence[Document],
    users: Sequence[Document],
    out_dir: str | Path,
    config: LoopConfig | None = None,
    progress: Progress | None = None,
) -> LoopReport:
    """Run one round of the loop; models, usage log and `loop.json` are left in `out_dir`.

    Args:
        base: bought text.
        users: what users write; each document is a user.
        out_dir: for `model-1`, `model-2`, `usage.jsonl`, `loop.json`.
        config: sizes, shares and the recipe.
        progress: called with the fraction done and what is being done.

    Raises:
        InputError: too little bought text, or too few users with enough text.
    """
    from engine.training.data import train_tokenizer

    config, out_dir, started = config or LoopConfig(), Path(out_dir), time.perf_counter()
    rng = np.random.default_rng(config.training.seed)
    names = {document.source for document in users}
    texts = select([*_enough(base, config, rng), *users], _PIECES, part_of(progress, 0.0, 0.05))
    bought = [document for document in texts.documents if document.source not in names]
    bought = [bought[i] for i in rng.permutation(len(bought))]
    people = _people([document for document in texts.documents if document.source in names], config, rng)
    senders, silent = people[: config.usage.users], people[config.usage.users :]
    tokenizer = train_tokenizer([document.text for document in bought[:500]], config.vocab_size)

    own, rest = _take(bought, config.base_tokens, tokenizer)
    held_out = pack(tokenize([Document(text) for text in silent], tokenizer), config.training.sequence_tokens)
    if not held_out.size:
        raise InputError("loop: the held-out users' text is shorter than one sequence; give longer texts")
    data = prepare(
        own,
        tokenizer,
        config.training.sequence_tokens,
        validation_fraction=config.training.validation_fraction,
    )
    model, first = _trained(data, held_out, config, part_of(progress, 0.05, 0.3))
    save_model(out_dir / "model-1", model, tokenizer)
    before = _judge(model, first, held_out, data.validation, config)

    served, busy_s, wall_s, consenting = serve_users(
        out_dir / "model-1", senders, config.usage, rng, config.training.device, part_of(progress, 0.3, 0.45)
    )
    write_atomically(out_dir / "usage.jsonl", log_lines(served))
    collected, removed = collect(served)
    collected_tokens = sum(row.size for row in tokenize(collected, tokenizer))

    more, _ = _take(rest, collected_tokens, tokenizer)
    judged, steps = {}, 0
    for name, extra, span in (("after", collected, (0.45, 0.72)), ("bought", more, (0.72, 1.0))):
        sequences = pack(tokenize(extra, tokenizer), config.training.sequence_tokens)
        extended = replace(data, train=np.concatenate([data.train, sequences]))
        steps = steps or _steps(extended, config)  # both runs take as many, so that only the text differs
        model, report = _trained(extended, held_out, config, part_of(progress, *span), steps)
        if name == "after":
            save_model(out_dir / "model-2", model, tokenizer)
        judged[name] = _judge(model, report, held_out, data.validation, config)
    kept = [each for each in served if each.text is not None]
    result = LoopReport(
        before=before,
        after=judged["after"],
        bought=judged["bought"],
        parameters=first.parameters,
        users=len(senders),
        consenting_users=consenting,
        requests=len(served),
        prompt_tokens=sum(each.prompt_tokens for each in served),
        output_tokens=sum(each.output_tokens for each in served),
        serving_s=busy_s,
        serving_wall_s=wall_s,
        median_latency_s=float(np.median([each.latency_s for each in served])),
        consented_tokens=sum(each.prompt_tokens + each.output_tokens for each in kept),
        collected_tokens=collected_tokens,
        removed=removed,
        wall_s=time.perf_counter() - started,
        config=asdict(config),
    )
    write_atomically(out_dir / "loop.json", json.dumps(result.to_json(), indent=2) + "\n")
    return result


def _enough(base: Sequence[Document], config: LoopConfig, rng: np.random.Generator) -> list[Document]:
    """Documents by chance, with some more characters than both trainings on bought text can need."""
    usage = config.usage
    sent = usage.users * usage.requests_per_user * usage.prompt_characters * usage.consent_share
    left = _MOST_CHARACTERS_PER_TOKEN * config.base_tokens + 2 * sent
    chosen = []
    for index in rng.permutation(len(base)):
        if left < 0:
            break
        chosen.append(base[index])
        left -= len(base[index].text)
    return chosen


def _people(pieces: Sequence[Document], config: LoopConfig, rng: np.random.Generator) -> list[str]:
    """The text of each user, in an order by chance: senders first, then those who stay silent."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for piece in pieces:
        by_file[piece.source].append(piece.text)
    least = 2 * config.usage.prompt_characters
    texts = [text for text in ("\n\n".join(parts) for parts in by_file.values()) if len(text) >= least]
    wanted = config.usage.users + config.held_out_users
    if len(texts) < wanted:
        raise InputError(
            f"loop: {len(texts)} users have {least} characters of text or more; {config.usage.users} and "
            f"{config.held_out_users} held out are asked for: give more texts or fewer users"
        )
    return [texts[i] for i in rng.permutation(len(texts))[:wanted]]


def _take(pieces: Sequence[Document], tokens: int, tokenizer: Any) -> tuple[list[Document], list[Document]]:
    """The first pieces with `tokens` tokens together (the last one is cut), and those after them."""
    taken: list[Document] = []
    left = tokens
    for index, piece in enumerate(pieces):
        size = tokenize([piece], tokenizer)[0].size
        if size >= left:
            taken.append(Document(piece.text[: max(len(piece.text) * left // size, 1)], piece.source))
            return taken, list(pieces[index + 1 :])
        taken.append(piece)
        left -= size
    raise InputError(
        f"loop: the bought text is {left:,} tokens too short; give more text or fewer base_tokens"
    )


def _steps(data: PreparedData, config: LoopConfig) -> int:
    return max(math.ceil(config.epochs * data.train.size / config.training.step_tokens), 1)


def _trained(
    data: PreparedData,
    held_out: Tokens,
    config: LoopConfig,
    progress: Progress | None,
    steps: int | None = None,
) -> tuple[Any, TrainReport]:
    recipe = replace(config.training, steps=steps or _steps(data, config))
    recipe = replace(recipe, evaluate_every=recipe.steps)
    model = new_model(recipe, data)
    with threads_for(recipe.hidden_size):
        return model, train(recipe, replace(data, validation=held_out), progress, model=model)


def _judge(
    model: Any, report: TrainReport, held_out: Tokens, base: Tokens, config: LoopConfig
) -> VersionLoss:
    most = config.training.max_validation_sequences
    return VersionLoss(
        trained_tokens=report.tokens,
        training_s=report.training_s,
        users_loss=report.validation_loss,
        base_loss=evaluate(model, base[:most], config.training),
        accepted_share=_accepted_share(model, held_out[:most], config.training),
    )


@torch.no_grad()
def _accepted_share(model: Any, sequences: Tokens, config: TrainConfig) -> float:
    """Share of the tokens that are the model's first choice after those before them."""
    model.eval()
    right = 0
    for start in range(0, len(sequences), config.batch_sequences):
        ids = torch.from_numpy(sequences[start : start + config.batch_sequences].astype(np.int64))
        ids = ids.to(config.device)
        chosen = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        right += int((chosen == ids[:, 1:]).sum())
    return right / (len(sequences) * (sequences.shape[1] - 1))
