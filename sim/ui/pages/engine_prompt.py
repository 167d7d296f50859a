"""Prompts on the page Engine: an answer as it streams, with its times and cost, and the inspection of a prompt."""

from __future__ import annotations

import streamlit as st

from engine.errors import InputError
from engine.profile.profile import Profile
from engine.utils.progress import Progress
from sim.figures import prompt as figures_prompt
from sim.i18n import numbers
from sim.i18n.translate import tr
from sim.ui import components
from sim.ui.jobs import Cancelled, Job, bench
from sim.ui.model_session import Choice, ModelAnswer, PromptInspection, model_session

_POLL_S = 0.25
_PATIENCE_S = 1.5  # the inspection by a loaded model takes less: no progress bar flashes up
_MOST_TOKENS = 1024
_FIRST_QUESTION = "Explain in two sentences why the sky is blue."
_FIRST_TEXT = "The cat sat on the mat because it was tired. The cat sat on the"
_SHOWN_CANDIDATES = 10


def ask(choice: Choice, profile: Profile | None) -> None:
    """A prompt for the real model; its answer streams in with TTFT, tokens per second and cost."""
    with st.form("ask_form"):
        prompt = st.text_area(
            tr("Prompt"), _FIRST_QUESTION, key="ask_prompt", persist_state="session", max_chars=20_000
        )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            max_tokens = st.number_input(
                tr("Most output tokens"),
                1,
                _MOST_TOKENS,
                96,
                key="ask_tokens",
                persist_state="session",
                width=170,
            )
            temperature = st.number_input(
                tr("Temperature"),
                0.0,
                2.0,
                0.0,
                0.1,
                key="ask_temperature",
                persist_state="session",
                width=140,
                help=tr("0 takes the likeliest token each time; 1 draws by the model's own probabilities."),
            )
            seed = st.number_input(tr("Seed"), 0, value=0, key="ask_seed", persist_state="session", width=110)
            chat = st.toggle(
                tr("Chat template"),
                value=True,
                key="ask_chat",
                persist_state="session",
                help=tr(
                    "Wrap the prompt as a user's turn, as the model was taught. Off: it continues the text."
                ),
            )
        pressed = st.form_submit_button(tr("Answer"), type="primary", icon=":material/send:")
    if pressed:
        if prompt.strip():
            _begin(ModelAnswer(choice, prompt), chat, int(max_tokens), float(temperature), int(seed))
        else:
            st.error(tr("The prompt is empty: write something to answer."), icon=":material/error:")
    key, answer = st.session_state.get("answering", (None, None))
    job = bench().find(key)
    if answer is None or job is None:
        st.caption(tr("The model is loaded with the first question; that takes some seconds, once."))
    elif job.future.done():
        _draw(answer, job, profile)
    else:
        _watch(answer, job, profile)


def _begin(answer: ModelAnswer, chat: bool, max_tokens: int, temperature: float, seed: int) -> None:
    before = st.session_state.get("answering")
    if before is not None:
        bench().forget(before[0])  # no page shows it any more
    number = st.session_state["answers"] = st.session_state.get("answers", 0) + 1
    key = ("answer", st.session_state.get("visitor"), number, id(answer))

    def answered(progress: Progress) -> ModelAnswer:
        return model_session().answer(answer, chat, max_tokens, temperature, seed, progress)

    bench().start(key, answered, lane="engine")
    st.session_state["answering"] = (key, answer)


@components.fragment(run_every=_POLL_S)
def _watch(answer: ModelAnswer, job: Job[ModelAnswer], profile: Profile | None) -> None:
    """The answer while it grows, with a stop button."""
    if job.future.done():
        st.rerun()
    _draw(answer, job, profile)
    st.button(tr("Stop"), icon=":material/stop_circle:", key="ask_stop", on_click=job.cancel)


def _draw(answer: ModelAnswer, job: Job[ModelAnswer], profile: Profile | None) -> None:
    error = job.future.exception() if job.future.done() else None
    if isinstance(error, InputError):
        st.error(components.plain(str(error)), title=tr("No answer"), icon=":material/error:")
        return
    if error is not None and not isinstance(error, Cancelled):
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        st.error(components.plain(said), title=tr("The engine failed"), icon=":material/error:")
    with st.chat_message("user", avatar=":material/person:"):
        st.markdown(components.plain(answer.asked))
    with st.chat_message("assistant", avatar=":material/memory:"):
        if answer.text:
            st.markdown(components.plain(answer.text))
        elif not job.future.done():
            waits = tr("waiting for the engine, {count} before it", count=job.place)
            st.caption(f":shimmer[{components.plain(waits if job.place else tr(job.doing))}]")
        ending = {
            "length": tr("Ended at the most output tokens."),
            "stop": tr("The model ended its answer."),
        }.get(answer.finish_reason or "")
        if isinstance(error, Cancelled):
            ending = tr("Stopped; what was written stays.") if answer.text else tr("Stopped.")
        if ending:
            st.caption(ending)
    _numbers(answer, profile)


def _numbers(answer: ModelAnswer, profile: Profile | None) -> None:
    """Times and cost of the answer, measured; beside them what the profile predicts."""
    predicted_ttft = predicted_rate = None
    if profile is not None and answer.prompt_tokens:
        computed = answer.prompt_tokens - answer.cached_tokens
        ttft_s = profile.step_time(prefill=[(computed, answer.cached_tokens)])
        context = answer.prompt_tokens + answer.output_tokens // 2
        predicted_ttft = tr("profile: {time}", time=numbers.seconds(ttft_s))
        tokens_per_s = 1 / profile.step_time(decode_contexts=[context])
        predicted_rate = tr("profile: {count}", count=numbers.count(tokens_per_s))
    hardware, cost_usd = answer.hardware, answer.cost_usd
    cached = tr("{count} of the prompt cached", count=answer.cached_tokens) if answer.cached_tokens else None
    with st.grid(4, min_column_width=160, gap="small"):
        components.metric(
            tr("Time to first token"),
            numbers.seconds(answer.ttft_s),
            note=predicted_ttft,
            help=tr("Measured from the request's arrival in the engine; the profile's is predicted."),
        )
        components.metric(
            tr("Tokens per second"),
            numbers.count(answer.tokens_per_s),
            note=predicted_rate,
            help=tr("Output tokens after the first, measured; this request is alone on the machine."),
        )
        components.metric(
            tr("Prompt → output"),
            f"{answer.prompt_tokens or numbers.UNKNOWN} → {answer.output_tokens}",
            note=cached,
            help=tr("Tokens. Full blocks of a prompt that was asked before are found in the KV cache."),
        )
        components.metric(
            tr("Cost of this answer"),
            numbers.usd(cost_usd),
            note=None
            if answer.engine_s is None
            else tr("{time} of the machine", time=numbers.seconds(answer.engine_s)),
            help=tr("The machine's price per hour for the seconds it worked on this answer alone."),
        )
    if hardware is None or cost_usd is None:
        return
    said = tr(
        "Measured on {machine} at {price} per hour ({source}, {date}).",
        machine=hardware.name,
        price=f"{hardware.price_usd_per_hour:.4g} USD",
        source=hardware.price_source,
        date=hardware.price_date,
    )
    if profile is not None and answer.output_tokens:
        cost = profile.cost
        shared_usd = (
            answer.prompt_tokens * cost.usd_per_mtok_prompt_full
            + answer.output_tokens * cost.usd_per_mtok_output_full
        ) / 1e6
        said += " " + tr(
            "In a full batch of {count} the same tokens would cost {usd}, by the profile.",
            count=cost.efficient_batch,
            usd=numbers.usd(shared_usd),
        )
    st.caption(components.plain(said))


def inspect_prompt(choice: Choice) -> None:
    """Attention weights of a text, the next token, and the loss of the text."""
    with st.form("look_form"):
        text = st.text_area(
            tr("Text"), _FIRST_TEXT, key="look_text", persist_state="session", max_chars=2000, height=90
        )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            chat = st.toggle(tr("Chat template"), key="look_chat", persist_state="session")
            pressed = st.form_submit_button(tr("Look"), type="primary", icon=":material/visibility:")
    if pressed:
        st.session_state["looking"] = (choice, text, chat)
    asked = st.session_state.get("looking")
    if asked is None or asked[0] != choice:
        st.caption(
            tr(
                "Shows which tokens each token attends to, softmax(QKᵀ/√d) of the model's own queries and keys, what "
                "it expects next, and how surprised it is by each token. The model is loaded with the first look."
            ).replace("$", r"\$")
        )
        return
    layers = st.session_state.get("look_layers", 1)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer = st.number_input(
            tr("Layer"),
            0,
            layers - 1 if layers > 1 else None,
            0,
            key="look_layer",
            persist_state="session",
            width=120,
            help=tr("0 is the one next to the embedding."),
        )
        temperature = st.number_input(
            tr("Temperature"), 0.0, 5.0, 1.0, 0.1, key="look_temperature", persist_state="session", width=140
        )
        chosen_head = st.container()
    _, text, chat = asked
    key = ("inspection", choice, text, chat, int(layer), float(temperature))

    def looked(progress: Progress) -> PromptInspection:
        return model_session().inspect(
            choice, text, chat, int(layer), _SHOWN_CANDIDATES, float(temperature), progress
        )

    found = components.outcome(
        bench().start(key, looked, patience_s=_PATIENCE_S, lane="engine"), tr("Looking inside")
    )
    if found is None:
        return
    if found.layers != layers:
        st.session_state["look_layers"] = found.layers
    heads = found.weights.shape[0]
    head = chosen_head.selectbox(
        tr("Head"),
        [None, *range(heads)],
        format_func=lambda number: tr("mean of all") if number is None else str(number),
        key="look_head",
        width=150,
    )
    _draw_look(found, min(int(layer), found.layers - 1), head, float(temperature))


def _draw_look(found: PromptInspection, layer: int, head: int | None, temperature: float) -> None:
    theme = components.theme()
    components.chart(
        figures_prompt.attention_map(found.weights, found.labels, layer, head, theme), "attention"
    )
    with st.grid(2, min_column_width=340, gap="medium"):
        components.chart(figures_prompt.next_token_bars(found.candidates, temperature, theme), "next_token")
        if found.loss is not None:
            components.chart(
                figures_prompt.token_losses(
                    found.labels, found.loss.token_losses_nats, found.loss.perplexity, theme
                ),
                "token_losses",
            )
