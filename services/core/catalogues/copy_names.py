"""The names of pictures at the place that they are copied to: a template of item, variant, sha256 and extension.

An item's id is data, never a part of a path: templates get the name that it has in links (`names.py`), which has no
slash and is no ".." for any id. A name that is no plain key all the same is refused, and so is one of the files that we
write ourselves.
"""

import re

from services.core.catalogues import names
from services.core.catalogues.templates import Inapplicable, Template
from services.core.model import strict_json
from services.core.model.file_names import EXTENSIONS

FIELDS = ("item", "variant", "sha256", "extension")
USUAL = "{{ variant }}/{{ item }}-{{ sha256 }}.{{ extension }}"
POINTER = "current.json"
MANIFESTS = "manifests"
LONGEST = 900  # characters of a name: a key has 1,024 bytes, and its folder may have 100 of them
_SEGMENT = re.compile(r"[A-Za-z0-9!_.*'()~=,@+-]+", re.ASCII)


class Names:
    """The names by one template, compiled."""

    def __init__(self, template: str) -> None:
        """Raises BadTemplate."""
        self._template = Template(template)
        self.fields = self._template.fields

    def of(self, item: str, variant: str, sha256: bytes, output_format: str) -> str:
        """Raises Inapplicable: the template gives no name that an object may have."""
        found = self._template.render({
            "item": names.of_item(item), "variant": variant, "sha256": sha256.hex(),
            "extension": EXTENSIONS[output_format],
        })  # fmt: skip
        if len(found) > LONGEST:
            raise Inapplicable("bad_name", f"The name has {len(found):,} characters; it may have {LONGEST}.")
        parts = found.split("/")
        if not all(_SEGMENT.fullmatch(part) and part not in (".", "..") for part in parts):
            rule = "parts of A-Z a-z 0-9 and !_.*'()~=,@+- between single slashes, none of them . or .."
            raise Inapplicable("bad_name", f"The name is {strict_json.describe(found)}; it must be {rule}.")
        if found == POINTER or parts[0] == MANIFESTS:
            raise Inapplicable("bad_name", f"The name is {strict_json.describe(found)}, which is one of ours.")
        return found
