"""presswork-mini's drawings and their captions: the same seed gives the same pixels, and they show what they say."""

import random

import numpy as np
import pytest

from worker.model.mini import grammar, looks
from worker.model.mini.drawings import draw

SAMPLE = random.Random(3).sample(grammar.scenes(), 40)


def test_the_same_seed_draws_the_same_pixels_and_another_seed_others():
    scene = SAMPLE[0]
    first, again, other = (draw(scene, random.Random(seed)) for seed in (1, 1, 2))
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_pixels_of_a_drawing_tell_its_colour_and_its_background():
    for number, scene in enumerate(SAMPLE):
        picture = draw(scene, random.Random(number))
        assert (looks.colour(picture), looks.background(picture)) == (scene.colour, scene.background), scene


@pytest.mark.parametrize("thing", grammar.THINGS)
def test_every_thing_leaves_ink_and_stays_inside_the_picture(thing):
    scene = grammar.Scene("red", thing, "grey", "large")
    bare = draw(scene, random.Random(1))
    red = (bare[..., 0].astype(int) - bare[..., 1]) > 60
    assert red.mean() > 0.06
    assert not red[:2].any() and not red[-2:].any() and not red[:, :1].any() and not red[:, -1:].any()
