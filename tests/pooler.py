"""A real PgBouncer in front of the tests' Postgres. Tests that need it are skipped, and say so, where it is missing."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests import programs
from tests.waiting import until

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_pgbouncer = pytest.mark.skipif(not PROGRAM, reason="PgBouncer is not installed: apt-get install pgbouncer")

_CONFIGURATION = """
[databases]
* = host={url.host} port={url.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = {mode}
default_pool_size = {sessions}
auth_type = trust
auth_file = {folder}/users
"""


@contextmanager
def pooler(address: str, mode: str, *, sessions: int) -> Iterator[str]:
    """The address of the database behind a pooler that has at most so many sessions with it."""
    assert PROGRAM
    url = make_url(address)
    port = _free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        users = {make_url(one) for one in programs.addresses(address)}
        (folder / "users").write_text("".join(f'"{user.username}" "{user.password}"\n' for user in users))
        (folder / "ini").write_text(
            _CONFIGURATION.format(url=url, port=port, mode=mode, sessions=sessions, folder=folder)
        )
        user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
        with (folder / "log").open("w") as log:
            running = subprocess.Popen([PROGRAM, folder / "ini"], user=user, group=user and "nogroup", stderr=log)
        try:
            until(lambda: running.poll() is not None or _listens(port))
            assert running.poll() is None, (folder / "log").read_text()
            yield url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        finally:
            running.kill()
            running.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
