"""Compiling for a GPU: the compilers' caches, a check that they work here, and how to recognize their errors.

Imports no torch.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from services.core.model.errors import SettingsError
from worker.pipeline import CompileFailed
from worker.pipelines.out_of_memory import causes, is_out_of_memory

MESSAGE_LIMIT = 300
_PROBE = "#include <Python.h>\n#include <dlfcn.h>\nint presswork(void) { return 0; }\n"
# Errors whose classes come from these packages are compiler errors.
_COMPILERS = ("torch._dynamo.", "torch._inductor.", "triton.")
# When its C compiler or its cache fails, Triton also raises built-in errors, from these modules.
_BUILDERS = ("triton.runtime.build.", "triton.runtime.cache.", "triton.runtime.driver.", "triton.backends.",
             "triton.compiler.", "torch._inductor.async_compile.")  # fmt: skip
# Messages that mean a device error, even if raised while compiling.
_DEVICE = ("cuda error", "triton error [cuda]", "acceleratorerror", "device-side assert")


def keep_caches(artefacts: Path) -> None:
    """Sets the cache folders of Triton and Inductor, unless the environment does.

    Must run before torch is imported: Triton reads its folder when its driver loads, before torch would set it.
    """
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:  # a pipeline without torch
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(artefacts / f"inductor-{version}"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(artefacts / f"triton-{version}"))


def assert_compiles() -> None:
    """Builds and loads a small library in the cache, as Triton does at its first kernel.

    Raises SettingsError, in one sentence, if there is no C compiler, its headers are missing, the folder cannot be
    written, or libraries in it cannot be loaded.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SettingsError(
            "Compiling for a GPU takes a C compiler and there is none: install gcc, or name one in CC;"
            " PRESSWORK_COMPILE=0 needs none, but is slower."
        )
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=folder) as scratch:
            _build_and_load(compiler, Path(scratch))
    except OSError as error:
        raise SettingsError(
            f"Nothing can be compiled in the artefacts' folder {folder}: {error.strerror or error}."
        ) from error


def _build_and_load(compiler: str, scratch: Path) -> None:
    source, library = scratch / "probe.c", scratch / "probe.so"
    source.write_text(_PROBE, encoding="utf-8")
    headers = sysconfig.get_paths()["include"]
    try:
        built = subprocess.run(
            [compiler, "-shared", "-fPIC", "-I", headers, "-o", library, source],
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
    except OSError as error:
        raise SettingsError(f"The C compiler {compiler} cannot be started: {error.strerror}.") from error
    if built.returncode != 0:
        raise SettingsError(
            f"The C compiler {compiler} cannot build with the headers of Python and the C library:"
            f" {_first_line(built.stderr)}."
        )
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise SettingsError(
            f"Libraries compiled in {scratch.parent} cannot be loaded, so PRESSWORK_ARTEFACTS must not be on a"
            f" file system mounted noexec: {_first_line(str(error))}."
        ) from error


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Turns compiler errors into CompileFailed, in one sentence; other errors pass."""
    try:
        yield
    except Exception as error:
        if not is_compiler_error(error):
            raise
        message = f"{type(error).__name__}: {_first_line(str(error))}"
        raise CompileFailed(f"The networks cannot be compiled here: {message}.") from error


def is_compiler_error(error: BaseException) -> bool:
    """Whether a compiler failed, rather than the device or its memory."""
    chain = list(causes(error))
    message = " ".join(f"{type(one).__name__}: {one}" for one in chain).lower()
    if any(map(is_out_of_memory, chain)) or any(words in message for words in _DEVICE):
        return False
    return any(_is_raised_by_compiler(one) for one in chain)


def _is_raised_by_compiler(error: BaseException) -> bool:
    if isinstance(error, subprocess.CalledProcessError):  # only compilers start programs here
        return True
    if any(f"{kind.__module__}.".startswith(_COMPILERS) for kind in type(error).__mro__):
        return True
    modules = []
    trace = error.__traceback__
    while trace is not None:
        modules.append(f"{trace.tb_frame.f_globals.get('__name__', '')}.")
        trace = trace.tb_next
    return any(module.startswith(_BUILDERS) for module in modules)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "no reason was given")[:MESSAGE_LIMIT].rstrip(".")
