"""One picture of many pictures."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE, GAP, CAPTION, MARGIN, TITLE = 176, 12, 20, 28, 30
COLUMNS = 8
PAPER, INK = (250, 249, 246), (70, 68, 64)


def contact_sheet(pictures: Sequence[tuple[Path, str]], title: str) -> Image.Image:
    """Tiles of equal size in rows of eight, each with its name below; `title` says what made them."""
    rows = max(1, -(-len(pictures) // COLUMNS))
    width = 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP
    height = 2 * MARGIN + TITLE + rows * (TILE + CAPTION) + (rows - 1) * GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    draw.text((MARGIN, MARGIN - 6), title, fill=INK, font=ImageFont.load_default(size=15))
    for number, (path, name) in enumerate(pictures):
        left = MARGIN + number % COLUMNS * (TILE + GAP)
        top = MARGIN + TITLE + number // COLUMNS * (TILE + CAPTION + GAP)
        with Image.open(path) as picture:
            tile = picture.convert("RGB")
            tile.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        draw.text((left + TILE / 2, top + TILE + 4), name, fill=INK, font=font, anchor="ma")
    return sheet
