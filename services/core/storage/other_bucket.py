"""Another bucket of the same server, into which objects of the store are copied. Others may write there too."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import IO, Any

from botocore.exceptions import ClientError

from services.core.model.errors import ObjectMissing, StoreRefused
from services.core.storage.refusals import code, is_outage, meaning_of, status

_CHUNK = 64 << 10
_RIGHTS = "the store's key needs s3:GetObject, s3:PutObject and s3:DeleteObject there, and s3:ListBucket on the bucket"
_MEANINGS = {  # where another bucket's differ from those of our own
    "NoSuchBucket": "there is no such bucket",
    "InvalidBucketName": "no bucket may have that name",
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "403": _RIGHTS,
}


@dataclass(frozen=True, slots=True)
class Held:
    """What lies at a key: its size, and what its writer said of it."""

    size: int
    metadata: dict[str, str]


class OtherBucket:
    """Every method raises StoreUnavailable in an outage and StoreRefused, with what would help, if it is refused."""

    def __init__(self, client: Any, own: str, bucket: str, translate: Callable[[], Any]) -> None:
        self._client, self._own, self.bucket = client, own, bucket
        self._translate = translate

    def held(self, key: str) -> Held | None:
        with self._refusals():
            try:
                found = self._client.head_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if status(error) == 404:
                    return None
                raise
        return Held(found["ContentLength"], found.get("Metadata", {}))

    def copy(self, source: str, key: str, media_type: str, metadata: dict[str, str]) -> None:
        """Copies an object of the store, within the server. Raises ObjectMissing."""
        with self._refusals():
            try:
                self._client.copy_object(
                    Bucket=self.bucket, Key=key, CopySource={"Bucket": self._own, "Key": source},
                    MetadataDirective="REPLACE", Metadata=metadata, ContentType=media_type,
                )  # fmt: skip
            except ClientError as error:
                if code(error) == "NoSuchKey":
                    raise ObjectMissing from error
                raise

    def blocks(self, key: str) -> Generator[bytes, None, None]:
        """The bytes at a key. Raises ObjectMissing."""
        with self._refusals():
            body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
            with closing(body):
                yield from body.iter_chunks(_CHUNK)

    def put(self, key: str, file: IO[bytes], media_type: str, metadata: dict[str, str]) -> None:
        """Stores the file's bytes from its current position."""
        with self._refusals():
            self._client.put_object(
                Bucket=self.bucket, Key=key, Body=file, ContentType=media_type, Metadata=metadata
            )  # fmt: skip

    def drop(self, key: str) -> None:
        """Deletes the object. A second call is not an error."""
        with self._refusals():
            self._client.delete_object(Bucket=self.bucket, Key=key)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        with self._translate():
            try:
                yield
            except ClientError as error:
                if is_outage(error):
                    raise
                if code(error) == "NoSuchKey":
                    raise ObjectMissing from error
                meaning = _MEANINGS.get(code(error)) or meaning_of(error)
                message = f"The object store refuses s3://{self.bucket} with {code(error)}: {meaning}."
                raise StoreRefused(message) from error
