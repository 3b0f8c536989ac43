"""`presswork ai100 check` runs every place that could not be run without a card."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from worker.pipelines.ai100 import __main__ as commands
from worker.pipelines.ai100 import checks
from worker.pipelines.ai100.sdk import Sdk
from worker.pipelines.ai100_stand_in import machine

ROOT = Path(__file__).parents[2]


def test_check_runs_every_place_that_could_not_be_run_without_a_card(
    home: Path, on_stand_in: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.reset()
    for name, value in on_stand_in.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(checks, "IMAGES", 2)
    monkeypatch.setattr(checks, "REPEATS", 1)
    monkeypatch.setattr(checks, "COMPILED", ("vae_decoder",))
    monkeypatch.setattr(checks, "SHARE", 0.0001)  # this machine may be slow
    assert commands.main(["check", str(home / "tiny")]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    page = (
        (ROOT / "worker/AI100.md").read_text(encoding="utf-8").partition("## What could not")[2].partition("\n## ")[0]
    )
    for place in re.findall(r"^\| ([a-z][^|]*?) \|", page, re.MULTILINE)[1:]:
        assert place.split(",")[0] in said or place.startswith("each network"), place
    assert "qaic-compile: 1 programs in " in said
    assert "0.971 s, 1.335 s on the model card" in said
    assert page.count("\n| ") - 1 == 9, "worker/README.md counts them"
    assert re.search(r"PRESSWORK_AI100_TIMES=text_encoder=[\d.]+x\d+,unet=.*switch=\d+$", said, re.MULTILINE)
    monkeypatch.setenv("AI100_STAND_IN_FAULTS", "permission")
    monkeypatch.setattr(Sdk, "version", lambda sdk: sdk.no_such_binding)
    assert commands.main(["check", str(home / "tiny")]) == 1
    said = capsys.readouterr().out
    assert "failed: Device 0 is not ready" in said
    assert "failed: AttributeError: 'Sdk' object has no" in said


def test_check_fails_what_is_slow() -> None:
    assert [checks.beside_the_bound(0.569, seconds).failed for seconds in (0.6, 0.62)] == [False, True]
    rows = (checks.beside_the_published({10: 0.971, 16: seconds}) for seconds in (1.4, 1.5))
    assert [row.failed for row in rows] == [False, True]
