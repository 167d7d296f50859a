"""A profile in words."""

from __future__ import annotations

import re

from sim.company.profile_rows import profile_rows
from sim.i18n.translate import speaking
from tests.helpers.profile import synthetic_profile


def test_describe_names_what_is_predicted() -> None:
    rows = dict(profile_rows(synthetic_profile()))
    assert rows["Kind"] == "PREDICTED, not measured"
    assert "0.0496 USD per hour" in rows["Price of the machine"]
    assert rows["Power under load"].startswith("unknown")


def test_a_profile_is_described_in_chinese() -> None:
    with speaking("zh"):
        rows = profile_rows(synthetic_profile())
    assert len(rows) == len(profile_rows(synthetic_profile()))
    assert all(re.search(r"[\u4e00-\u9fff]", label) for label, _ in rows)
    assert dict(rows)["类别"] == "预测所得，非实测"
