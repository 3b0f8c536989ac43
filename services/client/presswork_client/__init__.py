"""A typed client of the HTTP API.

    with Client("http://127.0.0.1:8420", "pw_...") as client:
        job = client.submit([{"prompt": "a red mug", "n": 4}])

It retries only requests that are safe to repeat. A submission has an Idempotency-Key, so a retry after a lost answer
does not make a second job.
"""

from presswork_client.answers import (
    Action,
    AppendedChunk,
    Chunk,
    Counts,
    Estimate,
    Event,
    Export,
    ExportFile,
    ExportFormat,
    ExportOptions,
    FailureCause,
    File,
    FileDeleted,
    Image,
    ImageError,
    ImageRequest,
    Job,
    JobDeleted,
    JobDeletion,
    JobRequest,
    Matrix,
    Model,
    OutputFormat,
    Preview,
    Range,
    RatePoint,
    Rates,
    RateSeries,
    Refusal,
    Worker,
)
from presswork_client.client import PAGE, Client
from presswork_client.transport import ClientError, file_sha256

__all__ = [
    "PAGE",
    "Action",
    "AppendedChunk",
    "Chunk",
    "Client",
    "ClientError",
    "Counts",
    "Estimate",
    "Event",
    "Export",
    "ExportFile",
    "ExportFormat",
    "ExportOptions",
    "FailureCause",
    "File",
    "FileDeleted",
    "Image",
    "ImageError",
    "ImageRequest",
    "Job",
    "JobDeleted",
    "JobDeletion",
    "JobRequest",
    "Matrix",
    "Model",
    "OutputFormat",
    "Preview",
    "Range",
    "RatePoint",
    "RateSeries",
    "Rates",
    "Refusal",
    "Worker",
    "file_sha256",
]
