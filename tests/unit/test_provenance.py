"""What a stored file says of itself, read back as other people's tools read it."""

import dataclasses
import json
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as Pillow

from services.core.model.specs import SEED_LIMIT, Image, Spec
from worker import encoding, provenance
from worker.provenance import AI_GENERATED, NAMESPACES

FORMATS = ("png", "jpeg", "webp")
MODEL, CLASS = "deci", "revision-1/torch/fp16/NVIDIA H200/16"
PIXELS = np.random.default_rng(5).integers(0, 256, (48, 64, 3), dtype=np.uint8)
SPEC = Spec("revision-1", "a red mug", "blurred", SEED_LIMIT - 1, 64, 48, 10, 7.5)
ODD = [
    "a 🫖 and an émaillé 茶碗",
    "a <mug> & \"two\" 'saucers' ]]> &amp;",
    "first line\n\tsecond line\n",
    "&" * 2_000,
    "🫖" * 2_000,
    "ÿ" * 2_000,
]


def image(output_format: str = "png", *, embed_prompt: bool = True, **spec: Any) -> Image:
    return Image(1, 0, 1, dataclasses.replace(SPEC, **spec), output_format, embed_prompt=embed_prompt)


def file(shown: Image, quality: int | None = None, *, reproducibility_class: str = CLASS) -> bytes:
    told = provenance.describe(shown, MODEL, reproducibility_class)
    return encoding.encode(PIXELS, shown.output_format, quality, told)


def opened(data: bytes) -> Pillow.Image:
    found = Pillow.open(BytesIO(data))
    found.load()
    return found


def properties(data: bytes) -> dict[str, str]:
    """The XMP packet's, by prefixed name."""
    packet = opened(data).info["xmp"]
    (description,) = ET.fromstring(packet).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    prefixes = {uri: prefix for prefix, uri in NAMESPACES.items()}
    split = [(entry.tag[1:].split("}"), entry.text or "") for entry in description]
    return {f"{prefixes[uri]}:{name}": text for (uri, name), text in split}


def parameters(data: bytes) -> str:
    """The lines that tools for generated pictures look for, each in its format's place."""
    found = opened(data)
    if found.format == "PNG":
        return str(found.info["parameters"])
    comment = found.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.startswith(b"UNICODE\x00")
    return comment[8:].decode("utf-16-be")


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_tells_its_spec_its_class_and_that_a_model_drew_it(output_format):
    data = file(image(output_format, embed_prompt=False))
    assert properties(data) == {
        "xmp:CreatorTool": "Presswork",
        "Iptc4xmpExt:DigitalSourceType": AI_GENERATED,
        "Iptc4xmpExt:AISystemUsed": MODEL,
        "Iptc4xmpExt:AISystemVersionUsed": "revision-1",
        "presswork:Model": MODEL,
        "presswork:ModelRevision": "revision-1",
        "presswork:Seed": "9223372036854775807",
        "presswork:Width": "64",
        "presswork:Height": "48",
        "presswork:Steps": "10",
        "presswork:GuidanceScale": "7.5",
        "presswork:ReproducibilityClass": CLASS,
    }
    assert parameters(data) == (
        "Steps: 10, CFG scale: 7.5, Seed: 9223372036854775807, Size: 64x48, Model: deci, Model revision: revision-1"
    )


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_prompt_that_nobody_asked_to_embed_stands_nowhere_in_the_file(output_format):
    shown = image(output_format, embed_prompt=False, prompt="Rumpelstiltskin", negative_prompt="Rapunzel")
    data = file(shown)
    for word in ("Rumpelstiltskin", "Rapunzel"):
        assert not any(word.encode(name) in data for name in ("utf-8", "utf-16-le", "utf-16-be"))
    assert file(shown) == file(dataclasses.replace(shown, spec=SPEC))


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("prompt", ODD, ids=lambda prompt: ascii(prompt[:12]))
def test_any_prompt_is_told_to_the_letter_when_the_job_asks_for_it(output_format, prompt):
    data = file(image(output_format, prompt=prompt, negative_prompt=prompt))
    told = properties(data)
    assert told["presswork:Prompt"] == told["presswork:NegativePrompt"] == prompt
    assert told["Iptc4xmpExt:AIPromptInformation"] == f"{prompt}\nNegative prompt: {prompt}"
    assert parameters(data).startswith(f"{prompt}\nNegative prompt: {prompt}\nSteps: 10, ")


def test_what_xml_cannot_hold_is_replaced_and_spoils_nothing():
    assert properties(file(image(prompt="a\uffff b\ufffe")))["presswork:Prompt"] == "a\ufffd b\ufffd"


@pytest.mark.parametrize("output_format", FORMATS)
def test_what_a_file_tells_leaves_its_pixels_alone(output_format):
    data, plain = file(image(output_format)), BytesIO()
    Pillow.fromarray(PIXELS).save(plain, output_format.upper(), **encoding._OPTIONS[output_format])
    told = np.asarray(opened(data).convert("RGB"))
    assert (told == np.asarray(opened(plain.getvalue()).convert("RGB"))).all()
    if output_format == "png":
        assert (told == PIXELS).all()
    assert len(data) - len(plain.getvalue()) < 2_200


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_same_spec_and_class_give_the_same_bytes_for_another_job_too(output_format):
    ours = file(image(output_format))
    theirs = dataclasses.replace(image(output_format), job_id=2, index=77, tenant_id=3)
    assert file(theirs) == ours
    assert file(image(output_format), reproducibility_class="another/16") != ours


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_output_compression_is_the_quality_of_a_lossy_file(output_format):
    sizes = [len(file(image(output_format), quality)) for quality in (0, 10, 50, 100)]
    assert sizes == sorted(set(sizes))
    usual = encoding._OPTIONS[output_format]["quality"]
    assert file(image(output_format)) == file(image(output_format), usual)


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="no exiftool here")
def test_exiftool_reads_all_of_it(tmp_path: Path):
    prompt = 'a 🫖 & a "<mug>"'
    for output_format in FORMATS:
        target = tmp_path / f"a.{output_format}"
        target.write_bytes(file(image(output_format, prompt=prompt)))
        ran = subprocess.run(["exiftool", "-j", "-G1", "-n", target], capture_output=True, check=True)
        (told,) = json.loads(ran.stdout)
        assert told["XMP-iptcExt:DigitalSourceType"] == AI_GENERATED
        assert told["XMP-presswork:Prompt"] == prompt
        assert told["XMP-presswork:Seed"] == str(SEED_LIMIT - 1)
        comment = told["PNG:Parameters" if output_format == "png" else "ExifIFD:UserComment"]
        assert comment.startswith(f"{prompt}\nNegative prompt: blurred\nSteps: 10")
        assert "Warning" not in " ".join(told)
