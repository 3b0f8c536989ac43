"""Encodes pixels as files. The same pixels and provenance give the same bytes, whenever they are rendered."""

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from services.core.model.specs import OutputFormat
from worker.provenance import SOFTWARE, Provenance

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

# PNG at zlib's level 1 takes a quarter of the default level's time for a fifth more bytes.
_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},
    "jpeg": {"quality": 90},
    "webp": {"quality": 80, "method": 0},
}

_SOFTWARE, _EXIF_IFD, _EXIF_VERSION, _USER_COMMENT = 0x0131, 0x8769, 0x9000, 0x9286  # tags
_ASCII, _LONG, _UNDEFINED = 2, 4, 7  # types


def encode(
    pixels: NDArray[np.uint8], output_format: OutputFormat, quality: int | None, provenance: Provenance
) -> bytes:
    """The file's bytes, with `provenance` as metadata; metadata changes no pixel.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        output_format: png, jpeg or webp.
        quality: 0..100, for lossy formats; None is the format's default.
        provenance: what the file's metadata says of its origin.
    """
    options = _OPTIONS[output_format] | _CARRIERS[output_format](provenance)
    if quality is not None:
        options["quality"] = quality
    file = BytesIO()
    Image.fromarray(pixels).save(file, format=output_format.upper(), **options)
    return file.getvalue()


def _as_chunks(provenance: Provenance) -> dict[str, Any]:
    """PNG: text chunks before the pixels."""
    chunks = PngInfo()
    chunks.add_text("Software", SOFTWARE)
    chunks.add_text("parameters", provenance.parameters)
    chunks.add_itxt("XML:com.adobe.xmp", provenance.xmp)
    return {"pnginfo": chunks}


def _as_exif_and_xmp(provenance: Provenance) -> dict[str, Any]:
    """JPEG and WebP: an EXIF and an XMP segment (chunk)."""
    return {"exif": _exif(provenance.parameters), "xmp": provenance.xmp.encode()}


def _exif(comment: str) -> bytes:
    """A big-endian TIFF, written by hand because Pillow is slow at it and gives UserComment the wrong type.

    Offset 8: IFD0 with Software (its text at 38) and a pointer to the Exif IFD. Offset 48: the Exif IFD with the
    version and UserComment (its text at 78, in big-endian UTF-16).
    """
    text = b"UNICODE\x00" + comment.encode("utf-16-be")
    software = SOFTWARE.encode() + b"\x00"
    return b"Exif\x00\x00" + struct.pack(
        ">2sHL HHHLLHHLLL 10s HHHL4sHHLLL",
        *(b"MM", 42, 8),
        *(2, _SOFTWARE, _ASCII, len(software), 38, _EXIF_IFD, _LONG, 1, 48, 0),
        software,
        *(2, _EXIF_VERSION, _UNDEFINED, 4, b"0232", _USER_COMMENT, _UNDEFINED, len(text), 78, 0),
    ) + text  # fmt: skip


_CARRIERS: dict[str, Callable[[Provenance], dict[str, Any]]] = {
    "png": _as_chunks,
    "jpeg": _as_exif_and_xmp,
    "webp": _as_exif_and_xmp,
}
