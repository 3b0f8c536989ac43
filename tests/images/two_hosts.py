"""`make two-hosts-test`: the README's recipe for two hosts by compose, with two projects of one engine as the hosts.

Their containers share no network: the second reaches the first at what that publishes on its private address alone,
which the loopback interface has for as long as this runs. Files and settings are those that stand in the README.
"""

import functools
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from presswork_client import Client
from tests.images import running
from tests.images.building import ROOT, VERSION, is_here, say
from tests.waiting import until

ADDRESS = "10.0.0.1"
WEB_PORT = 8420
IMAGES = 8


def test() -> None:
    """Ends with a sentence and code 1 when anything is not as it should be."""
    runner = running.find_runner()
    for name in ("presswork", "presswork-worker"):
        if not is_here(runner, f"{name}:{VERSION}"):
            sys.exit(f"{runner} has no image {name}:{VERSION}: run `make images` first.")
    if os.geteuid() != 0:
        sys.exit(f"two-hosts-test takes root, who gives the loopback interface the address {ADDRESS}.")
    override, first, second = recipe()
    with tempfile.TemporaryDirectory(prefix="presswork-hosts-") as folder, address():
        given = _secrets()
        theirs = {name: value.replace("PASSWORD", given[_PASSWORDS[name]]) for name, value in second.items()
                  if name in _PASSWORDS}  # fmt: skip
        shared = ("WORKER_PASSWORD", "REDIS_WORKER_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")
        other = {name: given[name] if name in shared else "any-other-word" for name in given}
        one = running.Stack(
            runner,
            Path(folder) / "first.yaml",
            os.environ | given | first,
            project="presswork-first",
            override=override,
        )
        two = running.Stack(
            runner, Path(folder) / "second.yaml", os.environ | other | second | theirs, project="presswork-second",
            only="worker",
        )  # fmt: skip
        try:
            for stack in (one, two):
                stack.write()
                stack.up()
                say(f"the {'first' if stack is one else 'second'} host is up")
            running.render_job(functools.partial(one.run_in, "web"), WEB_PORT, ADDRESS)
            _render_on_the_second(one, two)
        except (AssertionError, subprocess.CalledProcessError) as error:
            one.show_logs()
            two.show_logs()
            sys.exit(f"two-hosts-test failed: {error}")
        finally:
            two.down()
            one.down()
    say("all containers, networks, volumes and the address of the test are gone; the images stay")


_PASSWORDS = {"WORKER_DATABASE_URL": "WORKER_PASSWORD", "WORKER_REDIS_URL": "REDIS_WORKER_PASSWORD"}


def recipe() -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """The services of the override, and the lines that the README adds to each host's `.env`."""
    section = (ROOT / "services/README.md").read_text().split("Two hosts by compose")[1].split("\n## ")[0]
    override, *files = re.findall(r"```(?:yaml|sh)\n(.*?)```", section, re.DOTALL)
    first, second = (dict(re.findall(r"^(\w+)=(\S*)", file, re.MULTILINE)) for file in files)
    return yaml.safe_load(override)["services"], first, second


@contextmanager
def address() -> Iterator[None]:
    add = ["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"]
    subprocess.run(add, check=True)
    try:
        yield
    finally:
        subprocess.run([*add[:2], "delete", *add[3:]], check=True)


def _secrets() -> Mapping[str, str]:
    return {name: secrets.token_hex(16) for name in re.findall(r"\$\{(\w+):\?", running.TEXT)}


def _render_on_the_second(one: running.Stack, two: running.Stack) -> None:
    """The first host's worker is stopped; what is submitted then is drawn by the second's."""
    subprocess.run([one.engine, "stop", "--time", "60", one.container("worker")], capture_output=True, check=True)
    key = one.run_in("web", "presswork", "keys", "create", "two-hosts").stdout.split()[-1]
    with Client(f"http://{ADDRESS}:{WEB_PORT}", key) as client:
        job = client.submit([{"prompt": f"a mug, number {place}", "seed": place} for place in range(IMAGES)])["id"]
        until(lambda: client.job(job)["finished_at"], running.JOB_SECONDS, 0.1)
        assert client.job(job)["counts"]["done"] == IMAGES, client.job(job)["counts"]
    assert two.restarts("worker") == 0
    say(f"{IMAGES} images were drawn by the second host alone, after the first one's worker was stopped")
