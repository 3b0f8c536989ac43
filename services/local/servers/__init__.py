"""The three servers of the embedded stack."""

from services.local.servers.postgres import Postgres
from services.local.servers.seaweedfs import SeaweedFS
from services.local.servers.valkey import Valkey

__all__ = ["Postgres", "SeaweedFS", "Valkey"]
