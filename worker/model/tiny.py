"""Makes a tiny latent diffusion model with random weights: every part of a real one, in a few megabytes.

For tests and for trying the torch pipeline out; its pictures mean nothing. The layout is that of diffusers, the
weights are fp32 safetensors decided by the seed, and nothing is downloaded.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from services.core.errors import PressworkError
from worker.model.directory import check_model_dir, revision

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 77  # the longest prompt, with its start and its end
TEXT_WIDTH = 32
PRESSWORK = {
    "name": "tiny",
    "sizes": [[64, 64], [128, 128]],
    "default_size": [64, 64],
    "default_steps": 10,
    "default_guidance_scale": 7.5,
    "max_steps": 50,
}
# Words that are one token each; all else is spelt in bytes.
WORDS = """
    a an the of on in at with and for to by from one two three small large old new wooden ceramic glass metal paper
    red blue green yellow orange purple pink brown black white grey teal mug cup bowl vase bottle jar lamp chair table
    book box plate pear apple flower tree house river mountain sea sky cat dog fox bird child studio light soft photo
    painting drawing portrait background catalogue style morning night
"""


class FolderTaken(PressworkError):
    """The directory for the model is not empty."""


def make(folder: Path, seed: int = 0) -> str:
    """Writes the model to `folder` and returns its revision: the same for the same seed and library versions.

    Raises FolderTaken unless `folder` is absent or empty. What is there is whole, or not there: it is written beside
    and renamed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderTaken(f"{folder} is not empty; the model goes into a directory of its own.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        draft = Path(beside) / "model"
        draft.mkdir()
        _write(draft, seed)
        check_model_dir(draft)
        draft.rename(folder)
    return revision(folder)


def _write(folder: Path, seed: int) -> None:
    import torch  # here, and not above: --help and refusals answer at once

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, network in _networks().items():
            _save(network.eval(), folder / name)
    _tokenizer().save_pretrained(folder / "tokenizer")
    _scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "presswork": PRESSWORK,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _save(network: Any, folder: Path) -> None:
    """The config as its library writes it, and the weights under the name that its library looks for."""
    from safetensors.torch import save_file

    folder.mkdir()
    transformer = hasattr(network.config, "save_pretrained")
    if transformer:
        network.config.save_pretrained(folder)
    else:
        network.save_config(folder)
    file = folder / ("model.safetensors" if transformer else "diffusion_pytorch_model.safetensors")
    save_file(network.state_dict(), file, metadata={"format": "pt"})
    file.chmod(0o644)


def _networks() -> dict[str, Any]:
    """Text encoder, U-Net and VAE: about a million parameters, 8 pixels to a latent as in Stable Diffusion."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary, _ = _vocabulary()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=TOKENS,
            bos_token_id=vocabulary[START], eos_token_id=vocabulary[END], pad_token_id=vocabulary[END],
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=8, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    # Louder or softer than at random, so that prompts are seen in the pixels and these are not clipped.
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2.to_out" in name or "attn2.to_v" in name:
                weight.mul_(6)
        vae.decoder.conv_out.weight.mul_(0.8)
    return {"text_encoder": text, "unet": unet, "vae": vae}


def _scheduler() -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", algorithm_type="dpmsolver++", solver_order=2
    )


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's kind of byte-level BPE: the 256 bytes, each also as the end of a word, then WORDS letter by letter."""
    letters = [_printable(byte) for byte in range(256)]
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS.split():
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = None
            pieces[:2] = [pieces[0] + pieces[1]]
            tokens[pieces[0]] = None
    return {token: number for number, token in enumerate([*tokens, START, END])}, list(merges)


def _printable(byte: int) -> str:
    """The character that stands for a byte in GPT-2's byte-level vocabularies: itself where it can be seen."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in seen else chr(256 + sum(other not in seen for other in range(byte)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m worker.model.tiny",
        description="Writes a tiny diffusion model with random weights, for tests and for trying the torch pipeline.",
        epilog="Then: PRESSWORK_PIPELINE=torch PRESSWORK_MODEL_DIR=DIR. Sizes 64x64 and 128x128; no network needed.",
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="where the model goes: absent, or an empty directory")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides the weights (default: 0)")
    given = parser.parse_args(arguments)
    try:
        made = make(given.dir, given.seed)
    except (PressworkError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{given.dir}: tiny, {made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
