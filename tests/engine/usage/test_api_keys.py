"""API keys: the secret is kept nowhere, limits and ends hold, and a revocation is seen everywhere."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from engine.errors import InputError
from engine.usage import api_keys
from engine.usage import database as usage_database
from engine.usage.api_keys import ApiKeys
from engine.usage.database import UsageDatabaseError
from sim.cli import billing
from tests.helpers.postgres import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return new_database() if request.param == "postgresql" else f"sqlite:///{tmp_path}/usage.db"


def test_a_key_is_found_by_its_secret_alone(url: str) -> None:
    keys = ApiKeys(url)
    key_id, secret = keys.create(
        "production",
        customer="Müller & 山田",
        plan="enterprise/committed",
        requests_per_minute=60,
        tokens_per_minute=10**12,
        budget_usd_per_month=12.345678,
        priority=-3,
        expires_at=time.time() + 3600,
    )
    _, other = keys.create("other", customer="Other")
    found = ApiKeys(url).find(secret)
    assert found is not None
    assert (found.key_id, found.name, found.customer, found.plan) == (
        key_id, "production", "Müller & 山田", "enterprise/committed",
    )  # fmt: skip
    assert (found.requests_per_minute, found.tokens_per_minute, found.priority) == (60, 10**12, -3)
    assert found.budget_micro_usd_per_month == 12_345_678
    assert found == keys.find(secret) == keys.list()[0]
    assert keys.find(other) == keys.list()[1]
    for wrong in (secret[:-1], secret + "x", secret.upper(), "", "fw-", other[:-2] + "\ud800", key_id):
        assert keys.find(wrong) is None


def test_the_database_holds_the_hash_and_not_the_secret(tmp_path: Path) -> None:
    keys = ApiKeys(f"sqlite:///{tmp_path}/usage.db")
    secrets = [keys.create("n", customer="c")[1] for _ in range(20)]
    keys.close()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in secrets:
        assert len(secret) >= 43 + 3  # 256 bits in base 64
        assert secret.encode() not in held
        assert secret[11:].encode() not in held
        assert hashlib.sha256(secret.encode()).hexdigest().encode() in held
    assert len({secret[3:8] for secret in secrets}) == 20


def test_a_revocation_holds_at_once_here_and_soon_in_other_processes(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, server = ApiKeys(url), ApiKeys(url)
    key_id, secret = keys.create("n", customer="c")
    assert keys.find(secret) is not None
    assert server.find(secret) is not None
    keys.revoke(key_id)
    assert keys.find(secret) is None
    monkeypatch.setattr(api_keys, "FRESH_S", 0.05)
    time.sleep(0.1)
    assert server.find(secret) is None
    first = keys.list()[0].revoked_s
    keys.revoke(key_id)  # again: nothing changes
    assert keys.list()[0].revoked_s == first
    with pytest.raises(InputError, match="allowed: an id that"):
        keys.revoke("key_of_nobody")


def test_an_expired_key_is_refused_though_it_was_just_seen(tmp_path: Path) -> None:
    keys = ApiKeys(f"sqlite:///{tmp_path}/usage.db")
    _, secret = keys.create("n", customer="c", expires_at=time.time() + 0.3)
    assert keys.find(secret) is not None
    time.sleep(0.35)
    assert keys.find(secret) is None
    assert len(keys.list()) == 1  # it stays: it has to be billed


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "two\nlines"},
        {"customer": "x" * 201},
        {"plan": ""},
        {"requests_per_minute": 0},
        {"requests_per_minute": -5},
        {"tokens_per_minute": 1.5},
        {"budget_usd_per_month": -1.0},
        {"budget_usd_per_month": float("nan")},
        {"priority": 10**6},
        {"expires_at": 1.0},
        {"expires_at": float("inf")},
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, changes: dict[str, object]) -> None:
    keys = ApiKeys(f"sqlite:///{tmp_path}/usage.db")
    values = {"name": "n", "customer": "c"} | changes
    with pytest.raises(InputError, match=f"^{next(iter(changes))}: found"):
        keys.create(values.pop("name"), **values)  # type: ignore[arg-type]
    assert keys.list() == []


def test_the_commands_create_list_and_revoke(tmp_path: Path) -> None:
    database = ["--database", f"sqlite:///{tmp_path}/usage.db"]
    made = run("create", "production", "--customer", "Acme", "--plan", "developers", "--scenario", "api_startup",
               "--budget-usd", "500", "--expires", "2999-01-01", "--json", *database)  # fmt: skip
    secret = json.loads(made)["secret"]
    (key,) = json.loads(run("list", "--json", *database))["keys"]
    assert key["state"] == "good"
    assert key["budget_micro_usd_per_month"] == 500_000_000
    assert secret.startswith(key["prefix"])
    assert secret not in run("list", *database)
    assert "Acme" in run("list", *database)
    assert json.loads(run("list", "--customer", "Other", "--json", *database))["keys"] == []
    run("revoke", key["key_id"], *database)
    assert json.loads(run("list", "--json", *database))["keys"][0]["state"] == "revoked"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (
            ["create", "n", "--customer", "c", "--plan", "gold", "--scenario", "api_startup"],
            "trial, developers",
        ),
        (["create", "n", "--customer", "c", "--expires", "tomorrow"], "allowed: YYYY-MM-DD"),
        (["create", "n", "--customer", "c", "--expires", "2001-01-01"], "expires_at"),
        (["list"], "no such file"),
        (["revoke", "key_x"], "no such file"),
    ],
)
def test_the_commands_refuse_in_one_line(tmp_path: Path, words: list[str], found: str) -> None:
    with pytest.raises(InputError, match=found) as caught:
        run(*words, "--database", f"sqlite:///{tmp_path}/usage.db")
    assert "\n" not in str(caught.value)


def test_a_read_only_database_is_told_in_one_line(tmp_path: Path) -> None:
    ApiKeys(f"sqlite:///{tmp_path}/usage.db").close()
    with pytest.raises(UsageDatabaseError, match="readonly") as caught:
        ApiKeys(f"sqlite:///file:{tmp_path}/usage.db?mode=ro&uri=true", create=False).create(
            "n", customer="c"
        )
    assert "\n" not in str(caught.value)


def test_a_locked_database_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_database, "_BUSY_S", 0.05)
    keys = ApiKeys(f"sqlite:///{tmp_path}/usage.db")
    _, secret = keys.create("n", customer="c")
    holder = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UsageDatabaseError, match="database is locked") as caught:
        keys.create("n", customer="c")
    assert "\n" not in str(caught.value)
    assert keys.find(secret) is not None  # who reads doesn't wait for who writes
    holder.close()


def run(*words: str) -> str:
    """What `flywheel keys WORDS` prints."""
    result = CliRunner().invoke(billing.app, list(words), catch_exceptions=False, standalone_mode=False)
    if isinstance(result.exception, typer.Exit | InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout
