# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The neural long-term memory over sequences: `scan` and `read`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import networks
from titans_jax.memory import reference
from titans_jax.memory import scanning
from titans_jax.memory import state as state_lib
from titans_jax.memory import stepping
from titans_jax.memory import tokens as tokens_lib

Array = jax.Array
Gates = tokens_lib.Gates
MemoryState = state_lib.MemoryState


def scan(
    net: networks.Network,
    state: MemoryState,
    queries: Array,
    keys: Array,
    values: Array,
    gates: Gates,
    params: networks.Params | None = None,
    *,
    mask: Array | None = None,
    resets: Array | None = None,
    packed: bool = False,
    gates_per_chunk: bool = False,
    max_grad_norm: float | None = None,
    checkpoint_every: int | None = None,
    dtype: Any = None,
    implementation: str = "auto",
) -> tuple[Array, MemoryState]:
  """Learns a sequence token by token and reads after each token's own write.

  One call over a sequence and calls over its pieces, of whatever lengths, give
  the same outputs and the same final state.

  Args:
    net: the memory network M.
    state: from `init_state` or an earlier call.
    queries: [B, T, H, D].
    keys: [B, T, H, D].
    values: [B, T, H, D].
    gates: of every token.
    params: slow parameters of the network, leaves [H, ...]; None: its defaults.
    mask: bool [B, T], False for padding, anywhere: such a token changes nothing
      and its output is zero.
    resets: bool [B, T], first tokens of documents, where everything starts
      again; at multiples of the chunk size within the call.
    packed: a promise that no chunk is open in `state` and that tokens are
      masked only at a document's tail, as packed training data are. Saves the
      moving of tokens to chunk boundaries.
    gates_per_chunk: the gates of a chunk's first real token hold for the whole
      chunk. Like the chunk size this is part of the function.
    max_grad_norm: bound on the norm of a token's inner gradient, per layer.
    checkpoint_every: chunks per group: the backward pass keeps the state once
      per group and recomputes inside. None: one, as long as the states kept
      are small, at most about the square root of their number.
    dtype: dtype of the products' operands ("bfloat16" on accelerators); sums,
      gates and state stay in at least float32. None: as the arrays come.
    implementation: "xla" (`jax.lax.scan` over chunks), "pallas" (one kernel on
      TPU and, for what `memory.hopper` takes, on Hopper GPUs, interpreted on
      CPU, an error elsewhere), "reference" (token by token, the oracle that all
      are tested against), or "auto": the kernel where it can run, but for heads
      of more than 64 channels on GPUs (the log says so once, or why not), "xla"
      elsewhere. A call of one token is a step of its own in all but the
      reference.

  Returns:
    Outputs [B, T, H, D] in at least float32, and the state after the last
    token.

  Raises:
    ValueError: shapes that do not fit each other or the state; an unknown
      implementation; documents that start inside a chunk.
  """
  _check_shapes(net, state, queries, keys, values, mask, resets)
  options = chunk_lib.Rule(
      net=net,
      max_grad_norm=max_grad_norm,
      gates_per_chunk=gates_per_chunk,
      dtype=None if dtype is None else jnp.dtype(dtype),
      implementation="xla" if implementation == "reference" else implementation,
  )
  tokens = tokens_lib.make_tokens(net, queries, keys, values, gates)
  params = default_params(net, state, params)
  if checkpoint_every is not None and checkpoint_every < 1:
    raise ValueError(
        f"checkpoint_every must be at least 1, got {checkpoint_every}."
    )
  if packed and layout_lib.concrete(state.count) and np.any(state.count):
    raise ValueError(
        "packed=True promises that no chunk is open, but the state's rows have"
        f" {np.asarray(state.count).tolist()} tokens in theirs."
    )
  if implementation == "reference":
    if dtype is not None:
      raise ValueError(
          "implementation='reference' computes as its arrays come: dtype must"
          f" be None, got {dtype!r}."
      )
    state, tokens = state_lib.conform(state, tokens)
    return reference.scan(options, state, tokens, params, mask, resets)
  layout: layout_lib.Layout | layout_lib.Token
  if queries.shape[1] == 1 and not packed:
    layout = layout_lib.token(mask, resets, state.count)
  else:
    layout = layout_lib.align(
        queries.shape[:2],
        state.chunk_size,
        mask=mask,
        starts=resets,
        offset=None if packed else state.count,
        packed=packed,
    )
  tokens = jax.tree.map(layout.arrange, tokens)
  outputs, _, state = advance(
      options, state, tokens, params, layout, checkpoint_every
  )
  return layout.restore(outputs), state


def read(
    net: networks.Network,
    state: MemoryState,
    queries: Array,
    params: networks.Params | None = None,
    *,
    dtype: Any = None,
) -> Array:
  """Reads M_{W_t}(q) from the weights as of the last token, without update.

  Args:
    net: the memory network.
    state: of the memory.
    queries: [B, T, H, D].
    params: slow parameters, leaves [H, ...]; None: the network's defaults.
    dtype: dtype of the products' operands; None: as they come.

  Returns:
    [B, T, H, D] in at least float32.
  """
  _check_shapes(net, state, queries, queries, queries, None, None)
  options = chunk_lib.Rule(
      net, dtype=None if dtype is None else jnp.dtype(dtype)
  )
  params = default_params(net, state, params)
  return stepping.read_weights(options, state.weights, queries, params)


def advance(
    options: chunk_lib.Rule,
    state: MemoryState,
    tokens: chunk_lib.Chunk,
    params: networks.Params,
    layout: layout_lib.Layout | layout_lib.Token,
    checkpoint_every: int | None = None,
) -> tuple[Array, Array, MemoryState]:
  """Runs `scan_aligned`, or `step` where the layout is one token's."""
  state, tokens = state_lib.conform(state, tokens)
  if isinstance(layout, layout_lib.Token):
    return stepping.step(options, state, tokens, params, layout)
  return scanning.scan_aligned(
      options,
      state,
      tokens,
      params,
      layout,
      checkpoint_every=checkpoint_every,
  )


def default_params(net, state: MemoryState, params):
  """Returns the network's slow parameters, its own where None are given."""
  if params is not None:
    return params
  return net.init_params(
      num_heads=state.num_heads,
      head_dim=state.open.keys.shape[-1],
      dtype=state.open.keys.dtype,
  )


def _check_shapes(net, state, queries, keys, values, mask, resets) -> None:
  """Raises ValueError where the arguments of a call do not fit each other."""
  if keys.ndim != 4:
    raise ValueError(f"keys must have shape [B, T, H, D], got {keys.shape}.")
  for name, x in (("queries", queries), ("values", values)):
    if x.shape != keys.shape:
      raise ValueError(
          f"{name} {x.shape} and keys {keys.shape} differ in shape."
      )
  batch, length, num_heads, head_dim = keys.shape
  if length < 1:
    raise ValueError("The sequence is empty: T must be at least 1.")
  for name, x in (("mask", mask), ("resets", resets)):
    if x is not None and (x.shape != (batch, length) or x.dtype != jnp.bool_):
      raise ValueError(
          f"{name} must be bool of shape {(batch, length)}, got {x.dtype} of"
          f" shape {x.shape}."
      )
  if state.batch_size != batch:
    raise ValueError(
        f"The state holds {state.batch_size} rows, but the batch has {batch}."
    )
  weights = state.chunk_start.weights
  expected = [(num_heads, *s) for s in net.layer_shapes(head_dim)]
  if [w.shape[1:] for w in weights] != expected:
    raise ValueError(
        f"A state with weights {[w.shape[1:] for w in weights]} does not fit"
        f" {net} with {num_heads} heads of dimension {head_dim}: {expected}."
    )
