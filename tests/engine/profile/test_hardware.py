"""The catalog agrees with its sources, and this machine is described without inventing anything."""

from __future__ import annotations

import pytest

from engine.errors import InputError
from engine.profile.hardware import CATALOG, CPU_PRICE_USD_PER_VCPU_HOUR, detect, lookup, match_device
from engine.utils.machine import visible_cores


def test_rows_carry_source_and_date() -> None:
    assert len({row.name for row in CATALOG}) == len(CATALOG)
    for row in CATALOG:
        assert row.memory_bytes > 0
        assert (row.peak_bf16_flops is None) == (row.data_source is None) == (row.data_date is None)
        assert (row.price_usd_per_hour is None) == (row.price_source is None) == (row.price_date is None)
        assert row.data_source or row.price_source, row.name


def test_numbers_of_the_data_sheet_and_list_price() -> None:
    h200 = lookup("H200 SXM 141 GB")
    assert h200.peak_bf16_flops == pytest.approx(989e12)
    assert h200.memory_bandwidth_bytes_per_s == pytest.approx(4.8e12)
    assert h200.memory_bytes == 141 * 10**9
    assert (h200.price_usd_per_hour, h200.spot_usd_per_hour) == (3.50, 1.45)


@pytest.mark.parametrize("name", ["h200", "H200-SXM", " h200 sxm 141gb "])
def test_lookup_forgives_spelling(name: str) -> None:
    assert lookup(name).name == "H200 SXM 141 GB"


def test_an_exact_name_wins_over_a_longer_one() -> None:
    assert lookup("L4 24 GB").name == "L4 24 GB"
    assert lookup("l4").name == "L4 24 GB"  # not an L40S


@pytest.mark.parametrize(
    ("name", "part"), [("H20O", "'H200 SXM 141 GB'"), ("A100", "A100 PCIe 80 GB"), ("", "allowed")]
)
def test_lookup_refuses_and_names_the_nearest(name: str, part: str) -> None:
    with pytest.raises(InputError, match="accelerator") as refused:
        lookup(name)
    assert part in str(refused.value)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H200", "H200 SXM 141 GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM 80 GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB"),
        ("NVIDIA L40S", "L40S 48 GB"),
        ("NVIDIA L4", "L4 24 GB"),
        ("NVIDIA B200", "B200 SXM 180 GB"),
        ("NVIDIA RTX A6000", "A6000 48 GB"),
    ],
)
def test_driver_names_find_their_row(driver: str, name: str) -> None:
    row = match_device(driver)
    assert row is not None
    assert row.name == name


def test_an_unknown_device_has_no_row() -> None:
    assert match_device("NVIDIA GeForce RTX 4090") is None
    assert match_device("NVIDIA H200 NVL") is None  # another board, another bandwidth


def test_this_machine() -> None:
    here = detect()
    assert here.cores == visible_cores() >= 1
    assert here.memory_bytes > 10**8
    assert here.price_usd_per_hour == pytest.approx(here.cores * CPU_PRICE_USD_PER_VCPU_HOUR)
    assert "Nebius" in here.price_source
    assert here.load_w is None


def test_a_given_price_wins() -> None:
    assert detect(price_usd_per_hour=0.0).price_usd_per_hour == 0.0
    assert detect(price_usd_per_hour=1.25).price_source == "given by the user"


@pytest.mark.parametrize(("device", "price"), [("tpu", None), ("cpu", -1.0), ("cpu", float("nan"))])
def test_bad_requests(device: str, price: float | None) -> None:
    with pytest.raises(InputError):
        detect(device, price)


def test_cuda_asked_for_but_absent() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(InputError, match="no CUDA device"):
        detect("cuda")
