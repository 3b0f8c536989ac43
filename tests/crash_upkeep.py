"""What waits for a scheduler that reaches a crash point of its upkeep: tenants and datasets that go, what retention and
the storage auditor do."""

from typing import Any

from sqlalchemy import text

from services.core.auditing import audits, mark
from services.core.deletion import tenants as deletions
from services.core.model import ids
from services.core.model.tenant_requests import TenantRequest
from services.core.retention import rules
from services.core.storage import keys
from services.core.tenants import tenants
from tests import collecting, factories
from tests.crash_tasks import Dataset, DropOld, Task
from tests.factories import TENANT
from tests.render_loops import mugs


class DeleteTenant(Task):
    """A tenant whose job is deleted. The rest of its rows, and an object that none names, are left."""

    def prepare(self) -> None:
        self.name = f"agency-{self.world.mark}"
        with self.world.database.begin_system() as connection:
            self.tenant = tenants.create(connection, TenantRequest(name=self.name)).id
        factories.submit(self.world.database, self.world.settings, mugs(2), tenant=self.tenant)
        self.world.carry_on(self.world.have_ended)
        folder = keys.tenant_folders(self.tenant)[0]
        self.world.store.put(self.world.store.key(f"{folder}stray"), b"a", "text/plain", {}, claim_id=1)
        with self.world.database.begin_system() as connection:
            deletions.delete(connection, self.name, self.name)
        self.world.run_tasks("delete-tenant")
        self.world.run_tasks("delete-job")
        assert self._objects()

    def is_done(self) -> bool:
        with self.world.database.begin_system() as connection:
            return deletions.show(connection, self.name).finished_at is not None

    def check(self) -> None:
        with self.world.database.begin_system() as connection:
            assert deletions.show(connection, self.name).remains == {}
        assert self._objects() == []
        assert self.world.rows("SELECT FROM tenants WHERE id = :id", id=self.tenant) == []
        kinds = self.world.rows("SELECT kind FROM events WHERE subject = :of", of=f"tenant/{self.tenant}")
        assert [row.kind for row in kinds].count("tenant.deleted") == 1

    def _objects(self) -> list[str]:
        return self.world.objects(f"/{self.tenant}/")


class Erase(DropOld):
    """A job whose prompts are kept for no day."""

    def check(self) -> None:
        self._keep_for(None)
        prompts = self.world.rows("SELECT prompt FROM payloads WHERE job_id = :job", job=self.job)
        assert {row.prompt for row in prompts} == {""}

    def _keep_for(self, days: int | None) -> None:
        with self.world.database.begin(TENANT) as connection:
            rules.change(connection, TENANT, {"payloads": days})


class DropDataset(Dataset):
    """A dataset that was deleted with its version."""

    def prepare(self) -> None:
        super().prepare()
        self.world.carry_on(lambda: Dataset.is_done(self))
        self.folder = collecting.version(self.world.database, self.number, self.name).dataset.folder()
        assert self._objects()
        self.drop()

    def drop(self) -> None:
        self.send("DELETE", f"/v1/datasets/{self.name}")

    def is_done(self) -> bool:
        return not self.world.rows("SELECT FROM datasets WHERE name = :name", name=self.name)

    def check(self) -> None:
        assert self._objects() == []

    def _objects(self) -> list[str]:
        return list(self.world.store.under(self.folder))


class DropVersion(DropDataset):
    """A dataset's version that was deleted, and the dataset was not."""

    def drop(self) -> None:
        self.send("DELETE", f"/v1/datasets/{self.name}/versions/{self.number}")

    def is_done(self) -> bool:
        rows = self.world.rows(
            "SELECT is_stored FROM dataset_versions JOIN datasets ON datasets.id = dataset_id WHERE name = :name",
            name=self.name,
        )
        return [row.is_stored for row in rows] == [False]


class Mark(Task):
    """The mark of store and database, which is due."""

    def prepare(self) -> None:
        self.world.run_tasks("storage-mark")
        with self.world.database.begin_system() as connection:
            connection.execute(text("UPDATE storage_mark SET looked_at = NULL"))

    def is_done(self) -> bool:
        return not self.world.rows("SELECT FROM storage_mark WHERE looked_at IS NULL")

    def check(self) -> None:
        assert mark.refusal(self.world.database, self.world.store) is None
        assert [row.refusal for row in self.world.rows("SELECT refusal FROM storage_mark")] == [None]


class DropOrphan(Mark):
    """An object that no record names, known for longer than orphans are kept."""

    def prepare(self) -> None:
        super().prepare()
        self.world.run_tasks("storage-mark")
        name = keys.image_name(TENANT, ids.public_job(ids.new()), 0, "f" * 64, "png")
        self.key = self.world.store.key(name)
        self.world.store.put(self.key, b"a", "image/png", {}, claim_id=1)
        with self.world.database.begin_system() as connection:
            self.audit = audits.request(connection, 0.0).id
            audits.advance(connection, self.audit, step="orphans")
            audits.see(connection, self.audit, [self.key])
            connection.execute(text("UPDATE storage_orphans SET first_seen_at = now() - interval '8 days'"))

    def is_done(self) -> bool:
        with self.world.database.begin_system() as connection:
            return audits.show(connection, self.audit).step == "done"

    def check(self) -> None:
        super().check()
        assert self.world.rows("SELECT FROM storage_orphans") == []
        assert self.key not in self.world.objects(self.key)
        assert self._audit().refusal is None

    def _audit(self) -> Any:
        with self.world.database.begin_system() as connection:
            return audits.show(connection, self.audit)
