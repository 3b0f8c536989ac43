"""A checkpoint is loaded whole or not at all: every tensor accounted for, in both layouts, and none of its code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.core.model.errors import SettingsError
from worker.model import checkpoint, directory, verify, vocabulary, weights
from worker.model.make import make
from worker.model.stages import Decoder

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeciDiffusion's layout."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make(folder, "tiny")
    return folder


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion's."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    make(folder, "tiny-sd")
    return folder


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def rewrite(model: Path, component: str, change: Callable[[Tensors], Any]) -> None:
    file = weights.find(model / component)
    tensors = load_file(file)
    changed = change(tensors)
    save_file(changed if isinstance(changed, dict) else tensors, file, metadata={"format": "pt"})


def reconfigure(model: Path, file: str, **fields: Any) -> None:
    config = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps(config | fields))


def refusal(model: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        checkpoint.load(model)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 600
    return sentence


def same(one: checkpoint.Checkpoint, other: checkpoint.Checkpoint) -> bool:
    pairs = [(getattr(one, part), getattr(other, part)) for part in ("text_encoder", "unet", "vae")]
    return all(
        mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)
        for mine, theirs in ((a.state_dict(), b.state_dict()) for a, b in pairs)
    )


@pytest.mark.parametrize("layout", ["tiny", "tiny_sd"])
def test_both_layouts_load_whole_and_ready(layout: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    loaded = checkpoint.load(folder)
    for part in ("text_encoder", "unet", "vae"):
        network = getattr(loaded, part)
        assert not any(module.training for module in network.modules())
        for tensor in (*network.parameters(), *network.buffers()):
            assert tensor.device.type == "cpu" and not tensor.requires_grad
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    stored = load_file(weights.find(folder / directory.unet(folder)))
    found = loaded.unet.state_dict()
    assert found.keys() == stored.keys()
    assert all(found[name].equal(stored[name].float()) for name in found)
    assert loaded.index.flexible == (layout == "tiny")
    assert loaded.revision == directory.revision(folder)
    assert loaded.max_tokens == 77
    assert loaded.sampler_config.prediction_type == ("v_prediction" if layout == "tiny" else "epsilon")
    assert loaded.sampler_config.squeezed == (layout == "tiny")


def test_a_model_that_draws_another_picture_the_second_time_is_not_whole(tiny: Path) -> None:
    loaded = checkpoint.load(tiny)
    verify.verify(loaded)
    loaded.vae.decoder.conv_out.register_forward_hook(lambda _, __, out: out + torch.rand_like(out))
    with pytest.raises(SettingsError, match="drew two different pictures from one prompt and seed"):
        verify.verify(loaded)


def test_weights_are_cast_as_they_are_loaded(tiny: Path) -> None:
    loaded = checkpoint.load(tiny, torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.vae.parameters()} == {torch.bfloat16}
    assert loaded.text_encoder.embeddings.position_ids.dtype == torch.int64


def test_the_text_encoder_is_what_transformers_loads_from_the_same_folder(tiny: Path) -> None:
    from transformers import CLIPTextModel

    loaded = checkpoint.load(tiny)
    tokens = torch.tensor([[5, 9, 600, 3]])
    theirs = CLIPTextModel.from_pretrained(tiny / "text_encoder", local_files_only=True).eval()
    with torch.no_grad():
        assert loaded.text_encoder(tokens).last_hidden_state.equal(theirs(tokens).last_hidden_state)


def test_the_tokenizer_reads_either_kind_of_files_the_same(tiny: Path, model: Path) -> None:
    before = checkpoint.load(tiny).tokenizer
    before.save_pretrained(model / "tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (model / "tokenizer" / name).unlink(missing_ok=True)
    after = checkpoint.load(model).tokenizer
    prompts = ["A red  mug", "émaillé 日本 🫖", "", "<|endoftext|> mug's 12", "\x00"]
    assert before(prompts)["input_ids"] == after(prompts)["input_ids"]
    mug = vocabulary.build()[0]["mug</w>"]
    assert before("a mug")["input_ids"][2] == mug


def test_a_placeholder_unet_is_never_read(tiny: Path, model: Path) -> None:
    (model / "unet").mkdir()
    (model / "unet" / "config.json").write_text("garbage")
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"garbage")
    assert same(checkpoint.load(model), checkpoint.load(tiny))


def test_no_code_of_a_checkpoint_s_is_ever_run(model: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    evil = f"open({str(ran)!r}, 'w')\nraise SystemExit('run')\n"
    for place in (".", "flexible_unet", "text_encoder", "tokenizer", "vae", "scheduler"):
        for name in ("pipeline.py", "evil.py", "__init__.py"):
            (model / place / name).write_text(evil)
    automatic = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "evil.Evil")}
    reconfigure(model, "text_encoder/config.json", attn_implementation="somebody/kernel", **automatic)
    reconfigure(model, "tokenizer/tokenizer_config.json", **automatic)
    reconfigure(model, "model_index.json", _class_name="Evil", custom_pipeline="evil", **automatic)
    checkpoint.load(model)
    assert not ran.exists()


def test_old_and_new_names_of_tensors_load_alike(tiny: Path, model: Path) -> None:
    def newer(tensors: Tensors) -> Tensors:
        return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}

    def older(tensors: Tensors) -> Tensors:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        renamed = {}
        for name, tensor in tensors.items():
            old_name = name
            for new, old in names.items():
                old_name = old_name.replace(f".{new}.", f".{old}.")
            renamed[old_name] = tensor
        assert renamed.keys() != tensors.keys()
        return renamed

    whole = checkpoint.load(tiny)
    assert all(name.startswith("text_model.") for name in weights.read_header(weights.find(tiny / "text_encoder")))
    rewrite(model, "vae", older)
    stray = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    rewrite(model, "text_encoder", lambda tensors: tensors | stray)
    assert same(checkpoint.load(model), whole)
    rewrite(model, "text_encoder", newer)
    assert same(checkpoint.load(model), whole)


COUNT = {"text_encoder": 36, "flexible_unet": 480, "vae": 180}


@pytest.mark.parametrize("component", COUNT)
def test_missing_unexpected_misshaped_and_odd_tensors_are_counted_and_named(model: Path, component: str) -> None:
    (name, *_) = names = sorted(weights.read_header(weights.find(model / component)))
    file = weights.find(model / component)
    kept = file.read_bytes()

    def after(change: Callable[[Tensors], Any]) -> str:
        file.write_bytes(kept)
        rewrite(model, component, change)
        sentence = refusal(model)
        assert component in sentence
        return sentence

    def without_two(tensors: Tensors) -> None:
        del tensors[name], tensors[names[-1]]

    assert f"lacks 2 of its {COUNT[component]} tensors" in after(without_two)
    sentence = after(lambda tensors: tensors.update({"some.thing": torch.zeros(1)}))
    assert "holds 1 tensors that its config.json has no place for, some.thing for one" in sentence
    sentence = after(lambda tensors: tensors.update({name: torch.zeros(3, 1)}))
    assert f"{name} is [3, 1], not" in sentence
    sentence = after(lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    assert f"{name} is I8" in sentence
    sentence = after(lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    assert f"{name} is F8_E4M3" in sentence


def test_a_name_stored_twice_is_refused(model: Path) -> None:
    def doubled(tensors: Tensors) -> None:
        tensors["final_layer_norm.bias"] = tensors["text_model.final_layer_norm.bias"].clone()

    rewrite(model, "text_encoder", doubled)
    assert "has no place for" in refusal(model)


def test_the_configurations_are_checked_against_the_tensors(model: Path) -> None:
    file = "flexible_unet/config.json"
    said = json.loads((model / file).read_text())["configurations"]
    for change, reason in (
        ({"up_blocks_num_attentions": [6, 3, 0]}, "lacks"),
        ({"up_blocks_num_attentions": [4, 3, 0]}, "no place for"),
        ({"temb_dim": 32}, "another shape"),
        ({"mid_num_resnets": 1}, "lacks"),
        ({"frills": True}, "unknown field 'frills'"),
        ({"resnet_act_fn": "relu"}, "only silu"),
        ({"norm_num_groups": 7}, "makes no network"),
        ({"num_attention_heads": "x"}, "makes no network"),
        ({"temb_dim": None}, "makes no network"),
        ({"down_blocks_num_resnets": [2, 2, 2]}, "skips"),
        ({"add_upsample": [True]}, "unequal numbers of blocks"),
    ):
        reconfigure(model, file, configurations=said | change)
        sentence = refusal(model)
        assert reason in sentence and "flexible" in sentence, sentence
    reconfigure(model, file, configurations={name: said[name] for name in said if name != "temb_dim"})
    assert "lack" in refusal(model) and "temb_dim" in refusal(model)


@pytest.mark.parametrize(
    ("file", "fields", "reason"),
    [
        ("text_encoder/config.json", {"hidden_size": "wide"}, "text_encoder/config.json makes no network"),
        ("text_encoder/config.json", {"num_attention_heads": 5}, "text_encoder/config.json makes no network"),
        ("text_encoder/config.json", {"hidden_act": "evil"}, "text_encoder/config.json makes no network"),
        ("text_encoder/config.json", {"hidden_size": 64}, "another shape"),
        ("vae/config.json", {"frills": 3}, "vae/config.json has frills 3, which is not known; leave it out"),
        ("vae/config.json", {"up_block_types": ["Evil"] * 4}, "only 'UpDecoderBlock2D' is supported"),
        ("vae/config.json", {"act_fn": "gelu"}, "act_fn 'gelu'; only 'silu' or 'swish' is supported"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "that of AutoencoderTiny; only AutoencoderKL"),
        ("vae/config.json", {"latent_channels": "x"}, "latent_channels 'x'; it must be a number of channels"),
        ("vae/config.json", {"norm_num_groups": 0}, "vae/config.json makes no network"),
        ("vae/config.json", {"scaling_factor": None}, "scaling_factor None; it must be a number above 0"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor 0; it must be a number above 0"),
        ("vae/config.json", {"scaling_factor": "x"}, "scaling_factor 'x'; it must be a number above 0"),
        ("vae/config.json", {"shift_factor": float("nan")}, "shift_factor nan; it must be a number"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "do not belong together"),
        ("vae/config.json", {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "are not 4 numbers"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type"),
        ("scheduler/scheduler_config.json", {"beta_start": "x"}, "scheduler_config.json"),
        ("tokenizer/vocab.json", {"zzz</w>": 5000}, "tokenizer"),
        (
            "model_index.json",
            {"presswork": {"sizes": [[72, 64]]}},
            "72x64 is unusable: its U-Net needs multiples of 32",
        ),
        ("model_index.json", {"presswork": {"sampler": {"guidance_rescale": 2}}}, "guidance rescale"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit_are_one_sentence(model: Path, file: str, fields: dict[str, Any], reason: str) -> None:
    reconfigure(model, file, **fields)
    assert reason in refusal(model)


def test_latents_are_shifted_and_spread_as_the_vae_says(model: Path) -> None:
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.5, 0.5, 2.0, 1.0]

    def decoded(latents: torch.Tensor, **fields: Any) -> torch.Tensor:
        usual = {"scaling_factor": 0.5, "shift_factor": None, "latents_mean": None, "latents_std": None}
        reconfigure(model, "vae/config.json", **usual | fields)
        with torch.inference_mode():
            return Decoder(checkpoint.load(model).vae)(latents)[0].int()

    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    column, row = torch.tensor(std)[:, None, None], torch.tensor(mean)[:, None, None]
    shifted, spread = decoded(latents, shift_factor=0.25), decoded(latents, latents_mean=mean, latents_std=std)
    assert int((shifted - decoded(latents + 0.25 * 0.5)).abs().max()) <= 1
    assert int((spread - decoded(latents * column + row * 0.5)).abs().max()) <= 1
    assert int((spread - decoded(latents)).abs().max()) > 5 < int((shifted - decoded(latents)).abs().max())


@pytest.mark.parametrize("file", ["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"])
def test_a_broken_tokenizer_is_one_sentence(model: Path, file: str) -> None:
    (model / file).write_bytes(b"\xff{nonsense")
    assert "tokenizer" in refusal(model)


def test_networks_that_do_not_fit_one_another_are_refused(model: Path, tiny_sd: Path, tmp_path: Path) -> None:
    make(tmp_path / "mini", "mini")
    shutil.rmtree(model / "text_encoder")
    shutil.copytree(tmp_path / "mini" / "text_encoder", model / "text_encoder")
    assert "reads text states of width 32" in refusal(model)
    shutil.rmtree(model / "flexible_unet")
    shutil.copytree(tiny_sd / "unet", model / "flexible_unet")
    assert "configurations" in refusal(model)
    shutil.copy(tmp_path / "mini" / "flexible_unet" / "config.json", model / "flexible_unet")
    assert "stock Stable Diffusion U-Net" in refusal(model)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_linear_projection": True},
        {"down_block_types": ["CrossAttnDownBlock2D", "AttnDownBlock2D"]},
        {"transformer_layers_per_block": 2},
        {"resnet_time_scale_shift": "scale_shift"},
        {"act_fn": "gelu"},
    ],
    ids=str,
)
def test_a_stock_unet_of_another_family_is_refused(tiny_sd: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    model = Path(shutil.copytree(tiny_sd, tmp_path / "model"))
    reconfigure(model, "unet/config.json", **fields)
    assert next(iter(fields)) in refusal(model)
