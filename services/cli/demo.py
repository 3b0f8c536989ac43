"""`presswork demo`: the whole flow once, on the stack that is up on the folder or on one that it starts."""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from presswork_client import Client, ClientError, Image, Job
from services.cli import profile, show
from services.cli.sheet import contact_sheet
from services.core import extras
from services.core.model.errors import PressworkError
from services.core.processes import python

console = show.out()
START_SECONDS = 900.0  # the first start exports the model; what it does is said meanwhile
POLL_SECONDS = 0.25
DOWNLOADS = 8


def run(home: Path, output: Path, pipeline: str) -> int:
    prompts = resources.files("services.cli") / "demo.jsonl"
    with stack(home, pipeline) as client, resources.as_file(prompts) as file:
        local = profile.local_stack(home)
        if local is not None:
            console.print(f"the dashboard is at {local.url}", soft_wrap=True)
        try:
            return _render(client, file, output)
        except ClientError as error:
            raise PressworkError(str(error)) from error


def _render(client: Client, prompts: Path, output: Path) -> int:
    requests = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    job = client.submit_file(prompts)
    console.print(f"submitted {len(requests)} prompts as {job['id']}")
    job = _watch(client, job["id"])
    images = list(client.images(job["id"]))
    done = [image for image in images if image["status"] == "done"]
    _download(client, job["id"], done, output)
    results = output / "results.jsonl"
    lines = [json.dumps({"prompt": requests[image["index"]]["prompt"], **image}) for image in images]
    results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sheet = output / "contact-sheet.png"
    contact_sheet([(output / _file_name(image), image["custom_id"] or "") for image in done], _title(done)).save(sheet)
    for image in images:
        if image["error"]:
            console.print(f"image {image['index']} failed: {image['error']['message']}")
    console.print(f"images, {results.name} and {sheet.name} are in {output}/")
    console.print(f"demo: {len(done)} of {len(requests)} images done")
    return 0 if len(done) == len(requests) else 1


def _title(images: list[Image]) -> str:
    """The sheet's title names what made the pictures: a model, or the simulated pipeline, which has none."""
    made_by = {tuple((image["reproducibility_class"] or "").split("/")[:3]) for image in images}
    who = [
        "drawn by the simulated pipeline" if backend == "simulated" else f"by {revision}, {backend} {precision}"
        for revision, backend, precision in sorted(made_by)
    ]
    return f"Presswork demo: {len(images)} images {', '.join(who)}"


def _watch(client: Client, job_id: str) -> Job:
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("rendering", total=None)
        while True:
            job = client.job(job_id)
            counts = job["counts"]
            final = counts["done"] + counts["failed"] + counts["cancelled"]
            words = f"{job['status']}: {counts['rendering']} rendering, {counts['queued']} queued"
            bar.update(task, total=counts["total"], completed=final, description=words)
            if job["finished_at"]:
                return job
            time.sleep(POLL_SECONDS)


def _download(client: Client, job_id: str, images: list[Image], output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        for earlier in (*output.glob("[0-9][0-9]-*.*"), output / "results.jsonl", output / "contact-sheet.png"):
            earlier.unlink(missing_ok=True)
    except OSError as error:
        raise PressworkError(f"{output} cannot be written ({error.strerror}); name another with --output.") from error

    def fetch(image: Image) -> None:
        data = client.download(job_id, image["index"])
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            raise PressworkError(f"Image {image['index']} does not match its sha256.")
        (output / _file_name(image)).write_bytes(data)

    with ThreadPoolExecutor(DOWNLOADS) as pool:
        list(pool.map(fetch, images))
    console.print(f"downloaded {len(images)} images; every sha256 matches")


def _file_name(image: Image) -> str:
    extension = {"png": "png", "jpeg": "jpg", "webp": "webp"}[image["output_format"]]
    return f"{image['index']:02d}-{image['custom_id']}.{extension}"


@contextmanager
def stack(home: Path, pipeline: str) -> Iterator[Client]:
    """A client of the stack on this folder. A stack that is started here is stopped at the end."""
    running = _ready_client(home)
    if running is not None:
        console.print(f"using the stack that is up on {home}")
        yield running
        return
    extras.require_stack(pipeline)
    command = python("services.local", "up", "--home", str(home), "--pipeline", pipeline)
    environ = dict(os.environ) | ({} if "PRESSWORK_PORT" in os.environ else {"PRESSWORK_PORT": str(_free_port())})
    process = subprocess.Popen(command, env=environ, start_new_session=True)
    try:
        yield _wait_ready(home, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait_ready(home: Path, process: subprocess.Popen[bytes]) -> Client:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PressworkError("The stack did not start.")
        client = _ready_client(home, holder=process.pid)
        if client is not None:
            return client
        time.sleep(0.1)
    raise PressworkError(f"The stack was not ready after {START_SECONDS:.0f} s; see the logs in {home / 'logs'}.")


def _ready_client(home: Path, holder: int | None = None) -> Client | None:
    """A client by the folder's env file, if its server is ready; with `holder`, only if that pid holds the folder."""
    try:
        pid = int((home / "lock").read_text().strip())
    except (OSError, ValueError):
        return None
    local = profile.local_stack(home)
    if local is None or (holder is not None and pid != holder):
        return None
    client = Client(local.url, local.api_key)
    return client if client.ready() else None


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
