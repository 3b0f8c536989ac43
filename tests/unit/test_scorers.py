"""The scorers that ship, what a scorer may give, and what filters of scores mean."""

import io
import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from services.core.jobs import near_duplicates
from services.core.model import scores
from services.core.model.errors import SettingsError
from services.core.model.scores import NotUnderstood, Order, Range
from worker import scorer

MUG = np.full((256, 384, 3), 240, np.uint8)
MUG[60:200, 100:220] = (200, 30, 40)
MUG[90:160, 220:250] = (180, 20, 30)


def score(name: str, pixels: np.ndarray) -> float:
    return scorer.value(name, scorer.open_scorer(name)(pixels, "a red mug"))


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return (score("phash", one) ^ score("phash", other)).bit_count()


def test_uniform_is_one_for_a_blank_picture_and_the_share_of_a_plain_background():
    assert score("uniform", np.full((64, 48, 3), 77, np.uint8)) == 1
    noisy = np.random.default_rng(1).normal(128, 2, (512, 512, 3)).clip(0, 255).astype(np.uint8)
    assert score("uniform", noisy) > 0.99
    background = (MUG == 240).all(axis=2).mean()
    assert score("uniform", MUG) == pytest.approx(background, abs=0.02)
    assert score("uniform", np.random.default_rng(1).integers(0, 256, (512, 512, 3), dtype=np.uint8)) < 0.01
    assert score("uniform", np.zeros((1, 1, 3), np.uint8)) == 1


def test_sharpness_is_the_deviation_of_the_laplacian_and_less_in_a_blurred_picture():
    assert score("sharpness", np.full((64, 64, 3), 77, np.uint8)) == 0
    assert score("sharpness", np.zeros((2, 2, 3), np.uint8)) == 0
    grey = np.random.default_rng(2).integers(0, 256, (40, 30), dtype=np.uint8)
    g = grey.astype(float)
    laplacian = g[1:-1, :-2] + g[1:-1, 2:] + g[:-2, 1:-1] + g[2:, 1:-1] - 4 * g[1:-1, 1:-1]
    assert score("sharpness", np.stack([grey] * 3, -1)) == pytest.approx(laplacian.std() / 255, rel=1e-4)
    blurred = [np.asarray(Image.fromarray(MUG).filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 3)]
    sharp, less, least = (score("sharpness", pixels) for pixels in blurred)
    assert sharp > 2 * less > 4 * least > 0


def test_the_hash_of_a_picture_stays_the_same_when_it_is_compressed_or_made_smaller_and_is_another_for_another():
    file = io.BytesIO()
    Image.fromarray(MUG).save(file, "JPEG", quality=40)
    assert apart(MUG, np.asarray(Image.open(file))) <= 2
    assert apart(MUG, np.asarray(Image.fromarray(MUG).resize((192, 128)))) <= 4
    assert apart(MUG, np.ascontiguousarray(MUG[::-1])) > 12
    assert apart(MUG, np.random.default_rng(3).integers(0, 256, MUG.shape, dtype=np.uint8)) > 12


def test_the_hash_is_the_one_that_others_compute_where_nothing_is_made_smaller():
    """As ImageHash 4.3.2 has it, and for a blank picture the same whatever its colour."""
    y, x = np.mgrid[0:32, 0:32]
    rings = ((np.sin(np.hypot(x - 12, y - 19) / 2) + 1) * 127).astype(np.uint8)
    assert scores.hex_of(score("phash", np.stack([rings] * 3, -1))) == "85da52c90b2f3b35"
    blank = {score("phash", np.full((64, 64, 3), level, np.uint8)) for level in (1, 77, 200)}
    assert blank == {1 << 63}


@pytest.mark.parametrize("given", [math.nan, math.inf, None, "0.3", [1], {}, object(), np.float32("nan")])
def test_what_is_no_finite_number_is_no_score(given):
    with pytest.raises(scorer.Rubbish):
        scorer.value("sharpness", given)


@pytest.mark.parametrize(
    ("given", "value"), [(1, 1.0), (np.float32(0.25), 0.25), (0.123456789, 0.123457), (True, 1.0), (1e-12, 1e-12)]
)
def test_a_number_is_kept_with_six_digits(given, value):
    assert scorer.value("sharpness", given) == value


@pytest.mark.parametrize("given", [-1, 2**64, 0.5, "ff"])
def test_a_hash_has_64_bits(given):
    with pytest.raises(scorer.Rubbish):
        scorer.value("phash", given)


def test_a_scorer_that_is_not_installed_is_named_with_those_that_are():
    with pytest.raises(SettingsError, match="'beauty', and no such scorer is installed; there are uniform, sharpness"):
        scorer.check(["sharpness", "beauty"])


def test_conditions_of_one_score_make_one_range():
    assert scores.ranges(["sharpness>=0.3", "uniform <= .9", "sharpness<=1e1"]) == (
        Range("sharpness", 0.3, 10.0),
        Range("uniform", -math.inf, 0.9),
    )


@pytest.mark.parametrize(
    "text", ["sharpness", "sharpness>0.3", "sharpness>=", "sharpness>=nan", "Sharp>=1", "phash>=1", "a>=1e999", "a>=1;"]
)
def test_a_condition_that_says_nothing_is_refused(text):
    with pytest.raises(NotUnderstood, match="NAME>=NUMBER"):
        scores.ranges([text])


@pytest.mark.parametrize(
    ("conditions", "sort", "order"),
    [
        (["sharpness>=0.3"], None, Order("sharpness", descending=True)),
        (["uniform<=0.9", "sharpness>=0.3"], None, Order("uniform", descending=False)),
        (["uniform<=0.9"], "-sharpness", Order("sharpness", descending=True)),
        ([], "clip", Order("clip", descending=False)),
    ],
)
def test_a_list_is_in_the_order_that_is_asked_for_or_from_the_end_that_the_first_condition_asks_for(
    conditions, sort, order
):
    wanted = scores.wanted(conditions, sort)
    assert wanted is not None
    assert wanted.order == order


def test_near_duplicates_are_found_as_by_comparing_each_with_each():
    random = np.random.default_rng(4)
    hashes = [int(value) for value in random.integers(0, 2**63, 120)]
    for _ in range(180):  # copies with some bits changed, of originals and of copies
        own = hashes[int(random.integers(len(hashes)))]
        for bit in random.integers(0, 64, int(random.integers(0, 8))):
            own ^= 1 << int(bit)
        hashes.append(own)
    for bits in range(7):
        groups, looked_at = near_duplicates.grouped(
            [((1, nth), own if own < 2**63 else own - 2**64) for nth, own in enumerate(hashes)], bits
        )
        assert looked_at == len(hashes)
        joined = {nth: {nth} for nth in range(len(hashes))}
        for one, mine in enumerate(hashes):
            for other, theirs in enumerate(hashes[:one]):
                if (mine ^ theirs).bit_count() <= bits and joined[one] is not joined[other]:
                    joined[one] |= joined[other]
                    for nth in joined[one]:
                        joined[nth] = joined[one]
        expected = sorted({tuple(sorted(group)) for group in joined.values() if len(group) > 1})
        assert [tuple(nth for _, nth in group) for group in groups] == expected


def test_so_many_pairs_are_compared_and_no_more():
    near = [((1, nth), nth << 40) for nth in range(200)]  # all agree in most parts, none is equal
    groups, looked_at = near_duplicates.grouped(near, 0, pairs=50)
    assert (groups, looked_at) == ([], 200)  # one part: only equal hashes are compared
    assert near_duplicates.grouped(near, 4, pairs=500)[1] < 30
