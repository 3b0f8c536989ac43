"""The U-Nets are the published ones, and what the walk saves changes nothing."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from services.core.model.errors import SettingsError
from worker.model.flexible_unet import Configurations, FlexibleUNet
from worker.model.presets import PRESETS
from worker.model.stock_unet import FAMILY, HONOURED, StockUNet
from worker.model.unet import UNet, flops

V2 = Configurations.read(PRESETS["full"].configs["flexible_unet"]["configurations"])
SD15 = PRESETS["sd15"].configs["unet"]
V1 = dataclasses.replace(
    V2,
    add_downsample=(True, True, True),
    mid_num_resnets=4,
    mid_num_attentions=2,
    add_upsample_mid_block=True,
    up_blocks_num_attentions=(6, 3, 0),
)
SMALL = {
    "temb_dim": 64,
    "cross_attention_dim": 24,
    "num_attention_heads": 4,
    "norm_num_groups": 8,
    "sample_size": 8,
    "down_blocks_in_channels": (16, 16, 32),
    "down_blocks_out_channels": (16, 32, 64),
    "prev_output_channels": (64, 64, 32),
}
SMALL_STOCK = {
    "sample_size": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "block_out_channels": [16, 32, 64, 64],
}


def published(configurations: Configurations) -> dict[str, Any]:
    """As a checkpoint's JSON holds it."""
    values = dataclasses.asdict(configurations)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def small(configurations: Configurations = V2, **changes: Any) -> FlexibleUNet:
    torch.manual_seed(3)
    return FlexibleUNet(dataclasses.replace(configurations, **(SMALL | changes))).eval()


def inputs(unet: UNet, batch: int, texts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(5)
    latents = torch.randn(batch, 4, 8, 8, generator=chance)
    return latents, torch.tensor([548.0]), torch.randn(texts, 7, unet.text_width, generator=chance)


def on_meta(build: Any, *arguments: Any) -> Any:
    with torch.device("meta"):
        return build(*arguments)


@pytest.mark.parametrize(("configurations", "parameters", "tensors"), [(V2, 525_277_444, 480), (V1, 814_746_884, 612)])
def test_the_published_configurations_give_the_published_parameters(
    configurations: Configurations, parameters: int, tensors: int
):
    unet = on_meta(FlexibleUNet, published(configurations))
    assert sum(tensor.numel() for tensor in unet.parameters()) == parameters
    assert len(unet.state_dict()) == tensors


def test_version_two_in_half_precision_is_a_file_of_the_published_size(tmp_path: Path):
    state = on_meta(FlexibleUNet, V2).state_dict()
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(
        {name: torch.zeros(tensor.shape, dtype=torch.float16) for name, tensor in state.items()}, file, {"format": "pt"}
    )
    assert file.stat().st_size == 1_050_614_888
    file.unlink()


def test_blocks_are_interleaved_as_published():
    names = on_meta(FlexibleUNet, V2).state_dict().keys()

    def kinds(block: str) -> str:
        numbers = sorted({int(name.split(".")[3]) for name in names if name.startswith(f"{block}.modules_list.")})
        return "".join("A" if f"{block}.modules_list.{n}.proj_in.weight" in names else "R" for n in numbers)

    assert [kinds(f"down_blocks.{n}") for n in range(3)] == ["RR", "RAR", "RAAA"]
    assert [kinds(f"up_blocks.{n}") for n in range(3)] == ["RARAAAA", "RARARA", "RRR"]
    assert {"down_blocks.0.downsamplers.0.conv.weight", "up_blocks.1.upsamplers.0.conv.bias"} <= names


def test_version_two_costs_the_counted_operations_and_guidance_less_than_twice_that():
    unet = on_meta(FlexibleUNet, V2)
    with torch.device("meta"):
        latents, times, text = torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768)
        assert flops(lambda: unet(latents, times, text)) / 1e9 == pytest.approx(555.6, abs=0.05)
        two = [tensor.repeat(2, *[1] * (tensor.dim() - 1)) for tensor in (latents, times, text)]
        plain = flops(lambda: unet(*two))
        time, keys = unet.embed_time(times), unet.project_text(two[2])
        shared_prefix = flops(lambda: unet.denoise(latents, time, unet.project_text(two[2])))
        all_savings = flops(lambda: unet.denoise(latents, time, keys))
    assert 0.95 < all_savings / plain < 0.96  # README: 95.5 %
    assert all_savings < shared_prefix < plain


def test_stable_diffusion_costs_what_is_known_of_it():
    unet = on_meta(StockUNet, SD15)
    assert sum(tensor.numel() for tensor in unet.parameters()) == 859_520_964
    with torch.device("meta"):
        latents, times, text = torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768)
        assert flops(lambda: unet(latents, times, text)) / 1e9 == pytest.approx(803.3, abs=0.05)


@pytest.mark.parametrize("configurations", [V2, V1, dataclasses.replace(V2, mix_block_in_forward=False)])
def test_guidance_halves_computed_together_are_what_each_is_alone(configurations: Configurations):
    changes = {} if configurations is not V1 else {"sample_size": 8}
    unet = small(configurations, **changes)
    latents, times, text = inputs(unet, batch=3, texts=6)
    with torch.no_grad():
        together = unet.denoise(latents, unet.embed_time(times), unet.project_text(text))
        apart = torch.cat([unet(latents, times.repeat(3), half) for half in text.chunk(2)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_skips_are_kept_before_attentions_and_the_walk_is_what_diffusers_blocks_do():
    """Written out by hand for version 2.0, with the blocks' own forward passes."""
    unet = small()
    latents, times, text = inputs(unet, batch=2, texts=2)
    with torch.no_grad():
        temb = unet.time_embedding(unet.time_proj(times)).repeat(2, 1)

        def resnet(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
            return module(x, temb)

        def attend(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
            return module(x, encoder_hidden_states=text).sample

        d0, d1, d2 = (block.modules_list for block in unet.down_blocks)
        x0 = unet.conv_in(latents)
        x1 = resnet(d0[0], x0)
        x2 = resnet(d0[1], x1)
        x3 = unet.down_blocks[0].downsamplers[0](x2)
        x4 = resnet(d1[0], x3)
        x5 = resnet(d1[2], attend(d1[1], x4))
        x6 = unet.down_blocks[1].downsamplers[0](x5)
        x7 = resnet(d2[0], x6)
        x = x7
        for module in d2[1:]:
            x = attend(module, x)
        u0, u1, u2 = (block.modules_list for block in unet.up_blocks)
        x = attend(u0[1], resnet(u0[0], torch.cat([x, x7], 1)))
        x = resnet(u0[2], torch.cat([x, x6], 1))
        for module in u0[3:]:
            x = attend(module, x)
        x = unet.up_blocks[0].upsamplers[0](x)
        for n, skip in ((0, x5), (2, x4), (4, x3)):
            x = attend(u1[n + 1], resnet(u1[n], torch.cat([x, skip], 1)))
        x = unet.up_blocks[1].upsamplers[0](x)
        for n, skip in enumerate((x2, x1, x0)):
            x = resnet(u2[n], torch.cat([x, skip], 1))
        by_hand = unet.conv_out(torch.nn.functional.silu(unet.conv_norm_out(x)))
        torch.testing.assert_close(unet(latents, times.repeat(2), text), by_hand, atol=1e-5, rtol=1e-5)


def test_version_one_runs_the_first_resnet_of_its_middle_twice():
    unet = small(V1)
    (first, second, *_) = [op.module for op in unet.program if op.module in list(unet.mid_block.modules_list)]
    assert first is second is unet.mid_block.modules_list[0]


def test_the_stock_network_gives_what_diffusers_gives():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(3)
    ours = StockUNet(SMALL_STOCK).eval()
    theirs = UNet2DConditionModel(**SMALL_STOCK).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    latents, times, text = inputs(ours, batch=2, texts=2)
    with torch.no_grad():
        expected = theirs(latents, times, encoder_hidden_states=text).sample
        torch.testing.assert_close(ours(latents, times.repeat(2), text), expected, atol=1e-5, rtol=1e-5)


def test_sides_must_be_multiples_of_what_the_network_halves():
    assert [
        on_meta(FlexibleUNet, V2).num_downsamples,
        on_meta(FlexibleUNet, V1).num_downsamples,
        on_meta(StockUNet, SD15).num_downsamples,
    ] == [
        2,
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"temb_dim": None}, "lack"),
        ({"add_upsample": [True, False]}, "unequal numbers of blocks"),
        ({"up_blocks_num_resnets": [3, 3, 3]}, "saves 8 skips but its up blocks take 9"),
        ({"resnet_act_fn": "gelu"}, "only silu"),
    ],
)
def test_configurations_that_make_no_network_are_refused_in_a_sentence(changes: dict[str, Any], sentence: str):
    values = published(V2) | changes
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(SettingsError, match=sentence):
        Configurations.read(values)


@pytest.mark.parametrize("nothing", [None, False, 0, 0.0, "", [], {}], ids=repr)
def test_an_unknown_field_that_switches_nothing_on_is_passed_over(nothing: Any):
    assert Configurations.read(published(V2) | {"surprise": nothing}) == V2


@pytest.mark.parametrize("something", [True, 1, 0.5, "x", [0], {"on": False}], ids=repr)
def test_an_unknown_field_that_may_switch_something_on_is_refused(something: Any):
    with pytest.raises(SettingsError, match="unknown field 'surprise'"):
        Configurations.read(published(V2) | {"surprise": something})


@pytest.mark.parametrize(
    "changes",
    [
        {"time_cond_proj_dim": 256},  # LCM
        {"class_embed_type": "timestep"},
        {"num_class_embeds": 10},
        {"addition_embed_type": "text_time"},
        {"encoder_hid_dim": 64, "encoder_hid_dim_type": "text_proj"},
        {"resnet_time_scale_shift": "scale_shift"},
        {"use_linear_projection": True},
        {"upcast_attention": True},
        {"only_cross_attention": [True, True, True, False]},
        {"dual_cross_attention": True},
        {"transformer_layers_per_block": [1, 2, 10, 1]},
        {"conv_in_kernel": 1},
        {"conv_out_kernel": 1},
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        {"mid_block_only_cross_attention": True},
        {"timestep_post_act": "silu"},
        {"out_channels": 8},
        {"cross_attention_dim": [24, 24, 24, 24]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_the_walk_would_pass_over_in_a_stock_config_is_refused(changes: dict[str, Any]):
    with pytest.raises(SettingsError) as caught:
        on_meta(StockUNet, SMALL_STOCK | changes)
    sentence = str(caught.value)
    assert "The model's unet " in sentence and sentence.endswith(".") and "\n" not in sentence


def test_what_a_published_stock_config_says_beside_its_sizes_is_taken():
    said = {
        "act_fn": "swish",
        "dual_cross_attention": False,
        "upcast_attention": None,
        "only_cross_attention": [False] * 4,
    }
    on_meta(StockUNet, SMALL_STOCK | said | {"center_input_sample": False, "time_cond_proj_dim": None})


def test_all_that_diffusers_unet_can_be_told_is_honoured_or_refused():
    import inspect

    from diffusers import UNet2DConditionModel

    fields = set(inspect.signature(UNet2DConditionModel).parameters)
    assert set(HONOURED) | set(FAMILY) <= fields
    for name in fields - set(HONOURED) - set(FAMILY):
        with pytest.raises(SettingsError, match=name):
            on_meta(StockUNet, SMALL_STOCK | {name: "something else"})
