"""Of which changes of a run there are pictures to look at, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.catalogues import changes, entries, versions
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Change
from services.core.catalogues.entries import Entry
from services.core.jobs import queries
from services.core.jobs.queries import ImageView
from services.core.model.states import ImageState

_Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Looks:
    """By item and variant, the pictures that the run's base has, `before`, and those of its version, `after`; and by
    index, the images in its job that are done, `drawn`."""

    before: Mapping[_Place, Entry]
    after: Mapping[_Place, Entry]
    drawn: Mapping[int, ImageView]


def of_changes(connection: Connection, catalogue: Catalogue, run: Run, page: Sequence[Change]) -> Looks:
    """The pictures of some changes of a run. Versions that are not kept have none."""
    numbers = [version for version in (run.base, run.version) if version] if page else []
    kept = versions.among(connection, catalogue.id, numbers) if numbers else frozenset()
    places = [(one.item, one.variant) for one in page]
    before, after = (
        entries.these(connection, catalogue.id, version, places) if version in kept and version is not None else {}
        for version in (run.base, run.version)
    )
    rendered = [one.position for one in page if one.position < changes.ASIDE]
    views = queries.images_at(connection, run.job_id, rendered) if run.job_id is not None and rendered else []
    return Looks(before, after, {view.index: view for view in views if view.state is ImageState.DONE})
