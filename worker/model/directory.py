"""What a model directory must look like, checked by its names, its JSON files and the headers of its weights.

Imports no torch: the Celery parent asks before it forks, so that a bad directory is one sentence and no respawn loop.
What Presswork itself wants to know stands in model_index.json's "presswork" block, of which all may be left out.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.core.model.errors import SettingsError
from worker.model import hub, weights
from worker.model.sampler import MAX_STEPS, SamplerConfig

FLEXIBLE, STOCK = "flexible_unet", "unet"
PARTS = ("text_encoder", "vae", "tokenizer", "scheduler", FLEXIBLE)
# Fetched and loaded only when asked for.
SAFETY = {"safety_checker": "config.json", "feature_extractor": "preprocessor_config.json"}
DECI_2, DECI_1, STABLE = "DeciDiffusion 2.0", "DeciDiffusion 1.0", "Stable Diffusion"
DEFAULT_STEPS = {DECI_2: 10, DECI_1: 30, STABLE: 10}
SHIPPED = "presswork-mini"
SIZE_UNIT = 8  # pixels a latent stands for


@dataclass(frozen=True, slots=True)
class Index:
    """What is known of a model before it is loaded. Sizes are (width, height) in pixels.

    `kind` is one of the three above. `words`: all that a small model knows, casefolded; empty where that is not said.
    `sampler` overrides what sampler.Rules takes for such a model: lambda_min_clipped, squeezed, guidance_rescale.
    """

    name: str
    kind: str
    sizes: tuple[tuple[int, int], ...]
    default_size: tuple[int, int]
    default_steps: int
    default_guidance_scale: float
    max_steps: int
    words: tuple[str, ...]
    sampler: Mapping[str, Any]

    @property
    def flexible(self) -> bool:
        return self.kind != STABLE


def check_model_dir(name_or_path: str | Path, more: Collection[str] = ()) -> Path:
    """The directory of the model that PRESSWORK_MODEL_DIR names, whole as far as can be told without loading it; with
    the components `more` of SAFETY, too.

    Raises SettingsError, in one sentence, where a part is missing or cannot be what it should be.
    """
    if not str(name_or_path):
        raise SettingsError("PRESSWORK_MODEL_DIR is not set; it must name the directory of a model.")
    folder = locate(name_or_path, more)
    check(folder, more)
    return folder


def locate(name_or_path: str | Path, more: Collection[str] = ()) -> Path:
    """The directory of that name, the model of that name that ships with us, or the hub's, which is fetched unless it
    is in the local cache: a restart serves the same model. `more`: which components of SAFETY are fetched, too.

    Raises SettingsError, in one sentence, where there is none.
    """
    said, folder = str(name_or_path), Path(name_or_path)
    if folder.is_dir():
        return folder
    if said == SHIPPED:
        return Path(__file__).parent / "mini" / SHIPPED
    if folder.exists() or not hub.NAME.fullmatch(said):
        raise SettingsError(f"The model {said!r} is not a directory, nor {SHIPPED}, nor a name as on the hub.")
    wanted = (*PARTS, *more)
    found = hub.cached(said, wanted)
    if found is not None and _is_whole(found, more):
        return found
    found = hub.fetched(said, wanted)
    # A stock U-Net only where there is no flexible one: beside that it is a placeholder of 3.4 GB.
    return found if unet(found) == FLEXIBLE else hub.fetched(said, (*wanted, STOCK))


def check(folder: Path, more: Collection[str] = ()) -> None:
    """Raises SettingsError, in one sentence, unless `folder` holds every component, and `more` of SAFETY. Code and
    pickles are passed over; so is a `unet` beside a `flexible_unet`, which would load, and draw something else."""
    read_index(folder)
    for name in networks(folder):
        read_object(folder / name / "config.json")
        _check_weights(folder / name)
    tokenizer = folder / "tokenizer"
    if not all((tokenizer / name).is_file() for name in ("vocab.json", "merges.txt")):
        read_object(tokenizer / "tokenizer.json")
    read_object(folder / "scheduler" / "scheduler_config.json")
    for name in more:
        read_object(folder / name / SAFETY[name])
        if name == "safety_checker":
            _check_weights(folder / name)


def unet(folder: Path) -> str:
    """The name of the component that is the U-Net."""
    return FLEXIBLE if (folder / FLEXIBLE).is_dir() else STOCK


def networks(folder: Path) -> tuple[str, str, str]:
    """The names of the components that have weights."""
    return "text_encoder", unet(folder), "vae"


def read_index(folder: Path) -> Index:
    """The model's name, sizes and defaults. Raises SettingsError where a file is missing or makes no sense."""
    file = folder / "model_index.json"
    index = read_object(file)
    block = index.get("presswork", {})
    kind = _kind(folder)
    try:
        sizes = tuple(_size(size) for size in block.get("sizes", [[512, 512]]))
        words = block.get("words", [])
        said = Index(
            name=str(block.get("name") or index.get("_name_or_path") or folder.resolve().name),
            kind=kind,
            sizes=sizes,
            default_size=_size(block.get("default_size", sizes[0])),
            default_steps=int(block.get("default_steps", DEFAULT_STEPS[kind])),
            default_guidance_scale=float(block.get("default_guidance_scale", 7.5)),
            max_steps=int(block.get("max_steps", MAX_STEPS)),
            words=tuple(str(word).casefold() for word in words),
            sampler=dict(block.get("sampler", {})),
        )
    except (AttributeError, IndexError, TypeError, ValueError):
        raise SettingsError(f'The "presswork" block of {file} cannot be read; sizes are [[512, 512]], say.') from None
    sane = 1 <= said.default_steps <= said.max_steps <= MAX_STEPS and 0 <= said.default_guidance_scale <= 50
    if said.default_size not in sizes or not sane or isinstance(words, str):
        raise SettingsError(f'The "presswork" block of {file} has defaults that it does not allow itself.')
    return said


def read_sampler_config(folder: Path) -> SamplerConfig:
    """How the model is sampled. Raises SettingsError, in one sentence, where what is said of it makes no sense."""
    index, scheduler = read_index(folder), read_object(folder / "scheduler" / "scheduler_config.json")
    return SamplerConfig.read(scheduler, flexible=index.flexible, said=index.sampler)


def revision(folder: Path) -> str:
    """`revision-` and 12 hex digits of a sha256 over the weights and configs that are read, by sorted file name, and
    over what model_index.json says of the sampler: all that decides pixels."""
    digest = hashlib.sha256(json.dumps(dict(read_index(folder).sampler), sort_keys=True).encode())
    files = [folder / "scheduler" / "scheduler_config.json"]
    files += [file for file in (folder / "tokenizer").glob("*") if file.suffix in (".json", ".txt")]
    for name in networks(folder):
        files += [folder / name / "config.json", weights.find(folder / name)]
    for file in sorted(files, key=lambda file: file.relative_to(folder).as_posix()):
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise SettingsError(f"The model's {file} cannot be read: {error.strerror or error}.") from None
        digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"revision-{digest.hexdigest()[:12]}"


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises SettingsError where it is missing or is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SettingsError(f"The model directory lacks {file.parent.name}/{file.name} ({file}).") from None
    except (OSError, ValueError, RecursionError):
        raise SettingsError(f"The model's {file} cannot be read as JSON.") from None
    if not isinstance(value, dict):
        raise SettingsError(f"The model's {file} must hold a JSON object.")
    return value


def _kind(folder: Path) -> str:
    """DeciDiffusion 1.0 is told from 2.0 by its mid block. Nothing in model_index.json tells either."""
    if unet(folder) == STOCK:
        return STABLE
    file = folder / FLEXIBLE / "config.json"
    configurations = read_object(file).get("configurations")
    if not isinstance(configurations, dict):
        raise SettingsError(f'The model\'s {file} has no "configurations": it is not that of a flexible U-Net.')
    return DECI_1 if configurations.get("mid_num_resnets") or configurations.get("mid_num_attentions") else DECI_2


def _check_weights(folder: Path) -> None:
    file = weights.find(folder)
    tensors = weights.read_header(file)
    if not tensors:
        raise SettingsError(f"The model's {file} holds no tensors.")
    flexible = any(".modules_list." in name for name in tensors)
    if folder.name == FLEXIBLE and not flexible:
        raise SettingsError(
            f"The model's {file} holds a stock Stable Diffusion U-Net, not DeciDiffusion's flexible one."
        )
    if folder.name == STOCK and flexible:
        raise SettingsError(f"The model's {file} holds DeciDiffusion's U-Net; its place is the folder {FLEXIBLE}.")


def _is_whole(folder: Path, more: Collection[str]) -> bool:
    try:
        check(folder, more)
    except SettingsError:
        return False
    return True


def _size(value: Any) -> tuple[int, int]:
    width, height = (int(side) for side in value)
    if min(width, height) < SIZE_UNIT or width % SIZE_UNIT or height % SIZE_UNIT:
        raise ValueError
    return width, height
