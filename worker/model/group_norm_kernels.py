"""Group norms over channels-last features, in Triton: `moments`, then `finish`, then `apply`.

Each image is divided among programs in the same way whatever the batch, so its result does not depend on the batch.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN201, N803  Triton's own conventions

import triton
import triton.language as tl


@triton.jit
def moments(x, means, squares, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Mean, and sum of squared differences from it, of each channel over ROWS pixels: one part of an image.

    `x` (parts * ROWS, channels), of any float dtype; `means` and `squares` (parts, channels), float32.
    """
    blocks = tl.cdiv(channels, BLOCK)
    part = (tl.program_id(0) // blocks).to(tl.int64)
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    rows = part * ROWS + tl.arange(0, ROWS)
    inside = columns < channels
    values = tl.load(x + rows[:, None] * channels + columns[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / ROWS
    differences = values - mean[None, :]
    found = part * channels + columns
    tl.store(means + found, mean, mask=inside)
    tl.store(squares + found, tl.sum(differences * differences, axis=0), mask=inside)


@triton.jit
def finish(
    means, squares, weight, bias, shift, scales, offsets, channels, shift_stride, rows, eps,
    SHIFTED: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """What `apply` multiplies each channel by and adds to it, from the moments of one group of one image.

    `shift` (images or 1, channels) is added to the features before they are normalized. `scales` and `offsets`
    (images, channels), float32. WIDTH channels a group, PADDED to a power of two; PARTS parts, so many AT_ONCE.
    """
    image = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, PADDED)
    inside = lanes < WIDTH
    columns = tl.program_id(1) * WIDTH + lanes
    sums = tl.zeros((PADDED,), tl.float32)
    for start in range(0, PARTS, AT_ONCE):
        numbers = start + tl.arange(0, AT_ONCE)
        mask = (numbers < PARTS)[:, None] & inside[None, :]
        places = (image * PARTS + numbers)[:, None] * channels + columns[None, :]
        sums += tl.sum(tl.load(means + places, mask=mask, other=0.0), axis=0)
    added = tl.zeros((PADDED,), tl.float32)
    if SHIFTED:
        added = tl.load(shift + image * shift_stride + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(tl.where(inside, sums / PARTS + added, 0.0), axis=0) / WIDTH
    between = tl.zeros((PADDED,), tl.float32)
    within = tl.zeros((PADDED,), tl.float32)
    for start in range(0, PARTS, AT_ONCE):
        numbers = start + tl.arange(0, AT_ONCE)
        mask = (numbers < PARTS)[:, None] & inside[None, :]
        places = (image * PARTS + numbers)[:, None] * channels + columns[None, :]
        differences = tl.load(means + places, mask=mask, other=0.0) + added[None, :] - mean
        between += tl.sum(tl.where(mask, differences * differences, 0.0), axis=0)
        within += tl.sum(tl.load(squares + places, mask=mask, other=0.0), axis=0)
    variance = (tl.sum(between, axis=0) * rows + tl.sum(within, axis=0)) / (PARTS * rows * WIDTH)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    offset = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32) + (added - mean) * scale
    tl.store(scales + image * channels + columns, scale, mask=inside)
    tl.store(offsets + image * channels + columns, offset, mask=inside)


@triton.jit
def apply(x, scales, offsets, y, parts, channels, SILU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """`x` times its channel's scale, plus its offset, and SiLU of that; `y` has the shape and dtype of `x`,
    (images * parts * ROWS, channels)."""
    blocks = tl.cdiv(channels, BLOCK)
    part = (tl.program_id(0) // blocks).to(tl.int64)
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    rows = part * ROWS + tl.arange(0, ROWS)
    inside = columns < channels
    image = part // parts
    scale = tl.load(scales + image * channels + columns, mask=inside, other=0.0)
    offset = tl.load(offsets + image * channels + columns, mask=inside, other=0.0)
    places = rows[:, None] * channels + columns[None, :]
    values = tl.load(x + places, mask=inside[None, :], other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
    if SILU:
        values = values / (1.0 + tl.exp(-values))
    tl.store(y + places, values.to(y.dtype.element_ty), mask=inside[None, :])
