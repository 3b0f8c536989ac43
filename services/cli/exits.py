"""How the command ends: its exit codes, and the sentence (or JSON) that goes with each. No traceback reaches anyone."""

import functools
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import typer

from presswork_client import ClientError
from services.cli import show
from services.core.model.errors import PressworkError, SettingsError


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    INCOMPLETE = 3
    NOT_FOUND = 4
    REFUSED = 5
    UNREACHABLE = 6
    INTERRUPTED = 130


EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 the job ended and images of it failed or were "
    "never made, 4 there is no such thing, 5 refused: bad input, a wrong key, or not possible in this state, 6 the "
    "server cannot be reached, 130 interrupted."
)


class BadInput(PressworkError):
    """The input was refused; each problem stands at a line, a row or an index of what was given."""

    def __init__(self, message: str, problems: list[dict[str, Any]], *, hint: str = "") -> None:
        self.problems, self.hint = problems, hint
        super().__init__(message)


class Unreadable(PressworkError):
    """The input cannot be read as what it was said to be."""


class Usage(PressworkError):
    """The options do not go together."""


class Interrupted(PressworkError):
    """Ctrl-C, and what to do now."""


def guarded(verb: Callable[..., Any]) -> Callable[..., None]:
    """A command whose return is its exit code (None: 0) and whose errors are sentences."""

    @functools.wraps(verb)
    def run(*arguments: Any, **options: Any) -> None:
        as_json = bool(options.get("as_json"))
        try:
            code = verb(*arguments, **options) or Exit.OK
        except BrokenPipeError:  # the reader of our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = Exit.OK
        except (ClientError, PressworkError, OSError) as error:
            code = tell(error, as_json)
        except KeyboardInterrupt:
            code = tell(Interrupted("stopped"), as_json)
        except typer.Exit:
            raise
        except Exception as error:  # ours to mend, and still no page of code for anyone who did not ask for it
            if os.environ.get("PRESSWORK_TRACEBACK"):
                raise
            what = f"{type(error).__name__}: {error}"
            code = tell(PressworkError(f"this command broke ({what}); PRESSWORK_TRACEBACK=1 shows where"), as_json)
        raise typer.Exit(int(code))

    return run


def tell(error: Exception, as_json: bool) -> Exit:
    """Says what went wrong, on stderr, and with --json on stdout too; the code that it ends with."""
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        error = PressworkError(f"{name}{error.strerror or error}")
    code = _code(error)
    problems = error.problems if isinstance(error, BadInput) else getattr(error, "errors", [])
    if problems and not (len(problems) == 1 and problems[0]["message"] == str(error)):
        show.problems(problems)
    show.say(str(error))
    hint = _hint(error)
    if hint:
        show.say(hint, style="dim")
    if as_json and not isinstance(error, Interrupted):
        found = {"code": getattr(error, "code", code.name.lower()), "message": str(error)}
        show.document({"error": found | ({"errors": problems} if problems else {})})
    return code


def _code(error: Exception) -> Exit:
    match error:
        case ClientError(code="unknown_route"):
            return Exit.FAILED
        case ClientError(status=404):
            return Exit.NOT_FOUND
        case ClientError(code="unreachable") | ClientError(status=502 | 503 | 504):
            return Exit.UNREACHABLE
        case ClientError(status=status) if 400 <= status < 500:
            return Exit.REFUSED
        case BadInput() | Unreadable():
            return Exit.REFUSED
        case Usage() | SettingsError():
            return Exit.USAGE
        case Interrupted():
            return Exit.INTERRUPTED
    return Exit.FAILED


def _hint(error: Exception) -> str:
    match error:
        case ClientError(status=401):
            return "PRESSWORK_API_KEY or the profile's api_key is not one of this server's; `keys create` issues one."
        case ClientError(code="unreachable"):
            return "Is the server up, and PRESSWORK_URL or the profile's url its address? `presswork up` starts one."
        case ClientError(code="unknown_route"):
            return "This server does not know that; it may be older than this command."
        case BadInput(hint=hint):
            return hint
    return ""
