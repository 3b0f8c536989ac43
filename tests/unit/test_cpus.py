"""How many threads to use: affinity, the control groups' quotas as the kernel shows them, and who may override them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.core import cpus
from services.local.up import UpOptions, _programs

MANY = len(os.sched_getaffinity(0))


def kernel(root: Path, group: str, files: dict[str, str]) -> Path:
    """A root folder in which the kernel shows this process's control group, and files of control groups."""
    for name, text in {"proc/self/cgroup": group, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("group", "files", "share"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, MANY),
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "150000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 1),
        ("0::/on/the/host\n", {"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        (
            "5:cpuacct,cpu:/a\n3:memory:/a\n",
            {"sys/fs/cgroup/cpuacct,cpu/a/cpu.cfs_quota_us": "100000\n",
             "sys/fs/cgroup/cpuacct,cpu/a/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        (
            "5:cpu:/\n",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            MANY,
        ),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "900000000 100000\n"}, MANY),
        ("nonsense\n", {}, MANY),
    ],
)  # fmt: skip
def test_a_quota_is_rounded_down_and_never_to_nothing(tmp_path, group, files, share):
    assert cpus.available(kernel(tmp_path, group, files)) == share


def test_without_control_groups_affinity_counts(tmp_path):
    alone = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from services.core import cpus; "
    told = subprocess.check_output([sys.executable, "-c", alone + "print(cpus.available())"], text=True)
    assert told == "1\n"
    assert cpus.available(tmp_path) == MANY


@pytest.mark.parametrize(("threads", "before", "after"), [(3, "2", "3"), (0, "2", "2"), (0, "", str(cpus.available()))])
def test_the_setting_overrides_the_usual_variable_and_that_the_machine(monkeypatch, threads, before, after):
    monkeypatch.setenv("OMP_NUM_THREADS", before)
    cpus.set_threads(threads)
    assert os.environ["OMP_NUM_THREADS"] == after


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_the_workers_of_one_machine_share_its_cpus(monkeypatch, tmp_path, workers):
    nothing: dict[str, dict[str, str]] = {"web": {}, "scheduler": {}, "worker": {}}
    programs = _programs(UpOptions(tmp_path, workers, "simulated"), {}, nothing)
    told = [program.env["PRESSWORK_WORKERS"] for program in programs if program.name.startswith("worker-")]
    assert told == [str(workers)] * workers
    monkeypatch.delenv("OMP_NUM_THREADS")
    cpus.set_threads(0, int(told[0]))
    assert os.environ["OMP_NUM_THREADS"] == str(max(1, cpus.available() // workers))
