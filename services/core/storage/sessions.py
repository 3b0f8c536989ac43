"""What boto3 starts from: our settings alone if they hold keys, and else botocore's own chain of providers.

botocore reads some forty variables and two files on its own: a profile, a proxy, a CA bundle or another endpoint that
was meant for another program must not reach a store whose keys we were given.
"""

import ipaddress
import os
from functools import cache
from urllib.parse import urlsplit

import boto3.session
import botocore.session
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConfigValueStore, ConstantProvider
from botocore.loaders import Loader

from services.core.settings import Settings

_NO_FILES = {"config_file": os.devnull, "credentials_file": os.devnull}


def session(settings: Settings) -> boto3.session.Session:
    """Its environment is empty if the settings hold keys; else it is botocore's own, AWS_PROFILE included."""
    if not settings.s3_access_key:
        return boto3.session.Session()
    bare = botocore.session.Session()
    bare.register_component("data_loader", _loader())
    constants = {name: entry[2] for name, entry in BOTOCORE_DEFAUT_SESSION_VARIABLES.items()} | _NO_FILES
    providers = {name: ConstantProvider(value) for name, value in constants.items()}
    bare.register_component("config_store", ConfigValueStore(providers))
    made = boto3.session.Session(botocore_session=bare)
    _loader().search_paths[:] = dict.fromkeys(_loader().search_paths)  # boto3 adds its own each time
    return made


@cache
def _loader() -> Loader:
    """botocore's descriptions of services, which are read from its files once in a process."""
    return Loader()


def proxies(settings: Settings, endpoint: str) -> dict[str, str] | None:
    """botocore's `proxies`: {} for none, None for those that the environment names."""
    return {} if settings.s3_access_key or is_loopback(endpoint) else None


def is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
