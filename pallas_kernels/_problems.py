# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Random scans of the memory, which `selfcheck` compares and `benchmark` times."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from titans_jax import memory
from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import hopper

Array = jax.Array


class Inputs(NamedTuple):
  """What a scan is differentiated with respect to.

  Attributes:
    queries: [B, T, H, D].
    keys: [B, T, H, D].
    values: [B, T, H, D].
    gates: each [B, T, H, L].
    weights: initial weights, L arrays [H, d_in, d_out].
    params: slow parameters of the network, leaves [H, ...].
  """

  queries: Array
  keys: Array
  values: Array
  gates: memory.Gates
  weights: tuple[Array, ...]
  params: Any


class Results(NamedTuple):
  """Outputs [B, T, H, D], and weights and momentum behind the last token."""

  outputs: Array
  weights: tuple[Array, ...]
  momentum: tuple[Array, ...] | None


@dataclasses.dataclass(frozen=True)
class Problem:
  """Sizes and options of a scan.

  Attributes:
    head_dim: D.
    chunk: b, tokens per chunk.
    depth: L, layers of the memory network.
    hidden: width between its layers.
    batch: B.
    heads: H.
    length: T.
    momentum: whether the rule has momentum.
    max_grad_norm: as in `memory.scan`.
    mask: whether some tokens are padding, at random places.
    packed: as in `memory.scan`.
    documents: whether another document starts half way, with a chunk.
    dtype: of the products' operands, "float32" or "bfloat16"; the arrays are
      float32.
  """

  head_dim: int
  chunk: int
  depth: int
  hidden: int
  batch: int
  heads: int
  length: int
  momentum: bool = True
  max_grad_norm: float | None = None
  mask: bool = False
  packed: bool = False
  documents: bool = False
  dtype: str = "float32"

  @property
  def net(self) -> memory.MLP:
    return memory.MLP(self.depth, self.hidden / self.head_dim)

  def why_not_gpu(self) -> str | None:
    """Returns why the kernel for Hopper GPUs does not run it; None: it does."""
    rule = chunk_lib.Rule(self.net, dtype=jnp.dtype(self.dtype))
    carry = chunk_lib.Carry((), () if self.momentum else None)
    return (
        hopper.why_not_device()
        or hopper.why_not_rule(rule, carry)
        or hopper.why_not_shape(rule, (self.chunk, self.head_dim))
    )

  def inputs(self) -> Inputs:
    """Draws unit queries and keys, and learning rates that the network bears."""
    noise = iter(jax.random.split(jax.random.key(0), 9))
    tokens = (self.batch, self.length, self.heads)

    def normal(*shape):
      return jax.random.normal(next(noise), shape, jnp.float32)

    def unit(x):
      return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def gate(scale, bias=0.0):
      return scale * jax.nn.sigmoid(normal(*tokens, self.depth) + bias)

    sizes = {"num_heads": self.heads, "head_dim": self.head_dim}
    params = self.net.init_params(**sizes, dtype=jnp.float32)
    return Inputs(
        queries=unit(normal(*tokens, self.head_dim)),
        keys=unit(normal(*tokens, self.head_dim)),
        values=normal(*tokens, self.head_dim),
        gates=memory.Gates(
            # Some of the first memory is left at the end: of one that is gone
            # LN would show the rounding alone.
            forget=gate(min(1.0, 16 / self.length), bias=-3.0),
            learning_rate=gate(
                self.net.max_learning_rate(self.head_dim, self.chunk)
            ),
            momentum=gate(1.0) if self.momentum else None,
        ),
        weights=self.net.init(next(noise), **sizes, dtype=jnp.float32),
        params={k: p + 0.3 * normal(*p.shape) for k, p in params.items()},
    )

  def scan(self, implementation: str, inputs: Inputs) -> Results:
    """Calls `memory.scan`; the reference knows no dtype but that of its arrays."""
    tokens = (self.batch, self.length)
    mask = resets = None
    if self.mask:
      mask = jax.random.bernoulli(jax.random.key(1), 0.8, tokens)
    if self.documents:
      start = self.length // self.chunk // 2 * self.chunk
      resets = jnp.zeros(tokens, bool).at[:, start].set(True)
    outputs, state = memory.scan(
        self.net,
        memory.init_state(
            self.net,
            inputs.weights,
            batch_size=self.batch,
            chunk_size=self.chunk,
        ),
        inputs.queries,
        inputs.keys,
        inputs.values,
        inputs.gates,
        inputs.params,
        mask=mask,
        resets=resets,
        packed=self.packed,
        max_grad_norm=self.max_grad_norm,
        dtype=None if implementation == "reference" else self.dtype,
        implementation=implementation,
    )
    return Results(
        outputs, state.weights, state.momentum if self.momentum else None
    )


Scan = Callable[[Problem, Inputs], Results]


def implementation(name: str) -> Scan:
  """Returns the scan of an implementation of `memory.scan`."""

  def scan(problem: Problem, inputs: Inputs) -> Results:
    if name != "reference":
      return problem.scan(name, inputs)
    # Unless told otherwise a TPU multiplies float32 as bfloat16, a GPU as TF32.
    with jax.default_matmul_precision("highest"):
      return problem.scan(name, inputs)

  return scan


def forward(scan: Scan, problem: Problem):
  """Returns the compiled scan alone: inputs -> results."""
  return jax.jit(functools.partial(scan, problem))


def backward(scan: Scan, problem: Problem):
  """Returns the compiled (inputs, cotangents) -> (results, gradients)."""

  def run(inputs, cotangents):
    results, vjp = jax.vjp(functools.partial(scan, problem), inputs)
    return results, vjp(cotangents)[0]

  return jax.jit(run)


def cotangents(problem: Problem, inputs: Inputs) -> Results:
  """Draws a weight for every number of the results."""
  shapes = jax.eval_shape(functools.partial(problem.scan, "xla"), inputs)
  leaves, structure = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return jax.tree.unflatten(
      structure,
      [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)],
  )
