"""What waits for a scheduler that reaches a crash point."""

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from services.core.exports import exports
from services.core.model import ids
from services.core.retention import due, rules
from tests import collecting, exporting, factories, receiving, scheduling
from tests.crash_requests import ACCEPTED, Delete
from tests.crash_scenarios import IMAGES, Scenario
from tests.crash_world import World
from tests.factories import TENANT
from tests.render_loops import mugs


class Task(Scenario):
    program = "scheduler"

    def finished_job(self) -> int:
        job = factories.submit(self.world.database, self.world.settings, mugs(IMAGES))
        self.world.carry_on(self.world.have_ended)
        return job

    def send(self, method: str, path: str, **how: Any) -> Any:
        answer = self.world.api.http.request(method, path, **how)
        assert answer.status_code in ACCEPTED, answer.text
        return answer.json()


class Export(Task):
    def prepare(self) -> None:
        self.export = exporting.order(self.world.database, self.finished_job(), "webdataset")

    def is_done(self) -> bool:
        found = exporting.read(self.world.database, self.export)
        return found is not None and found.state == "completed"

    def check(self) -> None:
        files = self.world.rows(
            "SELECT object_key, sha256, bytes, images FROM export_files WHERE export_id = :id", id=self.export
        )
        assert sum(file.images for file in files) == IMAGES
        for file in files:
            data = self.world.store.read(file.object_key)
            assert (len(data), hashlib.sha256(data).digest()) == (file.bytes, bytes(file.sha256))


class DropExport(Export):
    def prepare(self) -> None:
        super().prepare()
        self.world.carry_on(lambda: Export.is_done(self))
        found = exporting.read(self.world.database, self.export)
        assert found is not None
        self.folder = found.folder
        with self.world.database.begin(TENANT) as connection:
            exports.remove(connection, TENANT, self.export)

    def is_done(self) -> bool:
        return exporting.read(self.world.database, self.export) is None

    def check(self) -> None:
        assert self.world.objects(self.folder) == []
        assert self.world.rows("SELECT FROM export_files WHERE export_id = :id", id=self.export) == []


class Dataset(Task):
    def prepare(self) -> None:
        self.name = f"mugs-{self.world.mark}"
        collecting.make(self.world.database, self.finished_job(), name=self.name)
        self.number = collecting.order(self.world.database, name=self.name)

    def is_done(self) -> bool:
        return collecting.version(self.world.database, self.number, self.name).state == "completed"

    def check(self) -> None:
        files = collecting.files(self.world.database, self.number, self.name).values()
        for file in files:
            data = self.world.store.read(file.object_key)
            assert (len(data), hashlib.sha256(data).digest()) == (file.bytes, file.sha256)
        version = collecting.version(self.world.database, self.number, self.name)
        assert sum(file.images for file in files) == IMAGES == version.plan.counted.images


class DeleteJob(Delete, Task):
    program = "scheduler"

    def prepare(self) -> None:
        super().prepare()
        self.ask(self.world.api.http)


class DropUpload(Task):
    def prepare(self) -> None:
        asked = {"purpose": "batch", "filename": "a.jsonl", "bytes": 11, "mime_type": "application/jsonl"}
        self.upload = self.send("POST", "/v1/uploads", json=asked)["id"]
        for part in (b"first", b"second"):
            self.send("POST", f"/v1/uploads/{self.upload}/parts", files={"data": ("part", part)})
        assert len(self.world.objects(self.upload)) == 2
        self.send("POST", f"/v1/uploads/{self.upload}/cancel")

    def is_done(self) -> bool:
        number = ids.parse("upload_", self.upload, "upload")
        return not self.world.rows("SELECT FROM upload_parts WHERE upload_id = :id", id=number)

    def check(self) -> None:
        assert self.world.objects(self.upload) == []


class DropFile(Task):
    def prepare(self) -> None:
        sent = {"file": ("a.jsonl", b"{}\n")}
        self.file = self.send("POST", "/v1/files", files=sent, data={"purpose": "batch"})["id"]
        self.send("DELETE", f"/v1/files/{self.file}")

    def is_done(self) -> bool:
        return not self.world.rows("SELECT FROM files WHERE id = :id", id=ids.parse("file-", self.file, "file"))

    def check(self) -> None:
        assert self.world.objects(self.file) == []


class DropOld(Task):
    """A job whose pictures are kept for no day."""

    def prepare(self) -> None:
        self.job = self.finished_job()
        with self.world.database.begin_system() as connection:
            late = text("UPDATE jobs SET finished_at = now() - interval '10 days' WHERE id = :id")
            connection.execute(late, {"id": self.job})
        self._keep_for(7)
        with self.world.database.begin_system() as connection:
            due.find(connection)
        assert self._left()

    def is_done(self) -> bool:
        return not self._left()

    def check(self) -> None:
        self._keep_for(None)
        assert self.world.objects(f"/{ids.public_job(self.job)}/") == []
        self.world.assert_done(self.job, IMAGES)

    def _keep_for(self, days: int | None) -> None:
        with self.world.database.begin(TENANT) as connection:
            rules.change(connection, TENANT, {"objects": days})

    def _left(self) -> list[Any]:
        return self.world.rows("SELECT FROM retention_work WHERE job_id = :id", id=self.job)


class Deliver(Task):
    """Two messages to one receiver."""

    def __init__(self, world: World, *, again: int, **how: Any) -> None:
        """`again`: which message may arrive twice, 0 or 1. The other one arrives once."""
        super().__init__(world, **how)
        self.again = again
        self._receiving = receiving.receiving()

    def prepare(self) -> None:
        self.receiver = self._receiving.__enter__()
        receiving.derive(self.world.database)  # what has happened before is not for it
        self.endpoint, _ = receiving.make(
            self.world.database, self.world.settings, self.receiver.url, events=["export.completed"]
        )
        for number in range(2):
            receiving.happen(self.world.database, subject=f"export/{number}")

    def is_done(self) -> bool:
        found = receiving.listed(self.world.database, self.endpoint)
        return len(found) == 2 and all(one.state == "delivered" for one in found)

    def check(self) -> None:
        came = list(Counter(headers["webhook-id"] for headers, _ in self.receiver.came).values())  # in order
        assert len(came) == 2
        assert (came[self.again] <= 2, came[1 - self.again]) == (True, 1)
        self._receiving.__exit__(None, None, None)
        self.world.api.http.delete(f"/v1/webhooks/{ids.public('whe_', self.endpoint.id)}")


class Fire(Task):
    """A run that is due while the one before goes on, which it cancels."""

    def prepare(self) -> None:
        self.name = f"nightly-{self.world.mark}"
        database = self.world.database
        scheduling.put(database, self.world.settings, self.name, overlap="cancel")
        self.now = datetime.now(UTC).replace(hour=1, minute=0, second=0, microsecond=0)
        for days in (2, 1):
            scheduling.first_at(database, self.now - timedelta(days=days), self.name)
            scheduling.fire(database, self.now - timedelta(days=days))
            if days == 2:
                self.world.run_tasks("schedule")

    def is_done(self) -> bool:
        return scheduling.states(self.world.database, self.name)[-1] == "completed" and self.world.have_ended()

    def check(self) -> None:
        first, second = self.world.jobs()
        assert self.world.counts(first) == {"cancelled": 1}
        self.world.assert_done(second, 1)
        self.send("DELETE", f"/v1/schedules/{self.name}")


class DeleteMany(Task):
    """Three jobs, by one act."""

    def prepare(self) -> None:
        asked = {"labels": {"of": str(self.world.mark)}}
        database, settings = self.world.database, self.world.settings
        self.deleted = [factories.submit(database, settings, mugs(2), head=asked) for _ in range(3)]
        self.world.carry_on(self.world.have_ended)
        body = {"action": "delete", "label": f"of:{self.world.mark}"}
        self.act = self.send("POST", "/v1/jobs/actions", json=body)["id"]

    def is_done(self) -> bool:
        return self._act()["status"] == "completed" and not self.world.jobs()

    def check(self) -> None:
        found = self._act()
        assert (found["done"], found["lost"]) == (3, 0)
        acts = self.world.rows("SELECT subject FROM events WHERE kind = 'job.deleted'")
        mine = {f"job/{job}" for job in self.deleted}
        assert Counter(row.subject for row in acts if row.subject in mine) == dict.fromkeys(mine, 1)

    def _act(self) -> Any:
        return self.send("GET", f"/v1/jobs/actions/{self.act}")


class Batch(Task):
    """A batch, from its file."""

    def prepare(self) -> None:
        body = {"prompt": "a mug", "size": "64x64"}
        lines = [
            json.dumps({"custom_id": name, "method": "POST", "url": "/v1/images/generations", "body": body})
            for name in "abc"
        ]
        sent = {"file": ("a.jsonl", "\n".join(lines).encode())}
        file = self.send("POST", "/v1/files", files=sent, data={"purpose": "batch"})["id"]
        asked = {"input_file_id": file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
        self.batch = self.send("POST", "/v1/batches", json=asked)["id"]

    def check(self) -> None:
        (job,) = self.world.jobs()
        self.world.assert_done(job, 3)
        output = self.send("GET", f"/v1/batches/{self.batch}")["output_file_id"]
        content = self.world.api.http.get(f"/v1/files/{output}/content").text
        assert [json.loads(line)["custom_id"] for line in content.splitlines()] == ["a", "b", "c"]


class EndBatch(Batch):
    """A batch whose images are done."""

    def prepare(self) -> None:
        super().prepare()
        self.world.run_tasks("validate")
        self.world.render()
