"""The object store's contract on a real S3 server: written once, adopted only when whole, copied without loss."""

import dataclasses
import hashlib
import io
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.exceptions import ClientError

from services.core.model.errors import ObjectMissing, StoreRefused, StoreUnavailable
from services.core.settings import Settings
from services.core.storage import keys, members, s3
from services.core.storage.s3 import S3Store
from services.local.stack import Stack
from tests.clock import Clock


@pytest.fixture
def database_url(stack: Stack) -> str:
    """No database is asked here, so none is copied for each test."""
    return stack.values["DATABASE_URL"]


def fresh(name: str) -> str:
    """A key that no other test has, nor this one before."""
    return f"storage/{os.getpid()}-{time.monotonic_ns()}/{name}"


def content(data: bytes) -> dict[str, object]:
    return {"sha256": hashlib.sha256(data).digest(), "size": len(data)}


def lay(store: S3Store, settings: Settings, key: str, data: bytes, **metadata: str) -> str:
    """An object as anyone may have written it."""
    store._client.put_object(Bucket=settings.bucket, Key=key, Body=data, Metadata=metadata)
    return key


class Unconditional(S3Store):
    """As a store that knows no conditions: the second write of a key succeeds."""

    def _write_new(self, verb, **arguments):
        verb(Bucket=self.bucket, **arguments)
        return True


def refusing(status: int, code: str = "") -> ClientError:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutObject")


@contextmanager
def answering(store: S3Store, verb: str, *answers: BaseException) -> Iterator[list[dict[str, object]]]:
    """The server answers so, and then as it is; notes what it was asked."""
    real, waiting, asked = getattr(store._client, verb), list(answers), []

    def answer(**arguments: object) -> object:
        asked.append(arguments)
        if waiting:
            raise waiting.pop(0)
        return real(**arguments)

    setattr(store._client, verb, answer)
    try:
        yield asked
    finally:
        setattr(store._client, verb, real)


def test_the_key_of_an_image_is_spread_by_two_characters_and_holds_nothing_user_written():
    key = keys.image_name(3, "job_x", 7, "0123456789abcdef0123", "jpeg")
    spread = hashlib.sha256(b"job_x/7").hexdigest()[:2]
    assert key == f"{spread}/3/job_x/00000007-0123456789abcdef.jpg"


def test_what_is_put_can_be_read_with_what_was_said_of_it(store, settings):
    key = fresh("a.png")
    put = store.put(key, b"drawn", "image/png", {"prompt": "blü", "class": "c"}, claim_id=7)
    assert (put.key, put.sha256, put.size, put.adopted) == (key, hashlib.sha256(b"drawn").digest(), 5, False)
    assert put.metadata == {
        "prompt": "bl?", "class": "c", "claim": "7", "sha256": hashlib.sha256(b"drawn").hexdigest(),
    }  # fmt: skip
    found = store._client.head_object(Bucket=settings.bucket, Key=key)
    assert (found["ContentType"], found["Metadata"]) == ("image/png", put.metadata)
    assert store.read(key) == b"".join(store.stream(key)) == b"drawn"
    assert b"".join(store.stream(key, (1, 3))) == b"raw"
    assert store.size(key) == 5


def test_a_second_writer_adopts_the_first_ones_object_as_it_is(store):
    key = fresh("a.png")
    first = store.put(key, b"first", "image/png", {"class": "c"}, claim_id=1)
    second = store.put(key, b"second!", "image/png", {"class": "d"}, claim_id=2)
    assert second == dataclasses.replace(first, adopted=True)
    assert store.read(key) == b"first"


@pytest.mark.parametrize("metadata", [{}, {"sha256": hashlib.sha256(b"whole").hexdigest()}])
def test_what_is_not_what_its_sha256_says_is_left_alone_and_ours_goes_beside_it(store, settings, metadata):
    key = lay(store, settings, fresh("a.png"), b"torn", **metadata)
    ours = store.put(key, b"whole", "image/png", {"class": "c"}, claim_id=7)
    assert (ours.key, ours.size, ours.adopted) == (key.replace("a.png", "a-7.png"), 5, False)
    assert ours.sha256 == hashlib.sha256(b"whole").digest()
    assert (store.read(key), store.read(ours.key)) == (b"torn", b"whole")
    found = store._client.head_object(Bucket=settings.bucket, Key=ours.key)
    assert (found["ContentType"], found["Metadata"]) == ("image/png", ours.metadata)


def test_an_object_that_goes_while_it_is_being_adopted_is_written_under_our_own_key(store, settings):
    key = fresh("a.png")
    store.put(key, b"first", "image/png", {}, claim_id=1)
    with answering(store, "get_object", refusing(404)):
        assert store.put(key, b"ours", "image/png", {}, claim_id=2).key == key.replace("a.png", "a-2.png")
    with (
        answering(store, "get_object", refusing(403, "AccessDenied")),
        pytest.raises(StoreRefused, match="AccessDenied"),
    ):
        store.put(key, b"ours", "image/png", {}, claim_id=3)


def test_where_the_store_writes_unconditionally_every_key_carries_the_claims_id(store, settings, caplog):
    plain = Unconditional(settings)
    key = fresh("a.png")
    assert plain.prepare() is False
    assert [record.message for record in caplog.records] == [
        "store writes unconditionally: keys will carry the claim's id"
    ]
    for claim_id in (8, 9):
        put = plain.put(key, str(claim_id).encode(), "image/png", {}, claim_id=claim_id)
        assert put.key == key.replace("a.png", f"a-{claim_id}.png")
        assert store.read(put.key) == str(claim_id).encode()
    caplog.clear()
    assert store.prepare() is True
    assert S3Store(settings).prepare() is True
    assert not caplog.records


def test_whether_it_writes_conditionally_is_asked_once(store, settings):
    own = S3Store(settings)
    with answering(own, "put_object") as asked:
        for number in (1, 2, 3):
            own.put(fresh(f"{number}.png"), b"x", "image/png", {}, claim_id=number)
    assert [entry["Key"] for entry in asked][:2] == ["probe/conditional-write"] * 2
    assert len(asked) == 5


def test_two_writers_of_one_key_at_once_are_a_matter_of_time(store):
    with (
        answering(store, "put_object", refusing(409, "ConditionalRequestConflict")),
        pytest.raises(StoreUnavailable, match="two"),
    ):
        store.put(fresh("a.png"), b"x", "image/png", {}, claim_id=1)


def test_any_other_refusal_of_a_write_is_raised(store):
    with (
        answering(store, "put_object", refusing(403, "AccessDenied")),
        pytest.raises(StoreRefused, match="AccessDenied"),
    ):
        store.put(fresh("a.png"), b"x", "image/png", {}, claim_id=1)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (500, "InternalError", StoreUnavailable),
        (503, "SlowDown", StoreUnavailable),
        (503, "", StoreUnavailable),
        (499, "", StoreRefused),
        (501, "NotImplemented", StoreRefused),
        (400, "RequestTimeout", StoreUnavailable),
        (400, "Throttling", StoreUnavailable),
        (400, "SlowDown", StoreUnavailable),
        (404, "NoSuchKey", ObjectMissing),
        (404, "NoSuchBucket", StoreRefused),
        (403, "", StoreRefused),
        (400, "EntityTooLarge", StoreRefused),
    ],
)
def test_errors_worth_a_retry_are_distinguished_from_others(store, status, code, error):
    with answering(store, "get_object", refusing(status, code)), pytest.raises(error) as caught:
        store.read("any")
    assert type(caught.value) is error
    if error is not ObjectMissing:
        assert code in str(caught.value) and (code or str(status) in str(caught.value))


def test_a_store_that_cannot_be_reached_is_unavailable(settings):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nowhere = f"http://127.0.0.1:{listener.getsockname()[1]}"
    away = S3Store(dataclasses.replace(settings, s3_endpoint_url=nowhere))
    for verb in (away.check, lambda: away.read("a"), lambda: away.prepare(0.0)):
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            verb()


def test_a_request_to_the_store_is_made_once_and_the_caller_decides_about_retries(settings):
    asked: list[str] = []

    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(503)
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815  http.server's name

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        busy = S3Store(dataclasses.replace(settings, s3_endpoint_url=f"http://127.0.0.1:{server.server_port}"))
        with pytest.raises(StoreUnavailable):
            busy.check()
        server.shutdown()
        thread.join()
    assert asked == [f"/{settings.bucket}"]


def test_the_message_says_which_store(settings):
    assert S3Store(settings)._endpoint == settings.s3_endpoint_url
    for endpoint in ("", "http://127.0.0.1:1"):
        other = S3Store(dataclasses.replace(settings, s3_endpoint_url=endpoint))
        with answering(other, "head_bucket", refusing(503)), pytest.raises(StoreUnavailable, match=endpoint or "AWS"):
            other.check()


def test_a_broken_connection_is_an_outage(store):
    for error in (OSError("reset"), ConnectionResetError("reset")):
        with answering(store, "get_object", error), pytest.raises(StoreUnavailable, match="reset"):
            store.read("a")


def test_a_store_that_is_still_starting_is_waited_for_and_one_that_refuses_is_not(settings, monkeypatch):
    slept = Clock(monkeypatch, s3).slept
    own = S3Store(settings)
    with answering(own, "head_bucket", refusing(503), refusing(503)) as asked:
        assert own.prepare() is True
    assert (len(asked), len(slept)) == (3, 2)
    with answering(own, "head_bucket", refusing(405)) as asked, pytest.raises(StoreRefused):
        own.prepare()
    assert (len(asked), len(slept)) == (1, 2)
    with answering(own, "head_bucket", refusing(503), refusing(503)) as asked, pytest.raises(StoreUnavailable):
        own.prepare(patience=-1.0)
    assert (len(asked), len(slept)) == (1, 2)


def test_prepare_waits_as_long_as_it_was_asked_to(settings, monkeypatch):
    own = S3Store(settings)
    Clock(monkeypatch, s3).sleep_takes = 50.0
    with answering(own, "head_bucket", refusing(503), refusing(503)):
        assert own.prepare(patience=60.0)
    with answering(own, "head_bucket", refusing(503), refusing(503)), pytest.raises(StoreUnavailable):
        own.prepare(patience=49.0)


def test_a_missing_bucket_is_made_and_that_another_made_it_first_is_no_error(store_admin):
    name = f"made-{os.getpid()}-{time.monotonic_ns()}"
    own = S3Store(dataclasses.replace(store_admin, bucket=name))
    with pytest.raises(StoreRefused):
        own.check()
    assert own.prepare() is True
    own.check()
    for code in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
        with answering(own, "head_bucket", refusing(404)), answering(own, "create_bucket", refusing(409, code)):
            assert own.prepare() is True
    with (
        answering(own, "head_bucket", refusing(404)),
        answering(own, "create_bucket", refusing(403, "TooManyBuckets")),
        pytest.raises(StoreRefused, match="TooManyBuckets"),
    ):
        own.prepare()
    own._client.delete_object(Bucket=name, Key="probe/conditional-write")
    own._client.delete_bucket(Bucket=name)


def test_a_copy_keeps_bytes_and_metadata_and_overwrites_nothing(store, settings):
    source, target = fresh("source.png"), fresh("target.png")
    store.put(source, b"drawn", "image/png", {"class": "c"}, claim_id=1)
    for claim_id in (2, 3):
        assert store.copy_new(source, target, **content(b"drawn"), claim_id=claim_id) == target
    found = store._client.get_object(Bucket=settings.bucket, Key=target)
    assert (found["Body"].read(), found["Metadata"]["class"], found["ContentType"]) == (b"drawn", "c", "image/png")
    taken = lay(store, settings, fresh("taken.png"), b"other")
    assert store.copy_new(source, taken, **content(b"drawn"), claim_id=4) is None
    assert store.read(taken) == b"other"
    store.copy(source, taken)
    assert store.read(taken) == b"drawn"


def test_what_has_another_content_than_was_said_is_not_copied(store, settings):
    digest = hashlib.sha256(b"drawn").hexdigest()
    target = fresh("target.png")
    whole = lay(store, settings, fresh("a.png"), b"drawn", sha256=digest)
    for source in (
        fresh("gone.png"),
        lay(store, settings, fresh("a.png"), b"draw", sha256=digest),
        lay(store, settings, fresh("a.png"), b"drawn"),
        lay(store, settings, fresh("a.png"), b"drawn", sha256=hashlib.sha256(b"drawm").hexdigest()),
    ):
        assert store.copy_new(source, target, **content(b"drawn"), claim_id=1) is None
    with pytest.raises(ObjectMissing):
        store.size(target)
    assert store.copy_new(whole, target, **content(b"drawn"), claim_id=1) == target


def test_a_store_that_refuses_to_say_what_lies_there_is_no_store_without_it(store):
    with answering(store, "head_object", refusing(403)), pytest.raises(StoreRefused):
        store.copy_new("a", "b", **content(b"drawn"), claim_id=1)
    with answering(store, "head_object", refusing(403)), pytest.raises(StoreRefused) as caught:
        store.size("a")
    assert not isinstance(caught.value, ObjectMissing)


def test_a_store_that_does_not_copy_conditionally_gets_keys_with_the_claims_id(store, settings):
    source = fresh("a.png")
    store.put(source, b"drawn", "image/png", {}, claim_id=1)
    assert Unconditional(settings).copy_new(source, source, **content(b"drawn"), claim_id=9) == source.replace(
        "a.png", "a-9.png"
    )
    ignorant = S3Store(settings)
    assert ignorant.prepare()
    with answering(ignorant, "copy_object", refusing(501, "NotImplemented")) as asked:
        for claim_id in (5, 6):
            copied = ignorant.copy_new(source, source, **content(b"drawn"), claim_id=claim_id)
            assert copied == source.replace("a.png", f"a-{claim_id}.png")
            assert store.read(copied) == b"drawn"
    assert len(asked) == 4, "found out once"


@pytest.mark.parametrize("kind", [S3Store, Unconditional])
def test_the_first_mark_stays_and_is_what_everyone_reads(settings, kind):
    own, name = kind(dataclasses.replace(settings, prefix="shop/")), fresh("mark.json")
    assert own.mark(name, b"first") == b"first"
    assert own.mark(name, b"second") == b"first"
    assert own.read(f"shop/{name}") == b"first"
    assert own._client.head_object(Bucket=settings.bucket, Key=f"shop/{name}")["ContentType"] == "application/json"


def test_a_large_file_goes_up_from_where_it_stands_and_again_is_no_error(store, settings):
    key = fresh("a.jsonl")
    data = os.urandom(9 << 20)
    for _ in range(2):
        file = io.BytesIO(b"head" + data)
        file.seek(4)
        store.put_file(key, file, "application/jsonl")
    chunks = list(store.stream(key))
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) <= 1 << 20
    assert store._client.head_object(Bucket=settings.bucket, Key=key)["ContentType"] == "application/jsonl"


def test_what_is_dropped_is_gone_and_dropping_again_is_no_error(store, settings):
    key = lay(store, settings, fresh("a.png"), b"x")
    store.drop(key)
    store.drop(key)
    for verb in (store.read, store.size, lambda key: list(store.stream(key))):
        with pytest.raises(ObjectMissing):
            verb(key)


def test_keys_are_listed_by_their_beginning(store, settings):
    ours, theirs = fresh("listed/"), fresh("listed/")
    keys = [lay(store, settings, f"{ours}{number}", b"x") for number in range(3)]
    lay(store, settings, f"{theirs}0", b"x")
    assert sorted(store.under(ours)) == keys
    assert list(store.under(fresh("none/"))) == []


def test_a_signed_address_downloads_the_object_under_its_name_for_so_long(store, settings):
    key = lay(store, settings, fresh("a.png"), b"drawn")
    address = store.presign(key, 321, "mug.png")
    query = parse_qs(urlsplit(address).query)
    assert query["X-Amz-Expires"] == ["321"]
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == b"drawn"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="mug.png"'
    public = S3Store(dataclasses.replace(settings, s3_public_url="https://pictures.example"))
    assert public.presign(key, 60, "mug.png").startswith(f"https://pictures.example/{settings.bucket}/")
    assert store.presign(key, 60, "mug.png").startswith(settings.s3_endpoint_url)


def test_a_member_of_a_shard_is_read_sized_and_copied_like_an_object(store, settings):
    shard = lay(store, settings, fresh("7.tar"), b"0123456789" * 10_000)
    key = members.Place(shard, 25, 50_000).key
    data = (b"0123456789" * 10_000)[25:50_025]
    assert store.read(key) == store.read_small(key) == b"".join(store.stream(key)) == data
    assert b"".join(store.stream(key, (3, 9))) == data[3:10]
    assert store.size(key) == 50_000 and store.size(members.Place(shard, 99_990, 50).key) == 10
    copied = fresh("a.png")
    store.copy(key, copied)
    assert store.read(copied) == data
    assert store.copy_new(key, copied, claim_id=7, **content(data)) == copied
    target = fresh("b.png")
    assert store.copy_new(key, target, claim_id=7, **content(data)) == target
    assert store.read(target) == data
    assert store.copy_new(key, target, claim_id=7, **content(b"other")) is None
    lay(store, settings, target, b"another's", sha256=hashlib.sha256(b"another's").hexdigest())
    assert store.copy_new(key, target, claim_id=7, **content(data)) is None
    for verb in (store.drop, lambda key: store.presign(key, 60, "a.png")):
        with pytest.raises(ValueError, match="shard"):
            verb(key)
    for gone in (members.Place(shard, 200_000, 5).key, members.Place(fresh("8.tar"), 0, 5).key):
        for verb in (store.read, store.read_small, lambda key: list(store.stream(key))):
            with pytest.raises(ObjectMissing):
                verb(gone)
        assert store.copy_new(gone, fresh("c.png"), claim_id=7, **content(data)) is None
