"""The content policy: what every door says to a prompt with a refused term, and what becomes of the other images."""

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.batches import finalization, validation
from services.core.catalogues import catalogues
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.events import numbering
from services.core.jobs import lifecycle
from services.core.model import ids
from services.core.model.errors import PolicyUnavailable, SettingsError
from services.core.model.specs import FailedImage
from services.core.notify import Notifier
from services.core.policy import judging, policies
from services.core.queue import counters
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import cataloguing, exporting, factories, scheduling, waiting
from tests.web import Api, open_api

TERM = "forbiddenmarker"
BAD = "a ＦＯＲＢＩＤＤＥＮmarker, a mug"
ENDPOINT = "/v1/images/generations"
REASON = "has a term that this tenant's content policy refuses"


@pytest.fixture
def strict(api: Api) -> Api:
    """A server whose tenant refuses a term."""
    assert api.http.post("/v1/policy/terms", json={"term": TERM}).status_code == 201
    return api


def job_of(api: Api, job: str) -> dict[str, object]:
    found: dict[str, object] = api.http.get(f"/v1/jobs/{job}").json()
    return found


def finish(database: Database) -> None:
    with database.begin_system() as connection:
        counters.fold(connection)
        lifecycle.finish(connection)


def test_a_submission_is_refused_as_a_whole_and_each_line_is_named(strict: Api) -> None:
    before = strict.rows()
    images = [{"prompt": "a mug"}, {"prompt": BAD}, {"prompt": "ok", "negative_prompt": TERM}, {"prompt": TERM}]
    answer = strict.http.post("/v1/jobs", json={"images": images})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == ("content_policy", f"images[1].prompt {REASON}.")
    assert [(one["index"], one["code"], one["param"]) for one in error["errors"]] == [
        (1, "content_policy", "images[1].prompt"), (3, "content_policy", "images[3].prompt"),
    ]  # fmt: skip
    lines = b"".join(json.dumps(one).encode() + b"\n" for one in images)
    answer = strict.http.post("/v1/jobs", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert (answer.status_code, [one["line"] for one in answer.json()["error"]["errors"]]) == (422, [2, 4])
    matrix = {"template": "a {what} mug", "vary": {"what": ["red", TERM]}}
    assert strict.http.post("/v1/jobs", json={"matrix": matrix}).json()["error"]["code"] == "content_policy"
    assert strict.rows() == before
    strict.submit({"prompt": "ok", "negative_prompt": TERM})


def test_another_tenant_has_terms_of_its_own(strict: Api) -> None:
    _, key = strict.new_tenant("other")
    with httpx.Client(base_url=strict.url, headers={"Authorization": f"Bearer {key}"}) as other:
        assert other.post("/v1/jobs", json={"images": [{"prompt": BAD}]}).status_code == 202
        assert other.get("/v1/policy/terms").json()["data"] == []


def test_the_stock_client_gets_openais_code(strict: Api) -> None:
    with openai.OpenAI(base_url=f"{strict.url}/v1", api_key=strict.key, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt=BAD)
        assert refused.value.code == "content_policy_violation"
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.edit(image=exporting.picture(0), prompt=BAD)
        assert refused.value.code == "content_policy_violation"


def test_in_a_file_the_refused_lines_fail_and_the_others_are_queued(
    strict: Api, store: S3Store, notifier: Notifier
) -> None:
    prompts = ["a mug", BAD, "a hat"]
    lines = b"".join(
        json.dumps(
            {"custom_id": f"l{n}", "method": "POST", "url": ENDPOINT, "body": {"prompt": prompt, "n": 2}}
        ).encode() + b"\n"
        for n, prompt in enumerate(prompts)
    )  # fmt: skip
    with openai.OpenAI(base_url=f"{strict.url}/v1", api_key=strict.key, max_retries=0) as client:
        file = client.files.create(file=("a.jsonl", lines), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")
        job = ids.parse("batch_", batch.id, "batch")
        lease = Lease(strict.database, f"validate/{job}", "here")
        assert lease.take()
        validation.run(strict.settings, store, notifier, job, lease)
        counts = job_of(strict, ids.public_job(job))["counts"]
        assert counts == {"queued": 4, "rendering": 0, "done": 0, "failed": 2, "cancelled": 0, "total": 6}
        cataloguing.render(strict.database, store)
        finish(strict.database)
        finishing = Lease(strict.database, f"finish/{job}", "here")
        assert finishing.take()
        finalization.run(strict.settings, store, job, finishing)
        done = client.batches.retrieve(batch.id)
        assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 2, 1)
        [line] = client.files.content(done.error_file_id).text.splitlines()
    found = json.loads(line)
    assert (found["custom_id"], found["error"]["code"]) == ("l1", "content_policy_violation")
    assert (found["response"]["status_code"], found["response"]["body"]["error"]["code"]) == (
        400, "content_policy_violation",
    )  # fmt: skip


def test_in_a_draft_refused_images_are_failed_with_a_code_and_never_tried_again(strict: Api, store: S3Store) -> None:
    draft = strict.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    chunk = {"images": [{"prompt": "a mug", "n": 3}, {"prompt": BAD, "n": 2}, {"prompt": "a hat"}]}
    assert strict.http.put(f"/v1/jobs/{draft}/chunks/0", json=chunk).json()["images"] == 6
    assert strict.http.put(f"/v1/jobs/{draft}/chunks/1", json={"images": [{"prompt": BAD}]}).json()["images"] == 1
    assert strict.http.post(f"/v1/jobs/{draft}/finalize", json={"chunks": 2}).status_code == 202
    claim = factories.claim(strict.database)
    assert claim is not None
    assert sorted(image.index for image in claim.images) == [0, 1, 2, 5]
    factories.settle(strict.database, claim, stored=factories.stored(claim))
    finish(strict.database)
    job = job_of(strict, draft)
    assert (job["status"], job["counts"]) == (
        "completed", {"queued": 0, "rendering": 0, "done": 4, "failed": 3, "cancelled": 0, "total": 7},
    )  # fmt: skip
    [cause] = strict.http.get(f"/v1/jobs/{draft}/failures").json()["data"]
    assert (cause["code"], cause["count"]) == ("content_policy", 3)
    image = strict.http.get(f"/v1/jobs/{draft}/images").json()["data"][3]
    assert (image["status"], image["error"]["code"], image["error"]["message"]) == (
        "failed", "content_policy", f"The prompt {REASON}.",
    )  # fmt: skip
    answer = strict.http.post(f"/v1/jobs/{draft}/retry")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "nothing_to_retry")
    assert "content policy" in answer.json()["error"]["message"]
    with strict.database.begin_system() as connection:
        numbering.number(connection)
    events = strict.http.get(f"/v1/jobs/{draft}/events").json()["data"]
    assert [event["data"] for event in events if event["kind"] == "job.images_refused"] == [
        {"images": 2},
        {"images": 1},
    ]
    assert TERM not in json.dumps(events).casefold()


def test_a_retry_asks_the_policy_of_today(api: Api) -> None:
    job = str(api.submit({"prompt": "a mug"}, {"prompt": BAD}, {"prompt": "a hat"})["id"])
    claim = factories.claim(api.database)
    assert claim is not None
    failed = [FailedImage(image.job_id, image.index, "error", "No.") for image in claim.images]
    factories.settle(api.database, claim, failed=failed)
    finish(api.database)
    api.http.post("/v1/policy/terms", json={"term": TERM})
    child = api.http.post(f"/v1/jobs/{job}/retry").json()
    assert child["counts"] == {"queued": 2, "rendering": 0, "done": 0, "failed": 1, "cancelled": 0, "total": 3}
    claim = factories.claim(api.database)
    assert claim is not None
    assert sorted(image.index for image in claim.images) == [0, 2]


def test_a_job_of_refused_images_alone_ends_as_failed(strict: Api) -> None:
    draft = strict.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    strict.http.put(f"/v1/jobs/{draft}/chunks/0", json={"images": [{"prompt": BAD}]})
    strict.http.post(f"/v1/jobs/{draft}/finalize", json={"chunks": 1})
    assert factories.claim(strict.database) is None
    finish(strict.database)
    assert job_of(strict, draft)["status"] == "failed"


def test_a_schedule_is_refused_and_one_that_was_made_before_has_a_refused_run(
    api: Api, settings: Settings, database: Database
) -> None:
    asked = {"cron": "0 1 * * *", "target": {"job": {"images": [{"prompt": BAD}]}}}
    assert api.http.post("/v1/schedules", json={"name": "nightly", **asked}).status_code == 201
    api.http.post("/v1/policy/terms", json={"term": TERM})
    answer = api.http.post("/v1/schedules", json={"name": "another", **asked})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "content_policy")
    assert api.http.post("/v1/schedules/nightly/run").status_code in (200, 201, 202)
    submit = scheduling.submitter(database, settings)
    while submit():
        pass
    [run] = api.http.get("/v1/schedules/nightly/runs").json()["data"]
    assert run["status"] == "refused"
    assert REASON in json.dumps(run)


def test_a_catalogues_refused_item_is_a_failed_picture_and_the_others_are_drawn(
    api: Api, settings: Settings, store: S3Store, database: Database
) -> None:
    api.http.post("/v1/policy/terms", json={"term": "red"})
    api.http.put("/v1/catalogues/shop", json=cataloguing.DEFINITION)
    with database.begin_system() as connection:
        found = catalogues.find(connection, factories.TENANT, "shop")
    cataloguing.upload_text(database, store, found, "sku,title\n1,red\n2,blue\n")
    api.http.post("/v1/catalogues/shop/runs", json={})
    cataloguing.tend(database, settings, store)
    [run] = api.http.get("/v1/catalogues/shop/runs").json()["data"]
    job = job_of(api, run["job_id"])
    assert (job["counts"]["queued"], job["counts"]["failed"]) == (1, 1)


def test_terms_are_added_once_listed_checked_and_removed(api: Api) -> None:
    add = api.http.post("/v1/policy/terms", json={"term": "Blood-bath"})
    assert (add.status_code, add.json()["folded"]) == (201, "blood bath")
    again = api.http.post("/v1/policy/terms", json={"term": "BLOOD BATH"})
    assert (again.status_code, again.json()["id"]) == (200, add.json()["id"])
    for word in ("gore", "abc"):
        api.http.post("/v1/policy/terms", json={"term": word})
    first = api.http.get("/v1/policy/terms?limit=2").json()
    rest = api.http.get("/v1/policy/terms", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [term["term"] for page in (first, rest) for term in page["data"]] == ["abc", "Blood-bath", "gore"]
    check = api.http.post("/v1/policy/check", json={"text": "a blood  bath"}).json()
    assert (check["refused"], check["terms"], check["reason"]) == (True, ["Blood-bath"], f"The prompt {REASON}.")
    assert api.http.delete(f"/v1/policy/terms/{add.json()['id']}").status_code == 200
    assert api.http.delete(f"/v1/policy/terms/{add.json()['id']}").status_code == 404
    assert not api.http.post("/v1/policy/check", json={"text": "a blood  bath"}).json()["refused"]
    for body in ({"term": ""}, {"term": "..."}, {"term": "a" * 201}, {"term": "a\nb"}, {}):
        assert api.http.post("/v1/policy/terms", json=body).status_code == 422, body
    with api.database.begin_system() as connection:
        data = connection.execute(text("SELECT subject, data::text FROM events WHERE kind LIKE 'policy.%'")).all()
    assert len(data) == 4
    assert not any("gore" in part or "blood" in part for row in data for part in row)


def test_the_command_manages_terms(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["policy", "terms", *words])
        return done.exit_code, done.stdout

    assert run("add", "gore", "blood bath") == (0, "gore\nblood bath\n")
    assert run("list")[1] == "blood bath\ngore\n"
    code, said = run("check", "a BLOOD bath", "--json")
    assert (code, json.loads(said)["terms"]) == (5, ["blood bath"])
    assert run("check", "a mug")[0] == 0
    assert run("rm", "Gore")[0] == 0
    assert run("rm", "gore")[0] == 2
    assert run("list")[1] == "blood bath\n"


def test_the_installations_list_holds_for_every_tenant_and_is_read_again_when_it_changes(
    settings: Settings, store: S3Store, tmp_path: Path
) -> None:
    listed = tmp_path / "terms.txt"
    listed.write_text("# words\n\nlistedmarker\n", encoding="utf-8")
    with open_api(dataclasses.replace(settings, policy_list=str(listed))) as api:
        answer = api.http.post("/v1/jobs", json={"images": [{"prompt": "a Listedmarker"}]})
        assert answer.json()["error"]["message"] == (
            "images[0].prompt has a term that this installation's content policy refuses."
        )
        listed.write_text("anothermarker\n", encoding="utf-8")
        api.submit({"prompt": "a Listedmarker"})
        listed.unlink()
        answer = api.http.post("/v1/jobs", json={"images": [{"prompt": "a mug"}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "policy_away")
    with pytest.raises(SettingsError, match="PRESSWORK_POLICY_LIST names"):
        policies.check(dataclasses.replace(settings, policy_list=str(listed)))


_POLICIES = """
import os, time

def words():
    def judge(prompts):
        print("asked")
        assert "DATABASE_URL" not in os.environ
        return ["violence" if "judgedmarker" in prompt else None for prompt in prompts]
    return judge

def raises():
    def judge(prompts):
        raise RuntimeError("about " + prompts[0])
    return judge

def hangs():
    return lambda prompts: time.sleep(600)

def dies():
    return lambda prompts: os._exit(3)

def short():
    return lambda prompts: []

def unready():
    raise OSError("no weights")

def forks():
    import subprocess, sys
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(os.environ["HELPER"], "w") as file:
        file.write(str(helper.pid))
    return lambda prompts: [None for prompt in prompts]

def slow():
    if os.path.exists(os.environ["HELPER"]):
        while not os.path.exists(os.environ["HELPER"] + ".go"):
            time.sleep(0.05)
    open(os.environ["HELPER"], "w").close()
    return lambda prompts: [None for prompt in prompts]
"""


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with policies, installed for this process and its children."""
    (tmp_path / "some_policies.py").write_text(_POLICIES)
    info = tmp_path / "some_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-policies\nVersion: 1.0\n")
    names = ("words", "raises", "hangs", "dies", "short", "unready", "forks", "slow")
    lines = [f"{name} = some_policies:{name}\n" for name in names]
    (info / "entry_points.txt").write_text("".join([f"[{judging.GROUP}]\n", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HELPER", str(tmp_path / "helper"))
    judging._opened.cache_clear()
    yield
    judging._opened.cache_clear()


def test_a_policy_of_a_distribution_refuses_prompts(brought: None, settings: Settings, store: S3Store) -> None:
    with open_api(dataclasses.replace(settings, prompt_policies=("words",))) as api:
        images = [{"prompt": "a mug"}] * 300 + [{"prompt": "a judgedmarker"}]
        error = api.http.post("/v1/jobs", json={"images": images}).json()["error"]
        assert error["message"] == "images[300].prompt was refused by a content policy: violence."
        assert api.http.post("/v1/jobs", json={"images": images[:300]}).status_code == 202


@pytest.mark.parametrize("name", ["raises", "hangs", "dies", "short"])
def test_a_policy_that_fails_refuses_for_now_or_lets_through_as_the_settings_say(
    brought: None, settings: Settings, store: S3Store, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = dataclasses.replace(settings, prompt_policies=(name,), policy_seconds=2.0)
    with open_api(failing) as api:
        before = api.rows()
        answer = api.http.post("/v1/jobs", json={"images": [{"prompt": "a quotedmarker"}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "policy_away")
        assert "Retry-After" in answer.headers
        assert api.rows() == before
    with open_api(dataclasses.replace(failing, policy_fault="accept")) as api:
        api.submit({"prompt": "a quotedmarker"})
    assert "prompt policy failed" in caplog.text
    assert all("quotedmarker" not in json.dumps(record.__dict__, default=str) for record in caplog.records)


def test_a_file_waits_while_a_policy_cannot_be_asked(
    brought: None, settings: Settings, store: S3Store, database: Database
) -> None:
    judge = judging.opened(dataclasses.replace(settings, prompt_policies=("raises",)))
    with pytest.raises(PolicyUnavailable):
        policies.Policy(judge=judge).refusals(["a mug"])


_REFUSED = "was refused by a content policy: violence"


@pytest.mark.parametrize("other", ["raises", "hangs", "dies"])
@pytest.mark.parametrize("is_first", [True, False])
def test_with_accept_what_one_policy_refuses_is_refused_although_another_fails(
    brought: None, other: str, is_first: bool
) -> None:
    names = (other, "words") if is_first else ("words", other)
    judge = judging.Judge(names, 2.0, refuses=False, start_seconds=60)
    try:
        assert judge.ask(["a mug", "a judgedmarker"]) == [None, _REFUSED]
    finally:
        judge.end()


def test_what_one_policy_refuses_needs_no_verdict_of_another(brought: None) -> None:
    judge = judging.Judge(("raises", "words"), 5.0, refuses=True, start_seconds=60)
    try:
        assert judge.ask(["a judgedmarker"]) == [_REFUSED]
        with pytest.raises(PolicyUnavailable):
            judge.ask(["a mug", "a judgedmarker"])
    finally:
        judge.end()


def test_a_policy_that_is_not_there_or_does_not_open_stops_the_start(brought: None, settings: Settings) -> None:
    with pytest.raises(SettingsError, match=r"names 'nobody', and no such policy is installed; there are .*words"):
        policies.check(dataclasses.replace(settings, prompt_policies=("nobody",)))
    with pytest.raises(SettingsError, match=r"cannot be opened: it raised OSError at some_policies\.py"):
        policies.check(dataclasses.replace(settings, prompt_policies=("unready",)))
    policies.check(dataclasses.replace(settings, prompt_policies=("words",)))


def test_the_judges_process_ends_with_the_one_that_started_it(brought: None, settings: Settings) -> None:
    judge = judging.Judge(("hangs",), 0.5, refuses=False, start_seconds=60)
    judge.start()
    pid = judge.policies["hangs"].pid
    assert pid is not None
    assert judge.ask(["a mug"]) == [None]
    assert not Path(f"/proc/{pid}").exists()


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def answers(judge: judging.Judge) -> bool:
    with suppress(PolicyUnavailable):
        return judge.ask(["a mug"]) == [None]
    return False


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_what_a_policy_started_ends_with_it(brought: None, tmp_path: Path, how: str) -> None:
    judge = judging.Judge(("forks",), 60, refuses=True, start_seconds=60)
    judge.start()
    policy, helper = judge.policies["forks"].pid, int((tmp_path / "helper").read_text())
    assert policy is not None and is_running(helper)
    if how == "killed":
        os.kill(policy, signal.SIGKILL)
        waiting.until(lambda: not is_running(policy))
        waiting.until(lambda: answers(judge))  # by a new one
    judge.end()
    waiting.until(lambda: not is_running(helper))


def test_nobody_waits_long_for_a_policy_that_is_opened_again(brought: None, tmp_path: Path) -> None:
    judge = judging.Judge(("slow",), 0.5, refuses=True, start_seconds=600)
    try:
        judge.start()
        assert judge.policies["slow"].pid is not None
        os.kill(judge.policies["slow"].pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(PolicyUnavailable):
                judge.ask(["a mug"])
        again = judge.policies["slow"].pid
        (tmp_path / "helper.go").touch()

        waiting.until(lambda: answers(judge))
        assert judge.policies["slow"].pid == again
    finally:
        judge.end()


@pytest.fixture
def notifier(settings: Settings) -> Notifier:
    return Notifier(settings.redis_url)
