"""The metadata in a file: its spec, its reproducibility class, and that a model drew it.

It holds nothing that differs between renders, so the same spec and class give the same bytes. Prompts are included only
for jobs that ask for it. The model's name is the one its worker knows, so a revision should have one name.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from services.core.model.specs import Image

SOFTWARE = "Presswork"
# IPTC NewsCodes, digital source type: made by a model that was trained on sampled content.
AI_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
AI_EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"  # from an input
NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "presswork": "urn:presswork:image/",
}

_NOT_IN_XML = re.compile(
    "[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # characters that XML 1.0 cannot hold, and U+000D
_DECLARED = "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in NAMESPACES.items())
_HEAD = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about=""{_DECLARED}>\n'
)
_FOOT = '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'


@dataclass(frozen=True, slots=True)
class Provenance:
    """The same facts in two formats.

    `xmp`: a packet with IPTC's properties for AI-generated pictures, and the spec in Presswork's namespace.
    `parameters`: the text that tools for generated pictures read and write.
    """

    xmp: str
    parameters: str


def describe(image: Image, model: str, reproducibility_class: str) -> Provenance:
    """The metadata for that image's file, in any format."""
    prompts = (image.spec.prompt, image.spec.negative_prompt) if image.embed_prompt else ("", "")
    prompt, negative_prompt = (_xml_safe(text) for text in prompts)
    prompt_lines = prompt + (f"\nNegative prompt: {negative_prompt}" if negative_prompt else "")
    properties = dict(_properties(image, model, reproducibility_class))
    if image.embed_prompt:
        properties |= {
            "Iptc4xmpExt:AIPromptInformation": prompt_lines,
            "presswork:Prompt": prompt,
            "presswork:NegativePrompt": negative_prompt,
        }
    return Provenance(_packet(properties), "\n".join(filter(None, (prompt_lines, _parameters(image, model)))))


def _properties(image: Image, model: str, reproducibility_class: str) -> Iterator[tuple[str, object]]:
    spec = image.spec
    yield "xmp:CreatorTool", SOFTWARE
    yield "Iptc4xmpExt:DigitalSourceType", AI_EDITED if spec.input_sha256 else AI_GENERATED
    yield "Iptc4xmpExt:AISystemUsed", model
    yield "Iptc4xmpExt:AISystemVersionUsed", spec.model_revision
    yield "presswork:Model", model
    yield "presswork:ModelRevision", spec.model_revision
    yield "presswork:Seed", spec.seed
    yield "presswork:Width", spec.width
    yield "presswork:Height", spec.height
    yield "presswork:Steps", spec.steps
    yield "presswork:GuidanceScale", spec.guidance_scale
    if spec.input_sha256:
        yield "presswork:InputSha256", spec.input_sha256
        yield "presswork:FirstStep", spec.first_step
    yield "presswork:ReproducibilityClass", reproducibility_class


def _packet(properties: dict[str, object]) -> str:
    """Uses elements, since a line break in an attribute would be read as a space."""
    lines = (f"<{name}>{escape(_xml_safe(str(value)))}</{name}>\n" for name, value in properties.items())
    return f"{_HEAD}{''.join(lines)}{_FOOT}"


def _parameters(image: Image, model: str) -> str:
    spec = image.spec
    name = json.dumps(model) if set(model) & set(',:"\n') else _xml_safe(model)
    return (
        f"Steps: {spec.steps}, CFG scale: {spec.guidance_scale}, Seed: {spec.seed}, "
        f"Size: {spec.width}x{spec.height}, Model: {name}, Model revision: {spec.model_revision}"
    )


def _xml_safe(text: str) -> str:
    return _NOT_IN_XML.sub("\ufffd", text)
