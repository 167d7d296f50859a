"""Every architecture is served to the token, or refused by name when it is loaded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine import LLM, SamplingParams
from engine.batch import BatchChunk
from engine.errors import InputError
from engine.inference.compatibility import require_servable
from engine.layers.attention import IMPLEMENTATION

VOCABULARY = 128
OUTPUT_TOKENS = 64
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,  # a random model that is tied says the same word again and again
}
GROUPED = {"intermediate_size": 96, "num_key_value_heads": 2}
ROPE = {"rope_theta": 10_000.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    **ROPE,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
# Those that the engine promises; windows are shorter than the requests, so that they shape every token.
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPED),
    "llama, tied": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "llama3 rope": (
        "llama",
        {
            **GROUPED,
            "rope_parameters": {
                **ROPE,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral, sliding window": ("mistral", {**GROUPED, "sliding_window": 20}),
    "qwen2": ("qwen2", GROUPED),
    "qwen2, some layers sliding": (
        "qwen2",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 32}),
    "gemma": ("gemma", {**GROUPED, "head_dim": 32, "num_key_value_heads": 1}),
    "gemma2, soft caps": ("gemma2", {**GROUPED, "head_dim": 32, "sliding_window": 20}),
    "gemma3 text": ("gemma3_text", {**GROUPED, "head_dim": 32, "sliding_window": 20, "num_hidden_layers": 6}),
    "phi3": ("phi3", GROUPED),
    "phi3, longrope": (
        "phi3",
        {**GROUPED, "rope_parameters": LONGROPE, "original_max_position_embeddings": 128},
    ),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {"intermediate_size": 96}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4}),
    "qwen3_moe": ("qwen3_moe", {**GROUPED, **EXPERTS, "num_experts": 8, "head_dim": 32}),
    "bloom": ("bloom", {}),
    "bloom, heads no power of two": ("bloom", {"hidden_size": 96, "num_attention_heads": 6}),
    "olmo2": ("olmo2", GROUPED),
    "granite": ("granite", {**GROUPED, "attention_multiplier": 0.25}),
    "cohere": ("cohere", {**GROUPED, "logit_scale": 1.0}),
    "phi": ("phi", {"intermediate_size": 96}),
    "starcoder2": ("starcoder2", GROUPED),
    "smollm3": ("smollm3", {**GROUPED, "num_hidden_layers": 4}),
}
# What the paged cache can't do yet, and what is said of it.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "falcon": ("falcon", {}, "does not go through transformers' AttentionInterface"),
    "stablelm": ("stablelm", GROUPED, "does not go through transformers' AttentionInterface"),
    "mpt": ("mpt", {"d_model": 64}, "does not go through transformers' AttentionInterface"),
    "llama4": ("llama4_text", {**GROUPED, "num_local_experts": 2}, "layers of type chunked_attention"),
    "minimax": ("minimax", {**GROUPED, "num_local_experts": 2}, "layers of type linear_attention"),
    "diffllama": ("diffllama", GROUPED, "a small copy's logits differ"),
    "gpt_oss, sinks": ("gpt_oss", {**GROUPED, "num_local_experts": 4}, "a small copy's logits differ"),
    "doge, masks of its own": ("doge", GROUPED, "a small copy's logits differ"),
    "bert, looks ahead": ("bert", {"intermediate_size": 96}, "a small copy's logits differ"),
    "minicpm3, latent attention": ("minicpm3", {"intermediate_size": 96}, "a small copy of it fails"),
    "gemma3, images": ("gemma3", {}, "it takes more than text"),
}


def config_of(model_type: str, sizes: dict[str, Any]) -> Any:
    common = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return AutoConfig.for_model(model_type, **common, **(TINY | sizes))


def saved(folder: Path, model_type: str, sizes: dict[str, Any]) -> str:
    """A model with random weights, as a user would have it. They are so large that its choices are clear, and no
    last bit decides a token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(model_type, sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    words_only = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words_only).save_pretrained(folder)
    return str(folder)


def prompts() -> list[list[int]]:
    """Four prompts of 5 to 50 tokens, the last two with a beginning of two blocks in common."""
    rng = random.Random(0)

    def text(count: int) -> list[int]:
        return [rng.randrange(1, VOCABULARY) for _ in range(count)]

    shared = text(34)
    return [text(5), text(50), shared + text(7), shared + text(3)]


def generated(model: Any, prompt: list[int]) -> list[int]:
    """Prompt and what transformers' own greedy `generate` adds to it."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=OUTPUT_TOKENS,
        do_sample=False,
        eos_token_id=None,
    )
    return [int(token) for token in out[0]]


def assert_logits_equal(llm: LLM, model: Any, texts: list[list[int]]) -> None:
    """Run texts together, in pieces of one to twenty tokens each step, and compare the logits after each piece with
    those of a plain forward pass over the whole text."""
    rng = random.Random(1)
    with torch.inference_mode():
        wanted = [model(input_ids=torch.tensor([text]), use_cache=False).logits[0] for text in texts]
    blocks = list(range(llm.config.num_blocks))
    rng.shuffle(blocks)
    tables = [[blocks.pop() for _ in range(-(-len(text) // llm.config.block_tokens))] for text in texts]
    done = [0] * len(texts)
    while running := [i for i, text in enumerate(texts) if done[i] < len(text)]:
        ends = {i: min(len(texts[i]), done[i] + rng.choice((1, 1, 3, 20))) for i in running}
        found = llm.runner.run([BatchChunk(texts[i][done[i] : ends[i]], done[i], tables[i]) for i in running])
        expected = torch.stack([wanted[i][ends[i] - 1] for i in running])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        for i in running:
            done[i] = ends[i]


@pytest.mark.parametrize("name", SERVED)
def test_it_equals_transformers(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, *SERVED[name])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = [generated(model, prompt) for prompt in prompts()]
    assert len({token for text in texts for token in text[-OUTPUT_TOKENS:]}) > 5, "a text to tell errors by"
    # A step takes 24 tokens, so prompts come in chunks beside decodes; the cache holds two requests, so some give way.
    llm = LLM(folder, max_step_tokens=24, kv_cache_tokens=240)
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    outputs: dict[int, Any] = {}
    for prompt in prompts():
        outputs[llm.add_request(prompt, params)] = None
        for _ in range(4):  # requests join while others run
            outputs |= {out.request_id: out for out in llm.step()}
    while any(out is None or out.finish_reason is None for out in outputs.values()):
        outputs |= {out.request_id: out for out in llm.step()}
    assert [out.prompt_token_ids + out.token_ids for out in outputs.values()] == texts
    assert sum(out.metrics.preemptions for out in outputs.values()) > 0, "the cache was to be too small"
    again = llm.generate(prompts()[3], params)[0]
    assert again.metrics.cached_tokens >= 32
    assert again.prompt_token_ids + again.token_ids == texts[3]
    assert_logits_equal(LLM(folder, kv_cache_tokens=512), model, texts)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_says_so_by_name(name: str) -> None:
    model_type, sizes, reason = REFUSED[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(model_type, sizes))
    with pytest.raises(
        InputError, match=f"model 'it': {type(model).__name__} can't be served: .*{reason}"
    ) as error:
        require_servable(model, "it")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "sizes", "forgotten"),
    [
        ("gemma3_text", {**GROUPED, "sliding_window": 4096}, "sliding_window"),
        ("gemma2", GROUPED, "softcap"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaling"),
        ("bloom", {}, "alibi_slopes"),
    ],
)
def test_attention_that_forgets_something_is_seen(
    model_type: str, sizes: dict[str, Any], forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.inference import bloom

    whole = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        return whole(*args, **{key: value for key, value in kwargs.items() if key != forgotten})

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(model_type, sizes))
    require_servable(model, "it")
    monkeypatch.setattr(bloom, "paged_attention", forgetful)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, IMPLEMENTATION, forgetful)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(model_type, sizes))
    with pytest.raises(InputError, match="a small copy's logits differ"):
        require_servable(model, "it")


def test_the_check_leaves_random_numbers_alone() -> None:
    model = AutoModelForCausalLM.from_config(config_of("llama", GROUPED))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    require_servable(model, "it")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
