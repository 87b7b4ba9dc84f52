# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The NNX modules compute what the Linen modules do."""

from absl.testing import absltest
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

import titans_jax as titans
from titans_jax import nnx as titans_nnx


class NeuralMemoryTest(absltest.TestCase):

  def test_in_a_user_s_module(self):
    fields = {
        "model_dim": 8,
        "num_heads": 2,
        "head_dim": 4,
        "chunk_size": 4,
        "net": titans.memory.MLP(depth=1, residual=False),
    }

    class Model(nnx.Module):

      def __init__(self, rngs):
        self.first = nnx.Linear(8, 8, rngs=rngs)
        self.memory = titans_nnx.NeuralMemory(**fields, rngs=rngs)

      def __call__(self, x, state=None):
        y, state = self.memory(self.first(x), state)
        return x + y, state

    @nnx.jit
    def create():
      return Model(nnx.Rngs(0))

    @nnx.jit
    def read(model, x, state=None):
      return model(x, state)

    @nnx.jit
    def gradient(model, x):
      return nnx.grad(lambda model: jnp.sum(model(x)[0] ** 2))(model)

    model = create()
    x = jax.random.normal(jax.random.key(1), (2, 12, 8))
    whole, _ = read(model, x)
    # It is the Linen layer behind the first map
    linen = titans.NeuralMemory(**fields)
    expected, _ = jax.jit(linen.apply)(model.memory.variables, model.first(x))
    np.testing.assert_allclose(whole, x + expected, atol=1e-6)
    # The state goes in and comes out
    first, state = read(model, x[:, :7])
    second, _ = read(model, x[:, 7:], state)
    parts = jnp.concatenate([first, second], axis=1)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    # Every parameter has a gradient
    grads = jax.tree.leaves(nnx.to_pure_dict(gradient(model, x)))
    self.assertLen(grads, len(jax.tree.leaves(nnx.state(model, nnx.Param))))
    self.assertTrue(all(np.any(g) for g in grads))


class TitansLMTest(absltest.TestCase):

  def test_is_the_linen_model(self):
    config = titans.presets.tiny(variant="transformer", num_layers=1)
    model = nnx.jit(lambda: titans_nnx.TitansLM(config, rngs=nnx.Rngs(0)))()
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    state = model.init_state(batch_size=2)
    loss = nnx.jit(lambda m, t, s: m.loss(t, t, s)[0])(model, tokens, state)
    expected = jax.jit(
        lambda v: model.linen.apply(v, tokens, tokens, method="loss")[0]
    )(model.variables)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    new = titans.generate(
        model.linen, model.variables, tokens, max_new_tokens=2, temperature=0
    )
    self.assertEqual(new.shape, (2, 2))


if __name__ == "__main__":
  absltest.main()
