"""Valkey, the Redis-compatible server, with an append-only file, and a user for each program."""

import signal
import socket

from services.local import programs
from services.local.child import Child
from services.local.home import Home, write_private
from services.local.server import Server

CONFIGURATION = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
{users}
dir .
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
"""
# What each program does: it sends wake-ups, a web server keeps rate limits, and a worker waits for wake-ups. A user
# may read and write no other keys.
SENDS = "+ping +select +client|setinfo +set +lpush +ltrim +pexpire +multi +exec %W~presswork.* %W~presswork:*"
WAITS = "+brpop +llen %RW~presswork.*"
LIMITS = "+eval +time +hmget +hset %RW~presswork:rate:*"
RIGHTS = {
    "web": f"{SENDS} {LIMITS}",
    "scheduler": SENDS,
    "worker": f"{SENDS} {WAITS}",
    "app": f"{SENDS} {LIMITS} {WAITS}",
}


class Valkey(Server):
    name = "valkey"
    programs = frozenset({"valkey-server", "redis-server", "redis-check-rdb"})

    def __init__(self, home: Home, ports: dict[str, int]) -> None:
        super().__init__(home, ports)
        self.program = programs.valkey_server()
        self.port = ports["valkey"]
        self.password = home.secret("valkey")  # of the user `default`, who may do everything

    @staticmethod
    def wanted_ports() -> dict[str, bool]:
        return {"valkey": False}

    @property
    def admin_url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def url(self, program: str) -> str:
        return f"redis://presswork_{program}:{self.home.secret(f'valkey_{program}')}@127.0.0.1:{self.port}/0"

    def spawn(self) -> Child:
        configuration = self.folder / "valkey.conf"  # a password on the command line would be visible to all users
        users = "\n".join(user(name, self.home.secret(f"valkey_{name}"), rights) for name, rights in RIGHTS.items())
        write_private(configuration, CONFIGURATION.format(port=self.port, password=self.password, users=users))
        return Child(
            [self.program, configuration],
            env=self.environment(),
            log=self.log,
            cwd=self.folder,
            death_signal=signal.SIGTERM,
        )

    def ready(self) -> bool:
        """PING is answered only after the data is loaded."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (part := connection.recv(256)):
                    answer += part
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"


def user(program: str, password: str, rights: str) -> str:
    """A line of the configuration."""
    return f"user presswork_{program} on >{password} {rights}"
