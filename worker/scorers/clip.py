"""How well a picture fits its prompt: the cosine of CLIP's embeddings of both, from -1 to 1.

From any directory that transformers loads as a model with features of texts and of images. It runs no code of the
directory, and asks no hub.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import SettingsError
from worker.scorer import Scorer


def open_scorer(directory: str = "") -> Scorer:
    """Raises SettingsError if there is no such model."""
    if not Path(directory, "config.json").is_file():
        raise _refusal(directory, "it has no config.json")
    import torch
    from transformers import AutoModel, AutoProcessor

    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModel.from_pretrained(directory, use_safetensors=True, **where).eval()
        processor = AutoProcessor.from_pretrained(directory, **where)
    except Exception as error:
        raise _refusal(directory, " ".join(str(error).split())[:200].rstrip(".")) from error
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise _refusal(directory, f"it holds a {type(model).__name__}")

    def clip(pixels: NDArray[np.uint8], prompt: str) -> float:
        given = processor(text=[prompt], images=[pixels], return_tensors="pt", padding=True, truncation=True)
        picture = {"pixel_values": given.pop("pixel_values")}
        with torch.inference_mode():
            of_picture = _features(model.get_image_features(**picture))
            of_text = _features(model.get_text_features(**given))
        return float(torch.nn.functional.cosine_similarity(of_picture, of_text)[0])

    return clip


def _refusal(directory: str, why: str) -> SettingsError:
    return SettingsError(f"PRESSWORK_CLIP_DIR is {directory!r}; the scorer clip needs a directory with a CLIP: {why}.")


def _features(found: Any) -> Any:
    """Newer versions of transformers wrap the features."""
    return getattr(found, "pooler_output", found)
