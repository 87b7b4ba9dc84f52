# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory's scan as one kernel: equal to `jax.lax.scan`, and compiled."""

import dataclasses
from unittest import mock

from absl.testing import parameterized
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import pytest

import pallas_kernels
from pallas_kernels import _aot
from tests import absent_tpu
from tests.memory import testing
import titans_jax as titans
from titans_jax import memory


def gradients(inputs, implementation):
  """Returns outputs, final state and gradients of a function of both."""
  tokens = dict(inputs.tokens)
  arrays = {k: tokens.pop(k) for k in ("mask", "resets") if k in tokens}

  def objective(values, state):
    tokens, params, weights, initial = values
    state = memory.MemoryState(
        state.chunk_start._replace(
            weights=tuple(
                jnp.broadcast_to(w, s.shape)
                for w, s in zip(weights, state.chunk_start.weights)
            )
        ),
        initial,
        state.open,
        state.count,
    )
    outputs, state = inputs.call(
        implementation, tokens=tokens | arrays, params=params, state=state
    )
    total = jnp.sum(jnp.sin(outputs))
    for w in state.weights + state.momentum:
      total += jnp.sum(jnp.cos(w))
    return total, (outputs, state.weights, state.momentum)

  values = (tokens, inputs.params, inputs.weights, inputs.state.initial)
  grad = jax.jit(jax.grad(objective, has_aux=True))
  return grad(values, inputs.state)


class KernelTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ("odd_sizes_tail", {"expansion": 1.5}, {"dim": 6, "chunk": 5}),
      (
          "masked_documents_clipped_held",
          {},
          {
              "mask": True,
              "resets": [(0, 4), (1, 8)],
              "max_grad_norm": 0.2,
              "gates_per_chunk": True,
          },
      ),
      (
          "no_momentum_no_forgetting",
          {},
          {"momentum": False, "forget": "none", "chunk": 16, "length": 32},
      ),
  )
  def test_equals_lax_scan(self, net, options):
    self.check_equals_lax_scan(net, options)

  @pytest.mark.exhaustive
  def test_equals_lax_scan_of_one_layer(self):
    net = {"depth": 1, "residual": False, "norm": False}
    self.check_equals_lax_scan(net, {})

  def check_equals_lax_scan(self, net, options):
    net = memory.MLP(**{"expansion": 2} | net)
    inputs = testing.make_inputs(net, dtype=jnp.float32, **options)
    testing.assert_close(
        gradients(inputs, "pallas"), gradients(inputs, "xla"), 1e-5
    )

  @pytest.mark.exhaustive
  def test_deep_networks(self):
    net = memory.MLP(depth=4, expansion=2)
    inputs = testing.make_inputs(net, length=8, dtype=jnp.float32)
    # Gentle writes: what a deep network makes of a difference in rounding grows
    # with them.
    gates = inputs.tokens["gates"]
    inputs.tokens["gates"] = dataclasses.replace(
        gates, learning_rate=0.1 * gates.learning_rate
    )
    testing.assert_close(
        gradients(inputs, "pallas"), gradients(inputs, "xla"), 1e-5
    )

  def test_no_races_and_nothing_read_before_it_is_written(self):
    inputs = testing.make_inputs(
        memory.MLP(expansion=2), length=11, mask=True, dtype=jnp.float32
    )
    params = pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan"
    )
    fused = pallas_kernels.fused_scan

    def interpreted(*arguments, **options):
      return fused(*arguments, **options | {"interpret": params, "group": 2})

    with mock.patch.object(pallas_kernels, "fused_scan", interpreted):
      actual = gradients(inputs, "pallas")
    testing.assert_close(actual, gradients(inputs, "xla"), 1e-5)

  def test_rounds_like_lax_scan(self):
    inputs = testing.make_inputs(
        memory.MLP(), dim=16, chunk=8, length=16, dtype=jnp.float32
    )
    inputs.options["dtype"] = "bfloat16"
    actual, expected = (gradients(inputs, i) for i in ("pallas", "xla"))
    # bfloat16 has 8 bits; a rounding that falls the other way moves what comes
    # after by that much.
    testing.assert_close(actual, expected, 2**-7)

  def test_one_token(self):
    inputs = testing.make_inputs(
        memory.MLP(expansion=2), length=1, dtype=jnp.float32
    )
    actual, _ = inputs.call("pallas")
    expected, _ = inputs.call("xla")
    testing.assert_close(actual, expected, 1e-6)

  def test_refuses_gates_per_channel(self):
    inputs = testing.make_inputs(
        memory.MLP(), forget="channel", dtype=jnp.float32
    )
    with self.assertRaisesRegex(ValueError, "per output channel.*'pallas'"):
      inputs.call("pallas")

  def test_refuses_float64(self):
    inputs = testing.make_inputs(memory.MLP())
    with self.assertRaisesRegex(ValueError, "no float64 on TPU"):
      inputs.call("pallas")


class _Compiled(parameterized.TestCase):
  """Compiles for TPUs that are not there (compiler, not measurement)."""

  def check_kernels(self, chip, heads, dim, chunk, dtype="bfloat16"):
    """Compiles the kernels of 4,096 tokens with documents in them."""
    absent_tpu.devices(self, _aot.TOPOLOGIES[chip])
    case = _aot.Case(
        chip, dim, 4 * dim, chunk, heads, documents=True, dtype=dtype
    )
    with jax.enable_x64(False):
      cut = _aot.compile_case(case)
    for direction in ("forward", "backward"):
      self.assertGreater(cut[direction]["vmem_bytes"], 0)


class CompiledTest(_Compiled):

  def check(self, topology, dim, chunk):
    text = absent_tpu.compile_memory(self, topology, dim=dim, chunk=chunk)
    for name in ("fused_scan_forward", "fused_scan_backward"):
      self.assertIn(name, text)
    # No scan over chunks beside it.
    self.assertNotIn("while(", text)

  def test_through_the_scan(self):
    self.check("v5e:2x2", dim=48, chunk=16)

  @pytest.mark.slow
  def test_float32_fits_too(self):
    # A product's operands are split into parts, which take VMEM.
    self.check_kernels("v5p", heads=16, dim=96, chunk=16, dtype="float32")

  def test_falls_back_where_vmem_is_too_small(self):
    # Heads of 256 channels, weights and momentum of 4 MiB, on v4
    with self.assertRaisesRegex(AssertionError, "fused_scan_forward"):
      self.check("v4:2x2x1", dim=256, chunk=16)

  def test_sharded_over_rows_and_heads(self):
    mesh = jax.sharding.Mesh(
        absent_tpu.devices(self, "v5e:2x2").reshape(2, 2), ("data", "tensor")
    )
    layer = titans.NeuralMemory(16, 2, 8, chunk_size=8)
    shape = jax.ShapeDtypeStruct((4, 16, 16), jnp.float32)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.enable_x64(False), jax.set_mesh(mesh):
      variables = jax.eval_shape(
          lambda x: layer.init(jax.random.key(0), x), shape
      )

      def loss(variables, x):
        return jnp.sum(layer.apply(variables, x)[0])

      jitted = jax.jit(jax.grad(loss), in_shardings=(whole, rows))
      text = jitted.lower(variables, shape).compile().as_text()
    self.assertIn("fused_scan_backward", text)
    # Each of the four chips has two of the four rows and one of the two heads.
    self.assertRegex(text, r"f32\[2,1,8,32\]\S* custom-call|f32\[2,1,8,32\]")


def _preset_sizes():
  """Returns (heads, head dimension, chunk) of the presets, each kernel once."""
  makers = [
      make
      for name, make in vars(titans.presets).items()
      if name == "tiny" or name.startswith("titans_")
  ]
  sizes = set()
  for config in (make() for make in makers):
    # A program of large heads has at most four: more are the same program again.
    fours = config.head_dim == 128 and config.num_heads % 4 == 0
    heads = 4 if fours else config.num_heads
    sizes.add((heads, config.head_dim, config.chunk_size))
  return sorted(sizes)


# On the class: absl's parameterized methods lose a mark of their own.
@pytest.mark.exhaustive
class EveryPresetTest(_Compiled):

  @parameterized.product(chip=list(_aot.TOPOLOGIES), sizes=_preset_sizes())
  def test_compiles(self, chip, sizes):
    if chip == "v4" and sizes[1] == 256:
      self.skipTest("Does not fit v4's VMEM, as tested above.")
    self.check_kernels(chip, *sizes)


if __name__ == "__main__":
  from absl.testing import absltest

  absltest.main()
