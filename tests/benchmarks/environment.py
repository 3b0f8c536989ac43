"""A fresh installation for a benchmark: the embedded servers, migrated, in a temporary folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.core.db import database as databases
from services.core.settings import Settings
from services.core.storage import s3
from services.core.tenants import api_keys
from services.local.stack import Stack


@dataclass
class BenchmarkStack:
    servers: Stack
    environ: dict[str, str]
    settings: Settings
    database: databases.Database
    folder: Path
    key: str


@contextmanager
def benchmark_stack(**extra: str) -> Iterator[BenchmarkStack]:
    with tempfile.TemporaryDirectory(prefix="presswork-bench-") as folder, Stack(Path(folder) / "home", {}) as servers:
        environ = dict(servers.values) | extra
        databases.migrate(servers.migrator_url)
        settings = Settings.read(environ)
        s3.S3Store(settings).prepare()
        database = databases.Database(settings.database_url, application="benchmark", pool_size=4, nested_loops=True)
        with database.begin_system() as connection:
            key = api_keys.issue_key(connection, settings.secret, 1, "benchmark")
        yield BenchmarkStack(servers, environ, settings, database, Path(folder), key)
        database.close()
