"""What a client orders of a web server that reaches a crash point: single images, batches, exports, runs of catalogues
and schedules, acts on many jobs. Others do it."""

import json
from dataclasses import replace
from typing import Any

import httpx

from services.core.bulk import bulk
from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues.changes import Change
from services.core.jobs import lifecycle
from services.core.model import ids
from tests import cataloguing, exporting, factories, scheduling
from tests.crash_catalogues import FIRST, FirstRun, SecondRun
from tests.crash_requests import ACCEPTED, Request
from tests.crash_scenarios import IMAGES
from tests.factories import TENANT
from tests.render_loops import mugs


class Generate(Request):
    """One image by the OpenAI-shaped API, which is not waited for."""

    def ask(self, http: httpx.Client) -> None:
        asked = {"prompt": "a mug", "size": "64x64"}
        headers = self.key | {"Prefer": "respond-async"}
        self.send(http, "POST", "/v1/images/generations", json=asked, headers=headers)

    def check(self) -> None:
        (job,) = self.world.jobs()
        assert ids.public_job(job) == self.found["id"]
        self.world.assert_done(job, 1)


class CreateBatch(Request):
    def prepare(self) -> None:
        body = {"prompt": "a mug", "size": "64x64"}
        lines = [
            json.dumps({"custom_id": name, "method": "POST", "url": "/v1/images/generations", "body": body})
            for name in "abc"
        ]
        sent = {"file": ("a.jsonl", "\n".join(lines).encode())}
        self.file = self.send(self.world.api.http, "POST", "/v1/files", files=sent, data={"purpose": "batch"})["id"]

    def ask(self, http: httpx.Client) -> None:
        asked = {"input_file_id": self.file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
        self.send(http, "POST", "/v1/batches", json=asked, headers=self.key)

    def check(self) -> None:
        (job,) = self.world.jobs()
        assert ids.public("batch_", job) == self.found["id"]
        self.world.assert_done(job, 3)


class CancelBatch(CreateBatch):
    def prepare(self) -> None:
        super().prepare()
        super().ask(self.world.api.http)
        self.batch = self.found["id"]
        self.world.run_tasks("validate")

    def ask(self, http: httpx.Client) -> None:
        self.send(http, "POST", f"/v1/batches/{self.batch}/cancel")

    def check(self) -> None:
        (job,) = self.world.jobs()
        assert self.world.counts(job) == {"cancelled": 3}


class Resume(Request):
    """A job that is paused."""

    def prepare(self) -> None:
        self.job = factories.submit(self.world.database, self.world.settings, mugs(IMAGES))
        with self.world.database.begin(TENANT) as connection:
            lifecycle.pause(connection, TENANT, self.job, True)
        self.world.render()
        assert self.world.counts(self.job) == {"queued": IMAGES}

    def ask(self, http: httpx.Client) -> None:
        self.send(http, "POST", f"/v1/jobs/{ids.public_job(self.job)}/resume", (*ACCEPTED, 409))

    def check(self) -> None:
        self.world.assert_done(self.job, IMAGES)


class ActOnMany(Request):
    """The deletion of three jobs."""

    def prepare(self) -> None:
        head = {"labels": {"of": str(self.world.mark)}}
        for _ in range(3):
            factories.submit(self.world.database, self.world.settings, mugs(1), head=head)
        self.world.carry_on(self.world.have_ended)

    def ask(self, http: httpx.Client) -> None:
        asked = {"action": "delete", "label": f"of:{self.world.mark}"}
        self.send(http, "POST", "/v1/jobs/actions", json=asked, headers=self.key)

    def is_done(self) -> bool:
        return not self.world.jobs()

    def check(self) -> None:
        acts = self.world.rows("SELECT id FROM bulk_acts WHERE id > :mark", mark=self.world.mark)
        assert [bulk.public_id(act.id) for act in acts] == [self.found["id"]]


class OrderExport(Request):
    def prepare(self) -> None:
        self.job = factories.submit(self.world.database, self.world.settings, mugs(3))
        self.world.carry_on(self.world.have_ended)

    def ask(self, http: httpx.Client) -> None:
        asked = {"format": "webdataset"}
        self.send(http, "POST", f"/v1/jobs/{ids.public_job(self.job)}/exports", json=asked, headers=self.key)

    def is_done(self) -> bool:
        return all(exporting.read(self.world.database, one).state == "completed" for one in self._exports())  # type: ignore[union-attr]

    def check(self) -> None:
        assert [ids.public("export_", one) for one in self._exports()] == [self.found["id"]]

    def _exports(self) -> list[int]:
        return [row.id for row in self.world.rows("SELECT id FROM exports WHERE job_id = :job", job=self.job)]


class BeginRun(Request, FirstRun):
    """A run of a catalogue that has none."""

    def prepare(self) -> None:
        self._make_shop()
        cataloguing.upload(self.world.database, self.world.store, self.shop, FIRST)

    def ask(self, http: httpx.Client) -> None:
        self.send(http, "POST", f"/v1/catalogues/{self.shop.name}/runs", json={}, headers=self.key)

    def check(self) -> None:
        begun = self.world.rows("SELECT id FROM catalogue_runs WHERE catalogue_id = :id", id=self.shop.id)
        assert [runs.public_id(run.id) for run in begun] == [self.found["id"]]
        super().check()


class Redraw(Request, SecondRun):
    """A picture of a review."""

    def definition(self) -> dict[str, Any]:
        return {"publish": {"review": "changed"}}

    def change(self, item: str, title: str, kind: str) -> Change:
        found = super().change(item, title, kind)
        return replace(found, request=(found.request or {}) | {"num_inference_steps": 20})

    def prepare(self) -> None:
        super().prepare()
        self.world.run_tasks("catalogue")
        assert cataloguing.read(self.world.database, self.run).state == "reviewing"

    def ask(self, http: httpx.Client) -> None:
        path = f"/v1/catalogues/{self.shop.name}/runs/{runs.public_id(self.run)}/redraw"
        self.send(http, "POST", path, json={"indexes": [0]}, headers=self.key)

    def is_done(self) -> bool:
        return self.world.have_ended()

    def check(self) -> None:
        *_, again = self.world.jobs()
        assert cataloguing.read(self.world.database, self.run).redraw_jobs == [again]
        assert ids.public_job(again) == self.found["id"]
        self.world.assert_done(again, 1)
        self.end()


class RunSchedule(Request):
    def prepare(self) -> None:
        self.name = f"nightly-{self.world.mark}"
        scheduling.put(self.world.database, self.world.settings, self.name)

    def ask(self, http: httpx.Client) -> None:
        self.send(http, "POST", f"/v1/schedules/{self.name}/run", headers=self.key)

    def is_done(self) -> bool:
        states = scheduling.states(self.world.database, self.name)
        return set(states) == {"completed"} and self.world.have_ended()

    def check(self) -> None:
        (run,) = scheduling.found(self.world.database, self.name)
        (job,) = self.world.jobs()
        assert run.job_id == job
        self.send(self.world.api.http, "DELETE", f"/v1/schedules/{self.name}")
