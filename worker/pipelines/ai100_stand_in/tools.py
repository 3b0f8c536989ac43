"""The stand-in's qaic-compile, qaic-exec, qaic-qpc and qaic-util. They take the flags of the SDK's, and print what
theirs do where the worker reads it."""

import os
import sys
from pathlib import Path

from worker.pipelines.ai100_stand_in import machine

SKUS = {"standard": "PCIe", "pro": "PCIe Pro", "ultra": "PCIe Ultra"}


def main(tool: str, arguments: list[str]) -> int:
    """Runs a tool; its exit status."""
    try:
        return {"qaic-qpc": _qpc, "qaic-util": _util}.get(tool, _compile)(arguments)
    except (ValueError, OSError, KeyError) as error:
        sys.stderr.write(f"{tool} (stand-in): {error}\n")
        return 1


def _compile(arguments: list[str]) -> int:
    """Packs the graph; nothing is compiled."""
    from worker.pipelines.ai100_stand_in import container  # imports onnx, which listing devices need not wait for

    given = dict(argument.lstrip("-").partition("=")[::2] for argument in arguments)
    graph, folder = Path(given["m"]), Path(given["aic-binary-dir"])
    say(f"{machine.NAME}: packing {graph.name}; nothing is compiled")
    if folder.exists():
        raise ValueError(f"{folder} exists")
    cores = int(given.get("aic-num-cores", "1"))
    header = container.pack(graph, folder, cores, ".".join(map(str, machine.version())))
    say(f"{machine.NAME}: {header.network} for {cores} cores, {header.batch} image(s) a run")
    return 0


def _qpc(arguments: list[str]) -> int:
    if arguments[:2] != ["validate", "-i"] or len(arguments) != 3:
        raise ValueError("usage: qaic-qpc validate -i programqpc.bin")
    from worker.pipelines.ai100_stand_in import container

    header = container.read(Path(arguments[2]))
    say(f"{container.KIND}\nNumber of NSP required: {header.cores}\nQPC validation successful")
    return 0


def _util(arguments: list[str]) -> int:
    wanted = int(arguments[arguments.index("-d") + 1]) if "-d" in arguments else None
    card = machine.card()
    for number in machine.numbers():
        if wanted is None or number == wanted:
            one = machine.device(number)
            status = "Error" if machine.fault("permission") else "Ready"
            say(f"QID {number}\n\tStatus:{status}\n\tBoard serial:{machine.NAME}")
            if status == "Ready":
                say(
                    f"\tFW IMAGE_VARIANT:AIC100.{machine.NAME}\n\tDram Total:{card.memory_mib} MB\n"
                    f"\tDram Free:{one.mib_free} MB\n\tNsp Total:{card.cores}\n\tNsp Free:{one.cores_free}\n"
                    f"\tSku Type:{SKUS[card.key]}"
                )
    return 0


def say(text: str) -> None:
    sys.stdout.write(text + os.linesep)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
