"""GEGLU in Triton: a matrix product with both halves of its result in registers, of which only their product is stored.

A row's result does not depend on how many rows there are: every tile sums over its columns in the same order.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN201, N803  Triton's own conventions

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def geglu(
    x, weight, bias, y, rows, width,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AT_ONCE: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """`y` (rows, width) = hidden * gelu(gate), both (rows, width) halves of x times weight's transpose, plus bias.

    `x` (rows, INPUTS) and `weight` (2 * width, INPUTS) are contiguous and of one dtype, `bias` (2 * width). A program
    makes ROWS x COLUMNS of `y`, from AT_ONCE inputs at a time; TOGETHER tiles of rows share their columns of weights.
    """
    across = tl.cdiv(width, COLUMNS)
    group = tl.program_id(0) // (TOGETHER * across)
    first = group * TOGETHER
    high = min(tl.cdiv(rows, ROWS) - first, TOGETHER)
    within = tl.program_id(0) % (TOGETHER * across)
    places = ((first + within % high) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = within // high * COLUMNS + tl.arange(0, COLUMNS)
    inputs = tl.arange(0, AT_ONCE)
    there, wanted = places < rows, columns < width
    from_x = x + places[:, None] * INPUTS + inputs[None, :]
    from_hidden = weight + columns[None, :] * INPUTS + inputs[:, None]
    from_gate = from_hidden + width * INPUTS
    hidden = tl.zeros((ROWS, COLUMNS), tl.float32)
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, INPUTS, AT_ONCE):
        left = inputs < (AT_ONCE if INPUTS % AT_ONCE == 0 else INPUTS - start)
        values = tl.load(from_x + start, mask=there[:, None] & left[None, :], other=0.0)
        mask = left[:, None] & wanted[None, :]
        hidden = tl.dot(values, tl.load(from_hidden + start, mask=mask, other=0.0), hidden, input_precision="ieee")
        gate = tl.dot(values, tl.load(from_gate + start, mask=mask, other=0.0), gate, input_precision="ieee")
    hidden += tl.load(bias + columns, mask=wanted, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias + width + columns, mask=wanted, other=0.0).to(tl.float32)[None, :]
    found = hidden * (0.5 * gate * (1.0 + tl.erf(gate * SQRT_HALF)))
    tl.store(
        y + places[:, None] * width + columns[None, :], found.to(y.dtype.element_ty),
        mask=there[:, None] & wanted[None, :],
    )  # fmt: skip
