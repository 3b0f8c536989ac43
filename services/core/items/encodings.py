"""Which encoding a file of text is in, and its lines.

A mark at the beginning decides, then zeros that show UTF-16, then whether all of it is UTF-8. What is none of these is
taken for Windows-1252, which Excel writes on Windows, if it reads like that; otherwise the user must say.
"""

import codecs
import io
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import IO, TypeVar

from services.core.items.errors import Unreadable, WrongOption

NAMES = {
    "utf-8": "UTF-8", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16",
    "utf-32": "UTF-32", "cp1252": "Windows-1252",
}  # fmt: skip
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_FOREIGN = (
    (b"PK\x03\x04", "an Excel workbook or another archive; --format xlsx reads a workbook"),
    (b"\xd0\xcf\x11\xe0", "a workbook of Excel 97 or one with a password; save it as .xlsx without a password"),
    (b"PAR1", "Parquet; --format parquet reads it"),
    (b"\x1f\x8b", "compressed with gzip; gunzip it first"),
)
_BLOCK = 1 << 20
LONGEST_LINE = 4 << 20  # bytes or characters
_ASCII = bytes(range(128))
_ESCAPED = re.compile("[\udc80-\udcff]")
_HEAD = 4096
_MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
# What Western text does not do: a symbol between two letters, three letters with accents in a row, a capital with an
# accent after a small letter.
_UNLIKELY = re.compile(
    r"(?<=[^\W\d_])[\xa1-\xa9\xab\xac\xae-\xb3\xb6\xb8\xb9\xbb-\xbf\u20ac\u2020-\u2026\u2030](?=[^\W\d_])"
    r"|[\xc0-\xff\u0160\u0161\u0152\u0153\u017d\u017e\u0178]{3}"
    r"|(?<=[a-z])[\xc0-\xde\u0160\u0152\u017d\u0178]"
)
_Line = TypeVar("_Line", str, bytes)
HINT = "--encoding says what it is, such as cp1251, mac_roman, shift_jis or gb18030"


def named(given: str) -> str:
    """The encoding that --encoding names. Raises WrongOption."""
    try:
        found = codecs.lookup(given)
        found.incrementaldecoder()  # it is None for what is no text, such as "rot13"
        "".encode(found.name)
    except (LookupError, TypeError):
        raise WrongOption(
            f"--encoding names {given!r}; it must be an encoding such as utf-8, utf-16, cp1252 or gb18030."
        ) from None
    return {"utf-8": "utf-8-sig"}.get(found.name, found.name)  # a mark is no text


def shown(encoding: str) -> str:
    return NAMES.get(encoding, encoding)


def head(file: IO[bytes]) -> bytes:
    """The first bytes of the file, which remain to be read."""
    if file.seekable():
        start = file.tell()
        found = file.read(_HEAD)
        file.seek(start)
        return found
    peeked: bytes = file.peek(_HEAD)[:_HEAD] if hasattr(file, "peek") else b""
    return peeked


def marked(beginning: bytes) -> str | None:
    """The encoding that the file's first bytes show: by a mark, or by the zeros of UTF-16."""
    for mark, encoding in _MARKS:
        if beginning.startswith(mark):
            return encoding
    even, odd = beginning[0:64:2].count(0), beginning[1:64:2].count(0)
    if max(even, odd) * 4 > len(beginning[:64]) > 1:
        return "utf-16-be" if even > odd else "utf-16-le"
    return None


def check_is_text(name: str, beginning: bytes) -> None:
    """Raises Unreadable for the formats that people take for text."""
    for mark, what in _FOREIGN:
        if beginning.startswith(mark):
            raise Unreadable(f"{name} is {what}.")


def detect(name: str, file: IO[bytes]) -> str:
    """The encoding of a file of text. A file is read to its end; a pipe shows only what has arrived.

    Raises Unreadable if it is neither Unicode nor like Windows-1252."""
    beginning = head(file)
    check_is_text(name, beginning)
    if found := marked(beginning):
        return found
    if not file.seekable():
        return _of(name, iter((beginning,)), is_whole=False)
    start = file.tell()
    try:
        return _of(name, iter(lambda: file.read(_BLOCK), b""), is_whole=True)
    finally:
        file.seek(start)


def bounded(name: str, readline: Callable[[int], _Line], end: _Line) -> Iterator[_Line]:
    """The lines. Raises Unreadable at the first one that is too long, without reading it to its end."""
    number = 0
    while line := readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith(end):
            raise Unreadable(f"{name}, line {number:,}: it is longer than {LONGEST_LINE >> 20} MiB.")
        yield line


def lines(name: str, file: IO[bytes], encoding: str) -> Generator[str]:
    """The lines with their ends, which may be LF, CRLF or CR. Bytes that are not UTF-8 become surrogates, so that their
    row can be named; in any other encoding they raise UnicodeDecodeError."""
    how = "surrogateescape" if encoding in ("utf-8", "utf-8-sig") else "strict"
    text = io.TextIOWrapper(file, encoding=encoding, errors=how, newline="")
    try:
        coming = bounded(name, text.readline, "\n")
        for first in coming:
            yield first.removeprefix("\ufeff")
            break
        yield from coming
    finally:
        with suppress(ValueError):  # the file is closed already: its reader gave up before the end
            text.detach()


def bad_byte(text: str) -> str | None:
    """The first byte of a line that is not UTF-8, such as 0xe9."""
    found = _ESCAPED.search(text)
    return f"0x{ord(found[0]) - 0xDC00:02x}" if found else None


def _of(name: str, blocks: Iterator[bytes], *, is_whole: bool) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8, multibyte, others, unlikely = True, 0, 0, 0
    for block, is_last in _with_last(blocks):
        high = len(block.translate(None, _ASCII))
        if is_utf8:
            try:
                decoder.decode(block, final=is_last and is_whole)
            except UnicodeDecodeError:
                is_utf8 = False
        if is_utf8:
            multibyte += high // 2
        elif high:
            found = _MULTIBYTE.findall(block)
            multibyte += len(found)
            others += high - sum(map(len, found))
            unlikely += _unlikely(block)
    if is_utf8 or multibyte > others:  # the rows with bytes that are not UTF-8 will be named
        return "utf-8"
    if unlikely * 10 > others:
        raise Unreadable(f"{name} is neither UTF-8 nor like Windows-1252; {HINT}.")
    return "cp1252"


def _with_last(blocks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each block, and whether it is the last one."""
    before = next(blocks, b"")
    for block in blocks:
        yield before, False
        before = block
    yield before, True


def _unlikely(block: bytes) -> int:
    """How often the block, as Windows-1252, does what Western text does not do. A byte without a meaning counts all."""
    try:
        return len(_UNLIKELY.findall(block.decode("cp1252")))
    except UnicodeDecodeError:
        return len(block)
