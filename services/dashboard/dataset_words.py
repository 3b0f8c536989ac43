"""What a dataset takes, in words, and the texts by which a version is fetched or read."""

import shlex

from services.core.datasets.dataset_records import Dataset, Version
from services.core.datasets.definition import DatasetFilters
from services.dashboard.words import moment, plural

_PULL = "presswork dataset pull {name} -o {folder}"
_PYTHON = """import os

from presswork_client import Client

with Client({base!r}, os.environ["PRESSWORK_API_KEY"]) as client:
    {call}"""
_STREAM = "for image in client.dataset({name!r}).stream({version}split={split!r}, shuffle=True):\n        ..."
_FETCH = "client.dataset({name!r}).pull(Path({folder!r}){version})"


def filters(given: DatasetFilters) -> list[tuple[str, str]]:
    """Which done images are taken: a name and a sentence for each filter."""
    marks = [{"none": "without a mark"}.get(mark, mark) for mark in given.marks]
    said = [("Marks", _either(marks))]
    if given.statuses:
        said.append(("Jobs that are", _either(list(given.statuses))))
    said += [("Scores", one) for one in given.scores]
    said += [("Metadata", one) for one in given.metadata]
    if given.flagged is not None:
        said.append(("The checker", "flagged them" if given.flagged else "did not flag them"))
    if given.unknown_words is not None:
        said.append(("Unknown words", "in the prompt" if given.unknown_words else "none in the prompt"))
    if given.after is not None:
        said.append(("Rendered from", moment(given.after)))
    if given.before is not None:
        said.append(("Rendered before", moment(given.before)))
    return said


def why(version: Version) -> str:
    """What became of a version, or what holds it up, in one sentence."""
    if version.error:
        return version.error
    if version.state == "queued":
        return "Its images are being counted."
    if version.state == "running":
        return f"{version.images_written:,} of {plural(version.images_to_write, 'picture')} are written."
    if version.state == "cancelled":
        return "It was stopped; nothing of it is left."
    plan = version.plan
    if plan is None:
        return ""
    parts = [f"{version.images_to_write:,} written" + (f" over version {version.base}" if version.base else "")]
    if plan.removed:
        parts.append(f"{plural(plan.removed, 'picture')} taken out, {plural(plan.rewritten, 'shard')} written again")
    if version.while_running:
        parts.append("with what jobs had done so far")
    return "; ".join(parts)


def ways(base: str, dataset: Dataset, version: Version | None = None) -> list[tuple[str, str]]:
    """By name: the command that fetches it, and Python."""
    name, folder, split = dataset.name, dataset.name, next(iter(dataset.definition.split))
    number = "" if version is None else str(version.number)
    pull = _PULL.format(name=shlex.quote(name), folder=shlex.quote(folder)) + (f" --version {number}" if number else "")
    if dataset.format in ("webdataset", "parquet"):
        call = _STREAM.format(name=name, version=f"{number}, " if number else "", split=split)
        return [("The command", pull), ("Python", _PYTHON.format(base=base, call=call))]
    call = _FETCH.format(name=name, folder=folder, version=f", {number}" if number else "")
    python = _PYTHON.format(base=base, call=call).replace("import os\n", "import os\nfrom pathlib import Path\n", 1)
    return [("The command", pull), ("Python", python)]


def _either(some: list[str]) -> str:
    return some[0] if len(some) == 1 else f"{', '.join(some[:-1])} or {some[-1]}"
