"""Errors of the embedded stack. Each message says what to do."""

from services.core.model.errors import PressworkError


class AlreadyRunning(PressworkError):
    """Presswork already runs on this folder: end it with `presswork down`, or name another one in PRESSWORK_HOME."""


class FolderUnusable(PressworkError):
    """The home folder cannot be used: name another one in PRESSWORK_HOME."""


class PortTaken(PressworkError):
    """A port that the embedded stack needs is in use by another program."""


class ServerFailed(PressworkError):
    """A server of the embedded stack could not be started."""
