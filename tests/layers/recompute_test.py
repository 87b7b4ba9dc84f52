# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is made again in the backward pass, and that nothing changes by it."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

from tests.memory import testing
from titans_jax.layers import feed_forward
from titans_jax.layers import neural_memory
from titans_jax.layers import recompute


def kept(fn, *args):
  """Returns the shapes of the arrays that a derivative keeps."""
  return jax.tree.leaves(jax.eval_shape(lambda *x: jax.vjp(fn, *x)[1], *args))


class LightTest(absltest.TestCase):

  def test_keeps_products_alone(self):
    x = jax.random.normal(jax.random.key(0), (2, 8, 4))
    plain = feed_forward.SwiGLU(32)
    light = recompute.light(feed_forward.SwiGLU)(32)
    variables = plain.init(jax.random.key(1), x)

    def hidden(module):
      arrays = kept(module.apply, variables, x)
      return [y for y in arrays if y.shape == (2, 8, 32)]

    self.assertLen(hidden(light), 2)  # What the two projections gave.
    self.assertGreater(len(hidden(plain)), 3)

    def gradient(module):
      return jax.grad(lambda *args: jnp.sum(module.apply(*args) ** 2), (0, 1))(
          variables, x
      )

    testing.assert_close(gradient(light), gradient(plain), 1e-12)

  def test_a_memory_keeps_little_for_a_token(self):
    layer = neural_memory.NeuralMemory(
        16, num_heads=2, head_dim=8, chunk_size=4
    )
    x = jax.random.normal(jax.random.key(0), (3, 20, 16))
    variables = jax.eval_shape(layer.init, jax.random.key(1), x)
    numbers = sum(
        y.size
        for y in kept(lambda v, x: layer.apply(v, x)[0], variables, x)
        if y.shape[:2] == (3, 20)
    )
    # The input, five projections, and the memory's outputs.
    self.assertLess(numbers, 7 * x.size)


if __name__ == "__main__":
  absltest.main()
