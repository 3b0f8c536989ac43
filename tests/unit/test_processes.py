"""A command that runs another waits until it has tidied up after Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import take_interrupts
from tests.waiting import until

ROOT = Path(__file__).parents[2]
TIDIES_UP = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
try:
    (folder / "ready").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)  # twice as long as subprocess.run waits
    (folder / "tidy").touch()
    sys.exit(130)
"""
RUNS_IT = "import sys; from services.core.processes import run; sys.exit(run([sys.executable, *sys.argv[1:]]))"


def test_a_command_may_tidy_up_after_ctrl_c(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUNS_IT, "-c", TIDIES_UP, str(tmp_path)], cwd=ROOT, start_new_session=True,
        preexec_fn=take_interrupts,  # noqa: PLW1509  no lock of a thread is needed there
    )  # fmt: skip
    until((tmp_path / "ready").exists)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert (tmp_path / "tidy").exists()
