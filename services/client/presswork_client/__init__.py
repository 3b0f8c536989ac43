"""A thin typed client of the HTTP API, for people and for the command line.

    with Client("http://127.0.0.1:8000", "pw_...") as client:
        job = client.submit([{"prompt": "a red mug", "n": 4}])

It retries what is safe to send again, and only that: a submission is sent under an Idempotency-Key, so sending it again
after a lost answer makes no second job.
"""

from presswork_client.answers import (
    AppendedChunk,
    Chunk,
    Counts,
    Estimate,
    Event,
    Export,
    ExportFile,
    ExportFormat,
    ExportOptions,
    Image,
    ImageError,
    ImageRequest,
    Job,
    JobRequest,
    Matrix,
    Model,
    OutputFormat,
    Preview,
    Range,
)
from presswork_client.client import PAGE, Client
from presswork_client.transport import ClientError, file_sha256

__all__ = [
    "PAGE",
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
    "Image",
    "ImageError",
    "ImageRequest",
    "Job",
    "JobRequest",
    "Matrix",
    "Model",
    "OutputFormat",
    "Preview",
    "Range",
    "file_sha256",
]
