"""Mean electrical power of a stretch of work where the machine has a counter: NVML for NVIDIA, RAPL for processors.

Both count energy since some start; power is the difference over the time between. Containers and virtual
machines usually hide both counters: then there are no watts, only the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

RAPL = Path("/sys/class/powercap")


@dataclass
class PowerMeter:
    """Context manager; after it `mean_w` holds watts, or None with `reason` saying why.

    `with PowerMeter("cpu") as meter: work()`; then `meter.mean_w`, `meter.source`, `meter.reason`.
    """

    device: str = "cpu"  # "cpu" or "cuda"
    rapl: Path = RAPL
    mean_w: float | None = None
    source: str | None = None
    reason: str | None = None
    _joules: Callable[[], float] | None = field(default=None, repr=False)
    _start_j: float = 0.0
    _start_s: float = 0.0

    def __enter__(self) -> PowerMeter:
        try:
            self._joules, self.source = _nvml() if self.device == "cuda" else _rapl(self.rapl)
            self._start_j = self._joules()
        except _NoCounter as error:
            self._joules, self.source, self.reason = None, None, str(error)
        self._start_s = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._joules is None or kind is not None:
            return
        seconds = time.perf_counter() - self._start_s
        try:
            joules = self._joules() - self._start_j
        except _NoCounter as lost:
            self.reason = str(lost)
            return
        if joules > 0 and seconds > 0:
            self.mean_w = joules / seconds
        else:
            self.reason = f"{self.source}: the energy counter did not move in {seconds:.1f} s"


class _NoCounter(Exception):
    """This machine has no energy counter that we may read."""


def _nvml() -> tuple[Callable[[], float], str]:
    """Energy of the first NVIDIA device (millijoules since the driver was loaded; Volta and newer)."""
    try:
        import pynvml
    except ImportError:
        raise _NoCounter("NVML: the package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        raise _NoCounter(f"NVML: {error}") from None

    def joules() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except pynvml.NVMLError as error:
            raise _NoCounter(f"NVML: {error}") from None

    return joules, "NVML, board energy counter"


def _rapl(folder: Path) -> tuple[Callable[[], float], str]:
    """Energy of all processor packages (microjoules, wrapping around at max_energy_range_uj)."""
    zones = sorted(zone for zone in folder.glob("intel-rapl:*") if zone.name.count(":") == 1)
    if not zones:
        raise _NoCounter("RAPL: the machine shows no processor energy counter")
    ranges = [_micro(zone / "max_energy_range_uj") for zone in zones]
    last = [_micro(zone / "energy_uj") for zone in zones]
    total = 0.0

    def joules() -> float:
        nonlocal total
        for i, zone in enumerate(zones):
            now = _micro(zone / "energy_uj")
            total += (now - last[i]) % (ranges[i] + 1)
            last[i] = now
        return total / 1e6

    return joules, "RAPL, processor packages"


def _micro(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise _NoCounter(f"RAPL: {path} cannot be read ({error.__class__.__name__})") from None
