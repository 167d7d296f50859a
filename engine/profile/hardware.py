"""Accelerators and machines: what they can do, what they cost, and which one this is.

The catalog holds data-sheet numbers (dense, without sparsity) and list prices, each with its source and the
date it was read. `detect` describes the machine at hand; what cannot be read stays None and is never made up.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from engine.errors import InputError
from engine.utils.machine import cpu_model, memory_bytes, visible_cores

_READ = "2026-11"
_NEBIUS = "Nebius list price, skypilot-catalog v8, commit 0082b0435f39"
_RUNPOD = "RunPod (secure) list price, skypilot-catalog v8, commit 01acdfd419ce"
_LAMBDA = "Lambda list price, skypilot-catalog v8, commit 0f4070387edc"
_VENDOR = "vendor data sheet, dense"


@dataclass(frozen=True)
class Accelerator:
    """One row of the catalog. None: not known to us (no data sheet read, or no list price)."""

    name: str
    memory_bytes: int
    peak_bf16_flops: float | None = None  # FLOP/s
    peak_fp8_flops: float | None = None  # FLOP/s
    memory_bandwidth_bytes_per_s: float | None = None
    board_w: float | None = None
    data_source: str | None = None
    data_date: str | None = None
    price_usd_per_hour: float | None = None  # on demand, one accelerator
    spot_usd_per_hour: float | None = None
    price_source: str | None = None
    price_date: str | None = None
    device_pattern: str = ""  # regular expression found in the name that the driver reports
    peak_fp4_flops: float | None = None  # FLOP/s
    link_bytes_per_s: float | None = None  # to the other accelerators of the machine, one direction


def _row(
    name: str,
    memory_gb: int,
    *,
    bf16: float | None = None,
    fp8: float | None = None,
    tb_per_s: float | None = None,
    watts: float | None = None,
    price: float | None = None,
    spot: float | None = None,
    price_source: str | None = None,
    pattern: str,
    fp4: float | None = None,
    link_gb_per_s: float | None = None,
) -> Accelerator:
    """A row from the units of a data sheet: TFLOP/s, GB, TB/s, GB/s, W, USD per hour."""
    return Accelerator(
        name=name,
        memory_bytes=memory_gb * 10**9,
        peak_bf16_flops=None if bf16 is None else bf16 * 1e12,
        peak_fp8_flops=None if fp8 is None else fp8 * 1e12,
        memory_bandwidth_bytes_per_s=None if tb_per_s is None else tb_per_s * 1e12,
        board_w=watts,
        data_source=None if bf16 is None else _VENDOR,
        data_date=None if bf16 is None else _READ,
        price_usd_per_hour=price,
        spot_usd_per_hour=spot,
        price_source=price_source,
        price_date=None if price_source is None else _READ,
        device_pattern=pattern,
        peak_fp4_flops=None if fp4 is None else fp4 * 1e12,
        link_bytes_per_s=None if link_gb_per_s is None else link_gb_per_s * 1e9,
    )


CATALOG: tuple[Accelerator, ...] = (
    _row(
        "A100 SXM 80 GB", 80, bf16=312, tb_per_s=2.039, watts=400, link_gb_per_s=300,
        pattern=r"A100.*SXM.*80GB",
    ),
    _row(
        "A100 PCIe 80 GB", 80, price=1.39, spot=1.39, price_source=_RUNPOD,
        pattern=r"A100.*(80GB PCIe|PCIE-80GB)",
    ),
    _row(
        "H100 SXM 80 GB", 80, bf16=989, fp8=1979, tb_per_s=3.35, watts=700,
        price=2.95, spot=1.25, price_source=_NEBIUS, pattern=r"H100 80GB HBM3", link_gb_per_s=450,
    ),
    _row(
        "H200 SXM 141 GB", 141, bf16=989, fp8=1979, tb_per_s=4.8, watts=700,
        price=3.50, spot=1.45, price_source=_NEBIUS, pattern=r"H200(?!.*NVL)", link_gb_per_s=450,
    ),
    _row(
        "B200 SXM 180 GB", 180, bf16=2250, fp8=4500, tb_per_s=8.0, watts=1000,
        price=5.50, price_source=f"{_NEBIUS} (by eight)", pattern=r"\bB200", fp4=9000,
        link_gb_per_s=900,
    ),
    _row(
        "L40S 48 GB", 48, bf16=362, fp8=733, tb_per_s=0.864, watts=350,
        price=1.55, price_source=_NEBIUS, pattern=r"L40S", link_gb_per_s=32,
    ),
    _row(
        "L4 24 GB", 24, bf16=121, fp8=242, tb_per_s=0.300, watts=72, link_gb_per_s=32,
        pattern=r"\bL4\b",
    ),
    _row(
        "MI300X 192 GB", 192, bf16=1307, fp8=2615, tb_per_s=5.3, watts=750, link_gb_per_s=448,
        pattern=r"MI300X",
    ),
    _row("A6000 48 GB", 48, price=1.09, price_source=_LAMBDA, pattern=r"RTX A6000"),
)  # fmt: skip

# A virtual machine of two cores and 8 GB; other sizes are priced per core.
CPU_PRICE_USD_PER_VCPU_HOUR = 0.0496 / 2
CPU_PRICE_SOURCE = f"{_NEBIUS}: 2 vCPU, 8 GB at 0.0496 USD per hour, scaled by cores"
CPU_PRICE_DATE = _READ


@dataclass(frozen=True)
class HardwareInfo:
    """The machine that a profile was measured on or predicted for. None: not known."""

    name: str
    device: str  # "cpu" or "cuda"
    cores: int  # cores this process may use
    threads: int  # threads that the measurement used
    memory_bytes: int  # of the device
    price_usd_per_hour: float
    price_source: str
    price_date: str
    peak_flops: float | None = None  # FLOP/s in the profile's number format
    memory_bandwidth_bytes_per_s: float | None = None
    peak_source: str | None = None  # where the two above come from
    idle_w: float | None = None
    load_w: float | None = None


def lookup(name: str) -> Accelerator:
    """The catalog's row for `name`; case, blanks and dashes don't matter, and an unambiguous beginning will
    do.

    Raises:
        InputError: no such accelerator (names the nearest one), or the name fits several rows.
    """
    wanted = squeezed(name)
    fitting = [row for row in CATALOG if squeezed(row.name) == wanted]
    # Whole words come before beginnings of words: "L4" is not "L40S".
    fitting = fitting or [row for row in CATALOG if row.name.lower().startswith(f"{name.strip().lower()} ")]
    fitting = fitting or [row for row in CATALOG if wanted and squeezed(row.name).startswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    names = [row.name for row in CATALOG]
    if fitting:
        raise InputError(f"accelerator {name!r} fits several: {', '.join(row.name for row in fitting)}")
    by_key = {squeezed(known): known for known in names}
    near = difflib.get_close_matches(wanted, list(by_key), n=1, cutoff=0.3)
    hint = f"nearest is {by_key[near[0]]!r}; " if near else ""
    raise InputError(f"accelerator {name!r} is not in the catalog: {hint}allowed: {', '.join(names)}")


def match_device(device_name: str) -> Accelerator | None:
    """The catalog's row for the name that a driver reports ("NVIDIA H200"), None when it has none."""
    return next((row for row in CATALOG if re.search(row.device_pattern, device_name, re.IGNORECASE)), None)


def detect(device: str = "cpu", price_usd_per_hour: float | None = None) -> HardwareInfo:
    """Describe this machine; torch is imported only for device="cuda".

    The price is the one given, else the catalog's for a known accelerator, else that of a virtual machine
    with this many cores. An accelerator without a list price needs `price_usd_per_hour`.

    Raises:
        InputError: unknown device, CUDA asked for but absent, negative price, no price known.
    """
    if device not in ("cpu", "cuda"):
        raise InputError(f"device {device!r}: allowed are 'cpu' and 'cuda'")
    if price_usd_per_hour is not None and not 0 <= price_usd_per_hour < float("inf"):
        raise InputError(f"price_usd_per_hour {price_usd_per_hour}: a finite number ≥ 0 is allowed")
    return _detect_cuda(price_usd_per_hour) if device == "cuda" else _detect_cpu(price_usd_per_hour)


def _detect_cpu(price_usd_per_hour: float | None) -> HardwareInfo:
    cores = visible_cores()
    given = price_usd_per_hour is not None
    price = cores * CPU_PRICE_USD_PER_VCPU_HOUR if price_usd_per_hour is None else price_usd_per_hour
    return HardwareInfo(
        name=f"{cpu_model()}, {cores} cores",
        device="cpu",
        cores=cores,
        threads=cores,
        memory_bytes=memory_bytes(),
        price_usd_per_hour=price,
        price_source="given by the user" if given else CPU_PRICE_SOURCE,
        price_date=_today() if given else CPU_PRICE_DATE,
    )


def _detect_cuda(price_usd_per_hour: float | None) -> HardwareInfo:
    import torch

    if not torch.cuda.is_available():
        raise InputError("device 'cuda': torch finds no CUDA device here; allowed is 'cpu'")
    properties = torch.cuda.get_device_properties(0)
    row = match_device(properties.name)
    price, source, date = hourly_price(row, properties.name, price_usd_per_hour)
    return HardwareInfo(
        name=properties.name,
        device="cuda",
        cores=visible_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=int(properties.total_memory),
        price_usd_per_hour=price,
        price_source=source,
        price_date=date,
        peak_flops=row.peak_bf16_flops if row else None,
        memory_bandwidth_bytes_per_s=row.memory_bandwidth_bytes_per_s if row else None,
        peak_source=f"{row.data_source}, bf16" if row and row.data_source else None,
    )


def hourly_price(row: Accelerator | None, name: str, given_usd: float | None) -> tuple[float, str, str]:
    """USD per hour of one accelerator, its source and date: the price given, else the catalog's.

    Raises:
        InputError: neither is known.
    """
    if given_usd is not None:
        return given_usd, "given by the user", _today()
    if row is None or row.price_usd_per_hour is None:
        raise InputError(f"no list price known for {name!r}: give --price-usd-per-hour")
    return row.price_usd_per_hour, str(row.price_source), str(row.price_date)


def _today() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).strftime("%Y-%m-%d")


def squeezed(name: str) -> str:
    """A name without what people write differently: case, blanks, punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
