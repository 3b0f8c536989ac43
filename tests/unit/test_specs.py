"""Render keys, to the byte: stored images are found again by them, so no change of the code may change one."""

from dataclasses import dataclass, replace

import pytest

from services.core.model.specs import SEED_LIMIT, Image, Spec, image_seed

MUG = Spec("rev-1", "a red mug", "", 0, 512, 512, 10, 7.5)
ODD = Spec("rev-é", 'café 猫 \u2028 \U0001f600 "quoted" \\ \n\t', "b\x7flur", 7, 64, 48, 1, 0.1)
SMALL = Spec("rev-1", "a red mug", "blurred", 7, 64, 64, 50, 1.0)
LAST = Spec("rev-1", "a red mug", "", 2**63 - 1, 512, 512, 10, 7.5)
LONG = Spec("rev-1", "a red mug", "", 0, 512, 512, 10, 7.5, 2)
STRONG = Spec("rev-1", "a red mug", "blurred", 7, 64, 64, 50, 50.0)


@pytest.mark.parametrize(
    ("spec", "file", "key"),
    [
        (MUG, ("png",), "ed0fe3afc355c4da18712df0a2738557b86993a660b474734a0bc72035f46b09"),
        (LAST, ("png",), "28f7ee876bbf395b625b070331d9fac4e148165f3f895f67308aed7e956a8295"),
        (ODD, ("webp",), "a7f6c79be30be82b559b910f8c6ae6956076957e82cfbf6c70730522088acce8"),
        (SMALL, ("jpeg",), "d88bd2e330eff52f6d069c2eb76430f449daba765dc7c5476dcb213a3ae061f9"),
        (SMALL, ("jpeg", 0), "e39b22d179eb4daa82d27ff4c844ccbd83d96149aae4961d89b3657fd829a498"),
        (STRONG, ("jpeg", 80, True), "6eb07b6877f1d8e1ffa5d046c08f96291ef5968831800f70822df474360f4d10"),
        (STRONG, ("png", None, True), "d5fdb9a1f47e1b3038bb1983125918eaacc01afc34e10331d5b8bcd43c236e5f"),
    ],
)
def test_a_render_key_is_what_it_has_always_been(spec, file, key):
    assert spec.render_key(*file) == key


def test_a_long_prompt_has_a_key_of_its_own():
    assert LONG.render_key("png") == "eef95c008f1f14d67b91ac57f8443e98e870c338198ae609e57cb076c317f0fe"
    assert replace(LONG, prompt_chunks=1).render_key("png") == MUG.render_key("png")


def test_an_image_has_the_key_of_its_spec_and_file():
    image = Image(1, 0, 1, STRONG, "jpeg", output_compression=80, embed_prompt=True)
    assert image.render_key == STRONG.render_key("jpeg", 80, True)


@dataclass(frozen=True, slots=True)
class LaterSpec(Spec):
    """A spec as a later version may have it."""

    clip_skip: int = 0


def test_a_field_added_later_changes_no_key_where_it_has_its_default():
    words = ("rev-1", "a red mug", "", 0, 512, 512, 10, 7.5)
    assert LaterSpec(*words).render_key("png") == MUG.render_key("png")
    assert len({LaterSpec(*words, clip_skip=n).render_key("png") for n in range(3)}) == 3


@pytest.mark.parametrize(
    ("seed", "nth", "expected"), [(0, 0, 0), (5, 3, 8), (2**63 - 1, 0, 2**63 - 1), (2**63 - 1, 1, 0)]
)
def test_the_images_of_a_request_have_seeds_that_wrap_around(seed, nth, expected):
    assert image_seed(seed, nth) == expected < SEED_LIMIT
