"""Licences of models, and what the known ones forbid to do with pictures: shown with a model, and carried into exports.

A summary for orientation, in our own words: the licence's text, which `link` names, is what holds.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

# Attachment A of the Open RAIL-M licences of 2022 and 2023, which both of those below have.
OPEN_RAIL_M = (
    "breaking any law",
    "exploiting or harming minors, or trying to",
    "spreading information that is verifiably false, to harm others",
    "spreading personal information that can be used to harm somebody",
    "defaming, disparaging or harassing others",
    "fully automated decisions that impair somebody's legal rights or bind them",
    "anything that discriminates by social behaviour or by personal characteristics",
    "exploiting the weakness of a group, by age or by social, physical or mental characteristics, so as to do harm",
    "anything that discriminates by legally protected characteristics",
    "medical advice, or reading medical results",
    "law enforcement, justice, asylum or immigration, such as predicting that somebody will commit a crime",
)
_KNOWN = {
    "creativeml-openrail-m": (
        "CreativeML Open RAIL-M",
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        OPEN_RAIL_M,
    ),
    "openrail++": (
        "CreativeML Open RAIL++-M",
        "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL",
        OPEN_RAIL_M,
    ),
    "apache-2.0": ("Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0", ()),
    "mit": ("MIT License", "https://opensource.org/license/mit", ()),
}
LONGEST = 300  # characters of what a card says


@dataclass(frozen=True, slots=True)
class License:
    """`id` as cards name it; `link` is empty if it is not known. `restrictions`: what is forbidden; none are known of a
    licence that is not known. `accepted_by` and `accepted_at` are of the tenant for whom it is read, or ""."""

    id: str
    name: str
    link: str
    restrictions: tuple[str, ...]
    accepted_by: str = ""
    accepted_at: str = ""

    def as_json(self) -> dict[str, Any]:
        accepted = {"accepted_by": self.accepted_by, "accepted_at": self.accepted_at} if self.accepted_at else {}
        return {**self._shown, **accepted}

    @property
    def sha256(self) -> bytes:
        """Of all that is shown of it, which is what somebody accepts."""
        return hashlib.sha256(json.dumps(self._shown, sort_keys=True).encode()).digest()

    @property
    def _shown(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "link": self.link, "restrictions": list(self.restrictions)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        accepted = value.get("accepted_by", ""), value.get("accepted_at", "")
        return cls(value["id"], value["name"], value["link"], tuple(value["restrictions"]), *accepted)


def named(identifier: str, name: str = "", link: str = "") -> License:
    """The licence that a model card names: `license`, and of others than the usual ones `license_name` and
    `license_link`."""
    identifier = identifier.strip().lower()[:LONGEST]
    known_name, known_link, restrictions = _KNOWN.get(identifier, (name or identifier, "", ()))
    return License(identifier, known_name[:LONGEST], (link or known_link)[:LONGEST], restrictions)
