"""What can be done with every job that matches the filter of the list."""

from dataclasses import dataclass

from services.core.bulk.asked import Verb
from services.dashboard import access


@dataclass(frozen=True, slots=True)
class Choice:
    """An entry of the menu: what it does and says. `images`: what becomes of them."""

    verb: Verb
    word: str
    images: str
    scope: str = "operate"
    except_running: bool = False
    is_final: bool = False


CHOICES = {
    "pause": Choice("pause", "Pause", "that wait do not begin until the jobs are resumed"),
    "resume": Choice("resume", "Resume", "that wait are rendered again"),
    "priority": Choice("prioritize", "Set the priority of", "that wait get it"),
    "retry": Choice("retry", "Retry what failed of", "that failed are rendered again, in new jobs", scope="submit"),
    "cancel-waiting": Choice(
        "cancel",
        "Cancel all but what is running of",
        "that wait will not be rendered",
        except_running=True,
        is_final=True,
    ),
    "cancel": Choice("cancel", "Cancel", "that wait or are being rendered will not be finished", is_final=True),
    "delete": Choice("delete", "Delete", "are deleted with them", is_final=True),
}


def menu(visitor: access.Visitor) -> list[tuple[str, str]]:
    """Name and word of each choice that the visitor may take."""
    return [(name, choice.word.removesuffix(" of")) for name, choice in CHOICES.items() if visitor.may(choice.scope)]
