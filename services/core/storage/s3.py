"""S3 as an ImageStore. The sha256 that the queue records is that of the stored bytes.

An object is written once. A second writer of the same key reads the first one's bytes, checks them, and adopts them.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import IO, Any

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from services.core.model import file_names
from services.core.model.errors import ObjectMissing, SettingsError, StoreRefused, StoreUnavailable
from services.core.settings import Settings
from services.core.storage import clients, members, sessions
from services.core.storage.contract import ForeignObject, StoredObject
from services.core.storage.other_bucket import OtherBucket
from services.core.storage.refusals import code, status, translated
from services.core.storage.small_reads import SmallReader

log = logging.getLogger(__name__)
_PROBE = "probe/conditional-write"
_COPY_PROBE = "probe/conditional-copy"
_WRITE_PROBE = "probe/write"
_CHUNK = 64 << 10  # what a client that does not read keeps in memory
_UNSAID = (301, 307, 400, 403)  # an answer to HEAD has no body, so no code: what follows will tell
_NO_CONSTRAINT = ("us-east-1", "auto", "")
_ONE_BY_ONE = TransferConfig(use_threads=False)  # large files in parts, one after the other: memory stays flat


class S3Store:
    """Any S3-compatible store. Threads may share it; a forked process must not."""

    def __init__(self, settings: Settings) -> None:
        self.bucket = settings.bucket
        self.prefix = settings.prefix
        self.earlier_prefixes: tuple[str, ...] = ()  # this installation's, see installation.py
        self._endpoint = settings.s3_endpoint_url or "AWS"
        self._region = settings.s3_region
        self._client = _client(settings, settings.s3_endpoint_url)
        self._public = _client(settings, settings.s3_public_url) if settings.s3_public_url else self._client
        self._small = SmallReader(self._client, self.bucket)
        self._conditional: bool | None = None
        self._conditional_copy: bool | None = None

    def key(self, name: str) -> str:
        return self.prefix + name

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
                Bucket=self.bucket, Key=own_key, Body=data, ContentType=media_type, Metadata=metadata
            )
        return StoredObject(own_key, digest.digest(), len(data), metadata)

    def read(self, key: str) -> bytes:
        with self._translated():
            return bytes(self._client.get_object(Bucket=self.bucket, **_asked(key))["Body"].read())

    def read_small(self, key: str) -> bytes:
        inside = members.place(key)
        with self._translated():
            if inside is None:
                found = self._small.read(key)
            else:
                found = self._small.read(inside.object_key, (inside.begin, inside.last))
        return self.read(key) if found is None else found

    def stream(self, key: str, part: tuple[int, int] | None = None) -> Iterator[bytes]:
        with self._translated():
            body = self._client.get_object(Bucket=self.bucket, **_asked(key, part))["Body"]
            with closing(body):  # a reader that leaves before the end frees the connection at once
                yield from body.iter_chunks(_CHUNK)

    def foreign(self, bucket: str, key: str, etag: str = "") -> ForeignObject | None:
        asked = {"IfNoneMatch": etag} if etag else {}
        with self._translated():
            try:
                found = self._client.get_object(Bucket=bucket, Key=key, **asked)
            except ClientError as error:
                if status(error) == 304:
                    return None
                if status(error) == 404:
                    raise ObjectMissing from error
                raise
        return ForeignObject(found["ContentLength"], found.get("ETag", ""), self._blocks(found["Body"]))

    def _blocks(self, body: Any) -> Iterator[bytes]:
        with self._translated(), closing(body):
            yield from body.iter_chunks(_CHUNK)

    def other(self, bucket: str) -> OtherBucket:
        return OtherBucket(self._client, self.bucket, bucket, self._translated)

    def overlaps(self, bucket: str, folder: str) -> bool:
        theirs = f"{folder}/" if folder else ""
        own = (self.prefix, *self.earlier_prefixes)
        return bucket == self.bucket and any(theirs.startswith(one) or one.startswith(theirs) for one in own)

    def put_file(self, key: str, file: IO[bytes], media_type: str) -> None:
        with self._translated():
            self._client.upload_fileobj(
                file, self.bucket, key, ExtraArgs={"ContentType": media_type}, Config=_ONE_BY_ONE
            )

    def copy(self, source: str, target: str) -> None:
        if members.place(source) is not None:
            data = self.read_small(source)
            metadata = {"sha256": hashlib.sha256(data).hexdigest()}
            with self._translated():
                self._client.put_object(
                    Bucket=self.bucket, Key=target, Body=data, ContentType=file_names.media_type(target),
                    Metadata=metadata,
                )  # fmt: skip
            return
        with self._translated():
            self._client.copy_object(Bucket=self.bucket, Key=target, CopySource={"Bucket": self.bucket, "Key": source})

    def copy_new(
        self,
        source: str,
        target: str,
        *,
        sha256: bytes,
        size: int,
        claim_id: int,
        of_member: Mapping[str, str] | None = None,
    ) -> str | None:
        if members.place(source) is not None:
            return self._copy_member(source, target, sha256, claim_id, of_member or {})
        if not self._holds(source, sha256, size):
            return None
        if not self._copies_conditionally():
            target = _own_key(target, claim_id)
            self.copy(source, target)
        elif not self._copy_new(source, target) and not self._holds(target, sha256, size):
            return None
        return target

    def _copy_member(
        self, source: str, target: str, sha256: bytes, claim_id: int, metadata: Mapping[str, str]
    ) -> str | None:
        try:
            data = self.read_small(source)
        except ObjectMissing:
            return None
        if hashlib.sha256(data).digest() != sha256:
            return None
        made = self.put(target, data, file_names.media_type(target), dict(metadata), claim_id=claim_id)
        return made.key if made.sha256 == sha256 else None

    def drop(self, key: str) -> None:
        if members.place(key) is not None:
            raise ValueError("an image of a shard is not deleted alone")
        with self._translated():
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def size(self, key: str) -> int:
        if (inside := members.place(key)) is not None:
            return min(inside.size, max(0, self.size(inside.object_key) - inside.begin))
        with self._translated():
            try:
                return int(self._client.head_object(Bucket=self.bucket, Key=key)["ContentLength"])
            except ClientError as error:
                if status(error) == 404:  # an answer to HEAD has no body and so no error code
                    raise ObjectMissing from error
                raise

    def under(self, folder: str, after: str = "") -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2")
        starts = sorted({prefix + folder for prefix in (self.prefix, *self.earlier_prefixes)})
        with self._translated():
            for start in starts:
                if any(start != other and start.startswith(other) for other in starts):
                    continue  # listed with that one
                for page in pages.paginate(Bucket=self.bucket, Prefix=start, StartAfter=after):
                    yield from (entry["Key"] for entry in page.get("Contents", ()))

    def mark(self, name: str, content: bytes) -> bytes:
        """Stores the object unless there is one of that name, and returns what the one there holds."""
        key = self.key(name)
        if self._writes_conditionally():
            self._put_new(key, content, "application/json", {})
        else:
            try:
                return self.read(key)
            except ObjectMissing:
                with self._translated():
                    self._client.put_object(Bucket=self.bucket, Key=key, Body=content, ContentType="application/json")
        return self.read(key)

    def presign(self, key: str, seconds: int, filename: str) -> str:
        if members.place(key) is not None:
            raise ValueError("an image of a shard has no address of its own")
        parameters = {
            "Bucket": self.bucket,
            "Key": key,
            "ResponseContentDisposition": file_names.attachment(filename),
        }
        with self._translated():  # temporary credentials may have to be fetched
            return str(self._public.generate_presigned_url("get_object", Params=parameters, ExpiresIn=seconds))

    def check(self) -> None:
        """Where listing the bucket is not allowed, the probe object is read instead: its refusal has a code."""
        with self._translated():
            try:
                self._client.head_bucket(Bucket=self.bucket)
                return
            except ClientError as error:
                if status(error) not in _UNSAID:
                    raise
            self._client.get_object(Bucket=self.bucket, Key=self.key(_PROBE))["Body"].read()

    def check_write(self) -> None:
        """Like `check`, but a store that is full or read-only does not pass either."""
        with self._translated():
            self._client.put_object(Bucket=self.bucket, Key=self.key(_WRITE_PROBE), Body=_WRITE_PROBE.encode())

    def surplus(self) -> str:
        """A sentence about what this key may do that no program does; empty if nothing was found."""
        found = []
        with self._translated():
            buckets = self._granted(self._client.list_buckets) or {"Buckets": []}
            others = [bucket["Name"] for bucket in buckets["Buckets"] if bucket["Name"] != self.bucket]
            if others:
                found.append(f"sees other buckets ({', '.join(others[:3])})")
            if self._granted(self._client.get_bucket_lifecycle_configuration, Bucket=self.bucket) is not None:
                found.append("may administer the bucket (it reads its rules)")
        if not found:
            return ""
        return f"The access key {' and '.join(found)}; services/README.md lists the rights that it needs."

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
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if status(error) == 404:
                    self._create_bucket()
                elif status(error) not in _UNSAID:
                    raise
        return self._writes_conditionally()

    @staticmethod
    def _granted(verb: Callable[..., Any], **arguments: object) -> Any:
        """What the store answers. None: it refuses. {}: there is nothing to answer with."""
        try:
            return verb(**arguments)
        except ClientError as error:
            return {} if code(error) == "NoSuchLifecycleConfiguration" else None

    def _create_bucket(self) -> None:
        place = {} if self._region in _NO_CONSTRAINT else {"LocationConstraint": self._region}
        try:
            self._client.create_bucket(Bucket=self.bucket, **({"CreateBucketConfiguration": place} if place else {}))
        except ClientError as error:
            if code(error) == "BucketAlreadyOwnedByYou":
                return
            if code(error) != "BucketAlreadyExists":
                raise StoreRefused(
                    f"The bucket {self.bucket!r} does not exist, and the object store at {self._endpoint} refuses to "
                    f"make it with {code(error)}: make it yourself, or allow s3:CreateBucket."
                ) from error

    def _writes_conditionally(self) -> bool:
        """Whether the store supports conditional writes. Tried once: it must refuse the second write of a probe."""
        if self._conditional is None:
            probe = self.key(_PROBE)
            self._conditional = self._refuses_second(
                lambda: self._put_new(probe, b"presswork", "text/plain", {}),
                lambda: self._client.put_object(Bucket=self.bucket, Key=probe, Body=b"presswork"),
            )
            if not self._conditional:
                log.warning("store writes unconditionally: keys will carry the claim's id")
        return self._conditional

    def _refuses_second(self, write: Callable[[], bool], plainly: Callable[[], object]) -> bool:
        """Whether a second conditional `write` is refused. A store may instead refuse the condition itself, with
        whatever status: then it must accept the same write without it, or its refusal is raised."""
        try:
            write()
            return not write()
        except StoreRefused:
            with self._translated():
                plainly()
            return False

    def _put_new(self, key: str, data: bytes, media_type: str, metadata: dict[str, str]) -> bool:
        """False: the key is taken."""
        return self._write_new(
            self._client.put_object, Key=key, Body=data, ContentType=media_type, Metadata=metadata
        )  # fmt: skip

    def _copy_new(self, source: str, target: str) -> bool:
        """False: the key is taken."""
        return self._write_new(
            self._client.copy_object, Key=target, CopySource={"Bucket": self.bucket, "Key": source}
        )  # fmt: skip

    def _write_new(self, verb: Callable[..., object], **arguments: object) -> bool:
        with self._translated():
            try:
                verb(Bucket=self.bucket, IfNoneMatch="*", **arguments)
            except ClientError as error:
                if status(error) == 409:  # AWS: two writers at once, and neither has succeeded yet
                    raise StoreUnavailable("The object store saw two writers of one key at once.") from error
                if status(error) != 412:
                    raise
                return False
        return True

    def _copies_conditionally(self) -> bool:
        """Whether the store supports conditional copies. Tried at the first copy: some stores support only writes."""
        if self._conditional_copy is None:
            source, target = self.key(_PROBE), self.key(_COPY_PROBE)
            self._conditional_copy = self._refuses_second(
                lambda: self._copy_new(source, target), lambda: self.copy(source, target)
            )
        return self._conditional_copy

    def _holds(self, key: str, sha256: bytes, size: int) -> bool:
        """Whether the key holds an object of that content, judged by its size and the sha256 in its metadata."""
        with self._translated():
            try:
                found = self._client.head_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if status(error) == 404:
                    return False
                raise
        return bool(found["ContentLength"] == size and found.get("Metadata", {}).get("sha256") == sha256.hex())

    def _adopt(self, key: str) -> StoredObject | None:
        """The first writer's object, if its bytes match the sha256 in its metadata."""
        with self._translated():
            try:
                found = self._client.get_object(Bucket=self.bucket, Key=key)
                data = bytes(found["Body"].read())
            except ClientError as error:
                if status(error) == 404:
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
            raise translated(error, self._endpoint, self.bucket) from error
        except (BotoCoreError, Boto3Error) as error:
            raise StoreUnavailable(f"The object store at {self._endpoint} cannot be reached: {error}"[:300]) from error
        except OSError as error:
            raise StoreUnavailable(f"The object store at {self._endpoint} cannot be reached: {error}"[:300]) from error


def _asked(key: str, part: tuple[int, int] | None = None) -> dict[str, str]:
    """How an object, a member of one, or a part of either is asked for."""
    inside = members.place(key)
    if inside is None:
        return {"Key": key} if part is None else {"Key": key, "Range": f"bytes={part[0]}-{part[1]}"}
    first, last = (0, inside.size - 1) if part is None else part
    return {"Key": inside.object_key, "Range": f"bytes={inside.begin + first}-{inside.begin + last}"}


def _own_key(key: str, claim_id: int) -> str:
    stem, _, extension = key.rpartition(".")
    return f"{stem}-{claim_id}.{extension}"


def _client(settings: Settings, endpoint: str) -> Any:
    """Raises SettingsError: the credentials, the profile or the address cannot be used."""
    try:
        session = sessions.session(settings)
        if not settings.s3_access_key and session.get_credentials() is None:
            raise SettingsError(
                "No credentials for the object store were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name "
                "a profile in AWS_PROFILE, or give the machine a role."
            )
        with sessions.ONE_AT_A_TIME:
            client = session.client(
                "s3",
                endpoint_url=endpoint or None,
                region_name=settings.s3_region,
                aws_access_key_id=settings.s3_access_key or None,
                aws_secret_access_key=settings.s3_secret_key or None,
                aws_session_token=(settings.s3_access_key and settings.s3_session_token) or None,
                verify=settings.s3_ca_bundle or True,
                config=clients.config(settings.store_seconds, sessions.proxies(settings, endpoint), own_endpoint=True),
            )
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(f"The object store cannot be used as it is set: {str(error).rstrip('.')}.") from error
    return clients.careful(client, settings.store_seconds)
