# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Gates as users give them, and tokens as the rule takes them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import networks
from titans_jax.memory import products

Array = jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["forget", "learning_rate", "momentum"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Gates:
  """The rule's data-dependent gates (v1 equations 13 and 14).

  Each is [B, T, H], shared by the memory's layers, or [B, T, H, L].

  Attributes:
    forget: alpha in [0, 1], the share of W that is forgotten; a tuple of L
      arrays [B, T, H, d_out] lets every output channel forget at its own rate;
      None: nothing is forgotten.
    learning_rate: theta >= 0, the weight of the momentary surprise.
    momentum: eta in [0, 1], the share of past surprise that is kept; None: the
      rule without momentum, whose state has no S.
  """

  forget: Array | tuple[Array, ...] | None
  learning_rate: Array
  momentum: Array | None = None


def make_tokens(
    net: networks.Network,
    queries: Array | None,
    keys: Array,
    values: Array,
    gates: Gates,
) -> chunk_lib.Chunk:
  """Returns the tokens of a call with every gate in its full form.

  Raises:
    ValueError: a gate of another shape than `Gates` says.
  """
  batch, length, num_heads, head_dim = keys.shape
  layers = net.layer_shapes(head_dim)
  dtype = products.at_least_float32(keys.dtype)
  shared = (batch, length, num_heads)

  def per_layer(name, gate):
    if gate.shape not in (shared, (*shared, len(layers))):
      raise ValueError(
          f"gates.{name} must have shape {shared} or {(*shared, len(layers))},"
          f" got {gate.shape}."
      )
    if gate.ndim == 3:
      gate = gate[..., None]
    return jnp.broadcast_to(gate, (*shared, len(layers))).astype(dtype)

  forget = gates.forget
  if forget is None:
    forget = jnp.zeros(shared, dtype)
  if isinstance(forget, (tuple, list)):
    expected = [(*shared, d_out) for _, d_out in layers]
    if [f.shape for f in forget] != expected:
      raise ValueError(
          "gates.forget per channel must be a tuple of arrays of shapes"
          f" {expected}, got {[f.shape for f in forget]}."
      )
    forget = tuple(f.astype(dtype) for f in forget)
  else:
    forget = per_layer("forget", forget)
    forget = tuple(forget[..., i : i + 1] for i in range(len(layers)))
  return chunk_lib.Chunk(
      queries=None if queries is None else queries.astype(dtype),
      keys=keys.astype(dtype),
      values=values.astype(dtype),
      forget=forget,
      learning_rate=per_layer("learning_rate", gates.learning_rate),
      momentum=None
      if gates.momentum is None
      else per_layer("momentum", gates.momentum),
      written=None,
  )
