"""A catalogue's source, taken from an address, the store or another bucket, and read; each trouble is one sentence."""

import dataclasses
import gzip
import io
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from services.core.catalogues import sources
from services.core.catalogues.definition import SourceFields
from services.core.catalogues.sources import SourceFailed, Uploaded
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.local.stack import Stack
from tests.integration.test_fetching import send, serving

FEED = b"sku;colour\n1;red\n2;teal\n"


@pytest.fixture
def database_url(stack: Stack) -> str:
    """No database is asked here, so none is copied for each test."""
    return stack.values["DATABASE_URL"]


@pytest.fixture
def feeds(store_admin: Settings) -> Iterator[S3Store]:
    """A store whose key may read another bucket, in which there is a feed."""
    other = S3Store(dataclasses.replace(store_admin, bucket="feeds"))
    other.prepare()
    other.put_file("shop/feed.csv", io.BytesIO(FEED), "text/csv")
    yield S3Store(store_admin)
    other.drop("shop/feed.csv")


def refused(source: SourceFields, path: Path, settings: Settings, store: S3Store, **how: object) -> str:
    with pytest.raises(SourceFailed) as caught:
        sources.take(source, path, settings=settings, store=store, **how)  # type: ignore[arg-type]
    return f"{caught.value.code}: {caught.value}"


def test_an_object_of_a_bucket_that_the_settings_name_is_taken(
    settings: Settings, feeds: S3Store, tmp_path: Path
) -> None:
    source, path = SourceFields.model_validate({"s3": "feeds/shop/feed.csv"}), tmp_path / "source"
    assert refused(source, path, settings, feeds).startswith("forbidden_bucket: PRESSWORK_SOURCE_BUCKETS does not name")
    allowed = dataclasses.replace(settings, source_buckets=frozenset({"feeds", settings.bucket}))
    taken = sources.take(source, path, settings=allowed, store=feeds)
    assert taken is not None and (taken.title, taken.size) == ("s3://feeds/shop/feed.csv", len(FEED))
    with sources.items(source, path, taken.title, ["sku", "colour"]) as (items, unit):
        assert [item.fields for item in items] == [{"sku": "1", "colour": "red"}, {"sku": "2", "colour": "teal"}]
        assert unit == "line"
    assert sources.take(source, path, settings=allowed, store=feeds, before=taken) is None
    missing = SourceFields.model_validate({"s3": "feeds/none.csv"})
    assert refused(missing, path, allowed, feeds) == "missing_source: There is no s3://feeds/none.csv."
    small = dataclasses.replace(allowed, max_source_bytes=5)
    assert refused(source, path, small, feeds) == "too_large: s3://feeds/shop/feed.csv is larger than 5 bytes."
    own = SourceFields.model_validate({"s3": f"{settings.bucket}/files/1/file-x.csv"})
    assert "cannot be one of Presswork's own objects" in refused(own, path, allowed, feeds)


def test_an_uploaded_file_is_taken_and_unpacked(settings: Settings, store: S3Store, tmp_path: Path) -> None:
    path, source = tmp_path / "source", SourceFields.model_validate({"file": "feed.csv.gz"})
    store.put_file("files/sources/1", io.BytesIO(gzip.compress(FEED)), "application/gzip")
    uploaded = Uploaded("files/sources/1", "feed.csv.gz")
    taken = sources.take(source, path, settings=settings, store=store, uploaded=uploaded)
    assert taken is not None and path.read_bytes() == FEED
    with sources.items(source, path, taken.title, ["sku"]) as (items, _):
        assert [item.fields for item in items] == [{"sku": "1"}, {"sku": "2"}]
    assert refused(source, path, settings, store) == "missing_file: No file was uploaded for this catalogue yet."
    tight = dataclasses.replace(settings, max_source_bytes=1_000)
    store.put_file("files/sources/2", io.BytesIO(gzip.compress(b"x" * 100_000)), "application/gzip")
    bomb = Uploaded("files/sources/2", "feed.csv.gz")
    assert refused(source, path, tight, store, uploaded=bomb).startswith(
        "too_large: What feed.csv.gz has there unpacks"
    )
    tiny = dataclasses.replace(settings, max_source_bytes=len(gzip.compress(FEED)) - 1)
    assert refused(source, path, tiny, store, uploaded=uploaded).startswith("too_large: feed.csv.gz is larger than")
    for key in ("files/sources/1", "files/sources/2"):
        store.drop(key)


def test_an_address_is_taken_by_the_rules_of_the_settings(settings: Settings, store: S3Store, tmp_path: Path) -> None:
    path = tmp_path / "source"
    with serving(lambda handler: send(handler, FEED)) as url:
        source = SourceFields.model_validate({"url": url})
        assert refused(source, path, settings, store).startswith("invalid_url: The address must begin with https://.")
        http = dataclasses.replace(settings, fetch_http=True)
        assert refused(source, path, http, store).startswith("forbidden_address: 127.0.0.1 has an address that is not")
        here = dataclasses.replace(http, fetch_networks=(ip_network("127.0.0.0/8"),))
        taken = sources.take(source, path, settings=here, store=store)
        assert taken is not None and path.read_bytes() == FEED
        assert "secret" not in taken.title
        with (
            pytest.raises(SourceFailed, match="has no column 'title'; it has: sku, colour"),
            sources.items(source, path, taken.title, ["sku", "title"]) as (items, _),
        ):
            list(items)
        path.write_bytes(b"sku;colour\n1;caf\xe9\n\x81\x8d\x8f\x90\x9d;\x81\x8d\x8f\x90\x9d\n")
        with (
            pytest.raises(SourceFailed, match=r"nor like Windows-1252; source.encoding says what it is"),
            sources.items(source, path, taken.title, ["sku", "colour"]) as (items, _),
        ):
            list(items)
