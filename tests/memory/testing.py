# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Random inputs for tests of the memory, in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import memory


@dataclasses.dataclass
class Inputs:
  """Arguments of a call of `memory.scan`."""

  net: memory.MLP
  state: memory.MemoryState
  tokens: dict
  params: dict
  options: dict
  _compiled: dict = dataclasses.field(default_factory=dict)

  @property
  def weights(self):
    """Those that the state was made of."""
    return tuple(w[0] for w in self.state.initial.weights)

  def call(self, implementation="xla", state=None, tokens=None, params=None):
    """Calls `memory.scan`; masks and resets are among the tokens."""
    tokens = self.tokens if tokens is None else tokens
    arrays = {k: tokens.get(k) for k in ("mask", "resets")}
    return memory.scan(
        self.net,
        self.state if state is None else state,
        tokens["queries"],
        tokens["keys"],
        tokens["values"],
        tokens["gates"],
        self.params if params is None else params,
        **arrays,
        **self.options,
        implementation=implementation,
    )

  def run(self, **arguments):
    """Calls `memory.scan` compiled: eager calls compile every operation."""
    own = {"state": self.state, "tokens": self.tokens, "params": self.params}
    options = tuple(sorted(self.options.items()))
    if options not in self._compiled:
      self._compiled[options] = jax.jit(functools.partial(self.call, "xla"))
    return self._compiled[options](**own | arguments)


def make_inputs(
    net,
    *,
    batch=2,
    length=11,
    heads=2,
    dim=4,
    chunk=4,
    shared=False,
    forget="layer",
    momentum=True,
    mask=False,
    resets=(),
    seed=0,
    dtype=jnp.float64,
    **options,
) -> Inputs:
  """Draws everything that `memory.scan` takes."""
  keys = iter(jax.random.split(jax.random.key(seed), 16))

  def normal(*shape):
    return jax.random.normal(next(keys), shape, dtype)

  def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

  sizes = (batch, length, heads)
  layers = net.layer_shapes(dim)
  per_layer = sizes if shared else (*sizes, len(layers))
  alpha = {
      "layer": lambda: jax.nn.sigmoid(normal(*per_layer) - 1),
      "channel": lambda: tuple(
          jax.nn.sigmoid(normal(*sizes, d_out) - 1) for _, d_out in layers
      ),
      "none": lambda: None,
  }[forget]()
  gates = memory.Gates(
      forget=alpha,
      learning_rate=0.05 * jax.nn.sigmoid(normal(*per_layer)),
      momentum=jax.nn.sigmoid(normal(*per_layer)) if momentum else None,
  )
  tokens = {
      "queries": unit(normal(*sizes, dim)),
      "keys": unit(normal(*sizes, dim)),
      "values": normal(*sizes, dim),
      "gates": gates,
  }
  if mask:
    tokens["mask"] = jax.random.bernoulli(next(keys), 0.7, (batch, length))
  if resets:
    tokens["resets"] = (
        jnp.zeros((batch, length), bool).at[tuple(zip(*resets))].set(True)
    )
  weights = net.init(next(keys), num_heads=heads, head_dim=dim, dtype=dtype)
  params = net.init_params(num_heads=heads, head_dim=dim, dtype=dtype)
  params = {k: v + 0.3 * normal(*v.shape) for k, v in params.items()}
  state = memory.init_state(net, weights, batch_size=batch, chunk_size=chunk)
  return Inputs(net, state, tokens, params, options)


def cut(tokens, first, last):
  """Returns the tokens first to last - 1."""
  return jax.tree.map(lambda x: x[:, first:last], tokens)


def floats(tree):
  """Returns the leaves that have a derivative."""
  return [
      x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)
  ]


def seen(state):
  """Returns a memory's state with zeros at its open chunk's free places."""

  def clear(x, axis):
    filled = jnp.arange(state.chunk_size) < state.count[:, None]
    rows, places = x.shape[0], x.shape[axis]
    shape = [1] * x.ndim
    shape[0], shape[axis] = rows, places
    return jnp.where(filled.reshape(shape), x, jnp.zeros_like(x))

  opened = jax.tree.map(
      lambda x: clear(x, 2), state.open._replace(written=None)
  )
  opened = opened._replace(written=clear(state.open.written, 1))
  return dataclasses.replace(state, open=opened)


def assert_close(actual, expected, tolerance):
  """Compares leaf by leaf, relative to each leaf's largest value."""
  actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
  assert len(actual) == len(expected)
  for a, e in zip(actual, expected):
    a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
    scale = max(1.0, np.abs(e).max(initial=0))
    np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * scale)
