"""The networks of a checkpoint: built from their configs on the meta device, then loaded strictly from safetensors.

Every tensor of a file is checked by name, shape and dtype. No code from a checkpoint is run.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from services.core.model.errors import SettingsError
from worker.model import vae_config, weights
from worker.model.directory import FLEXIBLE, STOCK
from worker.model.flexible_unet import FlexibleUNet
from worker.model.stock_unet import StockUNet

# The fields of a CLIP config that decide the network. Others could name code to fetch (attn_implementation, auto_map).
CLIP_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id",
    "image_size", "patch_size", "num_channels",
)  # fmt: skip
# Names of the attention in older VAE files -> current names.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def build(component: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of `component` (text_encoder, flexible_unet, unet or vae) on the meta device, in eval mode.

    Raises SettingsError, in one sentence, if `config` is invalid.
    """
    kinds = {FLEXIBLE: _flexible_unet, STOCK: StockUNet, "text_encoder": _text_encoder, "vae": _vae}
    with as_settings_error(f"{component}/config.json makes no network"), torch.device("meta"):
        network: nn.Module = kinds[component](config)
    return network.eval().requires_grad_(False)


def load(component: str, folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The network of `component` with the weights in `folder / component`, as `dtype` on the CPU.

    Raises SettingsError, in one sentence that names the component, if tensors are missing, unexpected, of another
    shape, or of a dtype that is not in weights.WIDTHS.
    """
    network = build(component, config)
    return fill(network, component, weights.find(folder / component), dtype)


def fill(network: nn.Module, component: str, file: Path, dtype: torch.dtype) -> nn.Module:
    """Loads the tensors of `file` into `network`, which is on the meta device. See `load`."""
    names = _matched(network, component, weights.read_header(file))
    with as_settings_error(f"{file} cannot be read"), safe_open(file, "pt") as opened:
        # Copied even if the dtype is the same: memory mapped from the file would change and vanish with it.
        tensors = {name: opened.get_tensor(stored).to(dtype, copy=True) for name, stored in names.items()}
    network.load_state_dict(tensors, strict=True, assign=True)
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:  # CLIP's position_ids, which a file may omit
            _set(network, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return network.requires_grad_(False).eval()


def current_name(component: str, stored: str) -> str:
    """The current name of the tensor that a file calls `stored`."""
    if component == "vae":
        *path, last, kind = stored.split(".")
        if "attentions" in path and last in _OLD_ATTENTION:
            return ".".join([*path, _OLD_ATTENTION[last], kind])
    if component == "text_encoder":
        return stored.removeprefix("text_model.")
    if component == "safety_checker":
        return stored.replace("vision_model.vision_model.", "vision_model.", 1)
    return stored


def _matched(network: nn.Module, component: str, stored: Mapping[str, weights.Entry]) -> dict[str, str]:
    """For each tensor of the network, its name in the file."""
    # Compares current names: transformers 5 dropped a prefix that transformers 4 and older files have.
    wanted = {current_name(component, name): (name, tensor) for name, tensor in network.state_dict().items()}
    clip = component in ("text_encoder", "safety_checker")
    names: dict[str, str] = {}
    unexpected = []
    for name in stored:
        current = current_name(component, name)
        if clip and current.endswith("embeddings.position_ids") and current not in wanted:
            continue  # 0, 1, 2, ..., which older libraries stored
        if current not in wanted or current in names:
            unexpected.append(name)
        names[current] = name
    missing = [name for name, _ in wanted.values() if current_name(component, name) not in names]
    part = f"The model's {component}"
    if missing:
        raise SettingsError(f"{part} lacks {len(missing)} of its {len(wanted)} tensors, {missing[0]} for one.")
    if unexpected:
        raise SettingsError(
            f"{part} holds {len(unexpected)} tensors that its config.json has no place for, {unexpected[0]} for one."
        )
    misshaped = [name for name, (_, tensor) in wanted.items() if stored[names[name]].shape != tuple(tensor.shape)]
    if misshaped:
        first = misshaped[0]
        found, fits = list(stored[names[first]].shape), list(wanted[first][1].shape)
        raise SettingsError(
            f"{part} holds {len(misshaped)} tensors of another shape than its config.json says: {names[first]} is "
            f"{found}, not {fits}, for one."
        )
    if odd := [name for name in wanted if stored[names[name]].dtype not in weights.WIDTHS]:
        found_dtype = stored[names[odd[0]]].dtype
        raise SettingsError(
            f"{part} holds {len(odd)} tensors of types other than {', '.join(weights.WIDTHS)}: {names[odd[0]]} is "
            f"{found_dtype}, for one."
        )
    return {wanted[name][0]: names[name] for name in wanted}


def _flexible_unet(config: Mapping[str, Any]) -> nn.Module:
    configurations = config.get("configurations")
    if not isinstance(configurations, dict):
        raise SettingsError('The model\'s flexible_unet/config.json has no "configurations".')
    return FlexibleUNet(configurations)


def _text_encoder(config: Mapping[str, Any]) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    known = {name: value for name, value in config.items() if name in CLIP_FIELDS}
    return CLIPTextModel(CLIPTextConfig(**known))


def _vae(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import AutoencoderKL

    vae_config.check(config)
    return AutoencoderKL(**{name: value for name, value in config.items() if not name.startswith("_")})


def _set(network: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(network.get_submodule(path), last, value)


@contextlib.contextmanager
def as_settings_error(what: str) -> Iterator[None]:
    """Turns whatever the libraries raise for invalid files into a SettingsError of one sentence."""
    try:
        yield
    except (SettingsError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
        raise SettingsError(f"The model's {what}: {reason}.") from error
