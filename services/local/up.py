"""Runs Presswork on one machine: embedded servers, schema, an API key, then web, scheduler and workers."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.core.db import database, partitions
from services.core.metrics import endpoint
from services.core.model.errors import InvalidKey, PressworkError
from services.core.model.pipelines import PIPELINES
from services.core.processes import python
from services.core.settings import Settings
from services.core.storage import installation, s3
from services.core.tenants import api_keys
from services.local import device_files
from services.local.announcing import announce
from services.local.errors import PortTaken
from services.local.home import Home, is_free, write_env_file, write_private
from services.local.stack import Stack
from services.local.supervisor import Program, Supervisor

WORKER_GRACE = 90.0
SHIPPED_MODEL = "presswork-mini"
STAND_IN_FOR = "ai100"  # the pipeline


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The options of `presswork up`. Each of `models` gets `workers` workers; without any it is PRESSWORK_MODEL_DIR.
    Each of `devices` gets a worker of its own; without any, all workers have PRESSWORK_DEVICE.
    `stand_in`: instead of a Cloud AI 100 there is one that only ONNX Runtime computes."""

    home: Path
    workers: int
    pipeline: str
    models: tuple[str, ...] = ()
    stand_in: bool = False
    devices: tuple[str, ...] = ()

    @property
    def all_workers(self) -> int:
        return len(self.devices) or self.workers * max(len(self.models), 1)

    @property
    def places(self) -> list[dict[str, str]]:
        """Where `workers` workers each are: a model's folder, or a device."""
        if self.devices:
            model = {"PRESSWORK_MODEL_DIR": self.models[0]} if self.models else {}
            return [{"PRESSWORK_DEVICE": device, **model} for device in self.devices]
        return [{"PRESSWORK_MODEL_DIR": model} for model in self.models] or [{}]


def up(options: UpOptions, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Runs everything until INT or TERM. If something fails, all is stopped and PressworkError is raised."""
    if options.stand_in and options.pipeline != STAND_IN_FOR:
        raise PressworkError(f"--stand-in takes the place of a Cloud AI 100; it goes with --pipeline {STAND_IN_FOR}.")
    if not options.stand_in:
        device_files.check(options.devices, options.pipeline, is_alone=options.workers == 1 and len(options.models) < 2)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    environ = dict(environ) | {"PRESSWORK_PIPELINE": options.pipeline}
    early = Settings.read(
        {"DATABASE_URL": "postgresql://", "REDIS_URL": "redis://"} | environ
    )  # invalid settings are found before anything starts
    shows = endpoint.ports(early.metrics_port, 1 + options.all_workers)
    port = int(environ.get("PRESSWORK_PORT") or Settings.default("PRESSWORK_PORT"))
    stack = Stack(options.home, environ, say)
    began = time.monotonic()
    with stack:
        if not is_free(port):
            raise PortTaken(f"Port {port} is in use by another program; `presswork up --port NUMBER` takes another.")
        _check_metrics_ports(shows, port)
        values = dict(stack.values) | _pipeline_values(options, environ, stack.home)
        if options.stand_in:
            values |= _stand_in(stack.home, say)
        settings = Settings.read(environ | values)
        database.migrate(stack.migrator_url)
        _prepare_store(settings)
        key = _saved_key(settings, stack.home)
        url = f"http://{settings.host}:{settings.port}"
        shell = {"PRESSWORK_URL": url, "PRESSWORK_API_KEY": key} | _shell_variables(values, settings)
        env_file = write_env_file(options.home, shell)
        took, workers = time.monotonic() - began, options.all_workers
        say(f"servers up in {took:.1f} s; starting web, scheduler and {workers} worker(s)")
        supervisor = Supervisor(stack, _programs(options, values, stack.programs, settings.metrics_port), say, url)
        core = database.Database(settings.database_url, application="presswork up", pool_size=1)
        announcer = threading.Thread(target=announce, args=(url, env_file, core, stopping, say), daemon=True)
        announcer.start()
        supervisor.run_until(stopping)
        say("stopped")


def _check_metrics_ports(shows: Sequence[int], port: int) -> None:
    """Raises PortTaken: one of them is the web server's, or another program's, such as another folder's worker."""
    for number in filter(None, shows):
        if number == port or not is_free(number):
            owner = "the web server's" if number == port else "in use by another program"
            needed = f"{len(shows)} ports from PRESSWORK_METRICS_PORT on must be free"
            raise PortTaken(f"Port {number}, for metrics, is {owner}: {needed}.")


def _programs(
    options: UpOptions, values: Mapping[str, str], own: Mapping[str, dict[str, str]], metrics_port: int = 0
) -> list[Program]:
    """`own` is what each program has of its own, such as its role at the database. Schedulers and workers show their
    metrics from `metrics_port` on."""
    shared = dict(values) | {"PRESSWORK_PIPELINE": options.pipeline}
    of_workers = {"PRESSWORK_WORKERS": str(options.all_workers), "OMP_WAIT_POLICY": "PASSIVE", "PRESSWORK_DEVICES": ""}
    folders = options.places
    served = [folder for folder in folders for _ in range(options.workers)]
    shows = [{"PRESSWORK_METRICS_PORT": str(port)} for port in endpoint.ports(metrics_port, 1 + options.all_workers)]
    return [
        Program("web", python("services.web"), shared | own["web"], grace=15.0),
        Program("scheduler", python("scheduler.app"), shared | own["scheduler"] | shows[0], grace=15.0),
        *(
            Program(
                f"worker-{number}",
                python("worker.app"),
                shared | of_workers | own["worker"] | model | shows[number],
                grace=WORKER_GRACE,
            )
            for number, model in enumerate(served, 1)
        ),
    ]


def _pipeline_values(options: UpOptions, environ: Mapping[str, str], home: Home) -> dict[str, str]:
    """The default model is the first that the workers here serve, whatever a shell has read from an env file before.
    For a pipeline that needs a model, if none is named, it is the one that ships. Compiled networks are kept in the
    folder.
    """
    always = PIPELINES[options.pipeline].model if options.pipeline in PIPELINES else None
    if always:
        if options.models:
            raise PressworkError(f"The pipeline {options.pipeline} serves no model of a directory; leave --model out.")
        return {"PRESSWORK_MODEL": always}
    models = options.models or (environ.get("PRESSWORK_MODEL_DIR") or SHIPPED_MODEL,)
    names = [json.loads(_run_model_command("inspect", "--json", "--", model))["name"] for model in models]
    for number, name in enumerate(names):
        if (first := names.index(name)) < number:
            raise PressworkError(
                f"{models[first]} and {models[number]} are both named {name}; give one another name in the "
                '"presswork" block of its model_index.json.'
            )
    model, name = models[0], names[0]
    artefacts = environ.get("PRESSWORK_ARTEFACTS") or str(home.folder / "artefacts")
    return {"PRESSWORK_MODEL_DIR": model, "PRESSWORK_MODEL": name, "PRESSWORK_ARTEFACTS": artefacts}


def _stand_in(home: Home, say: Callable[[str], None]) -> dict[str, str]:
    """Installs the stand-in for a Cloud AI 100 in the folder, in the place of its SDK."""
    folder = home.folder / "ai100-stand-in"
    subprocess.run(python("worker.pipelines.ai100_stand_in", str(folder)), check=True)
    say("there is no Cloud AI 100: a stand-in computes on this CPU, and every picture's class says so")
    return {"PRESSWORK_AI100_SDK": str(folder)}


def _run_model_command(*command: str) -> str:
    """The output of `presswork model`. Raises PressworkError with its last line if it fails."""
    found = subprocess.run(python("worker.model", *command), capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise PressworkError((found.stderr.strip().splitlines() or ["The model cannot be read."])[-1])
    return found.stdout


def _prepare_store(settings: Settings) -> None:
    store = s3.S3Store(settings)
    store.prepare()
    core = database.Database(settings.database_url, application="presswork up", pool_size=1)
    try:
        installation.claim_prefix(core, store)
    finally:
        core.close()


def _saved_key(settings: Settings, home: Home) -> str:
    """The folder's API key. It is issued once, and again only if this database does not have it."""
    file = home.folder / "key"
    core = database.Database(settings.database_url, application="presswork up", pool_size=1)
    try:
        with core.begin_system() as connection:
            partitions.make_partitions(
                connection
            )  # a folder that was not used for months needs this week's before a job
            key = file.read_text(encoding="utf-8").strip() if file.exists() else ""
            try:
                api_keys.authenticate(connection, settings.secrets, key)
            except InvalidKey:
                key = api_keys.issue_key(connection, settings.secret, api_keys.default_tenant(connection), "local")
    finally:
        core.close()
    write_private(file, key + "\n")
    return key


def _shell_variables(values: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """The variables that `presswork doctor` and `keys` need: the servers, and what they look for there."""
    shown = ("DATABASE_", "REDIS_", "AWS_", "PRESSWORK_SECRET")
    servers = {name: value for name, value in values.items() if name.startswith(shown)}
    return servers | {"PRESSWORK_MODEL": settings.model, "PRESSWORK_BUCKET": settings.bucket}
