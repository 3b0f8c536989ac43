"""The models that `presswork model make` can write, as configs of their networks. Imports no torch.

`full` and `sd15` have the published sizes of DeciDiffusion 2.0 and of Stable Diffusion 1.5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.model import vocabulary
from worker.model.directory import FLEXIBLE, STOCK

TOKENS = 77  # CLIP's longest prompt, including start and end


@dataclass(frozen=True, slots=True)
class Preset:
    """The configs of each network, the scheduler's, and model_index.json's "presswork" block.

    `weight_gain`: part of a tensor's name -> factor for its random weights, so that prompts change the pixels
    and pixels are not clipped.
    """

    configs: Mapping[str, Mapping[str, Any]]
    scheduler: Mapping[str, Any]
    block: Mapping[str, Any]
    weight_gain: Mapping[str, float]

    @property
    def unet(self) -> str:
        return FLEXIBLE if FLEXIBLE in self.configs else STOCK


def _block(name: str, *sides: int) -> dict[str, Any]:
    return {
        "name": name,
        "sizes": [[side, side] for side in sides],
        "default_size": [sides[0], sides[0]],
        "default_steps": 10,
        "default_guidance_scale": 7.5,
        "max_steps": 50,
    }


def _text(width: int, layers: int, heads: int, wide: int, tokens: int, size: int | None = None) -> dict[str, Any]:
    known, _ = vocabulary.build()
    return {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "quick_gelu",
        "hidden_size": width, "intermediate_size": wide, "projection_dim": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": tokens, "vocab_size": size or len(known),
        "bos_token_id": known[vocabulary.START], "eos_token_id": known[vocabulary.END],
        "pad_token_id": known[vocabulary.END], "layer_norm_eps": 1e-05,
    }  # fmt: skip


def _flexible(widths: tuple[int, int, int], text: int, latent: int, **others: int) -> dict[str, Any]:
    """DeciDiffusion 2.0's pattern of blocks at three widths, outermost first."""
    outer, middle, inner = widths
    configurations = {
        "sample_size": latent, "temb_dim": 4 * outer, "resnet_eps": 1e-05, "resnet_act_fn": "silu",
        "num_attention_heads": 8, "cross_attention_dim": text, "mix_block_in_forward": True,
        "down_blocks_in_channels": [outer, outer, middle], "down_blocks_out_channels": [outer, middle, inner],
        "down_blocks_num_resnets": [2, 2, 1], "down_blocks_num_attentions": [0, 1, 3],
        "add_downsample": [True, True, False],
        "mid_num_resnets": 0, "mid_num_attentions": 0, "add_upsample_mid_block": False,
        "prev_output_channels": [inner, inner, middle],
        "up_blocks_num_resnets": [2, 3, 3], "up_blocks_num_attentions": [5, 3, 0], "add_upsample": [True, True, False],
    }  # fmt: skip
    return {"_class_name": "FlexibleUNet2DConditionModel", "configurations": configurations | others}


def _vae(widths: tuple[int, int, int, int], side: int, layers: int, groups: int) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4,
        "block_out_channels": list(widths), "layers_per_block": layers, "norm_num_groups": groups, "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "sample_size": side, "scaling_factor": 0.18215,
    }  # fmt: skip


def _stock(widths: tuple[int, ...], text: int, latent: int, **others: Any) -> dict[str, Any]:
    inner = len(widths) - 1
    return {
        "_class_name": "UNet2DConditionModel", "sample_size": latent, "cross_attention_dim": text,
        "block_out_channels": list(widths), "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D"] * inner + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * inner,
    } | others  # fmt: skip


# As published by DeciDiffusion 2.0 and by Stable Diffusion 1.5.
_DECI_SCHEDULER = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 1, "clip_sample": False,
}  # fmt: skip
_STABLE_SCHEDULER = {
    "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "set_alpha_to_one": False, "steps_offset": 1,
    "skip_prk_steps": True, "clip_sample": False,
}  # fmt: skip
_WEIGHT_GAIN = {"attn2.to_out": 6.0, "attn2.to_v": 6.0, "decoder.conv_out": 0.8}
_VIT_L_14 = _text(768, 12, 12, 3072, TOKENS, size=49408)
_SD_VAE = _vae((128, 256, 512, 512), 512, layers=2, groups=32)
_TINY = {
    "text_encoder": _text(32, 2, 2, 64, TOKENS),
    "vae": _vae((16, 16, 32, 32), 64, layers=1, groups=8),
}
_MINI = {
    "text_encoder": _text(128, 2, 4, 512, 32),
    "vae": _vae((16, 32, 64, 64), 128, layers=1, groups=16),
}
PRESETS = {
    "tiny": Preset(
        _TINY | {FLEXIBLE: _flexible((16, 32, 64), 32, 8, num_attention_heads=4, norm_num_groups=8)},
        _DECI_SCHEDULER, _block("tiny", 64, 128), _WEIGHT_GAIN,
    ),
    "tiny-sd": Preset(
        _TINY | {STOCK: _stock((32, 64), 32, 8, layers_per_block=1, attention_head_dim=4, norm_num_groups=8)},
        _STABLE_SCHEDULER, _block("tiny-sd", 64, 128), _WEIGHT_GAIN,
    ),
    "mini": Preset(
        _MINI | {FLEXIBLE: _flexible((32, 64, 96), 128, 16, num_attention_heads=4)},
        _DECI_SCHEDULER, _block("mini", 128), _WEIGHT_GAIN,
    ),
    "full": Preset(
        {"text_encoder": _VIT_L_14, FLEXIBLE: _flexible((320, 640, 1280), 768, 64), "vae": _SD_VAE},
        _DECI_SCHEDULER, _block("full", 512), _WEIGHT_GAIN,
    ),
    "sd15": Preset(
        {"text_encoder": _VIT_L_14, STOCK: _stock((320, 640, 1280, 1280), 768, 64), "vae": _SD_VAE},
        _STABLE_SCHEDULER, _block("sd15", 512), _WEIGHT_GAIN,
    ),
}  # fmt: skip
