"""Input pictures: what is accepted becomes the right pixels; whatever else is sent is refused in one sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from services.core.files import pictures
from services.core.files.pictures import InvalidPicture

SIZE = (32, 16)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(mode: str = "RGB", left: object = (200, 10, 20), right: object = (10, 20, 200)) -> Image.Image:
    image = Image.new(mode, SIZE, right)
    image.paste(left, (0, 0, SIZE[0] // 2, SIZE[1]))
    return image


def pixels(data: bytes, size: tuple[int, int] = SIZE) -> np.ndarray:
    assert pictures.check(io.BytesIO(data), 1 << 20, 10_000).startswith("image/")
    found = pictures.decode(data, size, 10_000)
    assert (found.mode, found.size) == ("RGB", size)
    return np.asarray(found)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_of_the_right_size_keeps_its_pixels(kind: str):
    image = halves()
    assert np.array_equal(pixels(saved(image, kind, **({"lossless": True} if kind == "WEBP" else {}))), image)


def test_a_picture_of_another_size_covers_it_and_is_cropped_evenly():
    wide = Image.new("RGB", (150, 50), (0, 0, 0))
    wide.paste((255, 255, 255), (40, 0, 110, 50))
    assert pixels(saved(wide), (20, 20)).min() == 255  # scaled to 60 x 20, of which 20 are cut on both sides
    assert pixels(saved(wide), (60, 20))[:, [0, 59]].max() == 0


def test_a_photograph_is_turned_as_its_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    found = pixels(saved(halves(), "JPEG", quality=100, subsampling=0, exif=exif))
    assert found[0, 0, 2] > 150 and found[0, 0, 0] < 60  # blue, which was on the right
    exif[0x0112] = 6
    assert pictures.decode(saved(halves(), "JPEG", exif=exif), (16, 32), 10_000).size == (16, 32)


def test_what_is_transparent_becomes_white():
    clear = halves("RGBA", (200, 10, 20, 0), (10, 20, 200, 255))
    palette = halves().convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    for data in (
        saved(clear),
        saved(clear, "WEBP", lossless=True),
        saved(palette, transparency=palette.getpixel((0, 0))),
    ):
        found = pixels(data)
        assert found[0, 0].tolist() == [255, 255, 255]
        assert abs(found[0, -1].astype(int) - [10, 20, 200]).max() < 60  # a palette of the web's colours rounds


def test_grey_of_sixteen_bits_and_printers_colours_become_what_they_show():
    rows = b"".join(b"\0" + struct.pack(">HH", 0x8000, 0xFFFF) for _ in range(2))
    assert pixels(png(2, 2, 16, 0, zlib.compress(rows)), (2, 2))[0].tolist() in (
        [[127] * 3, [255] * 3],
        [[128] * 3, [255] * 3],
    )
    found = pixels(saved(Image.new("CMYK", SIZE, (0, 255, 255, 0)), "JPEG", quality=100))
    assert found[0, 0, 0] > 200 and found[0, 0, 1:].max() < 60  # red
    assert pixels(saved(Image.new("1", SIZE, 1)))[0, 0].tolist() == [255] * 3
    assert pixels(saved(Image.new("L", SIZE, 7)))[0, 0].tolist() == [7] * 3


def animation(kind: str) -> bytes:
    return saved(halves(), kind, save_all=True, append_images=[halves(left=(0, 0, 0))], duration=50)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a PNG, JPEG or WebP"),
        (b"\x89PNG\r\n\x1a\n", "damaged|not a PNG"),
        (saved(halves(), "GIF"), "not a PNG, JPEG or WebP"),
        (saved(halves(), "TIFF"), "not a PNG, JPEG or WebP"),
        (saved(halves())[:-30], "damaged"),
        (saved(halves(), "JPEG")[:-200], "damaged"),
        (saved(halves(), "WEBP")[:-20], "damaged|not a PNG"),
        (animation("PNG"), "animated"),
        (animation("WEBP"), "animated"),
        (png(30_000, 30_000, 8, 2, b"not decoded"), "pixels; it may have 10,000|too many pixels"),
        (png(200, 100, 8, 2, zlib.compress(bytes(60_100))), "200 x 100 pixels; it may have 10,000"),
        (png(50, 50, 8, 2, b"nothing of the kind"), "damaged"),
        (saved(Image.new("RGB", (90, 90)), "PNG", compress_level=0) * 50, "bytes; it may have"),
    ],
    ids=["empty", "a head", "gif", "tiff", "cut png", "cut jpeg", "cut webp", "apng", "moving webp", "bomb", "large",
         "no data", "many bytes"],
)  # fmt: skip
def test_whatever_else_is_sent_is_refused_in_one_sentence(data: bytes, said: str):
    with pytest.raises(InvalidPicture, match=said) as refused:
        pictures.check(io.BytesIO(data), 1 << 20, 10_000)
    assert str(refused.value).count(".") == 1
