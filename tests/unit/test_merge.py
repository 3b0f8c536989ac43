"""LoRAs of every layout are merged as diffusers and PEFT fuse them; what does not fit is never dropped in silence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.core.model.errors import PressworkError
from worker.model import __main__ as command
from worker.model import checkpoint, directory, lora, networks, weights
from worker.model import inspect as inspection
from worker.model import merge as merging
from worker.model.make import make
from worker.model.merge import merge

RANK, ALPHA = 4, 2.0
Tensors = dict[str, torch.Tensor]
# Layers of each kind: attention, its convolutions, feed-forward, LoCon's convolutions, a resampling one.
UNET = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
)
WIDER = (
    *UNET, "down_blocks.0.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv",
)  # fmt: skip
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj")


@pytest.fixture(scope="module")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    make(folder, "tiny-sd")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make(folder, "tiny")
    return folder


def matrices(
    folder: Path, names: tuple[str, ...], component: str = "unet"
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random down and up matrices for these layers of the model."""
    network = networks.build(component, directory.read_object(folder / component / "config.json"))
    shapes = {name: network.get_submodule(name).weight.shape for name in names}
    chance = torch.Generator().manual_seed(1)
    return {
        name: (
            0.2 * torch.randn(RANK, *shape[1:], generator=chance),
            0.2 * torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=chance),
        )
        for name, shape in shapes.items()
    }


def kohya(folder: Path, file: Path) -> None:
    tensors: Tensors = {}
    for prefix, found in (
        ("lora_unet_", matrices(folder, WIDER)),
        ("lora_te_text_model_", matrices(folder, (*TEXT, "encoder.layers.0.mlp.fc1"), "text_encoder")),
    ):
        for name, (down, up) in found.items():
            key = prefix + name.replace(".", "_")
            tensors |= {
                f"{key}.lora_down.weight": down,
                f"{key}.lora_up.weight": up,
                f"{key}.alpha": torch.tensor(ALPHA),
            }
    save_file(tensors, file)


def diffusers_new(folder: Path, file: Path) -> None:
    unet, text = matrices(folder, WIDER), matrices(folder, TEXT, "text_encoder")
    tensors = {f"unet.{name}.lora_{side}.weight": pair[n] for name, pair in unet.items() for n, side in enumerate("AB")}
    tensors |= {
        f"text_encoder.text_model.{name}.lora_{side}.weight": pair[n]
        for name, pair in text.items()
        for n, side in enumerate("AB")
    }
    save_file(tensors, file)


def diffusers_with_metadata(folder: Path, file: Path) -> None:
    from diffusers import StableDiffusionPipeline

    found = matrices(folder, WIDER)
    layers = {f"{name}.lora_{side}.weight": pair[n] for name, pair in found.items() for n, side in enumerate("AB")}
    config = {"r": RANK, "lora_alpha": ALPHA, "alpha_pattern": {WIDER[0]: 8}, "target_modules": list(WIDER)}
    StableDiffusionPipeline.save_lora_weights(
        file.parent, unet_lora_layers=layers, weight_name=file.name, unet_lora_adapter_metadata=config
    )


def diffusers_old(folder: Path, file: Path) -> None:
    tensors: Tensors = {}
    for name, (down, up) in matrices(folder, UNET).items():
        head, _, last = name.replace("to_out.0", "to_out").rpartition(".")
        tensors |= {
            f"unet.{head}.processor.{last}_lora.down.weight": down, f"unet.{head}.processor.{last}_lora.up.weight": up,
        }  # fmt: skip
    for name, (down, up) in matrices(folder, TEXT, "text_encoder").items():
        key = f"text_encoder.text_model.{name}.lora_linear_layer"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    save_file(tensors, file)


def merged_networks(folder: Path, *given: str) -> tuple[Tensors, Tensors]:
    merge(folder, given, folder.parent / "merged")
    loaded = checkpoint.load(folder.parent / "merged")
    return loaded.unet.state_dict(), loaded.text_encoder.state_dict()


@pytest.mark.parametrize("write", [kohya, diffusers_new, diffusers_with_metadata, diffusers_old])
def test_a_merged_model_is_what_diffusers_fuses(
    write: Callable[[Path, Path], None], tiny_sd: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    model = Path(shutil.copytree(tiny_sd, tmp_path / "model"))
    file = tmp_path / "style.safetensors"
    write(model, file)
    stock = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, local_files_only=True)
    before = {name: tensor.clone() for name, tensor in stock.unet.state_dict().items()}
    stock.load_lora_weights(tmp_path, weight_name=file.name)
    stock.fuse_lora(lora_scale=0.7)
    stock.unload_lora_weights()
    unet, text = merged_networks(model, f"{file}:0.7")
    for merged, network in ((unet, stock.unet), (text, stock.text_encoder)):
        fused = {name.removeprefix("text_model."): tensor for name, tensor in network.state_dict().items()}
        assert merged.keys() == fused.keys()
        assert max(float((merged[name] - fused[name]).abs().max()) for name in fused) < 1e-3
    changed = [name for name in before if float((unet[name] - before[name]).abs().max()) > 1e-3]
    assert sorted(changed) == sorted(f"{name}.weight" for name in (UNET if write is diffusers_old else WIDER))


@pytest.mark.parametrize("stabilized", [False, True])
def test_peft_s_layout_fits_the_flexible_unet(stabilized: bool, tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    unet = checkpoint.load(tiny).unet
    names = [
        name for name, part in unet.named_modules() if name.endswith(("attn1.to_q", "attn2.to_v", "conv2", "proj_out"))
    ]
    config = LoraConfig(
        r=RANK, lora_alpha=6, target_modules=names, use_rslora=stabilized, init_lora_weights=False,
        alpha_pattern={"attn2.to_v": 1},
    )  # fmt: skip
    adapted = get_peft_model(unet, config)
    adapted.save_pretrained(tmp_path / "adapter")
    fused = adapted.merge_and_unload().state_dict()
    done = merge(tiny, [str(tmp_path / "adapter" / "adapter_model.safetensors")], tmp_path / "new")
    assert done["loras"][0]["applied"] == {"flexible_unet": len(names)}
    found = load_file(weights.find(tmp_path / "new" / "flexible_unet"))
    for name, wanted in fused.items():  # the file's half precision rounds by 2 ** -11 of a number, and peft draws them
        torch.testing.assert_close(found[name].float(), wanted, rtol=1e-3, atol=1e-4)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(PressworkError, match=r"adapter_config\.json; put that file beside it"):
        merge(tiny, [str(tmp_path / "adapter" / "adapter_model.safetensors")], tmp_path / "newer")


def test_a_merged_model_says_what_it_was_made_of_and_is_a_model_of_its_own(tiny_sd: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    kohya(tiny_sd, one)
    diffusers_new(tiny_sd, two)
    done = merge(tiny_sd, [f"{one}:0.5", f"{two}:-0.25"], tmp_path / "new")
    assert done["revision"] == directory.revision(tmp_path / "new") != directory.revision(tiny_sd)
    assert directory.read_index(tmp_path / "new").name == "new"
    written = json.loads((tmp_path / "new" / directory.PROVENANCE).read_text())
    assert written["base"] == {"name": "tiny-sd", "revision": directory.revision(tiny_sd)}
    assert [(entry["file"], entry["weight"], entry["left_out"]) for entry in written["loras"]] == [
        ("one.safetensors", 0.5, {}), ("two.safetensors", -0.25, {}),
    ]  # fmt: skip
    assert written["loras"][0]["applied"] == {"text_encoder": 3, "unet": 7}
    assert len(written["loras"][0]["sha256"]) == 64
    assert inspection.inspect(tmp_path / "new")["merged"] == written
    assert "one.safetensors at 0.5, two.safetensors at -0.25" in inspection.table(inspection.inspect(tmp_path / "new"))
    again = merge(tmp_path / "new", [str(two)], tmp_path / "newer", name="third")
    assert again["base"]["merged"] == written
    assert directory.read_index(tmp_path / "newer").name == "third"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "newer", "one.safetensors", "two.safetensors"]


def rewritten(file: Path, change: Callable[[Tensors], Any]) -> str:
    tensors = load_file(file)
    changed = change(tensors)
    save_file(changed if isinstance(changed, dict) else tensors, file)
    return str(file)


KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t | {f"{KEY}.dora_scale": torch.ones(32, 1)}, "holds DoRA, which cannot be merged"),
        (lambda t: t | {f"{KEY}.lora_mid.weight": torch.ones(4, 4, 3, 3)}, "LoCon with a core tensor"),
        (lambda t: t | {"lora_te2_text_model_final.weight": torch.ones(2)}, "is no part of a LoRA that is known here"),
        (lambda t: t | {f"{KEY}.lora_down.weight": torch.ones(4, 48)}, r"another shape \(32 4 x 4 48\)"),
        (lambda t: t.pop(f"{KEY}.lora_up.weight"), "lacks its up matrix"),
        (lambda t: t | {f"lora_unet_x.lora_{side}.weight": torch.ones(4, 4) for side in ("down", "up")},
         "lora_unet_x for one, which names a layer that the model does not have; --partial"),
        (lambda t: t | {f"{KEY}.alpha": torch.tensor(float("nan"))}, "has an alpha that is not finite"),
        (lambda t: t | {f"{KEY}.lora_up.weight": torch.full((32, 4), float("inf"))}, "would not be finite in unet"),
        (lambda t: {f"{KEY}.hada_w1_a": torch.ones(2, 2)}, "holds LoHa, which cannot be merged"),
        (lambda t: {name: torch.zeros_like(tensor) for name, tensor in t.items()}, "every change is zero"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    change: Callable[[Tensors], Any], sentence: str, tiny_sd: Path, tmp_path: Path
) -> None:
    kohya(tiny_sd, tmp_path / "odd.safetensors")
    given = rewritten(tmp_path / "odd.safetensors", change)
    with pytest.raises(PressworkError, match=sentence) as caught:
        merge(tiny_sd, [given], tmp_path / "new")
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["odd.safetensors"]


def test_what_does_not_fit_is_left_out_and_listed_if_it_may_be(tiny: Path, tiny_sd: Path, tmp_path: Path) -> None:
    file = tmp_path / "for-sd.safetensors"
    kohya(tiny_sd, file)
    done = merge(tiny, [str(file)], tmp_path / "new", partial=True)
    (one,) = done["loras"]
    assert one["applied"] == {"text_encoder": 3}
    assert one["left_out"][KEY] == "names a layer that the model does not have"
    assert len(one["left_out"]) == len(WIDER)
    assert f"left out: {KEY}" in merging.table(done)
    rewritten(file, lambda t: {name: tensor for name, tensor in t.items() if name.startswith("lora_unet")})
    with pytest.raises(PressworkError, match="would be left out"):
        merge(tiny, [str(file)], tmp_path / "newer", partial=True)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("absent.safetensors", "no LoRA file"), ("here.safetensors:zero", "'zero'; it must be a number"),
        ("here.safetensors:0", "other than 0"), ("here.safetensors:inf", "must be a number"),
        ("here.ckpt", "pickle"), ("here.safetensors", "cut short"),
    ],
)  # fmt: skip
def test_a_file_or_weight_that_is_none_is_named(given: str, sentence: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "here.safetensors").touch()
    (tmp_path / "here.ckpt").touch()
    with pytest.raises(PressworkError, match=sentence):
        merge(tiny, [str(tmp_path / given)], tmp_path / "new")
    assert lora.locate(f"{tmp_path / 'here.safetensors'}:0.5") == (tmp_path / "here.safetensors", 0.5)


def test_an_interrupted_merge_leaves_nothing_and_two_do_not_write_one_directory(tiny_sd: Path, tmp_path: Path) -> None:
    kohya(tiny_sd, tmp_path / "style.safetensors")
    given, new, draft = [str(tmp_path / "style.safetensors")], tmp_path / "new", tmp_path / ".new.draft"

    def interrupt(_: str) -> None:
        assert (draft / "model_index.json").exists() and not new.exists()
        with pytest.raises(PressworkError, match="Another process writes"):
            merge(tiny_sd, given, new)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(tiny_sd, given, new, say=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["style.safetensors"]
    (draft / "unet").mkdir(parents=True)  # what kill -9 leaves
    (draft / "unet" / "half.safetensors").touch()
    whole = merge(tiny_sd, given, new)["revision"]
    assert not draft.exists() and not (new / "unet" / "half.safetensors").exists()
    assert checkpoint.load(new).revision == whole


def test_the_command_merges_and_says_what_it_did(
    tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kohya(tiny_sd, tmp_path / "style.safetensors")
    given = [str(tiny_sd), f"{tmp_path / 'style.safetensors'}:0.5", "-o", str(tmp_path / "new"), "--name", "mine"]
    assert command.main(["merge", *given]) == 0
    said = capsys.readouterr().out
    assert "style.safetensors, weight 0.5: 10 layers (3 in text_encoder, 7 in unet)" in said
    assert command.main(["merge", *given]) == 1
    assert "is not empty; the merged model needs an empty directory." in capsys.readouterr().err
    assert directory.read_index(tmp_path / "new").name == "mine"
