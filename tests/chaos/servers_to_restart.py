"""Databases that can be taken away: a PostgreSQL of the test's own that crashes, a SQLite file that somebody holds."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Protocol

# The shell ends the server when it is told how, and when whoever started it has died: then nothing is left of it.
_GUARD = """
folder=$1; shift
"$@" </dev/null & read -r how
kill -s "${how:-QUIT}" $!; wait $!
[ "$how" ] || rm -rf "$folder"
"""
_START_S = 30.0


class Restarted(Protocol):
    """A database at `url` that can be taken away for a while."""

    url: str

    def restart(self, down_s: float) -> None:
        """Take it away for so long; returns when it serves again."""


class OwnPostgres:
    """A PostgreSQL cluster in a folder of its own. A restart is a crash: connections break, its log is replayed."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="skpg", dir="/tmp"))
        # PostgreSQL refuses to run as root; Debian's package brings the user.
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as_user:
            shutil.chown(self._folder, "postgres")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._guard: subprocess.Popen[bytes] | None = None
        made = self._run("initdb", "-D", "data", "-U", "saqkit", "-A", "trust", "-E", "UTF8", "--no-sync")
        assert made.returncode == 0, made.stderr.decode()

    def start(self) -> None:
        """Returns when it accepts connections."""
        settings = ["listen_addresses=127.0.0.1", "fsync=off", "logging_collector=off"]
        told = [part for setting in settings for part in ("-c", setting)]
        server = [str(self._programs / "postgres"), "-D", "data", "-p", str(self.port), "-k", str(self._folder), *told]
        with (self._folder / "server.log").open("ab") as log:
            self._guard = subprocess.Popen(
                [*self._as_user, "sh", "-c", _GUARD, "sh", str(self._folder), *server],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._folder, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + _START_S
        while self._run("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)).returncode:
            assert time.monotonic() < until, (self._folder / "server.log").read_text()
            time.sleep(0.02)

    def database(self, name: str) -> str:
        """Make a database and return its address."""
        made = self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "saqkit", name)
        assert made.returncode == 0, made.stderr.decode()
        return f"postgresql://saqkit@127.0.0.1:{self.port}/{name}"

    def restart(self, down_s: float) -> None:
        self._end()
        time.sleep(down_s)
        self.start()

    def stop(self) -> None:
        """End it and remove all it had."""
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.write(b"QUIT\n")  # "immediate": without a word to anybody, as in a crash
        self._guard.stdin.close()
        self._guard.wait(_START_S)
        self._guard = None

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [*self._as_user, str(self._programs / program), *arguments]
        return subprocess.run(command, cwd=self._folder, capture_output=True, check=False, timeout=60)


def postgres_programs() -> Path | None:
    """Where PostgreSQL's programs are, the newest of Debian's, or those on the path; None if nowhere."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).resolve().parent if on_path else None


class OneOfThem:
    """A database of an `OwnPostgres`."""

    def __init__(self, server: OwnPostgres, name: str) -> None:
        self._server, self.url = server, server.database(name)

    def restart(self, down_s: float) -> None:
        self._server.restart(down_s)


class HeldFile:
    """A SQLite file. It has no server that could be restarted: instead somebody holds its only writer's place."""

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, f"sqlite:///{path}"

    def restart(self, down_s: float) -> None:
        with closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as held:
            held.execute("BEGIN IMMEDIATE")
            time.sleep(down_s)
            held.execute("ROLLBACK")
