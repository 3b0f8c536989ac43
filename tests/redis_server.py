"""A Valkey of a test's own, which the test may break: the servers of the other tests are not touched."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from services.local import programs
from services.local.servers import valkey
from tests.waiting import until

RIGHTS = valkey.RIGHTS["worker"].split()


@dataclass(frozen=True)
class RedisServer:
    """`url` is for a user with no more rights than Presswork needs, `client` may do everything."""

    url: str
    client: "redis.Redis"
    folder: Path

    def through(self, port: int) -> str:
        """Its address through a proxy."""
        return self.url.replace(f":{self.port}/", f":{port}/")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Runs one until the block ends."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [programs.valkey_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    try:
        until(lambda: answers(client))
        client.execute_command("ACL", "SETUSER", "presswork", "on", ">#/secret", *RIGHTS)
        yield RedisServer(f"redis://presswork:%23%2Fsecret@127.0.0.1:{port}/0", client, folder)
    finally:
        client.close()
        process.kill()
        process.wait()


def answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _fail_to_save(server: RedisServer) -> None:
    """MISCONF: the last save failed, since the folder to save in is gone."""
    server.folder.rmdir()
    server.client.bgsave()
    until(lambda: server.client.info("persistence")["rdb_last_bgsave_status"] == "err")
    server.client.config_set("save", "3600 1")


# How a server comes to answer with each error, and how it stops.
TROUBLES: dict[str, tuple[Callable[[RedisServer], object], Callable[[RedisServer], object]]] = {
    "READONLY": (
        lambda server: server.client.replicaof("127.0.0.1", 9),
        lambda server: server.client.replicaof("no", "one"),
    ),
    "NOPERM": (
        lambda server: server.client.execute_command("ACL", "SETUSER", "presswork", "-brpop", "-set"),
        lambda server: server.client.execute_command("ACL", "SETUSER", "presswork", *RIGHTS),
    ),
    "NOREPLICAS": (
        lambda server: server.client.config_set("min-replicas-to-write", 1),
        lambda server: server.client.config_set("min-replicas-to-write", 0),
    ),
    "OOM": (
        lambda server: server.client.config_set("maxmemory", 1),
        lambda server: server.client.config_set("maxmemory", 0),
    ),
    "WRONGTYPE": (
        lambda server: server.client.set("presswork.simulated", "no list"),
        lambda server: server.client.delete("presswork.simulated"),
    ),
    "MISCONF": (_fail_to_save, lambda server: server.client.config_set("stop-writes-on-bgsave-error", "no")),
}
ANSWERS = {
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
    "MOVED": b"-MOVED 3999 127.0.0.1:6381\r\n",
    "CLUSTERDOWN": b"-CLUSTERDOWN The cluster is down\r\n",
    "WRONGPASS": b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a number": b":1\r\n",
    "nonsense": b":one\r\n",
}
