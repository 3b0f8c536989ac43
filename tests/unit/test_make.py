"""Made models have the published sizes and layout and live activations; `presswork model` makes, inspects, verifies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.core.model.errors import PressworkError
from worker.model import __main__ as command
from worker.model import checkpoint, directory, networks, vocabulary, weights
from worker.model.drafts import FolderTaken
from worker.model.make import make
from worker.model.presets import PRESETS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make(folder, "tiny")
    return folder


def test_the_full_presets_have_the_published_sizes() -> None:
    def parameters(preset: str) -> dict[str, int]:
        parts = PRESETS[preset].configs
        built = {name: networks.build(name, config) for name, config in parts.items()}
        return {name: sum(tensor.numel() for tensor in network.parameters()) for name, network in built.items()}

    full, sd15 = parameters("full"), parameters("sd15")
    assert full == {"text_encoder": 123_060_480, "flexible_unet": 525_277_444, "vae": 83_653_863}
    assert sum(full.values()) == 731_991_787
    assert sd15 == {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}


@pytest.mark.parametrize("preset", ["tiny", "tiny-sd", "mini"])
def test_a_made_model_is_decided_by_its_seed_and_is_never_dull(preset: str, tmp_path: Path) -> None:
    one = make(tmp_path / "one", preset)
    size = sum(file.stat().st_size for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert size < (14_000_000 if preset == "mini" else 6_000_000)
    assert make(tmp_path / "same", preset) == one
    assert make(tmp_path / "other", preset, seed=1) != one
    for component in directory.networks(tmp_path / "one"):
        tensors = load_file(weights.find(tmp_path / "one" / component))
        assert all(
            tensor.isfinite().all() and tensor.float().std() > 0 for tensor in tensors.values() if tensor.numel() > 1
        )
        assert sum(tensor.numel() for tensor in tensors.values()) < 5_000_000
    assert json.loads((tmp_path / "one" / "model_index.json").read_text())["presswork"]["name"] == preset


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_made_model_s_predictions_are_finite_and_follow_the_text(tiny: Path, dtype: torch.dtype) -> None:
    loaded = checkpoint.load(tiny, dtype)
    chance = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 4, 8, 8, generator=chance).to(dtype).repeat(2, 1, 1, 1)
    with torch.inference_mode():
        tokens = torch.tensor([[600, 601, 602], [610, 611, 612]])
        text = loaded.text_encoder(tokens).last_hidden_state
        predicted = loaded.unet(latents, torch.tensor([548.0]), text)
        pixels = loaded.vae.decode(predicted / loaded.vae.config.scaling_factor).sample.float()
    assert pixels.isfinite().all()
    assert 0.1 < float(pixels.std()) < 1.0
    assert float((pixels[0] - pixels[1]).abs().mean()) > 0.02


def test_a_taken_folder_and_an_unknown_preset_are_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(FolderTaken, match="is not empty"):
        make(tmp_path / "taken")
    with pytest.raises(PressworkError, match="tiny, tiny-sd, mini, full, sd15"):
        make(tmp_path / "new", "huge")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_vocabulary_spells_any_byte() -> None:
    known, merges = vocabulary.build()
    assert len(set(known.values())) == len(known)
    assert {vocabulary.printable(byte) for byte in range(256)} <= known.keys()
    assert all("".join(pair) in known for pair in merges)


def presswork(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "services.cli", "model", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_model_is_made_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    assert command.main(["make", "--seed", "3", "--json", str(folder)]) == 0
    said = capsys.readouterr()
    revision = json.loads(said.out)["revision"]
    assert revision == directory.revision(folder)
    assert "flexible_unet: 1,322,820 parameters" in said.err
    assert command.main(["verify", str(folder)]) == 0
    said = capsys.readouterr()
    whole = f"DeciDiffusion 2.0's architecture, {revision}, 1,627,355 parameters in 696 tensors"
    assert said.out.startswith(f"{folder} is whole: {whole}")
    file = weights.find(folder / "vae")
    tensors = load_file(file)
    large, damaged = (
        torch.full_like(tensors["decoder.conv_out.weight"], 3e38, dtype=torch.float32),
        "decoder.conv_in.bias",
    )
    for change, sentence in (
        (
            {damaged: tensors[damaged] * float("nan")},
            f"The model's vae has NaN or infinite numbers in 1 of its tensors, {damaged}",
        ),
        ({"decoder.conv_out.weight": large}, "The model's picture is not finite"),
    ):
        save_file(tensors | change, file)
        assert command.main(["verify", str(folder)]) == 1
        assert capsys.readouterr().err.startswith(sentence)
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, file)
    assert command.main(["verify", str(folder)]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "The model's vae lacks 1 of its 180 tensors, decoder.conv_in.bias for one.\n")


def test_the_command_inspects_in_a_table_that_fits(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "-odd name"
    folder.symlink_to(tiny)
    shown = presswork("inspect", "--", str(folder))
    assert shown.returncode == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    revision = directory.revision(tiny)
    for part in ("DeciDiffusion 2.0", revision, "64x64", "10 steps, guidance 7.5", "squeezed", "1,322,820", "F16"):
        assert part in shown.stdout
    told = json.loads(presswork("inspect", "--json", str(tiny)).stdout)
    assert told["components"]["flexible_unet"]["tensors"] == 480
    assert told["components"]["flexible_unet"]["bytes"] == weights.find(tiny / "flexible_unet").stat().st_size
    assert told["sampler"]["guidance_rescale"] == 0.8


def test_the_command_fails_in_one_sentence(tmp_path: Path) -> None:
    for verb in ("inspect", "verify"):
        refused = presswork(verb, str(tmp_path / "nowhere"))
        assert refused.returncode == 1 and refused.stdout == ""
        assert refused.stderr.count("\n") == 1 and "neither a directory" in refused.stderr
    assert presswork("make", "--preset", "huge", str(tmp_path / "new")).returncode == 2
