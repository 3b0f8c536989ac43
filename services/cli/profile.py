"""Finds the server and the key: the named profile, else the environment, else the profile file's default, else the
local stack in this folder."""

import os
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from presswork_client import Client, ClientError
from services.cli import show
from services.core.model.errors import SettingsError
from services.core.settings import Settings

PATIENCE_SECONDS = 5.0
_QUIET_ATTEMPTS = 1  # one lost answer is not reported


@dataclass(frozen=True, slots=True)
class Profile:
    url: str
    api_key: str


def connect(name: str | None, patience: float | None = None) -> Client:
    """A client of the chosen server. If it has to wait for the server, it says so once."""
    profile = find(name)
    attempts = 0

    def on_wait(why: ClientError) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == _QUIET_ATTEMPTS + 1:
            show.say(f"{why.message}; trying again", style="dim")

    patience = PATIENCE_SECONDS if patience is None else patience
    return Client(profile.url, profile.api_key, patience=patience, on_wait=on_wait)


def settings() -> Settings:
    """The environment's settings. Raises SettingsError: if a stack's env file in this folder would do, it names it."""
    try:
        return Settings.read()
    except SettingsError as error:
        file = env_file()
        if os.environ.get("DATABASE_URL") or not file.exists():
            raise
        raise SettingsError(f"{error} Here that is `. {shlex.quote(str(file))}`.") from None


def find(name: str | None, environ: Mapping[str, str] = os.environ) -> Profile:
    """Raises SettingsError if no server is configured, or its profile is invalid."""
    url, key = environ.get("PRESSWORK_URL"), environ.get("PRESSWORK_API_KEY")
    if name is None and (url or key):
        if not (url and key):
            given, missing = ("PRESSWORK_URL", "PRESSWORK_API_KEY") if url else ("PRESSWORK_API_KEY", "PRESSWORK_URL")
            raise SettingsError(f"{given} is set and {missing} is not; set both, or neither and use a profile.")
        return _checked(url, key, "PRESSWORK_URL", environ)
    path = config_path(environ)
    name = name or environ.get("PRESSWORK_PROFILE")
    config = _read(path)
    name = name or config.get("default")
    profiles = config.get("profiles", {})
    if name is None and isinstance(profiles, dict) and len(profiles) == 1:
        name = next(iter(profiles))  # the only one there is
    if name is not None:
        return _named(path, profiles, str(name))
    home = Path(environ.get("PRESSWORK_HOME", ".presswork"))
    local = local_stack(home)
    if local is None:
        raise SettingsError(
            f"No server is named: set PRESSWORK_URL and PRESSWORK_API_KEY, or write [profiles.NAME] with url and"
            f" api_key into {path}, or start one here with `presswork up`."
        )
    show.say(f"using the local stack in {home}, at {local.url}", style="dim")
    return local


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    given = environ.get("PRESSWORK_CONFIG")
    if given:
        return Path(given)
    try:
        base = environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    except RuntimeError:  # HOME is not set, and the user has no entry in the user database
        base = "~/.config"
    return Path(base) / "presswork" / "config.toml"


def own_address(environ: Mapping[str, str] = os.environ) -> str:
    """The address of the local stack in this folder, or that of one on the usual port."""
    local = local_stack(Path(environ.get("PRESSWORK_HOME", ".presswork")))
    return local.url if local else f"http://127.0.0.1:{Settings.default('PRESSWORK_PORT')}"


def env_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the env file of a stack in this folder is, if there is one."""
    return Path(environ.get("PRESSWORK_HOME", ".presswork")) / "env"


def local_stack(home: Path) -> Profile | None:
    """The server and key in the env file of a stack on this folder, if there is one."""
    try:
        lines = (home / "env").read_text(encoding="utf-8").splitlines()
        words = [word for line in lines for word in shlex.split(line.removeprefix("export "))]
    except (OSError, ValueError):
        return None
    values = dict(word.split("=", 1) for word in words if "=" in word)
    if "PRESSWORK_URL" not in values or "PRESSWORK_API_KEY" not in values:
        return None
    return Profile(values["PRESSWORK_URL"], values["PRESSWORK_API_KEY"])


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                show.say(f"{path} holds keys and other users may read it; run `chmod 600 {shlex.quote(str(path))}`")
            return tomllib.loads(file.read().decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None


def _named(path: Path, profiles: object, name: str) -> Profile:
    known = profiles if isinstance(profiles, dict) else {}
    found = known.get(name)
    if not isinstance(found, dict):
        shown = ", ".join(sorted(known)) or "none"
        raise SettingsError(f"{path} has no profile {name!r}; it has: {shown}.")
    for field in ("url", "api_key"):
        if not isinstance(found.get(field), str) or not found[field]:
            raise SettingsError(f"{path}: the profile {name!r} has no {field}; it must be a text.")
    return _checked(found["url"], found["api_key"], f"{path}: the url of {name!r}")


def _checked(url: str, key: str, what: str, environ: Mapping[str, str] = os.environ) -> Profile:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL("")
    if address.scheme not in ("http", "https") or not address.host:
        found = "not understood" if "@" in url else repr(url)  # it may hold a password
        raise SettingsError(f"{what} is {found}; it must be an address such as {own_address(environ)}.")
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"The API key that belongs to {address.host} has characters that are not allowed in a key.")
    return Profile(url.rstrip("/").removesuffix("/v1"), key)  # the base_url of OpenAI's client ends with it
