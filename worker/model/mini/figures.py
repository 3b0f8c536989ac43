"""`python -m worker.model.mini.figures`: how often the model draws what the prompt asks for, on held-out scenes."""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worker.model import checkpoint
from worker.model.checkpoint import Checkpoint
from worker.model.mini import classifier, export, grammar, looks
from worker.model.mini.drawings import draw
from worker.model.mini.sample import Sampler, pixels

STEPS, BATCH = 10, 20
CLASSIFIER = Path("build/mini/classifier.pt")


def figures(folder: Path = export.SHIPPED, images: int = 500, guidance_scale: float | None = None) -> dict[str, Any]:
    """Shares in 0..1 of correct pictures over the first `images` held-out scenes, one each, with plain captions.

    For comparison, the same shares for drawings of these scenes, and for those drawings after the VAE (the ceiling).
    """
    judge = classifier.trained(CLASSIFIER)
    scenes = grammar.held_out()[:images]
    with Sampler(folder) as sampler:
        scale = sampler.card.default_guidance_scale if guidance_scale is None else guidance_scale
        prompts = [grammar.plain_caption(scene) for scene in scenes]
        pictures = pixels(sampler.pictures(prompts, range(len(prompts)), STEPS, scale))
    real = np.stack([draw(scene, random.Random(f"figures {number}")) for number, scene in enumerate(scenes)])
    named = classifier.things(judge, pictures)
    wrong = Counter(scene.thing for scene, thing in zip(scenes, named, strict=True) if scene.thing != thing)
    return {
        "guidance_scale": scale,
        "model": shares(scenes, pictures, named),
        "drawings": shares(scenes, real, classifier.things(judge, real)),
        "vae": shares(
            scenes, (packed := _through_vae(checkpoint.load(folder), real)), classifier.things(judge, packed)
        ),
        "vae_psnr_db": round(_psnr(real, packed), 2),
        "cpu_ms_an_image": round(1000 * sampler.cpu_seconds / len(scenes), 1),
        "wrong_things": dict(wrong.most_common()),
    }


def shares(scenes: Any, pictures: NDArray[np.uint8], things: list[str]) -> dict[str, float]:
    """The shares of pictures (B, 128, 128, 3) with the right colour, the right background and the right thing."""
    colours = [looks.colour(picture) == scene.colour for scene, picture in zip(scenes, pictures, strict=True)]
    behind = [looks.background(picture) == scene.background for scene, picture in zip(scenes, pictures, strict=True)]
    named = [thing == scene.thing for scene, thing in zip(scenes, things, strict=True)]
    return {
        name: float(np.mean(right)) for name, right in (("colour", colours), ("background", behind), ("thing", named))
    }


@torch.inference_mode()
def _through_vae(model: Checkpoint, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    made = []
    for start in range(0, len(pictures), BATCH):
        batch = torch.from_numpy(pictures[start : start + BATCH].transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
        decoded = model.vae.decode(model.vae.encode(batch).latent_dist.mode()).sample
        made.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(made)


def _psnr(pictures: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """dB, the mean over the pictures."""
    errors = np.square(pictures.astype(np.float64) - others).mean(axis=(1, 2, 3))
    return float((20 * np.log10(255) - 10 * np.log10(errors)).mean())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m worker.model.mini.figures", description="presswork-mini's figures."
    )
    parser.add_argument("--model", type=Path, default=export.SHIPPED, metavar="DIR")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="of the 500 held-out combinations")
    parser.add_argument("--guidance", type=float, default=None, metavar="S", help="default: the model's own")
    given = parser.parse_args(arguments)
    sys.stdout.write(json.dumps(figures(given.model, given.images, given.guidance), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
