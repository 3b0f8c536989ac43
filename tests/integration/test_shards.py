"""Jobs whose images are stored in shards: one tar a claim, which every reader reads by its members."""

import hashlib
import io
import json
import tarfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.api import stored
from services.cli.app import app
from services.core.db.database import Database
from services.core.jobs import lifecycle, queries, retry
from services.core.model import ids
from services.core.model.requests import RetryOptions
from services.core.policy import policies
from services.core.settings import Settings
from services.core.storage import members
from services.core.storage.s3 import S3Store
from tests import exporting
from tests.factories import TENANT, submit
from tests.render_loops import RenderLoopMaker, counts, images, mugs
from tests.web import Api
from worker import claim_sizes
from worker.render import RenderLoop

SHARDS = {"store": "shards"}
FORMATS = ("png", "jpeg", "webp")


@pytest.fixture(autouse=True)
def small_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one batch each, however fast they are rendered."""
    monkeypatch.setattr(claim_sizes, "CLAIM_SECONDS", 0.0)


@pytest.fixture
def render_loop(make_render_loop: RenderLoopMaker) -> RenderLoop:
    return make_render_loop()


def rows(count: int, **fields: Any) -> list[dict[str, object]]:
    return [{**row, "output_format": FORMATS[n % 3], **fields} for n, row in enumerate(mugs(count))]


def places(found: list[Any]) -> list[members.Place]:
    given = [members.place(image.object_key) for image in found]
    assert all(given), given
    return [place for place in given if place is not None]


def is_stored(store: S3Store, image: Any) -> bool:
    data = store.read(image.object_key)
    return (len(data), hashlib.sha256(data).hexdigest()) == (image.bytes, image.sha256)


def of_job(store: S3Store, job_id: int) -> list[str]:
    """All objects of the job's images."""
    return [key for key in store.under("") if f"/{ids.public_job(job_id)}/" in key]


def test_a_claim_s_images_lie_in_one_tar_that_webdataset_reads(
    render_loop: RenderLoop, database: Database, fast: Settings, store: S3Store
) -> None:
    job_id = submit(database, fast, rows(40), head=SHARDS)
    plain = submit(database, fast, rows(40))
    render_loop.run()
    found = images(database, job_id)
    assert counts(database, job_id) == counts(database, plain) == {"done": 40}
    assert all(is_stored(store, image) for image in found)
    assert [image.sha256 for image in found] == [image.sha256 for image in images(database, plain)]
    shards = Counter(place.object_key for place in places(found))
    assert sorted(shards.values()) == [8, 16, 16]
    assert sorted(shards) == sorted(of_job(store, job_id)) and len(of_job(store, plain)) == 40
    by_index = {image.index: image for image in found}
    seen = []
    for key, place in zip(shards, places(found), strict=False):
        assert place.object_key in shards
        with tarfile.open(fileobj=io.BytesIO(store.read(key))) as tar:
            names = tar.getnames()
            for name in names:
                content = tar.extractfile(name).read()  # type: ignore[union-attr]
                index, extension = name.split(".")
                if extension == "json":
                    told = json.loads(content)
                    assert (told["index"], told["sha256"]) == (int(index), by_index[int(index)].sha256)
                    assert told["seed"] == int(index) and "prompt" not in told and b"mug" not in content
                else:
                    assert hashlib.sha256(content).hexdigest() == by_index[int(index)].sha256
                    seen.append(int(index))
    assert sorted(seen) == list(range(40))


def test_jobs_of_one_claim_have_shards_of_their_own_and_prompts_only_where_files_have_them(
    render_loop: RenderLoop, database: Database, fast: Settings, store: S3Store
) -> None:
    one = submit(database, fast, mugs(3), head=SHARDS)
    other = submit(database, fast, mugs(3), head=SHARDS | {"embed_prompt": True})
    third = submit(database, fast, mugs(3))
    render_loop.run()
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT count(*) FROM claims")).scalar_one() == 1
    for job_id, is_told in ((one, False), (other, True)):
        (key,) = {place.object_key for place in places(images(database, job_id))}
        assert of_job(store, job_id) == [key]
        assert (b'"prompt": "mug 1"' in store.read(key)) is is_told
    assert len(of_job(store, third)) == 3


def test_the_web_server_sends_an_image_of_a_shard_itself(
    api: Api, render_loop: RenderLoop, fast: Settings, store: S3Store, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    turns, answer_stored = set(), stored.answer

    async def noting(request: Any, context: Any, tenant: int | None, *rest: Any) -> Any:
        turns.add(tenant)
        return await answer_stored(request, context, tenant, *rest)

    monkeypatch.setattr(stored, "answer", noting)
    job = api.submit(*rows(5), **SHARDS)
    render_loop.run()
    assert job["store"] == api.http.get(f"/v1/jobs/{job['id']}").json()["store"] == "shards"
    listed = api.http.get(f"/v1/jobs/{job['id']}/images").json()["data"]
    signed = [httpx.get(image["url"]) for image in listed]
    assert [answer.status_code for answer in signed] == [200] * 5
    assert [hashlib.sha256(answer.content).hexdigest() for answer in signed] == [image["sha256"] for image in listed]
    assert [answer.headers["content-type"] for answer in signed[:3]] == ["image/png", "image/jpeg", "image/webp"]
    path = f"/v1/jobs/{job['id']}/images/2/content"
    whole = signed[2].content
    assert turns == {TENANT}
    assert api.http.get(path).content == whole
    assert httpx.get(f"{api.url}{path}").status_code == 401
    part = api.http.get(path, headers={"Range": "bytes=10-29"})
    assert (part.status_code, part.content) == (206, whole[10:30])
    assert part.headers["content-range"] == f"bytes 10-29/{len(whole)}"
    assert api.http.get(path, headers={"If-None-Match": signed[2].headers["etag"]}).status_code == 304
    head = api.http.head(path)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(whole)), b"")
    assert "00002.webp" in signed[2].headers["content-disposition"]
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    result = CliRunner().invoke(app, ["download", str(job["id"]), "-o", str(tmp_path / "got")])
    assert result.exit_code == 0, result.output
    got = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "got").rglob("*") if path.is_file()}
    assert {image["sha256"] for image in listed} <= got


def test_lines_and_drafts_ask_for_it_too_and_anything_else_is_refused(api: Api) -> None:
    refused = api.http.post("/v1/jobs", json={"images": [{"prompt": "a mug"}], "store": "tape"})
    assert refused.status_code == 422 and "tars of many images" in refused.text
    lines = api.http.post("/v1/jobs?store=shards", content=b'{"prompt": "a mug"}\n', headers={
        "Content-Type": "application/x-ndjson"})  # fmt: skip
    assert lines.json()["store"] == "shards"
    assert api.submit()["store"] == "objects"
    draft = api.http.post("/v1/jobs", json={"draft": True, **SHARDS}).json()
    assert draft["store"] == "shards"


def test_images_that_were_cancelled_while_they_were_stored_go_with_their_shard(
    render_loop: RenderLoop, database: Database, fast: Settings, store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    job_id = submit(database, fast, mugs(4), head=SHARDS)
    kept = submit(database, fast, mugs(4), head=SHARDS)
    put = store.put

    def cancelling(key: str, *how: Any, **more: Any) -> Any:
        found = put(key, *how, **more)
        if f"/{ids.public_job(job_id)}/" in key:
            with database.begin(TENANT) as connection:
                lifecycle.cancel(connection, TENANT, job_id)
        return found

    monkeypatch.setattr(store, "put", cancelling)
    render_loop.run()
    assert counts(database, job_id) == {"cancelled": 4} and counts(database, kept) == {"done": 4}
    assert of_job(store, job_id) == []
    assert all(is_stored(store, image) for image in images(database, kept))


def test_an_equal_image_is_copied_out_of_a_shard_and_one_of_a_shard_can_be_drawn_on(
    api: Api, render_loop: RenderLoop, database: Database, fast: Settings, store: S3Store
) -> None:
    first = submit(database, fast, rows(6), head=SHARDS)
    render_loop.run()
    again = submit(database, fast, rows(8), head=SHARDS | {"dedupe": True})
    render_loop.run()
    found = images(database, again)
    assert [image.reused for image in found] == [True] * 6 + [False] * 2
    assert [members.place(image.object_key) is None for image in found] == [True] * 6 + [False] * 2
    assert all(is_stored(store, image) for image in found)
    told = store._client.head_object(Bucket=store.bucket, Key=found[0].object_key)["Metadata"]
    assert (told["device"], told["class"]) == (found[0].device, found[0].reproducibility_class)
    assert told["versions"] == found[0].versions
    drawn_on = {"image": f"{ids.public_job(first)}/1", "strength": 0.5}
    job = api.submit({"prompt": "a red mug", "size": "64x64", **drawn_on})
    render_loop.run()
    assert api.http.get(f"/v1/jobs/{job['id']}").json()["counts"]["done"] == 1


def test_a_store_that_answers_late_gets_the_shard_once(
    render_loop: RenderLoop, database: Database, fast: Settings, store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The first answer is lost after the store has taken the tar."""
    from services.core.model.errors import StoreUnavailable

    put, asked, lock = store.put, [], threading.Lock()

    def losing(key: str, *how: Any, **more: Any) -> Any:
        found = put(key, *how, **more)
        with lock:
            asked.append(key)
            if len(asked) == 1:
                raise StoreUnavailable("The answer was lost.")
        return found

    monkeypatch.setattr(store, "put", losing)
    job_id = submit(database, fast, mugs(16), head=SHARDS)
    render_loop.run()
    assert counts(database, job_id) == {"done": 16}
    assert len(asked) == 2 and of_job(store, job_id) == [asked[0]]
    assert all(is_stored(store, image) for image in images(database, job_id))


def test_one_bad_prompt_of_a_shard_fails_alone_and_its_retry_is_stored_in_shards_too(
    render_loop: RenderLoop, database: Database, fast: Settings, store: S3Store
) -> None:
    job_id = submit(database, fast, mugs(16, _0="fault:raise", _5="fault:nan"), head=SHARDS)
    render_loop.run()
    assert counts(database, job_id) == {"done": 14, "failed": 2}
    done = [image for image in images(database, job_id) if image.object_key]
    assert len(done) == 14 and all(is_stored(store, image) for image in done)
    exporting.finish(database, job_id)
    with database.begin(TENANT) as connection:
        child = retry.retry(connection, TENANT, job_id, RetryOptions(), policy=policies.NOTHING).job_id
        found = queries.job(connection, TENANT, child)
    assert found is not None and found.in_shards
