"""Types of the API's bodies and answers. Times are text: ISO 8601, in UTC."""

from typing import Any, Literal, NotRequired, TypedDict

ExportFormat = str  # the server says which there are; it may know more than this client
Mark = Literal["accepted", "rejected", "starred"]
OutputFormat = Literal["png", "jpeg", "webp"]


Metadata = dict[str, str | int | float | bool | None]


class ImageRequest(TypedDict):
    """A prompt and how to render it. None: as if it was left out."""

    prompt: str
    negative_prompt: NotRequired[str | None]
    seed: NotRequired[int | None]
    size: NotRequired[str | None]
    num_inference_steps: NotRequired[int | None]
    guidance_scale: NotRequired[float | None]
    n: NotRequired[int | None]
    custom_id: NotRequired[str | int | None]
    output_format: NotRequired[OutputFormat | None]
    output_compression: NotRequired[int | None]
    model: NotRequired[str | None]
    image: NotRequired[str | None]
    strength: NotRequired[float | None]
    metadata: NotRequired[Metadata | None]
    reproducibility_class: NotRequired[str | None]


class Matrix(TypedDict):
    """A template and the values of its names and of request fields; see the README."""

    template: str
    vary: dict[str, list[Any]]
    negative_template: NotRequired[str | None]
    combine: NotRequired[Literal["product", "zip"] | None]
    repeat: NotRequired[int | None]
    seed: NotRequired[int | None]


class Preview(TypedDict):
    """The size of a matrix; `first` are up to ten of its requests."""

    object: Literal["preview"]
    requests: int
    images: int
    first: list[ImageRequest]


class Counts(TypedDict):
    """queued + rendering + done + failed + cancelled = total."""

    total: int
    queued: int
    rendering: int
    done: int
    failed: int
    cancelled: int


class Job(TypedDict):
    """`rate` is in images per second. `reused` done images were copied and not rendered. `retention` are the days by
    kind that its submission gave."""

    id: str
    object: Literal["job"]
    status: str
    paused: bool
    priority: str
    requests: int
    counts: Counts
    reused: int
    device_seconds: float
    labels: dict[str, str]
    dedupe: bool
    embed_prompt: bool
    store: Literal["objects", "shards"]
    trace_id: str | None
    warnings: list[str]
    retry_of: str | None
    stop_reason: str | None
    created_at: str
    started_at: str | None
    cancel_requested_at: str | None
    finished_at: str | None
    expires_at: str | None
    retention: dict[str, int | None] | None
    payloads_erased_at: str | None
    objects_deleted_at: str | None
    rate: float
    eta_seconds: float | None
    eta_low_seconds: float | None
    eta_high_seconds: float | None
    as_of: str


class Rates(TypedDict):
    """Images finished per second: in the last one to two minutes, and over the last hour, day and week."""

    now: float
    hour: float
    day: float
    week: float


class RatePoint(TypedDict):
    """What was finished in the minute or hour that began at `at`."""

    at: str
    done: int
    failed: int
    rate: float
    reused: int
    device_seconds: float
    batch_fill: float | None


class JobRatePoint(TypedDict):
    """What of a job was finished in so many seconds from `at` on. `rate`: images done or failed per second."""

    at: str
    seconds: float
    done: int
    failed: int
    rate: float


class RateSeries(TypedDict):
    """`data` begins with the oldest minute or hour and ends with the current one."""

    rates: Rates
    data: list[RatePoint]


class Event(TypedDict):
    """Something that happened, to a job if `job_id` names one; `seq` grows."""

    seq: int
    at: str
    kind: str
    actor: str
    job_id: str | None
    data: dict[str, int | str]


class EventPage(TypedDict):
    """Events in order of `seq`. The next page begins after the last `seq`."""

    data: list[Event]
    has_more: bool


class Action(TypedDict):
    """An act: `actor` did `verb` to `subject`. `actor_name` is the name of the actor's key, if it is one."""

    seq: int
    at: str
    verb: str
    actor: str
    actor_name: str | None
    subject_type: str
    subject: str
    data: dict[str, int | str]


class JobsActionPreview(TypedDict):
    """How many jobs an act would touch now, and how many of their images. `is_all` false: there are more than these."""

    jobs: int
    images: int
    is_all: bool


class LostRace(TypedDict):
    """A job to which it could not be done, because it had changed meanwhile, and why."""

    job_id: str
    message: str


class JobsAction(TypedDict):
    """An act on many jobs. Of `jobs` that matched when it was asked for, it is done to `done`; `lost` were refused."""

    id: str
    object: Literal["jobs.action"]
    action: Literal["cancel", "pause", "resume", "retry", "prioritize", "delete"]
    status: Literal["running", "completed", "stopped"]
    actor: str
    jobs: int
    images: int
    is_all: bool
    done: int
    lost: int
    reasons: list[LostRace]
    created_at: str
    finished_at: str | None


class SignInLink(TypedDict):
    """`url` signs one browser in to the dashboard, until `expires_at`."""

    object: Literal["sign_in_link"]
    url: str
    expires_at: str


class LaneDevices(TypedDict):
    device: str
    workers: int


class Lane(TypedDict):
    """Images that wait and may share a batch."""

    object: Literal["lane"]
    model: str
    size: str
    num_inference_steps: int
    guided: bool
    prompt_chunks: int
    first_step: int
    reproducibility_class: str | None
    priority: Literal["high", "normal", "low"]
    tenant: str
    images: int
    exact: bool
    jobs: int
    oldest_seconds: float
    devices: list[LaneDevices]
    device_seconds: float | None
    seconds: float | None


class LaneList(TypedDict):
    """`more`: there are jobs that were not looked at."""

    data: list[Lane]
    more: bool


class TenantUsage(TypedDict):
    """What a tenant uses now; `device_seconds_today` since 00:00 UTC."""

    images_queued: int
    images_in_flight: int
    bytes_stored: int
    bytes_spooled: int
    device_seconds_today: float


class TenantQuotas(TypedDict):
    """None is no limit."""

    images_queued: int | None
    images_in_flight: int | None
    requests_per_second: float | None
    bytes_stored: int | None
    bytes_spooled: int | None
    device_seconds_per_day: float | None


class Usage(TypedDict):
    """What the key's tenant uses, beside its quotas."""

    object: Literal["usage"]
    tenant: str
    state: Literal["active", "suspended"]
    usage: TenantUsage
    quotas: TenantQuotas


class RetentionRule(TypedDict):
    """For how many days after its end a job keeps what; None: for ever, or nobody has set it."""

    object: Literal["retention"]
    payloads: int | None
    objects: int | None
    records: int | None
    updated_at: str | None


class RetentionDue(TypedDict):
    """What of a job would go. `held_by` says what needs it still."""

    job_id: str
    kind: Literal["payloads", "objects", "records"]
    due_at: str
    images: int
    stored_images: int
    held_by: str | None


class RetentionDueList(TypedDict):
    """`more`: there are others."""

    data: list[RetentionDue]
    more: bool


class TenantDeletion(TypedDict):
    """How far the deletion of a tenant is. At its end `remains` is what is left, rows by table: nothing, {}."""

    object: Literal["tenant.deletion"]
    tenant: str
    requested_at: str
    requested_by: str
    jobs_left: int
    images: int
    objects: int
    rows: int
    finished_at: str | None
    remains: dict[str, int] | None


class WorkerBatch(TypedDict):
    images: int
    of: int
    size: str
    step: int
    steps: int


class WorkerMemory(TypedDict):
    used: int
    total: int


class ScorerTrouble(TypedDict):
    """A scorer that did not score every image since the worker started."""

    name: str
    failed: int
    late: int
    why: str
    off: bool


class WorkerRate(TypedDict):
    """`seconds` an image takes in a full batch, as measured."""

    size: str
    num_inference_steps: int
    guided: bool
    seconds: float


class Worker(TypedDict):
    """A process that renders. A drained one takes nothing new."""

    id: str
    object: Literal["worker"]
    host: str
    pid: int
    device: str
    device_kind: str
    model: str
    revision: str
    state: str
    drained: bool
    doing: str
    silent_seconds: float
    reproducibility_class: str
    reproducibility_classes: list[str]
    sizes: list[str]
    batch_sizes: list[int]
    rates: list[WorkerRate]
    rendering: int
    rate: float
    batch: WorkerBatch | None
    batch_fill: float | None
    memory: WorkerMemory | None
    busy_at: str | None
    scorers: list[ScorerTrouble]


class WorkerDevices(TypedDict):
    """How many live workers with that device and model are in each state."""

    device: str
    model: str
    busy: int
    idle: int
    drained: int
    sick: int
    starting: int
    rate: float


class Backlog(TypedDict):
    """The work that waits for a model and is being rendered, in seconds of one accelerator."""

    object: Literal["backlog"]
    model: str
    registered: bool
    queued: int
    rendering: int
    accelerator_seconds: float


class WorkerList(TypedDict):
    """`data` is empty for a key without the scope `operate`."""

    data: list[Worker]
    devices: list[WorkerDevices]


class ImageError(TypedDict):
    code: str
    message: str


class Image(TypedDict):
    """One image. `url` needs no key and is valid as long as the file exists."""

    index: int
    custom_id: str | None
    image: str | None
    strength: float | None
    metadata: Metadata
    status: str
    seed: int
    seed_string: str
    output_format: str
    output_compression: int | None
    sha256: str | None
    bytes: int | None
    url: str | None
    reused: bool | None
    truncated: bool | None
    flagged: bool | None
    unknown_words: list[str] | None
    reproducibility_class: str | None
    versions: str | None
    device: str | None
    mark: Mark | None
    scores: dict[str, float | None] | None
    phash: str | None
    error: ImageError | None


class AlikeImage(TypedDict):
    job_id: str
    index: int
    url: str


class AlikeGroup(TypedDict):
    """Images that look alike: `total` of them, the first hundred in `images`."""

    total: int
    images: list[AlikeImage]


class AlikePage(TypedDict):
    """Groups among the next `looked_at` images, of which `hashed` have a perceptual hash."""

    looked_at: int
    hashed: int
    data: list[AlikeGroup]
    next_cursor: str | None


class ImageOfJob(Image):
    """An image, and the job that it is of."""

    job_id: str


class FailureCause(TypedDict):
    """`count` images failed for this cause; `message` is the newest reason, with an image that it was about."""

    code: str
    count: int
    message: str
    at: str
    job_id: str | None
    index: int | None


class JobRequest(TypedDict):
    """One request of a job, with all its images."""

    object: Literal["job.request"]
    index: int
    custom_id: str | None
    image: str | None
    strength: float | None
    metadata: Metadata
    prompt: str
    negative_prompt: str
    n: int
    status: str
    images: list[Image]


class PolicyTerm(TypedDict):
    """A term that the tenant's content policy refuses; `folded` is what prompts are compared with."""

    id: str
    object: Literal["policy.term"]
    term: str
    folded: str
    created_by: str
    created_at: str


class PolicyTermRemoved(TypedDict):
    id: str
    object: Literal["policy.term"]
    deleted: Literal[True]


class PolicyCheck(TypedDict):
    """What the content policy says to a text; `reason` is None if it is not refused."""

    object: Literal["policy.check"]
    refused: bool
    reason: str | None
    terms: list[str]
    listed_terms: list[str]


class ImageMark(TypedDict):
    """One image's mark, who set it and when."""

    index: int
    mark: Mark
    by: str
    at: str


class MarkCounts(TypedDict):
    accepted: int
    rejected: int
    starred: int


class MarkPage(TypedDict):
    """A page of marks; `counts` are of the whole job."""

    counts: MarkCounts
    data: list[ImageMark]
    next_cursor: str | None


class MarksChanged(TypedDict):
    """`matched` images were meant, and the marks of `changed` of them are new. `next_cursor`: where it goes on."""

    object: Literal["job.marks"]
    matched: int
    changed: int
    next_cursor: str | None


class Chunk(TypedDict):
    """A part of a draft that the server has committed."""

    object: Literal["job.chunk"]
    number: int
    requests: int
    images: int
    sha256: str


class AppendedChunk(Chunk):
    """`replayed`: the server already had the chunk, and this call changed nothing."""

    replayed: bool


class Range(TypedDict):
    low: float
    expected: float
    high: float


class EstimatedShape(TypedDict):
    model: str
    size: str
    num_inference_steps: int
    guided: bool
    first_step: int
    images: int
    workers: int
    seconds_per_image: float | None
    measured: Literal["this shape", "another shape"] | None


class Estimate(TypedDict):
    """The time that a submission would take; null if nothing was measured yet. `ahead`: queued images that are rendered
    first. `requests` is null for an estimate of shapes, which have no requests."""

    object: Literal["estimate"]
    requests: int | None
    images: int
    ahead: int
    accelerator_seconds: Range | None
    seconds_to_finish: Range | None
    served: bool
    workers: int
    shapes: list[EstimatedShape]


class Issue(TypedDict):
    """Something that needs a person."""

    code: str
    status: Literal["degraded", "failing"]
    message: str


class Waiting(TypedDict):
    """The images that are not final, without those of paused jobs. Seconds are null if they are not known; `more`:
    there are jobs that were not added up."""

    jobs: int
    queued: int
    rendering: int
    paused: int
    device_seconds: float | None
    seconds: float | None
    more: bool


class Accelerators(TypedDict):
    """Live workers, each with one accelerator, for all tenants together. A drained one takes nothing new."""

    busy: int
    idle: int
    drained: int
    sick: int
    starting: int


class NewestPicture(TypedDict):
    """A done image; `url` needs no key. `prompt` is its beginning."""

    job_id: str
    index: int
    finished_at: str
    flagged: bool | None
    custom_id: str | None
    prompt: str
    url: str


class Overview(TypedDict):
    """`status` is the worst of the issues. `jobs` are the newest ones under way, those in progress first, `failures`
    the causes of the last day, `pictures` the newest ones."""

    object: Literal["overview"]
    status: Literal["ok", "degraded", "failing"]
    issues: list[Issue]
    rates: Rates
    waiting: Waiting
    accelerators: Accelerators
    jobs: list[Job]
    failures: list[FailureCause]
    pictures: list[NewestPicture]


class ExportCounts(TypedDict):
    total: int
    done: int


class ExportOptions(TypedDict):
    """`split`: names of splits and their shares, whose sum is 1."""

    images_per_shard: int
    include_flagged: bool
    mark: Mark | None
    scores: list[str]
    metadata: list[str]
    split: dict[str, float]
    images: Literal["inline", "reference"]
    expires_in_seconds: int


class Export(TypedDict):
    object: Literal["export"]
    id: str
    job_id: str
    format: str
    options: ExportOptions
    status: str
    counts: ExportCounts
    bytes: int
    created_at: str
    finished_at: str | None
    expires_at: str | None
    error: str | None


class ExportFile(TypedDict):
    """A file of an export; `url` needs no key and is valid as long as the export."""

    path: str
    bytes: int
    sha256: str
    images: int
    url: str


class Dataset(TypedDict):
    """`version` is the last that is complete. `definition`: jobs, labels, filters, split, images_per_shard, types."""

    id: str
    object: Literal["dataset"]
    name: str
    format: ExportFormat
    definition: dict[str, Any]
    version: int | None
    created_at: str
    updated_at: str


class DatasetDeleted(TypedDict):
    name: str
    object: Literal["dataset"]
    deleted: Literal[True]


class SplitSize(TypedDict):
    shards: int
    images: int


class VersionCounts(TypedDict):
    """Of the images that are written for a version."""

    total: int
    done: int


class DatasetVersion(TypedDict):
    """`rewritten` shards of `base` were written again, without the `removed` images. `bytes` were stored for this
    version alone; its files have `total_bytes`, once it is complete."""

    object: Literal["dataset.version"]
    dataset: str
    version: int
    status: str
    while_running: bool
    base: int | None
    images: int
    counts: VersionCounts
    splits: dict[str, SplitSize]
    rewritten: int
    removed: int
    bytes: int
    total_bytes: int | None
    created_at: str
    finished_at: str | None
    error: str | None


class DatasetVersionDeleted(TypedDict):
    dataset: str
    version: int
    object: Literal["dataset.version"]
    deleted: Literal[True]


class DatasetFile(TypedDict):
    """A file of a version; `url` needs no key and is valid as long as the dataset."""

    path: str
    split: str | None
    bytes: int
    sha256: str
    images: int
    url: str


class ImageDifference(TypedDict):
    change: Literal["added", "removed"]
    job_id: str
    index: int
    why: str | None


class DatasetComparison(TypedDict):
    """`images` are the first ones; `added` and `removed` count all."""

    added: int
    removed: int
    shards_added: int
    shards_removed: int
    images: list[ImageDifference]


class Refusal(TypedDict):
    code: str
    message: str


class JobDeletion(TypedDict):
    """What deleting a job takes; `refusal` says why it is not possible now."""

    id: str
    object: Literal["job.deletion"]
    images: int
    stored_images: int
    bytes: int
    bytes_estimated: bool
    exports: int
    files: int
    refusal: Refusal | None


class JobDeleted(TypedDict):
    id: str
    object: Literal["job"]
    deleted: Literal[True]


class CatalogueDestination(TypedDict):
    """Where the published version is copied to. `announced` is the version that the pointer there names."""

    s3: str
    version: int
    state: Literal["copying", "deleting", "done", "failed"]
    announced: int | None
    images: int
    copied: int
    deleted: int
    error: ImageError | None
    next_at: str | None
    began_at: str
    finished_at: str | None


class Catalogue(TypedDict):
    """A feed of items whose pictures are kept up to date. `published` is the version that readers see."""

    object: Literal["catalogue"]
    name: str
    definition: dict[str, Any]
    file_id: str | None
    version: int
    published: int | None
    public_url: str | None
    destination: CatalogueDestination | None
    created_at: str
    updated_at: str


class RunCounts(TypedDict):
    """What a run's plan found (new to broken), and what came of it."""

    new: int
    changed: int
    model: int
    retried: int
    unchanged: int
    removed: int
    broken: int
    done: int
    failed: int
    rejected: int
    to_review: int
    images: int


class RunSource(TypedDict):
    title: str | None
    sha256: str | None
    bytes: int | None
    items: int | None


class RunSeconds(TypedDict):
    planning: float | None
    rendering: float | None
    writing: float | None
    total: float | None


class CatalogueRun(TypedDict):
    """A run of a catalogue: it makes `version` of `base` and of what has changed. `error` says why that is not
    published."""

    id: str
    object: Literal["catalogue.run"]
    catalogue: str
    state: Literal[
        "queued",
        "submitting",
        "rendering",
        "reviewing",
        "writing",
        "planned",
        "unchanged",
        "published",
        "kept",
        "failed",
        "cancelled",
    ]
    plan_only: bool
    accept_removed: bool
    counts: RunCounts
    source: RunSource
    error: ImageError | None
    causes: dict[str, int]
    base: int
    version: int | None
    job_id: str | None
    device_seconds: float | None
    destination: CatalogueDestination | None
    seconds: RunSeconds
    deadline: str | None
    cancel_requested_at: str | None
    created_at: str
    planned_at: str | None
    rendered_at: str | None
    finished_at: str | None


ChangeKind = Literal["new", "changed", "model", "retried", "broken", "removed"]


class CatalogueChange(TypedDict):
    """One picture that a run found to differ. `before` and `after` are links; those to `/v1/catalogues/` take a key."""

    item: str
    variant: str
    kind: ChangeKind
    line: int | None
    index: int | None
    image_job_id: str | None
    image_index: int | None
    redraws: int
    mark: Literal["accepted", "rejected", "starred"] | None
    prompt: str | None
    outcome: Literal["done", "failed", "rejected", "removed"] | None
    error: ImageError | None
    before: str | None
    after: str | None


class CatalogueVersion(TypedDict):
    object: Literal["catalogue.version"]
    version: int
    published: bool
    run_id: str
    images: int
    bytes: int
    created_at: str


class CatalogueItem(TypedDict):
    """The picture of an item's variant. `version` is the one that it was made in; `stale`: another was asked for and
    could not be made. `url` takes a key; `public_url` does not."""

    item: str
    variant: str
    sha256: str
    bytes: int
    output_format: str
    size: str | None
    prompt: str | None
    seed: int | None
    seed_string: str | None
    model_revision: str
    reproducibility_class: str
    version: int
    stale: bool
    rendered_at: str
    url: str
    public_url: str | None


class CatalogueDifference(TypedDict):
    """An item's variant with another picture in one version than in the other; None: that version has none."""

    item: str
    variant: str
    kind: Literal["added", "changed", "removed"]
    before: CatalogueItem | None
    after: CatalogueItem | None


class File(TypedDict):
    """An uploaded file, or one with a job's results."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: str | None
    sha256: str


class FileDeleted(TypedDict):
    id: str
    object: Literal["file"]
    deleted: bool


RunStatus = Literal[
    "waiting", "submitting", "running", "completed", "failed", "cancelled", "expired", "skipped", "refused"
]


class ScheduleRun(TypedDict):
    """What became of one instant of a schedule; `reason` says why it was skipped or refused."""

    id: str
    object: Literal["schedule.run"]
    schedule: str
    scheduled_for: str
    status: RunStatus
    asked_by: str | None
    job_id: str | None
    reason: str | None
    deadline_at: str | None
    at_risk_since: str | None
    missed_at: str | None
    created_at: str
    submitted_at: str | None
    finished_at: str | None


class Schedule(TypedDict):
    """What is submitted, and when. `target` has one field, its kind, such as `job` with a body of `POST /v1/jobs`."""

    name: str
    object: Literal["schedule"]
    cron: str | None
    at: str | None
    timezone: str
    target: dict[str, Any]
    misfire: Literal["latest", "all", "none"]
    misfire_limit: int
    overlap: Literal["skip", "queue", "cancel"]
    deadline: str | None
    paused: bool
    next_at: str | None
    last_run: ScheduleRun | None
    created_at: str
    changed_at: str


class ScheduleTimes(TypedDict):
    """When it fires next."""

    object: Literal["schedule.times"]
    schedule: str
    timezone: str
    times: list[str]


class ScheduleDeleted(TypedDict):
    name: str
    object: Literal["schedule"]
    deleted: Literal[True]


class LicenseAcceptance(TypedDict):
    """Who accepted a licence for the tenant, and when."""

    by: str
    by_name: str | None
    at: str


class Webhook(TypedDict):
    """Where messages are sent, and which. `reason` says why it is disabled: by_user, gone or failing."""

    id: str
    object: Literal["webhook"]
    url: str
    description: str
    events: list[str]
    labels: dict[str, str]
    enabled: bool
    reason: str | None
    failures: int
    failing_since: str | None
    old_secret_until: str | None
    created_by: str
    created_at: str


class WebhookWithSecret(Webhook):
    """`secret` is what receivers verify messages with."""

    secret: str


class WebhookSecret(TypedDict):
    id: str
    object: Literal["webhook.secret"]
    secret: str


class WebhookDeleted(TypedDict):
    id: str
    object: Literal["webhook"]
    deleted: Literal[True]


class WebhookDelivery(TypedDict):
    """A message for a webhook; `response_status` and `error` are those of the last try."""

    id: str
    object: Literal["webhook.delivery"]
    webhook_id: str
    message_id: str
    type: str
    status: Literal["pending", "delivered", "failed"]
    tries: int
    response_status: int | None
    error: str | None
    next_try_at: str | None
    created_at: str
    finished_at: str | None


class WebhookTry(TypedDict):
    """One try, with the beginning of what came back."""

    number: int
    at: str
    milliseconds: int
    response_status: int | None
    answer: str | None
    error: str | None


class WebhookDeliveryDetails(WebhookDelivery):
    """A delivery with its message and every try."""

    message: dict[str, Any]
    log: list[WebhookTry]


class WebhookMessage(TypedDict):
    """What would be sent; `body` is what is signed."""

    id: str
    type: str
    body: str


class WebhookMessages(TypedDict):
    """Messages, and the place after which the next ones come."""

    data: list[WebhookMessage]
    after: int


class License(TypedDict):
    """As a model's card names it. With `acceptance_required`, nothing is drawn before it is accepted."""

    id: str
    name: str
    link: str
    restrictions: list[str]
    sha256: str
    accepted: LicenseAcceptance | None
    acceptance_required: bool


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    revision: str
    sizes: list[str]
    default_size: str
    default_num_inference_steps: int
    default_guidance_scale: float
    max_num_inference_steps: int
    workers: int
    reproducibility_classes: list[str]
    license: License | None
