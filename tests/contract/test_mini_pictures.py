"""presswork-mini draws what the prompt asks for: the colours of the demo's 48 prompts, measured from pixels."""

import json
from collections.abc import Iterator
from importlib import resources

import pytest

from worker.model.mini import export, grammar, looks
from worker.model.mini.sample import Sampler


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    with Sampler(export.SHIPPED) as opened:
        yield opened


def test_the_colours_of_the_demo_are_those_of_its_prompts(sampler):
    lines = (resources.files("services.cli") / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    requests = [json.loads(line) for line in lines]
    prompts = [request["prompt"] for request in requests]
    pictures = sampler.pictures(prompts, [request["seed"] for request in requests])
    assert len(prompts) == 48
    wrong = [p for p, picture in zip(prompts, pictures, strict=True) if looks.colour(picture.pixels) != _asked(p)]
    assert wrong == []


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("", ()),
        ("a red mug on a white background", ()),
        ("a red unicorn beside a Mug", ("unicorn", "beside")),
        ("茶壶と猫 🫖", ("茶壶と猫",)),
        ("teapot " * 200, ("teapot",)),
        ("\ud800", ()),
    ],
    ids=ascii,
)
def test_any_prompt_gives_a_picture_and_says_which_words_meant_nothing(sampler, prompt, unknown):
    (picture,) = sampler.pictures([prompt], [1], steps=2)
    assert picture.pixels.shape == (128, 128, 3)
    assert picture.pixels.std() > 0
    assert picture.unknown_words == unknown


def _asked(prompt: str) -> str:
    """The thing's colour, which a prompt names first."""
    return next(word for word in prompt.split() if word in grammar.COLOURS)
