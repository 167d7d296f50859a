"""A run that is measured on no machine: the scheduler, stepped one by one by a model that the test knows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from engine.batch import Request, SchedulerConfig
from engine.profile.step_time import StepTimeModel
from engine.scheduler import Scheduler
from sim.validation.observe import Observation


def drawn_requests(count: int, rate_rps: float, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "arrived_s": rng.exponential(1 / rate_rps, count).cumsum(),
            "prompt_tokens": np.clip(np.rint(rng.lognormal(4.5, 0.7, count)), 1, 1500).astype(int),
            "output_tokens": np.clip(np.rint(rng.lognormal(3.2, 0.8, count)), 1, 300).astype(int),
        }
    )


def fake_observation(
    requests: pd.DataFrame, truth: StepTimeModel, config: SchedulerConfig, noise: float = 0.0, seed: int = 0
) -> Observation:
    """What an engine whose steps take `truth` times exp(noise · normal) would have shown."""
    rng = np.random.default_rng(seed)
    scheduler, now_s, coming = Scheduler(config), 0.0, 0
    arrived_s = requests["arrived_s"].to_numpy()
    count = len(requests)
    scheduled, first, finished = (np.full(count, math.nan) for _ in range(3))
    known = [
        Request(row, int(prompt), int(output), arrived)
        for row, (prompt, output, arrived) in enumerate(
            zip(requests["prompt_tokens"], requests["output_tokens"], arrived_s, strict=True)
        )
    ]
    steps = []
    while coming < count or scheduler.has_work:
        while coming < count and arrived_s[coming] <= now_s:
            scheduler.add(known[coming])
            coming += 1
        if not scheduler.has_work:
            now_s = arrived_s[coming]
            continue
        step = scheduler.schedule()
        assert step is not None
        prefill, contexts = step.prefill, step.decode_contexts
        for chunk in step.prefills:
            row = chunk.request.request_id
            scheduled[row] = now_s if math.isnan(scheduled[row]) else scheduled[row]
        ended_s = now_s + truth.step_time(prefill, contexts) * math.exp(noise * rng.standard_normal())
        steps.append((now_s, ended_s, ended_s, prefill, contexts))
        now_s = ended_s
        for request in scheduler.complete(step):
            if request.output_tokens == 1:
                first[request.request_id] = now_s
            if request.output_tokens == request.max_output_tokens:
                finished[request.request_id] = now_s
    frame = requests.assign(
        request_id=range(count), scheduled_s=scheduled, first_token_s=first, finished_s=finished,
        preemptions=[r.preemptions for r in known], cached_tokens=[r.cached_tokens for r in known], replica=0,
    )  # fmt: skip
    names = ["started_s", "ended_s", "until_s", "prefill", "decode_contexts"]
    return Observation(frame, pd.DataFrame(steps, columns=names))
