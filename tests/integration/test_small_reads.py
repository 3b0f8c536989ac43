"""Small objects read with our own signature: the same bytes, and the same errors, as botocore's."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from services.core.model.errors import ObjectMissing, StoreRefused, StoreUnavailable
from services.core.storage import small_reads
from services.core.storage.s3 import S3Store
from services.core.storage.small_reads import SmallReader

KEYS = ["plain.png", "with space & plus+.png", "päper/日本.png", "a~b(1)*'!.png", "100%25.png"]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_read_without_botocore(store, monkeypatch, key):
    store.put(f"small/{key}", key.encode() * 1_000, "image/png", {}, claim_id=1)
    monkeypatch.setattr(store._client, "get_object", lambda **_: pytest.fail("botocore was asked"))
    assert store.read_small(f"small/{key}") == key.encode() * 1_000


def test_what_is_not_there_or_refused_or_away_is_said_as_ever(store, settings):
    with pytest.raises(ObjectMissing):
        store.read_small("small/nothing.png")
    with pytest.raises(StoreRefused, match="nothing-of-that-name"):
        S3Store(replace(settings, bucket="nothing-of-that-name")).read_small("plain.png")
    with pytest.raises(StoreRefused, match="AWS_SECRET_ACCESS_KEY"):
        S3Store(replace(settings, s3_secret_key="wrong")).read_small("plain.png")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        S3Store(replace(settings, s3_endpoint_url="http://127.0.0.1:9")).read_small("plain.png")


@pytest.mark.parametrize("token", ["", "a-session-token"])
@pytest.mark.parametrize("path", ["/bucket/job/1.png", "/a%20b/%E6%97%A5.png"])
def test_the_signature_is_botocore_s(settings, monkeypatch, token, path):
    given = replace(settings, s3_session_token=token)
    reader = SmallReader(S3Store(given)._client, given.bucket)
    moment = datetime(2026, 11, 26, 9, tzinfo=UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return moment

    monkeypatch.setattr(small_reads, "datetime", Clock)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: moment)
    found = reader._signed("store.test:8333", path, "eu-central-1")
    asked = AWSRequest("GET", f"http://store.test:8333{path}", headers={"Host": "store.test:8333"})
    asked.context["payload_signing_enabled"] = True
    held = Credentials(given.s3_access_key, given.s3_secret_key, token or None)
    S3SigV4Auth(held, "s3", "eu-central-1").add_auth(asked)
    assert asked.headers["X-Amz-Date"] == found["X-Amz-Date"]
    assert asked.headers["Authorization"] == found["Authorization"]
