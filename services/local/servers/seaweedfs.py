"""SeaweedFS, the S3 server, as one process. Its clients make the buckets."""

import json
from pathlib import Path

from services.local import programs, signed
from services.local.child import Child
from services.local.home import SECOND_PORT, Home, write_private
from services.local.server import Server

PARTS = ("master", "volume", "filer", "s3")
PROBE, PROBE_SECONDS = "presswork-probe", 5.0  # a bucket that holds one empty object
# Off: telemetry, buckets made by a typo, deleting buckets with objects, stalls after a restart (resumeState).
FIXED = {
    "ip": "127.0.0.1",
    "ip.bind": "127.0.0.1",
    "dir": "data",
    "s3.config": "s3.json",
    "s3.port.iceberg": "0",
    "s3.port.lance": "0",
    "s3.localSocket": "s3.sock",
    "s3.autoCreateBucket": "false",
    "s3.allowDeleteBucketNotEmpty": "false",
    "filer.localSocket": "filer.sock",
    "master.telemetry": "false",
    "master.resumeState": "false",
    "master.volumeSizeLimitMB": "256",
    "volume.preStopSeconds": "0",
    "admin.ui": "false",
    "webdav": "false",
    "disableHttp": "true",  # or the master gives every local user tokens signed with KEYS
}
# Without these keys every local user could read and write objects through the internal ports.
KEYS = (
    "WEED_JWT_SIGNING_KEY",
    "WEED_JWT_SIGNING_READ_KEY",
    "WEED_JWT_FILER_SIGNING_KEY",
    "WEED_JWT_FILER_SIGNING_READ_KEY",
)


class SeaweedFS(Server):
    """The object store. If the process is killed, no acknowledged object is lost."""

    name = "seaweedfs"
    programs = frozenset({"weed"})

    def __init__(self, home: Home, ports: dict[str, int]) -> None:
        super().__init__(home, ports)
        self.program = programs.weed()
        self.port = ports["s3"]
        self.access_key = home.secret("s3_access_key")[:20]
        self.secret_key = home.secret("s3_secret_key")

    @staticmethod
    def wanted_ports() -> dict[str, bool]:
        plain = {name: False for part in PARTS for name in (part, f"{part}_grpc")}
        return {**plain, "admin": True}  # its own helper expects the admin's second port at port + 10000

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spawn(self) -> Child:
        (self.folder / "data").mkdir(mode=0o700, exist_ok=True)
        write_private(self.folder / "s3.json", json.dumps(self._identities()))
        options = {**FIXED, **self._port_options(), "admin.password": self.home.secret("s3_admin")}
        write_private(self.folder / "options", "".join(f"{name}={value}\n" for name, value in options.items()))
        keys = {name: self.home.secret(name.lower()) for name in KEYS}
        # Paths are relative to the folder: a socket's path may have at most 107 characters.
        return Child(
            [self.program, "-logtostderr=true", "mini", "-options=options"],
            env=self.environment(GOMEMLIMIT="256MiB", **keys),
            log=self.log,
            cwd=self.folder,
        )

    def ready(self) -> bool:
        """Writes an object: listing buckets works seconds before writing does."""
        bucket = f"/{PROBE}"
        return self._put(bucket) in (200, 409) and self._put(f"{bucket}/ready") == 200

    def forget_leftovers(self, *, known_gone: bool) -> None:
        """Deletes sockets of a killed process, which are named after this folder's ports."""
        if known_gone:
            grpc = {part: self.ports[f"{part}_grpc"] for part in PARTS}
            for part, port in {**grpc, "admin": self.ports["admin"] + SECOND_PORT}.items():
                try:
                    Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108 - its choice
                except OSError:  # it belongs to another user
                    pass

    def finish_stop(self) -> None:
        super().finish_stop()
        self.forget_leftovers(known_gone=True)

    def _identities(self) -> dict[str, object]:
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return {"identities": [{"name": "presswork", "credentials": credentials, "actions": actions}]}

    def _port_options(self) -> dict[str, int]:
        options = {"admin.port": self.ports["admin"], "admin.port.grpc": self.ports["admin"] + SECOND_PORT}
        for part in PARTS:
            options |= {f"{part}.port": self.ports[part], f"{part}.port.grpc": self.ports[f"{part}_grpc"]}
        return options

    def _put(self, path: str) -> int:
        return signed.put(self.port, path, b"", self.access_key, self.secret_key, timeout=PROBE_SECONDS)
