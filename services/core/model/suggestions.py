"""What was probably meant by a field that there is not: the sentence is the same at every door."""

from collections.abc import Iterable
from difflib import get_close_matches

from services.core.model import strict_json

_LIKENESS = 0.75
_LONGEST = 64
# The names that other programs use, and what they are here.
_OTHER_NAMES = {
    "prompt": ("text", "caption", "description", "input", "positive_prompt"),
    "negative_prompt": ("negative", "neg_prompt", "uc", "unconditional_prompt"),
    "num_inference_steps": ("steps", "num_steps", "inference_steps", "sampling_steps", "n_steps", "step_count"),
    "guidance_scale": ("guidance", "cfg", "cfg_scale", "scale", "guidance_strength"),
    "size": ("width", "height", "resolution", "dimensions", "image_size", "shape"),
    "n": ("num_images", "num_images_per_prompt", "number_of_images", "count", "samples", "num_samples", "batch_size"),
    "custom_id": ("id", "name", "key", "sku", "external_id", "file_name", "filename"),
    "output_format": ("format", "image_format", "type", "extension"),
    "output_compression": ("quality", "compression", "jpeg_quality"),
    "model": ("model_id", "model_name", "checkpoint", "engine"),
    "seed": ("seeds", "random_seed", "noise_seed", "generator"),
    "metadata": ("meta", "extra", "attributes", "user_data"),
    "images": ("requests", "prompts", "items", "data"),
    "labels": ("tags", "label"),
    "dedupe": ("deduplicate", "reuse", "cache"),
    "embed_prompt": ("embed", "write_prompt"),
}
_MEANT = {other: name for name, others in _OTHER_NAMES.items() for other in others}


def meant(name: str, known: Iterable[str]) -> str:
    """The known name that is probably meant, or an empty text."""
    if len(name) > _LONGEST:
        return ""
    names = sorted(known)
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    if plain in names or _MEANT.get(plain) in names:
        return plain if plain in names else _MEANT[plain]
    written = {one.replace("_", ""): one for one in names}  # such as numInferenceSteps
    close = get_close_matches(plain.replace("_", ""), written, 1, _LIKENESS)
    return written[close[0]] if close else ""


def misspelt(name: str, known: Iterable[str]) -> str:
    """The known name of which this one is a misspelling, or an empty text."""
    return next(iter(get_close_matches(name.casefold(), list(known), 1, 0.8)), "")


def unknown_field(name: str, known: Iterable[str], where: str = "") -> str:
    """The sentence about it, with what was probably meant. `known` may hold names of inner objects, too."""
    known = set(known)
    if name in known:
        return f"The field {strict_json.describe(name)} has no place here{where}; it belongs to an inner object."
    found = meant(name, known)
    return f"There is no field {strict_json.describe(name)}{where}" + (f"; did you mean {found}?" if found else ".")
