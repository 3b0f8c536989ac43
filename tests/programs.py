"""The programs' own users at the test servers. The tests themselves connect as presswork_app, which may do what all
three may; what stands for a program gets its rights alone."""

import dataclasses
from collections.abc import Mapping

from services.core.settings import Settings
from services.local.stack import Stack

_logins: dict[str, dict[str, str]] = {}  # of each program: the tests' name and password in an address, and its own


def learn(stack: Stack) -> None:
    """Called when the servers have started."""
    for program, own in stack.programs.items():
        _logins[program] = {_login(stack.values[variable]): _login(url) for variable, url in own.items()}


def address(program: str, url: str) -> str:
    """The same address for the program. One that holds another name and password stays as it is."""
    for usual, own in _logins.get(program, {}).items():
        url = url.replace(usual, own)
    return url


def addresses(url: str) -> list[str]:
    """That address, and the same one for each program."""
    return [url, *(address(program, url) for program in _logins)]


def environ(program: str, usual: Mapping[str, str]) -> dict[str, str]:
    return {name: address(program, value) for name, value in usual.items()}


def settings(program: str, usual: Settings) -> Settings:
    own = {name: address(program, getattr(usual, name)) for name in ("database_url", "redis_url")}
    return dataclasses.replace(usual, **own)


def _login(url: str) -> str:
    return f"//{url.partition('//')[2].partition('@')[0]}@"
