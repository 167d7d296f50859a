"""A profile summed up in words: the rows of the terminal's table, the report and the page Engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.i18n.translate import tr

if TYPE_CHECKING:
    from engine.profile.profile import Profile, Quality


def profile_rows(profile: Profile) -> list[tuple[str, str]]:
    """(label, value) rows that sum a profile up, in the language of the moment."""
    hardware, cost = profile.hardware, profile.cost
    memory, power = profile.memory, profile.power
    rows = [
        (tr("Kind"), tr("measured") if profile.kind == "measured" else tr("PREDICTED, not measured")),
        (tr("Model"), _model(profile)),
        (tr("Machine"), _machine(profile)),
        *_speed_rows(profile),
        (tr("Error on held-out steps"), _error(profile)),
        *_interval_row(profile),
        (
            tr("Noise of a repeat"),
            tr("{share} (interquartile range)", share=f"{profile.fit.repeat_spread:.1%}"),
        ),
        (tr("Weights"), _bytes(profile.model.weight_bytes)),
        (tr("KV cache"), tr("{size} per token", size=_bytes(profile.model.kv_bytes_per_token))),
    ]
    if profile.quality is not None:
        rows.append((tr("Perplexity"), _perplexity(profile.quality, profile.model.dtype)))
    if profile.training or "training" in profile.method:
        rows.append((tr("Training"), _training(profile)))
    if "peak_rss_bytes" in memory:
        rows.append((tr("Peak memory of the process"), _bytes(memory["peak_rss_bytes"])))
    if power.get("mean_w") is not None:
        watts = f"{power['mean_w']:,.1f} W ({power.get('source')})"
    else:
        watts = tr("unknown: {reason}", reason=power.get("reason", "not measured"))
    price_source = f"{hardware.price_source}, {hardware.price_date}"
    return [
        *rows,
        (tr("Power under load"), watts),
        (
            tr("Price of the machine"),
            tr(
                "{usd} USD per hour ({source})", usd=f"{hardware.price_usd_per_hour:.4g}", source=price_source
            ),
        ),
        (
            tr("Cost at full load"),
            _cost(cost.usd_per_mtok_prompt_full, cost.usd_per_mtok_output_full),
        ),
        (
            tr("Cost at {share} load", share=f"{cost.typical_load:.0%}"),
            _cost(cost.usd_per_mtok_prompt_typical, cost.usd_per_mtok_output_typical),
        ),
    ]


def _model(profile: Profile) -> str:
    model = profile.model
    return tr(
        "{name} ({architecture}, {millions} M parameters, {dtype})",
        name=model.name,
        architecture=model.architecture,
        millions=f"{model.parameters / 1e6:,.0f}",
        dtype=model.dtype,
    )


def _machine(profile: Profile) -> str:
    hardware = profile.hardware
    if hardware.device != "cpu":
        return hardware.name
    return tr("{name} ({threads} threads)", name=hardware.name, threads=hardware.threads)


def _speed_rows(profile: Profile) -> list[tuple[str, str]]:
    context, batch = profile.cost.reference_context_tokens, profile.cost.efficient_batch

    def decode(speed: float) -> str:
        return tr("{speed} tok/s (context {context})", speed=f"{speed:,.1f}", context=f"{context:,}")

    chunk = min(512, int(profile.scheduler.get("max_step_tokens", 512)))
    prefill = chunk / profile.step_time(prefill=[(chunk, 0)])
    one = 1 / profile.step_time(decode_contexts=[context])
    full = batch / profile.step_time(decode_contexts=[context] * batch)
    return [
        (
            tr("Prefill"),
            tr("{speed} tok/s ({tokens} tokens per step)", speed=f"{prefill:,.0f}", tokens=chunk),
        ),
        (tr("Decode, one request"), decode(one)),
        (tr("Decode, {count} requests", count=batch), decode(full)),
    ]


def _error(profile: Profile) -> str:
    fit = profile.fit
    median, p95 = f"{fit.median_relative_error:.1%}", f"{fit.p95_relative_error:.1%}"
    if profile.kind != "measured":
        return tr(
            "median {median}, p95 {p95} (expected from where the method was tested)", median=median, p95=p95
        )
    return tr(
        "median {median}, p95 {p95} ({held_out} of {points} points)",
        median=median,
        p95=p95,
        held_out=fit.held_out_points,
        points=fit.train_points + fit.held_out_points,
    )


def _interval_row(profile: Profile) -> list[tuple[str, str]]:
    if profile.coefficients.uncertainty is None:
        return []
    count = profile.cost.efficient_batch
    low, high = profile.step_time_interval(decode_contexts=[profile.cost.reference_context_tokens] * count)
    text = tr(
        "{low} to {high} ms for a decode step of {count}",
        low=f"{low * 1e3:,.3g}",
        high=f"{high * 1e3:,.3g}",
        count=count,
    )
    return [(tr("90 % interval"), text)]


def _perplexity(quality: Quality, dtype: str) -> str:
    parts = {"perplexity": f"{quality.perplexity:,.2f}", "tokens": quality.text_tokens}
    if dtype == "float32" or quality.increase is None:
        return tr("{perplexity} on a fixed text of {tokens} tokens", **parts)
    return tr(
        "{perplexity} on a fixed text of {tokens} tokens ({change} against float32)",
        change=f"{quality.increase:+.1%}",
        **parts,
    )


def _training(profile: Profile) -> str:
    if not profile.training:
        return tr("not measured: {reason}", reason=profile.method["training"])
    best = max(profile.training, key=lambda point: point.tokens_per_s)
    return tr(
        "{speed} tok/s, MFU {mfu}, {memory} at the peak ({sequences} × {tokens} tokens per step)",
        speed=f"{best.tokens_per_s:,.0f}",
        mfu=f"{best.mfu:.0%}",
        memory=_bytes(best.peak_memory_bytes),
        sequences=best.batch_sequences,
        tokens=best.sequence_tokens,
    )


def _cost(prompt: float, output: float) -> str:
    return tr(
        "{prompt} prompt, {output} output USD per million tokens", prompt=_usd(prompt), output=_usd(output)
    )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _usd(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.3g}"
