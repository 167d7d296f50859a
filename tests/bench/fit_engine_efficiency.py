"""Refit engine/prediction/engine_efficiency.json and print its error on models left out of the fit.

    python tests/bench/fit_engine_efficiency.py [--write] [CSV]

The data are ../shared/measured/serving_h100_b200_agg.csv: TTFT and TPOT of closed-loop benchmarks. What its columns
leave unsaid is settled here, once, for every model alike:

- concurrency is the client's (`silicon_concurrency`), not the batch of a data-parallel rank;
- tp_size 16 and 64 are 4 and 8 accelerators with tensor and expert parallelism (the file multiplies them);
- the public benchmark (InferenceMAX) draws lengths from 80 to 100 % of the nominal ones: mean 90 %;
- a missing precision is bfloat16;
- some rows ran with multi-token prediction, which the file doesn't say: the same engine, model and setting is 1.5 to
  1.9 times faster there than in the neighbouring series. They are kept out of the fit; errors are printed with and
  without them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from engine.models.catalog import find_model
from engine.prediction.engine_efficiency import ENGINES, FITTED_FILE, EngineDeployment, closed_loop, work
from engine.profile.hardware import lookup
from tests.helpers.places import SHARED

CSV = SHARED / "measured" / "serving_h100_b200_agg.csv"
SYSTEMS = {"h100_sxm": lookup("H100 SXM").name, "b200_sxm": lookup("B200 SXM").name}
LENGTH_SHARE = 0.9
TPOT_SCALE, TTFT_SCALE, TTFT_WEIGHT = 0.15, 0.3, 0.7  # where the loss turns from squares to absolute values

# Prior of each coefficient: guess, and standard deviations of the logarithm around it in common and of an engine's
# departure (0: none). Departures by accelerator were tried: they made models left out worse.
# Narrow priors keep what is read and multiplied from beating the data sheet; that costs 0.3 % of median error.
PRIORS: dict[str, tuple[float, float, float]] = {
    "weights": (1.1, 0.02, 0.0),
    "experts": (1.15, 0.05, 0.0),
    "fp8_read": (1.05, 0.1, 0.0),
    "fp4_read": (1.05, 0.03, 0.0),
    "int4_read": (1.6, 0.4, 0.0),
    "flops": (1.1, 0.05, 0.0),
    "fp8_flops": (1.3, 0.15, 0.0),
    "fp4_flops": (1.6, 0.15, 0.0),
    "int4_flops": (1.3, 0.4, 0.0),
    "kv": (1.4, 0.2, 0.15),
    "latent": (1.5, 0.3, 0.0),
    "reduce": (3.0, 0.4, 0.0),
    "activation": (1.0, 0.5, 0.0),
    "expert_activation": (1.0, 0.5, 0.0),
    "step_s": (3e-4, 0.7, 0.0),
    "layer_s": (5e-5, 0.3, 0.07),
    "moe_layer_s": (2e-5, 0.5, 0.05),
    "reduced_layer_s": (1.2e-5, 0.4, 0.1),
    "request_s": (8e-6, 0.5, 0.2),
    "prefill_flops": (1.2, 0.2, 0.1),
    "prefill_expert_flops": (1.8, 0.25, 0.0),
    "padding": (0.4, 0.3, 0.0),
    "prefill_pairs": (1.5, 0.1, 0.0),
    "prefill_reduce": (1.8, 0.3, 0.0),
    "eager_layer_s": (5e-5, 0.5, 0.2),
    "mixed": (0.4, 0.4, 0.0),
    "request_start_s": (0.015, 0.4, 0.3),
    "steps_waited": (7.0, 0.5, 0.2),
    "queue": (0.7, 0.4, 0.0),
}
BURST_PRIOR = (0.13, 1.0)  # share, standard deviation of its odds' logarithm
NAMES = list(PRIORS)


def read_rows(path: Path) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The measured rows with what the file leaves unsaid, and their work (arrays of one value per row)."""
    rows = pd.read_csv(path)
    source = rows.silicon_data_source
    data_parallel = rows.attention_dp_size.fillna(1)
    gpus = rows.tp_size * data_parallel
    gpus = gpus.mask((gpus > 8) & (rows.moe_tp_size == rows.moe_ep_size), rows.moe_tp_size)
    rows["gpus"] = gpus.mask(gpus == 16, 4).astype(int)
    rows["concurrency"] = (
        source.str.extract(r"silicon_concurrency=(\d+)")[0]
        .astype(float)
        .fillna(rows.batch_size * data_parallel)
    )
    rows["data_parallel"] = data_parallel > 1
    rows["expert_parallel"] = rows.moe_ep_size > 1
    rows["model"] = [find_model(name).name for name in rows.model_path]
    rows["precision"] = rows.precision.fillna("bf16")
    rows["measured"] = source.str.extract(r"measured=(\d{4}-\d\d-\d\d)")[0]
    rows["private"] = source.str.contains("aic-auto-gap-analysis")
    rows["tpot_s"], rows["ttft_s"] = rows.silicon_tpot_ms / 1e3, rows.silicon_ttft_ms / 1e3
    setting = ["backend", "model", "system", "precision", "isl", "osl", "gpus", "concurrency"]
    setting += ["data_parallel", "expert_parallel", "backend_version"]
    rows = rows.drop_duplicates([*setting, "tpot_s", "ttft_s"]).reset_index(drop=True)
    late = {"2026-01-14", "2026-02-05", "2026-02-06"}
    rows["speculative"] = (
        ((rows.backend == "trtllm") & (rows.model == "deepseek-v3") & rows.measured.isin(late))
        | (
            (rows.backend == "sglang")
            & (rows.model == "qwen3.5-397b-a17b")
            & (rows.precision == "fp8")
            & (rows.measured == "2026-03-20")
        )
        | (
            rows.model.isin(["deepseek-v3", "qwen3.5-397b-a17b", "glm-5"])
            & (
                rows.tpot_s
                < 0.93 * rows.groupby([*setting, "measured"], dropna=False).tpot_s.transform("max")
            )
        )
    )
    share = np.where(rows.private, 1.0, LENGTH_SHARE)
    terms = [
        work(
            EngineDeployment(
                find_model(row.model), lookup(SYSTEMS[row.system]), row.precision, row.gpus,
                row.data_parallel, row.expert_parallel,
            ),
            row.concurrency, row.isl * part, row.osl * part,
        )
        for row, part in zip(rows.itertuples(), share, strict=True)
    ]  # fmt: skip
    return rows, {key: np.array([term[key] for term in terms], dtype=float) for key in terms[0]}


class Fit:
    """The hierarchical fit on some of the rows; `predict` answers for any."""

    def __init__(self, rows: pd.DataFrame, terms: dict[str, np.ndarray], chosen: np.ndarray) -> None:
        self.terms = terms
        self.engine = rows.backend.map({name: i for i, name in enumerate(ENGINES)}).to_numpy()
        self.benchmark = 2 * self.engine + rows.private.to_numpy(dtype=int)
        prior = np.array([PRIORS[name] for name in NAMES])
        self.guess, self.spread = np.log(prior[:, 0]), prior[:, 1]
        self.by_engine = np.flatnonzero(prior[:, 2])
        engine_sd = prior[self.by_engine, 2]
        group = (rows.backend + rows.model + rows.system)[chosen]
        count = group.map(group.value_counts()).to_numpy()
        weight = (count.mean() / count) ** 0.25  # a model measured often counts more, but not by its count
        tpot, ttft = np.log(rows.tpot_s[chosen]), np.log(rows.ttft_s[chosen])
        odds = np.log(BURST_PRIOR[0] / (1 - BURST_PRIOR[0]))

        def residuals(x: np.ndarray) -> np.ndarray:
            common, engines, burst = self.split(x)
            a, b = self._times(x, chosen)
            return np.concatenate(
                [
                    weight * _soft((np.log(a) - tpot) / TPOT_SCALE),
                    TTFT_WEIGHT * weight * _soft((np.log(b) - ttft) / TTFT_SCALE),
                    (common - self.guess) / self.spread,
                    (engines / engine_sd).ravel(),
                    (burst - odds) / BURST_PRIOR[1],
                ]
            )

        departures = np.zeros(len(ENGINES) * len(self.by_engine))
        start = np.concatenate([self.guess, departures, np.full(2 * len(ENGINES), odds)])
        self.x = least_squares(residuals, start, max_nfev=40).x

    def split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Common logarithms, departures by engine, log odds of the burst by engine and benchmark."""
        p, last = len(NAMES), len(x) - 2 * len(ENGINES)
        return x[:p], x[p:last].reshape(len(ENGINES), -1), x[last:]

    def predict(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(TPOT, TTFT) in seconds of the chosen rows."""
        return self._times(self.x, chosen)

    def _times(self, x: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        common, engines, burst = self.split(x)
        logs = np.repeat(common[None], int(chosen.sum()), axis=0)
        logs[:, self.by_engine] += engines[self.engine[chosen]]
        theta = dict(zip(NAMES, np.exp(logs).T, strict=True))
        share = 1 / (1 + np.exp(-burst[self.benchmark[chosen]]))
        return closed_loop(theta, {key: value[chosen] for key, value in self.terms.items()}, share)


def _soft(residual: np.ndarray) -> np.ndarray:
    """Square for small residuals, absolute value for large ones (pseudo-Huber)."""
    return np.sign(residual) * np.sqrt(2 * (np.sqrt(1 + residual**2) - 1))


def left_out(rows: pd.DataFrame, terms: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(TPOT, TTFT) of every row, predicted by a fit that saw no row of its model."""
    tpot, ttft = np.zeros(len(rows)), np.zeros(len(rows))
    for model in rows.model.unique():
        own = (rows.model == model).to_numpy()
        fit = Fit(rows, terms, ~own & ~rows.speculative.to_numpy())
        tpot[own], ttft[own] = fit.predict(own)
    return tpot, ttft


def error_row(predicted: np.ndarray, measured: pd.Series, chosen: np.ndarray) -> dict[str, float]:
    """Median, 90th and 95th percentile and largest of |predicted - measured| / measured over the chosen rows."""
    errors = np.abs(predicted / measured - 1)[chosen]
    found = {
        name: float(np.quantile(errors, q)) for name, q in (("median", 0.5), ("p90", 0.9), ("p95", 0.95))
    }
    return found | {"max": float(errors.max())}


def _rounded(factors: np.ndarray, places: np.ndarray) -> dict[str, float]:
    return {NAMES[i]: float(f"{np.exp(value):.4g}") for i, value in zip(places, factors, strict=True)}


def main() -> None:
    """Fit, cross-validate, print; with --write store the coefficients beside the engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", nargs="?", type=Path, default=CSV)
    parser.add_argument("--write", action="store_true", help=f"store the fit in {FITTED_FILE.name}")
    options = parser.parse_args()
    rows, terms = read_rows(options.csv)
    plain = ~rows.speculative.to_numpy()
    every = np.ones(len(rows), dtype=bool)
    fit = Fit(rows, terms, plain)
    tpot, ttft = left_out(rows, terms)
    groups = rows.groupby(["model", "backend", "system"]).indices
    for key, places in groups.items():
        own = np.isin(np.arange(len(rows)), places)
        a, b = error_row(tpot, rows.tpot_s, own), error_row(ttft, rows.ttft_s, own)
        print(
            f"{' '.join(key):42} {own.sum():4d} rows  TPOT {a['median']:6.1%} {a['p90']:6.1%}"
            f"  TTFT {b['median']:6.1%} {b['p90']:7.1%}"
        )
    inside = fit.predict(every)
    report: dict[str, Any] = {"rows": len(rows), "rows_without_speculation": int(plain.sum())}
    for title, chosen in (("all", every), ("without_speculation", plain)):
        report[title] = {
            "tpot": error_row(tpot, rows.tpot_s, chosen),
            "ttft": error_row(ttft, rows.ttft_s, chosen),
            "tpot_in_fit": error_row(inside[0], rows.tpot_s, chosen),
            "ttft_in_fit": error_row(inside[1], rows.ttft_s, chosen),
        }
    report["by_engine"] = {}
    for engine in ENGINES:
        own = (rows.backend == engine).to_numpy()
        spread = np.abs(np.log(tpot / rows.tpot_s))[own]
        report["by_engine"][engine] = {
            "rows": int(own.sum()),
            "tpot": error_row(tpot, rows.tpot_s, own),
            "ttft": error_row(ttft, rows.ttft_s, own),
            # of a normal distribution with the same 90 % interval
            "tpot_log_sd": float(np.quantile(spread, 0.9)) / 1.645,
        }
    report = json.loads(json.dumps(report), parse_float=lambda text: float(f"{float(text):.4g}"))
    print(json.dumps(report, indent=1))
    if options.write:
        common, engines, burst = fit.split(fit.x)
        content = {
            "source": "ai-dynamo/aiconfigurator silicon_sample.csv (Apache-2.0), measured 2025-07 to 2026-04",
            "method": "tests/bench/fit_engine_efficiency.py; terms in engine/prediction/engine_efficiency.py",
            "common": _rounded(common, np.arange(len(NAMES))),
            "by_engine": {name: _rounded(engines[i], fit.by_engine) for i, name in enumerate(ENGINES)},
            "burst": {
                name: float(f"{1 / (1 + np.exp(-burst[2 * i])):.4g}") for i, name in enumerate(ENGINES)
            },
            "left_out_error": report,
        }
        FITTED_FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
