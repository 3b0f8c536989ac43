"""What is wrong with the requests of a file, for people: how many rows are bad, and the place of each problem."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from presswork_client import Client, ClientError
from services.cli.checking import MAX_PROBLEMS, Checker, Survey, bad_rows
from services.cli.exits import BadInput
from services.core.items.reading import Row, Source

_FIRST = re.compile(r"was used at (line|index) ([\d,]+) already")


def of_rows(client: Client, source: Source, rows: Iterable[Row], *, after: str, hint: str = "") -> BadInput:
    """Of rows of which some are known to be bad. `after` ends the sentence."""
    survey = Survey(Checker(source, client))
    survey.take(rows)
    found = survey.entries(source.unit)[:MAX_PROBLEMS]
    return BadInput(f"refused: {bad_rows(survey)}{after}", found, hint=hint or _hint(found))


def of_server(
    client: Client,
    source: Source,
    error: ClientError,
    places: Sequence[int],
    rows: Iterable[Row],
    *,
    after: str,
    hint: str = "",
) -> Exception:
    """The server's refusal, with the places in the source. The server stops at its hundredth problem; `rows`, which
    begin with those that it read, are counted here."""
    if not error.errors:
        return error
    found = _at(error, source, places)
    survey = Survey(Checker(source, client))
    survey.take(rows)
    survey.bad = max(survey.bad, len({entry[source.unit] for entry in found} - {None}))
    if not survey.bad:
        return BadInput(f"refused: {summary(error)}{after}", found, hint=hint)
    return BadInput(f"refused: {bad_rows(survey)}{after}", found, hint=hint or _hint(found))


def summary(error: ClientError) -> str:
    count = len(error.errors)
    return "a problem was found" if count == 1 else f"{count} problems were found"


def placeless(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry.get(name) for name in ("param", "code", "message")}


def _hint(found: Sequence[Mapping[str, Any]]) -> str:
    ids = "--fix-ids makes custom_ids valid; " if any(entry["param"] == "custom_id" for entry in found) else ""
    return f"{ids}--skip-bad rejects.csv submits the other rows."


def _at(error: ClientError, source: Source, places: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    for entry in error.errors:
        line, index = entry.get("line"), entry.get("index")
        at = line - 1 if line is not None else index
        place = places[at] if at is not None and 0 <= at < len(places) else None
        rest = placeless(entry)
        if entry["code"] == "duplicate_custom_id":
            rest["message"] = _FIRST.sub(lambda first: _first(first, source, places), rest["message"])
        if index is not None:
            rest["param"] = (rest["param"] or "").removeprefix(f"images[{index}].") or None
            rest["message"] = rest["message"].replace(f"images[{index}].", "")
        found.append({source.unit: place, **rest})
    return found


def _first(found: re.Match[str], source: Source, places: Sequence[int]) -> str:
    at = int(found[2].replace(",", "")) - (found[1] == "line")
    return f"was used at {source.unit} {places[at]:,} already" if 0 <= at < len(places) else found[0]
