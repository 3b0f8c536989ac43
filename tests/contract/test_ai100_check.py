"""`presswork ai100 check` runs every place that could not be run without a card."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.ai100 import Open
from worker.model import make
from worker.pipelines.ai100 import __main__ as commands
from worker.pipelines.ai100 import cards, measuring
from worker.pipelines.ai100.sdk import Sdk
from worker.pipelines.ai100_stand_in import machine

ROOT = Path(__file__).parents[2]


def test_check_runs_every_place_that_could_not_be_run_without_a_card(
    home: Path, on_stand_in: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.reset()
    for name, value in on_stand_in.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(measuring, "IMAGES", 2)
    monkeypatch.setattr(measuring, "REPEATS", 1)
    monkeypatch.setattr(measuring, "COMPILED", ("vae_decoder",))
    monkeypatch.setattr(measuring, "PROGRAM_BATCH", 1)  # what was exported for the other rows
    monkeypatch.setattr(measuring, "SHARE", 0.0001)  # this machine may be slow
    assert commands.main(["check", str(home / "tiny")]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    page = (
        (ROOT / "worker/AI100.md").read_text(encoding="utf-8").partition("## What could not")[2].partition("\n## ")[0]
    )
    for place in re.findall(r"^\| ([a-z][^|]*?) \|", page, re.MULTILINE)[1:]:
        assert place.split(",")[0] in said or place.startswith("each network"), place
    assert "qaic-compile: 1 programs in " in said
    assert "0.971 s, 1.335 s on the model card" in said
    assert page.count("\n| ") - 1 == 14, "worker/README.md counts them"
    times = re.search(
        r"PRESSWORK_AI100_TIMES=(text_encoder=[\d.]+x\d+,unet=.*,vae_encoder=.*,switch=\d+)$", said, re.MULTILINE
    )
    assert times and cards.read_times(times[1])
    assert re.search(r"^data-path switching +\d\.\d+ s an image, switch_dps=\d+ ", said, re.MULTILINE)
    assert re.search(r"^programs of several images +1 a pass: 3 of 3 equal", said, re.MULTILINE)
    assert re.search(r"^redrawn pictures +4 of 4 equal", said, re.MULTILINE)
    assert re.search(r"^a long prompt +this model reads none", said, re.MULTILINE)
    monkeypatch.setenv("AI100_STAND_IN_FAULTS", "permission")
    monkeypatch.setattr(Sdk, "version", lambda sdk: sdk.no_such_binding)
    assert commands.main(["check", str(home / "tiny")]) == 1
    said = capsys.readouterr().out
    assert "failed: Device 0 is not ready" in said
    assert "failed: AttributeError: 'Sdk' object has no" in said


def test_check_fails_what_is_slow() -> None:
    assert [measuring.beside_the_bound(0.569, seconds).failed for seconds in (0.6, 0.62)] == [False, True]
    rows = (measuring.beside_the_published({10: 0.971, 16: seconds}) for seconds in (1.4, 1.5))
    assert [row.failed for row in rows] == [False, True]


@pytest.mark.chaos  # exports of their own
@pytest.mark.parametrize("chunks", [False, True])
def test_check_draws_several_images_a_pass_and_long_prompts(opened: Open, tmp_path: Path, chunks: bool) -> None:
    if not chunks:
        row = measuring.several(opened({"PRESSWORK_AI100_PROGRAM_BATCH": "2"}))
        assert (row.failed, row.found) == (False, "2 a pass: 3 of 3 equal in other places")
        return
    make.make(tmp_path / "long", "tiny-sd")
    file = tmp_path / "long" / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps(index | {"presswork": index["presswork"] | {"long_prompts": True}}))
    pipeline = opened({"PRESSWORK_MODEL_DIR": str(tmp_path / "long"), "PRESSWORK_SIZES": "64x64"})
    row = measuring.long_prompt(pipeline)
    assert (row.failed, row.found) == (False, "4 of 4 equal")
