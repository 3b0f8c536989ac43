"""Writes a folder that the worker takes for the SDK's: two modules that lead here, and the tools as programs."""

import platform
import sys
from pathlib import Path

PACKAGE = "worker.pipelines.ai100_stand_in"
NOTE = "Presswork's stand-in for the Cloud AI SDK. No part of the SDK is in this folder.\n"
TOOLS = {"qaic-compile": "exec", "qaic-exec": "exec", "qaic-util": "tools", "qaic-qpc": "tools"}


def install(folder: Path) -> Path:
    """The folder, written anew where it differs. It works with this Python and this copy of Presswork alone."""
    modules = {
        f"dev/lib/{platform.machine()}/qaicrt.py": f"from {PACKAGE}.qaicrt import *  # {NOTE}",
        "dev/python/QAicApi_pb2.py": f"from {PACKAGE}.io_descriptor import *  # {NOTE}",
        "README": NOTE,
    }
    root = str(Path(__file__).parents[3])
    for name, place in TOOLS.items():
        modules[f"{place}/{name}"] = (
            f"#!{sys.executable}\n# {NOTE}import sys\n\nsys.path.insert(0, {root!r})\n"
            f"from {PACKAGE} import tools\n\nsys.exit(tools.main({name!r}, sys.argv[1:]))\n"
        )
    for name, text in modules.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        if file.parent.name in TOOLS.values():
            file.chmod(0o755)
    return folder
