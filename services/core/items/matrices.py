"""The lists of a matrix as people write them: the values of a name between commas, as in CSV."""

import csv

from services.core.items import cells
from services.core.items.errors import WrongOption


def values(name: str, text: str) -> list[object]:
    """Red, teal, "dark, matt blue": a quoted value may hold a comma, and a number is one where a field needs it.

    Raises WrongOption if a value is empty or a quote is not closed."""
    try:
        found = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise WrongOption(f"{name}={text[:80]} cannot be divided at its commas: {error}.") from None
    if not found or "" in found:
        raise WrongOption(f"{name}={text} has an empty value; it must be NAME=A,B,...")
    return [cells.parsed(name, word) for word in found]
