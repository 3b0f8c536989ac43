"""The drawings that presswork-mini is trained on, drawn once into a file and read from there."""

import random
import sys
import time

import numpy as np
from numpy.typing import NDArray

from worker.model.mini import grammar
from worker.model.mini.config import Config
from worker.model.mini.drawings import SIDE, draw


def training_scene(config: Config, number: int) -> grammar.Scene:
    """The scene of training drawing `number`; never a held-out one."""
    return random.Random(f"{config.seed} scene {number}").choice(grammar.for_training())


def drawings(config: Config) -> NDArray[np.uint8]:
    """(config.drawings, 128, 128, 3) uint8, mapped from a file, which is made if it is missing."""
    file = config.folder / f"drawings-{config.seed}-{config.drawings}.npy"
    if not file.exists():
        config.folder.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        shape = (config.drawings, SIDE, SIDE, 3)
        made = np.lib.format.open_memmap(draft, "w+", np.uint8, shape)
        began = time.monotonic()
        for number in range(config.drawings):
            made[number] = draw(training_scene(config, number), random.Random(f"{config.seed} drawing {number}"))
            if number % 4000 == 0:
                sys.stdout.write(f"drawing {number} of {config.drawings}, {time.monotonic() - began:.0f} s\n")
                sys.stdout.flush()
        made.flush()
        draft.rename(file)
    return np.load(file, mmap_mode="r")


def test_drawings(config: Config) -> NDArray[np.uint8]:
    """(config.tests, 128, 128, 3) uint8 of held-out scenes."""
    scenes = grammar.held_out()[: config.tests]
    return np.stack([draw(scene, random.Random(f"test {number}")) for number, scene in enumerate(scenes)])
