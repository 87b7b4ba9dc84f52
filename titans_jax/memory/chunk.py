# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The learning rule over one chunk of one head, in its dual form (v1 §3.2).

A dense layer's gradient for one token is an outer product, u_j = a_j (x)
delta_j, of the layer's input and the gradient at its output. So a chunk's
gradients are two matrices per layer, the weights of single tokens are never
materialised, and a layer applied to a query-side activation X reads

    beta * (X W_0) + f * (X S_0) - (G * (X A^T)) Delta.

Everything here is for one batch row and one head, on arrays without either
axis; `step` is what a scan runs, whichever way the scan itself is run. It takes
and returns the carry in the form that matrix units like (`turn`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax.memory import dense as dense_lib
from titans_jax.memory import dual
from titans_jax.memory import networks
from titans_jax.memory import products
from titans_jax.memory import rule

Array = jax.Array
Weights = tuple[Array, ...]

IMPLEMENTATIONS = ("auto", "xla", "pallas")


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
    written: bool [b], the tokens that the memory learns from; None: all.
    closes: bool [], whether the chunk's update enters the carry; None: it does.
    resets: bool [], whether a document starts with the chunk; None: it does not.
  """

  queries: Array | None
  keys: Array
  values: Array
  forget: tuple[Array, ...]
  learning_rate: Array
  momentum: Array | None
  written: Array | None
  closes: Array | None = None
  resets: Array | None = None

  def gates(self, layer: int) -> rule.ChunkGates:
    return rule.ChunkGates(
        forget=self.forget[layer],
        learning_rate=self.learning_rate[:, layer],
        momentum=None if self.momentum is None else self.momentum[:, layer],
    )


class Prepared(NamedTuple):
  """A chunk as `step` takes it, from `prepare`.

  Attributes:
    queries: [b, D].
    keys: [b, D].
    values: [b, D].
    gates: of all layers, or the coefficients of each that follow from them.
    closes: bool [1, 1], or None.
    resets: bool [1, 1], or None.
  """

  queries: Array
  keys: Array
  values: Array
  gates: dual.Gates | list[dual.Coefficients]
  closes: Array | None
  resets: Array | None


class Constants(NamedTuple):
  """What all chunks share: the network's slow parameters and, where documents
  start inside the scan, the carry they start from."""

  params: networks.Params
  initial: Any = None


@dataclasses.dataclass(frozen=True)
class Rule:
  """The options of the learning rule; part of the function, like the chunk size.

  Attributes:
    net: the memory network M.
    max_grad_norm: bound c on the Frobenius norm of one token's inner gradient
      of one layer, delta_j *= min(1, c / (|a_j| |delta_j|)); None: no bound.
    gates_per_chunk: the gates of a chunk's first token hold for all of it.
    dtype: dtype of the products' operands; None: as they come.
    implementation: how whole chunks are scanned: "xla" (`jax.lax.scan`),
      "pallas" (one kernel) or "auto" (the kernel where there is one).
  """

  net: Any
  max_grad_norm: float | None = None
  gates_per_chunk: bool = False
  dtype: Any = None
  implementation: str = "auto"

  def __post_init__(self):
    if self.max_grad_norm is not None and self.max_grad_norm <= 0:
      raise ValueError(
          f"max_grad_norm must be positive or None, got {self.max_grad_norm}."
      )
    if self.implementation not in IMPLEMENTATIONS:
      raise ValueError(
          f"implementation must be one of {IMPLEMENTATIONS}, got"
          f" {self.implementation!r}."
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


@jax.custom_vjp
def _attach(y: Array, probe: Array) -> Array:
  """Returns y as if the probe, which is zero, had been added to it."""
  del probe
  return y


_attach.defvjp(lambda y, _: (y, None), lambda _, g: (g, g))


def linearize(
    options: Rule,
    params: networks.Params,
    product: Callable[[int, Array], Array],
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
    product: (layer, x [b, d_in]) -> x W [b, d_out].
    keys: [b, D].
    values: [b, D].

  Returns:
    Layer inputs A, L arrays [b, d_in]; deltas, L arrays [b, d_out]; and the
    loss of every token, [b, 1] (v1 equation 12).
  """
  shapes = options.net.layer_shapes(keys.shape[1])

  def loss_fn(probes):
    inputs = [None] * len(shapes)

    def dense(layer, x):
      inputs[layer] = x
      return _attach(product(layer, x), probes[layer])

    loss = jnp.square(options.net.apply(dense, keys, params) - values)
    per_token = jnp.sum(jax.lax.stop_gradient(loss), axis=-1, keepdims=True)
    return jnp.sum(loss), (tuple(inputs), per_token)

  dtype = products.at_least_float32(keys.dtype)
  probes = tuple(jnp.zeros((keys.shape[0], n), dtype) for _, n in shapes)
  deltas, (inputs, loss) = jax.grad(loss_fn, has_aux=True)(probes)
  if options.max_grad_norm is not None:
    deltas = tuple(
        _clip(a, delta, options.max_grad_norm)
        for a, delta in zip(inputs, deltas)
    )
  return inputs, deltas, loss


def product_with(weights: Weights, dtype) -> Callable[[int, Array], Array]:
  """Returns the `product` of `linearize` for L weights [d_in, d_out]."""
  return lambda layer, x: products.matmul(x, weights[layer], dtype)


def _clip(inputs: Array, deltas: Array, bound: float) -> Array:
  """Bounds |a_j (x) delta_j| = |a_j| |delta_j|, row by row."""

  def square(x):
    return jnp.sum(x * x, axis=-1, keepdims=True)

  return deltas * scale_to_bound(square(inputs) * square(deltas), bound)


def scale_to_bound(square: Array, bound: float) -> Array:
  """Returns min(1, bound / norm) of squared norms."""
  # The root and the division only ever see values above the bound, so that
  # their derivatives stay finite for a token without gradient.
  above = square > bound * bound
  return jnp.where(above, bound * jax.lax.rsqrt(jnp.where(above, square, 1)), 1)


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

    def update(share, a=a, delta=delta):  # [b, c]
      # The factors act on the shorter side, as in `step`: they are rounded.
      if share.shape[1] == 1 and a.shape[1] <= delta.shape[1]:
        return products.matmul_tn(share * a, delta, options.dtype)
      return products.matmul_tn(a, share * delta, options.dtype)

    w = c.weights * carry.weights[layer] - update(c.gradients)
    if carry.momentum is not None and last_s is not None:
      s = carry.momentum[layer]
      w += jnp.asarray(c.momentum) * s
      momentum.append(last_s.momentum * s - update(last_s.gradients[:, None]))
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


def prepare(options: Rule, chunk: Chunk) -> Prepared:
  """Lays out a chunk whose gates are scalars for `step`."""
  if options.gates_per_chunk:
    chunk = hold_first(chunk)
  keep = 1 - jnp.concatenate(chunk.forget, axis=1)
  rate, eta, written = chunk.learning_rate, chunk.momentum, None
  if chunk.written is not None:
    # A token that is not written has alpha 0, theta 0, eta 1, mu 0.
    written = chunk.written[:, None]
    keep = jnp.where(written, keep, 1)
    rate = jnp.where(written, rate, 0)
    if eta is not None:
      eta = jnp.where(written, eta, 1)
    written = written.astype(keep.dtype)

  def rows(x):
    return None if x is None else dual.arrange(x).T

  gates = dual.Gates(
      rows(keep), rows(eta), rows(written), rows(rate).reshape(1, -1)
  )

  def flag(x):
    return None if x is None else x.reshape(1, 1)

  return Prepared(
      queries=dual.arrange(chunk.queries),
      keys=dual.arrange(chunk.keys),
      values=dual.arrange(chunk.values),
      gates=gates,
      closes=flag(chunk.closes),
      resets=flag(chunk.resets),
  )


def restore(outputs: Array, loss: Array) -> tuple[Array, Array]:
  """Puts results of `step` for a chunk from `prepare` in the tokens' order."""
  return dual.restore(outputs), dual.restore(loss.T).T


def with_coefficients(chunks: Prepared) -> Prepared:
  """Returns chunks [B, H, N] with coefficients, which do not depend on the carry.

  The TPU kernel makes them chunk by chunk, where main memory never sees them;
  `jax.lax.scan` gets them, made for all chunks at once.
  """
  return chunks._replace(gates=dual.coefficients(chunks.gates))


def over_chunks(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Maps fn over leading axes [B, H, N]."""
  return jax.vmap(jax.vmap(jax.vmap(fn)))


def turn(carry: Carry) -> Carry:
  """Lays the longer side of weights and momentum [..., d_in, d_out] along lanes.

  A product needs the transpose of one operand, and that of the shorter side
  costs less.
  """
  return jax.tree.map(
      lambda x: jnp.swapaxes(x, -1, -2) if _is_turned(x.shape[-2:]) else x,
      carry,
  )


def turn_back(options: Rule, carry: Carry, head_dim: int) -> Carry:
  """Undoes `turn`."""
  turned = [_is_turned(shape) for shape in options.net.layer_shapes(head_dim)]

  def back(weights):
    return tuple(
        jnp.swapaxes(w, -1, -2) if t else w for w, t in zip(weights, turned)
    )

  return Carry(
      back(carry.weights),
      None if carry.momentum is None else back(carry.momentum),
  )


def _is_turned(shape) -> bool:
  d_in, d_out = shape
  return d_in > d_out


def step(
    options: Rule, carry: Carry, chunk: Prepared, constants: Constants
) -> tuple[Carry, tuple[Array, Array]]:
  """Reads and learns one chunk: the step that every scan runs.

  Args:
    options: the rule.
    carry: weights and momentum at the chunk's start, turned (`turn`).
    chunk: its tokens, laid out by `prepare`.
    constants: what all chunks share, the initial carry turned likewise.

  Returns:
    The carry at the chunk's end; outputs [b, D]; and the inner loss of every
    token at the chunk's start [1, b], its surprise; for tokens as they are laid
    out.
  """
  dtype, params = options.dtype, constants.params
  shapes = options.net.layer_shapes(chunk.keys.shape[1])
  if chunk.resets is not None:
    carry = jax.tree.map(
        lambda start, x: jnp.where(chunk.resets, start, x),
        constants.initial,
        carry,
    )
  weights = carry.weights
  momentum = carry.momentum or [None] * len(shapes)
  forms = [dense_lib.Form(_is_turned(shape), dtype) for shape in shapes]
  inputs, deltas, loss = linearize(
      options,
      params,
      lambda layer, x: forms[layer].times(x, weights[layer]),
      chunk.keys,
      chunk.values,
  )
  coefficients = chunk.gates
  if isinstance(coefficients, dual.Gates):
    coefficients = dual.coefficients_in_kernel(
        coefficients, list(map(min, shapes)), dtype
    )
  after = [None] * len(shapes)

  def dense(layer, x):
    """Reads a layer in its dual form, then updates it."""
    form, *parts = (
        each[layer]
        for each in (forms, weights, momentum, coefficients, inputs, deltas)
    )
    y = dense_lib.read(form, *parts, x)
    # Here, and not at the end, so that a kernel's matrix units have work
    # while the rest of the network is read.
    after[layer] = dense_lib.update(form, *parts, chunk.closes)
    return y

  outputs = options.net.apply(dense, chunk.queries, params)
  new_weights, *new_momentum = zip(*after)
  carry = Carry(new_weights, new_momentum[0] if new_momentum else None)
  return carry, (outputs, loss.T)


@dataclasses.dataclass(frozen=True)
class Step:
  """`step` with its options: equal ones are the same function to a cache."""

  options: Rule

  def __call__(self, carry, chunk, constants):
    return step(self.options, carry, chunk, constants)


def step_per_channel(
    options: Rule, carry: Carry, chunk: Chunk, constants: Constants
) -> tuple[Carry, tuple[Array, Array]]:
  """`step` for gates alpha per output channel, which have no matrix form.

  Arguments and results are those of `step`, but for a plain `Carry` and
  `Chunk`.
  """
  params = constants.params
  written = chunk.written
  if written is None:
    written = jnp.ones(chunk.keys.shape[0], bool)
  if chunk.resets is not None:
    carry = jax.tree.map(
        lambda start, x: jnp.where(chunk.resets, start, x),
        constants.initial,
        carry,
    )
  if options.gates_per_chunk:
    chunk = hold_first(chunk)
  inputs, deltas, loss = linearize(
      options,
      params,
      product_with(carry.weights, options.dtype),
      chunk.keys,
      chunk.values,
  )
  per_token, at_end, last_momentum = [], [], []
  for layer in range(len(carry.weights)):
    coefficients, last = rule.coefficients(chunk.gates(layer), written)
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
  return carry, (outputs, loss.T)
