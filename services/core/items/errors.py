"""Why a file of items or requests is not read at all. What is wrong with one row is a Problem of that row.

The sentences name options as the command writes them, such as --encoding.
"""

from services.core.model.errors import PressworkError


class Unreadable(PressworkError):
    """The input cannot be read in the given format."""


class WrongOption(PressworkError):
    """An option of reading is unknown, or does not fit the format."""
