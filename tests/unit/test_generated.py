"""What Triton makes of our kernels for a GPU that is not here: nothing spilled, wide loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNT = """
import json
from worker.bench import generated
print(json.dumps({name: generated.generate(kernel) for name, kernel in generated.kernels().items()}))
"""


@pytest.mark.timeout(600)
def test_the_kernels_are_generated_for_an_sm_90_without_one():
    pytest.importorskip("triton", reason="torch for a CPU brings no Triton; `make kernels` runs this")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ran = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert all(one["spilled"] == 0 for one in found.values()), found
    for name in ("group norm, moments", "group norm, apply"):
        assert found[name]["per_element"] < 24  # of torch's own: 24 to 30
        assert found[name]["wide_moves"] > 0
