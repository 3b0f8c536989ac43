"""The home folder of the embedded stack: its lock, saved secrets and ports, and the env file for shells.

Secrets are only in files of mode 0600 in a folder of mode 0700.
"""

import fcntl
import hashlib
import json
import os
import random
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from services.local.errors import AlreadyRunning, FolderUnusable, PortTaken

# Below the range of ports for outgoing connections. One server also needs port + 10000, so 22767 is the highest.
LOWEST_PORT, HIGHEST_PORT, SECOND_PORT = 15000, 22767, 10000
MARKS = "PRESSWORK_STACK_MARKS"  # in a shell that has sourced an env file: the values for embedded servers


class Home:
    """The folder. This process locks it from `open` to `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 - must not follow a link that is missing
        self.logs = self.folder / "logs"
        self._lock = -1

    def open(self) -> None:
        """Raises FolderUnusable or AlreadyRunning."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FolderUnusable(
                f"The folder {self.folder} cannot be written ({error.strerror}): "
                "make it writable, or name another one in PRESSWORK_HOME."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            self.close()
            raise AlreadyRunning(
                f"Presswork already runs on {self.folder} as process {holder}: "
                "end it with `presswork down`, or name another folder in PRESSWORK_HOME."
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Unlocks the folder. The lock file is kept: otherwise two processes could each lock a file of that name."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def secret(self, name: str) -> str:
        """The saved secret of that name, created at first use. Its 48 hexadecimal digits need no quoting."""
        saved = self._read("secrets.json")
        if name not in saved:
            saved[name] = secrets.token_hex(24)
            self._write("secrets.json", saved)
        return str(saved[name])

    def owns(self, value: str) -> bool:
        """Whether the value contains a saved secret: then it is an address or a key of this folder's servers."""
        return any(secret in value for secret in self._read("secrets.json").values())

    def ports(self, wanted: Mapping[str, bool], say: Callable[[str], None]) -> dict[str, int]:
        """A free port for each name, the saved one if possible. True means that port + 10000 must be free too.

        Call it before the folder's servers start: a saved port that is in use then belongs to another program.
        """
        saved: dict[str, int] = self._read("ports.json")
        chosen: dict[str, int] = {}
        for name, second in wanted.items():
            port = saved.get(name)
            if port is not None and (port in chosen.values() or not _is_usable(port, second)):
                say(f"Port {port} of {name} is in use by another program; another port is chosen and saved.")
                port = None
            chosen[name] = port if port is not None else _free_port(second, {*saved.values(), *chosen.values()})
        if {**saved, **chosen} != saved:
            self._write("ports.json", {**saved, **chosen})
        return chosen

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise FolderUnusable(
                f"{path} cannot be read ({error}): restore it, or name another PRESSWORK_HOME."
            ) from None
        if not isinstance(value, dict):
            raise FolderUnusable(f"{path} does not hold a JSON object: restore it, or name another PRESSWORK_HOME.")
        return value

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        write_private(self.folder / name, json.dumps(value, indent=1) + "\n")


def write_private(path: Path, text: str) -> None:
    """Replaces a file atomically by one of mode 0600. Raises FolderUnusable."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise FolderUnusable(f"{path} cannot be written: {error.strerror}.") from None


def write_env_file(home: Path, values: Mapping[str, str]) -> Path:
    """Writes `<home>/env` for a shell to source. Returns its path."""
    for name in values:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} cannot be the name of a variable.")
    values = {**values, MARKS: " ".join(_mark(value) for value in values.values() if Home(home).owns(value))}
    lines = ("export {}='{}'\n".format(name, value.replace("'", "'\\''")) for name, value in values.items())
    path = Path(home) / "env"
    write_private(path, "".join(lines))
    return path


def is_sourced(value: str, environ: Mapping[str, str]) -> bool:
    """Whether the value is an embedded server's, from a stack's env file. Its folder may be another one, or be gone."""
    return _mark(value) in environ.get(MARKS, "").split()


def _mark(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:12]


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now. Lingering connections of an earlier server do not matter."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _is_usable(port: int, second: bool) -> bool:
    return is_free(port) and (not second or is_free(port + SECOND_PORT))


def _free_port(second: bool, avoid: set[int]) -> int:
    for port in random.sample(range(LOWEST_PORT, HIGHEST_PORT + 1), 500):
        if port not in avoid and _is_usable(port, second):
            return port
    raise PortTaken(f"No free port was found from {LOWEST_PORT} to {HIGHEST_PORT}: end a program that listens there.")
