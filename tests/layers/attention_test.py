# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Window attention with a prefix, against its definition."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.layers import attention
from titans_jax.layers import rotary
from titans_jax.memory import layout as layout_lib


def _reference(layer, variables, x, prefix):
  """Window attention with a T x T mask, written out."""
  bound = layer.bind(variables)
  queries = bound.queries(x)
  keys, values = bound.keys_values(x)
  prefix_keys, prefix_values = bound.keys_values(prefix[None])
  length = x.shape[1]
  places = jnp.arange(length)[None]
  scores = jnp.einsum(
      "bthd,bshd->bhts",
      bound.rotate(queries, places),
      bound.rotate(keys, places),
  )
  behind = jnp.arange(length)[:, None] - jnp.arange(length)
  scores = jnp.where((behind >= 0) & (behind < layer.window), scores, -jnp.inf)
  # Persistent tokens have no position, and every query sees them all.
  to_prefix = jnp.einsum("bthd,shd->bhts", queries, prefix_keys[0])
  scores = jnp.concatenate([to_prefix, scores], axis=-1)
  weights = jax.nn.softmax(scores * layer.head_dim**-0.5, axis=-1)
  count = prefix.shape[0]
  y = jnp.einsum("bhts,shd->bthd", weights[..., :count], prefix_values[0])
  y += jnp.einsum("bhts,bshd->bthd", weights[..., count:], values)
  return bound.output(y)


class WindowAttentionTest(parameterized.TestCase):

  @parameterized.product(
      length=[3, 8, 16, 21],
      prefix=[0, 3],
      dtype=[jnp.float32, jnp.float64],
  )
  def test_equals_the_definition(self, length, prefix, dtype):
    layer = attention.WindowAttention(
        model_dim=8, num_heads=2, head_dim=4, window=8, dtype=dtype,
        param_dtype=dtype,
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (2, length, 8), dtype)
    prefix = jax.random.normal(jax.random.key(1), (prefix, 8), dtype)
    layout = layout_lib.align((2, length), 1)

    def run(module, x):
      state = module.initial_state(prefix).broadcast(2)
      return module(x, state, layout)[0]

    y, variables = jax.jit(
        lambda: layer.init_with_output(jax.random.key(2), x, method=run)
    )()
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-12
    np.testing.assert_allclose(
        y, _reference(layer, variables, x, prefix), atol=tolerance
    )

  def test_cost_is_linear_in_the_length(self):
    layer = attention.WindowAttention(
        model_dim=8, num_heads=2, head_dim=4, window=64
    )

    def compiled(length):
      def run(module, x):
        state = module.initial_state(jnp.zeros((4, 8))).broadcast(1)
        return module(x, state, layout_lib.align((1, length), 1))[0]

      x = jax.ShapeDtypeStruct((1, length, 8), jnp.float32)
      variables = jax.eval_shape(
          lambda: layer.init(
              jax.random.key(0), jnp.zeros(x.shape, x.dtype), method=run
          )
      )
      step = jax.jit(lambda v, x: layer.apply(v, x, method=run))
      return step.lower(variables, x).compile()

    short, long = compiled(1024), compiled(4096)
    ratio = long.cost_analysis()["flops"] / short.cost_analysis()["flops"]
    self.assertLess(ratio, 4.5)
    memory = [c.memory_analysis().temp_size_in_bytes for c in (short, long)]
    self.assertLess(memory[1] / memory[0], 4.5)

  def test_starts_by_attending_to_itself(self):
    layer = attention.WindowAttention(
        model_dim=64, num_heads=1, head_dim=64, window=16
    )
    x = jax.random.normal(jax.random.key(0), (1, 16, 64))

    def scores(module, x):
      keys, _ = module.keys_values(x)
      return jnp.einsum("bthd,bshd->ts", module.queries(x), keys)

    scores, _ = layer.init_with_output(jax.random.key(1), x, method=scores)
    weights = jax.nn.softmax(scores * 64**-0.5, axis=-1)
    self.assertGreater(float(jnp.mean(jnp.diag(weights))), 0.7)


class RotaryTest(parameterized.TestCase):

  @parameterized.parameters(0, 1000, 10_000_000, 2_000_000_000)
  def test_exact_at_any_position(self, position):
    x = np.random.default_rng(0).normal(size=(1, 1, 1, 64)).astype(np.float32)
    actual = rotary.rotate(
        jnp.array(x), jnp.array([[position]], jnp.int32), 10_000.0
    )
    frequencies = 10_000.0 ** -(np.arange(0, 64, 2) / 64)
    angle = position * frequencies
    first, second = np.split(x[0, 0, 0].astype(np.float64), 2)
    expected = np.concatenate(
        [
            first * np.cos(angle) - second * np.sin(angle),
            second * np.cos(angle) + first * np.sin(angle),
        ]
    )
    np.testing.assert_allclose(actual[0, 0, 0], expected, atol=2e-3)

  def test_scores_depend_on_the_distance_alone(self):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16), jnp.float64)
    scores = []
    for first in (0, 123_456_789):
      at = lambda p: jnp.array([[p]], jnp.int32)
      rotated = rotary.rotate(q, at(first + 7), 1e4), rotary.rotate(
          k, at(first), 1e4
      )
      scores.append(jnp.sum(rotated[0] * rotated[1]))
    np.testing.assert_allclose(*scores, atol=1e-6)
