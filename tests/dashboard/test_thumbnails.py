"""Thumbnails: made once, kept in the store, and gone with their job."""

import io

import pytest
from PIL import Image

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.model import ids
from services.core.model.errors import ObjectMissing, StoreRefused
from services.core.notify import Notifier
from services.core.storage import keys
from services.core.storage.s3 import S3Store
from services.dashboard import thumbnails
from services.dashboard.pages import pictures
from tests.pages import House, picture


@pytest.fixture
def _restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The web server has nothing in memory."""
    monkeypatch.setattr(pictures, "kept", thumbnails.Kept())


@pytest.fixture
def store(signed: House) -> S3Store:
    return S3Store(signed.api.settings)


def rendered(house: House) -> str:
    job = house.submit({"prompt": "a mug", "size": "64x64"}, {"prompt": "another", "size": "64x64"})
    house.render()
    return job


def of(house: House, store: S3Store, job: str) -> list[str]:
    return list(store.under(keys.thumbnail_folder(house.tenant, job)))


@pytest.mark.usefixtures("_restarted")
def test_a_thumbnail_is_made_once_whichever_web_server_is_asked(
    signed: House, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = rendered(signed)
    assert of(signed, store, job) == []
    first = signed.browser.get(f"/jobs/{job}/images/1/thumbnail")
    [key] = of(signed, store, job)
    assert key == store.key(keys.thumbnail_name(signed.tenant, job, 1, first.headers["ETag"].strip('"')))
    assert store.read(key) == first.content
    assert Image.open(io.BytesIO(first.content)).size == (256, 171)
    monkeypatch.setattr(pictures, "kept", thumbnails.Kept())
    monkeypatch.setattr(thumbnails, "small", lambda _: pytest.fail("made again"))
    assert signed.browser.get(f"/jobs/{job}/images/1/thumbnail").content == first.content


@pytest.mark.usefixtures("_restarted")
def test_thumbnails_are_deleted_with_their_job(signed: House, store: S3Store) -> None:
    job = rendered(signed)
    signed.browser.get(f"/jobs/{job}/images/0/thumbnail")
    assert len(of(signed, store, job)) == 1
    signed.http.delete(f"/v1/jobs/{job}")
    runner = BackgroundTaskRunner(
        signed.api.database,
        background_tasks(signed.api.settings, store, Notifier(signed.api.settings.redis_url)),
        "scheduler-1",
    )
    while runner.run_once():
        pass
    assert of(signed, store, job) == []


class Awkward(S3Store):
    """A real store whose key may not list the bucket, and, if so wished, not write either."""

    may_write = True

    def read(self, key: str) -> bytes:
        try:
            return super().read(key)
        except ObjectMissing:
            raise StoreRefused("no such thing, or not allowed") from None

    def put_file(self, key: str, *rest: object) -> None:
        if not self.may_write:
            raise StoreRefused("not allowed")
        super().put_file(key, *rest)  # type: ignore[arg-type]


def test_a_job_that_is_deleted_meanwhile_keeps_no_thumbnail_and_a_store_that_takes_none_is_no_trouble(
    signed: House,
) -> None:
    store = Awkward(signed.api.settings)
    job = ids.public_job(ids.new())
    name = keys.thumbnail_name(signed.tenant, job, 0, "0" * 64)
    store.put_file(f"test/{job}.png", io.BytesIO(picture()), "image/png")
    made = thumbnails.stored(store, f"test/{job}.png", name, lambda: False)
    assert Image.open(io.BytesIO(made)).size == (256, 171)
    assert of(signed, store, job) == []
    store.may_write = False
    assert thumbnails.stored(store, f"test/{job}.png", name, lambda: True) == made
    with pytest.raises(StoreRefused):
        thumbnails.stored(store, "test/nothing.png", name, lambda: True)
