# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory's scan over whole chunks, by `jax.lax.scan` or as one kernel."""

from __future__ import annotations

import functools
from typing import Any, Callable

from absl import logging
import jax
import jax.numpy as jnp

import pallas_kernels
from pallas_kernels import tuning
from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import hopper
from titans_jax.memory import kept
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import networks
from titans_jax.memory import sharding
from titans_jax.memory import state as state_lib

Array = jax.Array
MemoryState = state_lib.MemoryState


def scan_aligned(
    options: chunk_lib.Rule,
    state: MemoryState,
    tokens: chunk_lib.Chunk,
    params: networks.Params,
    layout: layout_lib.Layout,
    *,
    checkpoint_every: int | None = None,
) -> tuple[Array, Array, MemoryState]:
  """Scans aligned tokens, leaves [B, A, H, ...], from a state to a state.

  Returns:
    Outputs [B, A, H, D], inner losses [B, A, H], and the new state.
  """
  size = state.chunk_size
  tokens = with_written(tokens, layout)
  if layout.offset is not None:
    first = layout.offset // size * size
    tokens = state_lib.put_open(state, tokens, first)
  outputs, loss, carry = scan_chunks(
      options,
      state.chunk_start,
      state.initial,
      tokens,
      params,
      chunk_size=size,
      closes=layout.closed(size),
      resets=layout.resets(size),
      checkpoint_every=checkpoint_every,
  )
  state = state_lib.with_open(
      options, params, carry, state.initial, tokens, layout, size
  )
  return outputs, loss, state


def with_written(
    tokens: chunk_lib.Chunk, layout: layout_lib.Layout
) -> chunk_lib.Chunk:
  """Leaves the tokens that are not real ones unwritten."""
  if layout.mask is None:
    return tokens
  written = layout.mask
  if tokens.written is not None:
    written &= tokens.written
  return tokens._replace(written=written)


def scan_chunks(
    options: chunk_lib.Rule,
    carry: chunk_lib.Carry,
    initial: chunk_lib.Carry,
    tokens: chunk_lib.Chunk,
    params: networks.Params,
    *,
    chunk_size: int,
    closes: Array | None,
    resets: Array | None,
    checkpoint_every: int | None = None,
    recompute: bool = True,
) -> tuple[Array, Array, chunk_lib.Carry]:
  """Threads (W, S) through whole chunks.

  Args:
    options: the rule.
    carry: W and S at the start, leaves [B, H, ...].
    initial: those that documents start from, [1, H, ...].
    tokens: aligned, leaves [B, A, H, ...].
    params: slow parameters, leaves [H, ...].
    chunk_size: b.
    closes: bool [B, A / b] or None, as in `chunk.Chunk`.
    resets: bool [B, A / b] or None.
    checkpoint_every: chunks per group of the backward pass.
    recompute: as in `lax_scan`.

  Returns:
    Outputs [B, A, H, D], inner losses [B, A, H], and the carry at the end.
  """
  batch, size, num_heads, _ = tokens.keys.shape
  num_chunks = size // chunk_size

  def split(x):  # [B, A, H, ...] -> [B, H, N, b, ...]
    x = x.reshape(batch, num_chunks, chunk_size, *x.shape[2:])
    return jnp.moveaxis(x, 3, 1)

  def per_row(x):  # [B, N, ...] -> [B, H, N, ...]
    if x is None:
      return None
    shape = (batch, num_heads, num_chunks, *x.shape[2:])
    return jnp.broadcast_to(x[:, None], shape)

  def join(y):  # [B, H, N, b, ...] -> [B, A, H, ...]
    y = jnp.moveaxis(y, 1, 3)
    return y.reshape(batch, size, num_heads, *y.shape[4:])

  written = tokens.written
  if written is not None:
    written = written.reshape(batch, num_chunks, chunk_size)
  chunks = jax.tree.map(split, tokens._replace(written=None))._replace(
      written=per_row(written), closes=per_row(closes), resets=per_row(resets)
  )
  constants = chunk_lib.Constants(
      params=jax.tree.map(lambda p: p[None], params),
      initial=None if resets is None else initial,
  )
  per_channel = any(gate.shape[-1] != 1 for gate in tokens.forget)
  if per_channel and options.implementation == "pallas":
    raise ValueError(
        "Gates alpha per output channel have no matrix form, which the kernel"
        " is made of: implementation must be 'auto' or 'xla', got"
        f" {options.implementation!r}."
    )
  run = functools.partial(
      _scan_per_channel if per_channel else _scan_scalar,
      options,
      group=checkpoint_every,
      recompute=recompute,
  )
  carry, (outputs, loss) = sharding.over_rows_and_heads(
      run, carry, chunks, constants
  )
  return join(outputs), join(loss[..., 0, :]), carry


def _scan_per_channel(options, carry, chunks, constants, *, group, recompute):
  if options.implementation == "auto":
    reason = "gates alpha per output channel have no matrix form"
    _log_once(options, _platform(), reason)
  step = functools.partial(chunk_lib.step_per_channel, options)
  return lax_scan(
      step, carry, chunks, constants, group=group, recompute=recompute
  )


def _scan_scalar(options, carry, chunks, constants, *, group, recompute):
  """Runs `chunk.step`, whose carry has a form of its own."""
  carry = chunk_lib.turn(carry)
  if constants.initial is not None:
    constants = constants._replace(initial=chunk_lib.turn(constants.initial))
  step = chunk_lib.Step(options)

  over_chunks = chunk_lib.over_chunks
  prepared = over_chunks(functools.partial(chunk_lib.prepare, options))(chunks)

  def by_lax(carry, prepared, constants):
    return lax_scan(
        step,
        carry,
        chunk_lib.with_coefficients(prepared),
        constants,
        group=group,
        recompute=recompute,
    )

  def by_kernel(carry, prepared, constants, interpret=None):
    return pallas_kernels.fused_scan(
        step,
        carry,
        prepared,
        constants,
        group=group,
        interpret=interpret,
    )

  def by_hopper(carry, prepared, constants):
    return hopper.scan(options, carry, prepared, constants, group=group)

  arguments = carry, prepared, constants
  # Only the kernel of the devices meant is traced: that takes seconds.
  run, platform = by_lax, _platform()
  if options.implementation == "pallas":
    run = by_kernel  # Whose errors say why not; on CPU it is interpreted.
  if options.implementation == "auto" or (
      options.implementation == "pallas" and platform == "cuda"
  ):
    if platform == "cuda":
      kernel = by_hopper
      reason = hopper.why_not(options, carry, prepared)
      if options.implementation == "auto" and reason is None:
        reason = hopper.why_not_unasked(prepared)
    else:
      kernel = functools.partial(by_kernel, interpret=False)
      reason = pallas_kernels.why_not(step, *arguments)
    if options.implementation == "pallas" and reason is not None:
      raise ValueError(
          f"implementation='pallas': {reason}; 'auto' and 'xla' run it."
      )
    _log_once(options, platform, reason)
    if reason is None:
      run = functools.partial(
          jax.lax.platform_dependent, **{platform: kernel}, default=run
      )
  carry, ys = run(*arguments)
  carry = chunk_lib.turn_back(options, carry, chunks.keys.shape[-1])
  return carry, over_chunks(chunk_lib.restore)(*ys)


def _platform() -> str:
  """Returns whose kernel is asked about: NVIDIA GPUs', if these are meant."""
  return "tpu" if tuning.gpu_kind() is None else "cuda"


@functools.cache
def _log_once(
    options: chunk_lib.Rule, platform: str, reason: str | None
) -> None:
  """Says whether chunks are scanned by a kernel, and else why not."""
  if reason is None:
    logging.info(
        "%s: a kernel on %s, jax.lax.scan elsewhere.", options, platform
    )
  else:
    logging.info(
        "%s: jax.lax.scan; no kernel on %s: %s.",
        options,
        platform,
        reason.rstrip("."),
    )


def lax_scan(
    step_fn: Callable[..., Any],
    init,
    xs,
    consts,
    *,
    group: int | None = None,
    recompute: bool = True,
):
  """`jax.lax.scan` with leading axes [B, H], keeping the carry once per group.

  Args:
    step_fn: (carry, x, consts) -> (carry, y), of one batch row and head.
    init: leaves [B, H, ...].
    xs: leaves [B, H, N, ...].
    consts: leaves [B, H, ...], or of size 1 there.
    group: steps per group: reverse-mode differentiation keeps the carry once
      per group and recomputes inside. None: one step, as long as all carries
      kept are small, at most about the square root of N.
    recompute: False: keeps everything, for a caller that recomputes it all.

  Returns:
    The last carry, and ys, leaves [B, H, N, ...].
  """
  body = _over_leading_axes(step_fn, consts, depth=2)
  steps = jax.tree.leaves(xs)[0].shape[2]
  xs = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), xs)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(init))
  group = kept.choose_group(steps, group, size) if recompute else steps

  def one(carry, x):
    return body(carry, x, consts)

  def run(carry, xs):
    return jax.lax.scan(one, carry, xs)

  if group == 1:
    # Nothing but the carry is kept, and every step recomputed as it is needed.
    carry, ys = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), init, xs)
    return carry, jax.tree.map(lambda y: jnp.moveaxis(y, 0, 2), ys)
  if group == steps:
    if recompute:
      run = jax.checkpoint(run)
    carry, ys = run(init, xs)
    return carry, jax.tree.map(lambda y: jnp.moveaxis(y, 0, 2), ys)
  whole = steps // group * group
  groups = jax.tree.map(
      lambda x: x[:whole].reshape(-1, group, *x.shape[1:]), xs
  )
  # Inside a scan nothing can merge the recomputation with the forward pass.
  run_group = jax.checkpoint(run, prevent_cse=False)
  carry, ys = jax.lax.scan(run_group, init, groups)
  ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
  if whole < steps:
    rest = jax.tree.map(lambda x: x[whole:], xs)
    carry, rest = jax.checkpoint(run)(carry, rest)
    ys = jax.tree.map(lambda *y: jnp.concatenate(y), ys, rest)
  return carry, jax.tree.map(lambda y: jnp.moveaxis(y, 0, 2), ys)


def _over_leading_axes(fn, consts, depth: int):
  """Maps fn(carry, x, consts) over leading axes; consts may be of size 1."""
  if depth == 0:
    return fn
  axes = jax.tree.map(lambda c: None if c.shape[0] == 1 else 0, consts)
  squeezed = jax.tree.map(
      lambda c: jax.ShapeDtypeStruct(c.shape[1:], c.dtype), consts
  )
  inner = jax.vmap(
      _over_leading_axes(fn, squeezed, depth - 1), in_axes=(0, 0, axes)
  )

  def mapped(carry, x, consts):
    consts = jax.tree.map(lambda c: c[0] if c.shape[0] == 1 else c, consts)
    return inner(carry, x, consts)

  return mapped
