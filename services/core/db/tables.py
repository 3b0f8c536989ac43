"""The SQL tables as SQLAlchemy Core knows them. Migrations create them; a test compares the two.

`images` is narrow and hot: 64 bytes per row, without the prompt. `payloads` is cold: one row per request, at the index
of its first image. `results` is insert-only. These three are range-partitioned by job id, which is time-ordered.
"""

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from services.core.db import columns

# What a job or an export goes through. Every other kind of event is an act: somebody changed something.
PROGRESS = (
    "job.queued", "job.started", "job.finalizing", "job.completed", "job.failed", "job.cancelled", "job.expired",
    "job.refused", "export.completed", "export.failed",
)  # fmt: skip
ACTS = f"kind NOT IN ({', '.join(repr(kind) for kind in PROGRESS)})"
# Acts that are the users' daily work, and what follows from them. Every other act is a part of the audit trail, which
# is kept for longer and sealed. The function presswork_untrailed() has the same kinds: a new one takes a migration.
WORK = (
    "device.sick", "job.created", "job.submitted", "job.marked", "image.poison", "export.created", "file.created",
    "file.expired", "upload.created", "upload.completed", "upload.expired", "dataset.version_asked",
    "dataset.version_completed", "dataset.version_failed", "catalogue.uploaded", "catalogue.run",
    "catalogue.run_planned", "catalogue.run_published", "catalogue.run_unchanged", "catalogue.run_kept",
    "catalogue.run_failed", "catalogue.run_cancelled", "catalogue.copied", "catalogue.copy_failed", "schedule.fired",
    "schedule.run_requested", "schedule.run_skipped", "schedule.run_refused", "schedule.deadline_at_risk",
    "schedule.deadline_missed",
)  # fmt: skip
TRAIL = f"kind NOT IN ({', '.join(repr(kind) for kind in (*PROGRESS, *WORK))})"

metadata = MetaData()
Moment = DateTime(timezone=True)
now = text("now()")
zero = text("0")

tenants = Table(
    "tenants",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("weight", REAL, nullable=False, server_default=text("1")),
    Column("virtual_time", Double, nullable=False, server_default=zero),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("operator", Boolean, nullable=False, server_default=text("false")),  # its administrators administer all
    Column("state", Text, nullable=False, server_default=text("'active'")),
    Column("max_images_queued", BigInteger),  # quotas (model/quotas.py); null: unlimited
    Column("max_images_in_flight", BigInteger),
    Column("max_requests_per_second", Double),
    Column("max_bytes_stored", BigInteger),
    Column("max_bytes_spooled", BigInteger),
    Column("max_device_seconds_per_day", Double),
    Column("deleted_at", Moment),  # from then on it takes no new work; a background task deletes all of it
    CheckConstraint("weight > 0", name="tenants_weight"),
    CheckConstraint("state IN ('active','suspended')", name="tenants_state"),
    CheckConstraint(
        "least(max_images_queued, max_bytes_stored, max_bytes_spooled) >= 0 "
        "AND max_images_in_flight > 0 AND max_requests_per_second > 0 AND max_device_seconds_per_day >= 0",
        name="tenants_quotas",
    ),
)

tenant_usage = Table(  # what each tenant uses; `tenants/usage.py` folds the deltas into it
    "tenant_usage",
    metadata,
    Column("tenant_id", Integer, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    *(
        Column(name, BigInteger, nullable=False, server_default=zero)
        for name in ("images_queued", "bytes_stored", "bytes_spooled")
    ),
    Column("counted_at", Moment, nullable=False, server_default=now),
)

tenant_usage_deltas = Table(
    "tenant_usage_deltas",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", Integer, nullable=False),
    *(
        Column(name, BigInteger, nullable=False, server_default=zero)
        for name in ("images_queued", "bytes_stored", "bytes_spooled")
    ),
    Index("tenant_usage_deltas_tenant", "tenant_id"),
)

installation = Table(  # one row
    "installation",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("id", UUID, nullable=False, server_default=text("gen_random_uuid()")),
    Column("prefixes", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    CheckConstraint("singleton", name="installation_singleton"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("hmac", LargeBinary, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("revoked_at", Moment),
    Column("scopes", ARRAY(Text), nullable=False, server_default=text("'{view,submit,operate,admin}'")),
    Column("expires_at", Moment),
    Column("last_used_at", Moment),  # written once a minute at most
    Column("created_by", Text),  # an actor
    CheckConstraint(
        "scopes <> '{}' AND scopes <@ '{view,submit,operate,admin}'::text[]",
        name="api_keys_scopes",
    ),
)

sessions = Table(  # of browsers; the cookie itself is stored nowhere
    "sessions",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("key_id", Text, ForeignKey("api_keys.id", ondelete="CASCADE")),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("expires_at", Moment, nullable=False),
    Column("user_tenant", Integer, ForeignKey("tenants.id")),
    Column("user_name", Text),
    Column("user_scopes", ARRAY(Text)),
    CheckConstraint("octet_length(sha256) = 32", name="sessions_sha256"),
    CheckConstraint(
        "(key_id IS NULL) = (user_name IS NOT NULL AND user_tenant IS NOT NULL AND user_scopes IS NOT NULL)",
        name="sessions_whose",
    ),
    Index("sessions_expired", "expires_at"),
)

sign_in_links = Table(  # of `presswork open`; each signs in once
    "sign_in_links",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("key_id", Text, ForeignKey("api_keys.id", ondelete="CASCADE"), nullable=False),
    Column("expires_at", Moment, nullable=False),
    CheckConstraint("octet_length(sha256) = 32", name="sign_in_links_sha256"),
    Index("sign_in_links_expired", "expires_at"),
)

models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    Column("revision", Text, nullable=False),
    Column("default_width", Integer, nullable=False),
    Column("default_height", Integer, nullable=False),
    Column("default_steps", SmallInteger, nullable=False),
    Column("default_guidance_scale", REAL, nullable=False),
    Column("registered_at", Moment, nullable=False, server_default=now),
    Column("long_prompts", Text),  # how its long prompts are counted (model/long_prompts.py); null: it reads none
    Column("license", JSONB),  # model/licenses.py; null: its card does not say
    Column("redraws", Boolean, nullable=False, server_default=text("false")),  # it takes input pictures
)

model_shapes = Table(
    "model_shapes",
    metadata,
    Column("model_revision", Text),
    Column("width", Integer),
    Column("height", Integer),
    Column("max_steps", SmallInteger, nullable=False),
    PrimaryKeyConstraint("model_revision", "width", "height"),
)

model_classes = Table(  # the reproducibility classes that workers have served
    "model_classes",
    metadata,
    Column("model_revision", Text),
    Column("reproducibility_class", Text),
    Column("device_kind", Text, nullable=False),
    Column("batch_size", SmallInteger, nullable=False),
    Column("registered_at", Moment, nullable=False, server_default=now),
    PrimaryKeyConstraint("model_revision", "reproducibility_class"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("priority", SmallInteger, nullable=False),
    Column("total", Integer, nullable=False),
    Column("labels", JSONB, nullable=False, server_default=text("'{}'")),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("started_at", Moment),
    Column("cancel_requested_at", Moment),
    Column("finalizing_at", Moment),
    Column("finished_at", Moment),
    Column("requests", Integer, nullable=False, server_default=zero),
    Column("requests_done", Integer),  # these two are set when the job's files are written
    Column("requests_failed", Integer),
    Column("input_file_id", BigInteger),  # set if the job was submitted as a file; its results are files too
    Column("output_file_id", BigInteger),
    Column("error_file_id", BigInteger),
    Column("output_expires_seconds", Integer),
    Column("completion_window", Text),
    Column("base_url", Text),  # the API's address as its client sees it: links in its files begin with it
    Column("expires_at", Moment),  # a job that has not finished by then is stopped
    Column("opened_at", Moment),  # when its file was validated or its draft finalized
    Column("stop_reason", Text),  # why it was stopped: cancelled by a user, or out of time
    Column("problems", JSONB),  # why its file was refused
    Column("parent_id", BigInteger),  # the job whose images it renders again
    Column("dedupe", Boolean, nullable=False, server_default=text("false")),
    Column("embed_prompt", Boolean, nullable=False, server_default=text("false")),
    Column("in_shards", Boolean, nullable=False, server_default=text("false")),  # many images in one object
    Column("drawn_seeds", Integer, nullable=False, server_default=zero),  # requests that gave no seed
    Column("deleted_at", Moment),  # from then on its tenant does not see it; a background task deletes all of it
    Column("traceparent", Text),  # the span under which it was submitted, as W3C Trace Context writes it
    Column("retention", JSONB),  # days by kind, as its submission asked; what is absent follows the tenant's rule
    Column("payloads_erased_at", Moment),  # from then on its prompts count as gone
    Column("objects_deleted_at", Moment),  # from then on its pictures, exports and output files do
    Column("drops_with_week", Boolean, nullable=False, server_default=text("false")),  # its images' rows wait for that
    CheckConstraint("priority BETWEEN 0 AND 2", name="jobs_priority"),
    CheckConstraint(
        "total > 0 OR (total = 0 AND state NOT IN ('queued','in_progress','finalizing','completed'))",
        name="jobs_total",
    ),
    CheckConstraint("stop_reason IN ('cancelled','expired')", name="jobs_stop_reason"),
    CheckConstraint(
        "state IN ('draft','validating','queued','in_progress','finalizing','cancelling',"
        "'completed','failed','cancelled','expired')",
        name="jobs_state",
    ),
    CheckConstraint(
        "(state IN ('completed','failed','cancelled','expired')) = (finished_at IS NOT NULL)", name="jobs_finished"
    ),
    Index("jobs_tenant", "tenant_id", "id"),
    Index("jobs_live", "id", postgresql_where=text("finished_at IS NULL")),
    Index(
        "jobs_overdue",
        "tenant_id",
        "expires_at",
        postgresql_where=text("expires_at IS NOT NULL AND finished_at IS NULL"),
    ),
    Index("jobs_parent", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
    Index("jobs_deleted", "tenant_id", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    Index(
        "jobs_retained",
        "tenant_id",
        "finished_at",
        postgresql_where=text("finished_at IS NOT NULL AND deleted_at IS NULL"),
    ),
    *(
        Index(
            f"jobs_with_{what}",
            "tenant_id",
            "finished_at",
            postgresql_where=text(f"finished_at IS NOT NULL AND deleted_at IS NULL AND {there}"),
        )
        for what, there in (
            ("payloads", "payloads_erased_at IS NULL"),
            ("objects", "objects_deleted_at IS NULL"),
            ("own_retention", "retention IS NOT NULL"),
        )
    ),
    Index("jobs_state", "state", "tenant_id", "id"),
    Index("jobs_batches", "tenant_id", "id", postgresql_where=text("input_file_id IS NOT NULL")),
)

job_chunks = Table(  # the chunks of drafts: a chunk that is sent again is recognized
    "job_chunks",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id")),
    Column("number", Integer),
    Column("tenant_id", Integer, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("first_index", Integer, nullable=False),
    Column("requests", Integer, nullable=False),
    Column("images", Integer, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=now),
    PrimaryKeyConstraint("job_id", "number"),
)

files = Table(
    "files",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("object_key", Text, nullable=False),
    Column("job_id", BigInteger),  # whose output it is
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("expires_at", Moment),
    Column("deleted_at", Moment),  # from then on it is hidden; a background task deletes the object, then the row
    CheckConstraint("purpose IN ('batch','batch_output','vision')", name="files_purpose"),
    CheckConstraint("octet_length(sha256) = 32", name="files_sha256"),
    Index("files_tenant", "tenant_id", "id"),
    Index("files_purpose", "tenant_id", "purpose", "id", postgresql_where=text("deleted_at IS NULL")),
    Index("files_doomed", "tenant_id", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    Index("files_expired", "tenant_id", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

job_inputs = Table(  # what a job's images are redrawn from; it stays for as long as the job has not ended
    "job_inputs",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE")),
    Column("kind", Text),  # file, or job: an earlier image of it
    Column("thing", BigInteger),  # the id of either
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    PrimaryKeyConstraint("job_id", "kind", "thing"),
    CheckConstraint("kind IN ('file','job')", name="job_inputs_kind"),
    Index("job_inputs_thing", "thing"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'pending'")),
    Column("file_id", BigInteger),
    Column("file_expires_seconds", Integer),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("expires_at", Moment, nullable=False),
    CheckConstraint("state IN ('pending','completed','cancelled','expired')", name="uploads_state"),
    CheckConstraint("(state = 'completed') = (file_id IS NOT NULL)", name="uploads_file"),
    Index("uploads_expired", "tenant_id", "expires_at", postgresql_where=text("state = 'pending'")),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("upload_id", BigInteger, ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("object_key", Text, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=now),
    Index("upload_parts_upload", "upload_id"),
    Index("upload_parts_tenant", "tenant_id", "upload_id"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", Integer, ForeignKey("tenants.id")),
    Column("key", Text),
    Column("request_sha256", LargeBinary, nullable=False),
    Column("job_id", BigInteger, nullable=False),  # or the id of another kind of thing
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("kind", Text, nullable=False, server_default=text("'job'")),
    PrimaryKeyConstraint("tenant_id", "key"),
    Index("idempotency_age", "created_at"),
)

segments = Table(
    "segments",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id")),
    Column("id", SmallInteger),
    Column("tenant_id", Integer, nullable=False),
    *columns.shape_columns(),
    Column("priority", SmallInteger, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("cap", SmallInteger),  # for quarantined images: the largest batch, which other images do not join
    Column("low", Integer, nullable=False),  # no image below this index is queued
    Column("high", Integer, nullable=False),  # the last index
    Column("created_at", Moment, nullable=False, server_default=now),
    PrimaryKeyConstraint("job_id", "id"),
    Index(
        "segments_claimable",
        "model_revision",
        "priority",
        "tenant_id",
        "job_id",
        "id",
        postgresql_where=text("open AND low <= high"),
    ),
)

images = Table(
    "images",
    metadata,
    Column("job_id", BigInteger),
    Column("claim_id", BigInteger),
    Column("index", Integer),
    Column("segment_id", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False, server_default=zero),
    Column("attempt", SmallInteger, nullable=False, server_default=zero),
    Column("lost", SmallInteger, nullable=False, server_default=zero),
    Column("crashes", SmallInteger, nullable=False, server_default=zero),
    PrimaryKeyConstraint("job_id", "index"),
    CheckConstraint("state BETWEEN 0 AND 4", name="images_state"),
    CheckConstraint("(state = 1) = (claim_id IS NOT NULL)", name="images_claimed"),
    Index("images_queued", "job_id", "segment_id", "index", postgresql_where=text("state = 0")),
    Index("images_rendering", "job_id", "claim_id", postgresql_where=text("claim_id IS NOT NULL")),
    Index("images_failed", "job_id", "index", postgresql_where=text("state = 3")),
    Index("images_cancelled", "job_id", "index", postgresql_where=text("state = 4")),
    postgresql_partition_by="RANGE (job_id)",
)

payloads = Table(
    "payloads",
    metadata,
    *columns.PAYLOAD,
    PrimaryKeyConstraint("job_id", "index"),
    Index("payloads_custom_id", "custom_id", postgresql_using="brin"),  # of Bloom filters: an insert does not touch it
    postgresql_partition_by="RANGE (job_id)",
)

results = Table(
    "results",
    metadata,
    Column("job_id", BigInteger),
    Column("index", Integer),
    Column("bytes", Integer, nullable=False),
    Column("claim_id", BigInteger, nullable=False),
    Column("finished_at", Moment, nullable=False, server_default=now),
    Column("render_seconds", REAL, nullable=False),
    Column("truncated", Boolean, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("object_key", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("reproducibility_class", Text, nullable=False),
    Column("engine_id", SmallInteger),  # no foreign key: its check would lock the same row for every image
    Column("flagged", Boolean),  # null: no safety checker ran
    Column("unknown_words", JSONB, nullable=False, server_default=text("'[]'")),
    Column("render_key", LargeBinary),
    Column("reused", Boolean, nullable=False, server_default=text("false")),  # copied, not rendered
    Column("scores", JSONB),  # by name; a score is null if its scorer failed; null: nobody scored the image
    Column("phash", BigInteger),  # the 64 bits of its perceptual hash
    PrimaryKeyConstraint("job_id", "index"),
    CheckConstraint("octet_length(sha256) = 32", name="results_sha256"),
    Index("results_render_key", "render_key", postgresql_where=text("render_key IS NOT NULL")),
    postgresql_partition_by="RANGE (job_id)",
)

image_scores = Table(  # the numbers of results.scores, in their order
    "image_scores",
    metadata,
    Column("job_id", BigInteger),
    Column("name", Text),
    Column("value", Double),
    Column("index", Integer),
    PrimaryKeyConstraint("job_id", "name", "value", "index"),
)

engines = Table(  # the sets of library versions that rendered images; rows are never deleted
    "engines",
    metadata,
    Column("id", SmallInteger, Identity(), primary_key=True),
    Column("versions", Text, nullable=False, unique=True),
)

failures = Table(  # every attempt that failed or was lost, also of images that were tried again
    "failures",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    Column("index", Integer, nullable=False),
    Column("claim_id", BigInteger, nullable=False),
    Column("code", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("device", Text, nullable=False),  # host and device
    Column("batch_images", SmallInteger, nullable=False),
    Column("failed_at", Moment, nullable=False, server_default=now),
    Column("worker_id", Text),  # who had claimed the image, and when; null if the release before wrote it
    Column("claimed_at", Moment),
    Index("failures_image", "job_id", "index"),
    Index("failures_device", "device", "failed_at"),
    Index("failures_age", "failed_at"),
    Index("failures_cause", "job_id", "code", "index"),
)

failure_deltas = Table(  # append-only; a periodic task folds them into the two tables below
    "failure_deltas",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    Column("code", Text, nullable=False),
    Column("images", Integer, nullable=False),
    Column("index", Integer, nullable=False),  # an image that failed, and why
    Column("message", Text, nullable=False),
    Column("at", Moment, nullable=False, server_default=now),
    Index("failure_deltas_job", "job_id"),
)

failure_counts = Table(  # how many images of a job failed for each cause, with the newest reason
    "failure_counts",
    metadata,
    Column("job_id", BigInteger),
    Column("code", Text),
    Column("images", Integer, nullable=False),
    Column("index", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("at", Moment, nullable=False),
    PrimaryKeyConstraint("job_id", "code"),
)

failure_hours = Table(  # the same for a tenant's jobs together, by hour
    "failure_hours",
    metadata,
    Column("tenant_id", Integer),
    Column("hour", Moment),
    Column("code", Text),
    Column("images", Integer, nullable=False),
    Column("job_id", BigInteger),  # null, as is the index, once that job is deleted
    Column("index", Integer),
    Column("message", Text, nullable=False),
    Column("at", Moment, nullable=False),
    PrimaryKeyConstraint("tenant_id", "hour", "code"),
    Index("failure_hours_hour", "hour"),
    Index("failure_hours_job", "job_id"),
)

claims = Table(
    "claims",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("worker_id", Text, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'open'")),
    Column("images", SmallInteger, nullable=False),
    Column("job_ids", ARRAY(BigInteger), nullable=False),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("expires_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("render_seconds", REAL),
    Column("step", SmallInteger, nullable=False, server_default=zero),
    Column("lease_seconds", REAL),  # null in a claim of the release before
    Column("free_at", Moment),  # when its worker expects to have rendered it; null: nothing like it was measured
    Column("tenant_ids", ARRAY(Integer)),  # whose images it holds, and how many of each; null: of the release before
    Column("tenant_images", ARRAY(SmallInteger)),
    CheckConstraint("state IN ('open','settled','expired','crashed')", name="claims_state"),
    CheckConstraint("(state = 'open') = (ended_at IS NULL)", name="claims_ended"),
    Index("claims_open", "expires_at", postgresql_where=text("state = 'open'")),
    Index("claims_open_worker", "worker_id", postgresql_where=text("state = 'open'")),
    Index("claims_ended_at", "ended_at", postgresql_where=text("state <> 'open'")),
)

counters = Table(
    "counters",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    *(
        Column(name, Integer, nullable=False, server_default=zero if name != "queued" else None)
        for name in columns.COUNTS
    ),
    Column("rate", Double, nullable=False, server_default=zero),  # images finished per second, recently
    Column("folded_at", Moment, nullable=False, server_default=now),  # until when the rate was measured
    Column("reused", Integer, nullable=False, server_default=zero),  # how many of the done ones were copied
    Column("rate_seconds", Double, nullable=False, server_default=zero),  # behind the rate; older ones count less
    Column("device_seconds", Double, nullable=False, server_default=zero),  # that devices held the job's images
    Column("series_at", Moment),  # what was finished since then, in spans of so many seconds (queue/job_series.py)
    Column("series_seconds", Integer),
    Column("series_done", ARRAY(Integer)),
    Column("series_failed", ARRAY(Integer)),
    Column("bytes", BigInteger, server_default=zero),  # of its pictures; null: a job from before they were added up
    Index("counters_unsized", "job_id", postgresql_where=text("bytes IS NULL")),
    CheckConstraint(f"least({', '.join(columns.COUNTS)}) >= 0", name="counters_not_negative"),
)

counter_deltas = Table(  # append-only; a periodic task folds them into `counters`
    "counter_deltas",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    *(Column(name, Integer, nullable=False, server_default=zero) for name in columns.COUNTS),
    Column("reused", Integer, nullable=False, server_default=zero),
    Column("at", Moment, nullable=False, server_default=now),
    Column("device_seconds", REAL, nullable=False, server_default=zero),
    Column("slots", REAL, nullable=False, server_default=zero),  # of batches, padding included
    Column("bytes", BigInteger, nullable=False, server_default=zero),  # of pictures
    CheckConstraint(f"{' + '.join(columns.COUNTS)} = 0", name="counter_deltas_balance"),
    Index("counter_deltas_job", "job_id"),
)

rates = Table(  # what was finished in each minute and in each hour; a minute's row goes after two days
    "rates",
    metadata,
    Column("tenant_id", Integer),
    Column("grain", Text),
    Column("at", Moment),  # when the minute or the hour began, in UTC
    Column("done", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("reused", BigInteger, nullable=False),
    Column("device_seconds", Double, nullable=False),
    Column("slots", Double, nullable=False),
    PrimaryKeyConstraint("tenant_id", "grain", "at"),
    CheckConstraint("grain IN ('minute','hour')", name="rates_grain"),
    Index("rates_age", "grain", "at"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("model_revision", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("started_at", Moment, nullable=False, server_default=now),
    Column("seen_at", Moment, nullable=False, server_default=now),
    Column("doing", Text, nullable=False, server_default=text("''")),  # what takes long, for people
    Column("report", JSONB, nullable=False, server_default=text("'{}'")),  # what it says of itself: worker/report.py
    Column("busy_at", Moment),  # the last heartbeat that said so; null in a worker of the release before
    CheckConstraint("state IN ('starting','ready','busy','sick','stopped','crashed')", name="workers_state"),
    Index("workers_seen", "seen_at"),
)

drains = Table(  # devices whose workers are to take nothing new, also when they are started again
    "drains",
    metadata,
    Column("host", Text),
    Column("device", Text),
    Column("drained_at", Moment, nullable=False, server_default=now),
    PrimaryKeyConstraint("host", "device"),
)

render_rates = Table(  # accelerator-seconds per image, as measured by each device
    "render_rates",
    metadata,
    *columns.timed_columns(),
    Column("device", Text),
    Column("images", BigInteger, nullable=False),
    Column("seconds_per_image", Double, nullable=False),
    Column("deviation", Double, nullable=False),
    Column("measured_at", Moment, nullable=False, server_default=now),
    PrimaryKeyConstraint(*columns.TIMED, "device"),
    Index("render_rates_device", "device", "model_revision"),
)

exports = Table(
    "exports",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("job_id", BigInteger, ForeignKey("jobs.id"), nullable=False),
    Column("format", Text, nullable=False),
    Column("options", JSONB, nullable=False, server_default=text("'{}'")),
    Column("state", Text, nullable=False, server_default=text("'queued'")),
    Column("images_total", Integer, nullable=False, server_default=zero),
    Column("images_done", Integer, nullable=False, server_default=zero),
    Column("bytes", BigInteger, nullable=False, server_default=zero),
    Column("next_shard", Integer, nullable=False, server_default=zero),  # where another process continues after a crash
    Column("next_index", Integer, nullable=False, server_default=zero),
    Column("marks", LargeBinary),  # those of the job's images when the export was planned
    Column("error", Text),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("finished_at", Moment),
    Column("expires_at", Moment),
    CheckConstraint("state IN ('queued','running','completed','failed','cancelled')", name="exports_state"),
    CheckConstraint(
        "(state IN ('completed','failed','cancelled')) = (finished_at IS NOT NULL)", name="exports_finished"
    ),
    Index("exports_job", "job_id", "id"),
    Index("exports_waiting", "tenant_id", "id", postgresql_where=text("finished_at IS NULL")),
    Index("exports_expired", "tenant_id", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    Index(
        "exports_dropped",
        "tenant_id",
        "id",
        postgresql_where=text("state IN ('failed','cancelled') AND next_shard >= 0"),
    ),
)

bulk_acts = Table(  # on every job that matches a filter
    "bulk_acts",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("actor", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("filter", JSONB, nullable=False),
    Column("options", JSONB, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'running'")),
    Column("jobs", BigInteger, nullable=False),
    Column("images", BigInteger, nullable=False),
    Column("is_all", Boolean, nullable=False),
    Column("last_job", BigInteger, nullable=False),
    Column("reached", BigInteger, nullable=False, server_default=text("'-1'")),
    Column("done", BigInteger, nullable=False, server_default=zero),
    Column("lost", BigInteger, nullable=False, server_default=zero),
    Column("reasons", JSONB, nullable=False, server_default=text("'[]'")),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("finished_at", Moment),
    CheckConstraint("state IN ('running', 'completed', 'stopped')", name="bulk_acts_state"),
    CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="bulk_acts_finished"),
    Index("bulk_acts_tenant", "tenant_id", "id"),
    Index("bulk_acts_running", "tenant_id", "id", postgresql_where=text("state = 'running'")),
)

policy_terms = Table(  # what prompts of a tenant may not have; `folded` is what they are compared with
    "policy_terms",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("term", Text, nullable=False),
    Column("folded", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=now),
    Index("policy_terms_folded", "tenant_id", "folded", unique=True),
)

license_acceptances = Table(  # of what was shown of a licence, by its sha256
    "license_acceptances",
    metadata,
    Column("tenant_id", Integer, ForeignKey("tenants.id"), primary_key=True),
    Column("license", Text, primary_key=True),
    Column("sha256", LargeBinary, primary_key=True),
    Column("accepted_by", Text, nullable=False),
    Column("accepted_at", Moment, nullable=False, server_default=now),
)

views = Table(  # of the dashboard's lists
    "views",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("page", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("query", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=now),
    UniqueConstraint("tenant_id", "page", "name", name="views_name"),
)

marks = Table(  # of done images
    "marks",
    metadata,
    Column("job_id", BigInteger),
    Column("index", Integer),
    Column("mark", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at", Moment, nullable=False, server_default=now),
    PrimaryKeyConstraint("job_id", "index"),
    CheckConstraint("mark IN ('accepted','rejected','starred')", name="marks_mark"),
    Index("marks_kind", "job_id", "mark", "index"),
)

mark_counts = Table(
    "mark_counts",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    *(Column(name, Integer, nullable=False) for name in ("accepted", "rejected", "starred")),
)

export_files = Table(
    "export_files",
    metadata,
    Column("export_id", BigInteger, ForeignKey("exports.id", ondelete="CASCADE")),
    Column("path", Text),
    Column("tenant_id", Integer, nullable=False),
    Column("shard", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("images", Integer, nullable=False),
    Column("object_key", Text, nullable=False),
    PrimaryKeyConstraint("export_id", "path"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("definition", JSONB, nullable=False),
    Column("version", Integer, nullable=False, server_default=zero),  # the last that is completed; 0: none
    Column("last_number", Integer, nullable=False, server_default=zero),  # that a version got
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("updated_at", Moment, nullable=False, server_default=now),
    Column("deleted_at", Moment),
    Index("datasets_name", "tenant_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("datasets_deleted", "tenant_id", "id", postgresql_where=text("deleted_at IS NOT NULL")),
)


def _of_a_dataset() -> Column[int]:
    return Column("dataset_id", BigInteger, ForeignKey("datasets.id", ondelete="CASCADE"))


dataset_versions = Table(
    "dataset_versions",
    metadata,
    _of_a_dataset(),
    Column("number", Integer),
    Column("tenant_id", Integer, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'queued'")),
    Column("while_running", Boolean, nullable=False, server_default=text("false")),
    Column("definition", JSONB, nullable=False),  # the dataset's when the version was asked for
    Column("base", Integer, nullable=False, server_default=zero),  # the version that it is made from; 0: none
    Column("base_url", Text, nullable=False, server_default=text("''")),
    Column("plan", JSONB),
    Column("removed", LargeBinary),  # images that the base holds and this one does not
    Column("images", Integer, nullable=False, server_default=zero),
    Column("images_to_write", Integer, nullable=False, server_default=zero),
    Column("images_written", Integer, nullable=False, server_default=zero),
    Column("bytes", BigInteger, nullable=False, server_default=zero),  # written for this version
    Column("is_stored", Boolean, nullable=False, server_default=text("true")),  # false: its objects are deleted
    Column("error", Text),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("finished_at", Moment),
    Column("deleted_at", Moment),  # a completed one; its number is not given again
    Column("total_bytes", BigInteger),  # of all files that stand in it
    PrimaryKeyConstraint("dataset_id", "number"),
    CheckConstraint("state IN ('queued','running','completed','failed','cancelled')", name="dataset_versions_state"),
    CheckConstraint(
        "(state IN ('completed','failed','cancelled')) = (finished_at IS NOT NULL)", name="dataset_versions_finished"
    ),
    Index(
        "dataset_versions_unfinished", "dataset_id", unique=True, postgresql_where=text("finished_at IS NULL")
    ),  # one version of a dataset is written at a time
    Index("dataset_versions_waiting", "tenant_id", "dataset_id", postgresql_where=text("finished_at IS NULL")),
    Index(
        "dataset_versions_dropped",
        "tenant_id",
        "dataset_id",
        postgresql_where=text("state IN ('failed','cancelled') AND is_stored"),
    ),
    Index(
        "dataset_versions_deleted",
        "tenant_id",
        "dataset_id",
        postgresql_where=text("deleted_at IS NOT NULL AND is_stored"),
    ),
)

dataset_shards = Table(  # a shard stands in completed versions from `since` on, and until before `until`
    "dataset_shards",
    metadata,
    _of_a_dataset(),
    Column("since", Integer),
    Column("split", Text),
    Column("ordinal", Integer),
    Column("tenant_id", Integer, nullable=False),
    Column("until", Integer),
    Column("replaces", Integer),  # the version since which the shard stands that this one takes the place of
    Column("images", Integer, nullable=False),
    Column("members", LargeBinary, nullable=False),  # its images: datasets/held.py
    Column("is_written", Boolean, nullable=False, server_default=text("false")),
    PrimaryKeyConstraint("dataset_id", "since", "split", "ordinal"),
)

dataset_files = Table(
    "dataset_files",
    metadata,
    _of_a_dataset(),
    Column("since", Integer),
    Column("path", Text),
    Column("tenant_id", Integer, nullable=False),
    Column("split", Text),  # its shard's; null: it describes one version
    Column("ordinal", Integer),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("images", Integer, nullable=False),
    Column("object_key", Text, nullable=False),
    PrimaryKeyConstraint("dataset_id", "path", "since"),
    Index("dataset_files_shard", "dataset_id", "since", "split", "ordinal", "path"),
)

dataset_jobs = Table(  # what a version was made of
    "dataset_jobs",
    metadata,
    _of_a_dataset(),
    Column("number", Integer),
    Column("job_id", BigInteger),
    Column("tenant_id", Integer, nullable=False),
    Column("root_id", BigInteger, nullable=False),  # the first job of its retries
    Column("is_final", Boolean, nullable=False),  # the job had ended
    Column("marks", Text, nullable=False),  # tells whether marks have changed since
    Column("images", Integer, nullable=False, server_default=zero),  # of this version
    Column("state", Text),  # how the job was when the version was planned, and its labels
    Column("labels", JSONB),
    PrimaryKeyConstraint("dataset_id", "number", "job_id"),
    Index("dataset_jobs_job", "job_id"),
)

catalogues = Table(
    "catalogues",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("public_id", Text, nullable=False),  # in links for everybody
    Column("definition", JSONB, nullable=False),
    Column("file_id", BigInteger),  # the last upload of its source
    Column("version", Integer, nullable=False, server_default=zero),  # the highest that was begun
    Column("published", Integer),  # the version that readers see
    Column("announced", Integer),  # the version that the pointer in the store names
    Column("tidy_from", Moment),  # set while the pointer, old versions or objects wait for the background task
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("updated_at", Moment, nullable=False, server_default=now),
    Column("deleted_at", Moment),
    Column("moved_at", Moment),  # when `published` moved last; no two moments lie in one second
    Index("catalogues_name", "tenant_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("catalogues_public", "public_id", unique=True),
    Index("catalogues_untidy", "tenant_id", "tidy_from", postgresql_where=text("tidy_from IS NOT NULL")),
)

_FINAL_RUN = "('planned','unchanged','published','kept','failed','cancelled')"
catalogue_runs = Table(
    "catalogue_runs",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("catalogue_id", BigInteger, ForeignKey("catalogues.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("plan_only", Boolean, nullable=False),
    Column("accept_removed", Boolean, nullable=False),
    Column("definition", JSONB, nullable=False),  # the catalogue's when the run was asked for
    Column("file_id", BigInteger),
    Column("base", Integer, nullable=False, server_default=zero),  # the version that it is compared with; 0: nothing
    Column("version", Integer),
    Column("job_id", BigInteger),
    Column("source", JSONB, nullable=False, server_default=text("'{}'")),
    Column("counts", JSONB, nullable=False, server_default=text("'{}'")),
    Column("position", Integer, nullable=False, server_default=zero),  # how far the state's work has come
    Column("error", JSONB),
    Column("deadline", Moment),
    Column("cancel_requested_at", Moment),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("planned_at", Moment),
    Column("rendered_at", Moment),
    Column("finished_at", Moment),
    Column("causes", JSONB, nullable=False, server_default=text("'{}'")),  # how many changes have which code
    Column("redraw_jobs", ARRAY(BigInteger), nullable=False, server_default=text("'{}'")),  # of its review
    Column("list_key", Text),  # of the object that lists its pictures
    CheckConstraint(
        f"state IN ('queued','submitting','rendering','reviewing','writing',{_FINAL_RUN[1:]}",
        name="catalogue_runs_state",
    ),
    CheckConstraint(f"(state IN {_FINAL_RUN}) = (finished_at IS NOT NULL)", name="catalogue_runs_finished"),
    Index("catalogue_runs_catalogue", "catalogue_id", "id"),
    Index(
        "catalogue_runs_one",
        "catalogue_id",
        unique=True,
        postgresql_where=text("finished_at IS NULL AND NOT plan_only"),
    ),
    Index("catalogue_runs_waiting", "tenant_id", "id", postgresql_where=text("finished_at IS NULL")),
)

catalogue_changes = Table(  # what a run found to differ from its base; those to be rendered come first
    "catalogue_changes",
    metadata,
    Column("run_id", BigInteger, ForeignKey("catalogue_runs.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),  # of those to be rendered: the index in the job
    Column("item", Text(collation="C"), nullable=False),
    Column("variant", Text(collation="C"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("line", Integer),
    Column("render_key", LargeBinary),
    Column("request", JSONB),
    Column("model_revision", Text),
    Column("outcome", Text),
    Column("code", Text),
    Column("message", Text),
    Column("redraws", Integer, nullable=False, server_default=zero),  # how often its seed was exchanged
    Column("job_id", BigInteger),  # where it was drawn again: a job, and the index of its image there
    Column("index", Integer),
    PrimaryKeyConstraint("run_id", "position"),
    CheckConstraint("(job_id IS NULL) = (index IS NULL)", name="catalogue_changes_redrawn"),
    CheckConstraint("kind IN ('new','changed','model','retried','broken','removed')", name="catalogue_changes_kind"),
    CheckConstraint("outcome IN ('done','failed','rejected','removed')", name="catalogue_changes_outcome"),
    Index("catalogue_changes_kind", "run_id", "kind", "position"),
    Index("catalogue_changes_troubled", "run_id", "position", postgresql_where=text("code IS NOT NULL")),
    Index("catalogue_changes_code", "run_id", "code", "position", postgresql_where=text("code IS NOT NULL")),
    Index("catalogue_changes_redrawn", "run_id", "position", postgresql_where=text("job_id IS NOT NULL")),
)

catalogue_versions = Table(
    "catalogue_versions",
    metadata,
    Column("catalogue_id", BigInteger, ForeignKey("catalogues.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("run_id", BigInteger, nullable=False),
    Column("images", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("manifests", JSONB, nullable=False),
    Column("created_at", Moment, nullable=False, server_default=now),
    PrimaryKeyConstraint("catalogue_id", "version"),
)

catalogue_entries = Table(  # the picture that an item's variant has from one version until before another
    "catalogue_entries",
    metadata,
    Column("catalogue_id", BigInteger, ForeignKey("catalogues.id"), nullable=False),
    Column("item", Text(collation="C"), nullable=False),
    Column("variant", Text(collation="C"), nullable=False),
    Column("from_version", Integer, nullable=False),
    Column("until_version", Integer),
    Column("stale_from", Integer),  # the version from which on the item's data ask for another picture
    Column("render_key", LargeBinary, nullable=False),
    Column("object_key", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("request", JSONB, nullable=False),
    Column("model_revision", Text, nullable=False),
    Column("reproducibility_class", Text, nullable=False),
    Column("rendered_at", Moment, nullable=False),
    Column("job_id", BigInteger, nullable=False),
    Column("index", Integer, nullable=False),
    PrimaryKeyConstraint("catalogue_id", "item", "variant", "from_version"),
    CheckConstraint("until_version > from_version", name="catalogue_entries_order"),
    Index("catalogue_entries_from", "catalogue_id", "from_version", "item", "variant"),
    Index(
        "catalogue_entries_until",
        "catalogue_id",
        "until_version",
        "item",
        "variant",
        postgresql_where=text("until_version IS NOT NULL"),
    ),
    Index("catalogue_entries_object", "catalogue_id", "object_key"),
    Index(
        "catalogue_entries_stale",
        "catalogue_id",
        postgresql_where=text("stale_from IS NOT NULL AND until_version IS NULL"),
    ),
)

catalogue_destinations = Table(  # where the published version is copied to, and how far that has come
    "catalogue_destinations",
    metadata,
    Column("catalogue_id", BigInteger, ForeignKey("catalogues.id"), primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("place", Text, nullable=False),  # a bucket and a folder
    Column("rule", LargeBinary, nullable=False),  # the digest of the names' template
    Column("version", Integer, nullable=False),  # that is copied, or was copied last
    Column("step", Text, nullable=False),
    Column("reached", ARRAY(Text), nullable=False, server_default=text("'{}'")),  # how far the step has come
    Column("announced", Integer),  # the version that the pointer at the place names
    Column("counts", JSONB, nullable=False, server_default=text("'{}'")),
    Column("error", JSONB),
    Column("attempts", Integer, nullable=False, server_default=zero),
    Column("next_at", Moment),  # set while there is something to do
    Column("began_at", Moment, nullable=False, server_default=now),
    Column("finished_at", Moment),
    CheckConstraint("step IN ('naming','copying','deleting','done')", name="catalogue_destinations_step"),
    Index("catalogue_destinations_waiting", "tenant_id", "next_at", postgresql_where=text("next_at IS NOT NULL")),
)

catalogue_copies = Table(  # the objects of such a place: which picture each one is or, until it is there, becomes
    "catalogue_copies",
    metadata,
    Column("catalogue_id", BigInteger, ForeignKey("catalogues.id"), nullable=False),
    Column("place", Text, nullable=False),
    Column("name", Text(collation="C"), nullable=False),
    Column("item", Text(collation="C"), nullable=False),
    Column("variant", Text(collation="C"), nullable=False),
    Column("rule", LargeBinary, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("is_there", Boolean, nullable=False, server_default=text("false")),
    PrimaryKeyConstraint("catalogue_id", "place", "name"),
    Index("catalogue_copies_item", "catalogue_id", "place", "item", "variant"),
    Index("catalogue_copies_waiting", "catalogue_id", "place", "name", postgresql_where=text("NOT is_there")),
)

events = Table(  # append-only; committed rows are numbered in `seq`, and readers go by it. See events/numbering.py
    "events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("seq", BigInteger),
    Column("tenant_id", Integer),  # null: an event of the system, which no tenant sees
    Column("at", Moment, nullable=False, server_default=now),
    Column("actor", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("data", JSONB, nullable=False, server_default=text("'{}'")),
    Index("events_seq", "seq", unique=True),
    Index("events_unnumbered", "id", postgresql_where=text("seq IS NULL")),
    Index("events_subject", "subject", "seq"),
    Index("events_acts", "tenant_id", "seq", postgresql_where=text(ACTS)),
    Index("events_acts_actor", "tenant_id", "actor", "seq", postgresql_where=text(ACTS)),
    Index("events_acts_kind", "tenant_id", "kind", "seq", postgresql_where=text(ACTS)),
)

audit_cursor = Table(  # one row: how far events are sealed, and how far those of the shorter life are pruned
    "audit_cursor",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("sealed_seq", BigInteger, nullable=False),
    Column("pruned_seq", BigInteger, nullable=False),
    CheckConstraint("singleton", name="audit_cursor_singleton"),
)

audit_seals = Table(  # insert-only but for `pruned_at`, which a function of the database sets: core/trail
    "audit_seals",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant_id", Integer, ForeignKey("tenants.id")),  # null: of the system
    Column("first", BigInteger, nullable=False),  # the place of its first event in the tenant's chain, from 1
    Column("seqs", ARRAY(BigInteger), nullable=False),
    Column("from_at", Moment, nullable=False),
    Column("to_at", Moment, nullable=False),
    Column("previous", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("sealed_at", Moment, nullable=False, server_default=now),
    Column("pruned_at", Moment),
    CheckConstraint("octet_length(previous) = 32 AND octet_length(hash) = 32", name="audit_seals_hashes"),
    CheckConstraint("first > 0 AND cardinality(seqs) > 0 AND from_at <= to_at", name="audit_seals_range"),
    Index("audit_seals_place", "tenant_id", "first", unique=True, postgresql_nulls_not_distinct=True),
    Index("audit_seals_tenant", "tenant_id", "id"),
    Index("audit_seals_kept", "id", postgresql_where=text("pruned_at IS NULL")),
)

schedules = Table(
    "schedules",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("cron", Text),  # either cron or at
    Column("at", Moment),
    Column("timezone", Text, nullable=False),
    Column("target_kind", Text, nullable=False),
    Column("target", Text, nullable=False),  # what is submitted, as JSON
    Column("base_url", Text, nullable=False),  # the API's address as its client sees it
    Column("misfire", Text, nullable=False),
    Column("misfire_limit", SmallInteger, nullable=False),
    Column("overlap", Text, nullable=False),
    Column("deadline", Text),
    Column("paused", Boolean, nullable=False),
    Column("next_at", Moment),  # null while it is paused, and when it fires no more
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("changed_at", Moment, nullable=False, server_default=now),
    UniqueConstraint("tenant_id", "name", name="schedules_name"),
    CheckConstraint("(cron IS NULL) <> (at IS NULL)", name="schedules_times"),
    CheckConstraint("misfire IN ('latest','all','none') AND misfire_limit BETWEEN 1 AND 100", name="schedules_misfire"),
    CheckConstraint("overlap IN ('skip','queue','cancel')", name="schedules_overlap"),
    CheckConstraint("NOT paused OR next_at IS NULL", name="schedules_paused"),
    Index("schedules_due", "tenant_id", "next_at", postgresql_where=text("next_at IS NOT NULL")),
)

schedule_runs = Table(  # one row for each instant of a schedule
    "schedule_runs",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("schedule_id", BigInteger, ForeignKey("schedules.id", ondelete="CASCADE"), nullable=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("instant", Moment, nullable=False),
    Column("state", Text, nullable=False),
    Column("asked_by", Text),  # who ran it by hand
    Column("job_id", BigInteger),
    Column("reason", Text),  # why it was skipped or refused
    Column("deadline_at", Moment),
    Column("raised", SmallInteger, nullable=False, server_default=zero),  # how often its job's priority was raised
    Column("warned_at", Moment),
    Column("missed_at", Moment),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("submitted_at", Moment),
    Column("finished_at", Moment),
    Column("catalogue_run_id", BigInteger),  # in place of a job
    UniqueConstraint("schedule_id", "instant", name="schedule_runs_instant"),
    CheckConstraint(
        "state IN ('waiting','submitting','running','completed','failed','cancelled','expired','skipped','refused')",
        name="schedule_runs_state",
    ),
    CheckConstraint(
        "(state IN ('waiting','submitting','running')) = (finished_at IS NULL)", name="schedule_runs_finished"
    ),
    CheckConstraint(
        "state NOT IN ('running','completed','failed','expired') OR coalesce(job_id, catalogue_run_id) IS NOT NULL",
        name="schedule_runs_job",
    ),
    Index("schedule_runs_submitting", "tenant_id", "id", postgresql_where=text("state = 'submitting'")),
    Index("schedule_runs_live", "schedule_id", "instant", postgresql_where=text("finished_at IS NULL")),
    Index("schedule_runs_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("expires_at", Moment, nullable=False),
)

webhook_cursor = Table(  # one row: the last event of which deliveries were made
    "webhook_cursor",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("seq", BigInteger, nullable=False),
    CheckConstraint("singleton", name="webhook_cursor_singleton"),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("url", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("events", ARRAY(Text), nullable=False),  # patterns: webhooks/types.py
    Column("labels", JSONB, nullable=False),  # what a job's labels must hold
    Column("state", Text, nullable=False, server_default=text("'enabled'")),
    Column("reason", Text),  # why it is disabled
    Column("secret", LargeBinary, nullable=False),  # encrypted: webhooks/signing.py
    Column("old_secret", LargeBinary),  # signs too, until old_until
    Column("old_until", Moment),
    Column("failures", Integer, nullable=False, server_default=zero),  # since the last success
    Column("failing_since", Moment),
    Column("not_before", Moment, nullable=False, server_default=now),  # of the next try
    Column("served_at", Moment, nullable=False, server_default=now),
    Column("created_by", Text, nullable=False),  # an actor
    Column("created_at", Moment, nullable=False, server_default=now),
    CheckConstraint("state IN ('enabled','disabled')", name="webhook_endpoints_state"),
    CheckConstraint("(state = 'disabled') = (reason IS NOT NULL)", name="webhook_endpoints_reason"),
    CheckConstraint("(old_secret IS NULL) = (old_until IS NULL)", name="webhook_endpoints_old_secret"),
    Index("webhook_endpoints_tenant", "tenant_id", "id"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("endpoint_id", BigInteger, ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False),
    Column("tenant_id", Integer, nullable=False),
    Column("seq", BigInteger),  # of the event; null for a test
    Column("message_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'pending'")),
    Column("tries", Integer, nullable=False, server_default=zero),
    Column("round", SmallInteger, nullable=False, server_default=zero),  # tries since it was last asked for
    Column("next_at", Moment),
    Column("created_at", Moment, nullable=False, server_default=now),
    Column("finished_at", Moment),
    UniqueConstraint("endpoint_id", "message_id", name="webhook_deliveries_message"),
    CheckConstraint("state IN ('pending','delivered','failed')", name="webhook_deliveries_state"),
    CheckConstraint("(state = 'pending') = (next_at IS NOT NULL)", name="webhook_deliveries_next"),
    CheckConstraint("(state = 'pending') = (finished_at IS NULL)", name="webhook_deliveries_finished"),
    Index("webhook_deliveries_due", "endpoint_id", "next_at", postgresql_where=text("state = 'pending'")),
    Index("webhook_deliveries_endpoint", "endpoint_id", "id"),
    Index("webhook_deliveries_of_state", "endpoint_id", "state", "id"),
    Index("webhook_deliveries_of_type", "endpoint_id", "type", "id"),
    Index("webhook_deliveries_of_both", "endpoint_id", "state", "type", "id"),
)

webhook_tries = Table(
    "webhook_tries",
    metadata,
    Column("delivery_id", BigInteger, ForeignKey("webhook_deliveries.id", ondelete="CASCADE")),
    Column("number", Integer),
    Column("tenant_id", Integer, nullable=False),
    Column("at", Moment, nullable=False),
    Column("milliseconds", Integer, nullable=False),
    Column("status", SmallInteger),
    Column("answer", Text),  # its first bytes
    Column("error", Text),
    PrimaryKeyConstraint("delivery_id", "number"),
)

retention_rules = Table(  # for how many days after its end a job keeps what; null: for ever
    "retention_rules",
    metadata,
    Column("tenant_id", Integer, ForeignKey("tenants.id"), primary_key=True, autoincrement=False),
    Column("payload_days", Integer),
    Column("object_days", Integer),
    Column("record_days", Integer),
    Column("updated_at", Moment, nullable=False, server_default=now),
    CheckConstraint("payload_days >= 0 AND object_days >= 0 AND record_days >= 0", name="retention_rules_days"),
)

retention_work = Table(  # what of a job is due to go, and what still holds it
    "retention_work",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE")),
    Column("kind", Text),
    Column("tenant_id", Integer, ForeignKey("tenants.id"), nullable=False),
    Column("look_again_at", Moment, nullable=False, server_default=now),
    Column("reason", Text),
    PrimaryKeyConstraint("job_id", "kind"),
    CheckConstraint("kind IN ('payloads','objects','records')", name="retention_work_kind"),
    Index("retention_work_next", "tenant_id", "look_again_at"),
)

tenant_deletions = Table(  # it outlives the tenant: no foreign key
    "tenant_deletions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("tenant_id", Integer, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("requested_at", Moment, nullable=False, server_default=now),
    Column("requested_by", Text, nullable=False),
    Column("images", BigInteger, nullable=False, server_default=zero),
    Column("objects", BigInteger, nullable=False, server_default=zero),
    Column("rows", BigInteger, nullable=False, server_default=zero),
    Column("emptied_at", Moment),  # when only its keys and events were left
    Column("finished_at", Moment),
    Column("remains", JSONB),  # rows by table; empty: nothing
    Column("swept_at", Moment),  # when its folders were looked at once more
    Index("tenant_deletions_open", "tenant_id", postgresql_where=text("finished_at IS NULL")),
    Index("tenant_deletions_unswept", "finished_at", postgresql_where=text("swept_at IS NULL")),
)

storage_mark = Table(  # one row: whether database and store belong together; an object of the store says the same
    "storage_mark",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("epoch", BigInteger, nullable=False, server_default=zero),
    Column("is_pending", Boolean, nullable=False, server_default=text("false")),  # the one before fits, too
    Column("looked_at", Moment),
    Column("refusal", Text),  # why no orphan may be deleted, as was last seen
    CheckConstraint("singleton", name="storage_mark_singleton"),
)

storage_audits = Table(
    "storage_audits",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("requested_by", Text, nullable=False),
    Column("requested_at", Moment, nullable=False, server_default=now),
    Column("share", REAL, nullable=False),
    Column("step", Text, nullable=False, server_default=text("'records'")),
    Column("at_job", BigInteger, nullable=False, server_default=zero),
    Column("at_key", Text, nullable=False, server_default=text("''")),
    *(
        Column(name, BigInteger, nullable=False, server_default=zero)
        for name in ("objects", "records", "sampled", "missing", "damaged", "orphans", "foreign_objects", "deleted",
                     "requeued")
    ),
    Column("refusal", Text),  # why it deleted no orphans
    Column("finished_at", Moment),
    Column("keeps_orphans", Boolean, nullable=False, server_default=text("false")),
    Column("in_job", BigInteger, nullable=False, server_default=zero),
    Column("at_index", Integer, nullable=False, server_default=text("-1")),
    CheckConstraint("step IN ('records','listing','requeue','orphans','done')", name="storage_audits_step"),
    CheckConstraint("share BETWEEN 0 AND 1", name="storage_audits_share"),
    Index("storage_audits_open", text("(true)"), unique=True, postgresql_where=text("finished_at IS NULL")),
)  # fmt: skip

storage_orphans = Table(  # objects that no record names, and since when
    "storage_orphans",
    metadata,
    Column("object_key", Text(collation="C"), primary_key=True),
    Column("first_seen_at", Moment, nullable=False, server_default=now),
    Column("audit_id", BigInteger, nullable=False),
    Index("storage_orphans_age", "first_seen_at"),
)

storage_findings = Table(  # images whose object is missing or damaged, and the job that draws them again
    "storage_findings",
    metadata,
    Column("job_id", BigInteger),
    Column("index", Integer),
    Column("kind", Text, nullable=False),
    Column("audit_id", BigInteger, nullable=False),
    Column("found_at", Moment, nullable=False, server_default=now),
    Column("requeued_as", BigInteger),
    PrimaryKeyConstraint("job_id", "index"),
    CheckConstraint("kind IN ('missing','damaged')", name="storage_findings_kind"),
    Index("storage_findings_waiting", "job_id", postgresql_where=text("requeued_as IS NULL")),
)
