"""The heads of a shard's members, byte for byte as tarfile writes them."""

import tarfile

import pytest

from services.core.storage.tars import head


@pytest.mark.parametrize("size", [0, 1, 511, 512, 3_141_592, 8**11 - 1])
@pytest.mark.parametrize("name", ["a", "job_039yenx5ewysr-000000001.json", "x" * 100, f"{'y' * 60}/{'z' * 60}.png"])
def test_a_head_is_tarfile_s(name, size):
    wanted = tarfile.TarInfo(name)
    wanted.size = size
    assert head(name, size) == wanted.tobuf(tarfile.USTAR_FORMAT)
