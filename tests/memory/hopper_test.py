# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The kernel for Hopper GPUs: equal to `jax.lax.scan`, and compiled, without one."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import _aot_gpu
from pallas_kernels import _problems
from pallas_kernels import selfcheck
from pallas_kernels import tuning
from tests import absent_gpu
from tests.memory import dual_test
from tests.memory import kernel_test
from tests.memory import testing
from titans_jax import memory
from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import dual
from titans_jax.memory import hopper
from titans_jax.memory import scanning
from titans_jax.memory.hopper import coefficients
from titans_jax.memory.hopper import fused
from titans_jax.memory.hopper import shapes
from titans_jax.memory.hopper import tiles
from titans_jax.models import language_model
from titans_jax.training import overlay
from titans_jax.training import recipes


def interpret_params(test):
  """Returns how a kernel is interpreted. A race raises.

  Args:
    test: skipped where it cannot be.
  """
  if not hasattr(hopper.plgpu, "InterpretGPUParams"):
    test.skipTest(f"Interpreting takes jax 0.11, this is {jax.__version__}.")
  return hopper.plgpu.InterpretGPUParams(
      detect_races=True, uninitialized_memory="nan"
  )


def interpreted(test):
  """Puts the kernels, interpreted, in the TPU kernel's place.

  Args:
    test: skipped where they cannot be.
  """
  params = interpret_params(test)

  def run(step, carry, prepared, constants, *, group, interpret):
    del interpret
    options = step.options
    return hopper.scan(
        dataclasses.replace(options, dtype=options.dtype or jnp.float32),
        carry,
        prepared,
        constants,
        group=group,
        interpret=params,
    )

  return mock.patch.object(pallas_kernels, "fused_scan", run)


class InterpretedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(False))

  @parameterized.named_parameters(
      # Two warpgroups, a chunk that stays open.
      ("two_warpgroups", 8, 2**32, {"length": 40, "mask": True}),
      # Two tiles a warpgroup.
      ("wide", 4, 2**32, {"length": 32, "dim": 64}),
      # Three blocks that share a head, of two warpgroups and two panels. (The four of
      # 128 channels are as many threads as JAX has here for all callbacks, and then
      # wait for ever.)
      ("cluster", 4, 2**32, {"length": 40, "dim": 96, "mask": True}),
      (
          "cluster_bounded_documents",
          4,
          1,
          {
              "length": 48,
              "dim": 96,
              "max_grad_norm": 20.0,
              "checkpoint_every": 2,
              "resets": [(0, 32)],
          },
      ),
      # A prime number of chunks, in spans of two, of which one state is kept.
      (
          "held_gates_kept_in_groups",
          4,
          1,
          {"length": 64, "gates_per_chunk": True, "checkpoint_every": 2},
      ),
      # Documents that start at once, within a group and with a span, other ones
      # in every row.
      (
          "documents",
          8,
          1,
          {
              "batch": 2,
              "heads": 2,
              "length": 48,
              "checkpoint_every": 2,
              "resets": [(0, 16), (1, 0), (1, 32)],
          },
      ),
      # Some gradients of the first layer below the bound, none of the second.
      (
          "bounded",
          8,
          2**32,
          {
              "length": 40,
              "mask": True,
              "max_grad_norm": 9.0,
              "resets": [(0, 16)],
          },
      ),
      (
          "bounded_wide",
          4,
          2**32,
          {
              "length": 32,
              "dim": 64,
              "max_grad_norm": 20.0,
          },
      ),
      # Some of the second below it, all of the first.
      (
          "second_layer_bounded_kept_in_groups",
          8,
          1,
          {"length": 64, "max_grad_norm": 90.0, "checkpoint_every": 2},
      ),
      (
          "documents_spans_of_one",
          4,
          1,
          {"length": 32, "resets": [(0, 0), (0, 16)]},
      ),
  )
  def test_equals_lax_scan(self, expansion, span_bytes, options):
    inputs = testing.make_inputs(
        memory.MLP(expansion=expansion),
        **{"batch": 1, "heads": 1, "dim": 16, **options},
        chunk=16,
        dtype=jnp.float32,
    )
    # Gentle writes: a chunk's tokens are many for so small a memory.
    gates = inputs.tokens["gates"]
    rate = min(0.1, 2 / inputs.tokens["keys"].shape[-1])
    inputs.tokens["gates"] = dataclasses.replace(
        gates, learning_rate=rate * gates.learning_rate
    )
    with (
        interpreted(self),
        mock.patch.object(fused, "_SPAN_BYTES", span_bytes),
    ):
      actual = kernel_test.gradients(inputs, "pallas")
    # Gradients by gates that meet the products of many chunks.
    testing.assert_close(actual, kernel_test.gradients(inputs, "xla"), 2e-5)

  @parameterized.parameters((16, None), (16, 9.0), (96, 9.0))
  def test_rounds_as_much_as_lax_scan(self, head_dim, max_grad_norm):
    problem = _problems.Problem(
        head_dim=head_dim,
        chunk=16,
        depth=2,
        hidden=4 * head_dim,
        batch=1,
        heads=2,
        length=40,
        mask=True,
        max_grad_norm=max_grad_norm,
        dtype="bfloat16",
    )
    inputs = problem.inputs()
    cotangents = _problems.cotangents(problem, inputs)

    def run(name, dtype="bfloat16"):
      scan = _problems.implementation(name)
      problem_ = dataclasses.replace(problem, dtype=dtype)
      return _problems.backward(scan, problem_)(inputs, cotangents)

    with interpreted(self):
      kernel = run("pallas")
    exact, rounded = run("xla", "float32"), run("xla")
    # It rounds momentum, kept states and a few products' operands once more.
    for i, apart in enumerate((True, False)):
      worst = selfcheck.worst(
          selfcheck.errors(kernel[i], exact[i], selfcheck.by_norm),
          selfcheck.rounding_bounds(rounded[i], exact[i], apart),
      )
      self.assertTrue(worst.ok, worst)


class CoefficientsTest(parameterized.TestCase):

  @parameterized.parameters((16, False), (32, True), (64, True))
  def test_values_and_derivatives_are_those_of_dual(self, size, mask):
    params = interpret_params(self)
    self.enter_context(jax.enable_x64(False))
    alpha, theta, eta, written = dual_test.gates(size, mask=mask)
    # Between the ends of the range too, in one of two chunks.
    alpha = np.stack([alpha, 0.2 * theta])
    eta = np.stack([eta, 1 - 0.3 * theta])
    mu = np.broadcast_to(written, (2, 1, size)).astype(np.float32)

    def results(make):
      def run(alpha, eta, theta):
        return make(dual.Gates(1 - alpha, eta, mu if mask else None, theta))

      given = (
          np.swapaxes(alpha, 1, 2),
          np.swapaxes(eta, 1, 2),
          np.stack([theta.T.reshape(1, -1)] * 2),
      )
      given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), given)
      found, vjp = jax.vjp(run, *given)
      rng = np.random.default_rng(0)
      cotangents = jax.tree.map(
          lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), found
      )
      return found, vjp(cotangents)

    testing.assert_close(
        results(functools.partial(coefficients.coefficients, interpret=params)),
        results(dual.coefficients),
        2e-6,
    )


class RestTest(parameterized.TestCase):
  """What rounding leaves of weights, in bytes."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    tie = 1 + 2**-8
    special = [0.0, 1.0, 2 - 2**-20, tie, -tie, tie + 2**-23, 3e-30, -7e20]
    x = np.concatenate([rng.normal(size=1000), special])
    self.x = jnp.asarray(x, jnp.float32)
    self.rests = jnp.asarray(
        rng.integers(-(2**31), 2**31, size=x.size), jnp.int32
    )

  @parameterized.parameters(0, 1, 2, 3)
  def test_sixteen_bits_come_back(self, place):
    rounded = self.x.astype(jnp.bfloat16)
    rests = tiles.with_rest(self.rests, place, self.x, rounded)
    found = tiles.whole(rounded, rests, place)
    error = np.abs(np.asarray(found, np.float64) - np.asarray(self.x))
    # A unit: half of one but where rounding left all but half of its own.
    np.testing.assert_array_less(error, 2**-15 * np.abs(self.x) + 1e-45)
    # It would be half of the last of eight bits without.
    left = np.abs(np.asarray(rounded, np.float64) - np.asarray(self.x))
    self.assertGreater(np.sum(left), 100 * np.sum(error))

  @parameterized.parameters(0, 1, 2, 3)
  def test_others_stay(self, place):
    rests = tiles.with_rest(
        self.rests, place, self.x, self.x.astype(jnp.bfloat16)
    )
    others = [i for i in range(4) if i != place]
    as_bytes = lambda x: np.asarray(x).astype("<i4").view(np.int8)
    np.testing.assert_array_equal(
        as_bytes(rests).reshape(-1, 4)[:, others],
        as_bytes(self.rests).reshape(-1, 4)[:, others],
    )

  def test_rounded_the_other_way(self):
    # A stored rest may round up to the middle, behind which the nearest is another.
    x = jnp.float32(1 + 2**-8)
    for rounded in (1.0, 1 + 2**-7):
      rounded = jnp.bfloat16(rounded)
      rests = tiles.with_rest(jnp.int32(0), 1, x, rounded)
      self.assertAlmostEqual(tiles.whole(rounded, rests, 1), x, delta=2**-15)

  def test_float32_is_exact(self):
    rests = tiles.with_rest(self.rests, 2, self.x, self.x)
    np.testing.assert_array_equal(tiles.whole(self.x, rests, 2), self.x)


class WhyNotTest(parameterized.TestCase):

  def reason(self, net=None, *, dim=64, chunk=16, dtype="bfloat16", **options):
    rule = chunk_lib.Rule(
        net or memory.MLP(), dtype=dtype and jnp.dtype(dtype), **options
    )
    return hopper.why_not_shape(rule, (1, 1, 2, chunk, dim))

  @parameterized.product(dim=hopper.WIDTHS, chunk=hopper.CHUNKS)
  def test_sizes_that_run(self, dim, chunk):
    self.assertIsNone(self.reason(dim=dim, chunk=chunk))

  @parameterized.parameters(
      ({"dim": 256}, "head dimensions of 16, 32, 48, 64, 96, 128, not of 256"),
      ({"chunk": 24}, "chunks of 16, 32, 64 tokens, not of 24"),
      ({"dtype": None}, "of bfloat16"),
      ({"net": memory.MLP(expansion=2)}, "256 hidden units, not 128"),
  )
  def test_sizes(self, options, message):
    self.assertRegex(self.reason(**options), message)

  @parameterized.parameters(
      ({"depth": 3}, {}, "not for MLP.depth=3"),
      ({"activation": "silu"}, {}, "silu"),
      ({}, {"momentum": False}, "without momentum"),
  )
  def test_rules(self, net, options, message):
    inputs = testing.make_inputs(
        memory.MLP(**net), dim=16, dtype=jnp.float32, **options
    )
    reasons = []

    def note(rule, carry, chunks):
      del chunks
      reasons.append(hopper.why_not_rule(rule, carry))
      return "noted"

    with (
        mock.patch.object(hopper, "why_not", note),
        mock.patch.object(tuning, "gpu_kind", lambda: "NVIDIA H200"),
        self.assertLogs(level="INFO") as logs,
    ):
      scanning._log_once.cache_clear()
      inputs.call("auto")
    self.assertIn("no kernel on cuda: noted.", logs.output[-1])
    self.assertRegex(reasons[0], message)

  @parameterized.parameters((64, True), (128, False))
  def test_a_cluster_has_to_be_asked_for(self, dim, by_itself):
    keys = jax.ShapeDtypeStruct((1, 1, 2, 64, dim), jnp.float32)
    chunks = chunk_lib.Prepared(*[None] * len(chunk_lib.Prepared._fields))
    reason = hopper.why_not_unasked(chunks._replace(keys=keys))
    if by_itself:
      self.assertIsNone(reason)
    else:
      self.assertRegex(reason, "cluster of blocks.*'pallas' asks for it")

  def test_asked_for_on_a_gpu_without_it(self):
    inputs = testing.make_inputs(memory.MLP(), dim=16, dtype=jnp.float32)
    with (
        mock.patch.object(tuning, "gpu_kind", lambda: "NVIDIA A100"),
        self.assertRaisesRegex(
            ValueError, "'pallas': the kernel .*; 'auto' and"
        ),
    ):
      inputs.call("pallas")

  @parameterized.parameters(
      (65, 1, 2**32, 33),  # two spans, of one more chunk than there are
      (64, 1, 2**31, 16),  # four, where three would add chunks
      (65, 4, 2**28, 4),
      (65, 4, 2**40, 68),
      (65, 32, 1, 32),
  )
  def test_spans_hold_whole_groups(self, chunks, kept, most, expected):
    shape = shapes.Shape(
        instances=128,
        chunks=chunks,
        chunk=64,
        width=64,
        hidden=256,
        dtype=jnp.dtype("bfloat16"),
    )
    with mock.patch.object(fused, "_SPAN_BYTES", most):
      self.assertEqual(hopper.choose_span(shape, kept), expected)


def compile_(case: _aot_gpu.Case):
  """Compiles in a process of its own, where Mosaic reports.

  Returns:
    `_aot_gpu.compile_case`'s result, ptxas's report, and the kernels as PTX.
  """
  process = subprocess.run(
      [sys.executable, "-m", _aot_gpu.__name__, json.dumps(vars(case))],
      capture_output=True,
      encoding="utf-8",
      errors="replace",
      env=os.environ
      | {"JAX_PLATFORMS": "cpu", "MOSAIC_GPU_DUMP_PTX": "1"}
      | _aot_gpu.REPORT,
      check=True,
  )
  text = process.stdout
  result = json.loads(text.splitlines()[-1])
  return result, _aot_gpu.read_report(text), text


class _Compiled(absent_gpu.TestCase):
  """Compiles for GPUs that are not there (compiler, not measurement)."""

  def check_spills(
      self, target, dim, chunk, max_grad_norm, *, most=0, most_backward=0
  ):
    case = _aot_gpu.Case(
        target, dim, 4 * dim, chunk, heads=4, max_grad_norm=max_grad_norm
    )
    result, kernels, ptx = compile_(case)
    if dim > 64:
      self.check_fences(ptx)
    bounds = {
        "forward": most,
        "forward, kept": most,
        "backward": most_backward,
    }
    self.assertEqual(set(kernels), set(hopper.KERNELS))
    for name, kernel in kernels.items():
      bound = bounds.get(hopper.KERNELS[name], 0)
      self.assertLessEqual(kernel["spill_stores"], bound, name)
      self.assertLessEqual(kernel["spill_loads"], bound, name)
      block = result["kernels"][name]
      blocks = _aot_gpu.blocks_per_core(
          target,
          kernel["registers"],
          block["threads"],
          block["shared_bytes"],
      )
      self.assertGreaterEqual(blocks, 1)

  def check_fences(self, ptx):
    """Blocks of a cluster meet between fences, which interpreting does without."""
    fence, arrive = "fence.acq_rel.cluster", "mbarrier.arrive.shared::cluster"
    wait = "mbarrier.try_wait"
    steps = re.findall("|".join(map(re.escape, (fence, arrive, wait))), ptx)
    meetings = [i for i, step in enumerate(steps) if step == arrive]
    self.assertNotEmpty(meetings)
    for i in meetings:
      self.assertEqual(steps[i - 1 : i + 3], [fence, arrive, wait, fence])


class CompiledTest(_Compiled):

  def test_states_kept_in_groups(self):
    # Those between are made again from one that has no rest.
    case = _aot_gpu.Case("h200", 16, 64, 16, heads=1, group=2)
    result, kernels, _ = compile_(case)
    self.assertEqual(result.get("keep_every"), 2, result)
    self.assertEqual(set(kernels), set(hopper.KERNELS))

  @parameterized.parameters(
      (48, 16, None),
      (64, 16, None),
      # A number that is read again once a scan or chunk, of the backward kernel.
      (64, 64, None, 8),
      # A cluster of three blocks.
      (96, 16, None),
      # As pretraining has it.
      (48, 16, 1.0, 8),
      (64, 16, 1.0),
      (96, 16, 1.0),
  )
  def test_without_spills(self, dim, chunk, max_grad_norm, most_backward=0):
    self.check_spills(
        "h200", dim, chunk, max_grad_norm, most_backward=most_backward
    )

  def test_something_is_left_of_initial_weights(self):
    # XLA for GPUs takes a number that is rounded and widened for itself.
    shape = shapes.Shape(
        instances=1,
        chunks=1,
        chunk=16,
        width=16,
        hidden=64,
        dtype=jnp.dtype("bfloat16"),
    )
    x = jax.ShapeDtypeStruct((1, 1, 16, 64), jnp.float32)
    carry = chunk_lib.Carry((x, x), (x, x))
    with _aot_gpu.tracing_for("h200") as sharding, jax.enable_x64(False):
      pack = jax.jit(
          functools.partial(shapes.pack, shape),
          in_shardings=sharding,
          out_shardings=sharding,
      )
      text = pack.lower(carry).compile().as_text()
    self.assertRegex(text, r"subtract\(")
    self.assertNotRegex(text, r"subtract\((%\S+), \1\)")

  @parameterized.parameters(
      (16, "pallas", True),
      (16, "auto", True),
      (16, "xla", False),
      (96, "auto", False),
      (96, "pallas", True),
  )
  def test_through_the_scan_and_back(self, dim, implementation, expected):
    problem = _problems.Problem(
        dim,
        16,
        depth=2,
        hidden=4 * dim,
        batch=1,
        heads=2,
        length=32,
        packed=True,
        documents=True,
        dtype="bfloat16",
    )
    with jax.enable_x64(False):
      inputs = jax.eval_shape(problem.inputs)
      with _aot_gpu.tracing_for("h200") as sharding:
        scan = functools.partial(problem.scan, implementation)
        results = jax.eval_shape(scan, inputs)

        def back(inputs, cotangents):
          return jax.vjp(scan, inputs)[1](cotangents)

        jitted = jax.jit(back, in_shardings=sharding, out_shardings=sharding)
        text = jitted.lower(inputs, results).compile().as_text()
    for name in ("fused_memory_scan_keeping", "fused_memory_scan_backward"):
      self.assertEqual(name in text, expected, name)

  def test_what_pretraining_runs(self):
    values = recipes.pretraining("170m", "lmm")
    values.model.update(num_layers=1, vocab_size=64)
    model = language_model.TitansLM(overlay.run_config(values, 64).model)
    tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    scanning._log_once.cache_clear()
    with (
        jax.enable_x64(False),
        _aot_gpu.tracing_for("h200"),
        self.assertLogs(level="INFO") as logs,
    ):
      jax.eval_shape(
          functools.partial(model.init, jax.random.key(0)),
          tokens,
          document_ids=tokens,
      )
    self.assertIn("max_grad_norm=1.0", logs.output[-1])
    self.assertIn("a kernel on cuda", logs.output[-1])

  def test_other_gpus_have_no_kernel(self):
    with _aot_gpu.tracing_for("a100"):
      reason = hopper.why_not(None, None, None)
    self.assertIn("not for NVIDIA A100", reason)


# On the class: absl's parameterized methods lose a mark of their own.
@pytest.mark.exhaustive
class EverySizeTest(_Compiled):

  @parameterized.product(
      target=_aot_gpu.TARGETS,
      dim=hopper.WIDTHS,
      chunk=hopper.CHUNKS,
      max_grad_norm=(None, 1.0),
  )
  def test_spills(self, target, dim, chunk, max_grad_norm):
    # 168 registers of a thread are few for 48 channels, 255 for 128. Bytes of the
    # forward kernels and of the backward kernel.
    some = {
        (48, 16, 1.0): (0, 8),
        (48, 32, None): (24, 16),
        (48, 32, 1.0): (32, 8),
        (48, 64, None): (132, 56),
        (48, 64, 1.0): (176, 36),
        (64, 32, 1.0): (0, 12),
        (64, 64, None): (0, 8),
        (96, 64, 1.0): (0, 4),
        (128, 16, None): (40, 4),
        (128, 16, 1.0): (8, 40),
        (128, 32, None): (12, 24),
        (128, 32, 1.0): (16, 24),
        (128, 64, None): (8, 20),
        (128, 64, 1.0): (28, 24),
    }
    most, most_backward = some.get((dim, chunk, max_grad_norm), (0, 0))
    self.check_spills(
        target,
        dim,
        chunk,
        max_grad_norm,
        most=most,
        most_backward=most_backward,
    )


if __name__ == "__main__":
  absltest.main()
