"""`make screenshots`: pictures of the dashboard, of the real thing.

Starts `presswork up` in a folder of its own with the shipped model, submits the demo's prompts as three jobs and, while
the second is rendered, writes the overview and its job's page as PNG, light and dark.
"""

import argparse
import io
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from presswork_client import Client, ImageRequest
from tests.dashboard.conftest import CHROMIUM
from tests.processes import Command
from tests.waiting import until

PROMPTS = Path(__file__).parents[1] / "services" / "cli" / "demo.jsonl"
START_SECONDS = 900.0  # the first start exports the model
RENDER_SECONDS = 1800.0
EVERY_SECONDS = 1.0
WIDTH, HEIGHT = 1280, 1080
MOST_BYTES = 150_000
THEMES = ("light", "dark")
_LOADED = "[...document.images].every((one) => one.complete || one.getBoundingClientRect().top > innerHeight)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder: Path = parser.parse_args().folder
    if not CHROMIUM:
        print("no chromium: install it (apt-get install chromium) or set CHROMIUM", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    with _up() as (client, url, key), sync_playwright() as playwright:
        job = _work(client)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for theme in THEMES:
            _look(browser, url, key, job, theme, folder)
        browser.close()
    return 0


@contextmanager
def _up() -> Iterator[tuple[Client, str, str]]:
    """The local stack: a client of it, its address and its key."""
    with tempfile.TemporaryDirectory(prefix="presswork-screenshots-") as folder:
        home = Path(folder) / "home"
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
        up = Command({"PRESSWORK_PORT": port}, Path(folder) / "up.log", "up", "--home", str(home), cwd=Path(folder))
        try:
            until(lambda: "ready at" in up.text() or up.popen.poll() is not None, START_SECONDS, EVERY_SECONDS)
            assert up.popen.poll() is None, up.text()
            lines = (home / "env").read_text(encoding="utf-8").splitlines()
            values = dict(line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)
            url, key = f"http://127.0.0.1:{port}", values["PRESSWORK_API_KEY"].strip("'\"")
            with Client(url, key) as client:
                until(lambda: client.overview()["status"] == "ok", START_SECONDS, EVERY_SECONDS)
                yield client, url, key
        finally:
            up.stop()


def _work(client: Client) -> str:
    """A finished job, one that waits, and one that is being rendered: its id, when half of it is done."""
    prompts = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]

    def submit(name: str, times: int, **head: str) -> str:
        images: list[ImageRequest] = [
            {**one, "custom_id": f"{one['custom_id']}-{turn}", "seed": one["seed"] + 1000 * turn}
            for turn in range(times)
            for one in prompts
        ]
        return client.submit(images, labels={"name": name, "for": "shop"}, **head)["id"]

    first = submit("Proofs of the spring range", 2, priority="high")
    job, _ = submit("Spring catalogue", 12), submit("Night run", 20, priority="low")
    until(lambda: client.job(first)["finished_at"] is not None, RENDER_SECONDS, EVERY_SECONDS)
    until(lambda: client.job(job)["counts"]["done"] >= len(prompts) * 6, RENDER_SECONDS, EVERY_SECONDS)
    return job


def _look(browser: Browser, url: str, key: str, job: str, theme: str, folder: Path) -> None:
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{url}/sign-in")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")
    for name, path in (("overview", "/"), ("job", f"/jobs/{job}")):
        page.goto(url + path)
        page.locator(".chart canvas").wait_for()
        until(lambda: page.evaluate(_LOADED))
        _write(page.screenshot(), folder / f"{name}-{theme}.png")
    context.close()


def _write(png: bytes, path: Path) -> None:
    """With as many colours as fit into MOST_BYTES."""
    with Image.open(io.BytesIO(png)) as picture:
        for colours in (256, 128, 64, 32):
            held = io.BytesIO()
            picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(held, "PNG", optimize=True)
            if held.tell() <= MOST_BYTES:
                break
    path.write_bytes(held.getvalue())
    print(f"{path}: {held.tell():,} bytes, {colours} colours")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
