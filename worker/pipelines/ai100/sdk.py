"""The door to the vendor's SDK: where it is, its modules, its tools, its version, and what its statuses mean.

Two modules and three tools are used. The module `qaicrt` runs programs (Context, Queue, Qpc, Program, ExecObj, Util),
`QAicApi_pb2` describes their buffers; `qaic-compile` (before SDK 1.21 `qaic-exec`) makes programs, `qaic-qpc` checks
them and `qaic-util` lists devices. PRESSWORK_AI100_SDK says where they are installed.
"""

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from services.core.model.errors import SettingsError

COMPILERS = ("qaic-compile", "qaic-exec")
FOLDERS = {"qaic-compile": "exec", "qaic-exec": "exec", "qaic-util": "tools", "qaic-qpc": "tools"}
GROUP = (
    "add the user to the group `qaic` (`sudo usermod -a -G qaic USER`), or give the container the number of the group"
    " that owns /dev/accel (PRESSWORK_ACCEL_GROUP)"
)
TOOL_SECONDS = 60.0
DEVICE = re.compile(r"^QID (\d+)\s*$", re.MULTILINE)


class SdkMissing(SettingsError):
    """The SDK, or a part of it, is not installed."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device as `qaic-util -q` lists it. `hardware`: what the compiler calls its generation."""

    number: int
    ready: bool
    sku: str = ""
    cores: int = 0
    cores_free: int = 0
    memory_mib: int = 0
    memory_free_mib: int = 0
    hardware: str = "ai100"


class Sdk:
    """The SDK in a folder. Nothing is imported or started before it is asked for."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def modules(self) -> tuple[ModuleType, ModuleType]:
        """qaicrt and QAicApi_pb2. Raises SdkMissing."""
        for path in (self.folder / "dev/lib" / platform.machine(), self.folder / "dev/python"):
            if path.is_dir() and str(path) not in sys.path:
                sys.path.append(str(path))
        try:
            return importlib.import_module("qaicrt"), importlib.import_module("QAicApi_pb2")
        except ImportError as error:
            wheel = (
                f"; it was built for another Python than {platform.python_version()}" if self.folder.is_dir() else ""
            )
            raise SdkMissing(
                f"The Cloud AI SDK cannot be imported from {self.folder} ({error}{wheel}); install the Platform and"
                " Apps SDK, or set PRESSWORK_AI100_SDK to where they are. Without a card, `presswork up --pipeline"
                " ai100 --stand-in` runs a stand-in."
            ) from None

    def version(self) -> str:
        """The runtime library's version, such as 1.21.2, with its variant."""
        qaicrt, _ = self.modules()
        status, major, minor, patch, variant = qaicrt.Util().getAicVersion()
        check(qaicrt, status, "The Cloud AI SDK does not tell its version")
        return "-".join(filter(None, (f"{major}.{minor}.{patch}", re.sub(r"[^\w.]+", "-", str(variant)).strip("-"))))

    def tool(self, name: str) -> Path | None:
        """A tool's path: in the SDK's folder, or else on PATH."""
        path = self.folder / FOLDERS[name] / name
        found = str(path) if os.access(path, os.X_OK) else shutil.which(name)
        return Path(found) if found else None

    def compiler_version(self) -> str:
        """The Apps SDK's, which has the compiler and is installed apart from the runtime; empty if it is not told."""
        try:
            told = (self.folder / "versions" / "apps.xml").read_text(encoding="utf-8")
        except OSError:
            return ""
        found = (re.search(rf"<{name}>\s*([\w.-]+)", told) for name in ("base_version", "build_id"))
        return ".".join(one[1] for one in found if one)

    def compiler(self) -> Path:
        """`qaic-compile`, or where there is none `qaic-exec`. Raises SdkMissing."""
        for name in COMPILERS:
            if (found := self.tool(name)) is not None:
                return found
        raise SdkMissing(
            f"There is no compiler qaic-compile or qaic-exec under {self.folder} or on PATH; install the Apps SDK"
            " (x86-64 only), or compile where it is with `presswork ai100 compile` and share PRESSWORK_ARTEFACTS."
        )

    def devices(self) -> list[DeviceInfo]:
        """The devices of this machine. Raises SdkMissing if there is no qaic-util; one that fails lists none."""
        tool = self.tool("qaic-util")
        if tool is None:
            raise SdkMissing(
                f"There is no qaic-util under {self.folder} or on PATH; install the Cloud AI Platform SDK, or set"
                " PRESSWORK_AI100_SDK to where it is."
            )
        try:
            asked = subprocess.run([tool, "-q"], capture_output=True, text=True, check=False, timeout=TOOL_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return []
        return list(map(_device, re.split(r"(?=^QID \d+\s*$)", asked.stdout, flags=re.MULTILINE)[1:]))


def check(qaicrt: Any, status: Any, sentence: str) -> None:
    """Raises SettingsError with what failed, the status and what would help, unless the status is success."""
    if status != qaicrt.QStatus.QS_SUCCESS:
        raise SettingsError(explain(status, sentence))


def explain(status: Any, sentence: str) -> str:
    """One sentence: what failed, the status, and what would help."""
    name = getattr(status, "name", str(status))
    return f"{sentence} ({name}); {HELP.get(name, 'qaic-util -q shows the state of the devices')}."


HELP = {
    "QS_PERM": f"this user may not open the device: {GROUP}",
    "QS_DEV_ERROR": f"it is in error, or this user may not open it: {GROUP}; its soc_reset resets a device in error",
    "QS_NODEV": "the device is gone or was never there: see `qaic-util -q`, and name one that is in PRESSWORK_DEVICE",
    "QS_BUSY": "another process holds the device: stop it, or name another device in PRESSWORK_DEVICE",
    "QS_NOMEM": "the device has too little memory free: stop what else runs on it, or use smaller programs",
    "QS_NOSPC": "the device has too few cores free: stop what else runs on it, or use programs of fewer cores"
    " (PRESSWORK_AI100_PLACEMENT)",
    "QS_ERROR": "it failed, did not answer in time, or has too few cores or too little memory free: see `qaic-util -q`;"
    " its soc_reset resets a device that hangs",
    "QS_TIMEDOUT": "the device did not answer: look at `qaic-util -q`; a device that hangs is reset by its soc_reset",
}


def _device(record: str) -> DeviceInfo:
    number = DEVICE.search(record)
    assert number is not None  # the text was split there
    found = dict(re.findall(r"^[ \t]+([\w .]+?)[ \t]*:[ \t]*(.*?)[ \t]*$", record, re.MULTILINE))

    def count(name: str) -> int:
        digits = re.match(r"\d+", found.get(name, ""))
        return int(digits[0]) if digits else 0

    return DeviceInfo(
        int(number[1]), found.get("Status") == "Ready", found.get("Sku Type", ""), count("Nsp Total"),
        count("Nsp Free"), count("Dram Total"), count("Dram Free"),
        "ai200" if "AIC200" in found.get("FW IMAGE_VARIANT", "").upper() else "ai100",
    )  # fmt: skip
