"""presswork-mini's networks and tokenizer as `Config` sizes them: the VAE, the text encoder, the U-Net."""

from typing import Any

from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from worker.model import vocabulary
from worker.model.flexible_unet import FlexibleUNet
from worker.model.mini import grammar
from worker.model.mini.config import Config
from worker.model.mini.drawings import SIDE

LATENT_CHANNELS = 4
DOWNSAMPLING = 8


def vae(config: Config) -> Any:
    """AutoencoderKL: (B, 3, 128, 128) in -1..1 to (B, 4, 16, 16) and back. Its scaling factor is 1."""
    levels = len(config.vae_channels)
    return AutoencoderKL(
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        norm_num_groups=config.vae_groups,
        latent_channels=LATENT_CHANNELS,
        sample_size=SIDE,
        scaling_factor=1.0,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )


def text_encoder(config: Config) -> Any:
    tokens, _ = vocabulary.build(grammar.words())
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            projection_dim=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=config.tokens,
            bos_token_id=tokens[vocabulary.START],
            eos_token_id=tokens[vocabulary.END],
            pad_token_id=tokens[vocabulary.END],
        )
    )


def tokenizer(config: Config) -> Any:
    """One token per word of the grammar; any other word is spelt in bytes."""
    tokens, merges = vocabulary.build(grammar.words())
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=config.tokens)


def unet(config: Config) -> FlexibleUNet:
    return FlexibleUNet(config.unet)
