"""Merges LoRAs into a model: a new directory with a name and a revision of its own, which says what it was made of.

The new directory appears complete or not at all. What an interrupted merge left is removed by the next one.
"""

import contextlib
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from services.core.model.errors import SettingsError
from worker.model import directory, drafts, lora, networks, weights
from worker.model.lora import Change, Layer, Lora, LoraUnusable

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CARDS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")

Say = Callable[[str], None]


def merge(
    folder: Path, given: Sequence[str], into: Path, *, name: str = "", partial: bool = False, say: Say | None = None
) -> dict[str, Any]:
    """Writes the model in `folder` with these LoRAs (FILE or FILE:WEIGHT) to `into`; returns what was done.

    `partial`: parts of a LoRA that do not fit the model are left out, and listed. `name` is the new model's; by default
    that of its directory.

    Raises:
        FolderTaken: `into` is neither absent nor empty.
        LoraUnusable: a LoRA does not fit the model, in whole or in part, or changes nothing.
        SettingsError: the model or a file is unusable.
    """
    wanted = [lora.locate(one) for one in given]
    directory.check(folder)
    drafts.check_free(into, "the merged model")
    model = _layers(folder)
    read = [(lora.read(file, model), weight) for file, weight in wanted]
    for one, _ in read:
        if (one.skipped and not partial) or not one.changes:
            raise lora.refused(one)
    base = directory.read_index(folder).name
    done: dict[str, Any] = {
        "base": {"name": base, "revision": directory.revision(folder)} | directory.merged(folder),
        "loras": [_described(one, weight) for one, weight in read],
    }
    with drafts.draft(into) as draft:
        _copy(folder, draft)
        _apply(draft, read, say or (lambda _: None))
        _rename(draft, name or into.resolve().name)
        directory.check(draft)
        if directory.revision(draft) == done["base"]["revision"]:
            raise LoraUnusable("The merged model would be the same as before: every change is zero.")
        _write_json(draft / directory.PROVENANCE, done)
    return {
        "directory": str(into),
        "name": directory.read_index(into).name,
        "revision": directory.revision(into),
    } | done


def table(done: dict[str, Any]) -> str:
    """What was merged, as text."""
    lines = [f"{done['directory']}: {done['base']['name']} with {len(done['loras'])} LoRA(s), {done['revision']}"]
    for one in done["loras"]:
        counts = ", ".join(f"{count} in {part}" for part, count in one["applied"].items())
        lines.append(f"  {one['file']}, weight {one['weight']:g}: {sum(one['applied'].values())} layers ({counts})")
        lines += [f"    left out: {name}, which {reason}" for name, reason in one["left_out"].items()]
    return "\n".join(lines)


def _layers(folder: Path) -> dict[str, Layer]:
    """What a LoRA can change: layers of the U-Net and of the text encoder, whose names differ."""
    found: dict[str, Layer] = {}
    for component in (lora.TEXT, directory.unet(folder)):
        stored = weights.read_header(weights.find(folder / component))
        names = {name: networks.current_name(component, name) for name in stored}
        found |= lora.layers(component, stored, names)
    return found


def _described(one: Lora, weight: float) -> dict[str, Any]:
    with one.file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    applied = Counter(change.layer.component for change in one.changes)
    return {
        "file": one.file.name, "sha256": sha256, "weight": weight, "applied": dict(sorted(applied.items())),
        "left_out": dict(one.skipped),
    }  # fmt: skip


def _copy(folder: Path, draft: Path) -> None:
    """Copies what is read of a model, and its card. A stock U-Net beside a flexible one and pickles stay behind."""
    files = [folder / "model_index.json", *(folder / card for card in _CARDS if (folder / card).is_file())]
    files += [weights.find(folder / part) for part in directory.networks(folder)]
    for part in (*directory.networks(folder), "tokenizer", "scheduler"):
        files += [file for file in (folder / part).iterdir() if file.suffix in (".json", ".txt")]
    for part in filter(lambda part: (folder / part).is_dir(), directory.SAFETY_COMPONENTS):
        files += [file for file in (folder / part).iterdir() if file.suffix in (".json", ".safetensors")]
    for file in files:
        copied = draft / file.relative_to(folder)
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copied)


def _apply(draft: Path, read: Sequence[tuple[Lora, float]], say: Say) -> None:
    """Adds all changes to the weights, in place: a layer after the other, in float32, stored as the base was."""
    changes: dict[Layer, list[tuple[int, Change]]] = defaultdict(list)
    for number, (one, _) in enumerate(read):
        for change in one.changes:
            changes[change.layer].append((number, change))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(one.file, "pt")) for one, _ in read]
        for component in sorted({layer.component for layer in changes}):
            own = {layer: found for layer, found in changes.items() if layer.component == component}
            say(f"{component}: changing {len(own)} layers")
            file = weights.find(draft / component)
            header, starts = weights.read_header(file), weights.starts(file)
            with safe_open(file, "pt") as base, file.open("r+b") as stream:
                for layer, parts in own.items():
                    total = base.get_tensor(layer.stored).float()
                    for number, change in parts:
                        total = total + read[number][1] * lora.delta(opened[number], change)
                    merged = total.to(_DTYPES[header[layer.stored].dtype])
                    if not bool(merged.isfinite().all()):
                        raise LoraUnusable(
                            f"{layer.stored} would not be finite in {component}: a LoRA is damaged, or its weight is "
                            "too large."
                        )
                    stream.seek(starts[layer.stored])
                    stream.write(merged.contiguous().view(torch.uint8).numpy().tobytes())


def _rename(draft: Path, name: str) -> None:
    """Gives the new model its name, so that it does not pass for a revision of its base."""
    file = draft / "model_index.json"
    index = directory.read_object(file)
    _write_json(file, index | {"presswork": dict(index.get("presswork", {})) | {"name": name}})


def _write_json(file: Path, value: Any) -> None:
    try:
        file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{file} cannot be written: {error.strerror or error}.") from None
