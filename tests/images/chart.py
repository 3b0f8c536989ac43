"""`make chart-test`: the chart's pods, with its own servers, as containers of one engine, and jobs rendered by them.

They start as a cluster starts them: all at once, in any order, and the migration is a job beside them.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from presswork_client import Client
from tests.charts import HELM, SHIPPED, kinds, render
from tests.images import running
from tests.images.building import VERSION, builder, is_here, say
from tests.images.pods import MEMORY, Pod, secrets_of, wait_for
from tests.waiting import until

NAME = "presswork-chart-test"
SERVERS = ("postgres", "redis", "s3")
DRAINED = 24  # images of the job during which the worker is stopped
UP_SECONDS = 300.0


def test() -> None:
    """Ends with a sentence and code 1 when anything is not as it should be."""
    engine = os.environ.get("ENGINE") or builder()
    engine = "podman" if engine == "buildah" else engine
    if HELM is None or os.geteuid() != 0:
        sys.exit("chart-test takes Helm, on the PATH or in .helm, and root, who gives the volumes to the pods' groups.")
    for name in ("presswork", "presswork-worker"):
        if not is_here(engine, f"{name}:{VERSION}"):
            sys.exit(f"{engine} has no image {name}:{VERSION}: run `make images` first.")
    with tempfile.TemporaryDirectory(prefix="presswork-pods-") as folder:
        release = Release(engine, Path(folder))
        try:
            release.up()
            running.render_job(release.one("web").run_in, release.ports["web"])
            release.drain()
            release.refuse_a_newer_schema()
            for pod in release.pods:
                pod.assert_confined()
                assert pod.passes("livenessProbe"), f"{pod.name} is not alive"
            say("each container is confined as the chart says, alive, and was started once")
            release.stop()
        except (AssertionError, subprocess.SubprocessError) as error:
            for pod in release.pods:
                print(f"--- {pod.name}\n{pod.log()}", flush=True)
            sys.exit(f"chart-test failed: {error}")
        finally:
            release.remove()
    say("all containers, networks and volumes of the test are gone; the images stay")


class Release:
    """What `helm install` would bring about."""

    def __init__(self, engine: str, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(2)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            self.ports = dict(zip(("web", "s3"), (int(one.getsockname()[1]) for one in sockets), strict=True))
        embedded: dict[str, Any] = {
            name: {"image": running.server_image(engine, name, SHIPPED["embedded"][name]["image"])} for name in SERVERS
        }
        values = {
            "embedded": {"enabled": True, **embedded},
            "s3": {"publicEndpoint": f"http://127.0.0.1:{self.ports['s3']}"},
        }
        self._documents = render(values, folder)
        self._secrets = secrets_of(self._documents)
        self.pods = [pod for kind in ("StatefulSet", "Deployment") for pod in self._pods(kind)]
        assert {pod.alias for pod in self.pods} >= set(kinds(self._documents)["Service"])

    def one(self, part: str) -> Pod:
        """The first pod of a part of the chart."""
        return next(pod for pod in self.pods if pod.alias == f"try-{part}")

    def up(self) -> None:
        subprocess.run([self._engine, "network", "create", NAME], capture_output=True, check=True)
        began = time.monotonic()
        with ThreadPoolExecutor(len(self.pods) + 1) as pool:
            migration = pool.submit(self._migrate, "")
            started = [pool.submit(_bring_up, pod) for pod in self.pods]
            code, said = migration.result()
            assert code == 0, f"the migration failed: {said}"
            for pod, one in zip(self.pods, started, strict=True):
                say(f"{pod.name} has started after {one.result() - began:.0f} s")
        wait_for(self.pods, UP_SECONDS)

    def drain(self) -> None:
        """A worker that is stopped in the middle of a job ends in its grace, and leaves no claim to run out."""
        worker = self.one("worker-cpu")
        key = self.one("web").run_in("presswork", "keys", "create", "drain").stdout.split()[-1]
        with Client(f"http://127.0.0.1:{self.ports['web']}", key) as client:
            job = client.submit([{"prompt": f"a mug, number {place}", "seed": place} for place in range(DRAINED)])["id"]
            until(lambda: client.job(job)["counts"]["rendering"], UP_SECONDS, 0.05)
            code, seconds = worker.stop()
            counts = client.job(job)["counts"]
            assert code == 0, f"the worker ended with {code} after {seconds:.1f} s"
            assert not counts["rendering"] and counts["queued"] + counts["done"] == DRAINED, counts
            say(
                f"a worker stopped in a job ends after {seconds:.1f} s:"
                f" {counts['done']} done, {counts['queued']} queued"
            )
            began = time.monotonic()
            _bring_up(worker)
            say(f"the pod in its place has started after {time.monotonic() - began:.0f} s")
            until(lambda: client.job(job)["finished_at"], UP_SECONDS, 0.1)
            assert client.job(job)["counts"]["done"] == DRAINED, client.job(job)["counts"]
        assert self._psql("SELECT count(*) FROM images WHERE lost > 0 OR crashes > 0").strip() == "0", (
            "a batch was lost"
        )

    def refuse_a_newer_schema(self) -> None:
        """The migration of an upgrade to a release that the schema does not serve fails with one sentence."""
        before = self._psql("SELECT version_num FROM alembic_version").strip()
        comment = self._psql("SELECT obj_description('alembic_version'::regclass, 'pg_class')").strip()
        self._psql("UPDATE alembic_version SET version_num = '9999'")
        self._psql("COMMENT ON TABLE alembic_version IS 'serves programs from revision 9999'")
        code, said = self._migrate("-again")
        assert code != 0 and "does not serve it any more; upgrade the program" in " ".join(said.split()), said
        assert len(said.strip().splitlines()) <= 2, said
        self._psql(f"UPDATE alembic_version SET version_num = '{before}'")
        self._psql(f"COMMENT ON TABLE alembic_version IS '{comment}'")
        code, said = self._migrate("-back")
        assert code == 0, said
        say("a schema that is ahead stops the migration with one sentence; programs go on")

    def stop(self) -> None:
        """Each pod ends by itself when it is told to: programs first, then servers."""
        for pod in reversed(self.pods):
            code, seconds = pod.stop()
            assert code in (0, 143), f"{pod.name} ended with {code} after {seconds:.1f} s"  # 143: by SIGTERM itself
            say(f"{pod.name} ends after {seconds:.1f} s with {code}")

    def remove(self) -> None:
        for pod in self.pods:
            pod.remove()
        subprocess.run([self._engine, "network", "rm", "--force", NAME], capture_output=True, check=False)
        shutil.rmtree(MEMORY, ignore_errors=True)

    def _pods(self, kind: str) -> list[Pod]:
        made = []
        for name, document in kinds(self._documents)[kind].items():
            for place in range(document["spec"]["replicas"]):
                port = self.ports.get(name.removeprefix("try-")) if place == 0 else None
                pod = self._pod(f"{name}-{place}", document, alias=name, publish=port)
                for claim in document["spec"].get("volumeClaimTemplates", []):
                    pod.claim(claim["metadata"]["name"], self._folder / "claims" / pod.name)
                made.append(pod)
        return made

    def _pod(self, name: str, document: dict[str, Any], *, alias: str, publish: int | None = None) -> Pod:
        template = document["spec"]["template"]
        return Pod(
            self._engine, NAME, name, template, self._secrets, self._folder / "pods", alias=alias, publish=publish
        )

    def _migrate(self, suffix: str) -> tuple[int, str]:
        [job] = kinds(self._documents)["Job"].values()
        pod = self._pod(f"try-migrate{suffix}-{secrets.token_hex(2)}", job, alias="migrate")
        pod.prepare()
        return pod.run_to_its_end()

    def _psql(self, query: str) -> str:
        options = ("-X", "-A", "-t", "-h", "127.0.0.1", "-U", "presswork_admin", "-d", "presswork", "-c", query)
        script = 'PGPASSWORD=$POSTGRES_PASSWORD exec psql "$@"'
        return self.one("postgres").run_in("sh", "-c", script, "psql", *options).stdout


def _bring_up(pod: Pod) -> float:
    """Starts a pod; the moment when it had started."""
    pod.prepare()
    pod.start()
    pod.wait_started()
    return time.monotonic()
