"""The compiler's command lines: a table of flags for each network and card, with overrides.

The flags are those of the vendor's recipe for this model; `-aic-hw-version` is what the device says of itself.
"""

import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from services.core.model.errors import SettingsError
from worker import group_guard
from worker.pipeline import CompileFailed
from worker.pipelines.ai100.cards import NETWORKS, TEXT_ENCODER, UNET, VAE_DECODER, VAE_ENCODER, Card
from worker.pipelines.ai100.sdk import Sdk

PROGRAM = "programqpc.bin"
COMMON = ("-aic-hw", "-convert-to-fp16", "-compile-only", "-aic-num-of-instances=1", "-aic-perf-warnings")
FLAGS = {
    TEXT_ENCODER: (),
    UNET: ("-mos=2", "-ols=1"),
    VAE_DECODER: ("-multicast-weights", "-allocator-dealloc-delay=4", "-aic-enable-depth-first"),
    VAE_ENCODER: (),
}
# The older compiler has numbers for the generations of the hardware.
HARDWARE = {"qaic-compile": {"ai100": "ai100", "ai200": "ai200"}, "qaic-exec": {"ai100": "2.0"}}
LAST_LINES = 5

Say = Callable[[str], None]
Overrides = Mapping[str, tuple[str, ...]]


def read_overrides(text: str) -> Overrides:
    """`unet: -mos=1 -ols=2; vae_decoder: !-multicast-weights`: a flag replaces the table's of that name or is added,
    and one after ! is left out. Raises SettingsError."""
    found: dict[str, tuple[str, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        network, colon, flags = part.partition(":")
        words = tuple(shlex.split(flags))
        if not colon or network.strip() not in FLAGS or not all(word.lstrip("!").startswith("-") for word in words):
            raise SettingsError(
                f"PRESSWORK_AI100_FLAGS has {part!r}; it must be flags of the compiler for a network, such as"
                f" unet: -mos=1 -ols=2; the networks are {', '.join(FLAGS)}."
            )
        found[network.strip()] = words
    return found


def flags(network: str, card: Card, cores: int, batch: int, overrides: Overrides) -> tuple[str, ...]:
    """What the compiler is told of a network, but for files and hardware. `batch` is its number of rows."""
    told = [*COMMON, f"-aic-num-cores={cores}", f"-stats-batchsize={batch}", *FLAGS[network]]
    if network == VAE_DECODER:
        told.append(f"-aic-depth-first-mem={card.depth_first_mem}")
    for word in overrides.get(network, ()):
        name = word.lstrip("!").partition("=")[0]
        told = [one for one in told if one.partition("=")[0] != name]
        if not word.startswith("!"):
            told.append(word)
    return tuple(told)


def command(compiler: Path, hardware: str, told: tuple[str, ...], graph: Path, folder: Path) -> list[str]:
    """Raises CompileFailed if this compiler does not know the hardware."""
    versions = HARDWARE.get(compiler.name, {})
    if hardware not in versions:
        raise CompileFailed(f"{compiler.name} cannot compile for {hardware}; install an SDK with qaic-compile.")
    return [
        str(compiler), f"-m={graph}", f"-aic-hw-version={versions[hardware]}", *told, f"-aic-binary-dir={folder}"
    ]  # fmt: skip


def compile_into(folder: Path, sdk: Sdk, hardware: str, told: tuple[str, ...], graph: Path, say: Say) -> None:
    """Writes the program of a graph to `folder` and has the SDK check it. `say` gets the compiler's lines as they come.
    The compiler, which works for minutes, ends with this process.

    Raises:
        SdkMissing: there is no compiler.
        CompileFailed: it fails, or its program is not sound.
    """
    made = folder / "qpc"
    lines: list[str] = []
    asked = command(sdk.compiler(), hardware, told, graph, made)
    with subprocess.Popen(
        group_guard.bound(asked), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            lines.append(line.rstrip())
            say(lines[-1])
    if run.returncode != 0 or not (made / PROGRAM).is_file():
        last = " | ".join(filter(None, lines[-LAST_LINES:])) or f"it ended with {run.returncode}"
        raise CompileFailed(
            f"{asked[0]} could not compile {graph.name}: {last}; PRESSWORK_AI100_FLAGS changes its flags."
        )
    (made / PROGRAM).replace(folder / PROGRAM)
    shutil.rmtree(made)
    validate(sdk, folder / PROGRAM)


def validate(sdk: Sdk, program: Path) -> None:
    """Has qaic-qpc check a program, where it is installed. Raises CompileFailed."""
    tool = sdk.tool("qaic-qpc")
    if tool is None:
        return
    command = group_guard.bound([tool, "validate", "-i", program])
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        last = " ".join((asked.stderr or asked.stdout).split()[-30:])
        raise CompileFailed(f"qaic-qpc finds {program} unsound: {last}; delete it, and compile it again.")


def rows(network: str, batch: int) -> int:
    """The rows of a network's input for `batch` images: a U-Net has both guidance halves."""
    return 2 * batch if network == UNET else batch


assert set(NETWORKS) < set(FLAGS)
