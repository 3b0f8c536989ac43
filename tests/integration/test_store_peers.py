"""Object stores with other habits and rights, and those that hang: a real server behind a proxy that answers for it."""

import dataclasses
import hashlib
import io
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import CredentialRetrievalError

from services.core.model.errors import SettingsError, StoreRefused, StoreUnavailable
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.local.stack import Stack
from tests.peers import HANGS, S3Proxy, hanging


@pytest.fixture
def database_url(stack: Stack) -> str:
    """No database is asked here, so none is copied for each test."""
    return stack.values["DATABASE_URL"]


def fresh(name: str) -> str:
    return f"peers/{os.getpid()}-{time.monotonic_ns()}/{name}"


def through(settings: Settings, proxy: S3Proxy, **more: object) -> S3Store:
    return S3Store(dataclasses.replace(settings, s3_endpoint_url=proxy.url, **more))


@pytest.mark.parametrize(
    "answer",
    [
        (501, "NotImplemented", ""), (400, "InvalidArgument", ""), (405, "MethodNotAllowed", ""),
        (403, "SignatureDoesNotMatch", ""), None,
    ],
)  # fmt: skip
def test_a_store_that_refuses_or_ignores_the_condition_is_found_unconditional(store, settings, answer):
    def rule(_method, path, headers):
        if not headers["If-None-Match"]:
            return None
        if answer is None:  # as if it wrote over what is there
            store.drop(path.removeprefix(f"/{settings.bucket}/"))
        return answer

    with S3Proxy(settings.s3_endpoint_url, rule) as proxy:
        own = through(settings, proxy)
        key, target = fresh("a.png"), fresh("b.png")
        assert own.prepare() is False
        for claim_id in (8, 9):
            put = own.put(key, str(claim_id).encode(), "image/png", {}, claim_id=claim_id)
            assert put.key == key.replace("a.png", f"a-{claim_id}.png")
            assert store.read(put.key) == str(claim_id).encode()
        sha256 = hashlib.sha256(b"9").digest()
        copied = own.copy_new(put.key, target, sha256=sha256, size=1, claim_id=5)
        assert copied == target.replace("b.png", "b-5.png")
        assert store.read(copied) == b"9"


def test_of_two_that_mark_a_place_at_once_the_second_reads_the_first_ones_mark(store, settings):
    name = fresh("mark.json")

    def rule(method, path, _headers):
        if method == "PUT" and path.endswith(name):  # just before ours arrives
            store.mark(name, b"theirs")

    with S3Proxy(settings.s3_endpoint_url, rule) as proxy:
        assert through(settings, proxy).mark(name, b"ours") == store.read(name) == b"theirs"


def test_a_store_that_takes_no_writes_passes_the_check_and_not_the_one_of_writing(store, settings):
    with S3Proxy(settings.s3_endpoint_url, lambda method, *_: (507, "Full", "") if method == "PUT" else None) as proxy:
        own = through(settings, proxy)
        own.check()
        with pytest.raises(StoreUnavailable, match="Full"):
            own.check_write()
    store.check_write()


def test_a_key_that_may_more_than_a_program_needs_is_told_of_and_a_programs_own_is_not(store, settings, store_admin):
    assert store.surplus() == ""
    said = S3Store(store_admin).surplus()
    buckets = re.search(r"sees other buckets \((.*?)\) and may administer the bucket", said)
    assert buckets is not None, said
    assert buckets[1] and settings.bucket not in buckets[1].split(", ")


REFUSALS = [
    (403, "AccessDenied", "", "lack a right"),
    (403, "InvalidAccessKeyId", "", "does not know the access key"),
    (403, "SignatureDoesNotMatch", "", "AWS_SECRET_ACCESS_KEY is not the secret"),
    (403, "RequestTimeTooSkewed", "", "clock differs"),
    (400, "ExpiredToken", "", "have expired"),
    (400, "InvalidToken", "", "AWS_SESSION_TOKEN does not belong"),
    (400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>", "another region than AWS_REGION says: eu-"),
    (301, "PermanentRedirect", "<Region>eu-west-1</Region>", "another region than AWS_REGION says: eu-"),
    (307, "TemporaryRedirect", "<Endpoint>other</Endpoint>", "another region"),
]


@pytest.mark.parametrize(("status", "code", "more", "sentence"), REFUSALS, ids=[code for _, code, _, _ in REFUSALS])
def test_each_refusal_is_one_sentence_that_says_what_would_do(store, settings, status, code, more, sentence):
    with S3Proxy(settings.s3_endpoint_url, lambda *_: (status, code, more)) as proxy:
        own = through(settings, proxy)
        for verb in (own.prepare, own.check):
            with pytest.raises(StoreRefused, match=sentence) as caught:
                verb()
            assert code in str(caught.value)
            assert settings.s3_secret_key not in str(caught.value)


@pytest.mark.parametrize(("status", "code"), [(429, "TooManyRequests"), (408, "RequestTimeout"), (503, "SlowDown")])
def test_a_store_that_asks_for_patience_is_in_an_outage(store, settings, status, code):
    with S3Proxy(settings.s3_endpoint_url, lambda *_: (status, code, "")) as proxy:
        with pytest.raises(StoreUnavailable, match=code) as caught:
            through(settings, proxy).read("any")
        assert not isinstance(caught.value, StoreRefused)


def test_a_link_that_cannot_be_signed_is_an_outage_of_the_store(settings, monkeypatch):
    store = S3Store(settings)

    def expired(*_: object, **__: object) -> str:
        raise CredentialRetrievalError(provider="a role", error_msg="it has expired")

    monkeypatch.setattr(store._client, "generate_presigned_url", expired)
    with pytest.raises(StoreUnavailable, match="a role"):
        store.presign("any", 60, "a.png")


def test_a_bucket_that_may_not_be_listed_can_be_used(store, settings):
    def rule(_method, path, _headers):
        return (403, "AccessDenied", "") if path in (f"/{settings.bucket}", f"/{settings.bucket}/") else None

    with S3Proxy(settings.s3_endpoint_url, rule) as proxy:
        own = through(settings, proxy)
        assert own.prepare() is True
        own.check()
        assert own.read(own.put(fresh("a.png"), b"drawn", "image/png", {}, claim_id=1).key) == b"drawn"


@pytest.mark.parametrize(
    ("region", "constraint"),
    [("eu-west-1", b"<LocationConstraint>eu-west-1</LocationConstraint>"), ("us-east-1", b"")],  # AWS refuses its name
)
def test_a_missing_bucket_is_made_in_its_region_or_the_refusal_says_who_can(store_admin, region, constraint):
    name = f"made-{os.getpid()}-{time.monotonic_ns()}"
    allowed = False

    def rule(method, path, _headers):
        bare = method == "PUT" and path.rstrip("/") == f"/{name}"
        return (403, "AccessDenied", "") if bare and not allowed else None

    with S3Proxy(store_admin.s3_endpoint_url, rule) as proxy:
        own = through(store_admin, proxy, bucket=name, s3_region=region)
        with pytest.raises(StoreRefused, match=r"does not exist.*AccessDenied.*allow s3:CreateBucket"):
            own.prepare()
        allowed = True
        assert own.prepare() is True
        made = [body for method, path, body in proxy.asked if method == "PUT" and path.rstrip("/") == f"/{name}"]
        assert constraint in made[-1] if constraint else made[-1] == b""
        own._client.delete_object(Bucket=name, Key="probe/conditional-write")
        own._client.delete_bucket(Bucket=name)


def test_temporary_keys_are_sent_with_their_token(settings):
    seen = []
    with S3Proxy(
        settings.s3_endpoint_url, lambda _m, _p, headers: seen.append(headers["X-Amz-Security-Token"])
    ) as proxy:
        own = through(settings, proxy, s3_session_token="of-an-hour")
        with pytest.raises((StoreRefused, StoreUnavailable)):
            own.read(fresh("none"))
        assert seen == ["of-an-hour"]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate that no authority has signed, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=store -days 2"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {made} -out {tmp_path / 'public.pem'}"
    subprocess.run(command.split(), check=True, capture_output=True)
    made.write_text(made.read_text() + (tmp_path / "public.pem").read_text())
    return made


def test_a_store_whose_certificate_nobody_vouches_for_is_not_spoken_to(store, settings, certificate):
    with S3Proxy(settings.s3_endpoint_url, lambda *_: None, certificate) as proxy:
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            through(settings, proxy).check()
        assert proxy.asked == []
        through(settings, proxy, s3_ca_bundle=str(certificate)).check()


def test_without_an_address_aws_is_spoken_to_whatever_botocore_is_told_elsewhere(settings, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere.example")
    aws = S3Store(dataclasses.replace(settings, s3_endpoint_url="", bucket="mugs"))
    assert urlsplit(aws.presign("a.png", 60, "a.png")).netloc.startswith("mugs.s3.")


def test_without_keys_botocores_own_chain_is_asked_and_what_it_lacks_is_a_sentence(settings, monkeypatch, tmp_path):
    bare = dataclasses.replace(settings, s3_access_key="", s3_secret_key="")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(SettingsError, match="No credentials for the object store were found"):
        S3Store(bare)
    monkeypatch.setenv("AWS_PROFILE", "press")
    with pytest.raises(SettingsError, match="press"):
        S3Store(bare)
    (tmp_path / "credentials").write_text(
        f"[press]\naws_access_key_id = {settings.s3_access_key}\naws_secret_access_key = {settings.s3_secret_key}\n"
    )
    assert S3Store(bare).prepare() is True
    with pytest.raises(SettingsError, match="aws_secret_access_key"):
        S3Store(dataclasses.replace(settings, s3_secret_key=""))


@pytest.mark.parametrize("stage", HANGS)
def test_a_store_that_hangs_is_unavailable(settings, stage):
    with hanging(stage) as address:
        own = S3Store(dataclasses.replace(settings, s3_endpoint_url=address, store_seconds=0.3))
        own._conditional = True
        verbs = [
            lambda: own.put_file("a", io.BytesIO(b"x" * 100_000), "text/plain"),
            lambda: own.read("a"),
            lambda: list(own.stream("a")),
            lambda: own.copy("a", "b"),
            lambda: own.drop("a"),
            lambda: list(own.under("a")),
        ]
        for verb in verbs if "body" in stage else [*verbs, own.check]:  # an answer to HEAD has no body to wait for
            with pytest.raises(StoreUnavailable) as caught:
                verb()
            assert type(caught.value) is StoreUnavailable


def test_a_slow_reader_is_not_taken_for_a_slow_store(store, settings):
    key, own = fresh("a"), S3Store(dataclasses.replace(settings, store_seconds=0.3))
    store.put_file(key, io.BytesIO(os.urandom(3 << 20)), "application/octet-stream")
    chunks = own.stream(key)
    size = 0
    for chunk in chunks:
        size += len(chunk)
        time.sleep(0.03)
    assert size == 3 << 20
