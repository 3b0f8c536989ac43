"""The feed: what those who watch are told, that nothing is missed or told twice, and that no count goes back."""

import dataclasses
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import text

from presswork_client import Client, ClientError
from services.api import dependencies, feed
from services.core.db import actors
from services.core.deletion import jobs as deletion
from services.core.events import log, numbering
from services.core.fleet import throughput
from services.core.jobs import lifecycle, live
from services.core.model import ids
from services.core.model.scopes import Principal, Scope
from services.core.model.specs import Shape
from services.core.tenants import api_keys
from tests import factories
from tests.factories import TENANT
from tests.processes import Process
from tests.proxy import Proxy
from tests.waiting import until
from tests.web import Api, serving

STREAM = {"Accept": "text/event-stream"}


@dataclasses.dataclass(frozen=True)
class Message:
    kind: str
    data: dict[str, object]
    seq: int | None


class Stream:
    """An open stream, read in a thread: its messages so far."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.headers["content-type"].startswith("text/event-stream")
        self.messages: list[Message] = []
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(answer,), daemon=True)
        self._thread.start()

    def _read(self, answer: httpx.Response) -> None:
        fields: dict[str, str] = {}
        try:
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "event" in fields:
                    seq = int(fields["id"]) if "id" in fields else None
                    self.messages.append(Message(fields["event"], json.loads(fields["data"]), seq))
                    fields = {}
                else:
                    fields = {}
        except (httpx.HTTPError, httpx.StreamError, OSError):
            pass
        finally:
            self.ended.set()

    def events(self) -> list[tuple[int | None, str]]:
        return [(message.seq, message.kind) for message in self.messages if message.seq is not None]

    def jobs(self) -> list[dict[str, object]]:
        return [message.data for message in self.messages if message.kind == "job"]

    def kinds(self) -> list[str]:
        return [message.kind for message in self.messages]


@contextmanager
def watching(api: Api, path: str, url: str = "", **headers: str) -> Iterator[Stream]:
    with (
        httpx.Client(base_url=url or api.url, headers=dict(api.http.headers) | headers, trust_env=False) as http,
        http.stream("GET", path, headers=STREAM, timeout=60) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        yield Stream(answer)


def work(api: Api, seats: int = 1) -> None:
    """Renders some images, and does what the scheduler does."""
    claim = factories.claim(api.database, seats)
    assert claim is not None
    factories.settle(api.database, claim)
    end(api)


def end(api: Api) -> None:
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)
        numbering.number(connection)


def test_the_name_of_a_worker_is_for_those_who_may_operate(api: Api) -> None:
    job = str(api.submit()["id"])
    end(api)
    with ExitStack() as opened:
        streams = {}
        for names in (True, False):
            key = api.key if names else api.new_key(Scope.VIEW)
            for path in ("/v1/events", f"/v1/jobs/{job}/events"):
                headers = {"authorization": f"Bearer {key}"}
                streams[names, path] = opened.enter_context(watching(api, path, **headers))
        until(lambda: all("job" in stream.kinds() for stream in streams.values()))
        with actors.acting("worker gpu-7-1"), api.database.begin_system() as connection:
            log.append_of_job(connection, "job.started", ids.parse_job(job))
            numbering.number(connection)
        until(lambda: all("job.started" in stream.kinds() for stream in streams.values()))
    for (names, _), stream in streams.items():
        [told] = [message.data["actor"] for message in stream.messages if message.kind == "job.started"]
        assert told == ("worker gpu-7-1" if names else "worker")
    for names in (True, False):  # what was before a stream began, and what is listed
        headers = {"authorization": f"Bearer {api.key if names else api.new_key(Scope.VIEW)}"}
        listed = api.http.get(f"/v1/jobs/{job}/events", headers=headers).json()["data"]
        assert listed[-1]["actor"] == ("worker gpu-7-1" if names else "worker")
        with watching(api, "/v1/events?after=0", **headers) as stream:
            until(lambda stream=stream: "job.started" in stream.kinds())
        [told] = [message.data["actor"] for message in stream.messages if message.kind == "job.started"]
        assert told == ("worker gpu-7-1" if names else "worker")


def latest(api: Api) -> int:
    with api.database.begin_system() as connection:
        return live.latest(connection)


def test_whoever_watches_a_job_sees_it_through_to_its_end(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    job = api.submit(*[{"prompt": "a mug"}] * 3)["id"]
    end(api)
    with watching(api, f"/v1/jobs/{job}/events") as stream:
        until(stream.jobs)
        for done in (1, 2, 3):
            work(api)
            until(lambda done=done: stream.jobs()[-1]["counts"]["done"] == done)
        until(lambda: stream.jobs()[-1]["status"] == "completed" and "job.completed" in stream.kinds())
    shown = [found["counts"]["done"] for found in stream.jobs()]
    assert shown == sorted(shown)
    listed = api.http.get(f"/v1/jobs/{job}/events").json()["data"]
    assert stream.events() == [(entry["seq"], entry["kind"]) for entry in listed]
    assert {entry["job_id"] for entry in listed} == {job}


def test_a_stream_that_was_cut_off_goes_on_where_it_was_on_another_server(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    with serving(api.settings) as other, watching(api, "/v1/events?after=0") as first:
        for _ in range(3):
            api.submit()
            end(api)
        until(lambda: len(first.events()) >= 6)
        last = str(first.events()[3][0])
        api.submit()
        end(api)
        with watching(api, "/v1/events", other, **{"Last-Event-ID": last}) as second:
            api.submit()
            end(api)
            newest = latest(api)
            until(lambda: first.events()[-1][0] == newest and second.events()[-1:] == first.events()[-1:])
    assert first.events()[4:] == second.events()


def test_what_another_server_has_shown_already_is_not_shown_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    end(api)
    seen = latest(api) + 1
    with watching(api, "/v1/events", **{"Last-Event-ID": str(seen)}) as stream:
        until(lambda: not stream.ended.is_set())
        for _ in range(2):
            api.submit()
            end(api)
        until(lambda: stream.events()[-1:] and stream.events()[-1][0] == latest(api))
    assert [seq for seq, _ in stream.events()] == list(range(seen + 1, latest(api) + 1))
    job = api.http.get("/v1/jobs").json()["data"][0]["id"]
    for path in ("/v1/events", f"/v1/jobs/{job}/events"):
        for far in (seen + 10**6, 2**63 - 1):  # of another database, say
            with watching(api, path, **{"Last-Event-ID": str(far)}) as stream:
                until(lambda stream=stream: stream.kinds()[:1] == ["reset"])


def test_a_tenants_stream_shows_all_its_unfinished_jobs_and_no_other_tenants(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    _, key = api.new_tenant("other")
    api.submit()
    mine = {api.submit()["id"], api.submit()["id"]} | {api.http.get("/v1/jobs").json()["data"][-1]["id"]}
    other = httpx.Headers({"Authorization": f"Bearer {key}"})
    with watching(api, "/v1/events") as stream, watching(api, "/v1/events", **other) as strange:
        until(lambda: {found["id"] for found in stream.jobs()} == mine)
        theirs = httpx.post(f"{api.url}/v1/jobs", json={"images": [{"prompt": "theirs"}]}, headers=other).json()["id"]
        end(api)
        until(lambda: {found["id"] for found in strange.jobs()} == {theirs} and strange.events())
        assert {found["id"] for found in stream.jobs()} == mine
        assert {message.data["job_id"] for message in strange.messages if message.seq} <= {theirs, None}
    for path in (f"/v1/jobs/{theirs}/events", f"/v1/jobs/{ids.public_job(1)}/events"):
        assert api.http.get(path, headers=STREAM).status_code == 404


def test_a_stream_says_when_a_job_ends_that_is_too_young_for_a_rate_and_again_only_when_it_changes(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    with api.database.begin_system() as connection:
        shape = Shape(factories.REVISION, 512, 512, 10, True)
        throughput.record(connection, shape, "h d", images=100, seconds_per_image=3.0)
    job = api.submit({"prompt": "a mug", "n": 20})["id"]
    with watching(api, "/v1/events") as stream:

        def left() -> list[Any]:
            return [told["eta_seconds"] for told in stream.jobs() if told["id"] == job]

        until(left)
        assert left()[-1] == 60
        told: dict[str, Any] = stream.jobs()[-1]
        assert 45 < told["eta_low_seconds"] <= 60 <= told["eta_high_seconds"] < 75
        work(api, 5)
        until(lambda: left()[-1] == 45)
        before = left()
        with api.database.begin_system() as connection:
            throughput.record(connection, shape, "h d", images=1000, seconds_per_image=1.0)
        for _ in range(2):
            another = api.submit()["id"]
            until(lambda: another in {found["id"] for found in stream.jobs()})  # noqa: B023  it is awaited here
        assert left() == before


def test_nothing_that_happens_while_a_stream_begins_is_missed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.01)
    stopping = threading.Event()

    def submit() -> None:
        while not stopping.is_set():
            factories.submit(api.database, api.settings)
            end(api)

    busy = threading.Thread(target=submit)
    busy.start()
    try:
        with ExitStack() as stack:
            streams = [stack.enter_context(watching(api, "/v1/events?after=0")) for _ in range(10)]
            until(lambda: all(len(stream.events()) > 40 for stream in streams))
    finally:
        stopping.set()
        busy.join()
    for stream in streams:
        numbers = [seq for seq, _ in stream.events()]
        assert numbers == list(range(1, len(numbers) + 1))


def test_who_watches_a_job_is_told_when_it_is_deleted(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    job = api.submit()["id"]
    work(api)
    with watching(api, f"/v1/jobs/{job}/events") as stream:
        until(stream.jobs)
        with api.database.begin_system() as connection:
            deletion.delete(connection, TENANT, ids.parse_job(str(job)))
        assert stream.ended.wait(60)
    assert stream.kinds()[-1] == "deleted"


def test_a_database_that_is_away_is_told_and_the_stream_goes_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    address = urlsplit(api.settings.database_url)
    with closing(Proxy(str(address.hostname), address.port or 5432)) as proxy:
        away = api.settings.database_url.replace(f":{address.port}", f":{proxy.port}")
        with (
            serving(dataclasses.replace(api.settings, database_url=away)) as url,
            watching(api, "/v1/events", url) as stream,
        ):
            job = api.submit()["id"]
            until(stream.jobs)
            proxy.cut()
            until(lambda: "unreachable" in stream.kinds())
            proxy.mend()
            work(api)
            until(lambda: stream.jobs()[-1]["id"] == job and stream.jobs()[-1]["counts"]["done"] == 1)


def test_a_server_that_stops_ends_its_streams_at_once(api: Api, environ: dict[str, str], tmp_path) -> None:
    port = "18437"
    more = {"PRESSWORK_PORT": port, "PRESSWORK_SECRET": api.settings.secret}
    web = Process("services.web", {**os.environ, **environ, **more}, tmp_path / "web.log")
    url = f"http://127.0.0.1:{port}"
    until(lambda: _alive(url))
    with watching(api, "/v1/events", url) as stream:
        until(lambda: stream.messages == [] and not stream.ended.is_set())
        web.popen.terminate()
        assert web.popen.wait(60) == 0
        assert stream.ended.wait(60)
    assert stream.kinds()[-1:] == ["closing"]


def _alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_the_client_follows_a_job_to_its_end_through_a_cut(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    job = str(api.submit(*[{"prompt": "a mug"}] * 3)["id"])
    host, port = api.address
    with closing(Proxy(host, port)) as proxy, Client(f"http://127.0.0.1:{proxy.port}", api.key) as client:
        seen = []
        for found in client.watch(job):
            seen.append(found["counts"]["done"])
            if seen[-1] and proxy.accepted == 1:
                proxy.cut()
                proxy.mend()
            if (claim := factories.claim(api.database, 1)) is not None:  # the snapshot may be older
                factories.settle(api.database, claim)
            end(api)
    assert found["status"] == "completed"
    assert seen == sorted(seen) and seen[-1] == 3
    assert proxy.accepted > 1


def test_the_client_is_told_of_a_job_that_is_deleted_while_it_follows_it(api: Api) -> None:
    job = str(api.submit()["id"])
    work(api)
    with Client(api.url, api.key) as client:
        assert [found["status"] for found in client.watch(job)] == ["completed"]
        api.http.delete(f"/v1/jobs/{job}")
        with pytest.raises(ClientError, match="There is no job"):
            next(client.watch(job))


def test_too_many_watchers_are_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "WATCHERS", 1)
    with serving(api.settings) as url, watching(api, "/v1/events", url):
        answer = httpx.get(f"{url}/v1/events", headers=dict(api.http.headers) | STREAM, trust_env=False)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "too_many_watchers"


def test_what_comes_before_a_watcher_has_caught_up_follows_what_it_had_missed() -> None:
    watcher = feed.Watcher(Principal(TENANT, "aaaaaaaa", "test", frozenset()), None)
    watcher.event(4, b"<four>")
    watcher.event(5, b"<five>")
    assert watcher.take() == b""
    watcher.catch_up(1, [(1, b"<one>"), (2, b"<two>"), (3, b"<three>"), (4, b"<four>")])
    watcher.event(6, b"<six>")
    assert watcher.take() == b"<two><three><four><five><six>"


def test_a_watcher_that_does_not_read_keeps_one_snapshot_of_a_job_and_is_cut_off_in_the_end() -> None:
    watcher = feed.Watcher(Principal(TENANT, "aaaaaaaa", "test", frozenset()), None)
    watcher.catch_up(0, [])
    moment = datetime.now(UTC)
    for number in range(10):
        watcher.snapshot(7, moment + timedelta(seconds=number), f"<{number}>".encode())
    watcher.snapshot(7, moment, b"<old>")
    watcher.event(2, b"<two>")
    watcher.event(2, b"<two>")
    watcher.event(1, b"<one>")
    assert watcher.take() == b"<two><9>"
    for number in range(3, feed.WAITING_EVENTS + 4):
        watcher.event(number, b"more")
    assert watcher.ended
    assert watcher.take().startswith(b"event: reset")


@pytest.mark.parametrize("path", ["/v1/events", "/v1/jobs/{job}/events"])
def test_a_stream_ends_when_its_key_is_revoked_and_others_go_on(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    job = api.submit()["id"]
    key = api.http.post("/v1/keys", json={"name": "watcher", "scopes": ["view"]}).json()
    with (
        watching(api, path.format(job=job), authorization=f"Bearer {key['key']}") as stream,
        watching(api, path.format(job=job)) as other,
    ):
        until(lambda: stream.jobs() and other.jobs())
        api.http.delete(f"/v1/keys/{key['id']}")
        assert stream.ended.wait(60)
        work(api)
        until(lambda: "job.completed" in other.kinds())
    assert stream.kinds()[-1] == "signed_out" and "signed_out" not in other.kinds()


def test_a_stream_ends_when_its_key_expires(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    with api.database.begin_system() as connection:
        key = api_keys.issue_key(connection, api.settings.secret, TENANT, "short", expires_seconds=3600)
    with watching(api, "/v1/events", authorization=f"Bearer {key}") as stream:
        with api.database.begin_system() as connection:
            connection.execute(
                text("UPDATE api_keys SET expires_at = now() WHERE id = :id"), {"id": api_keys.id_of(key)}
            )
        assert stream.ended.wait(60)
