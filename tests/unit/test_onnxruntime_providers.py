"""Execution providers are chosen from those that are there, with fixed options, and each is a class of its own."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnx
import onnxruntime

from services.core.model import runtimes
from services.core.model.errors import SettingsError
from services.core.settings import Settings
from worker.model.artefacts import Artefacts
from worker.pipeline import CompileFailed
from worker.pipelines import onnx as pipeline
from worker.pipelines import onnxruntime_providers as providers
from worker.pipelines.accelerator import Accelerator
from worker.pipelines.onnxruntime_graphs import Graph

SERVERS = {"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused"}
WORDS = [word for word in runtimes.PROVIDERS if word != "qaic"]
Session = onnxruntime.InferenceSession


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """x + x."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> double (float[2] x) => (float[2] y) { y = Add(x, x) }'
    )
    file = tmp_path / "exported-0123456789abcdef" / "double.onnx"
    file.parent.mkdir()
    onnx.save(model, file)
    return file


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU and a build of ONNX Runtime for it, as far as a choice can tell."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = --id=0 ] && echo "NVIDIA H200 NVL/2" || exit 6\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)


@pytest.mark.parametrize("value", runtimes.NAMES)
def test_a_runtime_is_a_setting(value: str):
    assert Settings.read(SERVERS | {"PRESSWORK_RUNTIME": value}).runtime == value


@pytest.mark.parametrize("value", ["onnxruntime:", "onnxruntime:abacus", "openvino:cuda", "cuda"])
def test_another_runtime_is_refused(value: str):
    with pytest.raises(
        SettingsError, match=re.escape(f"PRESSWORK_RUNTIME is {value!r}; it can be openvino, onnxruntime")
    ):
        Settings.read(SERVERS | {"PRESSWORK_RUNTIME": value})


@pytest.mark.parametrize("word", WORDS)
def test_a_provider_that_this_build_lacks_is_named_with_what_is_there_and_what_brings_it(word: str, monkeypatch):
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(SettingsError) as refused:
        providers.choose(word, "cpu", 1)
    version = onnxruntime.__version__
    sentence = f"PRESSWORK_RUNTIME is onnxruntime:{word}, but this ONNX Runtime (onnxruntime {version}) has only azure"
    assert str(refused.value).startswith(f"{sentence} and cpu; ")
    assert providers.PROVIDERS[word].brings in str(refused.value) and "\n" not in str(refused.value)


def test_of_qualcomm_s_provider_a_sentence_says_where_it_is():
    with pytest.raises(
        SettingsError, match=r"wheel is for Python 3\.10, while this is Python 3\.1[1-9]; PRESSWORK_PIPELINE=ai100 "
    ):
        providers.choose("qaic", "cpu", 1)


def test_a_provider_on_a_device_is_a_kind_of_its_own(nvidia: None):
    chosen = providers.choose("cuda", "cuda", 2)
    assert (chosen.kind, chosen.device) == ("NVIDIA H200 NVL-2", "cuda:0 NVIDIA H200 NVL-2")
    runtime = pipeline._runtime("onnxruntime:cuda", "cuda:0")
    assert (runtime.kind, runtime.device, runtime.has_engines) == (chosen.kind, chosen.device, False)
    assert pipeline._runtime("onnxruntime:tensorrt", "cuda").has_engines
    assert pipeline._runtime("onnxruntime", "cpu").kind.endswith(f" x{pipeline.thread_count()}")
    for device, sentence in (
        ("cpu", "PRESSWORK_DEVICE is 'cpu'; with onnxruntime:cuda it can be cuda or cuda:N."),
        ("cuda:x", "PRESSWORK_DEVICE is 'cuda:x'; with onnxruntime:cuda it can be cuda or cuda:N."),
        ("cuda:1", "PRESSWORK_DEVICE is 'cuda:1', but nvidia-smi knows no such GPU."),
    ):
        with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}$"):
            providers.choose("cuda", device, 2)


def test_without_a_driver_a_sentence_says_so(nvidia: None, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SettingsError, match=r"^There is no NVIDIA GPU here: nvidia-smi does not answer\.$"):
        providers.choose("tensorrt", "cuda", 1)


def test_an_amd_gpu_is_known_by_its_architecture(tmp_path: Path, monkeypatch):
    for number, properties in enumerate(
        ("simd_count 0\ncpu_cores_count 96\n", "simd_count 1216\ngfx_target_version 90402\n")
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "properties").write_text(properties)
    monkeypatch.setattr(providers, "KFD_NODES", tmp_path)
    assert providers.amd_kind(0) == "AMD gfx90402 1216 SIMD"
    with pytest.raises(SettingsError, match=r"'rocm:1', but the AMD driver knows 1 GPUs"):
        providers.amd_kind(1)


def test_no_option_lets_a_provider_choose_by_timing_or_round():
    fixed = {word: providers.PROVIDERS[word].options(3, 2) for word in WORDS}
    assert fixed["cuda"]["cudnn_conv_algo_search"] in ("HEURISTIC", "DEFAULT") and fixed["cuda"]["use_tf32"] == "0"
    assert fixed["migraphx"]["migraphx_exhaustive_tune"] == fixed["migraphx"]["migraphx_fp16_enable"] == "0"
    assert fixed["tensorrt"]["trt_fp16_enable"] == fixed["tensorrt"]["trt_int8_enable"] == "0"
    assert (fixed["openvino"]["precision"], fixed["openvino"]["num_of_threads"]) == ("FP32", "2")
    assert {word for word in WORDS if fixed[word].get("device_id") == "3"} == {"cuda", "tensorrt", "migraphx"}
    assert {word for word in WORDS if providers.PROVIDERS[word].engine} == {"tensorrt", "migraphx"}


@pytest.mark.filterwarnings("ignore:Specified provider", "ignore:Duplicate provider")
def test_a_provider_that_does_not_start_is_never_replaced_in_silence(graph: Path):
    with pytest.raises(CompileFailed, match="CUDAExecutionProvider does not start here"):
        Graph(graph, "fp32", 1, [("CUDAExecutionProvider", {})])
    with pytest.raises(CompileFailed, match=r"CPUExecutionProvider cannot run nowhere\.onnx: .*\.$"):
        Graph(graph.with_name("nowhere.onnx"), "fp32", 1, [("CPUExecutionProvider", {})])
    (found,) = Graph(graph, "fp32", 1).run({"x": np.array([1.0, 2.0], np.float32)})
    assert found.tolist() == [2.0, 4.0]


class TimedBuilder:
    """In ONNX Runtime's place: an InferenceSession that writes an engine when it is asked to, each with other bytes, as
    a builder does that times kernels. The engine is the graph itself, which the CPU's provider then runs."""

    built = 0

    def __init__(self, file: str, options: Any, providers: list[Any], enable_fallback: int) -> None:
        assert not enable_fallback
        self._provider, fixed = providers[0]
        model = onnx.load(file)
        beside = fixed.get("migraphx_save_model_path", "")
        context = (
            options.get_session_config_entry("ep.context_file_path") if not beside and self._asked(options) else ""
        )
        if into := beside or context:
            TimedBuilder.built += 1
            model.doc_string = f"tactics {TimedBuilder.built}"
            onnx.save(model, into)
        if loaded := fixed.get("migraphx_load_model_path"):
            assert onnx.load(loaded).doc_string
        self.session = Session(file, providers=["CPUExecutionProvider"])

    def _asked(self, options: Any) -> bool:
        try:
            return options.get_session_config_entry("ep.context_enable") == "1"
        except RuntimeError:
            return False

    def get_providers(self) -> list[str]:
        return [self._provider]

    def run(self, names: None, inputs: dict[str, Any]) -> list[Any]:
        return list(self.session.run(names, inputs))


@pytest.mark.parametrize("word", ["tensorrt", "migraphx"])
def test_an_engine_is_made_once_and_its_hash_is_in_the_class(
    word: str, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(onnxruntime, "InferenceSession", TimedBuilder)
    chosen = providers.Chosen(word, providers.PROVIDERS[word], 0, "cuda:0", "NVIDIA H200", 1)
    before = TimedBuilder.built

    def opened(cache: str) -> tuple[Accelerator, str]:
        accelerator = Accelerator(chosen)
        return accelerator, accelerator.build([graph, graph], tmp_path / cache, "tiny", "revision-1")

    first, engines = opened("shared")
    assert re.fullmatch("[0-9a-f]{12}", engines) and TimedBuilder.built == before + 1
    (found,) = first.graph(graph, "fp32").run({"x": np.array([1.0, 2.0], np.float32)})
    assert found.tolist() == [2.0, 4.0]
    _, again = opened("shared")
    assert (again, TimedBuilder.built) == (engines, before + 1)
    _, elsewhere = opened("elsewhere")
    assert elsewhere != engines and TimedBuilder.built == before + 2
    (file,) = (file for file in (tmp_path / "shared").glob("*/*/exported-*") if file.suffix in (".onnx", ".mxr"))
    file.write_bytes(b"damaged")
    _, mended = opened("shared")
    assert mended not in (engines, elsewhere) and TimedBuilder.built == before + 3
    (key,) = (tmp_path / "shared").glob("*/*/key.txt")
    assert json.loads(key.read_text())["kind"] == "NVIDIA H200" and "device_id" not in key.read_text()


def test_a_provider_that_writes_no_engine_is_named(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Silent(TimedBuilder):
        def _asked(self, options: Any) -> bool:
            return False

    monkeypatch.setattr(onnxruntime, "InferenceSession", Silent)
    chosen = providers.Chosen("tensorrt", providers.PROVIDERS["tensorrt"], 0, "cuda:0", "NVIDIA H200", 1)
    with pytest.raises(CompileFailed, match=r"TensorrtExecutionProvider wrote no engine for double\.onnx\."):
        Accelerator(chosen).build([graph], tmp_path / "cache", "tiny", "revision-1")


def test_an_artefact_s_contents_are_told_by_their_hashes(tmp_path: Path):
    artefacts = Artefacts(tmp_path, "model", {"n": 1})
    artefacts.get("part", lambda into: (into / "a").write_bytes(b"") and None)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert artefacts.contents("part") == {"a": empty}
