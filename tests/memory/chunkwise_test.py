# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Chunks by themselves, as the Hopper kernels have them, are those of the step."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp

from tests.memory import testing
from titans_jax import memory
from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import dual
from titans_jax.memory.hopper import chunkwise
from titans_jax.memory.hopper import shapes

BATCH, HEADS, CHUNKS, SIZE, DIM, HIDDEN = 1, 2, 3, 16, 16, 64
LEAD = BATCH, HEADS, CHUNKS
# On the norms of gradients of the first and of the second layer.
BOUNDS = 9.0, 60.0


def draw():
  """Returns chunks [B, H, N, ...], states before them, and slow parameters."""
  noise = iter(jax.random.split(jax.random.key(0), 20))

  def normal(*shape):
    return jax.random.normal(next(noise), shape, jnp.float32)

  def unit(*shape):
    x = normal(*shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

  tokens = *LEAD, SIZE
  gates = dual.Gates(
      keep=jax.nn.sigmoid(normal(*LEAD, 2, SIZE) + 2),
      momentum=jax.nn.sigmoid(normal(*LEAD, 2, SIZE)),
      written=None,
      learning_rate=0.01 * jax.nn.sigmoid(normal(*LEAD, 1, 2 * SIZE)),
  )
  chunks = chunk_lib.Prepared(
      queries=unit(*tokens, DIM),
      keys=unit(*tokens, DIM),
      values=normal(*tokens, DIM),
      gates=dual.coefficients(gates),
      closes=None,
      resets=None,
  )
  matrix = BATCH * HEADS, CHUNKS, HIDDEN, DIM
  before = chunkwise.Matrices(
      normal(*matrix),
      HIDDEN**-0.5 * normal(*matrix),
      0.1 * normal(*matrix),
      0.1 * normal(*matrix),
  )
  return chunks, before, {"gain": 1 + 0.3 * normal(1, HEADS, DIM)}


def shape(dtype, max_grad_norm=None):
  return shapes.Shape(
      instances=BATCH * HEADS,
      chunks=CHUNKS,
      chunk=SIZE,
      width=DIM,
      hidden=HIDDEN,
      dtype=jnp.dtype(dtype),
      max_grad_norm=max_grad_norm,
  )


def by_parts(max_grad_norm, chunks, before, params):
  """Returns outputs [B, H, N, b, D] and the states behind."""
  sizes = shape("float32", max_grad_norm)
  own = chunkwise.chunk(sizes, chunks, params)
  seen = chunkwise.learn(sizes, before, own).seen
  outputs = chunkwise.read(sizes, before, seen, own)
  after = chunkwise.update(sizes, before, seen, own)
  return outputs.reshape(chunks.keys.shape), after


def by_step(max_grad_norm, chunks, before, params):
  """Returns the same by `chunk.step`."""
  options = chunk_lib.Rule(memory.MLP(), max_grad_norm=max_grad_norm)

  def one(before, chunk, params):
    w1, w2, s1, s2 = (x.T for x in before)
    carry, (outputs, _) = chunk_lib.step(
        options,
        chunk_lib.Carry((w1, w2), (s1, s2)),
        chunk,
        chunk_lib.Constants(params),
    )
    weights, momentum = carry
    return outputs, chunkwise.Matrices(*(x.T for x in (*weights, *momentum)))

  before = jax.tree.map(lambda x: x.reshape(*LEAD, *x.shape[2:]), before)
  over_chunks = jax.vmap(one, in_axes=(0, 0, None))
  over_heads = jax.vmap(over_chunks)
  each = jax.vmap(over_heads, in_axes=(0, 0, None))
  outputs, after = each(before, chunks, {"gain": params["gain"][0]})
  return outputs, jax.tree.map(
      lambda x: x.reshape(-1, CHUNKS, HIDDEN, DIM), after
  )


def with_gradients(fn, max_grad_norm, *arrays):
  def objective(arrays):
    outputs, after = fn(max_grad_norm, *arrays)
    total = jnp.sum(jnp.sin(outputs))
    total += sum(jnp.sum(jnp.cos(x.astype(jnp.float32))) for x in after)
    return total, (outputs, after)

  return jax.jit(jax.grad(objective, has_aux=True))(arrays)


class ChunkwiseTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(False))

  @parameterized.parameters(None, *BOUNDS)
  def test_equals_the_step(self, max_grad_norm):
    arrays = draw()
    actual = with_gradients(by_parts, max_grad_norm, *arrays)
    expected = with_gradients(by_step, max_grad_norm, *arrays)
    testing.assert_close(actual, expected, 2e-5)

  def test_bounds_some_gradients_of_each_layer(self):
    chunks, before, params = draw()
    for layer, bound in enumerate(BOUNDS):
      sizes = shape("float32", bound)
      own = chunkwise.chunk(sizes, chunks, params)
      scales = chunkwise.learn(sizes, before, own).bounds.scales[layer]
      bounded = jnp.mean(scales < 1)
      self.assertBetween(bounded, 0.1, 0.9)

  def test_rounds_activations_and_their_cotangents(self):
    chunks, before, params = draw()
    before = jax.tree.map(lambda x: x.astype(jnp.bfloat16), before)
    rounded = shape("bfloat16")
    own = chunkwise.chunk(rounded, chunks, params)
    seen = chunkwise.learn(rounded, before, own).seen
    outputs, vjp = jax.vjp(
        functools.partial(chunkwise.read, rounded), before, seen, own
    )
    d_before, d_seen, d_own = vjp(outputs)
    for x in (*seen[:2], *d_seen[:2], *d_before):
      self.assertEqual(x.dtype, jnp.bfloat16)
    for x in (outputs, seen.delta_2, d_seen.delta_2, *jax.tree.leaves(d_own)):
      self.assertEqual(x.dtype, jnp.float32)
    # A number's eight bits, of products whose operands have them.
    exact, _ = by_step(None, chunks, before, params)
    testing.assert_close(outputs.reshape(exact.shape), exact, 0.02)
