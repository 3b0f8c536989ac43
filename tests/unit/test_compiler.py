"""Compiling for a GPU, without one: where the caches are, what is missing here, and what is a compiler's fault."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from services.core.model.errors import SettingsError
from worker.pipeline import CompileFailed, OutOfMemory
from worker.pipelines import compiler
from worker.pipelines.out_of_memory import out_of_memory_for
from worker.pipelines.torch_compiled import TorchCompiled

ROOT = Path(__file__).parents[2]
SERVERS = {"DATABASE_URL": "postgresql://x/x", "REDIS_URL": "redis://x"}
CAN_COMPILE = shutil.which("gcc") and (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()

AT_TORCH = """
import importlib.abc, os, sys
class AtTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("TRITON_CACHE_DIR"), os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
            sys.exit()
sys.meta_path.insert(0, AtTorch())
from services.core.settings import Settings
from worker.pipelines.registry import open_pipeline
settings = Settings.read()
open_pipeline(settings)
"""


def caches_at_torch(**environment: str) -> list[str]:
    """The two folders as they are known when torch is imported for a torch pipeline."""
    given = SERVERS | {"PRESSWORK_PIPELINE": "torch", "PATH": os.environ["PATH"]} | environment
    found = subprocess.run(
        [sys.executable, "-c", AT_TORCH], cwd=ROOT, env=given, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_the_caches_lie_under_the_artefacts_before_torch_is_imported_unless_the_environment_says_otherwise(tmp_path):
    triton, inductor = map(Path, caches_at_torch(PRESSWORK_ARTEFACTS=str(tmp_path)))
    assert triton.parent == inductor.parent == tmp_path
    assert triton != inductor
    assert caches_at_torch(TRITON_CACHE_DIR="/a", TORCHINDUCTOR_CACHE_DIR="/b") == ["/a", "/b"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "triton"


@pytest.mark.skipif(not CAN_COMPILE, reason="needs a C compiler and Python's headers")
def test_a_machine_that_can_compile_is_fit_and_nothing_is_left_behind(cache: Path):
    compiler.assert_compiles()
    assert list(cache.iterdir()) == []


def program(folder: Path, script: str) -> str:
    file = folder / "cc"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'fatal error: Python.h: No such file' >&2; echo more >&2; exit 1", "Python.h: No such file"),
        ('while [ "$1" != -o ]; do shift; done; echo rubbish > "$2"', "must not be on a file system mounted noexec"),
    ],
)
def test_a_compiler_that_fails_and_a_library_that_does_not_load_are_one_sentence_each(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, sentence: str
):
    monkeypatch.setenv("CC", program(tmp_path, script))
    with pytest.raises(SettingsError, match=sentence) as error:
        compiler.assert_compiles()
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_no_compiler_and_a_compiler_that_is_not_there_are_one_sentence_each(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CC", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="cannot be started: No such file"):
        compiler.assert_compiles()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="takes a C compiler and there is none: install gcc"):
        compiler.assert_compiles()


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "triton"))
    monkeypatch.setenv("CC", "cc")
    with pytest.raises(SettingsError, match=r"Nothing can be compiled in the artefacts' folder .*: Not a directory"):
        compiler.assert_compiles()


def raised_in(module: str, error: BaseException) -> BaseException:
    """The error, raised by a function of that module."""
    try:
        exec("def build(error):\n    raise error", namespace := {"__name__": module})
        namespace["build"](error)
    except BaseException as caught:
        return caught
    raise AssertionError


def upon(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


def of(module: str, name: str, message: str) -> Exception:
    """An error of a class that a package of that name defines."""
    return type(name, (RuntimeError,), {"__module__": module})(message)


NO_COMPILER = RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")
COMPILERS = [
    of("torch._inductor.exc", "InductorError", "RuntimeError: Failed to find C compiler."),
    of("torch._dynamo.exc", "BackendCompilerFailed", "backend='inductor' raised"),
    of("triton.compiler.errors", "CompilationError", "at 1:0"),
    of("triton.runtime.errors", "OutOfResources", "out of resource: shared memory, Required: 262144"),
    raised_in("triton.runtime.build", NO_COMPILER),
    raised_in("triton.backends.nvidia.driver", ImportError("failed to map segment from shared object")),
    raised_in("triton.runtime.cache", PermissionError(13, "Permission denied", "/tmp/.triton")),
    subprocess.CalledProcessError(1, ["gcc"]),
    upon(RuntimeError("while running the model"), of("torch._inductor.exc", "InductorError", "no")),
]
DEVICES = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    raised_in("triton.backends.nvidia.driver", RuntimeError("Triton Error [CUDA]: an illegal memory access")),
    upon(of("torch._inductor.exc", "InductorError", "RuntimeError"), RuntimeError("CUDA error: unspecified failure")),
    ValueError("no such prompt"),
]
MEMORY = [
    upon(of("torch._inductor.exc", "InductorError", "x"), of("torch", "OutOfMemoryError", "CUDA")),
    upon(RuntimeError("capture failed"), of("torch", "OutOfMemoryError", "CUDA")),
]


@pytest.mark.parametrize("error", COMPILERS, ids=repr)
def test_a_compiler_s_error_is_no_device_s(error: Exception):
    with pytest.raises(CompileFailed) as said, out_of_memory_for(4), compiler.compiling():
        raise error
    assert "\n" not in str(said.value) and said.value.__cause__ is error


@pytest.mark.parametrize("error", DEVICES, ids=repr)
def test_a_device_s_error_stays_what_it_is_though_a_compiler_was_at_work(error: Exception):
    with pytest.raises(type(error)) as said, out_of_memory_for(4), compiler.compiling():
        raise error
    assert said.value is error


@pytest.mark.parametrize("error", MEMORY, ids=repr)
def test_memory_that_ran_out_in_a_compiler_is_memory(error: Exception):
    with pytest.raises(OutOfMemory), out_of_memory_for(4), compiler.compiling():
        raise error


def test_torch_s_own_compiler_that_finds_no_cxx_compiler_is_a_compiler_that_fails(cache: Path, tmp_path: Path):
    """The real one, on a CPU, with one layer."""
    from torch._inductor import config

    compiled = torch.compile(torch.nn.Linear(2, 2), fullgraph=True)
    nowhere = config.patch({"cpp.cxx": (str(tmp_path / "nowhere"),), "fx_graph_cache": False})
    with nowhere, pytest.raises(CompileFailed, match="nowhere"), compiler.compiling(), torch.inference_mode():
        compiled(torch.ones(1, 2))


@pytest.mark.parametrize("network", ["text", "denoiser", "decoder"])
def test_whichever_network_fails_to_compile_it_is_distinguished_from_the_device(network: str):
    def fails(*_arguments: object) -> None:
        raise COMPILERS[0]

    compiled = TorchCompiled(
        fails, fails, fails, torch.nn.Identity(), torch.nn.Identity(), torch.device("cpu"), 1, one_at_a_time=False
    )
    calls = {
        "text": lambda: compiled.encode_text(np.zeros((1, 77), np.int64)),
        "denoiser": lambda: compiled.denoise(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4), []),
        "decoder": lambda: compiled.decode(torch.zeros(1, 4, 8, 8)),
    }
    with pytest.raises(CompileFailed, match="Failed to find C compiler"):
        calls[network]()


def test_what_decides_bytes_on_a_gpu_is_named_with_its_version(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from worker.pipelines.torch_compiled import library_versions

    driver = tmp_path / "version"
    driver.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs-builder)\n"
        "GCC version:  gcc version 13.3.0\n"
    )
    assert library_versions(on_cuda=False) == f", torch {torch.__version__}"
    assert library_versions(on_cuda=True, driver=driver).endswith(", driver 580.159.04")
    assert "driver" not in library_versions(on_cuda=True, driver=tmp_path / "none")


def test_attention_and_the_precision_of_sums_do_not_depend_on_a_library_s_version():
    from torch.nn.attention import SDPBackend

    from worker.pipelines import torch_compiled

    matmul, cuda = torch.backends.cuda.matmul, torch.backends.cuda
    before = cuda.cudnn_sdp_enabled(), torch._C._get_sdp_priority_order()
    with torch_compiled.pinned_attention():
        order = [SDPBackend(kind) for kind in torch._C._get_sdp_priority_order()]
        assert order[:3] == list(torch_compiled.ATTENTION) and torch_compiled.ATTENTION[0] == SDPBackend.FLASH_ATTENTION
        assert not cuda.cudnn_sdp_enabled() and cuda.flash_sdp_enabled() and cuda.mem_efficient_sdp_enabled()
    assert (cuda.cudnn_sdp_enabled(), torch._C._get_sdp_priority_order()) == before
    usual = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            torch_compiled.fix_arithmetic()
            cudnn = torch.backends.cudnn
            assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (False, True, False)
        assert not matmul.allow_fp16_reduced_precision_reduction and not matmul.allow_bf16_reduced_precision_reduction
    finally:
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = usual


def test_whoever_waits_for_a_device_leaves_its_core_to_others():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "worker" / "pipelines").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    events = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.cuda.Event"]
    assert events and all("blocking=True" in ast.unparse(node) for node in events)
    waits = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr == "synchronize"]
    assert waits and all(ast.unparse(node.value).startswith("_done(") for node in waits)  # which gives such an event


def test_classes_on_cuda_are_not_those_of_former_arithmetic():
    from worker.pipelines.torch_compiled import backend_name

    assert backend_name(on_cuda=False, compiles=True) == "torch"
    assert backend_name(on_cuda=True, compiles=False) == "torch-2"
    assert backend_name(on_cuda=True, compiles=True) == "torch-compiled-2"


def under(outer: BaseException, inner: BaseException) -> BaseException:
    """`outer` as it is raised while `inner` is handled, without naming it as its cause."""
    try:
        try:
            raise inner
        except BaseException:
            raise outer  # noqa: B904
    except BaseException as found:
        return found


def test_memory_that_ran_out_is_found_under_the_error_that_ended_a_graph_capture():
    error = under(RuntimeError("capture was invalidated"), of("torch", "OutOfMemoryError", "CUDA out of memory"))
    assert error.__cause__ is None
    with pytest.raises(OutOfMemory), out_of_memory_for(4), compiler.compiling():
        raise error
