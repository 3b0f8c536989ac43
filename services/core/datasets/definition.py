"""What a dataset is made of: its sources, its filters, and how its images are divided into splits and shards.

The format, the split and the size of shards are fixed when a dataset is made: they decide where each image stands.
DatasetSources and filters may change; the next version follows them.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from services.core.exports import options
from services.core.exports.formats import FORMATS, FormatName
from services.core.exports.options import ImagesPerShard, Metadata, Scores, Split
from services.core.marks.asked import MARKS
from services.core.model import ids, states
from services.core.model.body import Body
from services.core.model.errors import InvalidSubmission, NotFound, Problem
from services.core.model.metadata_types import Kind
from services.core.model.scores import NotUnderstood, ranges

MAX_SOURCES = 10_000
MAX_LABELS = 100
UNMARKED = "none"
_FINAL = tuple(sorted(states.FINAL_JOB_STATES))
_MARKS = (*MARKS, UNMARKED)
ALLOWED = {
    "name": "1 to 64 of a-z 0-9 . _ -, a letter or digit at either end",
    "format": options.ALLOWED["format"],
    "jobs": f"a list of at most {MAX_SOURCES:,} ids of jobs",
    "labels": 'a list of at most 100 labels such as "run:nightly": every job that has one of them',
    "filters": "an object with fields among statuses, marks, scores, flagged, unknown_words, metadata, after, before",
    "statuses": f"a list of statuses of ended jobs, among {', '.join(_FINAL)}; all unless given",
    "marks": f"a list among {', '.join(_MARKS)}: only images with one of these; all but rejected unless given",
    "scores": options.ALLOWED["scores"],
    "flagged": "true or false: only images of which the model's checker said this",
    "unknown_words": "true or false: only images whose prompt has words that the model does not know, or has none",
    "metadata": options.ALLOWED["metadata"],
    "after": "a moment with its offset from UTC, such as 2026-11-26T09:00:00Z: only images rendered from then on",
    "before": "a moment with its offset from UTC: only images rendered before it",
    "split": options.ALLOWED["split"],
    "images_per_shard": options.ALLOWED["images_per_shard"],
    "types": 'an object of names of metadata with "text": a column of text, whatever the values are',
    "while_running": "true or false: also the images that jobs have done so far which are still being rendered",
}
_OF_FILTERS = ("statuses", "marks", "scores", "flagged", "unknown_words", "metadata", "after", "before")
ALLOWED |= {f"filters.{name}": ALLOWED[name] for name in _OF_FILTERS}
_NAME = r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$"


def _job(value: str) -> str:
    try:
        ids.parse_job(value)
    except NotFound:
        raise PydanticCustomError("invalid_value", "") from None
    return value


def _label(value: str) -> str:
    name, colon, _ = value.partition(":")
    if not (0 < len(name) <= 64 and colon and "\0" not in value):
        raise PydanticCustomError("invalid_value", "")
    return value


def _moment(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            raise PydanticCustomError("invalid_value", "") from None
    return value


Jobs = Annotated[list[Annotated[str, AfterValidator(_job)]], Field(max_length=MAX_SOURCES)]
Labels = Annotated[list[Annotated[str, Field(max_length=600), AfterValidator(_label)]], Field(max_length=MAX_LABELS)]
Types = Annotated[dict[Annotated[str, Field(min_length=1, max_length=64)], Literal["text"]], Field(max_length=100)]
_Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]


class DatasetFilters(Body):
    """Which done images of the sources are taken. What is not given takes all, but of marks."""

    statuses: Annotated[list[Literal[_FINAL]], Field(min_length=1)] = None  # type: ignore[assignment, valid-type]
    marks: Annotated[list[Literal[_MARKS]], Field(min_length=1)] = Field(  # type: ignore[valid-type]
        default_factory=lambda: ["accepted", "starred", UNMARKED]
    )
    scores: Scores = Field(default_factory=list)
    flagged: bool = None  # type: ignore[assignment]
    unknown_words: bool = None  # type: ignore[assignment]
    metadata: Metadata = Field(default_factory=list)
    after: _Moment = None  # type: ignore[assignment]
    before: _Moment = None  # type: ignore[assignment]


class DatasetSources(Body):
    """Jobs that are added to a dataset."""

    ALLOWED: ClassVar = ALLOWED
    jobs: Jobs = Field(default_factory=list)
    labels: Labels = Field(default_factory=list)


class Definition(Body):
    """What a version is made by, as it is stored. `types` of metadata take the place of those that its values have.

    Limits of length stand where something is asked for, and in `check_sources`: what is stored can always be read."""

    jobs: list[str] = Field(default_factory=list)
    labels: list[str] = Field(default_factory=list)
    filters: DatasetFilters = Field(default_factory=DatasetFilters)
    split: Split = Field(default_factory=lambda: {"train": 1.0})
    images_per_shard: ImagesPerShard = 10_000
    types: dict[str, Literal["text"]] = Field(default_factory=dict)

    @property
    def layout(self) -> options.Options:
        """As the writers of formats take it."""
        return options.Options(images_per_shard=self.images_per_shard, split=self.split)

    @property
    def digest(self) -> str:
        """Of all that decides which images of a job are taken."""
        return hashlib.sha256(self.filters.model_dump_json().encode()).hexdigest()

    def kind(self, name: str, found: Kind) -> Kind:
        return self.types.get(name, found)


class DatasetRequest(Definition):
    """A new dataset."""

    ALLOWED: ClassVar = ALLOWED
    jobs: Jobs = Field(default_factory=list)
    labels: Labels = Field(default_factory=list)
    types: Types = Field(default_factory=dict)
    name: Annotated[str, Field(pattern=_NAME)]
    format: FormatName = "webdataset"

    def definition(self) -> dict[str, Any]:
        """As it is stored."""
        return self.model_dump(mode="json", exclude={"name", "format"}, exclude_none=True)


class DatasetChanges(Body):
    """Other filters or types. What is left out stays; filters are replaced as a whole."""

    ALLOWED: ClassVar = ALLOWED
    filters: DatasetFilters = None  # type: ignore[assignment]
    types: Types = None  # type: ignore[assignment]


class VersionRequest(Body):
    """A new version."""

    ALLOWED: ClassVar = ALLOWED
    while_running: bool = False


def check(asked: Definition | DatasetChanges) -> None:
    """What no field alone tells. Raises InvalidSubmission."""
    if asked.filters is not None:
        try:
            ranges(asked.filters.scores)
        except NotUnderstood as error:
            raise InvalidSubmission([Problem("invalid_value", f"filters.scores: {error}", "filters.scores")]) from None
    if isinstance(asked, Definition) and (problem := options.reserved(asked.split, "split")):
        raise InvalidSubmission([problem])


def check_sources(jobs: list[str], labels: list[str]) -> None:
    """Refuses more sources than a dataset may have. Raises InvalidSubmission."""
    for param, found, most in (("jobs", jobs, MAX_SOURCES), ("labels", labels, MAX_LABELS)):
        if len(found) > most:
            message = f"{param}: the dataset would have {len(found):,} and may have {most:,}; take some out first."
            raise InvalidSubmission([Problem("too_many", message, param)])


def has_table(form: str) -> bool:
    """Whether a format has columns of metadata."""
    return form in FORMATS and form != "webdataset"
