"""Reads a large JSON object whose bulk is one list, element by element: memory does not grow with the list.

Each value is parsed by `strict_json`. The body is read twice: once to see that all of it is well formed, so that a body
that is not JSON is refused before anything else is said about it, and once to hand out the elements.
"""

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from services.api.body import json_object
from services.api.errors import ApiError
from services.core.files import pictures
from services.core.model import strict_json
from services.core.model.strict_json import BadJson

LIST = "images"
_CHUNK = 256 << 10
_VALUE_LIMIT = 5 << 18  # characters of one element
_REST_LIMIT = 4 << 20  # characters of all that is not an element
_LONGEST_WORD = 16  # characters: so near the end of what was read, a word or a number may go on


class StreamedList:
    """The elements of the list, read from the body anew by each iteration."""

    def __init__(self, spool: IO[bytes], length: int) -> None:
        self._spool, self._length = spool, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return (value for name, value, is_element in _walk(self._spool) if is_element)


def read(spool: IO[bytes], example: str = LIST) -> dict[str, Any]:
    """The body as an object, in which a list of `images` that is not empty is a StreamedList. Errors name `example` as
    one of its fields. Raises ApiError."""
    found: dict[str, Any] = {}
    elements = 0
    try:
        for name, value, is_element in _walk(spool):
            elements += is_element
            if not is_element:
                found[name] = value
    except BadJson as error:
        raise json_object.refusal(error, is_empty=_is_blank(spool)) from None
    except _NoObject as error:
        raise json_object.not_an_object(error.value, example) from None
    if elements:
        found[LIST] = StreamedList(spool, elements)
    return found


class _NoObject(Exception):
    def __init__(self, value: object) -> None:
        self.value = value
        super().__init__()


def _walk(spool: IO[bytes]) -> Iterator[tuple[str, Any, bool]]:
    """(key, value, False) for each field of the object; after a list in LIST, which comes as an empty one, also
    (LIST, element, True) for each of its elements."""
    text = _Text(spool)
    if text.peek() != "{":
        value = text.value(strict_json.MAX_DEPTH)
        text.end()
        raise _NoObject(value)
    text.skip("{")
    seen: set[str] = set()
    rest = _REST_LIMIT
    while text.peek() != "}" or seen:
        began = text.position
        name = text.key()
        if name in seen:
            raise BadJson("duplicate_key", f"The key {strict_json.describe(name)} appears twice in one object.")
        seen.add(name)
        if len(seen) > strict_json.MAX_KEYS:
            raise BadJson("too_many_keys", f"An object has more than {strict_json.MAX_KEYS:,} keys.")
        if name == LIST and text.peek() == "[":
            yield name, [], False
            yield from ((name, element, True) for element in _elements(text))
        else:
            yield name, text.value(strict_json.MAX_DEPTH - 1, rest), False
            rest -= text.position - began
            if rest < 0:
                raise _too_long(_REST_LIMIT)
        if text.peek() == "}":
            break
        text.skip(",")
    text.skip("}")
    text.end()


def _elements(text: "_Text") -> Iterator[Any]:
    text.skip("[")
    if text.peek() == "]":
        text.skip("]")
        return
    while True:
        yield text.value(strict_json.MAX_DEPTH - 2)
        if text.peek() == "]":
            text.skip("]")
            return
        text.skip(",")


class _Text:
    """The text of a body from the current position on, decoded as it is needed."""

    def __init__(self, spool: IO[bytes]) -> None:
        _rewind(spool)
        self._spool = spool
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._taken = 0  # bytes
        self._passed = 0  # characters that are no longer held
        self._line, self._column = 1, 1  # of the first one that is held
        self._text, self._at, self._is_whole = "", 0, False
        self._more()

    @property
    def position(self) -> int:
        return self._passed + self._at

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._at = strict_json.after_space(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self, character: str) -> None:
        if self.peek() != character:
            self.refuse(f"expecting '{character}' delimiter")
        self._at += 1

    def end(self) -> None:
        if self.peek():
            self.refuse("extra data")

    def key(self) -> str:
        """A key and the colon after it."""
        if self.peek() != '"':
            self.refuse("expecting property name enclosed in double quotes")
        key: str = self.value(1)
        self.skip(":")
        return key

    def value(self, max_depth: int, limit: int = _VALUE_LIMIT) -> Any:
        self.peek()
        while True:
            held = len(self._text) - self._at
            try:
                value, end = strict_json.scan(self._text, self._at, max_depth)
            except json.JSONDecodeError as error:
                at = error.pos - self._at
                if held > limit and (error.msg.startswith("Unterminated") or at > held - _LONGEST_WORD):
                    raise self._too_long(limit) from None
                if held > limit or not self._more():
                    self._refuse_at(error.msg.lower(), self._at + at)
            else:
                if end - self._at > limit:
                    raise self._too_long(limit)
                length = end - self._at
                if end + _LONGEST_WORD < len(self._text) or not self._more():  # a number near the end may go on
                    self._at += length
                    return value

    def _too_long(self, limit: int) -> ApiError:
        """For the value that begins here."""
        begin = self._text[self._at : self._at + limit].encode(errors="replace")
        return _too_long(limit, pictures.instead(begin))

    def refuse(self, message: str) -> NoReturn:
        self._refuse_at(message, self._at)

    def _refuse_at(self, message: str, at: int) -> NoReturn:
        line = self._line + self._text.count("\n", 0, at)
        column = at - self._text.rfind("\n", 0, at) if line > self._line else self._column + at
        where = f"line {line}, column {column}" if line > 1 else f"column {column}"
        raise BadJson("invalid_json", f"The text is not JSON: {message} at {where}.")

    def _more(self) -> bool:
        """Reads on and drops what was passed. False at the end."""
        data = self._spool.read(_CHUNK)
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = self._taken - pending + error.start
            raise BadJson("invalid_encoding", f"The text is not UTF-8: byte {at} is invalid.") from None
        self._taken += len(data)
        lines = self._text.count("\n", 0, self._at)
        self._line += lines
        self._column = self._at - self._text.rfind("\n", 0, self._at) if lines else self._column + self._at
        self._passed += self._at
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(data)


def _too_long(limit: int, instead: str = "") -> ApiError:
    return ApiError(413, "body_too_long", f"A value of the body is longer than {limit:,} characters{instead}.")


def _rewind(spool: IO[bytes]) -> None:
    """Goes to the first byte of the text, after a byte order mark."""
    spool.seek(0)
    if spool.read(len(strict_json.BYTE_ORDER_MARK)) != strict_json.BYTE_ORDER_MARK:
        spool.seek(0)


def _is_blank(spool: IO[bytes]) -> bool:
    _rewind(spool)
    return not spool.read(_CHUNK).strip()
