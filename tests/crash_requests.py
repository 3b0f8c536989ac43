"""What a client wants of a web server that reaches a crash point. It asks as a careful client does: with an
Idempotency-Key, again after every answer that it did not get."""

import base64
import secrets
from typing import Any

import httpx

from services.core.model import ids
from services.core.model.specs import FailedImage
from tests import factories
from tests.crash_scenarios import IMAGES, Scenario
from tests.exporting import picture
from tests.render_loops import mugs
from worker.pipelines.simulated import REVISION

ACCEPTED = (200, 201, 202)


class Request(Scenario):
    program = "web"

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self.key = {"Idempotency-Key": secrets.token_hex(8)}
        self.found: dict[str, Any] = {}  # the last answer that came

    def send(self, http: httpx.Client, method: str, path: str, accepted: tuple[int, ...] = ACCEPTED, **how: Any) -> Any:
        answer = http.request(method, path, **how)
        if answer.status_code not in accepted:
            raise httpx.HTTPStatusError(answer.text, request=answer.request, response=answer)
        self.found = answer.json()
        return self.found


class Submit(Request):
    images: list[dict[str, Any]] = mugs(IMAGES)

    def ask(self, http: httpx.Client) -> None:
        self.send(http, "POST", "/v1/jobs", json={"images": self.images}, headers=self.key)

    def check(self) -> None:
        (job,) = self.world.jobs()
        assert ids.public_job(job) == self.found["id"]
        self.world.assert_done(job, len(self.images))


class SubmitWithPicture(Submit):
    _URL = f"data:image/png;base64,{base64.b64encode(picture(3)).decode()}"
    images = [{"prompt": "a red mug", "size": "64x64", "seed": 5, "image": _URL, "strength": 0.5}]  # noqa: RUF012


class SubmitMuch(Submit):
    """More than one piece of COPY, most of it in the last one that is asked for."""

    images = [{"prompt": "a mug " + "of clay " * 240, "size": "64x64", "seed": index} for index in range(160)]  # noqa: RUF012

    def ask(self, http: httpx.Client) -> None:
        super().ask(http)
        self.send(http, "POST", f"/v1/jobs/{self.found['id']}/cancel", accepted=(200, 409))

    def check(self) -> None:
        (job,) = self.world.jobs()
        assert self.world.counts(job).keys() <= {"cancelled", "done"}
        assert sum(self.world.counts(job).values()) == len(self.images)


class Draft(Request):
    """A draft of two chunks."""

    def prepare(self) -> None:
        self.job = self.send(self.world.api.http, "POST", "/v1/jobs", json={"draft": True})["id"]

    def ask(self, http: httpx.Client) -> None:
        for number in range(2):
            some = mugs(IMAGES)[number::2]
            self.send(http, "PUT", f"/v1/jobs/{self.job}/chunks/{number}", (*ACCEPTED, 409), json={"images": some})
        self.send(http, "POST", f"/v1/jobs/{self.job}/finalize", json={"chunks": 2, "images": IMAGES})

    def check(self) -> None:
        (job,) = self.world.jobs()
        self.world.assert_done(job, IMAGES)


class StoreFile(Request):
    content = b'{"custom_id": "a"}\n'

    def ask(self, http: httpx.Client) -> None:
        sent = {"file": ("a.jsonl", self.content)}
        self.send(http, "POST", "/v1/files", files=sent, data={"purpose": "batch"}, headers=self.key)

    def check(self) -> None:
        rows = self.world.rows("SELECT id, object_key FROM files WHERE id > :mark", mark=self.world.mark)
        assert [ids.public("file-", row.id) for row in rows] == [self.file_id()]
        assert self.world.store.read(rows[0].object_key) == self.content

    def file_id(self) -> str:
        return str(self.found["id"])


class Upload(StoreFile):
    """A file in two parts."""

    content = b"first" + b"second"

    def prepare(self) -> None:
        asked = {"purpose": "batch", "filename": "a.jsonl", "bytes": 11, "mime_type": "application/jsonl"}
        self.upload = self.send(self.world.api.http, "POST", "/v1/uploads", json=asked)["id"]
        self.parts: list[str] = []

    def ask(self, http: httpx.Client) -> None:
        for part in (b"first", b"second")[len(self.parts) :]:
            sent = {"data": ("part", part)}
            self.parts.append(self.send(http, "POST", f"/v1/uploads/{self.upload}/parts", files=sent)["id"])
        self.send(http, "POST", f"/v1/uploads/{self.upload}/complete", json={"part_ids": self.parts})

    def file_id(self) -> str:
        return str(self.found["file"]["id"])


class Cancel(Request):
    def prepare(self) -> None:
        self.job = factories.submit(self.world.database, self.world.settings, mugs(IMAGES))

    def ask(self, http: httpx.Client) -> None:
        self.send(http, "POST", f"/v1/jobs/{ids.public_job(self.job)}/cancel")

    def check(self) -> None:
        assert self.world.counts(self.job) == {"cancelled": IMAGES}


class Retry(Request):
    def prepare(self) -> None:
        database = self.world.database
        self.job = factories.submit(database, self.world.settings, mugs(4))
        claim = factories.claim(database, revision=REVISION)
        assert claim is not None
        assert len(claim.images) == 4
        failed = [FailedImage(image.job_id, image.index, "error", "No.") for image in claim.images]
        factories.settle(database, claim, failed=failed)
        self.world.carry_on(self.world.have_ended)

    def ask(self, http: httpx.Client) -> None:
        self.send(http, "POST", f"/v1/jobs/{ids.public_job(self.job)}/retry", json={}, headers=self.key)

    def check(self) -> None:
        first, again = self.world.jobs()
        assert (first, ids.public_job(again)) == (self.job, self.found["id"])
        self.world.assert_done(again, 4)


class Delete(Request):
    def prepare(self) -> None:
        self.job = factories.submit(self.world.database, self.world.settings, mugs(IMAGES))
        self.world.carry_on(self.world.have_ended)
        assert len(self.objects()) == IMAGES

    def ask(self, http: httpx.Client) -> None:
        self.send(http, "DELETE", f"/v1/jobs/{ids.public_job(self.job)}", (202, 404))

    def objects(self) -> list[str]:
        return self.world.objects(f"/{ids.public_job(self.job)}/")

    def is_done(self) -> bool:
        return not self.world.jobs()

    def check(self) -> None:
        assert self.objects() == []
        for table in ("images", "results", "payloads", "segments"):
            assert self.world.rows(f"SELECT FROM {table} WHERE job_id = :job", job=self.job) == [], table
