"""A private PostgreSQL for the tests: made in a temporary folder, reached by a Unix socket, gone when they end."""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from functools import cache
from pathlib import Path

import pytest


def new_database() -> str:
    """URL of a fresh, empty database; skips the test with the reason where no PostgreSQL can run."""
    socket = _cluster()
    if isinstance(socket, str):
        pytest.skip(socket)
    import psycopg

    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(host=str(socket), user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"postgresql://postgres@/{name}?host={socket}"


@cache
def _cluster() -> Path | str:
    """Folder of the socket of a running cluster, or why there is none."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
    if not programs:
        return "no PostgreSQL under /usr/lib/postgresql (Debian: apt install postgresql)"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if not shutil.which("runuser") or "postgres" not in {user.pw_name for user in pwd.getpwall()}:
            return "this is root, and there is no user postgres to run PostgreSQL as"
        as_user = ["runuser", "-u", "postgres", "--"]
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 characters
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if as_user:
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs[-1] / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=120)

    run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
    # No TCP at all; fsync stays on: what is tested is a durable server.
    run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -c listen_addresses=''")
    atexit.register(run, "pg_ctl", "stop", "-m", "immediate")
    return folder
