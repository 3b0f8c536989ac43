"""presswork-mini draws what is asked for: the colours of the demo's 48 prompts, told from the pixels."""

import json
from importlib import resources
from pathlib import Path

import pytest

from worker.model.mini import grammar, looks

PACKAGE = Path(grammar.__file__).parent


@pytest.fixture(scope="module")
def model():
    from worker.model import checkpoint

    return checkpoint.load(PACKAGE / "presswork-mini")


def test_the_colours_of_the_demo_are_those_of_its_prompts(model):
    from worker.model.mini import sample

    lines = (resources.files("services.cli") / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    requests = [json.loads(line) for line in lines]
    prompts, seeds = [request["prompt"] for request in requests], [request["seed"] for request in requests]
    pictures = sample.pictures(model, prompts, seeds, 10, model.index.default_guidance_scale)
    wrong = [
        prompt for prompt, picture in zip(prompts, pictures, strict=True) if looks.colour(picture) != _asked(prompt)
    ]
    assert len(prompts) == 48
    assert wrong == []


@pytest.mark.parametrize("prompt", ["", "茶壶と猫 🫖", "teapot " * 200, "a red", "\ud800"])
def test_any_prompt_gives_a_picture(model, prompt):
    from worker.model.mini import sample

    (picture,) = sample.pictures(model, [prompt], [1], 2, model.index.default_guidance_scale)
    assert picture.shape == (128, 128, 3)
    assert picture.std() > 0


def _asked(prompt: str) -> str:
    """The thing's colour: the first that is named."""
    return next(word for word in prompt.split() if word in grammar.COLOURS)
