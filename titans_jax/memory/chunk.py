# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The learning rule over one chunk of one head, in its dual form (v1 §3.2).

A dense layer's gradient for one token is an outer product, u_j = a_j (x)
delta_j, of the layer's input and the gradient at its output. So a chunk's
gradients are two matrices per layer, the weights of single tokens are never
materialised, and a layer applied to a query-side activation X reads

    beta * (X W_0) + f * (X S_0) - (G * (X A^T)) Delta.

Everything here is for one batch row and one head, on arrays without either
axis; `step` is what a scan runs, whichever way the scan itself is run.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax.memory import networks
from titans_jax.memory import products
from titans_jax.memory import rule

Array = jax.Array
Weights = tuple[Array, ...]


class Carry(NamedTuple):
  """Weights W and momentum S (None without momentum), one array per layer."""

  weights: Weights
  momentum: Weights | None


class Chunk(NamedTuple):
  """The tokens of one chunk.

  Attributes:
    queries: [b, D]; None where nothing is read.
    keys: [b, D].
    values: [b, D].
    forget: alpha of each layer, a tuple of L arrays [b, 1] or [b, d_out].
    learning_rate: theta [b, L].
    momentum: eta [b, L], or None.
    written: bool [b], the tokens that the memory learns from.
    closes: bool [], whether the chunk's update enters the carry; None: it does.
    resets: bool [], whether a document starts with the chunk; None: it does not.
  """

  queries: Array | None
  keys: Array
  values: Array
  forget: tuple[Array, ...]
  learning_rate: Array
  momentum: Array | None
  written: Array
  closes: Array | None = None
  resets: Array | None = None

  def gates(self, layer: int) -> rule.ChunkGates:
    return rule.ChunkGates(
        forget=self.forget[layer],
        learning_rate=self.learning_rate[:, layer],
        momentum=None if self.momentum is None else self.momentum[:, layer],
    )


class Constants(NamedTuple):
  """What all chunks share: the network's slow parameters and, where documents
  start inside the scan, the state they start from."""

  params: networks.Params
  initial: Carry | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
  """The options of the learning rule; part of the function, like the chunk size.

  Attributes:
    net: the memory network M.
    max_grad_norm: bound c on the Frobenius norm of one token's inner gradient
      of one layer, delta_j *= min(1, c / (|a_j| |delta_j|)); None: no bound.
    gates_per_chunk: the gates of a chunk's first token hold for all of it.
    dtype: dtype of the products' operands; None: as they come.
  """

  net: Any
  max_grad_norm: float | None = None
  gates_per_chunk: bool = False
  dtype: Any = None

  def __post_init__(self):
    if self.max_grad_norm is not None and self.max_grad_norm <= 0:
      raise ValueError(
          f"max_grad_norm must be positive or None, got {self.max_grad_norm}."
      )


def hold_first(chunk: Chunk) -> Chunk:
  """Lets the gates of the chunk's first token hold for the whole chunk."""

  def hold(gate):
    return jnp.broadcast_to(gate[:1], gate.shape)

  return chunk._replace(
      forget=jax.tree.map(hold, chunk.forget),
      learning_rate=hold(chunk.learning_rate),
      momentum=None if chunk.momentum is None else hold(chunk.momentum),
  )


def linearize(
    options: Rule,
    params: networks.Params,
    weights: Weights,
    keys: Array,
    values: Array,
) -> tuple[Weights, Weights, Array]:
  """Returns the inner gradients of all tokens at the given weights.

  A zero probe is added to every dense layer's output; the gradient of the
  chunk's summed loss with respect to the probes is each token's delta, for any
  network of dense layers and functions that act on rows.

  Args:
    options: the rule.
    params: slow parameters of the network.
    weights: L arrays [d_in, d_out].
    keys: [b, D].
    values: [b, D].

  Returns:
    Layer inputs A, L arrays [b, d_in]; deltas, L arrays [b, d_out]; and the
    loss of every token, [b] (v1 equation 12).
  """

  def loss_fn(probes):
    inputs = [None] * len(weights)

    def dense(layer, x):
      inputs[layer] = x
      y = products.matmul(x, weights[layer], options.dtype)
      return y + probes[layer]

    error = options.net.apply(dense, keys, params) - values
    loss = jnp.sum(error * error, axis=-1)
    return jnp.sum(loss), (tuple(inputs), loss)

  probes = tuple(
      jnp.zeros((keys.shape[0], w.shape[1]), products.at_least_float32(w.dtype))
      for w in weights
  )
  deltas, (inputs, loss) = jax.grad(loss_fn, has_aux=True)(probes)
  if options.max_grad_norm is not None:
    deltas = tuple(
        _clip(a, delta, options.max_grad_norm)
        for a, delta in zip(inputs, deltas)
    )
  return inputs, deltas, loss


def _clip(inputs: Array, deltas: Array, bound: float) -> Array:
  """Bounds |a_j (x) delta_j| = |a_j| |delta_j|, row by row."""
  square = jnp.sum(inputs * inputs, -1) * jnp.sum(deltas * deltas, -1)
  # sqrt and the division only ever see values above the bound, so that their
  # derivatives stay finite for a token without gradient.
  above = square > bound * bound
  scale = jnp.where(
      above, bound * jax.lax.rsqrt(jnp.where(above, square, 1)), 1
  )
  return deltas * scale[:, None]


def _weigh(gradients: Array, scores: Array, deltas: Array, dtype) -> Array:
  """Returns (G * scores) Delta; elementwise in the channel if G is."""
  if gradients.shape[-1] == 1:
    return products.matmul(gradients[..., 0] * scores, deltas, dtype)
  return jnp.sum(gradients * scores[..., None] * deltas, axis=1)


def read(
    options: Rule,
    params: networks.Params,
    carry: Carry,
    coefficients: tuple[rule.Coefficients, ...],
    inputs: Weights,
    deltas: Weights,
    queries: Array,
) -> Array:
  """Returns M_{W_t}(q_t) for the tokens t of a chunk (v1 equation 15).

  Args:
    options: the rule.
    params: slow parameters of the network.
    carry: weights and momentum at the chunk's start.
    coefficients: of every layer, for the tokens t.
    inputs: layer inputs A of the chunk's tokens, L arrays [b, d_in].
    deltas: their deltas, L arrays [b, d_out].
    queries: [t, D].
  """

  def dense(layer, x):
    c = coefficients[layer]
    y = c.weights * products.matmul(x, carry.weights[layer], options.dtype)
    if c.momentum is not None:
      y += c.momentum * products.matmul(x, carry.momentum[layer], options.dtype)
    scores = products.matmul_nt(x, inputs[layer], options.dtype)
    return y - _weigh(c.gradients, scores, deltas[layer], options.dtype)

  return options.net.apply(dense, queries, params)


def apply_update(
    options: Rule,
    carry: Carry,
    coefficients: tuple[rule.Coefficients, ...],
    last: tuple[rule.LastMomentum | None, ...],
    inputs: Weights,
    deltas: Weights,
) -> Carry:
  """Returns W_t and S_t, given the coefficients of token t of every layer."""
  weights, momentum = [], []
  for layer, (c, last_s) in enumerate(zip(coefficients, last)):
    a, delta = inputs[layer], deltas[layer]
    w = c.weights * carry.weights[layer]
    w -= products.matmul_tn(a, c.gradients * delta, options.dtype)
    if carry.momentum is not None and last_s is not None:
      s = carry.momentum[layer]
      w += jnp.asarray(c.momentum) * s
      update = products.matmul_tn(
          a, last_s.gradients[:, None] * delta, options.dtype
      )
      momentum.append(last_s.momentum * s - update)
    weights.append(w)
  return Carry(
      tuple(weights), None if carry.momentum is None else tuple(momentum)
  )


def _unless_closed(coefficients, last, closes):
  """Makes a chunk's last coefficients those of no update unless it closes."""
  coefficients = rule.Coefficients(
      weights=jnp.where(closes, coefficients.weights, 1),
      momentum=None
      if last is None
      else jnp.where(closes, coefficients.momentum, 0),
      gradients=jnp.where(closes, coefficients.gradients, 0),
  )
  if last is not None:
    last = rule.LastMomentum(
        momentum=jnp.where(closes, last.momentum, 1),
        gradients=jnp.where(closes, last.gradients, 0),
    )
  return coefficients, last


def step(
    options: Rule, carry: Carry, chunk: Chunk, constants: Constants
) -> tuple[Carry, tuple[Array, Array]]:
  """Reads and learns one chunk: the step that every scan runs.

  Args:
    options: the rule.
    carry: weights and momentum at the chunk's start.
    chunk: its tokens.
    constants: what all chunks share.

  Returns:
    The carry at the chunk's end; outputs [b, D]; and the inner loss of every
    token at the chunk's start [b], its surprise.
  """
  params = constants.params
  if chunk.resets is not None:
    carry = jax.tree.map(
        lambda start, x: jnp.where(chunk.resets, start, x),
        constants.initial,
        carry,
    )
  if options.gates_per_chunk:
    chunk = hold_first(chunk)
  inputs, deltas, loss = linearize(
      options, params, carry.weights, chunk.keys, chunk.values
  )
  per_token, at_end, last_momentum = [], [], []
  for layer in range(len(carry.weights)):
    coefficients, last = rule.coefficients(chunk.gates(layer), chunk.written)
    per_token.append(coefficients)
    end = jax.tree.map(lambda c: c[-1], coefficients)
    if chunk.closes is not None:
      end, last = _unless_closed(end, last, chunk.closes)
    at_end.append(end)
    last_momentum.append(last)
  outputs = read(
      options,
      params,
      carry,
      tuple(per_token),
      inputs,
      deltas,
      chunk.queries,
  )
  carry = apply_update(
      options, carry, tuple(at_end), tuple(last_momentum), inputs, deltas
  )
  return carry, (outputs, loss)
