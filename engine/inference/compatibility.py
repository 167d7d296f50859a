"""Does the engine compute this architecture exactly? Tested at load on a small copy; refused by name if not.

transformers passes each layer's queries, keys and values to the engine's attention function. Some architectures
do more around it (recurrent state, chunks, differences of attentions, soft caps, sinks) or pass something else. A
list of them would be out of date with the next release, so a small copy of the model is built from its own
configuration: the same classes, every kind of layer, random float32 weights, windows shorter than the texts. Its
logits over the paged cache must equal those of its own plain attention.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from engine.batch import BatchChunk, SchedulerConfig
from engine.errors import InputError
from engine.inference.bloom import serve_bloom
from engine.inference.model_runner import ModelRunner
from engine.layers.attention import IMPLEMENTATION
from engine.models.load import quiet, shape_of

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_MOST_LAYERS = 8
_WINDOW_TOKENS = 8
_VOCABULARY = 128
# Of random weights: attention so sharp that a missing cap shows, so flat that a missing sink does.
_GAINS = (3.0, 0.3)
# Largest difference of a logit, in standard deviations of the logits; float32 leaves about 1e-5.
_TOLERANCE = 1e-3
# What a layer's width is called, and what it becomes; experts keep a choice of two.
_SMALL = {
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "dense_intermediate_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 16),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "attention_window_size"), _WINDOW_TOKENS),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), _VOCABULARY),
}
# Two requests of 41 and 11 tokens; of each the tokens (from, to) that run in a step: chunks, both, decodes.
_STEPS = [((0, 13), (0, 9)), ((13, 38), (9, 10)), ((38, 39), (10, 11)), ((39, 40),), ((40, 41),)]
_TABLES = ((5, 2, 7), (1, 3))


def require_servable(model: Any, name: str) -> None:
    """Make a loaded model's attention follow the engine's step plan; weights are not changed.

    Takes less than a tenth of a second and a few megabytes, whatever the size of the model.

    Raises:
        InputError: the logits over the paged cache would differ from transformers'; says why.
    """
    reason = _refusal(model)
    if reason is not None:
        raise InputError(f"model {name!r}: {type(model).__name__} can't be served: {reason}")
    _attach(model)


def _refusal(model: Any) -> str | None:
    """Why this architecture cannot be served; None if it can."""
    config = model.config
    if config.get_text_config() is not config or hasattr(config, "vision_config"):
        return "it takes more than text"
    if not (model._supports_attention_backend or config.model_type == "bloom"):
        return "its attention does not go through transformers' AttentionInterface"
    others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if others:
        return f"it has layers of type {', '.join(sorted(map(str, others)))}"
    try:
        differences = [_difference(type(model), _scaled_down(config), gain) for gain in _GAINS]
    except Exception as error:  # an unknown architecture's code may raise any; its text is only shown
        text = (str(error).strip().splitlines() or [""])[0]
        return f"a small copy of it fails in the paged cache ({type(error).__name__}: {text[:160]})"
    for difference in differences:
        if not difference <= _TOLERANCE:  # so written, NaN is refused
            return (
                f"a small copy's logits differ by {difference:.2g} standard deviations over the paged cache"
            )
    return None


def _attach(model: Any) -> None:
    if model.config.model_type == "bloom":
        serve_bloom(model)
    else:
        model.set_attn_implementation(IMPLEMENTATION)


def _scaled_down(config: Any) -> Any:
    """The configuration with few, narrow layers, one of each kind; the size of a head stays (RoPE hangs on it)."""
    small = copy.deepcopy(config)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    per_layer = {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, list | tuple)
        and len(value) == layers
        and all(isinstance(item, str | int) for item in value)
    }
    kinds = {tuple(value[i] for value in per_layer.values()): i for i in reversed(range(layers))}
    picked = sorted(kinds.values())[:_MOST_LAYERS]
    if len(picked) == 1:
        picked *= 2
    for key, value in per_layer.items():
        setattr(small, key, [value[i] for i in picked])
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    few_kv_heads = min(kv_heads, 2)
    few_heads = few_kv_heads * min(heads // kv_heads, 2)
    hidden = few_heads * (config.hidden_size // heads)
    sizes = {"num_hidden_layers": len(picked), "num_attention_heads": few_heads, "hidden_size": hidden}
    sizes |= {"num_key_value_heads": few_kv_heads, "word_embed_proj_dim": hidden}
    for key, size in (_SMALL | sizes).items():
        if isinstance(getattr(small, key, None), int | list) and getattr(small, key) is not False:
            setattr(small, key, size)
    return small


def _difference(model_class: Any, config: Any, gain: float) -> float:
    """Largest difference of a logit between the plain and the paged attention, in their standard deviations."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        config._attn_implementation = "eager"
        model = model_class._from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=gain * parameter.shape[-1] ** -0.5)
                else:  # biases, norms, sinks: what begins as 0 must do something too
                    parameter.add_(0.3 * torch.randn_like(parameter))
        prompts = [torch.randint(1, _VOCABULARY, (end,)).tolist() for end in (41, 11)]
    with torch.inference_mode():
        wanted = [model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0] for prompt in prompts]
    _attach(model)
    limits = SchedulerConfig(max_running_requests=2, max_step_tokens=64, block_tokens=16, num_blocks=8)
    runner = ModelRunner(model, shape_of(model, "", "float32"), limits, "cpu", torch.float32)
    differences = []
    for step in _STEPS:
        spans = list(zip(prompts, wanted, _TABLES, step, strict=False))
        found = runner.run([BatchChunk(prompt[a:b], a, table) for prompt, _, table, (a, b) in spans])
        for row, (_, logits, _, (_, end)) in zip(found, spans, strict=True):
            differences.append((row - logits[end - 1]).abs().max() / logits.std())
    return float(torch.stack(differences).max())  # NaN if any is
