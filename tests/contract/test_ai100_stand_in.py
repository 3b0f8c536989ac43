"""The stand-in of a Cloud AI 100 says what it is, and has what the worker uses of the SDK."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.ai100 import Open, drawn, specs
from worker.pipeline import reproducibility_class
from worker.pipelines.ai100_stand_in import qaicrt as stand_in

ROOT = Path(__file__).parents[2]


def test_the_stand_in_says_what_it_is_wherever_it_shows(opened: Open, on_stand_in: Mapping[str, str]) -> None:
    pipeline = opened()
    for text in (pipeline.device, pipeline.device_kind, pipeline.versions, reproducibility_class(pipeline, 16)):
        assert "stand-in" in text
    assert reproducibility_class(pipeline, 16).count("/") == 4
    drawn(pipeline, specs(1))
    programs = list(Path(on_stand_in["PRESSWORK_ARTEFACTS"]).glob("*/*/programqpc.bin"))
    assert programs
    assert all(b"stand-in" in program.read_bytes() for program in programs)


def test_the_worker_never_imports_the_stand_in() -> None:
    for file in (ROOT / "worker").rglob("*.py"):
        if "ai100_stand_in" not in file.parts:
            text = file.read_text(encoding="utf-8")
            names = {name for node in ast.walk(ast.parse(text)) for name in _imported(node)}
            assert not any("ai100_stand_in" in name for name in names), file


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_everything_that_the_worker_uses_of_the_sdk_is_in_the_list_with_its_source() -> None:
    listed = (ROOT / "worker/pipelines/ai100_stand_in/SURFACE.md").read_text(encoding="utf-8")
    used = set()
    for name in ("sdk.py", "session.py"):
        text = (ROOT / "worker/pipelines/ai100" / name).read_text(encoding="utf-8")
        used |= set(re.findall(r"(?:qaicrt|self\._rt)\.([A-Z]\w+)", text))
    assert {"Context", "Program", "ExecObj", "QBuffer", "Util"} <= used
    for name in used:
        assert hasattr(stand_in, name), name
        assert re.search(rf"^\| `{name}\b.*\| \S+:\d+", listed, re.MULTILINE), name


def test_every_method_that_the_worker_calls_is_in_the_list_too() -> None:
    listed = (ROOT / "worker/pipelines/ai100_stand_in/SURFACE.md").read_text(encoding="utf-8")
    texts = (ROOT.joinpath("worker/pipelines/ai100", name).read_text("utf-8") for name in ("sdk.py", "session.py"))
    used = {node.attr for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    ours = {name for one in vars(stand_in).values() if isinstance(one, type) for name in vars(one)}
    camel = {name for name in used if re.fullmatch(r"[a-z]+[A-Z]\w+|[A-Z][a-z]+[A-Z]\w+Ms", name)}
    methods = camel | {name for name in used & ours if name in ("load", "activate", "deactivate", "enqueue")}
    assert {"activate", "load", "enqueue", "setData", "getData", "waitForCompletion", "getResourceInfo"} <= methods
    for name in methods:
        assert re.search(rf"^\|[^|]*\b{name}\b[^|]*\| \S+:\d+", listed, re.MULTILINE), name
    for name in methods - {"nspFree", "dramFree", "dramTotal", "dataPathTimeoutMs", "SubmitRetryTimeoutMs"}:
        assert name in ours, name


def test_the_memory_of_an_input_lives_as_long_as_its_buffer(opened: Open) -> None:
    pipeline = opened()
    session = pipeline.ai100.stations[0].session("vae_decoder", (64, 64))
    latents = session.bindings["latents"]
    buffer = session.buffer("latents", np.ones(latents.shape))
    assert np.frombuffer(buffer.given.data, latents.dtype).all()
    with pytest.raises(RuntimeError, match="memory of a QBuffer is gone"):
        bytes(stand_in.QBuffer(np.ones(3, np.uint8)))
