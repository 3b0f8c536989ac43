"""A config with any one field changed is followed, is refused, or changes nothing in the libraries' own result.

The schedulers' fields are in test_sampler.py.
"""

import inspect
from typing import Any

import pytest
import torch

from services.core.model.errors import SettingsError
from worker.model import networks
from worker.model.stages import Decoder

OTHER_VALUES: dict[str, list[Any]] = {
    "in_channels": [4], "out_channels": [4], "down_block_types": [["AttnDownEncoderBlock2D"] * 2],
    "up_block_types": [["AttnUpDecoderBlock2D"] * 2], "block_out_channels": [[8, 16], [8, 8]],
    "layers_per_block": [2], "act_fn": ["swish", "gelu", "relu"], "latent_channels": [8], "norm_num_groups": [4],
    "sample_size": [128], "scaling_factor": [0.5], "shift_factor": [0.25], "latents_mean": [[0.1] * 4],
    "latents_std": [[2.0] * 4], "force_upcast": [True], "use_quant_conv": [False], "use_post_quant_conv": [False],
    "mid_block_add_attention": [False],
}  # fmt: skip


def test_a_field_of_a_vae_is_followed_or_refused_or_changes_nothing() -> None:
    """For every field that diffusers' AutoencoderKL has: our decoder draws what diffusers' does, or refuses it."""
    from diffusers import AutoencoderKL

    base: dict[str, Any] = {
        "_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "norm_num_groups": 8, "force_upcast": False,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    }  # fmt: skip
    refused = set()
    fields = inspect.signature(AutoencoderKL.__init__).parameters.keys() - {"self"}
    assert fields == OTHER_VALUES.keys()
    for field, value in ((one, value) for one in sorted(fields) for value in OTHER_VALUES[one]):
        config = base | {field: value}
        try:
            ours = networks.build("vae", config).to_empty(device="cpu")
        except SettingsError:
            refused.add(field)
            continue
        torch.manual_seed(1)
        theirs = AutoencoderKL(**{name: found for name, found in config.items() if name != "_class_name"}).eval()
        ours.load_state_dict(theirs.state_dict())
        latents = torch.randn(1, theirs.config.latent_channels, 4, 4)
        with torch.inference_mode():
            shift = theirs.config.shift_factor or 0.0
            image = theirs.decode(latents / theirs.config.scaling_factor + shift).sample
            pixels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
            assert int((Decoder(ours)(latents)[0].int() - pixels).abs().max()) <= 1, (field, value)
    # A mean without deviations, and the other way round, are refused; both together are tested above.
    assert refused == {"in_channels", "out_channels", "down_block_types", "up_block_types", "act_fn", "latents_mean",
                       "latents_std"}  # fmt: skip


TEXT_VALUES: dict[str, list[Any]] = {
    "hidden_act": ["gelu", "relu"], "layer_norm_eps": [0.1], "num_attention_heads": [4], "num_hidden_layers": [1],
    "attention_dropout": [0.5], "initializer_factor": [3.0], "initializer_range": [3.0], "projection_dim": [8],
    "eos_token_id": [0], "pad_token_id": [0], "bos_token_id": [0], "output_hidden_states": [True],
    "chunk_size_feed_forward": [4], "use_cache": [False],
}  # fmt: skip


@pytest.mark.parametrize("field", TEXT_VALUES)
def test_a_field_of_a_text_encoder_is_followed_or_changes_nothing(field: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    base = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "eos_token_id": 2,
            "num_attention_heads": 2, "max_position_embeddings": 7, "pad_token_id": 1, "bos_token_id": 0}  # fmt: skip
    tokens = torch.tensor([[0, 5, 9, 11, 3, 2, 2]])
    for value in TEXT_VALUES[field]:
        torch.manual_seed(1)
        theirs = CLIPTextModel(CLIPTextConfig(**base | {field: value})).eval()
        ours: Any = networks.build("text_encoder", base | {field: value}).to_empty(device="cpu")
        ours.load_state_dict(theirs.state_dict())
        for name, buffer in theirs.named_buffers():
            networks._set(ours, name, buffer)
        with torch.inference_mode():
            found = [network(input_ids=tokens).last_hidden_state for network in (ours, theirs)]
        torch.testing.assert_close(*found)
