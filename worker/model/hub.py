"""Models on the Hugging Face hub, by names like Deci/DeciDiffusion-v2-0: fetching them, and the local cache.

Only configs, tokenizers and safetensors are fetched; with HF_HUB_OFFLINE set, nothing is.
"""

import re
from pathlib import Path

from services.core.model.errors import SettingsError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def cached(name: str, parts: tuple[str, ...]) -> Path | None:
    """The model's folder in the local cache, if any. After an interrupted download it may be incomplete."""
    try:
        return _snapshot(name, parts, offline=True)
    except Exception:
        return None


def fetched(name: str, parts: tuple[str, ...]) -> Path:
    """The folder in the local cache that the model's `parts` were fetched to. Raises SettingsError in one sentence."""
    try:
        return _snapshot(name, parts, offline=False)
    except Exception as error:
        raise SettingsError(
            f"The model {name!r} is neither a directory nor complete in the local cache, and it cannot be fetched from "
            f"the hub: {_reason(error)}."
        ) from error


def _reason(error: Exception) -> str:
    known = {
        "LocalEntryNotFoundError": "there is no network, or HF_HUB_OFFLINE is set",
        "RepositoryNotFoundError": "it has no such model, or requires a login for it",
        "GatedRepoError": "its publisher requires a login and consent",
    }
    message = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
    return known.get(type(error).__name__, message)


def _snapshot(name: str, parts: tuple[str, ...], *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [f"{part}/*.{suffix}" for part in parts for suffix in ("json", "txt", "safetensors")]
    found = snapshot_download(
        name,
        allow_patterns=["model_index.json", "README.md", *wanted],
        ignore_patterns=["*.non_ema.*"],
        local_files_only=offline,
    )
    return Path(found)
