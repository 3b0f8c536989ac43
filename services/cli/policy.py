"""`presswork policy`: the terms that a tenant's content policy refuses, and what it says to a text."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from presswork_client import PolicyTerm
from services.cli import options, show, units
from services.cli.exits import Exit, Usage, guarded
from services.cli.profile import connect
from services.core.model import terms

app = typer.Typer(no_args_is_help=True, help="See and change what the content policy refuses.")
_terms = typer.Typer(no_args_is_help=True, help="The words and phrases that no prompt may have.")
app.add_typer(_terms, name="terms")
_Terms = Annotated[list[str], typer.Argument(metavar="TERM", help="Words or phrases.", show_default=False)]


def add(found: _Terms, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Add terms. From the next submission on, a prompt that has one is refused.

    A term is found as whole words, in any case, with or without accents, and in letters that only look the same.
    """
    with connect(profile) as client:
        _print([client.add_policy_term(term) for term in found], as_json)


def remove(found: _Terms, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Remove terms, by their text or id."""
    with connect(profile) as client:
        known = list(client.policy_terms())
        chosen = []
        for wanted in found:
            folded = terms.folded(wanted)
            same = [term for term in known if term["id"] == wanted or term["folded"] == folded]
            if not same:
                raise Usage(f"There is no term {wanted[:80]!r}; `presswork policy terms list` shows those there are.")
            chosen += same
        for term in chosen:
            client.remove_policy_term(term["id"])
    if as_json:
        for term in chosen:
            show.document({"id": term["id"], "object": "policy.term", "deleted": True})
    else:
        show.say(f"{units.count(len(chosen), 'term')} removed")


def list_all(profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """List the terms."""
    with connect(profile) as client:
        found = list(client.policy_terms())
    _print(found, as_json)
    if not found and not as_json:
        show.say("there are no terms; `presswork policy terms add TERM` makes one")


def check(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A prompt.", show_default=False)],
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> int:
    """Say whether a prompt would be refused, and by which terms. The exit code is then 5."""
    with connect(profile) as client:
        found = client.check_policy(text)
    if as_json:
        show.document(found)
    elif not found["refused"]:
        show.say("the content policy does not refuse it")
    else:
        held = ", ".join([*found["terms"], *found["listed_terms"]])
        show.say(f"{found['reason']}" + (f" It has: {held}." if held else ""))
    return Exit.REFUSED if found["refused"] else Exit.OK


def _print(found: list[PolicyTerm], as_json: bool) -> None:
    for term in found:
        if as_json:
            show.document(term)
        else:
            show.render(term["term"])


_COMMANDS: dict[str, Callable[..., Any]] = {"add": add, "rm": remove, "list": list_all, "check": check}
for _name, _verb in _COMMANDS.items():
    _terms.command(_name)(guarded(_verb))
