# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One token costs one token: the memory's state stays where it is."""

import dataclasses
import re

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import memory

NET = memory.MLP(depth=2, expansion=2.5)
HEADS, DIM, CHUNK = 3, 16, 4
# Layer shapes that nothing else has.
SHAPES = tuple((2, HEADS, *s) for s in NET.layer_shapes(DIM))


def make_state():
  weights = NET.init(jax.random.key(0), num_heads=HEADS, head_dim=DIM)
  return memory.init_state(NET, weights, batch_size=2, chunk_size=CHUNK)


def step(state, x, mask=None, implementation="auto", **options):
  gate = jnp.full(x.shape[:3], 0.1, x.dtype)
  gates = memory.Gates(forget=gate, learning_rate=gate, momentum=gate)
  return memory.scan(
      NET,
      state,
      x,
      x,
      x,
      gates,
      mask=mask,
      implementation=implementation,
      **options,
  )


jitted = jax.jit(step, static_argnames="implementation")


class SteppingTest(absltest.TestCase):

  def test_state_is_not_copied_unless_a_chunk_closes(self):
    x = jnp.ones((2, 1, HEADS, DIM), jnp.float32)
    compiled = jax.jit(step, donate_argnums=0).lower(make_state(), x).compile()
    text = compiled.as_text()
    # A loop's body may copy: it runs where a chunk closes.
    bodies = re.findall(r"body=(%[\w.-]+)", text)
    copied = set()
    for computation in text.split("\n\n"):
      if computation.split(" ")[0] not in bodies:
        copied |= set(re.findall(r"f32\[([\d,]+)\]\S* copy\(", computation))
    for shape in SHAPES:
      self.assertIn(",".join(map(str, shape)), text)
      self.assertNotIn(",".join(map(str, shape)), copied)

  def test_weights_change_only_where_a_chunk_closes(self):
    state = make_state()
    mask = np.ones((2, 1), bool)
    for token in range(CHUNK):
      x = jax.random.normal(
          jax.random.key(token), (2, 1, HEADS, DIM), jnp.float32
      )
      mask[1] = token < CHUNK - 1  # The second row stays one token behind.
      before = state.chunk_start.weights[0]
      _, state = jitted(state, x, jnp.asarray(mask))
      changed = (state.chunk_start.weights[0] != before).any(axis=(1, 2, 3))
      closes = token == CHUNK - 1
      np.testing.assert_array_equal(changed, [closes, False])
    np.testing.assert_array_equal(state.count, [0, CHUNK - 1])

  def test_nothing_of_a_document_survives_it(self):
    # Given a document with an infinite token, behind the place of the next one
    x = jnp.ones((2, 1, HEADS, DIM), jnp.float32)
    _, state = jitted(make_state(), x)
    _, state = jitted(state, x * jnp.inf)
    # When another starts
    starts = jnp.ones((2, 1), bool)
    outputs, state = jitted(state, x, resets=starts)
    # Then it is as if it were the first
    fresh, fresh_state = jitted(make_state(), x)
    np.testing.assert_allclose(outputs, fresh, rtol=1e-6)
    self.assertTrue(np.isfinite(state.weights[0]).all())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        state.weights,
        fresh_state.weights,
    )

  def test_the_oracle_keeps_which_tokens_are_unwritten(self):
    # Given an open chunk that was read without learning
    state = make_state()
    x = jax.random.normal(jax.random.key(0), (2, 1, HEADS, DIM), jnp.float32)
    for _ in range(2):
      _, state = jitted(state, x)
    opened = state.open._replace(written=jnp.zeros_like(state.open.written))
    state = dataclasses.replace(state, open=opened)
    # Then it stays so
    states = [
        jitted(state, x, implementation=name)[1]
        for name in ("xla", "reference")
    ]
    np.testing.assert_array_equal(*(s.open.written for s in states))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(s.weights for s in states),
    )
