"""The presswork-mini that ships: its layout, its size and what it says of itself, without loading a network."""

import json
import struct
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from worker.model import directory
from worker.model.mini import grammar
from worker.model.text import unknown_words

PACKAGE = Path(grammar.__file__).parent
FOLDER = PACKAGE / "presswork-mini"
WEIGHTS = (
    "flexible_unet/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


def test_the_whole_model_is_at_most_12_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 12_000_000


@pytest.mark.parametrize("file", WEIGHTS)
def test_the_weights_are_finite_half_precision_safetensors(file):
    content = (FOLDER / file).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    assert {tensor["dtype"] for tensor in header.values()} == {"F16"}
    assert np.isfinite(np.frombuffer(content, np.float16, offset=8 + length)).all()


def test_the_model_lists_the_words_of_its_grammar_and_defaults_that_it_allows():
    said = directory.read_index(directory.check_model_dir(FOLDER))
    assert said.words == grammar.words()
    assert (said.name, said.kind, said.sizes) == ("presswork-mini", directory.DECI_2, ((128, 128),))
    assert said.default_steps == 10
    assert 1.0 < said.default_guidance_scale < 10.0


def test_the_demo_asks_only_for_what_the_model_knows():
    lines = (resources.files("services.cli") / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    requests = [json.loads(line) for line in lines]
    assert len(requests) == 48
    assert len({request["custom_id"] for request in requests}) == 48
    for request in requests:
        assert unknown_words(request["prompt"], frozenset(grammar.words())) == ()
