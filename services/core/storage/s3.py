"""S3 as an ImageStore. The sha256 that the queue records is that of the stored bytes.

An object is written once. A second writer of the same key reads the first one's bytes, checks them, and adopts them.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.core.model.errors import ObjectMissing, StoreRefused, StoreUnavailable
from services.core.settings import Settings
from services.core.storage import sessions
from services.core.storage.contract import StoredObject

log = logging.getLogger(__name__)
_PROBE = "probe/conditional-write"
_COPY_PROBE = "probe/conditional-copy"
_WRITE_PROBE = "probe/write"
_CHUNK = 64 << 10  # what a client that does not read keeps in memory
_ONE_BY_ONE = TransferConfig(use_threads=False)  # large files in parts, one after the other: memory stays flat


class S3Store:
    """Any S3-compatible store. Threads may share it; a forked process must not."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = settings.bucket
        self._endpoint = settings.s3_endpoint_url or "AWS"
        self._client = _client(settings, settings.s3_endpoint_url)
        self._public = _client(settings, settings.s3_public_url) if settings.s3_public_url else self._client
        self._conditional: bool | None = None
        self._conditional_copy: bool | None = None

    def put(self, key: str, data: bytes, media_type: str, metadata: dict[str, str], *, claim_id: int) -> StoredObject:
        digest = hashlib.sha256(data)
        metadata = {name: value.encode("ascii", "replace").decode() for name, value in metadata.items()}
        metadata |= {"sha256": digest.hexdigest(), "claim": str(claim_id)}
        if self._writes_conditionally():
            if self._put_new(key, data, media_type, metadata):
                return StoredObject(key, digest.digest(), len(data), metadata)
            winner = self._adopt(key)
            if winner is not None:
                return winner
        own_key = _own_key(key, claim_id)
        with self._translated():
            self._client.put_object(
                Bucket=self._bucket, Key=own_key, Body=data, ContentType=media_type, Metadata=metadata
            )
        return StoredObject(own_key, digest.digest(), len(data), metadata)

    def read(self, key: str) -> bytes:
        with self._translated():
            body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return bytes(body)

    def stream(self, key: str) -> Iterator[bytes]:
        with self._translated():
            yield from self._client.get_object(Bucket=self._bucket, Key=key)["Body"].iter_chunks(_CHUNK)

    def put_file(self, key: str, file: IO[bytes], media_type: str) -> None:
        with self._translated():
            self._client.upload_fileobj(
                file, self._bucket, key, ExtraArgs={"ContentType": media_type}, Config=_ONE_BY_ONE
            )

    def copy(self, source: str, target: str) -> None:
        with self._translated():
            self._client.copy_object(
                Bucket=self._bucket, Key=target, CopySource={"Bucket": self._bucket, "Key": source}
            )

    def copy_new(self, source: str, target: str, *, sha256: bytes, size: int, claim_id: int) -> str | None:
        if not self._holds(source, sha256, size):
            return None
        if not self._copies_conditionally():
            target = _own_key(target, claim_id)
            self.copy(source, target)
        elif not self._copy_new(source, target) and not self._holds(target, sha256, size):
            return None
        return target

    def drop(self, key: str) -> None:
        with self._translated():
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def size(self, key: str) -> int:
        with self._translated():
            try:
                return int(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"])
            except ClientError as error:
                if _status(error) == 404:  # an answer to HEAD has no body and so no error code
                    raise ObjectMissing from error
                raise

    def under(self, prefix: str) -> Iterator[str]:
        with self._translated():
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
                yield from (entry["Key"] for entry in page.get("Contents", ()))

    def presign(self, key: str, seconds: int, filename: str) -> str:
        parameters = {
            "Bucket": self._bucket,
            "Key": key,
            "ResponseContentDisposition": f'attachment; filename="{filename}"',
        }
        return str(self._public.generate_presigned_url("get_object", Params=parameters, ExpiresIn=seconds))

    def check(self) -> None:
        with self._translated():
            self._client.head_bucket(Bucket=self._bucket)

    def check_write(self) -> None:
        """Like `check`, but a store that is full or read-only does not pass either."""
        with self._translated():
            self._client.put_object(Bucket=self._bucket, Key=_WRITE_PROBE, Body=_WRITE_PROBE.encode())

    def prepare(self, patience: float = 60.0) -> bool:
        """Creates the bucket if it is missing, and finds out whether the store supports conditional writes. Waits up to
        `patience` seconds for a store that is starting."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._prepare()
            except StoreRefused:
                raise
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _prepare(self) -> bool:
        with self._translated():
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if _status(error) != 404:
                    raise
                self._create_bucket()
        return self._writes_conditionally()

    def _create_bucket(self) -> None:
        try:
            self._client.create_bucket(Bucket=self._bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    def _writes_conditionally(self) -> bool:
        """Whether the store supports conditional writes. Tried once: it must refuse the second write of a probe."""
        if self._conditional is None:
            self._put_new(_PROBE, b"presswork", "text/plain", {})
            self._conditional = not self._put_new(_PROBE, b"presswork", "text/plain", {})
            if not self._conditional:
                log.warning("store writes unconditionally: keys will carry the claim's id")
        return self._conditional

    def _put_new(self, key: str, data: bytes, media_type: str, metadata: dict[str, str]) -> bool:
        """False: the key is taken."""
        return self._write_new(
            self._client.put_object, Key=key, Body=data, ContentType=media_type, Metadata=metadata
        )  # fmt: skip

    def _copy_new(self, source: str, target: str) -> bool:
        """False: the key is taken."""
        return self._write_new(
            self._client.copy_object, Key=target, CopySource={"Bucket": self._bucket, "Key": source}
        )  # fmt: skip

    def _write_new(self, verb: Callable[..., object], **arguments: object) -> bool:
        with self._translated():
            try:
                verb(Bucket=self._bucket, IfNoneMatch="*", **arguments)
            except ClientError as error:
                if _status(error) == 409:  # AWS: two writers at once, and neither has succeeded yet
                    raise StoreUnavailable("The object store saw two writers of one key at once.") from error
                if _status(error) != 412:
                    raise
                return False
        return True

    def _copies_conditionally(self) -> bool:
        """Whether the store supports conditional copies. Tried at the first copy: some stores support only writes."""
        if self._conditional_copy is None:
            try:
                self._copy_new(_PROBE, _COPY_PROBE)
                self._conditional_copy = not self._copy_new(_PROBE, _COPY_PROBE)
            except StoreRefused:  # the store does not support the condition
                self._conditional_copy = False
        return self._conditional_copy

    def _holds(self, key: str, sha256: bytes, size: int) -> bool:
        """Whether the key holds an object of that content, judged by its size and the sha256 in its metadata."""
        with self._translated():
            try:
                found = self._client.head_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if _status(error) == 404:
                    return False
                raise
        return bool(found["ContentLength"] == size and found.get("Metadata", {}).get("sha256") == sha256.hex())

    def _adopt(self, key: str) -> StoredObject | None:
        """The first writer's object, if its bytes match the sha256 in its metadata."""
        with self._translated():
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=key)
                data = bytes(found["Body"].read())
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
        digest = hashlib.sha256(data)
        metadata = dict(found.get("Metadata", {}))
        if metadata.get("sha256") != digest.hexdigest():
            log.warning("object does not match its sha256", extra={"key": key})
            return None
        return StoredObject(key, digest.digest(), len(data), metadata, adopted=True)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if (_status(error) >= 500 and _status(error) != 501) or code in (
                "SlowDown",
                "RequestTimeout",
                "Throttling",
            ):
                raise StoreUnavailable(
                    f"The object store at {self._endpoint} answers {code or _status(error)}."
                ) from error
            if code == "NoSuchKey":
                raise ObjectMissing from error
            raise StoreRefused(
                f"The object store at {self._endpoint} refuses with {code or _status(error)}; "
                f"check the bucket {self._bucket!r} and the credentials."
            ) from error
        except (BotoCoreError, Boto3Error) as error:
            raise StoreUnavailable(f"The object store at {self._endpoint} cannot be reached: {error}"[:300]) from error
        except OSError as error:
            raise StoreUnavailable(f"The object store at {self._endpoint} cannot be reached: {error}"[:300]) from error


def _own_key(key: str, claim_id: int) -> str:
    stem, _, extension = key.rpartition(".")
    return f"{stem}-{claim_id}.{extension}"


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _client(settings: Settings, endpoint: str) -> Any:
    return sessions.session(settings).client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key or None,
        aws_secret_access_key=settings.s3_secret_key or None,
        verify=settings.s3_ca_bundle or True,
        config=Config(
            proxies=sessions.proxies(settings, endpoint),
            ignore_configured_endpoint_urls=True,
            signature_version="s3v4",
            connect_timeout=3,
            read_timeout=20,
            retries={"total_max_attempts": 1},
            max_pool_connections=32,
            tcp_keepalive=True,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if endpoint else "auto"},
        ),
    )
