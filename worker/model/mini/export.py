"""`python -m worker.model.mini.export`: the trained networks as a checkpoint in the published layout, fp16."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from worker.model import vocabulary
from worker.model.mini import grammar, latents, train_unet
from worker.model.mini.config import Config
from worker.model.mini.drawings import SIDE
from worker.model.sampler import SamplerConfig

SHIPPED = Path(__file__).parent / "presswork-mini"
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}


def export(config: Config, folder: Path, guidance_scale: float) -> None:
    """Writes all files except the model card, which is written by hand."""
    saved = torch.load(config.folder / train_unet.CHECKPOINT, weights_only=True)
    pair = train_unet.Pair(config)
    pair.load_state_dict(saved["average"])
    _write_weights(folder / "text_encoder" / "model.safetensors", pair.text_encoder)
    pair.text_encoder.config.save_pretrained(folder / "text_encoder")
    _write_weights(folder / "flexible_unet" / "diffusion_pytorch_model.safetensors", pair.unet)
    unet = {"_class_name": "FlexibleUNet2DConditionModel", "configurations": config.unet}
    _write_json(folder / "flexible_unet" / "config.json", unet)
    vae = latents.normalised_vae(config)
    _write_weights(folder / "vae" / "diffusion_pytorch_model.safetensors", vae)
    vae.save_config(folder / "vae")
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    vocabulary.write(folder / "tokenizer", config.tokens, grammar.words())
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "model_index.json", _index(guidance_scale))


def _index(guidance_scale: float) -> dict[str, Any]:
    sampler_config = SamplerConfig()
    return {
        "_class_name": "DeciDiffusionPipeline",
        "_name_or_path": "presswork-mini",
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderKL"],
        "presswork": {
            "name": "presswork-mini",
            "sizes": [[SIDE, SIDE]],
            "default_size": [SIDE, SIDE],
            "default_steps": 10,
            "default_guidance_scale": guidance_scale,
            "max_steps": 50,
            "sampler": {
                "guidance_rescale": sampler_config.guidance_rescale,
                "lambda_min_clipped": sampler_config.lambda_min_clipped,
                "squeezed": sampler_config.squeezed,
            },
            "words": list(grammar.words()),
        },
    }


def _write_weights(file: Path, network: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: weight.half().contiguous() for name, weight in network.state_dict().items()}
    save_file(halves, file, metadata={"format": "pt"})
    file.chmod(0o644)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.model.mini.export", description="Writes the checkpoint.")
    parser.add_argument("--folder", type=Path, default=Config().folder, metavar="DIR", help="where it was trained")
    parser.add_argument("--to", type=Path, default=SHIPPED, metavar="DIR", help="default: the one that is shipped")
    parser.add_argument("--guidance", type=float, default=2.0, metavar="S", help="the model's default guidance scale")
    given = parser.parse_args(arguments)
    export(Config(folder=given.folder), given.to, given.guidance)
    size = sum(file.stat().st_size for file in given.to.rglob("*") if file.is_file())
    sys.stdout.write(f"{given.to}: {size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
