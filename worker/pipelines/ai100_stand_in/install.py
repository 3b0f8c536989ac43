"""Writes a folder that the worker takes for the SDK's: two modules that lead here, and the tools as programs."""

import platform
import shlex
from pathlib import Path

from services.core.processes import python
from worker.pipelines.ai100_stand_in.machine import NAME, VERSION

PACKAGE = "worker.pipelines.ai100_stand_in"
NOTE = "Presswork's stand-in for the Cloud AI SDK. No part of the SDK is in this folder.\n"
TOOLS = {"qaic-compile": "exec", "qaic-exec": "exec", "qaic-util": "tools", "qaic-qpc": "tools"}


def install(folder: Path) -> Path:
    """The folder, written anew where it differs. It works with this Python and this copy of Presswork alone."""
    modules = {
        f"dev/lib/{platform.machine()}/qaicrt.py": f"from {PACKAGE}.qaicrt import *  # {NOTE}",
        "dev/python/QAicApi_pb2.py": f"from {PACKAGE}.io_descriptor import *  # {NOTE}",
        "README": NOTE,
        "versions/apps.xml": f"<!-- {NOTE}--><base_version>{VERSION}</base_version><build_id>{NAME}</build_id>\n",
    }
    root = str(Path(__file__).parents[3])
    for name, place in TOOLS.items():
        run = shlex.join(python(f"{PACKAGE}.tools", name))
        modules[f"{place}/{name}"] = f'#!/bin/sh\n# {NOTE}PYTHONPATH={shlex.quote(root)} exec {run} "$@"\n'
    for name, text in modules.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        if file.parent.name in TOOLS.values():
            file.chmod(0o755)
    return folder
