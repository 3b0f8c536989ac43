"""The heads of members of tar archives, as tarfile writes them in USTAR format: times and owners are 0."""

import tarfile

_NAME = 100  # bytes of a name that need no prefix
_SIZE = 8**11 - 1
_EMPTY = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_BETWEEN, _AFTER_SIZE, _AFTER_SUM = _EMPTY[_NAME:124], _EMPTY[135:148], _EMPTY[155:]
_SUM = sum(_EMPTY[:124]) + sum(_EMPTY[135:148]) + sum(_EMPTY[156:]) + 8 * ord(" ")
BLOCK = tarfile.BLOCKSIZE


def head(name: str, size: int) -> bytes:
    """What tarfile writes before a member, in a tenth of its time if the name is short."""
    encoded = name.encode()
    if len(encoded) > _NAME or size > _SIZE or not name.isascii():
        slow = tarfile.TarInfo(name)
        slow.size = size
        return slow.tobuf(tarfile.USTAR_FORMAT)
    digits = b"%011o" % size
    total = _SUM + sum(encoded) + sum(digits)
    return b"".join(
        (encoded, bytes(_NAME - len(encoded)), _BETWEEN, digits, _AFTER_SIZE, b"%06o\0" % total, _AFTER_SUM)
    )


def padding(size: int) -> bytes:
    """What follows the bytes of a member."""
    return bytes(-size % BLOCK)


def end(size: int) -> bytes:
    """What follows the members, which have `size` bytes together."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % tarfile.RECORDSIZE)
