# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory layer, as users put it into their own models."""

import functools

from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import titans_jax as titans
from titans_jax.memory import layout as layout_lib

BATCH, LENGTH, DIM = 2, 19, 16


def _layer(chunk_size=4, **options):
  return titans.NeuralMemory(
      model_dim=DIM,
      num_heads=2,
      head_dim=8,
      chunk_size=chunk_size,
      dtype="float64",
      param_dtype="float64",
      **options,
  )


class NeuralMemoryTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    keys = jax.random.split(jax.random.key(0), 3)
    self.x = jax.random.normal(keys[0], (BATCH, LENGTH, DIM), jnp.float64)
    self.mask = jax.random.bernoulli(keys[1], 0.7, (BATCH, LENGTH))
    self.resets = jnp.zeros((BATCH, LENGTH), bool).at[1, 8].set(True)

  @parameterized.parameters(
      {},
      {"momentum": False, "gates_per_chunk": True, "conv_size": 0},
      {"read_before_write": True},
  )
  def test_split_invariance(self, **options):
    self.check_split_invariance(**options)

  @parameterized.parameters(
      {"forget": "channel", "gates_per_layer": False},
      {"forget": "none", "max_grad_norm": 1.0, "normalize_values": False},
  )
  @pytest.mark.exhaustive
  def test_split_invariance_too(self, **options):
    self.check_split_invariance(**options)

  def check_split_invariance(self, **options):
    layer = _layer(**options)
    variables = jax.jit(layer.init)(jax.random.key(1), self.x)
    apply = jax.jit(layer.apply)
    y, state = apply(variables, self.x, mask=self.mask, resets=self.resets)
    pieces, piecewise = [], None
    for first, last in ((0, 8), (8, 9), (9, LENGTH)):
      here = slice(first, last)
      piece, piecewise = apply(
          variables,
          self.x[:, here],
          piecewise,
          mask=self.mask[:, here],
          resets=self.resets[:, here],
      )
      pieces.append(piece)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), y, atol=1e-10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10),
        piecewise,
        state,
    )

  def test_read_before_write(self):
    # Given chunks of one token, in which no gradient is stale
    plain = _layer(chunk_size=1)
    layer = plain.clone(read_before_write=True)
    variables = jax.jit(plain.init)(jax.random.key(1), self.x)
    learns = [True, True, False, False, True, True]

    @functools.partial(jax.jit, static_argnums=2)
    def read(x, state, learns):
      return layer.apply(variables, x, state, update_memory=learns)

    @functools.partial(jax.jit, static_argnums=2)
    def write(x, state, learns):
      """The layer that writes first, and what W_{t-1} gives its query."""

      def both(layer, x, state):
        if state is None:
          state = layer.initial_state()[0].broadcast(BATCH)
        place = layout_lib.token(None, None, state.memory.count)
        queries, _ = layer.queries(x, state.query, place)
        y = layer.recall(state.memory.weights, queries, x)
        return y, layer(x, state, update_memory=learns)[1]

      return plain.apply(variables, x, state, method=both)

    # Then a token reads what those before it have left
    state = expected_state = None
    for t, learn in enumerate(learns):
      y, state = read(self.x[:, t : t + 1], state, learn)
      expected, expected_state = write(
          self.x[:, t : t + 1], expected_state, learn
      )
      np.testing.assert_allclose(y, expected, atol=1e-10, err_msg=str(t))

  def test_within_another_module(self):
    class Model(nn.Module):

      @nn.compact
      def __call__(self, x, state=None):
        y, state = _layer()(nn.LayerNorm()(x), state)
        return nn.Dense(3)(x + y), state

    model = Model()
    variables = jax.jit(model.init)(jax.random.key(1), self.x)
    y, state = jax.jit(model.apply)(variables, self.x)
    y2, _ = jax.jit(model.apply)(variables, self.x, state)
    self.assertEqual(y.shape, (BATCH, LENGTH, 3))
    # What was read before is remembered.
    self.assertGreater(float(jnp.max(jnp.abs(y2 - y))), 1e-4)

  def test_gradients_reach_every_parameter(self):
    layer = _layer()
    variables = jax.jit(layer.init)(jax.random.key(1), self.x)

    def loss(variables):
      return jnp.sum(layer.apply(variables, self.x)[0] ** 2)

    grads = jax.jit(jax.grad(loss))(variables)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
      self.assertGreater(float(jnp.max(jnp.abs(grad))), 0, path)

  def test_forgetting_starts_slowly(self):
    layer = _layer()
    variables = jax.jit(layer.init)(jax.random.key(1), self.x)
    bias = variables["params"]["gates"]["bias"].reshape(2, 6)
    np.testing.assert_array_equal(bias[:, :2], -6)
    np.testing.assert_array_equal(bias[:, 2:], 0)

  @parameterized.parameters(
      ({"x": (2, 19, 8)}, r"\[B, T, 16\], got \(2, 19, 8\)"),
      ({"x": (2, 0, 16)}, "empty"),
      ({"mask": (2, 7)}, "mask must be bool of shape"),
      ({"state": 3}, "3 rows, but the batch has 2"),
  )
  def test_bad_input(self, wrong, message):
    layer = _layer()
    variables = jax.jit(layer.init)(jax.random.key(1), self.x)
    x = jnp.zeros(wrong.get("x", self.x.shape))
    mask = jnp.ones(wrong["mask"], bool) if "mask" in wrong else None
    state = None
    if "state" in wrong:
      other = jnp.zeros((wrong["state"], 4, DIM))
      state = jax.jit(layer.apply)(variables, other)[1]
    with self.assertRaisesRegex(ValueError, message):
      layer.apply(variables, x, state, mask=mask)

  @parameterized.parameters(
      ({"forget": "chanel"}, "forget must be one of .*'chanel'"),
      ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
      (
          {"read_before_write": True, "gates_per_chunk": True},
          "read_before_write and gates_per_chunk exclude each other",
      ),
      ({"implementation": "reference"}, "implementation must be one of"),
  )
  def test_bad_options(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      jax.eval_shape(_layer(**options).init, jax.random.key(1), self.x)
