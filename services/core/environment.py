"""A process's surroundings: variables that were set for other programs, and the folder for its temporary files."""

import os
import tempfile

from services.core.model.errors import SettingsError


def forget(prefix: str) -> None:
    """Removes every variable that begins so from this process."""
    for name in [name for name in os.environ if name.startswith(prefix)]:
        del os.environ[name]


def check_temporary_folder() -> None:
    """Raises SettingsError if submissions and exports have no place to be spooled to."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise SettingsError(
            "No folder for temporary files can be written; set TMPDIR to one, with room for submissions and exports."
        ) from None
