"""A bucket that a person names, with that person's credentials, to which files are sent. Nothing of it is ours but what
lies under one prefix.

A file is there as a whole or not at all: a large one goes in parts, and is completed once its sha256 is right.
"""

import hashlib
import re
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import boto3.session
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from services.core.model.errors import PressworkError, SettingsError, StoreRefused, StoreUnavailable
from services.core.storage import clients, sessions
from services.core.storage.refusals import code, is_outage, status

PART_BYTES = 8 << 20  # in memory for each file that is being sent
_MOST_PARTS = 10_000
_SECONDS = 30.0
_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.DOTALL)
_RIGHTS = (
    "these credentials need s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject, s3:DeleteObject and "
    "s3:AbortMultipartUpload under the prefix"
)
_FULL = "the bucket is full; free some space or raise its quota, and the same command goes on"
_MEANINGS = {
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "403": _RIGHTS,
    "NoSuchBucket": "there is no such bucket; make it, or name another",
    "404": "there is no such bucket; make it, or name another",
    "InvalidAccessKeyId": "it does not know this access key; is --endpoint the address of the store that does?",
    "SignatureDoesNotMatch": "the secret key is not that of the access key, or a proxy changes requests on their way",
    "ExpiredToken": "the credentials have expired; sign in again",
    "RequestTimeTooSkewed": "this machine's clock differs from the store's by more than 15 minutes; set the clock",
    "NoSuchUpload": "its parts were taken away, perhaps by another delivery to the same place; run the command again",
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "EntityTooLarge": _FULL,  # what Ceph and Garage say of a quota of bytes
    "507": _FULL,
}
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Place:
    """`s3://BUCKET/PREFIX`. The prefix is empty or ends with a slash."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, address: str) -> Self:
        """Raises ValueError, with what would do."""
        found = _ADDRESS.fullmatch(address)
        parts = (found[2] or "").rstrip("/").split("/") if found else []
        if found is None or any(part in (".", "..") for part in parts) or (len(parts) > 1 and "" in parts):
            raise ValueError(f"{address!r} is no place for a dataset; it must be one such as s3://bucket/prefix.")
        prefix = "/".join(parts)
        return cls(found[1], f"{prefix}/" if prefix else "")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


class Destination:
    """Every method raises StoreUnavailable in an outage that lasts longer than `patience` seconds, and StoreRefused,
    with what would help, if it is refused. Threads may share it."""

    def __init__(
        self,
        place: Place,
        *,
        profile: str | None = None,
        endpoint: str | None = None,
        region: str | None = None,
        patience: float = 60.0,
        on_wait: Callable[[PressworkError], None] | None = None,
    ) -> None:
        """Credentials, endpoint and region are those that botocore finds (its variables, `profile`, a role), unless
        given. A bucket in another region is used there. Raises SettingsError."""
        self.place, self._patience, self._on_wait = place, patience, on_wait
        self._profile, self._endpoint, self._region = profile, endpoint, region
        self._client = self._connect()
        self._find_region()

    def sizes(self) -> dict[str, int]:
        """The size of each object under the prefix, by its name after it."""

        def read() -> dict[str, int]:
            found: dict[str, int] = {}
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.place.bucket, Prefix=self.place.prefix):
                for entry in page.get("Contents", ()):
                    found[entry["Key"].removeprefix(self.place.prefix)] = int(entry["Size"])
            return found

        return self._do(read)

    def sha256(self, name: str) -> str | None:
        """What the writer of the object said; None if it said nothing or there is no object."""
        found = self._do(lambda: self._head(name))
        said: str | None = None if found is None else found.get("Metadata", {}).get("sha256")
        return said

    def read(self, name: str) -> bytes:
        return self._do(
            lambda: bytes(self._client.get_object(Bucket=self.place.bucket, Key=self._key(name))["Body"].read())
        )

    def put(self, name: str, data: bytes, media_type: str) -> None:
        """Stores a small object, in place of one that is there."""
        metadata = {"sha256": hashlib.sha256(data).hexdigest()}
        self._do(
            lambda: self._client.put_object(
                Bucket=self.place.bucket, Key=self._key(name), Body=data, ContentType=media_type, Metadata=metadata
            )
        )

    def send(self, name: str, blocks: Iterable[bytes], size: int, media_type: str, sha256: str) -> None:
        """Stores an object of any size from its bytes, of which it holds one part in memory. What `blocks` raises ends
        it, and leaves nothing."""
        part_bytes = max(PART_BYTES, -(-size // _MOST_PARTS))
        if size <= part_bytes:
            self.put(name, b"".join(blocks), media_type)
            return
        where = {"Bucket": self.place.bucket, "Key": self._key(name)}
        begin = {"ContentType": media_type, "Metadata": {"sha256": sha256}}
        upload = where | {
            "UploadId": self._do(lambda: self._client.create_multipart_upload(**where, **begin))["UploadId"]
        }
        try:
            sent = []
            for number, data in enumerate(_parts(blocks, part_bytes), 1):
                etag = self._send_part(upload, number, data)
                sent.append({"PartNumber": number, "ETag": etag})
            self._complete(upload, sent, name, size, sha256)
        except BaseException:
            with suppress(ClientError, BotoCoreError, OSError):
                self._client.abort_multipart_upload(**upload)
            raise

    def abandon_uploads(self, names: Container[str]) -> None:
        """Drops the parts of these files that a kill has left. A store that does not list them, or does not
        let us, keeps them until its own rule."""
        try:
            for page in self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.place.bucket, Prefix=self.place.prefix
            ):
                for one in page.get("Uploads", ()):
                    if one["Key"].removeprefix(self.place.prefix) in names:
                        self._client.abort_multipart_upload(
                            Bucket=self.place.bucket, Key=one["Key"], UploadId=one["UploadId"]
                        )
        except (ClientError, BotoCoreError, OSError):
            return

    def drop(self, name: str) -> None:
        """Deletes the object. A second call is not an error."""
        self._do(lambda: self._client.delete_object(Bucket=self.place.bucket, Key=self._key(name)))

    def _complete(self, upload: dict[str, str], sent: list[dict[str, Any]], name: str, size: int, sha256: str) -> None:
        try:
            self._do(lambda: self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": sent}))
        except StoreRefused:  # an answer may have been lost: then there is no such upload any more
            found = self._do(lambda: self._head(name))
            if found is None or (found["ContentLength"], found["Metadata"].get("sha256")) != (size, sha256):
                raise

    def _head(self, name: str) -> Any:
        """None: there is no such object."""
        try:
            return self._client.head_object(Bucket=self.place.bucket, Key=self._key(name))
        except ClientError as error:
            if status(error) == 404:
                return None
            raise

    def _send_part(self, upload: dict[str, str], number: int, data: bytes) -> str:
        return str(self._do(lambda: self._client.upload_part(**upload, PartNumber=number, Body=data))["ETag"])

    def _key(self, name: str) -> str:
        return self.place.prefix + name

    def _connect(self) -> Any:
        try:
            session = boto3.session.Session(profile_name=self._profile)
            if session.get_credentials() is None:
                raise SettingsError(
                    "No credentials for the bucket were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                    "name a profile with --aws-profile."
                )

            def made(proxies: dict[str, str] | None) -> Any:
                own = clients.config(_SECONDS, proxies, own_endpoint=False)
                return session.client(
                    "s3", endpoint_url=self._endpoint or None, region_name=self._region or None, config=own
                )

            client = made(None)
            if sessions.is_loopback(client.meta.endpoint_url):
                client = made({})
        except (BotoCoreError, ValueError) as error:
            raise SettingsError(f"{self.place} cannot be used: {str(error).rstrip('.')}.") from error
        return clients.careful(client, _SECONDS)

    def _find_region(self) -> None:
        try:
            self._client.list_objects_v2(Bucket=self.place.bucket, Prefix=self.place.prefix, MaxKeys=1)
        except ClientError as error:
            said = error.response.get("Error", {}).get("Region") or error.response.get("ResponseMetadata", {}).get(
                "HTTPHeaders", {}
            ).get("x-amz-bucket-region")
            if status(error) in (301, 307, 400) and said and said != self._client.meta.region_name:
                self._region = said
                self._client = self._connect()
        except (BotoCoreError, OSError):
            pass  # what follows tells of it, after some patience

    def _do(self, verb: Callable[[], _Value]) -> _Value:
        """What the verb returns. It is called again, after a pause, while the store is away."""
        deadline, pause = time.monotonic() + self._patience, 0.25
        while True:
            try:
                with self._translated():
                    return verb()
            except StoreRefused:
                raise
            except StoreUnavailable as error:
                if time.monotonic() + pause > deadline:
                    raise
                if self._on_wait is not None:
                    self._on_wait(error)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        endpoint = self._client.meta.endpoint_url
        try:
            yield
        except ClientError as error:
            found = code(error)
            full = _MEANINGS.get(found) is _FULL or status(error) == 507
            if is_outage(error) and not full:
                raise StoreUnavailable(f"The store at {endpoint} answers {found} for {self.place}.") from error
            meaning = _FULL if full else _MEANINGS.get(found, error.response.get("Error", {}).get("Message", ""))
            meaning = meaning or "check the address, the bucket and the credentials"
            message = f"The store at {endpoint} refuses {self.place} with {found}: {_sentence(meaning)}"
            raise StoreRefused(message) from error
        except (BotoCoreError, Boto3Error, OSError) as error:
            raise StoreUnavailable(f"The store at {endpoint} cannot be reached: {error}"[:300]) from error


def _sentence(meaning: str) -> str:
    return meaning if meaning.endswith("?") else f"{meaning.rstrip('.')}."


def _parts(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """All of the same size but the last. While one is away with its reader, nothing else is held."""
    held: list[bytes] = []
    have = 0
    for block in blocks:
        held.append(block)
        have += len(block)
        while have >= size:
            whole = b"".join(held)
            part, rest = whole[:size], whole[size:]
            held, have = [rest] if rest else [], len(rest)
            del whole
            yield part
            del part
    if held:
        yield b"".join(held)
