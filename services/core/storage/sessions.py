"""What boto3 starts from: our settings alone if they hold keys, and else botocore's own chain of providers.

botocore reads some forty variables and two files on its own: a profile, a proxy, a CA bundle or another endpoint that
was meant for another program must not reach a store whose keys we were given.
"""

import ipaddress
import os
import threading
from functools import cache
from urllib.parse import urlsplit

import boto3.session
import botocore.session
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConfigValueStore, ConstantProvider

from services.core.settings import Settings

ONE_AT_A_TIME = threading.Lock()  # held by who makes a client of a session, which threads may not share
_NO_FILES = {"config_file": os.devnull, "credentials_file": os.devnull}


def session(settings: Settings) -> boto3.session.Session:
    """Its environment is empty if the settings hold keys; else it is botocore's own, AWS_PROFILE included."""
    if not settings.s3_access_key:
        return boto3.session.Session()
    return _bare()


@cache
def _bare() -> boto3.session.Session:
    """One for a process: it reads botocore's descriptions of services, which takes long, and holds nobody's keys."""
    bare = botocore.session.Session()
    constants = {name: entry[2] for name, entry in BOTOCORE_DEFAUT_SESSION_VARIABLES.items()} | _NO_FILES
    providers = {name: ConstantProvider(value) for name, value in constants.items()}
    bare.register_component("config_store", ConfigValueStore(providers))
    return boto3.session.Session(botocore_session=bare)


def proxies(settings: Settings, endpoint: str) -> dict[str, str] | None:
    """botocore's `proxies`: {} for none, None for those that the environment names."""
    return {} if settings.s3_access_key or is_loopback(endpoint) else None


def is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
