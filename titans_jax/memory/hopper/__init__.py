# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory's scan as kernels for Hopper GPUs, of the two-layer MLP.

Mosaic GPU has no product of any shape, so these kernels are written for one
network (M(x) = x + g * LN(gelu(x W_1) W_2)) and live beside it, not in
`pallas_kernels`. They use the tensor cores (`wgmma`).

A block of threads owns a head of up to 64 channels. The hidden units are cut into
tiles of 64; a warpgroup owns some of them, with their rows of W_1^T, W_2 and of both
momenta: [64, D] each. Everything a hidden unit needs is then local to its warpgroup,
but for the sums over all hidden units, f(k), f(q) and, with a bound, |delta_1|; those,
and what is done to whole rows (LN of f(k), the loss), are the first warpgroup's.
Activations are kept transposed, hidden units by tokens, so a tile fills a `wgmma`
whatever the chunk size.

A head of 96 or 128 channels is split over a cluster of blocks, two tiles each. What
all hidden units add up to is then the sum of the blocks' parts: once a chunk each
writes its part of f(k), or, in the backward pass, of delta_2's cotangent, to main
memory, meets the others and adds up all (with a bound once more for |delta_1|). f(q)
leaves in parts, which XLA adds. Every block's first warpgroup then does the same to
whole rows, which have too many channels for registers and are taken in two panels.

What lies where: weights are the sum of a bfloat16 part in shared memory, which
the products take, and of what its rounding left, in registers: together 16 bits
of mantissa. Momentum is bfloat16 in shared memory: it decays, and with it what
rounding did to it. Chunks come by TMA while the last one is finished.

The dual form's coefficients come from kernels of their own (`coefficients`).

The forward kernel keeps its state before every few chunks. In the backward pass a
second kernel takes the state's cotangent from chunk to chunk; all else is XLA's,
for a span of chunks at once.
"""

from titans_jax.memory.hopper.fused import budget
from titans_jax.memory.hopper.fused import choose_span
from titans_jax.memory.hopper.fused import KERNELS
from titans_jax.memory.hopper.fused import ROUNDING
from titans_jax.memory.hopper.fused import scan
from titans_jax.memory.hopper.shapes import CHUNKS
from titans_jax.memory.hopper.shapes import why_not
from titans_jax.memory.hopper.shapes import why_not_device
from titans_jax.memory.hopper.shapes import why_not_rule
from titans_jax.memory.hopper.shapes import why_not_shape
from titans_jax.memory.hopper.shapes import why_not_unasked
from titans_jax.memory.hopper.shapes import WIDTHS
from titans_jax.memory.hopper.tiles import plgpu

__all__ = (
    "CHUNKS",
    "KERNELS",
    "ROUNDING",
    "WIDTHS",
    "budget",
    "choose_span",
    "plgpu",
    "scan",
    "why_not",
    "why_not_device",
    "why_not_rule",
    "why_not_shape",
    "why_not_unasked",
)
