"""A small convolutional network that classifies the thing in a picture, for the figures.

It is trained on drawings only, never on generated pictures.
"""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from worker.model.mini import grammar
from worker.model.mini.drawings import draw

NAMES = tuple(grammar.THINGS)
DRAWINGS, EPOCHS, BATCH, RATE = 6_000, 6, 64, 2e-3


class Classifier(nn.Module):
    """From (B, 3, 128, 128) in -1..1 to (B, 12) logits, at half the resolution."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
        )
        self.head = nn.Linear(2 * widths[-1], len(NAMES))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        seen = self.layers(functional.avg_pool2d(pictures, 2))
        logits: torch.Tensor = self.head(torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1))
        return logits


def things(classifier: Classifier, pictures: NDArray[np.uint8]) -> list[str]:
    """The thing in each of (B, 128, 128, 3) uint8 pictures."""
    with torch.inference_mode():
        found = torch.cat([classifier(_tensor(pictures[n : n + 100])) for n in range(0, len(pictures), 100)])
    return [NAMES[int(number)] for number in found.argmax(dim=1)]


def trained(file: Path, seed: int = 1) -> Classifier:
    """The classifier from `file`; trains and saves it first if the file is missing, in about a minute."""
    torch.manual_seed(seed)
    classifier = Classifier()
    if file.exists():
        classifier.load_state_dict(torch.load(file, weights_only=True))
        return classifier.eval()
    chance = random.Random(f"classifier {seed}")
    scenes = [chance.choice(grammar.for_training()) for _ in range(DRAWINGS)]
    pictures = np.stack([draw(scene, chance) for scene in scenes])
    labels = torch.tensor([NAMES.index(scene.thing) for scene in scenes])
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE, weight_decay=0.05)
    steps = EPOCHS * DRAWINGS // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        picked = torch.randint(DRAWINGS, (BATCH,))
        loss = functional.cross_entropy(classifier(_augmented(_tensor(pictures[picked.numpy()]))), labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(classifier.state_dict(), file)
    return classifier.eval()


def _augmented(pictures: torch.Tensor) -> torch.Tensor:
    """Shifts, blurs and adds noise at random, so that small flaws do not change the class."""
    down, across = (int(n) for n in torch.randint(-6, 7, (2,)))
    pictures = pictures.roll((down, across), dims=(2, 3))
    if torch.rand(()) < 0.5:
        pictures = functional.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    return pictures + 0.08 * torch.rand(()) * torch.randn_like(pictures)


def _tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float() / 127.5 - 1
