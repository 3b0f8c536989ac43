"""Acts on every job that matches: each exactly once, by whoever asked, whatever dies on the way."""

import json
import time
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from presswork_client import Client
from services.cli import bulk as command
from services.cli.app import app
from services.cli.choosing import Chosen
from services.core.bulk import bulk, matching, task
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.events import numbering
from services.core.jobs import lifecycle
from services.core.model import ids
from services.core.model.scopes import Scope
from services.core.model.specs import FailedImage
from services.core.model.states import JobState
from services.core.notify import Notifier
from services.core.queue import job_states
from services.core.tenants import api_keys
from tests import factories, programs
from tests.factories import TENANT
from tests.web import Api


@pytest.fixture
def scheduler(api: Api) -> Any:
    database = Database(programs.address("scheduler", api.settings.database_url), application="presswork scheduler")
    yield database
    database.close()


def work(api: Api, scheduler: Database) -> None:
    """What schedulers do until no act is pending."""
    notifier = Notifier(api.settings.redis_url)
    for _ in range(100):
        with scheduler.begin_system() as connection:
            pending = bulk.pending(connection)
        if not pending:
            return
        for item in pending:
            lease = Lease(scheduler, f"bulk/{item.id}", "tests")
            assert lease.take()
            task.run(api.settings, notifier, item.id, lease)
            lease.release()
    raise AssertionError("it does not end")


def submit(api: Api, jobs: int, images: int = 2, **labels: str) -> list[str]:
    body = [{"prompt": "a mug", "n": images}]
    return [str(api.submit(*body, labels=labels)["id"]) for _ in range(jobs)]


def render(api: Api, *, failed: int = 0) -> None:
    """Everything that waits; the first `failed` images of each claim fail."""
    while (claim := factories.claim(api.database, 16)) is not None:
        wrong = [FailedImage(one.job_id, one.index, "error", "It broke.") for one in claim.images if one.index < failed]
        stored = [one for one in factories.stored(claim, b"x") if one.index >= failed]
        factories.settle(api.database, claim, stored=stored, failed=wrong)
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)


def ask(api: Api, action: str, **asked: Any) -> dict[str, Any]:
    preview = api.http.post("/v1/jobs/actions/preview", json={"action": action, **asked})
    answer = api.http.post("/v1/jobs/actions", json={"action": action, **asked})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    assert preview.json() == {name: found[name] for name in ("jobs", "images", "is_all")}
    return found


def state(api: Api, found: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = api.http.get(f"/v1/jobs/actions/{found['id']}").json()
    return shown


def job(api: Api, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = api.http.get(f"/v1/jobs/{name}").json()
    return shown


def test_a_cancel_reaches_all_that_match_and_no_other_and_each_event_names_who_asked(
    api: Api, scheduler: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "LOOKED_AT", 3)
    monkeypatch.setattr(task, "AT_ONCE", 2)
    nightly, others = submit(api, 7, run="nightly"), submit(api, 3, run="other")
    found = ask(api, "cancel", label="run:nightly")
    assert (found["jobs"], found["images"], found["is_all"], found["status"]) == (7, 14, True, "running")
    later = submit(api, 1, run="nightly")
    work(api, scheduler)
    assert {job(api, name)["status"] for name in nightly} == {"cancelling"}
    assert {job(api, name)["status"] for name in others + later} == {"queued"}
    shown = state(api, found)
    assert (shown["status"], shown["done"], shown["lost"]) == ("completed", 7, 0)
    assert shown["finished_at"] is not None
    with api.database.begin_system() as connection:
        numbering.number(connection)
    acts = api.http.get("/v1/actions?verb=job.cancel_requested").json()["data"]
    assert sorted(one["subject"] for one in acts) == sorted(nightly)
    assert {one["actor"] for one in acts} == {f"key/{api_keys.id_of(api.key)}"}
    assert api.http.get("/v1/jobs/actions").json()["data"] == [shown]


@pytest.mark.parametrize(
    ("asked", "reached"),
    [
        ({"of_priority": "high"}, {1}),
        ({"of_priority": "low"}, set()),
        ({"model": "simulated"}, {0, 1}),
        ({"model": "another"}, set()),
        ({"submitted_by": "nobody"}, set()),
        ({"until": "2026-01-01"}, set()),
        ({"since": "2026-01-01", "of_priority": "normal"}, {0}),
        ({"since": "2h"}, {0, 1}),
        ({"since": "2h", "until": "30m"}, set()),
    ],
)
def test_an_act_reaches_what_the_list_shows_and_no_more(
    api: Api, scheduler: Database, asked: dict[str, str], reached: set[int]
) -> None:
    jobs = [str(api.submit({"prompt": "a mug"}, priority=word)["id"]) for word in ("normal", "high")]
    counted = api.http.post("/v1/jobs/actions/preview", json={"action": "pause", **asked}).json()
    assert counted["jobs"] == len(reached)
    assert api.http.post("/v1/jobs/actions", json={"action": "pause", **asked}).status_code == 202
    work(api, scheduler)
    paused = {number for number, job in enumerate(jobs) if api.http.get(f"/v1/jobs/{job}").json()["paused"]}
    assert paused == reached


def test_all_but_what_is_running_is_cancelled(api: Api, scheduler: Database) -> None:
    running, waiting = submit(api, 1, images=1), submit(api, 2)
    claim = factories.claim(api.database, 1)
    assert claim is not None and ids.public_job(claim.images[0].job_id) == running[0]
    with api.database.begin_system() as connection:
        job_states.start(connection, [claim.images[0].job_id])
    found = ask(api, "cancel", except_running=True)
    work(api, scheduler)
    assert state(api, found)["done"] == 2
    assert [job(api, name)["status"] for name in running + waiting] == ["in_progress", "cancelling", "cancelling"]


def test_every_verb_does_what_it_does_to_one_job(api: Api, scheduler: Database) -> None:
    ended = submit(api, 2)
    render(api, failed=1)
    waiting = submit(api, 3, images=1)
    for action, options, (jobs, images), field, value in (
        ("prioritize", {"priority": "high"}, (3, 3), "priority", "high"),
        ("pause", {"text": "e"}, (0, 0), "paused", False),
        ("pause", {}, (3, 3), "paused", True),
        ("pause", {}, (0, 0), "paused", True),
        ("resume", {}, (3, 3), "paused", False),
    ):
        found = ask(api, action, **options)
        assert (found["jobs"], found["images"]) == (jobs, images), action
        work(api, scheduler)
        assert {job(api, name)[field] for name in waiting} == {value}, action
    ask(api, "retry", status=["completed"])
    work(api, scheduler)
    retries = [one for one in api.http.get("/v1/jobs").json()["data"] if one["retry_of"]]
    assert sorted(one["retry_of"] for one in retries) == sorted(ended)
    found = ask(api, "delete")
    assert (found["jobs"], found["images"]) == (2, 4)
    work(api, scheduler)
    assert {api.http.get(f"/v1/jobs/{name}").status_code for name in ended} == {404}
    assert {job(api, name)["status"] for name in waiting} == {"queued"}


def test_a_job_that_lost_the_race_is_reported_and_the_others_are_done(
    api: Api, scheduler: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = submit(api, 3)
    found = ask(api, "pause")
    real = matching.following

    def then_one_is_cancelled(*given: Any, **more: Any) -> matching.Some:
        some = real(*given, **more)
        if some.ids:
            api.http.post(f"/v1/jobs/{jobs[1]}/cancel")
        return some

    monkeypatch.setattr(matching, "following", then_one_is_cancelled)
    work(api, scheduler)
    shown = state(api, found)
    assert (shown["done"], shown["lost"], shown["status"]) == (2, 1, "completed")
    [reason] = shown["reasons"]
    assert reason["job_id"] == jobs[1] and reason["message"].startswith("The job is cancel")


def test_an_act_that_was_cut_off_goes_on_where_it_was(
    api: Api, scheduler: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries make new jobs: one done twice would show."""
    ended = submit(api, 4)
    render(api, failed=1)
    found = ask(api, "retry")
    monkeypatch.setattr(task, "SLICE_SECONDS", -1.0)
    notifier = Notifier(api.settings.redis_url)
    lease = Lease(scheduler, "bulk/1", "tests")
    assert lease.take()
    task.run(api.settings, notifier, bulk.parse_id(found["id"]), lease)  # which has no time for one
    assert state(api, found)["done"] == 0
    monkeypatch.setattr(task, "SLICE_SECONDS", 10.0)
    real, calls = task._one, count(1)

    def die(*given: Any) -> list[str]:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(task, "_one", die)
    with pytest.raises(KeyboardInterrupt):
        work(api, scheduler)
    monkeypatch.undo()
    assert state(api, found)["done"] == 2
    work(api, scheduler)
    assert (state(api, found)["done"], state(api, found)["status"]) == (4, "completed")
    retries = [one["retry_of"] for one in api.http.get("/v1/jobs").json()["data"] if one["retry_of"]]
    assert sorted(retries) == sorted(ended)


def test_an_act_that_is_stopped_leaves_the_others_as_they_are(api: Api, scheduler: Database) -> None:
    jobs = submit(api, 2)
    found = ask(api, "cancel")
    stopped = api.http.post(f"/v1/jobs/actions/{found['id']}/stop")
    assert stopped.json()["status"] == "stopped"
    assert api.http.post(f"/v1/jobs/actions/{found['id']}/stop").json() == stopped.json()
    work(api, scheduler)
    assert {job(api, name)["status"] for name in jobs} == {"queued"}


def test_acts_that_ended_long_ago_are_forgotten(api: Api, scheduler: Database) -> None:
    submit(api, 1)
    old, running, young = (
        ids.parse("bulk_", str(ask(api, verb)["id"]), "act") for verb in ("pause", "cancel", "resume")
    )
    for number in (old, young):
        api.http.post(f"/v1/jobs/actions/{bulk.public_id(number)}/stop")
    with api.database.begin_system() as connection:
        for number, days in ((old, 91), (running, 91), (young, 89)):
            values = {"id": number, "aged": number - (days * 86_400_000 << ids.RANDOM_BITS), "days": days}
            connection.execute(
                text("""UPDATE bulk_acts SET id = :aged, created_at = now() - make_interval(days => :days),
                finished_at = finished_at - make_interval(days => :days) WHERE id = :id"""),
                values,
            )
    with scheduler.begin_system() as connection:
        assert bulk.forget(connection, 90) == 1
        assert bulk.forget(connection, 90) == 0
    left = api.http.get("/v1/jobs/actions").json()["data"]
    assert sorted((one["action"], one["status"]) for one in left) == [("cancel", "running"), ("resume", "stopped")]


def test_what_makes_no_sense_is_refused(api: Api) -> None:
    bodies: list[tuple[dict[str, Any], str]] = [
        ({}, "action"),
        ({"action": "explode"}, "action"),
        ({"action": "cancel", "status": []}, "status"),
        ({"action": "cancel", "status": ["gone"]}, "status.0"),
        ({"action": "cancel", "label": "nightly"}, "label"),
        ({"action": "cancel", "priority": "high"}, "priority"),
        ({"action": "prioritize"}, "priority"),
        ({"action": "pause", "except_running": True}, "except_running"),
    ]
    for body, param in bodies:
        for path in ("/v1/jobs/actions", "/v1/jobs/actions/preview"):
            answer = api.http.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), answer.text


def test_a_retry_needs_the_scope_that_makes_work(api: Api) -> None:
    with api.database.begin_system() as connection:
        key = api_keys.issue_key(connection, api.settings.secret, TENANT, "some", given=[Scope.OPERATE])
    headers = {"Authorization": f"Bearer {key}"}
    assert api.http.post("/v1/jobs/actions", json={"action": "retry"}, headers=headers).status_code == 403
    assert api.http.post("/v1/jobs/actions", json={"action": "cancel"}, headers=headers).status_code == 202


def asleep(sleep: Callable[[float], None]) -> SimpleNamespace:
    """The command's `time` with another `sleep`: the server's threads, in this process, keep theirs."""
    return SimpleNamespace(sleep=sleep, monotonic=time.monotonic)


@pytest.fixture
def run(api: Api, scheduler: Database, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command; a scheduler works while it waits."""
    for name, value in {"PRESSWORK_URL": api.url, "PRESSWORK_API_KEY": api.key}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "time", asleep(lambda _: work(api, scheduler)))
    return lambda *words, answer="": CliRunner().invoke(app, words, input=answer)


def test_the_command_says_how_many_asks_and_reports(api: Api, run: Any) -> None:
    jobs = submit(api, 2, run="nightly")
    refused = run("cancel", "--label", "run=nightly", answer="n\n")
    assert refused.exit_code == 1 and "cancels 2 jobs: 4 images not done yet" in refused.output
    dry = run("cancel", "--label", "run=nightly", "--dry-run", "--json")
    assert (dry.exit_code, json.loads(dry.stdout)) == (0, {"jobs": 2, "images": 4, "is_all": True})
    assert run("cancel", "--label", "run=nightly", answer="").exit_code == 2
    assert {job(api, name)["status"] for name in jobs} == {"queued"}
    assert "paused 2 jobs" in run("pause", "--all", "--yes").output
    assert "changed 2 jobs" in run("prioritize", "high", "--text", "NIGHT", "--yes").output
    assert {(job(api, name)["priority"], job(api, name)["paused"]) for name in jobs} == {("high", True)}
    assert run("prioritize", "low", jobs[0]).exit_code == 0 and job(api, jobs[0])["priority"] == "low"
    done = run("cancel", "--status", "queued", "--label", "run=nightly", "--yes", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["done"] == 2
    assert {job(api, name)["status"] for name in jobs} == {"cancelling"}
    assert "no job like that" in run("resume", "--all", "--yes").output


def test_the_command_retries_and_deletes_all_that_match(api: Api, run: Any) -> None:
    jobs = submit(api, 2, run="nightly")
    render(api, failed=1)
    retried = run("retry", "--label", "run=nightly", answer="y\n")
    assert (retried.exit_code, "retries 2 jobs: 2 images to be rendered again" in retried.output) == (0, True)
    assert "retried 2 jobs" in retried.output
    gone = run("rm", "--label", "run=nightly", "--yes")
    assert gone.exit_code == 0 and "deletes 2 jobs: 4 images" in gone.output and "deleted 2 jobs" in gone.output
    left = [one["id"] for one in api.http.get("/v1/jobs").json()["data"]]
    assert len(left) == 2 and not set(left) & set(jobs)  # those that retry have not ended
    [(deletion, retry)] = [[one["id"] for one in api.http.get("/v1/jobs/actions").json()["data"]]]
    listed = run("bulk", "ls").output
    assert deletion in listed and retry in listed
    assert json.loads(run("bulk", "ls", "--json", "--limit", "1").stdout)["id"] == deletion


def test_an_interrupted_command_says_that_it_goes_on_and_how_to_stop_it(
    api: Api, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(api, 2)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(command, "time", asleep(interrupted))
        ended = run("cancel", "--all", "--yes")
    [act] = api.http.get("/v1/jobs/actions").json()["data"]
    assert (ended.exit_code, act["status"]) == (130, "running")
    assert f"`presswork bulk watch {act['id']}` follows it" in ended.output
    assert f"stopped {act['id']} after 0 of 2 jobs" in run("bulk", "stop", act["id"]).output
    watched = run("bulk", "watch", act["id"])
    assert (watched.exit_code, "stopped: cancelled 0 jobs of 2" in watched.output) == (5, True)
    assert f"{act['id']} had ended" not in run("bulk", "stop", act["id"]).output
    assert run("bulk", "stop", "bulk_0000000000000").exit_code == 4


def test_the_options_of_the_command_are_the_filter_of_the_server(api: Api) -> None:
    chosen = Chosen(
        False, [JobState.QUEUED, JobState.FAILED], ["run=a:b"], "night", "simulated", "low", "shop", "2026-11-25",
        "2026-11-26",
    )  # fmt: skip
    wanted = chosen.wanted()
    assert wanted == {
        "status": ["queued", "failed"], "label": "run:a:b", "text": "night", "model": "simulated", "of_priority": "low",
        "submitted_by": "shop", "since": "2026-11-25", "until": "2026-11-26",
    }  # fmt: skip
    assert api.http.post("/v1/jobs/actions/preview", json={"action": "retry", **wanted}).json()["jobs"] == 0


def test_options_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESSWORK_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PRESSWORK_API_KEY", "k")
    for words in (
        "cancel", "retry", "prioritize high", "pause --label a", "resume --label a=b --label b=c", "cancel JOB --all",
        "cancel JOB --except-running", "pause JOB --dry-run", "retry JOB --status failed", "retry --all --watch",
        "retry --all --cause oom", "prioritize urgent --all",
    ):  # fmt: skip
        ended = CliRunner().invoke(app, [*words.replace("JOB", "job_0000000000000").split(), "--yes"])
        assert ended.exit_code == 2, (words, ended.output)


def test_a_request_whose_answer_was_lost_is_sent_again_and_makes_one_act(api: Api, scheduler: Database) -> None:
    submit(api, 2, images=1)
    render(api, failed=1)
    lost: list[httpx.Response] = []

    def lose(answer: httpx.Response) -> None:
        if answer.request.url.path == "/v1/jobs/actions" and not lost:
            lost.append(answer)
            raise httpx.ReadError("the answer is lost", request=answer.request)

    with Client(api.url, api.key) as client:
        client._transport.http.event_hooks["response"].append(lose)
        found = client.act_on_jobs("retry", status=["failed"])
    assert len(lost) == 1 and lost[0].status_code == 202
    assert [one["id"] for one in api.http.get("/v1/jobs/actions").json()["data"]] == [found["id"]]
    work(api, scheduler)
    assert len(api.http.get("/v1/jobs").json()["data"]) == 4


def test_an_idempotency_key_names_one_act(api: Api) -> None:
    submit(api, 1)
    headers = {"Idempotency-Key": "night"}
    first, again = (api.http.post("/v1/jobs/actions", json={"action": "pause"}, headers=headers) for _ in range(2))
    assert (again.status_code, again.json()) == (202, first.json())
    assert "Idempotent-Replayed" not in first.headers and again.headers["Idempotent-Replayed"] == "true"
    other = api.http.post("/v1/jobs/actions", json={"action": "cancel"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    with api.database.begin_system() as connection:
        connection.execute(text("DELETE FROM bulk_acts"))
    gone = api.http.post("/v1/jobs/actions", json={"action": "pause"}, headers=headers)
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "idempotency_key_gone")
