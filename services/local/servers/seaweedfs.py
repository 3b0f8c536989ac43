"""SeaweedFS, the S3 server, as one process. Presswork's key may use the objects of one bucket, and no more."""

import json
from pathlib import Path

from services.core import cpus
from services.local import programs, signed
from services.local.child import Child
from services.local.home import SECOND_PORT, Home, write_private
from services.local.server import Server
from services.local.servers.full_disk import FullDisk

PARTS = ("master", "volume", "filer", "s3")
PROBE, PROBE_SECONDS = "presswork-probe", 5.0  # a bucket that holds empty objects
# Off: telemetry, buckets made by a typo, deleting buckets with objects, stalls after a restart (resumeState), keys made
# over HTTP.
FIXED = {
    "ip": "127.0.0.1",
    "ip.bind": "127.0.0.1",
    "dir": "data",
    "s3.config": "s3.json",
    "s3.iam": "false",
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
# The rights of services/README.md, on the bucket and on its objects. (With SeaweedFS's own action "Write", a key could
# also set rules that delete objects.)
RIGHTS = {
    "s3:ListBucket": "",
    **dict.fromkeys(("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"), "/*"),
}


class SeaweedFS(Server):
    """The object store. If the process is killed, no acknowledged object is lost. `bucket` is made at the start."""

    name = "seaweedfs"
    programs = frozenset({"weed"})

    def __init__(self, home: Home, ports: dict[str, int], bucket: str) -> None:
        super().__init__(home, ports)
        self.program = programs.weed()
        self.port = ports["s3"]
        self.bucket = bucket
        self.access_key, self.secret_key = home.secret("s3_access_key")[:20], home.secret("s3_secret_key")
        self.admin_access_key = home.secret("s3_admin_access_key")[:20]
        self.admin_secret_key = home.secret("s3_admin_secret_key")
        self._full_disk = FullDisk(self.folder / "data", lambda number: self._put(f"/{PROBE}/{number}/writes"))

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
        # With more threads it spends most of its time on looking for work: four times as much of it for an object.
        # Paths are relative to the folder: a socket's path may have at most 107 characters.
        return Child(
            [self.program, "-logtostderr=true", "mini", "-options=options"],
            env=self.environment(GOMEMLIMIT="256MiB", GOMAXPROCS=str(max(1, cpus.available() // 2)), **keys),
            log=self.log,
            cwd=self.folder,
        )

    def ready(self) -> bool:
        """Writes an object: listing buckets works seconds before writing does. Makes the bucket; whoever uses it says
        what is wrong if that is refused."""
        if self._put(f"/{PROBE}") not in (200, 409) or self._put(f"/{PROBE}/ready") != 200:
            return False
        self._put(f"/{self.bucket}")
        return True

    def why_stuck(self) -> str:
        if self.child is not None and self._full_disk.must_end(self.child):
            return "met a full disk, and still refuses writes now that there is room"
        return ""

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
        admin = {"accessKey": self.admin_access_key, "secretKey": self.admin_secret_key}
        own = {"accessKey": self.access_key, "secretKey": self.secret_key}
        return {
            "identities": [
                {"name": "admin", "credentials": [admin], "actions": ["Admin"]},
                {"name": "presswork", "credentials": [own], "policyNames": ["presswork"]},
            ],
            "policies": [{"name": "presswork", "content": json.dumps(policy(self.bucket))}],
        }

    def _port_options(self) -> dict[str, int]:
        options = {"admin.port": self.ports["admin"], "admin.port.grpc": self.ports["admin"] + SECOND_PORT}
        for part in PARTS:
            options |= {f"{part}.port": self.ports[part], f"{part}.port.grpc": self.ports[f"{part}_grpc"]}
        return options

    def _put(self, path: str) -> int:
        keys = self.admin_access_key, self.admin_secret_key
        return signed.put(self.port, path, b"", *keys, timeout=PROBE_SECONDS)


def policy(bucket: str) -> dict[str, object]:
    """What Presswork's key may do, as S3 writes it."""
    statements = [
        {
            "Effect": "Allow",
            "Action": [action for action, place in RIGHTS.items() if place == wanted],
            "Resource": [f"arn:aws:s3:::{bucket}{wanted}"],
        }
        for wanted in sorted(set(RIGHTS.values()))
    ]
    return {"Version": "2012-10-17", "Statement": statements}
