"""What can go wrong on a Cloud AI 100 is said in a sentence, and blames no prompt."""

import numpy as np
import pytest

from services.core.model.errors import SettingsError
from tests.ai100 import Open, drawn, specs
from worker.pipeline import Batch, CompileFailed, DeviceSick
from worker.pipelines.ai100 import cards
from worker.pipelines.ai100.programs import Programs
from worker.pipelines.ai100_stand_in import machine
from worker.pipelines.ai100_stand_in import qaicrt as stand_in


def test_programs_of_other_sizes_make_room_where_memory_is_short(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the other size are the same files here, which spares an export."""
    pipeline = opened()
    before = drawn(pipeline, specs(1))
    station, device, needed = pipeline.ai100.stations[0], machine.device(0), machine.device(0).mib_used
    for verb in ("find", "graph"):
        told = getattr(Programs, verb)
        monkeypatch.setattr(Programs, verb, lambda self, name, _, *rest, told=told: told(self, name, (64, 64), *rest))
    monkeypatch.setenv("AI100_STAND_IN_MEMORY", str(needed))
    text = station.session("text_encoder", (64, 64))
    for network in cards.NETWORKS:
        station.session(network, (128, 128))
    assert station.session("text_encoder", (128, 128)) is text, "one for all sizes"
    assert device.mib_used == needed
    assert drawn(pipeline, specs(1)) == before
    assert device.mib_used == needed
    monkeypatch.setenv("AI100_STAND_IN_MEMORY", str(needed - 1))
    with pytest.raises(SettingsError, match=f"of {needed - 1} MiB free.*stop"):
        [station.session(network, (128, 128)) for network in cards.NETWORKS]


def test_a_program_that_cannot_be_activated_is_told_with_what_is_free(opened: Open) -> None:
    pipeline = opened()
    machine.device(0).cores_used += 3  # of another process
    with pytest.raises(CompileFailed, match=r"it takes 14 cores and 11 are free.*QS_ERROR"):
        drawn(pipeline, specs(1))


FAULTS = {
    "activation": (CompileFailed, "QS_ERROR"),
    "held": (
        CompileFailed,
        r"on device 0 \(QS_BUSY\); another process holds the device: stop it, or.*PRESSWORK_DEVICE",
    ),
    "forbidden": (CompileFailed, r"on device 0 \(QS_PERM\).*group `qaic`.*PRESSWORK_ACCEL_GROUP"),
    "shape": (SettingsError, "another batch, size or model.*ai100 compile"),
    "busy": (SettingsError, "1 cores free.*stop.*PRESSWORK_DEVICE"),
    "memory": (SettingsError, "1 of 16384 MiB free.*stop"),
    "permission": (SettingsError, "group `qaic`.*PRESSWORK_ACCEL_GROUP"),
    "lost@3": (DeviceSick, "QS_DEV_ERROR.*reset"),
    "timeout@4": (DeviceSick, "QS_ERROR.*did not answer.*reset"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_the_device_is_one_sentence_with_what_to_do(opened: Open, fault: str) -> None:
    error, words = FAULTS[fault]
    with pytest.raises(error, match=words) as raised:
        drawn(opened(faults=fault), specs(2))
    assert "\n" not in str(raised.value)


def test_a_lost_device_stays_lost_and_another_process_finds_it_well(opened: Open) -> None:
    pipeline = opened(faults="lost@3")
    for _ in range(2):
        with pytest.raises(DeviceSick):
            drawn(pipeline, specs(2))
    machine.reset()
    assert len(drawn(opened(faults=""), specs(2))) == 2


BAD_SETTINGS = {
    "no SDK": ({"PRESSWORK_AI100_SDK": "/nowhere"}, "no qaic-util.*install"),
    "14 cores": ({"PRESSWORK_AI100_PLACEMENT": "text_encoder+unet+vae_decoder=16"}, "takes 16 cores.*has 14; use"),
    "no such device": ({"PRESSWORK_DEVICE": "qaic:3"}, "names device 3; there are 0"),
    "a GPU": ({"PRESSWORK_DEVICE": "cuda"}, "it can be qaic:0"),
    "float32": ({"PRESSWORK_PRECISION": "fp32"}, "only be fp16"),
    "flags": ({"PRESSWORK_AI100_FLAGS": "unit: -mos=1"}, "PRESSWORK_AI100_FLAGS"),
}


@pytest.mark.parametrize(("settings", "words"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_each_bad_setting_is_one_sentence_with_what_to_do(opened: Open, settings: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        opened(settings)
    assert "\n" not in str(raised.value)


def test_a_program_is_not_deactivated_while_something_of_it_runs(opened: Open) -> None:
    pipeline = opened()
    drawn(pipeline, specs(1))
    session = pipeline.ai100.stations[0].session("vae_decoder", (64, 64))
    held = session._rt.ExecObj(session.device.context, session._program)
    with pytest.raises(DeviceSick, match=r"cannot be deactivated.*QS_INVAL"):
        drawn(pipeline, specs(1))
    del held


def test_the_canary_tries_every_device_and_one_sick_device_is_found(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = opened({"PRESSWORK_DEVICE": "qaic:0,1"}, devices="2")
    alone = Batch(specs(1)[0].shape, specs(1) * 4, 1)
    pipeline.render(alone, lambda step: None)
    compute = stand_in.Program.compute

    def sick(program: stand_in.Program, buffers: list[stand_in.QBuffer]) -> list[np.ndarray]:
        found = compute(program, buffers)
        bad = program.device.number == 1 and program.qpc.header.network == "unet"
        return [one * np.float32("nan") for one in found] if bad else found

    monkeypatch.setattr(stand_in.Program, "compute", sick)
    with pytest.raises(DeviceSick, match="that another one drew"):
        pipeline.render(alone, lambda step: None)


def test_a_program_that_no_longer_fits_when_it_is_needed_again_is_no_prompt_s_fault(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process took the memory since: neither a smaller batch nor another prompt would help."""
    pipeline = opened()
    usual = drawn(pipeline, specs(1))
    pipeline.ai100.stations[0].forget((64, 64))
    machine.device(0).mib_used += machine.card().memory_mib
    with pytest.raises(CompileFailed, match=r"MiB free and the program \w+ takes.*stop what else runs"):
        drawn(pipeline, specs(1))
    machine.device(0).mib_used -= machine.card().memory_mib
    assert drawn(pipeline, specs(1)) == usual


@pytest.mark.parametrize("fault", ["activation", "held", "forbidden", "lost@3"])
def test_a_group_of_programs_tells_of_its_faults_too(opened: Open, fault: str) -> None:
    with pytest.raises((SettingsError, CompileFailed, DeviceSick), match=r"QS_\w+\); .*\.$"):
        drawn(opened({"PRESSWORK_AI100_DATA_PATH": "1"}, faults=fault), specs(2))
