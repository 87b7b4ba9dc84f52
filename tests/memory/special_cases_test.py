# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Known rules are cases of the memory's: beside recurrences of their own."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import memory
from titans_jax.memory import special_cases
from titans_jax.models import presets

BATCH, LENGTH, HEADS, DIM = 2, 11, 2, 4


def layer_norm(x):
  x = x - x.mean(-1, keepdims=True)
  return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def gelu(x):
  return x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


class SpecialCasesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    shape = BATCH, LENGTH, HEADS, DIM
    self.q, self.v = rng.normal(size=(2, *shape))
    self.k = rng.normal(size=shape)
    self.k /= np.linalg.norm(self.k, axis=-1, keepdims=True)
    self.alpha, self.beta = rng.uniform(0.3, 0.99, size=(2, *shape[:3]))

  def run_case(self, case, weights):
    state = memory.init_state(
        case.net,
        weights,
        batch_size=BATCH,
        chunk_size=case.chunk_size,
        momentum=False,
    )
    scan = jax.jit(
        lambda state, q, k, v, gates: memory.scan(
            case.net, state, q, k, v, gates
        )
    )
    outputs, state = scan(state, self.q, self.k, case.values, case.gates)
    return np.asarray(outputs), [np.asarray(w) for w in state.weights]

  @parameterized.parameters(False, True)
  def test_delta_rules(self, gated):
    if gated:
      case = special_cases.gated_delta_rule(self.v, self.alpha, self.beta)
    else:
      case = special_cases.delta_rule(self.v, self.beta)
    w0 = np.random.default_rng(1).normal(size=(HEADS, DIM, DIM))
    outputs, (final,) = self.run_case(case, (w0,))
    for row, head in np.ndindex(BATCH, HEADS):
      w = w0[head]
      for t in range(LENGTH):
        k, v = self.k[row, t, head], self.v[row, t, head]
        beta, alpha = self.beta[row, t, head], self.alpha[row, t, head]
        if gated:  # as Gated DeltaNet's equation 10 has it
          w = alpha * (np.eye(DIM) - beta * np.outer(k, k)) @ w
          w = w + beta * np.outer(k, v)
        else:
          w = w + beta * np.outer(k, v - k @ w)
        np.testing.assert_allclose(
            outputs[row, t, head], self.q[row, t, head] @ w, atol=1e-9
        )
      np.testing.assert_allclose(final[row, head], w, atol=1e-9)

  def test_ttt_linear(self):
    case = special_cases.ttt_linear(self.v, self.beta, chunk_size=4)
    w0 = np.random.default_rng(1).normal(size=(HEADS, DIM, DIM))
    outputs, (final,) = self.run_case(case, (w0,))
    for row, head in np.ndindex(BATCH, HEADS):
      w = start = w0[head]
      for t in range(LENGTH):
        if t % 4 == 0:
          start = w
        k, v = self.k[row, t, head], self.v[row, t, head]
        # The gradient through LN by hand, with (LN(z) - (v - k)) at its output.
        z = k @ start
        centred = z - z.mean()
        deviation = np.sqrt((centred**2).mean() + 1e-6)
        hat = centred / deviation
        error = hat - (v - k)
        delta = (error - error.mean() - hat * (error * hat).mean()) / deviation
        w = w - self.beta[row, t, head] * np.outer(k, delta)
        q = self.q[row, t, head]
        np.testing.assert_allclose(
            outputs[row, t, head], q + layer_norm(q @ w), atol=1e-9
        )
      np.testing.assert_allclose(final[row, head], w, atol=1e-9)

  def test_ttt_mlp(self):
    case = special_cases.ttt_mlp(self.v, self.beta, chunk_size=LENGTH)
    w0 = case.net.init(
        jax.random.key(0), num_heads=HEADS, head_dim=DIM, dtype="float64"
    )
    w0 = [np.asarray(w) for w in w0]
    outputs, _ = self.run_case(case, tuple(w0))
    row, head = 1, 1

    def loss(weights, k, v):
      first, second = weights
      error = k + layer_norm(gelu(k @ first) @ second) - v
      return jnp.sum(error**2) / 2

    start = [w[head] for w in w0]
    moved = list(start)
    for t in range(LENGTH):
      k, v = self.k[row, t, head], self.v[row, t, head]
      rate = self.beta[row, t, head]
      for layer, grad in enumerate(jax.grad(loss)(start, k, v)):
        moved[layer] = moved[layer] - rate * grad
      q = self.q[row, t, head]
      expected = q + layer_norm(gelu(q @ moved[0]) @ moved[1])
      np.testing.assert_allclose(outputs[row, t, head], expected, atol=1e-9)

  @parameterized.parameters(
      "delta_rule", "gated_delta_rule", "ttt_linear", "ttt_mlp"
  )
  def test_presets(self, name):
    config = getattr(presets, name)(num_layers=2, model_dim=64)
    self.assertEqual(config.variant, "lmm")
    self.assertFalse(config.momentum)
    case = getattr(special_cases, name)(
        *[self.v, self.alpha, self.beta][: 3 if name[0] == "g" else 2]
    )
    self.assertEqual(config.memory, case.net)
    self.assertEqual(config.chunk_size, case.chunk_size)
    self.assertEqual(config.forget != "none", case.gates.forget is not None)
