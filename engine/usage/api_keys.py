"""API keys: their limits, priority and plan; the secret itself is stored nowhere.

Models the credentials that a provider hands to customers. A secret is 256 random bits, shown once; the database holds
its SHA-256. A slow salted hash (bcrypt, argon2) makes it expensive to guess passwords that people choose; 256 random
bits cannot be guessed, and a fast hash lets each request be checked (NIST SP 800-63B, 5.1.1.2 and 5.1.2.2: secrets of
112 bits and more need only an approved one-way function). A key is looked up by that hash; the time of the look-up
depends on the hash, which an attacker cannot choose, so it reveals nothing of a secret.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from dataclasses import dataclass, fields

from sqlalchemy import insert, select, update

from engine.errors import InputError
from engine.usage.database import DEFAULT_URL, KEYS, check_name, naming_the_database, open_database, writing

FRESH_S = 1.0  # how long another process's revocation may take to be seen

_MARK = "fw-"
_PREFIX_CHARS = 10  # shown in lists: 42 of 256 bits
_LARGEST = 2**53 - 1
_REMEMBERED = 10_000  # keys


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret. Times are Unix times [s]; a limit of None is no limit."""

    key_id: str
    prefix: str  # first letters of the secret, to recognise it by
    name: str
    customer: str
    plan: str | None  # of the scenario that bills; None: the bill's default plan
    requests_per_minute: int | None
    tokens_per_minute: int | None
    budget_micro_usd_per_month: int | None
    priority: int
    created_s: float
    expires_at_s: float | None
    revoked_s: float | None

    @property
    def ends_s(self) -> float:
        """When it expires or was revoked; inf: never."""
        return min(end for end in (self.expires_at_s, self.revoked_s, math.inf) if end is not None)

    def is_good(self, now_s: float) -> bool:
        """The key is accepted at this Unix time."""
        return now_s < self.ends_s


class ApiKeys:
    """API keys in a usage database. Safe to use from several threads.

    Args:
        url: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE.
        create: create missing tables; else a database without them is refused.

    Raises:
        UsageDatabaseError: here and in every method, the database cannot be opened, read or written.
    """

    def __init__(self, url: str = DEFAULT_URL, *, create: bool = True) -> None:
        self._engine = open_database(url, create=create)
        self._seen: dict[str, tuple[float, ApiKey]] = {}  # hash -> monotonic time of reading, key

    def create(
        self,
        name: str,
        *,
        customer: str,
        plan: str | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        budget_usd_per_month: float | None = None,
        priority: int = 0,
        expires_at: float | None = None,
    ) -> tuple[str, str]:
        """Create a key; returns (its id, its secret), and the secret cannot be read again.

        Args:
            name: what the key is for.
            customer: who pays; there is one invoice per customer.
            plan: a plan of the scenario that bills ("developers", "enterprise/committed").
            requests_per_minute: limit of requests; None: none.
            tokens_per_minute: limit of prompt and output tokens; None: none.
            budget_usd_per_month: limit of spending; None: none.
            priority: higher is served first.
            expires_at: Unix time [s] from which it is refused; None: never.

        Raises:
            InputError: an empty name, a limit that is not positive, or a time in the past.
        """
        for what, text in (("name", name), ("customer", customer), ("plan", plan)):
            if what != "plan" or text is not None:
                check_name(what, text)
        for what, limit in (
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ):
            if limit is not None and (type(limit) is not int or not 0 < limit <= _LARGEST):
                raise InputError(f"{what}: found {limit!r:.60}, allowed: a whole number above 0")
        if type(priority) is not int or abs(priority) > 1000:
            raise InputError(f"priority: found {priority!r:.60}, allowed: a whole number from -1000 to 1000")
        budget = budget_usd_per_month
        if budget is not None and not 0 <= budget <= 1e9:
            raise InputError(f"budget_usd_per_month: found {budget!r:.60}, allowed: 0 to 1e9")
        created_s = time.time()
        if expires_at is not None and not created_s < expires_at < 1e11:
            raise InputError(f"expires_at: found {expires_at!r:.60}, allowed: a unix time that is to come")
        secret = _MARK + secrets.token_urlsafe(32)
        key = ApiKey(
            key_id=f"key_{secrets.token_hex(8)}",
            prefix=secret[:_PREFIX_CHARS],
            name=name,
            customer=customer,
            plan=plan,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            budget_micro_usd_per_month=None if budget is None else round(budget * 1e6),
            priority=priority,
            created_s=created_s,
            expires_at_s=expires_at,
            revoked_s=None,
        )
        row = {field.name: getattr(key, field.name) for field in fields(key)}
        with naming_the_database(self._engine), writing(self._engine) as connection:
            connection.execute(insert(KEYS).values(**row, secret_sha256=_hash(secret)))
        return key.key_id, secret

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret; None if there is none, or it is revoked or expired.

        Cached for `FRESH_S`, so fast enough for every request; a key that this object revoked is refused at once.
        """
        if not secret.startswith(_MARK):
            return None
        digest = _hash(secret)
        read_at, key = self._seen.get(digest, (-math.inf, None))
        if key is None or time.monotonic() - read_at >= FRESH_S:
            read_at = time.monotonic()
            key = self._read(digest)
            if key is None:  # not cached: many guessed secrets must not fill the memory
                return None
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            self._seen[digest] = (read_at, key)
        return key if key.is_good(time.time()) else None

    def list(self) -> list[ApiKey]:
        """All keys, oldest first, including revoked and expired ones, which are billed too."""
        query = select(*_COLUMNS).order_by(KEYS.c.created_s, KEYS.c.key_id)
        with naming_the_database(self._engine), self._engine.connect() as connection:
            return [ApiKey(*row) for row in connection.execute(query)]

    def revoke(self, key_id: str) -> None:
        """Refuse a key from now on: here at once, in other processes within `FRESH_S`. Idempotent.

        Raises:
            InputError: no such key.
        """
        with naming_the_database(self._engine), writing(self._engine) as connection:
            if connection.execute(select(KEYS.c.key_id).where(KEYS.c.key_id == key_id)).first() is None:
                raise InputError(f"key: found {key_id!r:.60}, allowed: an id that `flywheel keys list` shows")
            still_good = (KEYS.c.key_id == key_id) & KEYS.c.revoked_s.is_(None)
            connection.execute(update(KEYS).where(still_good).values(revoked_s=time.time()))
        self._seen.clear()

    def close(self) -> None:
        """Close the database connections."""
        self._engine.dispose()

    def _read(self, digest: str) -> ApiKey | None:
        with naming_the_database(self._engine), self._engine.connect() as connection:
            row = connection.execute(select(*_COLUMNS).where(KEYS.c.secret_sha256 == digest)).first()
        return None if row is None else ApiKey(*row)


_COLUMNS = [KEYS.c[field.name] for field in fields(ApiKey)]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
