"""What Triton makes of our kernels for an sm_90, on any machine: instructions, registers, bytes moved.

`python -m worker.bench.generated` needs triton (`make kernels` installs it, into .triton) and no GPU. The shapes are
those of the full-size model at a batch of 16.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH, SIDE = 16, 64  # images, and latents a side
SM_90 = 90
WARPS = 4


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of ours with its arguments' types, its constants, and what it moves.

    `elements` are made by one program. `moved` is the bytes that a call must read and write, `before` those of the same
    by torch's compiler.
    """

    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    elements: int
    moved: int
    before: int


def kernels() -> dict[str, Kernel]:
    from worker.model import group_norm as norms
    from worker.model import group_norm_kernels

    channels, pixels = 320, SIDE * SIDE
    features = 2 * BATCH * pixels * channels * 2  # bytes, in half precision
    tall, block = norms.APPLY_ROWS, norms.BLOCK
    return {
        "group norm, moments": Kernel(
            group_norm_kernels.moments, {"x": "*fp16", "means": "*fp32", "squares": "*fp32", "channels": "i32"},
            {"ROWS": norms.MOMENT_ROWS, "BLOCK": block}, norms.MOMENT_ROWS * block, features, features,
        ),
        "group norm, apply": Kernel(
            group_norm_kernels.apply,
            {"x": "*fp16", "scales": "*fp32", "offsets": "*fp32", "y": "*fp16", "parts": "i32", "channels": "i32"},
            {"SILU": True, "ROWS": tall, "BLOCK": block}, tall * block, 2 * features, 2 * features,
        ),
    }  # fmt: skip


def generate(kernel: Kernel) -> dict[str, Any]:
    """Compiles it and counts: machine instructions by kind, those per element, registers, spilled bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = kernel.signature | dict.fromkeys(kernel.constants, "constexpr")
    # Pointers and sizes are multiples of 16 here, as they are in the model: Triton then loads 16 bytes at a time.
    names = kernel.function.arg_names
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in kernel.signature}
    source = ASTSource(kernel.function, signature, kernel.constants, divisible)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", SM_90, 32),
        options={"num_warps": WARPS},
    )  # fmt: skip
    lines = _machine_code(compiled.asm["cubin"])
    kinds = Counter(re.split(r"[.\s]", line)[0] for line in lines)
    usage = _usage(compiled.asm["cubin"])
    wide = sum(1 for line in lines if re.match(r"(LDG|STG|LDGSTS)\S*\.128", line))
    moves = sum(count for name, count in kinds.items() if name in ("LDG", "STG", "LDGSTS"))
    return {
        "instructions": len(lines),
        "registers": usage.get("REG", 0),
        "spilled": usage.get("LOCAL", 0) + usage.get("STACK", 0),
        "moves": moves,
        "wide_moves": wide,
        "per_element": round(len(lines) * WARPS * 32 / kernel.elements, 2),
        "bytes": kernel.moved,
        "bytes_before": kernel.before,
    }


def _machine_code(cubin: bytes) -> list[str]:
    """The instructions, without predicates and padding."""
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);", _tool("nvdisasm", cubin, "-c"))
    return [line for line in found if not line.startswith("NOP")]


def _usage(cubin: bytes) -> dict[str, int]:
    said = _tool("cuobjdump", cubin, "-res-usage")
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", said)}


def _tool(name: str, cubin: bytes, *options: str) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([program, *options, file.name], capture_output=True, text=True, check=True)
    return run.stdout


def main() -> int:
    sys.stdout.write(
        f"{'sm_90':22}{'instr.':>8}{'/element':>9}{'regs':>6}{'spilled':>8}{'loads':>6}{'of 16 B':>8}"
        f"{'MB moved':>9}{'before':>8}\n"
    )
    for name, kernel in kernels().items():
        found = generate(kernel)
        sys.stdout.write(
            f"{name:22}{found['instructions']:>8}{found['per_element']:>9}{found['registers']:>6}{found['spilled']:>8}"
            f"{found['moves']:>6}{found['wide_moves']:>8}{found['bytes'] / 1e6:>9.1f}"
            f"{found['bytes_before'] / 1e6:>8.1f}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
