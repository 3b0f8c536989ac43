"""What a machine or a container withholds: a writable /dev/shm, a home folder. One sentence, or it does not matter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.local.child import run
from worker import exit_codes

UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
MOUNTED = 'for folder in {folders}; do mount -t tmpfs -o {options} tmpfs $folder || exit 1; done; exec "$@"'


def inside(options: str, *command: object, folders: str = "/dev/shm") -> list[str]:
    """The command with a /dev/shm, or other folders, of its own."""
    script = MOUNTED.format(folders=folders, options=options)
    return [*UNSHARE, script, "sh", *map(str, command)]


def namespaces_work() -> bool:
    return subprocess.run(inside("ro", "true"), capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not namespaces_work(), reason="this machine lets nobody make user namespaces")


@needs_namespaces
@pytest.mark.parametrize("options", ["ro", "size=4k", "size=16k"])
def test_a_worker_without_shared_memory_says_so_in_one_sentence(environ, store, options):
    told = subprocess.run(
        inside(options, sys.executable, "-m", "worker.app"),
        env=os.environ | environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert told.returncode == exit_codes.SETTINGS
    (sentence,) = told.stderr.splitlines()
    assert sentence.startswith("worker: Locks between processes cannot be made (") and "/dev/shm" in sentence


@needs_namespaces
@pytest.mark.parametrize("module", ["services.web", "scheduler.app"])
def test_a_process_without_a_folder_for_temporary_files_says_so_in_one_sentence(environ, module):
    command = inside("ro", sys.executable, "-m", module, folders="/tmp /var/tmp /dev/shm")
    rest = {name: value for name, value in os.environ.items() if name not in ("TMPDIR", "TEMP", "TMP")}
    told = subprocess.run(
        command, env=rest | environ, cwd="/dev/shm", capture_output=True, text=True, timeout=120, check=False
    )
    assert told.returncode == exit_codes.SETTINGS
    (sentence,) = told.stderr.splitlines()
    assert sentence.startswith(f"{module.split('.')[0].replace('services', 'web')}: No folder for temporary files")


@needs_namespaces
def test_the_embedded_postgres_needs_no_shared_memory(tmp_path):
    """Not even for a query whose workers pass rows to one another."""
    program = """
import pathlib, psycopg, sys
from services.local.stack import Stack
given = {"REDIS_URL": "redis://127.0.0.1:9/0", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
with Stack(pathlib.Path(sys.argv[1]), given) as stack, psycopg.connect(stack.superuser_url) as database:
    database.execute("SET debug_parallel_query = on")
    print(database.execute("SELECT count(*) FROM pg_class a JOIN pg_class b USING (oid)").fetchone()[0])
"""
    told = subprocess.run(
        inside("ro", sys.executable, "-c", program, tmp_path / "home"), cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) > 0


@needs_namespaces
def test_a_user_without_a_home_folder_gets_sentences(environ):
    homeless = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    }
    homeless = {name: value for name, value in homeless.items() if not name.startswith("PRESSWORK_")}
    program = (
        "from services.core.settings import Settings; from worker.pipeline import artefacts; artefacts(Settings.read())"
    )
    told = run([sys.executable, "-c", program], env=homeless | environ, identity="inner:54321")
    assert told.stderr.splitlines()[-1].endswith("set PRESSWORK_ARTEFACTS to a folder that can be written.")
    told = run([Path(sys.executable).with_name("presswork"), "ls"], env=homeless, identity="inner:54321", cwd=Path("/"))
    assert "write [profiles.NAME]" in " ".join(told.stderr.split())
