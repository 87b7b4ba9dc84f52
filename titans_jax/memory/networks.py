# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory networks M: what the inner loop learns (NeurIPS version, section 3.3).

A network is a frozen dataclass with four methods. `layer_shapes` and `init`
describe the weights that the inner loop learns, `init_params` the slow
parameters that it does not, and `apply` writes the network once, as a function
of a callable `dense(layer, x)`. The learning rule runs the same `apply` under
three meanings of `dense`: with probes on the keys (gradients), in the dual form
on the queries (reads inside a chunk), and plainly (reads without update).
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Callable, Mapping, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
Dense = Callable[[int, Array], Array]
Params = Mapping[str, Array]

NORM_EPSILON = 1e-6
_GELU_LINEAR = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715 * _GELU_LINEAR


@jax.custom_jvp
def _gelu(x: Array) -> Array:
  """GELU in its tanh form: the exact one (erf) does not lower in a TPU kernel.

  Written with its first and second derivative, which share the transcendental
  and are shorter than what differentiation makes: the inner gradient and its
  own derivative are most of a chunk's elementwise work.
  """
  return x * gelu_gate(x)


def gelu_gate(x: Array) -> Array:
  return 0.5 + 0.5 * jnp.tanh(x * (_GELU_LINEAR + _GELU_CUBIC * (x * x)))


def gelu_steepness(x: Array) -> Array:
  """Returns s, of which g (1 - g) s is the derivative of the gate g."""
  return 2 * _GELU_LINEAR + 6 * _GELU_CUBIC * (x * x)


@jax.custom_jvp
def gelu_slope(x: Array) -> Array:
  """Returns the derivative of GELU."""
  gate = gelu_gate(x)
  return gate + x * gate * (1 - gate) * gelu_steepness(x)


@_gelu.defjvp
def _gelu_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  return _gelu(x), gelu_slope(x) * dx


@gelu_slope.defjvp
def _gelu_slope_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  gate, steepness = gelu_gate(x), gelu_steepness(x)
  bend = x * steepness * steepness
  curvature = (
      gate
      * (1 - gate)
      * (4 * steepness - 4 * _GELU_LINEAR + (1 - 2 * gate) * bend)
  )
  return gelu_slope(x), curvature * dx


def row_mean(x: Array) -> Array:
  return (1 / x.shape[-1]) * jnp.sum(x, axis=-1, keepdims=True)


def normalize(x: Array) -> tuple[Array, Array]:
  """Returns LN(x), and one over the deviation."""
  x = x - row_mean(x)
  scale = jax.lax.rsqrt(row_mean(x * x) + NORM_EPSILON)
  return x * scale, scale


@jax.custom_vjp
def layer_norm_back(x: Array, g: Array) -> Array:
  """Returns J(x) g = scale (g - mean(g) - y mean(y g)), y being LN(x)."""
  return _layer_norm_back_fwd(x, g)[0]


def _layer_norm_back_fwd(x, g):
  y, scale = normalize(x)
  return scale * across(y, g, row_mean(y * g)), (x, g)


def across(y: Array, g: Array, along: Array) -> Array:
  """Returns the part of g that is neither constant nor along y."""
  return g - row_mean(g) - y * along


def _layer_norm_back_bwd(residuals, h):
  # Of h . J(x) g. J is symmetric; x moves y by J and scale by -scale^2 y / n.
  x, g = residuals
  y, scale = normalize(x)
  along_g, along_h = row_mean(y * g), row_mean(y * h)
  across_g, across_h = across(y, g, along_g), across(y, h, along_h)
  dx = y * row_mean(across_h * g) + along_g * across_h + along_h * across_g
  return -(scale * scale) * dx, scale * across_h


layer_norm_back.defvjp(_layer_norm_back_fwd, _layer_norm_back_bwd)


@jax.custom_vjp
def layer_norm(x: Array) -> Array:
  """LN over the last axis, without gain: (x - mean) / deviation.

  Its derivative J is symmetric, and has a derivative of its own in closed form:
  the inner gradient needs the one, the outer gradient both. Reverse mode only.
  """
  return normalize(x)[0]


layer_norm.defvjp(
    lambda x: (layer_norm(x), x), lambda x, g: (layer_norm_back(x, g),)
)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


class Network(Protocol):
  """What the learning rule asks of a memory network."""

  def layer_shapes(self, head_dim: int) -> tuple[tuple[int, int], ...]:
    """Returns (d_in, d_out) of each dense layer."""

  def init(self, key: Array, *, num_heads: int, head_dim: int, dtype=None):
    """Returns a tuple of weights [H, d_in, d_out], one per dense layer."""

  def init_params(self, *, num_heads: int, head_dim: int, dtype=None) -> Params:
    """Returns the slow parameters, leaves [H, ...]; may be empty."""

  def max_learning_rate(self, head_dim: int, chunk_size: int) -> float:
    """Returns theta_max, the largest learning rate that the network bears."""

  def apply(self, dense: Dense, x: Array, params: Params) -> Array:
    """Runs the network of one head on x [b, D], row by row."""


@dataclasses.dataclass(frozen=True)
class MLP:
  """M(x) = x + g * LN(f(x)), f a bias-free MLP (NeurIPS section 3.3).

  Initial scales. Keys have unit length, so a first layer of unit variance gives
  pre-activations of unit variance, where the non-linearity bends; the usual
  1/sqrt(fan-in) would leave them at 1/sqrt(D): an all but linear network whose
  small output the LN then amplifies. Later layers use 1/sqrt(fan-in). A network
  of one layer has no non-linearity to place: it starts at 1/sqrt(fan-in).

  Attributes:
    depth: number of dense layers, L_M in the paper.
    expansion: hidden width as a multiple of the head dimension.
    activation: "gelu" (tanh form), "silu" or "relu", between the layers.
    residual: adds the input to the output.
    norm: LayerNorm over the output's channels, without bias, its gain g a slow
      parameter per head and channel (1 where no parameters are given). Bounds
      the inner gradient: it shrinks as the output grows.
  """

  depth: int = 2
  expansion: float = 4
  activation: str = "gelu"
  residual: bool = True
  norm: bool = True

  def __post_init__(self):
    if not isinstance(self.depth, numbers.Integral) or self.depth < 1:
      raise ValueError(
          f"MLP.depth must be an integer of at least 1, got {self.depth!r}."
      )
    if self.expansion <= 0:
      raise ValueError(f"MLP.expansion must be positive, got {self.expansion}.")
    if self.activation not in ACTIVATIONS:
      raise ValueError(
          f"MLP.activation must be one of {sorted(ACTIVATIONS)}, got"
          f" {self.activation!r}."
      )

  def layer_shapes(self, head_dim: int) -> tuple[tuple[int, int], ...]:
    hidden = round(self.expansion * head_dim)
    if self.depth > 1 and hidden < 1:
      raise ValueError(
          f"MLP.expansion={self.expansion} leaves no hidden unit at head"
          f" dimension {head_dim}."
      )
    widths = (head_dim, *[hidden] * (self.depth - 1), head_dim)
    return tuple(zip(widths[:-1], widths[1:]))

  def init(
      self, key: Array, *, num_heads: int, head_dim: int, dtype=jnp.float32
  ) -> tuple[Array, ...]:
    shapes = self.layer_shapes(head_dim)
    weights = []
    for layer, (d_in, d_out) in enumerate(shapes):
      scale = 1.0 if layer == 0 and len(shapes) > 1 else d_in**-0.5
      noise = jax.random.normal(
          jax.random.fold_in(key, layer), (num_heads, d_in, d_out), dtype
      )
      weights.append(scale * noise)
    return tuple(weights)

  def init_params(
      self, *, num_heads: int, head_dim: int, dtype=jnp.float32
  ) -> Params:
    if not self.norm:
      return {}
    return {"gain": jnp.ones((num_heads, head_dim), dtype)}

  def max_learning_rate(self, head_dim: int, chunk_size: int) -> float:
    # A write moves f(k) by about theta / (1 - eta) * 2 |a|^2 * error, a being
    # the last layer's input: a unit key, or about hidden / 2 after unit-variance
    # pre-activations.
    fan_in = self.layer_shapes(head_dim)[-1][0]
    if self.norm:
      # LN measures that against the variance of f, |a|^2 / fan_in, and shrinks
      # the gradient as f grows: a step too large makes the next one smaller,
      # and nothing diverges however many alike tokens share a stale gradient.
      # Associative recall is learned soonest where one write moves f by several
      # of its deviations.
      return 2.56 / fan_in
    # Without LN the tokens of a chunk must not overshoot together even if all
    # are alike: b theta / (1 - eta) * 2 |a|^2 <= 1 at eta = 1/2.
    square = fan_in / 2 if self.depth > 1 else 1.0
    return 1 / (4 * square * chunk_size)

  def apply(self, dense: Dense, x: Array, params: Params) -> Array:
    y = dense(0, x)
    for layer in range(1, self.depth):
      y = dense(layer, ACTIVATIONS[self.activation](y))
    if self.norm:
      y = layer_norm(y)
      if "gain" in params:
        y = y * params["gain"]
    return x + y if self.residual else y
