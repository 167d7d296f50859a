"""Runs that nobody here made, as the frame that `sim.serving.replay` takes and the latencies that were recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

# Which prompts of the vLLM run begin with an earlier prompt (later turns of the same conversation): request, whose
# prompt, how many blocks. The run's log has token counts only. LLMServingSim's log of the same 300 prompts
# (bench/examples/RTX4090/Llama-3.1-8B/outputs/sim.log, commit 110d7d1) says how many tokens of newly admitted
# prompts were found in the cache, second by second: eight times some; the amount names the earlier prompt, its answer
# plus a new question gives the length of the later one. Where two would do, it is the one still in the cache; for 207
# it could be 209 as well (no latency moves by 0.1 %).
SHARED_PROMPTS = {
    47: (40, 28),
    66: (35, 39),
    93: (82, 39),
    139: (117, 62),
    173: (153, 28),
    184: (167, 38),
    207: (201, 37),
    227: (226, 32),
}
BLOCK_TOKENS = 16
VIDUR_MAX_TOKENS = 4096  # Vidur cuts prompts so that prompt and answer together have no more


def latencies(frame: pd.DataFrame, outputs: pd.Series, spared: int = 1) -> pd.DataFrame:
    """ttft, tpot and e2e of a replay, in seconds; TPOT per output token, less `spared` of them."""
    decoding = frame.finished_s - frame.first_token_s
    return pd.DataFrame(
        {
            "ttft": frame.first_token_s - frame.arrived_s,
            "tpot": decoding / (outputs - spared),
            "e2e": frame.finished_s - frame.arrived_s,
        }
    )


def vllm_run(measured: Path, *, shared_prompts: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    """300 ShareGPT requests through vLLM 0.19 on an RTX 4090: requests with prefix_hashes, latencies."""
    log = pd.read_json(measured / "vllm_rtx4090_llama8b" / "requests.jsonl", lines=True)
    hashes: list[list[tuple[int, int]]] = []
    for index, tokens in enumerate(log.input_toks):
        hashes.append([(index, block) for block in range(tokens // BLOCK_TOKENS)])
        if shared_prompts and index in SHARED_PROMPTS:
            earlier, blocks = SHARED_PROMPTS[index]
            hashes[index][:blocks] = hashes[earlier][:blocks]
    requests = pd.DataFrame(
        {
            "arrived_s": log.queued_ts - log.queued_ts.min(),
            "prompt_tokens": log.input_toks,
            "output_tokens": log.output_toks,
            "prefix_hashes": hashes,
        }
    )
    recorded = pd.DataFrame(
        {
            "ttft": log.first_token_ts - log.queued_ts,
            "tpot": (log.last_token_ts - log.first_token_ts) / (log.output_toks - 1),
            "e2e": log.last_token_ts - log.queued_ts,
        }
    )
    return requests, recorded


def vidur_run(measured: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """2,000 requests of the Azure conversation trace through Vidur's 34B on two A100: requests, latencies.

    Vidur's TPOT is the decoding time over all output tokens, the first included.
    """
    folder = measured / "vidur_34b_tp2_a100"
    requests = pd.read_csv(folder / "trace_conv_every4th_2000.csv")
    requests = requests.set_axis(["arrived_s", "prompt_tokens", "output_tokens"], axis=1)
    room = VIDUR_MAX_TOKENS - requests.output_tokens
    requests["prompt_tokens"] = np.minimum(requests.prompt_tokens, room)
    result = pd.read_csv(folder / "request_metrics_sarathi512.csv")
    recorded = pd.DataFrame(
        {
            "ttft": result.prefill_e2e_time,
            "tpot": result.decode_time_execution_plus_preemption_normalized,
            "e2e": result.request_e2e_time,
        }
    )
    return requests, recorded
