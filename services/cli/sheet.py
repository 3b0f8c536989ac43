"""One picture of many pictures."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE, GAP, CAPTION, MARGIN, TITLE = 176, 12, 20, 28, 30
COLUMNS = 8
PAPER, INK = (250, 249, 246), (70, 68, 64)


def contact_sheet(pictures: Sequence[tuple[Path, str]], title: str) -> Image.Image:
    """Tiles of equal size in rows of eight, each with its name below; `title` says what made them. Pictures smaller
    than a tile make the tiles smaller."""
    tiles = [_tile(path) for path, _ in pictures]
    side = max((max(tile.size) for tile in tiles), default=TILE)
    rows = max(1, -(-len(pictures) // COLUMNS))
    width = 2 * MARGIN + COLUMNS * side + (COLUMNS - 1) * GAP
    height = 2 * MARGIN + TITLE + rows * (side + CAPTION) + (rows - 1) * GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    draw.text((MARGIN, MARGIN - 6), title, fill=INK, font=ImageFont.load_default(size=15))
    for number, (tile, (_, name)) in enumerate(zip(tiles, pictures, strict=True)):
        left = MARGIN + number % COLUMNS * (side + GAP)
        top = MARGIN + TITLE + number // COLUMNS * (side + CAPTION + GAP)
        sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
        draw.text((left + side / 2, top + side + 4), name, fill=INK, font=font, anchor="ma")
    return sheet


def _tile(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        tile = picture.convert("RGB")
    tile.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return tile
