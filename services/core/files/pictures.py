"""Input pictures: which files are accepted, and how one becomes pixels. The same rules hold for all who
read one.

PNG, JPEG and WebP, one picture each. Only the header is read before the limits are checked, and one picture at a time
is decoded, so that no file takes more memory than its pixels.
"""

import io
import threading
from typing import IO, TYPE_CHECKING

from services.core.model.errors import PressworkError

if TYPE_CHECKING:
    from PIL import Image

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "WEBP": "image/webp"}
_SEVERAL_IN_ONE = "MPO"  # a photograph and what its camera adds; the first one is the photograph
_WHITE = (255, 255, 255, 255)
_DECODING = threading.Lock()
_DATA_URL = b"data:image/"
INSTEAD = "send a picture as a file (POST /v1/files, purpose vision), and give its id as image"


class InvalidPicture(PressworkError):
    """This cannot be used as an input picture."""


def instead(text: bytes) -> str:
    """What to add to a sentence that says that a text, which begins like this one, is too long: empty, unless the text
    holds a picture."""
    return f"; {INSTEAD}" if _DATA_URL in text else ""


def check(file: IO[bytes], max_bytes: int, max_pixels: int) -> str:
    """Decodes the whole file, and returns its media type. The file is rewound. Raises InvalidPicture."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > max_bytes:
        raise InvalidPicture(f"The picture has {size:,} bytes; it may have {max_bytes:,}.")
    with _DECODING:
        media_type = MEDIA_TYPES[_loaded(file, max_pixels).format or ""]
    file.seek(0)
    return media_type


def decode(data: bytes, size: tuple[int, int], max_pixels: int) -> "Image.Image":
    """The picture as RGB of `size` (width, height): turned as its EXIF says, on white where it is transparent, scaled
    by Lanczos until it covers the size, and cropped evenly on both sides. Colour profiles are not applied.

    Raises InvalidPicture, in one sentence.
    """
    from PIL import Image, ImageOps

    with _DECODING:
        image = _rgb(ImageOps.exif_transpose(_loaded(io.BytesIO(data), max_pixels)))
        return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def _loaded(file: IO[bytes], max_pixels: int) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=("PNG", "JPEG", "WEBP"))
        width, height = image.size
        if width * height > max_pixels:
            raise InvalidPicture(f"The picture has {width} x {height} pixels; it may have {max_pixels:,} in all.")
        if image.format != _SEVERAL_IN_ONE and getattr(image, "n_frames", 1) > 1:
            raise InvalidPicture("The picture is animated; a single one is needed.")
        image.load()
    except UnidentifiedImageError:
        raise InvalidPicture("The file is not a PNG, JPEG or WebP picture.") from None
    except Image.DecompressionBombError:
        raise InvalidPicture(f"The picture has too many pixels; it may have {max_pixels:,} in all.") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        # What Pillow's readers raise for damaged files.
        raise InvalidPicture("The picture is damaged: it ends too early or cannot be decoded.") from error
    return image


def _rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":  # 16 bits of grey
        image = image.convert("F").point(lambda value: value * (1 / 257) + 0.0).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, _WHITE)
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
