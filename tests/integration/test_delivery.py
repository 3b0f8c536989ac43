"""Versions that are sent to another bucket by the command: what lies there, and what any trouble leaves."""

import dataclasses
import hashlib
import http.client
import json
import signal
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from presswork_client.pulling import JOURNAL
from services.cli.app import app
from services.core.model.errors import StoreRefused
from services.core.settings import Settings
from services.core.storage import destination
from services.core.storage.destination import Destination, Place
from services.core.storage.s3 import S3Store
from tests import collecting, exporting
from tests.peers import S3Proxy
from tests.processes import Command
from tests.waiting import until
from tests.web import Api

BUCKET = "lab"


def captions(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"mug {first + n}", "size": "64x64", "seed": first + n} for n in range(count)]


@pytest.fixture
def lab(store_admin: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """A bucket that is not the installation's, emptied, with its key in the environment."""
    other = S3Store(dataclasses.replace(store_admin, bucket=BUCKET, prefix=""))
    other.prepare()
    for key in list(other.under("")):
        other.drop(key)
    for name, value in key_of(store_admin).items():
        monkeypatch.setenv(name, value)
    yield other
    for key in list(other.under("")):
        other.drop(key)


def key_of(settings: Settings) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": settings.s3_access_key, "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key,
        "AWS_ENDPOINT_URL": settings.s3_endpoint_url, "AWS_REGION": "us-east-1",
    }  # fmt: skip


@pytest.fixture
def run(api: Api, lab: S3Store, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)

    def call(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["dataset", "deliver", *words])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words and not code else result

    return call


@pytest.fixture
def job(api: Api, settings: Settings, store: S3Store) -> int:
    """A job of nine images, and a dataset with a first version of five shards."""
    found = collecting.rendered(api.database, settings, store, captions(9))
    collecting.make(api.database, found, images_per_shard=2)
    collecting.export(api.database, settings, store)
    return found


def held(lab: S3Store, prefix: str = "sets/mugs/") -> dict[str, str]:
    """The sha256 of each object under the prefix, by its name after it."""
    return {
        key.removeprefix(prefix): hashlib.sha256(lab.read(key)).hexdigest()
        for key in lab.under(prefix)
        if not key.endswith(JOURNAL)
    }


def test_a_version_lies_in_another_bucket_and_a_newer_one_takes_its_place(api, settings, store, lab, run, job):
    first = collecting.sums(api.database, 1)
    done = run("mugs", f"s3://{BUCKET}/sets/mugs", "--json")
    assert (done["files"], done["sent"], done["deleted"]) == (len(first), len(first), 0)
    assert held(lab) == first
    assert run("mugs", f"s3://{BUCKET}/sets/mugs/", "--json")["sent"] == 0
    damaged = next(name for name in first if name.endswith(".tar"))
    size = lab.size(f"sets/mugs/{damaged}")
    destination_of(lab, "sets/mugs").put(damaged, b"x" * size, "application/x-tar")
    assert run("mugs", f"s3://{BUCKET}/sets/mugs", "--json")["sent"] == 1
    collecting.mark(api.database, job, [1], "rejected")
    collecting.add(api.database, collecting.rendered(api.database, settings, store, captions(2, 50)))
    collecting.export(api.database, settings, store)
    second = collecting.sums(api.database, 2)
    kept = run("mugs", f"s3://{BUCKET}/sets/mugs", "--keep", "--json")
    assert kept["deleted"] == 0 and held(lab) == first | second
    assert kept["sent"] == len([name for name in second if first.get(name) != second[name]])
    done = run("mugs", f"s3://{BUCKET}/sets/mugs", "--json")
    assert (done["sent"], done["deleted"]) == (0, len(first.keys() - second.keys()))
    assert held(lab) == second
    shard = next(name for name in second if name.endswith(".tar"))
    assert lab._client.head_object(Bucket=BUCKET, Key=f"sets/mugs/{shard}")["ContentType"] == "application/x-tar"


def test_the_manifest_of_a_split_lists_the_splits_that_are_there(api, settings, store, lab, run):
    job = collecting.rendered(api.database, settings, store, captions(12))
    collecting.make(api.database, job, images_per_shard=2, split={"train": 0.5, "val": 0.5})
    collecting.export(api.database, settings, store)
    whole = collecting.sums(api.database, 1)
    place = f"s3://{BUCKET}/sets/mugs"
    done = run("mugs", place, "--split", "val", "--json")
    manifest = json.loads(lab.read("sets/mugs/manifest.json"))
    shards = {name: sha for name, sha in whole.items() if "/val-" in name}
    assert {file["path"]: file["sha256"] for file in manifest["files"]} == shards
    assert set(held(lab)) == {*shards, "manifest.json"} and done["files"] == len(shards) + 1
    assert list(manifest["splits"]) == ["val"] and manifest["images"] == manifest["splits"]["val"]["images"]
    run("mugs", place, "--split", "train")
    both = json.loads(lab.read("sets/mugs/manifest.json"))
    assert list(both["splits"]) == ["train", "val"] and both["images"] == 12
    run("mugs", place)
    assert held(lab) == whole


def test_a_prefix_of_something_else_is_left_as_it_is(api, settings, store, lab, run, job):
    place = destination_of(lab, "notes")
    place.put("today.txt", b"ours", "text/plain")
    words = run("mugs", f"s3://{BUCKET}/notes", code=2).stderr
    assert "s3://lab/notes holds something other than the dataset mugs; name another prefix." in one_line(words)
    collecting.make(api.database, job, name="hats")
    collecting.export(api.database, settings, store, name="hats")
    run("mugs", f"s3://{BUCKET}/sets/mugs")
    run("hats", f"s3://{BUCKET}/sets/mugs", code=2)
    assert held(lab, "notes/") == {"today.txt": hashlib.sha256(b"ours").hexdigest()}
    assert held(lab) == collecting.sums(api.database, 1)
    run("mugs", "s3://lab/a/../b", code=2)
    run("mugs", "/tmp/x", code=2)
    run("mugs", f"s3://{BUCKET}/x", "--endpoint", "localhost:1", code=2)


def test_a_bucket_that_is_full_in_mid_shard_keeps_the_version_before_and_shows_nothing_of_the_new(
    api, settings, store, lab, run, job, monkeypatch
):
    """The new shards are of two parts each."""
    first = collecting.sums(api.database, 1)
    run("mugs", f"s3://{BUCKET}/sets/mugs")
    small = exporting.picture
    monkeypatch.setattr(exporting, "picture", lambda *how: small(*how) + bytes(destination.PART_BYTES // 2))
    collecting.add(api.database, collecting.rendered(api.database, settings, store, captions(4, 50)))
    collecting.export(api.database, settings, store)
    full = True

    def refuse(method: str, path: str, headers: Any) -> Any:
        return (403, "QuotaExceeded", "") if full and method == "PUT" and "partNumber=2" in path else None

    with S3Proxy(settings.s3_endpoint_url, refuse) as proxy:
        at = ("--endpoint", proxy.url)
        words = one_line(run("mugs", f"s3://{BUCKET}/sets/mugs", *at, code=1).stderr)
        assert words.endswith(
            "refuses s3://lab/sets/mugs with QuotaExceeded: the bucket is full; free some space or raise its quota, "
            "and the same command goes on."
        )
        assert {name: sha for name, sha in held(lab).items() if name in first} == first
        assert not lab._client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")
        full = False
        run("mugs", f"s3://{BUCKET}/sets/mugs", *at)
        written = [path.partition("?")[0] for method, path, _ in proxy.asked if method in ("PUT", "POST")]
        last = [path.rpartition("/")[2] for path in written if not path.endswith(JOURNAL)]
        assert last[-1] == "manifest.json" and "SHA256SUMS" in last[-10:]
    assert held(lab) == collecting.sums(api.database, 2)


def test_a_delivery_that_is_killed_goes_on_with_what_is_missing(
    api, settings, lab, run, job, environ, tmp_path, store_admin
):
    seen: list[str] = []

    def hold(method: str, path: str, headers: Any) -> Any:
        if method == "PUT" and path.endswith(".tar"):
            seen.append(path)
            until(lambda: len(seen) < 3 or stopped, 30)
        return None

    stopped: list[int] = []
    with S3Proxy(settings.s3_endpoint_url, hold) as proxy:
        environ = environ | key_of(store_admin) | {"PRESSWORK_URL": api.url, "PRESSWORK_API_KEY": api.key}
        words = ("dataset", "deliver", "mugs", f"s3://{BUCKET}/sets/mugs", "--endpoint", proxy.url, "-p", "1")
        command = Command(environ, tmp_path / "log", *words, cwd=tmp_path)
        until(lambda: len(seen) == 3 or command.popen.poll() is not None, 60)
        command.popen.send_signal(signal.SIGKILL)
        assert command.popen.wait() == -signal.SIGKILL, command.text()
        there = held(lab)
        assert there and "manifest.json" not in there
        stopped.append(1)
    whole = collecting.sums(api.database, 1)
    done = run("mugs", f"s3://{BUCKET}/sets/mugs", "--json")
    assert done["sent"] <= len(whole) - len(there)
    assert held(lab) == whole


def test_a_store_that_is_away_for_a_moment_is_waited_for_and_said_once(api, settings, lab, run, job):
    count = 0

    def busy(method: str, path: str, headers: Any) -> Any:
        nonlocal count
        count += method == "PUT"
        return (503, "SlowDown", "") if method == "PUT" and count in (2, 3) else None

    with S3Proxy(settings.s3_endpoint_url, busy) as proxy:
        words = run("mugs", f"s3://{BUCKET}/sets/mugs", "--endpoint", proxy.url, "-p", "1").stderr
    assert one_line(words).count("answers SlowDown for s3://lab/sets/mugs; trying again") == 1
    assert held(lab) == collecting.sums(api.database, 1)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", "these credentials need s3:ListBucket on the bucket"),
        (404, "NoSuchBucket", "there is no such bucket; make it, or name another."),
        (403, "InvalidAccessKeyId", "is --endpoint the address of the store that does?"),
    ],
)
def test_what_the_other_store_refuses_is_said_in_one_sentence(settings, lab, run, job, status, code, words):
    with S3Proxy(settings.s3_endpoint_url, lambda *_: (status, code, "")) as proxy:
        said = one_line(run("mugs", f"s3://{BUCKET}/sets/mugs", "--endpoint", proxy.url, code=1).stderr)
    assert words in said and f"with {code}" in said and not held(lab)


def test_a_bucket_of_another_region_is_found_there(settings, lab, run, job):
    def elsewhere(method: str, path: str, headers: Any) -> Any:
        if "/eu-west-1/s3/" in headers.get("Authorization", ""):
            return None
        return 301, "PermanentRedirect", "<Region>eu-west-1</Region>"

    with S3Proxy(settings.s3_endpoint_url, elsewhere) as proxy:
        assert run("mugs", f"s3://{BUCKET}/sets/mugs", "--endpoint", proxy.url, "--json")["sent"]


def test_the_profile_of_whoever_runs_it_gives_the_credentials(store_admin, lab, run, job, tmp_path, monkeypatch):
    settings = store_admin
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    file = tmp_path / "config"
    file.write_text(
        f"[profile lab]\naws_access_key_id = {settings.s3_access_key}\n"
        f"aws_secret_access_key = {settings.s3_secret_key}\nendpoint_url = {settings.s3_endpoint_url}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert run("mugs", f"s3://{BUCKET}/sets/mugs", "--aws-profile", "lab", "--json")["sent"]
    assert "No credentials for the bucket were found" in run("mugs", f"s3://{BUCKET}/x", code=2).stderr
    assert "other" in run("mugs", f"s3://{BUCKET}/x", "--aws-profile", "other", code=2).stderr


def test_a_large_file_is_sent_in_parts_and_one_that_breaks_off_leaves_nothing(lab):
    place = destination_of(lab, "large")
    blocks = [bytes([n]) * (1 << 20) for n in range(20)]
    digest = hashlib.sha256(b"".join(blocks)).hexdigest()
    place.send("whole", blocks, 20 << 20, "application/x-tar", digest)
    assert held(lab, "large/") == {"whole": digest} and place.sha256("whole") == digest

    def broken() -> Iterator[bytes]:
        yield from blocks
        raise StoreRefused("damaged")

    with pytest.raises(StoreRefused, match="damaged"):
        place.send("part", broken(), 20 << 20, "application/x-tar", digest)
    assert list(held(lab, "large/")) == ["whole"]
    left = lab._client.create_multipart_upload(Bucket=BUCKET, Key="large/whole")
    others = lab._client.create_multipart_upload(Bucket=BUCKET, Key="large/another's")
    place.abandon_uploads({"whole"})
    found = lab._client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert [one["UploadId"] for one in found] == [others["UploadId"]] != [left["UploadId"]]
    lab._client.abort_multipart_upload(Bucket=BUCKET, Key="large/another's", UploadId=others["UploadId"])


def test_a_file_that_was_completed_is_there_though_the_answer_was_lost(lab, settings):
    def lose(method: str, path: str, headers: Any) -> Any:
        if method == "POST" and "uploadId" in path and not lost:
            lost.append(path)
            server = http.client.HTTPConnection(urlsplit(settings.s3_endpoint_url).netloc)
            server.request(method, path, proxy.asked[-1][2], dict(headers.items()))
            assert server.getresponse().read()
            server.close()
            return 503, "SlowDown", ""
        return None

    lost: list[str] = []
    data = bytes(9 << 20)
    digest = hashlib.sha256(data).hexdigest()
    with S3Proxy(settings.s3_endpoint_url, lose) as proxy:
        place = Destination(Place(BUCKET, "lost/"), endpoint=proxy.url)
        place.send("whole", [data], len(data), "application/x-tar", digest)
    assert lost and held(lab, "lost/") == {"whole": digest}


def destination_of(lab: S3Store, prefix: str) -> Destination:
    return Destination(Place(BUCKET, f"{prefix}/"), endpoint=lab._endpoint)


def one_line(words: str) -> str:
    return " ".join(words.split())
