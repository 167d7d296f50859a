"""The usage database: served requests and API keys; used by the server, the meter and billing.

Models the one store that a company's invoices come from. SQLite in WAL mode by default, PostgreSQL by URL; several
processes may use either at once. Durability: SQLite runs with `synchronous=FULL`, which syncs the write-ahead log at
every commit (sqlite.org/pragma.html#pragma_synchronous), and PostgreSQL with `synchronous_commit` not off; so what was
committed survives the end of the process and of the machine, as far as the disk honours a sync (and, for PostgreSQL,
the server's own `fsync` is on).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    exc,
    inspect,
    text,
)
from sqlalchemy.engine import URL, make_url

from engine.errors import InputError

DEFAULT_URL = "sqlite:///out/usage.db"
NAME_CHARS = 200  # longest id or name that is kept

_BUSY_S = 5.0  # how long one statement waits for another process's write
_CONNECT_S = 10
_SCHEMA_LOCK = 0x666C7977  # any number of ours: who makes the tables waits for who is making them
_ALLOWED = "allowed: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"

METADATA = MetaData()

REQUESTS = Table(
    "requests",
    METADATA,
    Column("request_id", String(NAME_CHARS), primary_key=True),
    Column("key_id", String(NAME_CHARS), nullable=False),
    Column("model", String(NAME_CHARS), nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("arrived_s", Double, nullable=False),
    Column("first_token_s", Double),
    Column("finished_s", Double, nullable=False),
    Column("status", String(20), nullable=False),
    Column("cost_micro_usd", BigInteger, nullable=False),
)
Index("requests_by_time", REQUESTS.c.finished_s)
# Holds all that a key's spending is computed from, so that a budget is checked without reading the rows themselves.
Index(
    "requests_by_key",
    REQUESTS.c.key_id,
    REQUESTS.c.finished_s,
    REQUESTS.c.status,
    REQUESTS.c.prompt_tokens,
    REQUESTS.c.cached_tokens,
    REQUESTS.c.output_tokens,
    REQUESTS.c.cost_micro_usd,
)

KEYS = Table(
    "api_keys",
    METADATA,
    Column("key_id", String(NAME_CHARS), primary_key=True),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("prefix", String(20), nullable=False),
    Column("name", String(NAME_CHARS), nullable=False),
    Column("customer", String(NAME_CHARS), nullable=False),
    Column("plan", String(NAME_CHARS)),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("budget_micro_usd_per_month", BigInteger),
    Column("priority", Integer, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("expires_at_s", Double),
    Column("revoked_s", Double),
)


class UsageDatabaseError(InputError):
    """The database cannot be opened, read or written: one line with its URL (never its password) and the reason."""


def open_database(url: str, *, create: bool = True) -> Engine:
    """Connect, and create missing tables; without `create` nothing is written.

    Raises:
        UsageDatabaseError: not a URL of SQLite or PostgreSQL, no server answers there, or it is read-only; without
            `create` also if it does not exist or has no usage tables.
    """
    parsed = _parse(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite:
        _check_file(parsed, create)
    arguments: dict[str, Any] = {"timeout": _BUSY_S} if sqlite else {"connect_timeout": _CONNECT_S}
    try:
        engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not sqlite)
    except ImportError:
        raise UsageDatabaseError(
            f"{shown(parsed)}: PostgreSQL needs psycopg; pip install 'model-flywheel[postgres]'"
        ) from None
    event.listen(engine, "connect", _start_sqlite if sqlite else _start_postgresql)
    event.listen(engine, "begin", _begin)
    try:
        with naming_the_database(engine):
            _make_tables(engine) if create else _check_tables(engine)
    except UsageDatabaseError:
        engine.dispose()
        raise
    return engine


def shown(url: URL) -> str:
    """A URL for messages, without its password."""
    return url.render_as_string(hide_password=True)


@contextmanager
def naming_the_database(engine: Engine) -> Iterator[None]:
    """Turn errors of the database into one line that names it.

    Raises:
        UsageDatabaseError: the database refused or did not answer.
    """
    try:
        yield
    # The driver's own: what goes wrong while a connection starts comes without SQLAlchemy's wrapping.
    except (exc.SQLAlchemyError, engine.dialect.loaded_dbapi.Error) as error:
        reason = getattr(error, "orig", None) or error
        line = next(
            (part.strip() for part in str(reason).splitlines() if part.strip()), type(reason).__name__
        )
        raise UsageDatabaseError(f"{shown(engine.url)}: {line}") from error


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A writing transaction; it takes SQLite's write lock at its start, so that it waits instead of failing later."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


def is_transient(error: BaseException) -> bool:
    """The error is transient: a lock, a deadlock, a restarting server; the same statement may succeed in a moment."""
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    reason = getattr(error, "orig", None) or error
    code = getattr(reason, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED
    if not hasattr(reason, "sqlstate"):
        return False
    state = reason.sqlstate
    if state is None:  # no answer
        return type(reason).__name__ == "OperationalError"
    # Rolled back for another's sake (40), no lock (55P03), connection lost (08), too many (53300), restarting (57P).
    return state[:2] in ("08", "40") or state in ("55P03", "53300") or state.startswith("57P")


def month_bounds_s(month: str) -> tuple[float, float]:
    """Unix times [s] of the start of a month, UTC, and of the start of the next.

    Raises:
        InputError: `month` is not YYYY-MM.
    """
    try:
        if len(month) != 7 or not month.isascii():
            raise ValueError
        start = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        raise InputError(f"month: found {month!r}, allowed: YYYY-MM, 2026-11 for one") from None
    if start.year == 9999:
        raise InputError(f"month: found {month!r}, allowed: a year before 9999")
    after = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return start.timestamp(), after.timestamp()


def month_of(time_s: float) -> str:
    """The month (YYYY-MM, UTC) of a Unix time."""
    return f"{datetime.fromtimestamp(math.floor(time_s), UTC):%Y-%m}"


def check_name(what: str, value: object) -> None:
    """Check a name that is to be stored.

    Raises:
        InputError: not a text of 1 to 200 characters, or with control characters or lone surrogates in it.
    """
    if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARS:
        raise InputError(f"{what}: found {value!r:.60}, allowed: a text of 1 to {NAME_CHARS} characters")
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise InputError(f"{what}: found {value!r:.60}, allowed: a text without control characters")


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        # Of an invalid URL it is not known which part is the password.
        found = "no URL" if "@" in url else f"{url!r:.100}"
        raise UsageDatabaseError(f"database: found {found}, {_ALLOWED}") from None
    backend = parsed.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise UsageDatabaseError(f"database: found {shown(parsed)}, {_ALLOWED}")
    if parsed.database in (None, "", ":memory:"):
        raise UsageDatabaseError(f"database: found {shown(parsed)}, which names no file; {_ALLOWED}")
    return parsed.set(drivername="sqlite")


def _check_file(url: URL, create: bool) -> None:
    if str(url.database).startswith("file:"):  # SQLite's own form, with settings of its own
        return
    path = Path(str(url.database))
    if path.is_dir():
        raise UsageDatabaseError(f"{shown(url)}: {path} is a folder, allowed: a file")
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageDatabaseError(f"{shown(url)}: {path.parent}: {error.strerror}") from None
    elif not path.is_file():
        raise UsageDatabaseError(f"{shown(url)}: no such file; `flywheel serve` writes it")


def _start_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says, not where the driver guesses
    connection.execute("PRAGMA synchronous=FULL")


def _start_postgresql(connection: Any, _record: object) -> None:
    # Durability may be switched off for all sessions; stricter settings than "on" stay.
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        if cursor.fetchone()[0] == "off":
            cursor.execute("SET synchronous_commit = on")
    connection.commit()


def _begin(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_tables(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        _switch_to_wal(engine)
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SCHEMA_LOCK})
        METADATA.create_all(connection)


def _switch_to_wal(engine: Engine) -> None:
    """Set the file's journal mode, which is stored in the file; other processes may be setting it at the same time."""
    until = time.monotonic() + _BUSY_S
    while True:
        connection = engine.raw_connection()
        try:
            (mode,) = connection.cursor().execute("PRAGMA journal_mode=WAL").fetchone()
            break
        except engine.dialect.loaded_dbapi.Error as error:
            if not is_transient(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)
        finally:
            connection.close()
    if mode != "wal":
        raise UsageDatabaseError(f"{shown(engine.url)}: the journal mode is {mode}; this disk knows no WAL")


def _check_tables(engine: Engine) -> None:
    missing = set(METADATA.tables) - set(inspect(engine).get_table_names())
    if missing:
        raise UsageDatabaseError(
            f"{shown(engine.url)}: holds no usage (no table {min(missing)}); `flywheel serve` writes it"
        )
