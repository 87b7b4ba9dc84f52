# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The matrix products of a memory's training step, timed without the rest."""

from __future__ import annotations

import collections
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax import memory


class Product(NamedTuple):
  """A `dot_general`: its operands' shapes and the dimensions that it pairs."""

  left: tuple[int, ...]
  right: tuple[int, ...]
  dimension_numbers: Any

  @property
  def operations(self) -> int:
    """Returns additions and multiplications, each counted as one."""
    (_, contracted), (_, batch) = self.dimension_numbers
    paired = {*contracted, *batch}
    free = [n for i, n in enumerate(self.right) if i not in paired]
    return 2 * math.prod(self.left) * math.prod(free)


Products = collections.Counter[Product]


def traced(fn, *args) -> Products:
  """Returns the products that a function makes when it is called."""
  found: Products = collections.Counter()

  def walk(jaxpr, times):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "dot_general":
        left, right = (var.aval.shape for var in eqn.invars)
        numbers = eqn.params["dimension_numbers"]
        found[Product(left, right, numbers)] += times
      repeated = times * eqn.params.get("length", 1)
      for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
          inner = getattr(part, "jaxpr", part)
          if hasattr(inner, "eqns"):
            walk(inner, repeated)

  walk(jax.make_jaxpr(fn)(*args).jaxpr, 1)
  return found


def rule_gradients(config: dict, num_chunks: int | None = None):
  """Returns `memory.scan` of random tokens, differentiated, and its arguments.

  Args:
    config: a memory's entry of the folder's CONFIGS.
    num_chunks: with the carry kept at each; None: the entry's tokens, and the
      default.
  """
  net = memory.MLP(config["depth"], config["expansion"])
  heads, dim, size = (config[k] for k in ("heads", "dim_head", "chunk_size"))
  length = config["seq"] if num_chunks is None else num_chunks * size
  shape = (config["batch"], length, heads)
  noise = iter(jax.random.split(jax.random.key(0), 7))

  def normal(*shape, scale=1.0):
    return scale * jax.random.normal(next(noise), shape)

  gates = [
      scale * jax.nn.sigmoid(normal(*shape, config["depth"]))
      for scale in (0.01, 0.01, 1.0)
  ]
  args = (
      net.init(next(noise), num_heads=heads, head_dim=dim),
      net.init_params(num_heads=heads, head_dim=dim),
      *(normal(*shape, dim, scale=dim**-0.5) for _ in range(3)),
      memory.Gates(*gates),
  )

  def loss(weights, params, queries, keys, values, gates):
    outputs, _ = memory.scan(
        net,
        memory.init_state(net, weights, batch_size=shape[0], chunk_size=size),
        queries,
        keys,
        values,
        gates,
        params,
        packed=True,
        checkpoint_every=None if num_chunks is None else 1,
    )
    return jnp.mean(outputs * outputs)

  return jax.grad(loss, argnums=tuple(range(len(args)))), args


def chunk_products(config: dict) -> Products:
  """Returns the products of one chunk: those of the forward pass, again what of
  them the backward pass needs, and those of the backward pass."""
  counts = [traced(*_flat(rule_gradients(config, n))) for n in (3, 2)]
  counts[0].subtract(counts[1])
  return +counts[0]


def _flat(pair):
  fn, args = pair
  return fn, *args


def repeat(products: Products, times: int):
  """Returns a function that makes nothing but products, and its arguments.

  Every product has operands of its own, and is made anew in every repetition.
  """
  every = sorted(products.elements(), key=repr)
  operands = [
      tuple(
          jax.random.normal(jax.random.key(i), shape)
          for shape in (product.left, product.right)
      )
      for i, product in enumerate(every)
  ]

  def make(operands):
    return [
        jax.lax.dot_general(*pair, product.dimension_numbers)
        for pair, product in zip(operands, every)
    ]

  def body(_, carry):
    # Without the barrier one repetition would serve for all.
    operands, _ = jax.lax.optimization_barrier(carry)
    return operands, make(operands)

  def run(operands):
    results = jax.tree.map(
        lambda r: jnp.zeros(r.shape, r.dtype), jax.eval_shape(make, operands)
    )
    return jax.lax.fori_loop(0, times, body, (operands, results))[1]

  return run, (operands,)


def large(size: int = 2048):
  """Returns one plain product, its arguments, and its operations."""
  matrix = jax.random.normal(jax.random.key(0), (size, size))
  return functools.partial(jnp.matmul, matrix), (matrix,), 2 * size**3
