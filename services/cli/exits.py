"""Exit codes, and the sentence or JSON that is printed with each. Errors never print a traceback."""

import functools
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import typer

from presswork_client import ClientError
from services.cli import show
from services.core.items.errors import Unreadable, WrongOption
from services.core.model.errors import Conflict, NotFound, PressworkError, SettingsError


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    INCOMPLETE = 3
    NOT_FOUND = 4
    REFUSED = 5
    UNREACHABLE = 6
    NOT_PUBLISHED = 7
    INTERRUPTED = 130


EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 the job ended and some images failed or were "
    "not made, 4 not found, 5 refused: bad input, a wrong key, or not possible in this state, 6 the "
    "server cannot be reached, 7 the run of a catalogue ended and the version before stays, 130 interrupted."
)


class BadInput(PressworkError):
    """The input was refused. Each problem has its line, row or index."""

    def __init__(self, message: str, problems: list[dict[str, Any]], *, hint: str = "") -> None:
        self.problems, self.hint = problems, hint
        super().__init__(message)


class Usage(PressworkError):
    """The options contradict each other or are incomplete."""


class Interrupted(PressworkError):
    """Ctrl-C was pressed. The message says how to go on."""


def guarded(verb: Callable[..., Any]) -> Callable[..., None]:
    """Makes a command whose return value is its exit code (None: 0) and whose errors are printed as sentences."""

    @functools.wraps(verb)
    def run(*arguments: Any, **options: Any) -> None:
        as_json = bool(options.get("as_json"))
        try:
            code = verb(*arguments, **options) or Exit.OK
        except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = Exit.OK
        except (ClientError, PressworkError, OSError) as error:
            code = report(error, as_json)
        except KeyboardInterrupt:
            code = report(Interrupted("stopped"), as_json)
        except typer.Exit:
            raise
        except typer.Abort:  # Ctrl-C or the end of the input where a question was asked
            show.say("")  # behind the question
            code = report(Interrupted("nobody answered, so nothing was changed; --yes asks nothing"), as_json)
        except Exception as error:  # a bug: the traceback is shown only on request
            if os.environ.get("PRESSWORK_TRACEBACK"):
                raise
            what = f"{type(error).__name__}: {error}"
            code = report(PressworkError(f"this command failed ({what}); PRESSWORK_TRACEBACK=1 shows where"), as_json)
        raise typer.Exit(int(code))

    return run


def report(error: Exception, as_json: bool) -> Exit:
    """Prints the error on stderr, and with --json also on stdout. Returns the exit code."""
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
        case ClientError(code="unknown_route") | ClientError(status=404, code="unexpected_answer"):
            return Exit.FAILED
        case ClientError(status=404) | NotFound():
            return Exit.NOT_FOUND
        case ClientError(code="unreachable" | "too_slow") | ClientError(status=502 | 503 | 504):
            return Exit.UNREACHABLE
        case ClientError(status=status) if 400 <= status < 500:
            return Exit.REFUSED
        case BadInput() | Unreadable() | Conflict():
            return Exit.REFUSED
        case Usage() | WrongOption() | SettingsError():
            return Exit.USAGE
        case Interrupted():
            return Exit.INTERRUPTED
    return Exit.FAILED


def _own_address() -> str:
    from services.cli.profile import own_address  # which imports this module

    return own_address()


def _hint(error: Exception) -> str:
    match error:
        case ClientError(code="missing_scope"):
            return "`presswork keys create NAME --scope ...` makes a key that has it; `keys list` shows what each has."
        case ClientError(code="invalid_api_key"):
            return "PRESSWORK_API_KEY or the profile's api_key is not one of this server's; `keys create` issues one."
        case ClientError(code="unreachable"):
            if "WRONG_VERSION_NUMBER" in str(error):
                return "The server there does not speak TLS; its address may begin with http:// instead of https://."
            return (
                "Is the server up, and PRESSWORK_URL or the profile's url its address? "
                f"`presswork up` starts one; in this folder it is {_own_address()}."
            )
        case ClientError(code="unexpected_answer"):
            return f"Is PRESSWORK_URL or the profile's url Presswork's address? In this folder it is {_own_address()}."
        case ClientError(code="unknown_route"):
            return (
                "This server is older than this command, or PRESSWORK_URL or the profile's url has a path after the "
                f"address, which looks like {_own_address()}."
            )
        case BadInput(hint=hint):
            return hint
    return ""
