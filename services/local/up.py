"""One machine's Presswork: the embedded servers, the schema, a key, and web, scheduler and workers beside them."""

import json
import os
import shlex
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.core.db import database, partitions
from services.core.model.errors import PressworkError
from services.core.model.pipelines import PIPELINES
from services.core.processes import python
from services.core.settings import Settings
from services.core.storage import s3
from services.core.tenants import api_keys
from services.local.errors import PortTaken
from services.local.home import Home, is_free, write_env_file, write_private
from services.local.stack import Stack
from services.local.supervisor import Program, Supervisor

WORKER_GRACE = 90.0
READY_SECONDS = 120.0
SHIPPED_MODEL = "presswork-mini"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What a person asked for on the command line."""

    home: Path
    workers: int
    pipeline: str


def up(wishes: UpOptions, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Runs everything until INT or TERM. Raises PressworkError in one sentence, with everything stopped."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    environ = dict(environ) | {"PRESSWORK_PIPELINE": wishes.pipeline}
    Settings.read({"DATABASE_URL": "postgresql://", "REDIS_URL": "redis://"} | environ)  # a bad one is found first
    port = int(environ.get("PRESSWORK_PORT") or Settings.default("PRESSWORK_PORT"))
    stack = Stack(wishes.home, environ, say)
    began = time.monotonic()
    with stack:
        if not is_free(port):
            raise PortTaken(f"Port {port} is in use by another program; set PRESSWORK_PORT to a free one.")
        values = dict(stack.values) | _pipeline_values(wishes, environ, stack.home)
        settings = Settings.read(environ | values)
        database.migrate(stack.migrator_url)
        s3.S3Store(settings).prepare()
        key = _saved_key(settings, stack.home)
        url = f"http://{settings.host}:{settings.port}"
        env_file = write_env_file(wishes.home, {"PRESSWORK_URL": url, "PRESSWORK_API_KEY": key} | _for_people(values))
        say(f"servers up in {time.monotonic() - began:.1f} s; starting web, scheduler and {wishes.workers} worker(s)")
        supervisor = Supervisor(stack, _programs(wishes, values), say)
        announcer = threading.Thread(target=_announce, args=(url, env_file, stopping, say), daemon=True)
        announcer.start()
        supervisor.run_until(stopping)
        say("stopped")


def _programs(wishes: UpOptions, values: Mapping[str, str]) -> list[Program]:
    threads = str(max(1, (os.cpu_count() or 1) // wishes.workers))
    quiet = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    shared = dict(values) | {"PRESSWORK_PIPELINE": wishes.pipeline}
    return [
        Program("web", python("services.web"), shared, grace=15.0),
        Program("scheduler", python("scheduler.app"), shared, grace=15.0),
        *(
            Program(f"worker-{number}", python("worker.app"), shared | quiet, grace=WORKER_GRACE)
            for number in range(1, wishes.workers + 1)
        ),
    ]


def _pipeline_values(wishes: UpOptions, environ: Mapping[str, str], home: Home) -> dict[str, str]:
    """Every pipeline but the simulated one needs a model: the small one that ships, where none is named. What its
    networks are compiled to is kept in the folder."""
    if wishes.pipeline in PIPELINES and PIPELINES[wishes.pipeline].model:
        return {}
    model = environ.get("PRESSWORK_MODEL_DIR") or SHIPPED_MODEL
    name = environ.get("PRESSWORK_MODEL") or json.loads(_of_model("inspect", "--json", "--", model))["name"]
    artefacts = environ.get("PRESSWORK_ARTEFACTS") or str(home.folder / "artefacts")
    return {"PRESSWORK_MODEL_DIR": model, "PRESSWORK_MODEL": name, "PRESSWORK_ARTEFACTS": artefacts}


def _of_model(*command: str) -> str:
    """What `presswork model` prints. Raises PressworkError with its last line where it fails."""
    found = subprocess.run(python("worker.model", *command), capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise PressworkError((found.stderr.strip().splitlines() or ["The model cannot be read."])[-1])
    return found.stdout


def _saved_key(settings: Settings, home: Home) -> str:
    """The key that this folder's people use: issued once, and again only if this database does not know it."""
    file = home.folder / "key"
    core = database.Database(settings.database_url, application="presswork up", pool_size=1)
    try:
        with core.begin_system() as connection:
            partitions.make_partitions(connection)  # a folder that lay still for months gets this week's before any job
            key = file.read_text(encoding="utf-8").strip() if file.exists() else ""
            if api_keys.authenticate(connection, settings.secret, key) is None:
                key = api_keys.issue_key(connection, settings.secret, api_keys.default_tenant(connection), "local")
    finally:
        core.close()
    write_private(file, key + "\n")
    return key


def _for_people(values: Mapping[str, str]) -> dict[str, str]:
    """What a shell needs for `presswork doctor`, `keys` and a worker by hand."""
    shown = ("DATABASE_", "REDIS_", "AWS_", "PRESSWORK_SECRET")
    return {name: value for name, value in values.items() if name.startswith(shown)}


def _announce(url: str, env_file: Path, stopping: threading.Event, say: Callable[[str], None]) -> None:
    """Says so once a submit would be accepted, or that it takes long."""
    began = time.monotonic()
    while not stopping.wait(0.1):
        if _ready(url):
            source = f". {shlex.quote(str(env_file))}"
            say(f"ready at {url} after {time.monotonic() - began:.1f} s; `{source}` sets PRESSWORK_API_KEY")
            return
        if time.monotonic() - began > READY_SECONDS:
            say(f"not ready after {READY_SECONDS:.0f} s; see {url}/readyz and the logs in {env_file.parent / 'logs'}")
            return


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as reply:  # noqa: S310  our own address
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
