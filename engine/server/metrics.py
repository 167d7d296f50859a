"""Prometheus metrics of the server, with vLLM's names and meanings, so that dashboards for vLLM work.

Names as in vLLM 0.12 (docs.vllm.ai, "Production Metrics"); times in seconds, measured on the engine's thread. Only that
thread writes; reading at the same time may miss the newest step, never more. Gauges are read from the scheduler on
request. `vllm:num_preemptions` counts a request's preemptions when it ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from engine.batch import Step
from engine.inference.request import RequestOutput
from engine.sampling.sampler import SamplingParams

if TYPE_CHECKING:
    from engine.inference.llm import LLM

_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort", "timeout": "abort"}
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
           80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_TOKEN_S = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_REQUEST_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
              960.0, 1920.0, 7680.0)  # fmt: skip
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_TOKENS = tuple(mantissa * 10**power for power in range(6) for mantissa in (1, 2, 5))
_COUNTS = (1, 2, 5, 10, 20)


class Histogram:
    """Histogram: counts of values by upper bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value; a bucket includes its upper bound."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, count of values up to it), the last unbounded."""
        bounds = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


_HISTOGRAMS = {
    "time_to_first_token_seconds": (_TTFT_S, "Time to first token."),
    "inter_token_latency_seconds": (_TOKEN_S, "Time between two tokens of a request."),
    "request_time_per_output_token_seconds": (_TOKEN_S, "Mean time per output token of a request after its first."),
    "e2e_request_latency_seconds": (_REQUEST_S, "Time from arrival to the last token."),
    "request_queue_time_seconds": (_REQUEST_S, "Time in the WAITING phase."),
    "request_inference_time_seconds": (_REQUEST_S, "Time in the RUNNING phase."),
    "request_prefill_time_seconds": (_REQUEST_S, "Time in the PREFILL phase."),
    "request_decode_time_seconds": (_REQUEST_S, "Time in the DECODE phase."),
    "request_prompt_tokens": (_TOKENS, "Prompt tokens of a request."),
    "request_generation_tokens": (_TOKENS, "Generated tokens of a request."),
    "request_params_max_tokens": (_TOKENS, "max_tokens of a request."),
    "request_params_n": (_COUNTS, "n of a request."),
    "iteration_tokens_total": (_STEP_TOKENS, "Tokens of a step."),
}  # fmt: skip
_COUNTERS = {
    "prompt_tokens": "Prompt tokens processed.",
    "generation_tokens": "Generated tokens.",
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens served from the prefix cache.",
    "num_preemptions": "Preemptions: requests that lost their KV blocks and are computed again.",
}


class Metrics:
    """Counters and histograms, updated by the engine's thread after each step and each request."""

    def __init__(self) -> None:
        self.histograms = {name: Histogram(bounds) for name, (bounds, _) in _HISTOGRAMS.items()}
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self.finished_by_reason = dict.fromkeys(_REASONS.values(), 0)
        self.step_s = 0.0  # sum over all steps
        self._begun_s: dict[int, float] = {}  # start of its first step, by request id
        self._token_s: dict[int, float] = {}  # end of its last step, by request id

    def stepped(self, step: Step, begun_s: float, ended_s: float) -> None:
        """Count a step that ran from `begun_s` to `ended_s` (`time.perf_counter`)."""
        self.step_s += ended_s - begun_s
        count, last = self.counters, self._token_s
        observe = self.histograms["inter_token_latency_seconds"].observe
        for request in step.decodes:
            observe(ended_s - last[request.request_id])
            last[request.request_id] = ended_s
        prompt, sampled = 0, len(step.decodes)
        for request, _, tokens, samples in step.prefills:
            if request.request_id not in self._begun_s:
                self._begun_s[request.request_id] = begun_s
                count["prefix_cache_queries"] += request.prompt_tokens
                count["prefix_cache_hits"] += request.cached_tokens
            prompt += tokens
            if samples:
                sampled += 1
                last[request.request_id] = ended_s
        count["prompt_tokens"] += prompt
        count["generation_tokens"] += sampled
        self.histograms["iteration_tokens_total"].observe(prompt + sampled)

    def finished(self, output: RequestOutput, params: SamplingParams) -> None:
        """Count a request that ended, whatever its finish reason."""
        times, observe = output.metrics, self._observe
        begun_s = self._begun_s.pop(output.request_id, None)
        self._token_s.pop(output.request_id, None)
        self.finished_by_reason[_REASONS[output.finish_reason or "cancelled"]] += 1
        self.counters["num_preemptions"] += times.preemptions
        self.counters["generation_tokens"] += times.kept_draft_tokens  # beside the one of each step
        observe("request_prompt_tokens", len(output.prompt_token_ids))
        observe("request_generation_tokens", len(output.token_ids))
        observe("request_params_max_tokens", params.max_tokens)
        observe("request_params_n", params.n)
        end_s = times.finished_s
        if end_s is None:
            return
        observe("e2e_request_latency_seconds", end_s - times.arrived_s)
        observe("request_queue_time_seconds", (begun_s or end_s) - times.arrived_s)
        if begun_s is None or times.first_token_s is None:
            return
        observe("time_to_first_token_seconds", times.first_token_s - times.arrived_s)
        observe("request_inference_time_seconds", end_s - begun_s)
        observe("request_prefill_time_seconds", times.first_token_s - begun_s)
        observe("request_decode_time_seconds", end_s - times.first_token_s)
        if len(output.token_ids) > 1:
            per_token_s = (end_s - times.first_token_s) / (len(output.token_ids) - 1)
            observe("request_time_per_output_token_seconds", per_token_s)

    def exposition(self, llm: LLM) -> bytes:
        """All metrics in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(list(self._families(llm))))
        return generate_latest(registry)

    def _observe(self, name: str, value: float) -> None:
        self.histograms[name].observe(value)

    def _families(self, llm: LLM) -> Iterator[Metric]:
        names, labels = ["model_name", "engine"], [llm.shape.name, "0"]
        scheduler, blocks = llm.scheduler, llm.config.num_blocks
        for name, value, meaning in (
            ("num_requests_running", len(scheduler.running), "Running requests."),
            ("num_requests_waiting", len(scheduler.waiting), "Waiting requests."),
            ("kv_cache_usage_perc", 1 - scheduler.free_blocks / blocks, "Share of the KV blocks in use; 1 is all."),
        ):  # fmt: skip
            gauge = GaugeMetricFamily(f"vllm:{name}", meaning, labels=names)
            gauge.add_metric(labels, value)
            yield gauge
        config = {"block_size": str(llm.config.block_tokens), "num_gpu_blocks": str(blocks)}
        config["enable_prefix_caching"] = str(llm.config.prefix_caching)
        info = GaugeMetricFamily("vllm:cache_config_info", "The KV cache.", labels=[*config, "engine"])
        info.add_metric([*config.values(), "0"], 1)
        yield info
        for name, meaning in _COUNTERS.items():
            counter = CounterMetricFamily(f"vllm:{name}", meaning, labels=names)
            counter.add_metric(labels, self.counters[name])
            yield counter
        done = CounterMetricFamily(
            "vllm:request_success", "Finished requests.", labels=[*names, "finished_reason"]
        )
        for reason, count in self.finished_by_reason.items():
            done.add_metric([*labels, reason], count)
        yield done
        for name, (_, meaning) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(f"vllm:{name}", meaning, labels=names)
            seen = self.histograms[name]
            histogram.add_metric(labels, buckets=seen.buckets(), sum_value=seen.sum)
            yield histogram
        busy = CounterMetricFamily(
            "flywheel:engine_busy_seconds", "Total time of engine steps.", labels=names
        )
        busy.add_metric(labels, self.step_s)
        yield busy


class _Collected:
    """Collector of these metrics for prometheus_client."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
