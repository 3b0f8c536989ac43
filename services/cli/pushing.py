"""`presswork dataset push`: a version as a Hugging Face dataset repository, its card included, in one commit."""

import json
import re
from typing import Annotated

import typer

from presswork_client import DatasetFile
from presswork_client.pulling import JOURNAL, Source
from services.cli import dataset_delivery, options, show, units
from services.cli.dataset_delivery import Keep, Name, Parallel, Split, Version, moving
from services.cli.exits import BadInput, Usage
from services.cli.hub import Held, Repository
from services.cli.profile import connect

_MOST_FILES = 100_000  # of a repository, as the hub's documentation has it
_OWN = frozenset({".gitattributes", "README.md"})  # what a new repository may hold
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def push(
    name: Name,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="As owner/name.", show_default=False)],
    version: Version = None,
    split: Split = None,
    public: Annotated[bool, typer.Option("--public", help="Make it public; else it is private.")] = False,
    keep: Keep = False,
    parallel: Parallel = 4,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Push a version to a dataset repository of the Hugging Face hub.

    The token is HF_TOKEN, or that of `hf auth login`. Large files go first, those that the hub has not; one commit
    then shows all, and takes out what the version has not. The card becomes the repository's. If it is interrupted,
    the same command goes on. It needs the extra `hub`.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise Usage(f"{repository!r} is no repository; it must be one such as owner/name.")
    repo = Repository(repository)
    with connect(profile, dataset_delivery.PATIENCE_SECONDS) as client:
        dataset = client.dataset(name)
        number = dataset_delivery.number_of(dataset, version)
        files = list(dataset.files(number, split=split))
        if len(files) > _MOST_FILES:
            many = f"A repository holds {_MOST_FILES:,} files, and version {number} has {len(files):,}"
            raise BadInput(f"{many}; a dataset of the format webdataset or parquet has fewer.", [])
        source = Source(dataset.show()["id"], name, split)
        is_public = repo.open(public=public)
        held = repo.files()
        before = _journal(repo, held, source)
        now = {file["path"]: file["split"] for file in files}
        missing = [file for file in files if not _is_there(held, file)]
        over = [
            path
            for path, part in before.items()
            if not keep and path not in now and path in held and source.split in (None, part)
        ]
        noted = {path: part for path, part in (before | now).items() if path not in over}
        with moving("pushing", sum(file["bytes"] for file in files)) as moved:
            moved(sum(file["bytes"] for file in files) - sum(file["bytes"] for file in missing))
            additions = repo.upload(dataset, missing, parallel, moved)
            journal = {JOURNAL: json.dumps({"dataset": source.id, "files": noted}).encode()}
            commit = repo.commit(additions, journal, over, f"{name}, version {number}")
    sent = sum(file["bytes"] for file in missing)
    if as_json:
        show.document(
            {"object": "push", "dataset": name, "version": number, "repository": repository, "public": is_public,
             "files": len(files), "sent": len(missing), "bytes": sent, "deleted": len(over), "commit": commit}
        )  # fmt: skip
        return
    seen = "public" if is_public else "private"
    more = f", {len(over):,} of another version deleted" if over else ""
    show.say(f"version {number} of {name} is in {repo.url} ({seen}): {len(files):,} files, "
             f"{len(missing):,} ({units.size(sent)}) sent{more}")  # fmt: skip


def _journal(repo: Repository, held: dict[str, Held], source: Source) -> dict[str, str | None]:
    """The split of each file that was pushed there. Raises Usage if the repository is not the dataset's."""
    if held.keys() <= _OWN:
        return {}
    try:
        noted = json.loads(repo.read(JOURNAL)) if JOURNAL in held else {}
        if noted["dataset"] == source.id:
            return {str(path): split for path, split in noted["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise Usage(f"{repo.name} holds something other than the dataset {source.name}; name another repository.")


def _is_there(held: dict[str, Held], file: DatasetFile) -> bool:
    found = held.get(file["path"])
    return found is not None and (found.size, found.sha256) == (file["bytes"], file["sha256"])
