"""`presswork storage`: an audit is asked for, waited for and shown, and a restore is accepted."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli import storage
from services.cli.app import app
from services.core.db.database import Database
from services.core.settings import Settings
from services.core.storage import installation
from services.core.storage.s3 import S3Store
from tests import factories
from tests.integration.test_storage_audit import a_job, age, orphans, own, put
from tests.rendering import scheduling

__all__ = ["own"]  # a fixture


@pytest.fixture
def command(stack: Any, settings: Settings, own: S3Store, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    for name, value in {**stack.values, "DATABASE_URL": settings.database_url, "PRESSWORK_PREFIX": own.prefix}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "_LOOK_SECONDS", 0.05)
    return lambda *arguments: CliRunner().invoke(app, ["storage", *arguments])


def test_an_audit_is_waited_for_shown_and_ends_with_what_it_found(
    command: Callable[..., Any],
    database: Database,
    settings: Settings,
    own: S3Store,
) -> None:
    nothing = command("show")
    assert nothing.exit_code == 4 and "not audited yet" in nothing.output
    objects = a_job(database, settings, own, 3)
    for key in orphans(own, 2):
        put(own, key)
    own.drop(objects[0])
    begun = command("audit", "--no-wait")
    assert begun.exit_code == 0 and "records, requested by" in begun.output, begun.output
    with scheduling(dataclasses.replace(settings, prefix=own.prefix), own):
        done = command("audit", "--share", "1", "--json")
    assert done.exit_code == 3, done.output
    counts = json.loads(done.stdout)["counts"]
    assert (counts["missing"], counts["orphans"], counts["requeued"], counts["records"]) == (1, 2, 1, 3)
    shown = command("show")
    assert shown.exit_code == 3 and "done, requested by" in shown.output
    assert [line.split() for line in shown.output.splitlines() if line.startswith("missing")] == [["missing", "1"]]


def test_a_restore_is_said_and_accepted(
    command: Callable[..., Any],
    database: Database,
    settings: Settings,
    own: S3Store,
) -> None:
    [stray] = orphans(own, 1)
    put(own, stray)
    with scheduling(dataclasses.replace(settings, prefix=own.prefix), own):
        assert command("audit").exit_code == 0
        age(database)
        with database.begin_system() as connection:
            connection.execute(text("UPDATE storage_mark SET epoch = epoch - 1"))
        refused = command("audit")
        said = refused.output.replace("\n", " ")
        assert refused.exit_code == 3 and "no object was deleted" in said and "--accept-restore" in said, said
        assert stray in set(own.under(""))
        accepted = command("audit", "--accept-restore")
        assert accepted.exit_code == 0 and "have a new mark" in accepted.output, accepted.output
    assert stray not in set(own.under(""))


def test_a_restore_of_another_installation_is_not_said_to_be_accepted(
    command: Callable[..., Any], own: S3Store
) -> None:
    own.drop(own.key(installation.MARKER))
    said = command("audit", "--accept-restore", "--no-wait").output.replace("\n", " ")
    assert "still refused: the marker object" in said and "have a new mark" not in said, said


def test_what_cannot_be_is_refused_in_a_sentence(command: Callable[..., Any], database: Database) -> None:
    factories.register(database)
    wrong = command("audit", "--share", "1.5")
    assert wrong.exit_code == 2 and "equal to 1" in wrong.output
