"""How botocore's clients of S3 behave here: one try for each request, and no peer that hangs holds one up."""

from typing import Any

from botocore.config import Config

from services.core.storage import deadlines


def config(seconds: float, proxies: dict[str, str] | None, *, own_endpoint: bool) -> Config:
    """`own_endpoint`: the address is the one given, whatever botocore's own variables and files say."""
    return Config(
        proxies=proxies,
        ignore_configured_endpoint_urls=own_endpoint,
        signature_version="s3v4",
        connect_timeout=min(3, seconds),
        read_timeout=seconds,
        retries={"total_max_attempts": 1},
        max_pool_connections=32,
        tcp_keepalive=True,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "auto"},  # the path at an address of its own, the host's name at AWS
    )


def careful(client: Any, seconds: float) -> Any:
    """The client, whose requests give up after `seconds` of waiting for the next MiB, and stay in their region."""
    deadlines.limit(client, seconds)
    client.meta.events.register("before-call.s3", _stay_in_region)
    return client


def _stay_in_region(params: dict[str, Any], **_: object) -> None:
    """botocore asks for a bucket's region after a redirect, each time; if that is redirected too, without end."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True
