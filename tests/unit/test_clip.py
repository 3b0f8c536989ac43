"""The scorer clip, with a small CLIP that transformers has written, against transformers itself."""

from pathlib import Path

import numpy as np
import pytest

from services.core.model.errors import SettingsError
from worker import scorer
from worker.model import vocabulary

PIXELS = np.random.default_rng(1).integers(0, 256, (96, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    vocabulary.write(folder / "words", 77)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words", local_files_only=True)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_it_is_the_cosine_that_clip_itself_gives_for_picture_and_prompt(directory: Path) -> None:
    import torch
    from transformers import CLIPModel, CLIPProcessor

    clip = scorer.open_scorer("clip", directory=str(directory))
    model = CLIPModel.from_pretrained(directory, local_files_only=True).eval()
    processor = CLIPProcessor.from_pretrained(directory, local_files_only=True)
    scores = []
    for prompt in ("a red mug", "a blue chair on a wooden floor", "word " * 200, ""):
        given = processor(text=[prompt], images=[PIXELS], return_tensors="pt", padding=True, truncation=True)
        with torch.inference_mode():
            found = model(**given)
            expected = float(found.logits_per_image[0, 0] / model.logit_scale.exp())
        scores.append(scorer.value("clip", clip(PIXELS, prompt)))
        assert scores[-1] == pytest.approx(expected, abs=1e-5)
    assert len(set(scores)) == len(scores)


@pytest.mark.parametrize("config", [None, "{}"])
def test_a_directory_without_a_clip_is_named_in_one_sentence(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        SettingsError, match=r"PRESSWORK_CLIP_DIR is '.*'; the scorer clip needs a directory with a CLIP: .*"
    ) as caught:
        scorer.open_scorer("clip", directory=str(tmp_path))
    assert "\n" not in str(caught.value)
