"""The real model behind the page Engine: loaded once for all visitors, one thing at a time, measured in peace.

The model lives in this server from the first question on (torch is imported then, not before), so that an answer's
times are those of the engine itself. Measuring a profile takes the whole machine: it runs in a process of its own, the
model here makes room for it, and questions wait. All of this is done by the one worker of the bench's lane "engine".

What an answer costs: the machine is paid by the hour, and from the request's arrival in the engine to its last token
it serves no other request; so cost = price per hour / 3600 · seconds of engine time. In a full batch many would share
those seconds: the profile's cost table gives the price per token in batches.
"""

from __future__ import annotations

import gc
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from engine.errors import InputError
from engine.profile.hardware import HardwareInfo, detect
from engine.profile.profile import Profile
from engine.utils.progress import Progress
from sim.i18n.translate import mark
from sim.ui.process_tasks import run_apart

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.inference.introspection import NextToken, TextLoss
    from engine.inference.llm import LLM

_CACHE_TOKENS = 4096  # one conversation; a server would take all memory
_LOADING = mark("loading the model")
_ANSWERING = mark("answering")


@dataclass(frozen=True)
class Choice:
    """Model, device and number format."""

    model: str
    device: str
    dtype: str


@dataclass
class ModelAnswer:
    """An answer as it streams; the page reads it while the engine's thread writes. Times are `time.perf_counter`'s."""

    choice: Choice
    asked: str
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    arrived_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finish_reason: str | None = None
    hardware: HardwareInfo | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token."""
        if self.arrived_s is None or self.first_token_s is None:
            return None
        return self.first_token_s - self.arrived_s

    @property
    def tokens_per_s(self) -> float | None:
        """Output tokens per second after the first."""
        if self.first_token_s is None or self.last_token_s is None or self.output_tokens < 2:
            return None
        return (self.output_tokens - 1) / max(self.last_token_s - self.first_token_s, 1e-9)

    @property
    def engine_s(self) -> float | None:
        """Engine time so far."""
        if self.arrived_s is None or self.last_token_s is None:
            return None
        return self.last_token_s - self.arrived_s

    @property
    def cost_usd(self) -> float | None:
        """The machine's price for that time."""
        if self.engine_s is None or self.hardware is None:
            return None
        return self.hardware.price_usd_per_hour / 3600 * self.engine_s


@dataclass(frozen=True)
class PromptInspection:
    """Inspection of a prompt: tokens, attention of one layer, next tokens, loss."""

    labels: list[str]
    weights: NDArray[Any]  # [heads, n, n] of the layer
    layers: int
    candidates: list[NextToken]
    loss: TextLoss | None  # None: a single token


@dataclass
class ModelSession:
    """The one model that this server has loaded; to be used by one thread at a time."""

    _loaded: tuple[Choice, LLM] | None = None

    def measure(self, choice: Choice, budget_s: float, training: bool, progress: Progress) -> Profile:
        """Measure a profile of the model on this machine, in another process.

        Raises:
            InputError: unknown model or device, too little memory.
            Cancelled: by `progress`; the process is ended.
        """
        self._empty()
        with tempfile.TemporaryDirectory(prefix="flywheel-profile-") as folder:
            path = Path(folder) / "profile.json"
            asked = {"model": choice.model, "device": choice.device, "dtype": choice.dtype}
            run_apart(
                "profile", {**asked, "budget_s": budget_s, "training": training, "path": str(path)}, progress
            )
            return Profile.load(path)

    def answer(
        self,
        answer: ModelAnswer,
        chat: bool,
        max_tokens: int,
        temperature: float,
        seed: int,
        progress: Progress,
    ) -> ModelAnswer:
        """Let the model answer `answer.asked`, filling `answer` token by token.

        Raises:
            InputError: the model can't be loaded, or the prompt is too long.
            Cancelled: by `progress`; the tokens that are there stay.
        """
        llm = self._model(answer.choice, progress)
        from engine.sampling.sampler import SamplingParams

        progress(0.0, _ANSWERING)
        answer.hardware = detect(answer.choice.device)
        prompt = _tokens(llm, answer.asked, chat)
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        outputs = llm.stream(prompt, params)
        try:
            for output in outputs:
                metrics = output.metrics
                answer.arrived_s, answer.first_token_s = metrics.arrived_s, metrics.first_token_s
                answer.last_token_s = metrics.finished_s or time.perf_counter()
                answer.prompt_tokens = len(output.prompt_token_ids)
                answer.cached_tokens = metrics.cached_tokens
                answer.output_tokens = len(output.token_ids)
                answer.text, answer.finish_reason = output.text, output.finish_reason
                progress(answer.output_tokens / max_tokens, _ANSWERING)
        finally:
            outputs.close()  # type: ignore[attr-defined]
        return answer

    def inspect(
        self,
        choice: Choice,
        text: str,
        chat: bool,
        layer: int,
        count: int,
        temperature: float,
        progress: Progress,
    ) -> PromptInspection:
        """Attention, next tokens and loss of a text.

        Raises:
            InputError: the model can't be loaded, the text is empty or too long, or there is no such layer.
        """
        llm = self._model(choice, progress)
        from engine.inference.introspection import attention_weights, next_tokens, text_loss, token_text

        progress(0.5, _ANSWERING)
        tokens = _tokens(llm, text, chat)
        layer = min(layer, llm.shape.layers - 1)  # of a model with fewer than the last one on the page
        return PromptInspection(
            labels=[token_text(llm, token) for token in tokens],
            weights=attention_weights(llm, tokens, layer),
            layers=llm.shape.layers,
            candidates=next_tokens(llm, tokens, count, temperature),
            loss=text_loss(llm, tokens) if len(tokens) > 1 else None,
        )

    def _model(self, choice: Choice, progress: Progress) -> LLM:
        """The loaded model; another one makes room first."""
        if self._loaded is None or self._loaded[0] != choice:
            progress(0.0, _LOADING)
            self._empty()
            from engine.inference.llm import LLM

            llm = LLM(choice.model, choice.device, choice.dtype, kv_cache_tokens=_CACHE_TOKENS)
            self._loaded = (choice, llm)
        return self._loaded[1]

    def _empty(self) -> None:
        self._loaded = None
        gc.collect()


@st.cache_resource(show_spinner=False)
def model_session() -> ModelSession:
    """The session of this server; there is one."""
    return ModelSession()


def _tokens(llm: LLM, text: str, chat: bool) -> list[int]:
    """A text as the model gets it: by its chat template, if it is asked for and there is one."""
    if llm.tokenizer is None:
        raise InputError(f"model {llm.shape.name!r} has no tokenizer: it can't read a text")
    if chat and llm.tokenizer.chat_template:
        return llm.chat_prompt([{"role": "user", "content": text}])
    return list(llm.tokenizer(text)["input_ids"])
