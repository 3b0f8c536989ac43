"""What is said of catalogues' runs: why each ended as it did, in one sentence, and what a person has to do."""

from collections.abc import Mapping

from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.changes import REVIEWED
from services.core.catalogues.needs import FailedCopy
from services.dashboard.words import plural

KINDS = {  # in the order in which pages show them: what is counted, and its word
    "new": "new",
    "changed": "changed",
    "model": "with another model",
    "retried": "tried again",
    "unchanged": "unchanged",
    "removed": "removed",
    "broken": "not drawable",
    "failed": "failed",
    "rejected": "rejected",
}
_LIVE = {
    "queued": "The source is read and compared with {base}.",
    "submitting": "What is new or changed is being submitted as a job.",
    "rendering": "What is new or changed is being rendered.",
    "writing": "The pictures are being written as version {version}.",
}


def why(run: Run) -> str:
    """Why the run ended as it did; or what it does."""
    counts, base = run.counts, f"version {run.base}" if run.base else "nothing, as there is no version yet"
    stays = f" Version {run.base} stays." if run.base else ""
    if run.cancel_requested_at is not None and not run.is_final:
        return "It has been asked to stop, and ends soon." + stays
    if run.state in _LIVE:
        return _LIVE[run.state].format(base=base, version=run.version)
    if run.state == "reviewing":
        waiting = counts.get("to_review", 0)
        return f"{plural(waiting, 'changed picture')} {'waits' if waiting == 1 else 'wait'} for a person."
    if run.error is not None:
        return run.error["message"] + stays
    if run.state == "published":
        return f"Version {run.version} was published{_but(counts, has_base=bool(run.base))}."
    if run.state == "unchanged":
        return f"Nothing has changed since version {run.base}, which stays." if run.base else "There was nothing to do."
    if run.state == "planned":
        return f"Only the plan was asked for: it would draw {plural(drawn(counts), 'picture')}" + (
            f" and remove {plural(counts['removed'], 'picture')}." if counts.get("removed") else "."
        )
    return "It was cancelled." + stays


def drawn(counts: Mapping[str, int]) -> int:
    """How many pictures are new or replace others."""
    return sum(counts.get(kind, 0) for kind in ("new", *REVIEWED))


def brief(run: Run) -> str:
    """The numbers of a run that are not 0, in words."""
    hidden = ("broken",) if run.is_final and run.version is not None else ()  # they are among those that failed
    found = [
        f"{run.counts[kind]:,} {word}" for kind, word in KINDS.items() if run.counts.get(kind) and kind not in hidden
    ]
    return ", ".join(found)


def need(run: Run) -> str:
    """What a person has to do about a catalogue whose newest run this is."""
    if run.state == "reviewing":
        return why(run)
    if run.state == "kept" and run.version is not None:
        return f"Version {run.version} was made and not published: {why(run)}"
    return f"Its last run {'was held back' if run.state == 'kept' else 'failed'}: {why(run)}"


def not_copied(copy: FailedCopy) -> str:
    """Why a version is not where it was to be copied."""
    return f"Version {copy.version} could not be copied to {copy.place}: {copy.message}"


def _but(counts: Mapping[str, int], *, has_base: bool) -> str:
    bad = counts.get("failed", 0) + counts.get("rejected", 0)
    if not bad:
        return f", with all of its {plural(counts['images'], 'picture')} good" if counts.get("images") else ""
    left = "keep the one before, or have none" if has_base else "have none"
    return f" with {plural(counts.get('images', 0), 'picture')}; {bad:,} could not be replaced and {left}"
