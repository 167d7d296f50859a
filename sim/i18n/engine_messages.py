"""What the engine says of a profile and of work under way, told in the reader's language.

`engine/` knows no languages (it must not import `sim`): its rows and its progress are English sentences, of which the
templates stand here. A sentence that is missing here stays English and does no other harm.
"""

from __future__ import annotations

from sim.i18n.translate import mark, retell

# Labels and values of `engine.profile.profile.describe` and `sim.company.provenance.provenance_rows`.
PROFILE = (
    mark("Kind"),
    mark("PREDICTED, not measured"),
    mark("Model"),
    mark("{name} ({architecture}, {millions} M parameters, {dtype})"),
    mark("Machine"),
    mark("{name} ({threads} threads)"),
    mark("Prefill"),
    mark("{speed} tok/s ({tokens} tokens per step)"),
    mark("Decode, one request"),
    mark("Decode, {count} requests"),
    mark("{speed} tok/s (context {context})"),
    mark("Error on held-out steps"),
    mark("median {median}, p95 {p95} (expected from where the method was tested)"),
    mark("median {median}, p95 {p95} ({held_out} of {points} points)"),
    mark("90 % interval"),
    mark("{low} to {high} ms for a decode step of {count}"),
    mark("Noise of a repeat"),
    mark("{share} (interquartile range)"),
    mark("Weights"),
    mark("KV cache"),
    mark("{size} per token"),
    mark("Perplexity"),
    mark("{perplexity} on a fixed text of {tokens} tokens ({change} against float32)"),
    mark("{perplexity} on a fixed text of {tokens} tokens"),
    mark("Training"),
    mark("{speed} tok/s, MFU {mfu}, {memory} at the peak ({sequences} × {tokens} tokens per step)"),
    mark("not measured: {reason}"),
    mark("Peak memory of the process"),
    mark("Power under load"),
    mark("unknown: {reason}"),
    mark("Price of the machine"),
    mark("{usd} USD per hour ({source})"),
    mark("Cost at full load"),
    mark("Cost at {share} load"),
    mark("{prompt} prompt, {output} output USD per million tokens"),
    mark("measured here: best large matrix product, best sum over a large array"),
    mark("Measured on"),
    mark("Predicted on"),
    mark("Software of the profile"),
    mark("Method"),
    mark("Profile hash"),
    mark("Scenario hash"),
    mark("Ledger hash"),
    mark("Seed"),
    mark("Program version"),
    mark("a checkout that is not installed"),
)
# Where the simulator took a number from (`sim.company.assumptions`); titles and price lists stay as they are published.
SOURCES = (
    mark("request-level simulation on profile {hash} on {machine}"),
    mark("profile {hash} on {machine}"),
)
# What runs, studies, profiles, trainings and reports say that they are doing.
PROGRESS = (
    mark("starting"),
    mark("done"),
    mark("month {month} of {months}"),
    mark("capacity known"),
    mark("simulating the fleet at its limit"),
    mark("simulating at {share} load"),
    mark("finding the highest rate"),
    mark("drawing requests"),
    mark("simulating the fleet"),
    mark("reading the times off"),
    mark("simulating the replica"),
    mark("fleet of {configuration}"),
    mark("{done} of {total} runs"),
    mark("{count} runs known"),
    mark("{count} runs"),
    mark("low and high"),
    mark("scan"),
    mark("closing in"),
    mark("candidate {number} of {total}"),
    mark("fresh seeds"),
    mark("starting a browser to draw with"),
    mark("drawing figure {number} of {total}"),
    mark("typesetting the PDF"),
    mark("loading the model"),
    mark("measuring peak speed"),
    mark("measuring steps, pass {number}"),
    mark("measuring training steps"),
    mark("cleaning"),
    mark("looking for near-duplicates"),
    mark("tokenizing"),
    mark("step {step} of {steps}, loss {loss}"),
    mark("width {width}, step {step}, loss {loss}"),
    mark("training step of {batch} × {length} tokens"),
)


def profile_row(label: str, words: str) -> tuple[str, str]:
    """A row about a profile or a run, (label, words), in the language of the moment."""
    return retell(label, PROFILE), retell(words, PROFILE)


def source_in_words(source: str) -> str:
    """The source of an assumption in the language of the moment."""
    return retell(source, SOURCES)


def doing_in_words(doing: str) -> str:
    """What work under way says of itself, in the language of the moment."""
    return retell(doing, PROGRESS)
