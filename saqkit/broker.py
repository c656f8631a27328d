"""The broker: a Valkey or Redis server that saqkit finds, starts, checks and ends by itself.

`resolve()` decides which broker a process uses: the address given, else the one that the environment names
(`saqkit.broker_environment`), else `embedded()`.

- **embedded**: one per user and machine. It lives in `$SAQKIT_STATE/broker` (default: the user's state folder),
  outlives the process that started it, and is found by every later one. It is known by what it says of itself: who
  answers at the recorded address and runs on *our* configuration file is ours, whatever its process id.
- **private**: one per `with private()`, in a temporary folder, for measurements, demos and tests. It must outlive a
  Ctrl-C at the terminal (its owner still has to clean up) but not its owner. So it runs in a session of its own under
  a shell that waits on a pipe from the owner: when the owner closes the pipe, or dies in whatever way, the shell ends
  the server and removes the folder. (Linux's PR_SET_PDEATHSIG would tie the server to the *thread* that started it,
  leave the folder behind, and do nothing on macOS.)

Both keep an append-only file that is written before each reply, so that a killed server loses nothing it acknowledged
(a power cut: up to one second); both refuse to evict, and listen on a unix socket that only the user can open. Where
the path of the socket would be too long they listen on 127.0.0.1, with a random password.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from saqkit.broker_address import TIMEOUT_S, check, info, parse, redact
from saqkit.broker_environment import named_broker
from saqkit.broker_server import (
    GUARDED,
    ON_ITS_OWN,
    Broker,
    alive,
    configure,
    find_binary,
    has_ended,
    launch,
    recognise,
    running_in,
    socket_url,
    wait_ready,
    writable,
    write_secret,
)
from saqkit.errors import BrokerError

__all__ = [
    "Broker",
    "PrivateBroker",
    "check",
    "embedded",
    "find_binary",
    "private",
    "redact",
    "resolve",
    "status",
    "stop",
]

_LOCK_S = 60.0


def resolve(url: str | None = None) -> str:
    """The broker's address: `url`, else the environment's, else that of the embedded broker, started if need be."""
    chosen = url or named_broker()
    if not chosen:
        return embedded().url
    parse(chosen)
    return chosen


def embedded() -> Broker:
    """The one broker of this user and machine, started if it does not run yet."""
    folder = writable(_state_folder())
    with _locked(folder):
        if found := _find(folder):
            return found
        binary = find_binary()
        url = configure(folder, aof=True)
        # Recorded first: a starter that dies half-way leaves a server that the next process finds.
        _record(folder, url=url, binary=str(binary), host=platform.node())
        with launch(ON_ITS_OWN, folder, binary) as shell:
            broker = wait_ready(url, folder, shell)
        _record(folder, url=url, binary=str(binary), host=platform.node(), pid=broker.pid)
        return broker


def status() -> Broker | None:
    """The embedded broker if it runs. Raises `BrokerError` if it runs but does not answer."""
    folder = _state_folder()
    if not folder.is_dir():
        return None
    with _locked(writable(folder)):
        return _find(folder)


def stop() -> bool:
    """End the embedded broker, also one that no longer answers; its data stay. False if none was running."""
    import psutil

    folder = _state_folder()
    if not folder.is_dir():
        return False
    with _locked(writable(folder)):
        process = running_in(folder)
        if process is None and (found := _find(folder)):  # its pid file was removed
            process = psutil.Process(found.pid)
        for demand in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 2 * TIMEOUT_S
            if process is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(demand)
            while alive(process) and time.monotonic() < deadline:
                time.sleep(0.01)
        if alive(process):
            raise BrokerError(f"the broker in {folder} cannot be ended: process {process.pid if process else 0} stays")
        for name in ("broker.json", "broker.pid", "broker.sock"):
            (folder / name).unlink(missing_ok=True)
        return process is not None


def _state_folder() -> Path:
    base = os.environ.get("SAQKIT_STATE") or platformdirs.user_state_dir("saqkit", appauthor=False)
    return Path(base).expanduser().resolve() / "broker"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(folder / "broker.lock", timeout=_LOCK_S, mode=0o600)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BrokerError(f"{lock.lock_file}: held by another process for more than {_LOCK_S:g} s") from error
    try:
        yield
    finally:
        lock.release()


def _record(folder: Path, **state: object) -> None:
    write_secret(folder / "broker.json", json.dumps(state))


def _find(folder: Path) -> Broker | None:
    """The server that runs on `folder`. The caller holds the lock, so none is being started by somebody else."""
    import redis

    try:
        state = json.loads((folder / "broker.json").read_text())
        url, host = str(state["url"]), str(state["host"])
    except (OSError, ValueError, KeyError, TypeError):
        url, host = socket_url(folder), platform.node()
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.suppress(redis.RedisError, OSError, ValueError, TypeError):
            if broker := recognise(url, folder, info(url)):
                return broker
        if (process := running_in(folder)) is None:
            break
        if time.monotonic() > deadline:
            raise BrokerError(
                f"the broker in {folder} (process {process.pid}) does not answer: end it with `saqkit broker stop`"
            )
        time.sleep(0.02)  # it is on its way out
    if host != platform.node():
        raise BrokerError(
            f"{folder}: in use by the broker of {host}, and two on one folder would ruin it "
            "(set SAQKIT_STATE to another folder, or remove broker.json there if that host is gone)"
        )
    return None


class PrivateBroker:
    """A server for one owner: `start`, `restart`, `stop`. Prefer `private()`, which cannot forget to stop.

    Each call blocks for some 50 ms and may be made from any thread, one at a time (`asyncio.to_thread`).
    `aof`: keep an append-only file; without one a restart loses everything. `folder`: where it lives, kept afterwards
    (default: a temporary one, removed with the server). `port`: listen there on 127.0.0.1, with a random password,
    instead of on a unix socket.
    """

    def __init__(self, *, aof: bool = True, folder: Path | None = None, port: int | None = None) -> None:
        self._aof, self._given, self._port = aof, folder, port
        self._folder: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._url = ""

    def start(self) -> Broker:
        """Start the server and return it once it answers."""
        if self._guard is not None:
            raise BrokerError(f"this private broker already runs in {self._folder}: stop it first")
        binary = find_binary()
        self._folder = writable(self._given) if self._given else _temporary_folder()
        try:
            if process := running_in(self._folder):
                raise BrokerError(f"{self._folder}: process {process.pid} serves it already (give another folder)")
            self._url = configure(self._folder, aof=self._aof, port=self._port)
            return self._begin(binary)
        except BaseException:
            self.stop()
            raise

    def restart(self, down_s: float = 0.0) -> Broker:
        """End the server and start it again `down_s` seconds later: same folder, same address, its data read back."""
        if self._guard is None:
            raise BrokerError("this private broker does not run: start it first")
        try:
            self._end(b"keep\n")
            time.sleep(down_s)
            return self._begin(find_binary())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and remove its temporary folder. A second call does nothing."""
        self._end()
        if self._folder is not None and self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, binary: Path) -> Broker:
        assert self._folder is not None
        self._guard = launch(GUARDED, self._folder, binary, remove=self._given is None)
        _owned.add(self)
        return wait_ready(self._url, self._folder, self._guard)

    def _end(self, word: bytes = b"") -> None:
        guard = self._guard
        if guard is None or guard.stdin is None or guard.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.write(word)
        guard.stdin.close()
        has_ended(guard, timeout_s=2.0)
        # The guard is not reaped yet, so the number of its group cannot have passed to anybody else.
        os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()
        guard.stdout.close()
        self._guard = None


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="saqkit-")).resolve()
    except OSError as error:
        raise BrokerError(f"no temporary folder: {error.strerror} (set TMPDIR to another folder)") from error


@contextlib.contextmanager
def private(*, aof: bool = True, folder: Path | None = None) -> Iterator[Broker]:
    """A private broker for the length of a `with` block; the arguments are those of `PrivateBroker`."""
    server = PrivateBroker(aof=aof, folder=folder)
    try:
        yield server.start()
    finally:
        server.stop()


_owned: weakref.WeakSet[PrivateBroker] = weakref.WeakSet()


def _disown() -> None:
    """A forked child lets go of the pipes, which would keep the servers alive after their owner, and of the servers."""
    for server in list(_owned):
        if server._guard is not None and server._guard.stdin is not None:
            server._guard.stdin.close()
            server._guard.returncode = 0  # nothing that this process could wait for
            server._guard, server._folder = None, None


os.register_at_fork(after_in_child=_disown)
