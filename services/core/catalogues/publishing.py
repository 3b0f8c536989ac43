"""Publishes a version because a person says so: a newer one that a rule held back, or an older one."""

from sqlalchemy import Connection

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues, destinations, versions
from services.core.catalogues.catalogues import Catalogue
from services.core.model.errors import Conflict, NotFound


def publish(connection: Connection, tenant_id: int, name: str, version: int) -> Catalogue:
    """Readers see that version from the commit on. A second call is not an error: it tries again what could
    not be copied to the destination. The catalogue's row stays locked, so nobody drops the version meanwhile.

    Raises:
        NotFound: no such catalogue, or the version is not kept.
        Conflict: the run that makes the version has not ended (`version_not_whole`).
    """
    catalogue = catalogues.find(connection, tenant_id, name, lock=True)
    try:
        versions.find(connection, catalogue.id, version)
    except NotFound:
        if any(run.version == version for run in runs.live(connection, catalogue.id)):
            message = f"Version {version} is not whole yet: its run has not ended."
            raise Conflict(message, "version_not_whole") from None
        raise
    catalogues.publish(connection, catalogue, version)
    destinations.again(connection, catalogue.id)
    return catalogues.find(connection, tenant_id, name)
