"""Checks a model directory by its file names, its JSON files and the headers of its weights.

Imports no torch: the Celery parent checks before it forks, so that a bad directory gives one sentence instead of a
respawn loop. Presswork's own fields are in model_index.json's "presswork" block; all of them are optional.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.core.model.errors import SettingsError
from services.core.model.licenses import License
from worker.model import hub, model_card, scheduler_config, weights
from worker.model.sampler import MAX_STEPS, SamplerConfig

FLEXIBLE, STOCK = "flexible_unet", "unet"
COMPONENTS = ("text_encoder", "vae", "tokenizer", "scheduler", FLEXIBLE)
# Component -> its config file. Fetched and loaded only if the settings ask for the safety checker.
SAFETY_COMPONENTS = {"safety_checker": "config.json", "feature_extractor": "preprocessor_config.json"}
DECI_2, DECI_1, STABLE = "DeciDiffusion 2.0", "DeciDiffusion 1.0", "Stable Diffusion"
DEFAULT_STEPS = {DECI_2: 10, DECI_1: 30, STABLE: 10}
PUBLISHED_SOLVER = {DECI_2: "dpmsolver++", DECI_1: "ddim", STABLE: "dpmsolver++"}
LCM_STEPS, LCM_GUIDANCE_SCALE = 4, 1.0  # a distilled model needs no more
SHIPPED = "presswork-mini"
PROVENANCE = "presswork_merge.json"
SIZE_UNIT = 8  # pixels per latent, in each direction


@dataclass(frozen=True, slots=True)
class Index:
    """What is known of a model before it is loaded. Sizes are (width, height) in pixels.

    `kind` is one of the three above. `words`: the whole vocabulary of a small model, casefolded; empty if not given.
    `long_prompts`: prompts that are too long for the text encoder are read in chunks, instead of cut.
    `sampler` overrides SamplerConfig's defaults for this kind: sampler.OVERRIDES.
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
    long_prompts: bool = False
    license: License | None = None

    @property
    def flexible(self) -> bool:
        return self.kind != STABLE


def check_model_dir(name_or_path: str | Path, extra: Collection[str] = ()) -> Path:
    """The directory of the model that PRESSWORK_MODEL_DIR names, checked without loading it.

    `extra` are the components of SAFETY_COMPONENTS that it must have, too.

    Raises SettingsError, in one sentence, if a part is missing or invalid.
    """
    if not str(name_or_path):
        raise SettingsError("PRESSWORK_MODEL_DIR is not set; it must name the directory of a model.")
    folder = locate(name_or_path, extra)
    check(folder, extra)
    return folder


def locate(name_or_path: str | Path, extra: Collection[str] = ()) -> Path:
    """The directory of that name, the bundled model, or a model of the hub.

    A model of the hub is fetched unless the local cache has it complete, so that a restart serves the same model.
    `extra` are the components of SAFETY_COMPONENTS to fetch, too.

    Raises SettingsError, in one sentence, if there is none.
    """
    name, folder = str(name_or_path), Path(name_or_path)
    if folder.is_dir():
        return folder
    if name == SHIPPED:
        return Path(__file__).parent / "mini" / SHIPPED
    if folder.exists() or not hub.NAME.fullmatch(name):
        raise SettingsError(f"The model {name!r} is neither a directory nor {SHIPPED} nor a name on the hub.")
    wanted = (*COMPONENTS, *extra)
    found = hub.cached(name, wanted)
    if found is not None and _is_whole(found, extra):
        return found
    found = hub.fetched(name, wanted)
    # The stock U-Net only if there is no flexible one; beside a flexible one it is an unused file of 3.4 GB.
    return found if unet(found) == FLEXIBLE else hub.fetched(name, (*wanted, STOCK))


def check(folder: Path, extra: Collection[str] = ()) -> None:
    """Raises SettingsError, in one sentence, unless `folder` has every component, and those of SAFETY_COMPONENTS in
    `extra`.

    Ignores code and pickles, and a `unet` beside a `flexible_unet`: it would load, but draws different pictures.
    """
    read_index(folder)
    for name in networks(folder):
        read_object(folder / name / "config.json")
        _check_weights(folder / name)
    tokenizer = folder / "tokenizer"
    if not all((tokenizer / name).is_file() for name in ("vocab.json", "merges.txt")):
        read_object(tokenizer / "tokenizer.json")
    read_sampler_config(folder)
    for name in extra:
        read_object(folder / name / SAFETY_COMPONENTS[name])
        if name == "safety_checker":
            _check_weights(folder / name)


def unet(folder: Path) -> str:
    """The name of the component that is the U-Net."""
    return FLEXIBLE if (folder / FLEXIBLE).is_dir() else STOCK


def networks(folder: Path) -> tuple[str, str, str]:
    """The names of the components that have weights."""
    return "text_encoder", unet(folder), "vae"


def read_index(folder: Path) -> Index:
    """The model's name, sizes and defaults. Raises SettingsError if a file is missing or invalid."""
    file = folder / "model_index.json"
    index = read_object(file)
    block = index.get("presswork", {})
    kind = _kind(folder)
    steps, guidance_scale = DEFAULT_STEPS[kind], 7.5
    if scheduler_config.solver(_read_if_there(folder / "scheduler" / "scheduler_config.json")) == "lcm":
        steps, guidance_scale = LCM_STEPS, LCM_GUIDANCE_SCALE
    try:
        sizes = tuple(_size(size) for size in block.get("sizes", [[512, 512]]))
        words = block.get("words", [])
        index_fields = Index(
            name=str(block.get("name") or index.get("_name_or_path") or folder.resolve().name),
            kind=kind,
            sizes=sizes,
            default_size=_size(block.get("default_size", sizes[0])),
            default_steps=int(block.get("default_steps", steps)),
            default_guidance_scale=float(block.get("default_guidance_scale", guidance_scale)),
            max_steps=int(block.get("max_steps", MAX_STEPS)),
            words=tuple(str(word).casefold() for word in words),
            sampler=dict(block.get("sampler", {})),
            license=model_card.read_license(folder, str(block.get("name") or index.get("_name_or_path") or "")),
            long_prompts=_flag(block.get("long_prompts", False)),
        )
    except (AttributeError, IndexError, TypeError, ValueError):
        raise SettingsError(f'The "presswork" block of {file} cannot be read; sizes look like [[512, 512]].') from None
    sane = (
        1 <= index_fields.default_steps <= index_fields.max_steps <= MAX_STEPS
        and 0 <= index_fields.default_guidance_scale <= 50
    )
    if index_fields.default_size not in sizes or not sane or isinstance(words, str):
        raise SettingsError(f'The "presswork" block of {file} has defaults outside its own limits.')
    return index_fields


def with_sizes(folder: Path, index: Index, sizes: tuple[tuple[int, int], ...]) -> Index:
    """The index with these sizes in place of its own, if any are given. The default size stays if it is among them;
    otherwise it is the first. Raises SettingsError, in one sentence, if the U-Net cannot draw one of them."""
    if not sizes:
        return index
    unit = size_unit(folder)
    for width, height in sizes:
        if width % unit or height % unit:
            raise SettingsError(
                f"PRESSWORK_SIZES has {width}x{height}, but the sides of {index.name}'s pictures are "
                f"multiples of {unit}."
            )
    return replace(index, sizes=sizes, default_size=index.default_size if index.default_size in sizes else sizes[0])


def size_unit(folder: Path) -> int:
    """What the sides of the model's pictures are multiples of, in pixels: each downsampling halves the latents."""
    file = folder / unet(folder) / "config.json"
    config = read_object(file)
    try:
        if file.parent.name == FLEXIBLE:
            return SIZE_UNIT * 2 ** sum(map(bool, config["configurations"]["add_downsample"]))
        return SIZE_UNIT * 2 ** (len(config.get("down_block_types", range(4))) - 1)
    except (KeyError, TypeError):
        raise SettingsError(f"The model's {file} does not say how often it halves its latents.") from None


def read_sampler_config(folder: Path) -> SamplerConfig:
    """How the model is sampled. Raises SettingsError, in one sentence, if its configuration is invalid."""
    index, scheduler = read_index(folder), read_object(folder / "scheduler" / "scheduler_config.json")
    return SamplerConfig.read(
        scheduler, flexible=index.flexible, overrides=index.sampler, solver=PUBLISHED_SOLVER[index.kind]
    )


def revision(folder: Path) -> str:
    """`revision-` and 12 hex digits of a sha256 over everything that decides pixels: the weights and configs that are
    read, in the order of their names, the sampler's fields in model_index.json, and the solver unless it is the usual
    one."""
    digest = hashlib.sha256(json.dumps(dict(read_index(folder).sampler), sort_keys=True).encode())
    solver = read_sampler_config(folder).solver
    if solver != "dpmsolver++":
        digest.update(f"solver\0{solver}\n".encode())
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


def merged(folder: Path) -> dict[str, Any]:
    """What `presswork model merge` made the model of, as `{"merged": ...}`; empty if it did not make it."""
    file = folder / PROVENANCE
    return {"merged": read_object(file)} if file.is_file() else {}


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises SettingsError if the file is missing or holds no JSON object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SettingsError(f"The model directory lacks {file.parent.name}/{file.name} ({file}).") from None
    except (OSError, ValueError, RecursionError):
        raise SettingsError(f"The model's {file} cannot be read as JSON.") from None
    if not isinstance(value, dict):
        raise SettingsError(f"The model's {file} must hold a JSON object.")
    return value


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}


def _kind(folder: Path) -> str:
    """DeciDiffusion 1.0 has a mid block and 2.0 has none; model_index.json does not tell which it is."""
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
        raise SettingsError(f"The model's {file} holds DeciDiffusion's U-Net; it belongs in the folder {FLEXIBLE}.")


def _is_whole(folder: Path, extra: Collection[str]) -> bool:
    try:
        check(folder, extra)
    except SettingsError:
        return False
    return True


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _size(value: Any) -> tuple[int, int]:
    width, height = (int(side) for side in value)
    if min(width, height) < SIZE_UNIT or width % SIZE_UNIT or height % SIZE_UNIT:
        raise ValueError
    return width, height
