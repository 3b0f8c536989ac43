"""The whole system as a user runs it: prompts in, stored images out."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import psycopg
import pytest
from PIL import Image
from sqlalchemy import text

from presswork_client import Client, ClientError
from services.core.jobs import queries
from services.core.model import ids
from services.core.settings import Settings
from services.core.tenants import api_keys
from tests import factories
from tests.processes import PRESSWORK, Process, project_of_another
from tests.up import Up, free_port
from tests.waiting import until

# Of other programs' variables, some that our clients or their libraries would read.
OTHERS = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
    "AWS_PROFILE": "nobody",
    "CELERY_BROKER_URL": "redis://127.0.0.1:9/0",
    "PGSSLMODE": "verify-full",
    "PGSERVICE": "nobody",
}


def up_beside_another_project(folder: Path, *arguments: str, **environ: str) -> Up:
    """`presswork up` on a new folder, started in a project that has its own `services/` and similar packages."""
    settings = OTHERS | {"PRESSWORK_LEASE_SECONDS": "3", **environ}
    return Up(folder / "a home", project_of_another(folder / "project"), *arguments, **settings)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    stale = {"PRESSWORK_MODEL": "presswork-mini"}  # as after `. .presswork/env` of a stack with another model
    folder = tmp_path_factory.mktemp("up")
    up = up_beside_another_project(folder, "--workers", "2", "--pipeline", "simulated", **stale)
    up.client().close()
    yield up
    assert up.process.stop(60) == 0


@pytest.fixture(scope="module")
def client(up: Up) -> Iterator[Client]:
    with up.client() as client:
        yield client


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def finished(client: Client, job_id: str) -> dict:
    return until(lambda: job if (job := client.job(job_id))["finished_at"] else None, seconds=60)


def test_a_job_of_every_kind_of_request_becomes_images_that_anyone_can_check(client):
    requests = [
        {"prompt": "a red mug", "n": 3, "seed": 2**63 - 1, "custom_id": "mug", "size": "256x256"},
        {"prompt": "une tasse bleue, 青い花瓶, 🏺", "output_format": "jpeg", "size": "768x512"},
        {"prompt": "a vase", "negative_prompt": "flowers", "guidance_scale": 1, "num_inference_steps": 50},
    ]
    job = client.submit(requests, priority="high", labels={"for": "everyone"}, defaults={"output_format": "webp"})
    job = finished(client, job["id"])
    assert job["status"] == "completed"
    assert job["counts"] == {"total": 5, "queued": 0, "rendering": 0, "done": 5, "failed": 0, "cancelled": 0}
    images = list(client.images(job["id"]))
    assert [image["seed"] for image in images[:3]] == [2**63 - 1, 0, 1]
    for image, kind, size in zip(images, ["WEBP"] * 3 + ["JPEG", "WEBP"], [(256, 256)] * 3 + [(768, 512), (512, 512)],
                                 strict=True):  # fmt: skip
        data = client.download(job["id"], image["index"])
        assert hashlib.sha256(data).hexdigest() == image["sha256"]
        with Image.open(BytesIO(data)) as picture:
            assert (picture.format, picture.size) == (kind, size)


def test_the_same_requests_give_the_same_bytes_again(client):
    request = {"prompt": "a teal jug", "seed": 11, "size": "256x256"}
    jobs = [finished(client, client.submit([request] * 4)["id"]) for _ in range(2)]
    shas = {image["sha256"] for job in jobs for image in client.images(job["id"])}
    assert len(shas) == 1


@pytest.mark.parametrize("name", ["web", "scheduler", "worker-1", "postgres", "valkey", "seaweedfs"])
def test_whatever_dies_is_started_again_and_the_job_is_done(up, client, name):
    job = client.submit([{"prompt": f"a bowl {index}", "size": "64x64"} for index in range(64)])
    pid = up.pid(name)
    os.kill(pid, signal.SIGKILL)
    until(lambda: up.pid(name) != pid, seconds=10)
    assert name in up.process.text()
    assert finished(client, job["id"])["counts"]["done"] == 64


def test_a_second_up_on_the_folder_is_one_sentence(up):
    second = subprocess.run(
        [sys.executable, "-m", "services.local", "up", "--home", str(up.home)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert "already runs" in second.stderr
    assert second.stderr.count("\n") == 1


def test_a_port_in_use_is_one_sentence(up, tmp_path):
    other = subprocess.run(
        [sys.executable, "-m", "services.local", "up", "--home", str(tmp_path / "other")],
        capture_output=True, text=True, check=False, env={**os.environ, "PRESSWORK_PORT": str(up.port)},
    )  # fmt: skip
    assert other.returncode == 1
    assert f"Port {up.port} is in use" in other.stderr
    assert "Traceback" not in other.stderr


def test_the_command_that_up_prints_sets_the_key(up):
    [command] = re.findall(r"`(\. [^`]+)`", up.process.text())
    shown = subprocess.run(
        ["sh", "-c", f'{command}; printf %s "$PRESSWORK_API_KEY"'], capture_output=True, text=True, check=True, env={}
    )
    assert shown.stdout == up.values()["PRESSWORK_API_KEY"]


def test_status_shows_the_address_and_every_process(up):
    command = [sys.executable, "-m", "services.cli", "status", "--home", str(up.home)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f" at http://127.0.0.1:{up.port}, " in shown
    for word in ("seaweedfs", "s3 ", "valkey", "postgres", "web", "scheduler", "worker-1", "worker-2"):
        assert word in shown
    assert max(map(len, shown.splitlines()[1:])) < 80


def test_the_secrets_are_for_the_owner_alone(up):
    for name in ("env", "key", "secrets.json"):
        assert (up.home / name).stat().st_mode & 0o077 == 0


def test_doctor_finds_all_well_and_says_what_is_not(up, client):
    command = [sys.executable, "-m", "services.cli", "doctor"]
    environ = {"PATH": os.environ["PATH"], **up.values()}
    well = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert well.returncode == 0, well.stdout
    assert well.stdout.count("ok") >= 7
    assert "warn" not in well.stdout, "what the file sets may do no more than the programs do"
    ill = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environ, "REDIS_URL": "redis://127.0.0.1:9/0"}
    )
    assert ill.returncode == 1
    assert "Redis at 127.0.0.1:9 cannot be used: " in ill.stdout
    assert len(ill.stdout.splitlines()) == len(well.stdout.splitlines()), "a line for each check, however long"


def test_doctor_says_which_rights_no_program_needs_and_finds_all_well(up, client):
    secrets = json.loads((up.home / "secrets.json").read_text())
    values = up.values()
    database, redis = (values[name].partition("@")[2] for name in ("DATABASE_URL", "REDIS_URL"))
    everything = {
        "DATABASE_URL": f"postgresql://presswork_admin:{secrets['presswork_admin']}@{database}",
        "REDIS_URL": f"redis://:{secrets['valkey']}@{redis}",
        "AWS_ACCESS_KEY_ID": secrets["s3_admin_access_key"][:20],
        "AWS_SECRET_ACCESS_KEY": secrets["s3_admin_secret_key"],
    }
    found = subprocess.run(
        [sys.executable, "-m", "services.cli", "doctor"], capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], **values, **everything},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
    warnings = [line for line in found.stdout.splitlines() if line.startswith("warn")]
    for warning, words in zip(
        warnings,
        (
            ["database", "presswork_admin is a superuser", "presswork_worker"],
            ["redis", "default may use CONFIG, keys of other programs, FLUSHALL"],
            ["store", "sees other buckets (presswork-probe)", "may administer the bucket"],
        ),
        strict=True,
    ):
        assert all(word in warning for word in words), warning
    assert not any(secret in found.stdout for secret in secrets.values())


def test_web_server_scheduler_and_workers_do_a_jobs_whole_life_with_rights_of_their_own(up, client, tmp_path):
    job = finished(client, client.submit([{"prompt": "a jar", "size": "64x64", "n": 4}])["id"])
    export = client.create_export(job["id"], "zip")
    until(lambda: client.export(export["id"])["status"] == "completed")
    for file in client.export_files(export["id"]):
        client.save(file, tmp_path / Path(file["path"]).name)
    assert len(list(tmp_path.glob("*.zip"))) == 1
    client.delete_job(job["id"])
    with psycopg.connect(up.values()["DATABASE_URL"], autocommit=True) as connection:
        number = ids.parse_job(job["id"])
        until(lambda: connection.execute("SELECT count(*) FROM jobs WHERE id = %s", [number]).fetchone() == (0,))
        roles = connection.execute(
            "SELECT DISTINCT usename FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY 1"
        ).fetchall()
    assert roles == [("presswork_scheduler",), ("presswork_web",), ("presswork_worker",)]
    logs = "".join(path.read_text() for path in (up.home / "logs").glob("*.log*") if path.name[0] in "sw")
    for refusal in ("permission denied", "NOPERM", "AccessDenied"):
        assert refusal not in logs


def test_every_program_understands_the_address_in_the_env_file(up):
    with psycopg.connect(up.values()["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("presswork_app",)


def test_a_key_is_made_and_revoked_with_nothing_but_the_env_file(up, client):
    def keys(*arguments: str) -> str:
        command = [sys.executable, "-m", "services.cli", "keys", *arguments]
        environ = {"PATH": os.environ["PATH"], **up.values()}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout.strip()

    job = client.submit([{"prompt": "a cup", "size": "64x64"}])
    key = keys("create", "a friend")
    with Client(up.values()["PRESSWORK_URL"], key) as friend:
        assert friend.job(job["id"])["id"] == job["id"]
        shown = keys("list")
        assert key.split("_")[1] in shown and "a friend" in shown and key.split("_")[2] not in shown
        assert keys("revoke", key.split("_")[1]) == "revoked"
        made = [json.loads(line) for line in keys("list", "--json").splitlines()]
        (one,) = (row for row in made if row["name"] == "a friend")
        assert (one["id"], one["revoked_at"] is None) == (key.split("_")[1], False)
        assert one["scopes"] == ["view", "submit", "operate", "admin"] and key.split("_")[2] not in str(one)
        with pytest.raises(ClientError, match="was revoked"):
            friend.job(job["id"])


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "pipeline", [pytest.param("torch", marks=pytest.mark.chaos), "onnx"]
)  # `up` is on the simulated one
def test_the_demo_renders_48_prompts_verifies_them_and_cleans_up(tmp_path, pipeline):
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PRESSWORK_", "OMP_"))}
    project = project_of_another(tmp_path / "project")
    demo = subprocess.run(
        [PRESSWORK, "demo", "--pipeline", pipeline], cwd=project, env=environ, capture_output=True, text=True,
        check=False, timeout=170,
    )  # fmt: skip
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "demo: 48 of 48 images done" in demo.stdout.splitlines()
    output = project / "demo-output"
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 48
    for row in rows:
        data = (output / f"{row['index']:02d}-{row['custom_id']}.png").read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert (row["flagged"], row["unknown_words"]) == (None, [])
        assert row["versions"].startswith("presswork ") and "torch " in row["versions"]
    with Image.open(output / "contact-sheet.png") as sheet:
        assert sheet.width > 1_000
    assert not (tmp_path / ".presswork" / "run.json").exists()
    assert "export PRESSWORK_MODEL='presswork-mini'\n" in (project / ".presswork" / "env").read_text()
    if pipeline == "onnx":
        assert "the worker is starting: exporting the U-Net, 2 of 3\n" in demo.stdout


def test_a_web_server_killed_between_commit_and_reply_makes_one_job_of_two_tries(
    environ, stack, database, store, tmp_path
):
    """A lock delays the read of the job for the reply, and not the commit before it."""
    factories.register(database)
    environment = {**environ, "PRESSWORK_PORT": str(free_port())}
    settings = Settings.read(environment)
    with database.begin_system() as connection:
        key = api_keys.issue_key(connection, settings.secret, factories.TENANT, "test")
    web = Process("services.web", environment, tmp_path / "web.log")
    with Client(f"http://127.0.0.1:{settings.port}", key) as client:
        until(lambda: _answers(settings.port))
        admin_url = stack.superuser_url.replace("+psycopg", "").rpartition("/")[0]
        name = environ["DATABASE_URL"].rpartition("/")[2]
        jobs: list[dict] = []
        with psycopg.connect(f"{admin_url}/{name}") as admin:
            admin.execute("LOCK TABLE counter_deltas IN ACCESS EXCLUSIVE MODE")
            sender = threading.Thread(target=lambda: jobs.append(client.submit([{"prompt": "a mug"}])))
            sender.start()

            def committed() -> bool:
                with database.begin_system() as connection:
                    return connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 1

            until(committed)
            web.kill()
            admin.rollback()
        web = Process("services.web", environment, tmp_path / "web.log")
        sender.join(30)
        web.kill()
    assert len(jobs) == 1
    with database.begin(factories.TENANT) as connection:
        found = queries.jobs(connection, factories.TENANT, before=2**63 - 1, limit=10)
    assert len(found) == 1
    assert found[0].counts["queued"] == 1


def test_a_client_that_cannot_reach_the_server_says_so():
    with Client("http://127.0.0.1:9", "pw_x", patience=0.1) as client, pytest.raises(ClientError, match="be reached"):
        client.job("job_0")
