"""Every setting there is: its variable, its default, what it means. Read once per process, frozen, passed down.

A variable NAME may instead be given as NAME_FILE, the path of a file that holds the value (for secrets).
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from services.core.model import addresses, runtimes, scores
from services.core.model.addresses import either
from services.core.model.devices import parse as parse_devices
from services.core.model.errors import SettingsError
from services.core.model.pipelines import PIPELINES
from services.core.model.scopes import ALL

DATABASE_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
Network = IPv4Network | IPv6Network
_OF_COMMANDS = frozenset(("PRESSWORK_API_KEY", "PRESSWORK_MIGRATOR_URL", "PGPASSWORD"))  # secrets, and no settings


def _text(value: str) -> str:
    return value


def _flag(value: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if value.lower() not in words:
        raise ValueError("it can be 1 or 0")
    return words[value.lower()]


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            raise ValueError(f"it must be a whole number from {low} to {high}")
        return int(value)

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise ValueError(f"it must be a number from {low:g} to {high:g}")
        return number

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"it can be {either(*filter(None, words))}")
        return value

    return parse


def _address(*schemes: str) -> Callable[[str], str]:
    """A URL, or nothing."""

    def parse(value: str) -> str:
        if value:
            addresses.check(value, *schemes)
        return value

    return parse


def check_address(variable: str, value: str, *schemes: str) -> None:
    """For an address, or none, that is not a setting of every process. Raises SettingsError."""
    try:
        _address(*schemes)(value)
    except ValueError as error:
        raise SettingsError(f"{variable} is not understood; {error}.") from None


def _base_url(value: str) -> str:
    """An address that others can be put behind: a host, and a path at most."""
    parts = urlsplit(_address("http", "https")(value))
    if value and (not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc or " " in value):
        raise ValueError("it must be an address such as https://presswork.example.org, without a query or a password")
    return value


def _prefix(value: str) -> str:
    """Of keys: nothing, or folders that end with a slash, and that are none of Presswork's own."""
    folders = value.strip("/")
    if not folders:
        return ""
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]*(/[a-zA-Z0-9][a-zA-Z0-9._-]*)*", folders) or len(folders) > 200:
        raise ValueError("it must be a folder such as shop/production, of letters, digits, dots, - and _")
    if re.fullmatch(r"files|uploads|exports|probe|[0-9a-f]{2}", folders.partition("/")[0]):
        raise ValueError("it must not begin like the keys of an installation that has no prefix; choose another word")
    return f"{folders}/"


def _hosts(value: str) -> frozenset[str]:
    hosts = {part.strip().lower() for part in value.split(",") if part.strip()}
    if not all(
        re.fullmatch(r"(\*\.)?[a-z0-9][a-z0-9._-]*(:[0-9]+)?|\[[0-9a-f:.]+\](:[0-9]+)?", host) for host in hosts
    ):
        raise ValueError("it must be names of hosts with commas between them, such as presswork.example.org,*.internal")
    return frozenset(hosts)


def _networks(value: str) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())
    except ValueError:
        raise ValueError("it must be IP addresses or networks with commas, such as 10.0.0.7,10.1.0.0/16") from None


def _buckets(value: str) -> frozenset[str]:
    names = {part.strip() for part in value.split(",") if part.strip()}
    if not all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name) for name in names):
        raise ValueError("it must be names of buckets with commas between them, such as feeds,shop-data")
    return frozenset(names)


def _issuer(value: str) -> str:
    parts = urlsplit(_base_url(value))
    if value and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise ValueError("it must begin with https://, but on this machine")
    return value


def _grants(value: str) -> Mapping[str, tuple[str, ...]]:
    """What values of a claim may do: `staff=view,submit; admins=view,submit,operate,admin`."""
    found: dict[str, tuple[str, ...]] = {}
    for part in filter(None, map(str.strip, value.split(";"))):
        name, sign, words = part.rpartition("=")
        given = tuple(word.strip() for word in words.split(","))
        if not sign or not name.strip() or not {*given} <= {scope.value for scope in ALL}:
            names = ", ".join(scope.value for scope in ALL)
            raise ValueError(
                f"it must be values of the claim, each with some of {names}: staff=view,submit; ops=operate"
            )
        found[name.strip()] = given
    return found


def _batch_sizes(value: str) -> tuple[int, ...]:
    sizes = [int(part) for part in value.split(",") if part.strip().isdigit()]
    if len(sizes) != len(value.split(",")) or not all(1 <= size <= 256 for size in sizes) or 1 not in sizes:
        raise ValueError("it must be whole numbers from 1 to 256 with 1 among them, such as 16,8,4,1")
    return tuple(sorted(set(sizes), reverse=True))


def parse_sizes(value: str) -> tuple[tuple[int, int], ...]:
    """Sizes in pixels, the default one first, or none."""
    parts = [part.strip() for part in value.split(",")] if value else []
    if not all(re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", part) for part in parts):
        raise ValueError("it must be sizes with commas between them, such as 512x512,768x512")
    pairs = [tuple(map(int, part.split("x"))) for part in parts]
    return tuple(dict.fromkeys((width, height) for width, height in pairs))


def _scorers(value: str) -> tuple[str, ...]:
    """Names of scorers; `none`: no scorer."""
    names = [part.strip() for part in value.split(",")]
    if names == ["none"]:
        return ()
    if not all(map(scores.NAME.fullmatch, names)) or len(set(names)) < len(names):
        raise ValueError(
            f"it must be names of scorers with commas between them, such as {','.join(scores.USUAL)}, or none"
        )
    return tuple(names)


def _policies(value: str) -> tuple[str, ...]:
    """Names of entry points; `none`: no policy."""
    names = [part.strip() for part in value.split(",")]
    if names == ["none"]:
        return ()
    if not all(map(scores.NAME.fullmatch, names)) or len(set(names)) < len(names):
        raise ValueError("it must be names of installed policies with commas between them, or none")
    return tuple(names)


def _checker(value: str) -> str:
    """What becomes of a picture that the checker flags: "" without a checker, "flag", or "refuse"."""
    if value.lower() == "refuse":
        return "refuse"
    try:
        return "flag" if _flag(value) else ""
    except ValueError:
        raise ValueError("it can be 0, 1 (images are flagged) or refuse (they are not stored)") from None


def _setting(variable: str, default: str | None, parse: Callable[[str], Any] = _text, *, secret: bool = False) -> Any:
    metadata = {"variable": variable, "default": default, "parse": parse, "secret": secret}
    return field(metadata=metadata, repr=not secret)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    # The three servers.
    database_url: str = _setting("DATABASE_URL", None, _address(*DATABASE_SCHEMES), secret=True)
    redis_url: str = _setting("REDIS_URL", None, _address("redis", "rediss"), secret=True)
    s3_endpoint_url: str = _setting("AWS_ENDPOINT_URL", "", _address("http", "https"))  # empty: AWS itself
    s3_public_url: str = _setting("PRESSWORK_PUBLIC_S3_URL", "", _address("http", "https"))  # as clients see it
    s3_access_key: str = _setting("AWS_ACCESS_KEY_ID", "", secret=True)
    s3_secret_key: str = _setting("AWS_SECRET_ACCESS_KEY", "", secret=True)
    s3_session_token: str = _setting("AWS_SESSION_TOKEN", "", secret=True)  # of temporary keys
    s3_region: str = _setting("AWS_REGION", "us-east-1")
    store_seconds: float = _setting("PRESSWORK_STORE_SECONDS", "30", _number(0.1, 3600))  # waiting for each MiB
    storing_seconds: float = _setting("PRESSWORK_STORING_SECONDS", "300", _number(0.1, 86400))  # then it is given up
    s3_ca_bundle: str = _setting(
        "AWS_CA_BUNDLE", ""
    )  # a file of certificates for an https endpoint; empty: the usual ones
    bucket: str = _setting("PRESSWORK_BUCKET", "presswork")
    prefix: str = _setting("PRESSWORK_PREFIX", "", _prefix)  # of this installation's objects in the bucket
    # The web server.
    secret: str = _setting("PRESSWORK_SECRET", "", secret=True)  # signs API keys and links
    accepted_secret: str = _setting("PRESSWORK_ACCEPTED_SECRET", "", secret=True)  # holds too; signs nothing new
    host: str = _setting("PRESSWORK_HOST", "127.0.0.1")
    port: int = _setting("PRESSWORK_PORT", "8420", _whole(1, 65535))
    model: str = _setting("PRESSWORK_MODEL", "simulated")  # what a job that names no model gets
    max_connections: int = _setting(
        "PRESSWORK_MAX_CONNECTIONS", "2000", _whole(4, 10**6)
    )  # fewer if few files may be open
    # How long a connection may take to send a head, to send more of a body, and to read more of an answer.
    head_seconds: float = _setting("PRESSWORK_HEAD_SECONDS", "15", _number(0.1, 3600))
    body_seconds: float = _setting("PRESSWORK_BODY_SECONDS", "60", _number(0.1, 3600))
    write_seconds: float = _setting("PRESSWORK_WRITE_SECONDS", "30", _number(0.1, 3600))
    max_body_bytes: int = _setting("PRESSWORK_MAX_BODY_BYTES", str(2**30), _whole(1024, 2**40))
    max_images_per_job: int = _setting("PRESSWORK_MAX_IMAGES_PER_JOB", "2000000", _whole(1, 2**31 - 1))
    max_images_per_draft: int = _setting("PRESSWORK_MAX_IMAGES_PER_DRAFT", "50000000", _whole(1, 2**31 - 1))
    max_file_bytes: int = _setting("PRESSWORK_MAX_FILE_BYTES", str(200 << 20), _whole(1024, 2**40))
    max_lines_per_file: int = _setting("PRESSWORK_MAX_LINES_PER_FILE", "50000", _whole(1, 10**7))
    # Input pictures of requests; web servers, schedulers and workers decode them.
    max_input_bytes: int = _setting("PRESSWORK_MAX_INPUT_BYTES", str(20 << 20), _whole(1024, 2**32))
    max_input_pixels: int = _setting("PRESSWORK_MAX_INPUT_PIXELS", "25000000", _whole(4096, 2**28))
    wait_seconds: int = _setting("PRESSWORK_WAIT_SECONDS", "300", _whole(1, 3600))  # for synchronous image requests
    public_url: str = _setting("PRESSWORK_PUBLIC_URL", "", _base_url)  # links begin with it; empty: api/addresses.py
    allowed_hosts: frozenset[str] = _setting("PRESSWORK_ALLOWED_HOSTS", "", _hosts)  # empty: every Host is answered
    trusted_proxies: tuple[Network, ...] = _setting("PRESSWORK_TRUSTED_PROXIES", "", _networks)  # their X-Forwarded-*
    # Signing in to the dashboard by OpenID Connect; without an issuer, by API keys alone.
    oidc_issuer: str = _setting("PRESSWORK_OIDC_ISSUER", "", _issuer)
    oidc_client_id: str = _setting("PRESSWORK_OIDC_CLIENT_ID", "presswork")
    oidc_client_secret: str = _setting("PRESSWORK_OIDC_CLIENT_SECRET", "", secret=True)  # empty: a public client
    oidc_request: str = _setting("PRESSWORK_OIDC_REQUEST", "openid profile email")  # the scopes that are asked for
    oidc_claim: str = _setting("PRESSWORK_OIDC_CLAIM", "groups")  # says what somebody may do
    oidc_scopes: Mapping[str, tuple[str, ...]] = _setting("PRESSWORK_OIDC_SCOPES", "", _grants)  # by its values
    oidc_tenant_claim: str = _setting("PRESSWORK_OIDC_TENANT_CLAIM", "")  # names the tenant; empty: the first one
    url_seconds: int = _setting("PRESSWORK_URL_SECONDS", "900", _whole(10, 604800))
    # The heartbeat interval, the safety margin and the watchdog are derived from the lease.
    lease_seconds: float = _setting("PRESSWORK_LEASE_SECONDS", "30", _number(1, 3600))
    # The scheduler.
    schedule_seconds: float = _setting(
        "PRESSWORK_SCHEDULE_SECONDS", "300", _number(60, 86400)
    )  # between two runs, least
    audit_days: int = _setting(
        "PRESSWORK_AUDIT_DAYS", "0", _whole(0, 365)
    )  # between two audits of the store; 0: when asked
    event_days: int = _setting("PRESSWORK_EVENT_DAYS", "90", _whole(7, 36500))  # for how long events are kept
    trail_days: int = _setting("PRESSWORK_AUDIT_TRAIL_DAYS", "730", _whole(90, 36500))  # the audit trail among them
    # What may be asked for, and drawn: web servers and schedulers judge prompts, workers judge pictures.
    policy_list: str = _setting("PRESSWORK_POLICY_LIST", "")  # a file of terms that no prompt may have, one a line
    prompt_policies: tuple[str, ...] = _setting("PRESSWORK_PROMPT_POLICIES", "none", _policies)
    image_policies: tuple[str, ...] = _setting("PRESSWORK_IMAGE_POLICIES", "none", _policies)
    policy_seconds: float = _setting("PRESSWORK_POLICY_SECONDS", "10", _number(0.1, 3600))  # for 256 prompts, a picture
    policy_fault: str = _setting("PRESSWORK_POLICY_FAULT", "refuse", _one_of("refuse", "accept"))  # if one fails
    require_license_acceptance: bool = _setting("PRESSWORK_REQUIRE_LICENSE_ACCEPTANCE", "0", _flag)  # once a tenant
    # Sources of catalogues, which web servers and schedulers fetch.
    fetch_networks: tuple[Network, ...] = _setting(
        "PRESSWORK_FETCH_NETWORKS", "", _networks
    )  # besides public addresses
    fetch_http: bool = _setting("PRESSWORK_FETCH_HTTP", "0", _flag)  # without encryption
    fetch_seconds: float = _setting("PRESSWORK_FETCH_SECONDS", "600", _number(1, 86400))  # in all
    max_source_bytes: int = _setting("PRESSWORK_MAX_SOURCE_BYTES", str(2 << 30), _whole(1024, 2**40))  # unpacked
    source_buckets: frozenset[str] = _setting("PRESSWORK_SOURCE_BUCKETS", "", _buckets)  # that a catalogue may name
    publish_buckets: frozenset[str] = _setting("PRESSWORK_PUBLISH_BUCKETS", "", _buckets)  # that it may be copied to
    # Webhooks, which schedulers send.
    webhook_networks: tuple[Network, ...] = _setting(
        "PRESSWORK_WEBHOOK_NETWORKS", "", _networks
    )  # besides public addresses
    webhook_http: bool = _setting("PRESSWORK_WEBHOOK_HTTP", "0", _flag)  # without encryption: for development
    # Spans, by OTLP over HTTP; an empty endpoint leaves them off.
    traces_endpoint: str = _setting("PRESSWORK_TRACES_ENDPOINT", "", _address("http", "https"))  # ends with /v1/traces
    traces_ratio: float = _setting("PRESSWORK_TRACES_RATIO", "1", _number(0, 1))  # of traces that begin here
    # Where schedulers and workers show their metrics; web servers have theirs at /metrics.
    metrics_port: int = _setting("PRESSWORK_METRICS_PORT", "0", _whole(0, 65535))  # 0: nowhere
    metrics_host: str = _setting("PRESSWORK_METRICS_HOST", "127.0.0.1")
    # The worker.
    pipeline: str = _setting("PRESSWORK_PIPELINE", "simulated", _one_of(*PIPELINES))
    device: str = _setting("PRESSWORK_DEVICE", "cpu")
    devices: tuple[str, ...] = _setting("PRESSWORK_DEVICES", "", parse_devices)  # a worker for each of them
    model_dir: str = _setting("PRESSWORK_MODEL_DIR", "")  # a directory, or a hub id where the hub can be reached
    sizes: tuple[tuple[int, int], ...] = _setting("PRESSWORK_SIZES", "", parse_sizes)  # empty: those of the model's own
    precision: str = _setting("PRESSWORK_PRECISION", "", _one_of("", "fp32", "bf16", "fp16"))  # empty: the device's own
    runtime: str = _setting("PRESSWORK_RUNTIME", "openvino", _one_of(*runtimes.NAMES))  # of the onnx pipeline
    compile: bool = _setting("PRESSWORK_COMPILE", "1", _flag)  # of the torch pipeline, on CUDA
    safety_checker: str = _setting("PRESSWORK_SAFETY_CHECKER", "0", _checker)  # the model's own: "", "flag" or "refuse"
    # What gives rendered pictures numbers: those that ship, and the entry points of other distributions.
    scorers: tuple[str, ...] = _setting("PRESSWORK_SCORERS", ",".join(scores.USUAL), _scorers)
    score_seconds: float = _setting("PRESSWORK_SCORE_SECONDS", "5", _number(0.1, 3600))  # of a scorer, for an image
    clip_dir: str = _setting("PRESSWORK_CLIP_DIR", "")  # the model of the scorer clip
    artefacts: str = _setting("PRESSWORK_ARTEFACTS", "")  # compiled models; empty: the user's cache folder
    batch_sizes: tuple[int, ...] = _setting("PRESSWORK_BATCH_SIZES", "16,8,4,1", _batch_sizes)
    threads: int = _setting("PRESSWORK_THREADS", "0", _whole(0, 4096))  # 0: OMP_NUM_THREADS, or its share of the CPUs
    workers: int = _setting("PRESSWORK_WORKERS", "1", _whole(0, 4096))  # how many share these CPUs
    spool_batches: int = _setting("PRESSWORK_SPOOL_BATCHES", "4", _whole(1, 1024))
    sick_seconds: float = _setting("PRESSWORK_SICK_SECONDS", "30", _number(0.1, 86400))
    # The pipeline ai100.
    ai100_sdk: str = _setting("PRESSWORK_AI100_SDK", "/opt/qti-aic")  # where the vendor's SDK is
    ai100_program_batch: int = _setting("PRESSWORK_AI100_PROGRAM_BATCH", "1", _whole(1, 64))  # images of one pass
    ai100_placement: str = _setting("PRESSWORK_AI100_PLACEMENT", "")  # empty: the fastest one by the table of times
    ai100_data_path: bool = _setting("PRESSWORK_AI100_DATA_PATH", "0", _flag)  # the device switches by itself
    ai100_times: str = _setting("PRESSWORK_AI100_TIMES", "")  # what replaces the table's times, as measured
    ai100_flags: str = _setting("PRESSWORK_AI100_FLAGS", "")  # what replaces the compiler's flags
    # How long the simulated pipeline takes, in milliseconds, and whether it simulates faults and a device's noise.
    simulated_batch_ms: float = _setting("PRESSWORK_SIMULATED_BATCH_MS", "0", _number(0, 1e7))
    simulated_step_ms: float = _setting("PRESSWORK_SIMULATED_STEP_MS", "0", _number(0, 1e7))
    simulated_image_ms: float = _setting("PRESSWORK_SIMULATED_IMAGE_MS", "0", _number(0, 1e7))
    simulated_faults: bool = _setting("PRESSWORK_SIMULATED_FAULTS", "0", _flag)
    simulated_noise: bool = _setting("PRESSWORK_SIMULATED_NOISE", "0", _flag)

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Raises SettingsError: its message names the variable, the value found and the values allowed."""
        environ = os.environ if environ is None else environ
        values = {}
        for entry in fields(cls):
            variable, default, parse = (entry.metadata[key] for key in ("variable", "default", "parse"))
            text = _find(environ, variable, default)
            if text is None:
                raise SettingsError(f"{variable} is not set; `presswork up` prints the file that sets it.")
            try:
                values[entry.name] = parse(text)
            except ValueError as error:
                hidden = entry.metadata["secret"] or "@" in text  # an address may hold a password where none belongs
                found = "not understood" if hidden else repr(text[:80])
                raise SettingsError(f"{variable} is {found}; {error}.") from None
        return cls(**values)

    @classmethod
    def variables(cls) -> dict[str, bool]:
        """Every known variable, and whether it is a secret."""
        return {entry.metadata["variable"]: entry.metadata["secret"] for entry in fields(cls)}

    @classmethod
    def without_secrets(cls, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables but for secrets, those of the commands too: for a process that runs what others wrote."""
        secrets = {name for name, is_secret in cls.variables().items() if is_secret} | _OF_COMMANDS
        hidden = secrets | {f"{name}_FILE" for name in secrets}
        return {name: value for name, value in environ.items() if name not in hidden}

    @classmethod
    def default(cls, variable: str) -> str:
        return str(next(entry.metadata["default"] for entry in fields(cls) if entry.metadata["variable"] == variable))

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets whose signatures hold. The first one signs."""
        return (self.secret, self.accepted_secret) if self.accepted_secret else (self.secret,)

    @property
    def beat_seconds(self) -> float:
        """How often a lease is extended."""
        return self.lease_seconds / 6

    @property
    def fence_seconds(self) -> float:
        """A holder that could not extend its lease for this long gives it up, before others may take it."""
        return self.lease_seconds * 5 / 6

    @property
    def abandon_seconds(self) -> float:
        """How long after its rendering an upload may take before its thread is taken to hang: no new attempt begins
        after `storing_seconds`, and the last one sends an object and may read another."""
        return self.storing_seconds + 2 * self.store_seconds

    @property
    def watchdog_seconds(self) -> float:
        """If no denoising step ends for this long, the device is taken to hang."""
        return self.lease_seconds * 2


def _find(environ: Mapping[str, str], variable: str, default: str | None) -> str | None:
    path = environ.get(f"{variable}_FILE")
    if path:
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{variable}_FILE names {path!r}, which cannot be read: {reason(error)}.") from None
    return environ.get(variable) or default


def reason(error: OSError | UnicodeDecodeError) -> str:
    """Why a file cannot be read, without a byte of it."""
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or type(error).__name__
