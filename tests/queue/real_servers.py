"""Real Redis servers on loopback: single ones, clusters, sentinels. Each is ended by its own process."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import redis
from redis.crc import key_slot

SLOTS = 16384


def binary() -> str:
    """Debian's server where it is installed, else the one that saqkit would start."""
    from saqkit.broker import find_binary

    return shutil.which("redis-server") or str(find_binary())


def free_port() -> int:
    """A port whose cluster bus (10,000 above) is free too; below those that the kernel gives to clients."""
    while True:
        port = random.randrange(11_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port


def wait_until(true: Callable[[], bool], within_s: float = 20.0) -> float:
    """Wait for a condition; errors of connections count as not yet. Returns the seconds it took."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if true():
                return time.monotonic() - began
        assert time.monotonic() - began < within_s, "it did not happen in time"
        time.sleep(0.02)


class Server:
    """One process in a folder of its own."""

    started: ClassVar[list[Server]] = []

    def __init__(self, folder: Path, *words: str, conf: Path | None = None, tls: dict[str, str] | None = None) -> None:
        self.port, self.folder, self.tls, self.id = free_port(), folder, tls or {}, ""
        folder.mkdir(exist_ok=True)
        port = ["--port", "0", "--tls-port", str(self.port)] if tls else ["--port", str(self.port)]
        common = ["--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        with (folder / "log").open("ab") as log:
            command = [binary(), *([str(conf)] if conf else []), *port, *common, *words]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        Server.started.append(self)

    def client(self, **options: Any) -> redis.Redis:
        if self.tls:
            options |= {"ssl": True, "ssl_ca_certs": self.tls["ca"]}
            options |= {"ssl_certfile": self.tls["cert"], "ssl_keyfile": self.tls["key"]}
        return redis.Redis(port=self.port, socket_timeout=5, **options)

    def ask(self, *words: Any) -> Any:
        with self.client(decode_responses=True) as client:
            return client.execute_command(*words)

    def ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        return bool(self.ask("PING"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Cluster:
    """Primaries that share the slots evenly, each with so many replicas."""

    def __init__(self, folder: Path, primaries: int = 3, replicas: int = 0) -> None:
        words = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0",
                 "--repl-diskless-sync-delay", "0")  # fmt: skip
        self.nodes = [Server(folder / f"node{n}", *words) for n in range(primaries * (1 + replicas))]
        for node in self.nodes:
            wait_until(node.ready)
            node.id = node.ask("CLUSTER", "MYID")
        each = SLOTS / primaries
        for n, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            if n < primaries:
                node.ask("CLUSTER", "ADDSLOTS", *range(round(n * each), round((n + 1) * each)))
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port)
        wait_until(
            lambda: all(node.ask("CLUSTER", "NODES").count("connected") == len(self.nodes) for node in self.nodes)
        )
        for n, node in enumerate(self.nodes[primaries:]):
            node.ask("CLUSTER", "REPLICATE", self.nodes[n % primaries].id)
        wait_until(lambda: all("cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in self.nodes))
        for node in self.nodes[primaries:]:
            wait_until(lambda node=node: node.ask("INFO").get("master_link_status") == "up")  # type: ignore[misc]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def owner(self, name: str, asked: int = 0) -> Server:
        """The node that has the queue of this name."""
        slot = key_slot(f"saq:{{{name}}}:".encode())
        for first, last, primary, *_ in self.nodes[asked].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == primary[1])
        raise AssertionError(f"nobody has slot {slot}")

    def name_on(self, node: Server, begins: str = "q") -> str:
        """A queue's name that lies on this node."""
        return next(name for name in (f"{begins}{n}" for n in range(1000)) if self.owner(name) is node)

    def move(self, name: str, target: Server, half_way: Callable[[], None] = lambda: None) -> int:
        """Move the slot of a queue to another node, key by key; returns how many keys."""
        source, slot, moved = self.owner(name), key_slot(f"saq:{{{name}}}:".encode()), 0
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 20):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
            if moved == len(keys):
                half_way()
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        return moved


class Watched:
    """A primary, its replica, and sentinels that watch them under the name "jobs"."""

    def __init__(self, folder: Path, sentinels: int = 3) -> None:
        fast = ("--repl-diskless-sync-delay", "0", "--appendonly", "yes")
        self.primary = Server(folder / "primary", *fast)
        wait_until(self.primary.ready)
        self.replica = Server(folder / "replica", *fast, "--replicaof", f"127.0.0.1 {self.primary.port}")
        wait_until(lambda: self.replica.ask("INFO")["master_link_status"] == "up")
        self.sentinels: list[Server] = []
        for n in range(sentinels):
            conf = folder / f"sentinel{n}.conf"
            conf.write_text(
                f"sentinel monitor jobs 127.0.0.1 {self.primary.port} {sentinels // 2 + 1}\n"
                "sentinel down-after-milliseconds jobs 500\nsentinel failover-timeout jobs 3000\n"
            )
            self.sentinels.append(Server(folder / f"sentinel{n}", "--sentinel", conf=conf))
        for sentinel in self.sentinels:
            wait_until(sentinel.ready)
            wait_until(lambda sentinel=sentinel: self._sees_all(sentinel))  # type: ignore[misc]

    def _sees_all(self, sentinel: Server) -> bool:
        found = sentinel.ask("SENTINEL MASTER", "jobs")
        return bool(found["num-other-sentinels"] == len(self.sentinels) - 1 and found["num-slaves"] == 1)

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/jobs/0"


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """Whatever happens, end with the block the servers that were started in it."""
    before = len(Server.started)
    try:
        yield
    finally:
        for server in Server.started[before:]:
            server.kill()
        del Server.started[before:]


def make_certificates(folder: Path) -> dict[str, str]:
    """A CA of our own, and a certificate for 127.0.0.1 and localhost that it signed."""
    paths = {name: str(folder / f"{name}.pem") for name in ("ca", "ca_key", "cert", "key", "request")}
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", paths["ca_key"], "-out", paths["ca"], "-days", "2", "-subj", "/CN=CA")
    openssl("req", *new_key, "-keyout", paths["key"], "-out", paths["request"], "-subj", "/CN=localhost")
    openssl("x509", "-req", "-in", paths["request"], "-CA", paths["ca"], "-CAkey", paths["ca_key"], "-CAcreateserial",
            "-out", paths["cert"], "-days", "2", "-extfile", str(folder / "san"))  # fmt: skip
    return paths
