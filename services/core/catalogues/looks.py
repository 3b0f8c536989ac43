"""Of which changes of a run there are pictures to look at, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.catalogues import changes, entries, versions
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Change
from services.core.jobs import queries
from services.core.model.states import ImageState

_Places = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Looks:
    """Items and variants that have a picture in the run's base, `before`, and in its version, `after`; and `drawn`, the
    indexes of images in its job that are done."""

    before: _Places
    after: _Places
    drawn: frozenset[int]


def of_changes(connection: Connection, catalogue: Catalogue, run: Run, page: Sequence[Change]) -> Looks:
    """The pictures of some changes of a run. Versions that are not kept have none."""
    kept = {one.version for one in versions.listed(connection, catalogue.id)}
    places = [(one.item, one.variant) for one in page]
    before, after = (
        frozenset(entries.these(connection, catalogue.id, version, places)) if version in kept else frozenset()
        for version in (run.base, run.version)
    )
    rendered = [one.position for one in page if one.position < changes.ASIDE]
    views = queries.images_at(connection, run.job_id, rendered) if run.job_id is not None and rendered else []
    return Looks(before, after, frozenset(view.index for view in views if view.state is ImageState.DONE))
