# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory networks."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import memory


class MLPTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, 4, [(8, 8)]),
      (2, 4, [(8, 32), (32, 8)]),
      (3, 1.5, [(8, 12), (12, 12), (12, 8)]),
  )
  def test_layer_shapes(self, depth, expansion, shapes):
    net = memory.MLP(depth=depth, expansion=expansion)
    self.assertSequenceEqual(net.layer_shapes(8), shapes)
    weights = net.init(jax.random.key(0), num_heads=3, head_dim=8)
    self.assertEqual([w.shape for w in weights], [(3, *s) for s in shapes])

  def test_is_the_formula_of_the_paper(self):
    # M(x) = x + g * LN(W_2 gelu(W_1 x))
    net = memory.MLP()
    w_1, w_2 = (
        w[0]
        for w in net.init(
            jax.random.key(0), num_heads=1, head_dim=4, dtype=jnp.float64
        )
    )
    x = jax.random.normal(jax.random.key(1), (5, 4), jnp.float64)
    gain = jnp.arange(4.0)
    actual = net.apply(lambda i, x: x @ (w_1, w_2)[i], x, {"gain": gain})
    y = jax.nn.gelu(x @ w_1) @ w_2
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(
        y.var(-1, keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(actual, x + gain * y, atol=1e-12)

  @parameterized.parameters("gelu", "silu", "relu")
  def test_derivatives_of_both_loops(self, activation):
    # A gradient, and a gradient of that: some are written out by hand.
    net = memory.MLP(activation=activation, expansion=2)
    keys = jax.random.split(jax.random.key(0), 5)
    w_1, w_2, x, v, h = (
        jax.random.normal(key, shape, jnp.float64)
        for key, shape in zip(keys, [(4, 8), (8, 4), (5, 4), (5, 4), (5, 8)])
    )

    def plain(x, w_1):
      act = {"gelu": jax.nn.gelu, "silu": jax.nn.silu, "relu": jax.nn.relu}
      y = act[activation](x @ w_1) @ w_2
      y = y - y.mean(-1, keepdims=True)
      return x + y / jnp.sqrt((y * y).mean(-1, keepdims=True) + 1e-6)

    def ours(x, w_1):
      return net.apply(lambda i, x: x @ (w_1, w_2)[i], x, {})

    def both_loops(fn):
      def inner(w_1):
        return jax.grad(lambda w: jnp.sum((fn(x, w) - v) ** 2))(w_1)

      return jax.value_and_grad(lambda w: jnp.sum(jnp.sin(x @ inner(w)) * h))(
          w_1
      )

    for actual, expected in zip(both_loops(ours), both_loops(plain)):
      np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)

  def test_pre_activations_start_at_unit_variance(self):
    net = memory.MLP()
    weights = net.init(jax.random.key(0), num_heads=1, head_dim=64)
    keys = jax.random.normal(jax.random.key(1), (500, 64))
    keys /= jnp.linalg.norm(keys, axis=-1, keepdims=True)
    self.assertAlmostEqual(
        float(jnp.std(keys @ weights[0][0])), 1.0, delta=0.05
    )

  def test_without_norm_the_learning_rate_shrinks_with_the_chunk(self):
    net = memory.MLP(norm=False)
    rates = [net.max_learning_rate(64, b) for b in (16, 64)]
    self.assertAlmostEqual(rates[0] / rates[1], 4.0)
    with_norm = memory.MLP().max_learning_rate(64, 64)
    self.assertGreater(with_norm, 10 * rates[1])

  @parameterized.parameters(
      ({"depth": 0}, "depth must be an integer of at least 1"),
      ({"expansion": 0}, "expansion must be positive"),
      ({"activation": "tanh"}, "activation must be one of"),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      memory.MLP(**values)

  def test_no_hidden_unit(self):
    with self.assertRaisesRegex(ValueError, "no hidden unit"):
      memory.MLP(expansion=0.1).layer_shapes(4)
