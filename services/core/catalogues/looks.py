"""Of which changes of a run there are pictures to look at, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.catalogues import entries, versions
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
    position, the images that are done, `drawn`, and the others, `undrawn`."""

    before: Mapping[_Place, Entry]
    after: Mapping[_Place, Entry]
    drawn: Mapping[int, ImageView]
    undrawn: Mapping[int, ImageView]


def of_changes(connection: Connection, catalogue: Catalogue, run: Run, page: Sequence[Change]) -> Looks:
    """The pictures of some changes of a run. Versions that are not kept have none."""
    numbers = [version for version in (run.base, run.version) if version] if page else []
    kept = versions.among(connection, catalogue.id, numbers) if numbers else frozenset()
    places = [(one.item, one.variant) for one in page]
    before, after = (
        entries.these(connection, catalogue.id, version, places) if version in kept and version is not None else {}
        for version in (run.base, run.version)
    )
    drawn, undrawn = dict[int, ImageView](), dict[int, ImageView]()
    for position, view in images(connection, run, page).items():
        (drawn if view.state is ImageState.DONE else undrawn)[position] = view
    return Looks(before, after, drawn, undrawn)


def images(connection: Connection, run: Run, page: Sequence[Change]) -> dict[int, ImageView]:
    """The images of some changes of a run, by position: those that the transaction sees."""
    places = {place: one.position for one in page if (place := one.image(run.job_id)) is not None}
    views = queries.images_anywhere(connection, list(places)) if places else []
    return {places[view.job_id, view.index]: view for view in views}
