# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The planner: what it counts, and what it refuses."""

import importlib.util
import json

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest

from experiments import _hlo
from experiments import _operations
from tests.experiments import processes

_PROGRAM = """
HloModule test

%body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg = (s32[], f32[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[8,128]{1,0} get-tuple-element(%arg), index=1
  %y = bf16[4,128]{1,0} constant({...})
  %both = (f32[8,128]{1,0}, bf16[4,128]{1,0}) all-reduce(%x, %y), to_apply=%add, metadata={op_name="jit(f)/sum"}
  %z = f32[8,128]{1,0} get-tuple-element(%both), index=0
  ROOT %t = (s32[], f32[8,128]{1,0}) tuple(%i, %z)
}

%condition (arg.1: (s32[], f32[8,128])) -> pred[] {
  %arg.1 = (s32[], f32[8,128]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%arg.1), index=0
  %n = s32[] constant(10)
  ROOT %lt = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (a: f32[2,128]) -> f32[8,128] {
  %a = f32[2,128]{1,0} parameter(0)
  %start = (f32[2,128]{1,0}, f32[8,128]{1,0}) all-gather-start(%a), dimensions={0}, metadata={op_name="jit(f)/gather"}
  %g = f32[8,128]{1,0} all-gather-done(%start)
  %zero = s32[] constant(0)
  %init = (s32[], f32[8,128]{1,0}) tuple(%zero, %g)
  %loop = (s32[], f32[8,128]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %out = f32[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""


class CollectivesTest(absltest.TestCase):

  def test_counts_what_is_sent(self):
    found = list(_hlo.collectives(_PROGRAM))
    self.assertEqual(
        [(c.kind, c.shape, c.times, c.bytes) for c in found],
        [
            ("all-gather", "f32[8,128]", 1, 4096),
            ("all-reduce", "f32[8,128]", 10, 40960),
            ("all-reduce", "bf16[4,128]", 10, 10240),
        ],
    )
    self.assertEqual(found[0].source, "jit(f)/gather")


class OperationsTest(absltest.TestCase):

  def test_counts_loops_and_recomputation(self):
    # Given five products, each made again for its derivatives
    matrix = jnp.ones((8, 8))

    def loss(x):
      step = jax.checkpoint(lambda x, _: (jnp.sin(x @ matrix), None))
      return jnp.sum(jax.lax.scan(step, x, None, length=5)[0])

    jaxpr = jax.make_jaxpr(jax.grad(loss))(jnp.ones((2, 8)))
    count = _operations.of_program(jaxpr, "tpu")
    product = 2 * 2 * 8 * 8
    # Then forward and the derivative by x are counted apart from that
    self.assertEqual(count.once, 5 * 2 * product)
    self.assertEqual(count.again, 5 * product)

  def test_counts_every_device(self):
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("data",))
    rows = jax.sharding.PartitionSpec("data")
    product = jax.shard_map(
        lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows
    )
    jaxpr = jax.make_jaxpr(product)(jnp.ones((8, 8)))
    count = _operations.of_program(jaxpr, "tpu")
    self.assertEqual(count.total, 4 * 2 * 2 * 2 * 8)


class CommandTest(parameterized.TestCase):

  def plan(self, *args, needs="libtpu"):
    if importlib.util.find_spec(needs) is None:
      self.skipTest(f"Compiling for absent chips takes {needs} (an extra).")
    workdir = processes.folder(self)
    process = processes.run(
        "plan",
        f"--workdir={workdir}",
        "--topology=v5e:2x2",
        *args,
    )
    return process, workdir

  @parameterized.parameters(
      (("--topology=v9:2x2",), "must be GENERATION:SHAPE"),
      (
          ("--config.parallel.data=3",),
          "mesh data=3 x fsdp=. x tensor=1 .* does not match 4 devices",
      ),
      (("--config.data.batch_size=6",), "batch_size=6 is not a multiple of 4"),
      (
          (
              "--config.parallel.layout=fsdp_tp",
              "--config.model.num_heads=3",
              "--config.model.head_dim=16",
          ),
          "parallel.tensor=2 does not divide model.num_heads=3",
      ),
  )
  @pytest.mark.slow
  def test_bad_input(self, args, message):
    process, _ = self.plan(*args)
    self.assertEqual(process.returncode, 1, process.stderr)
    self.assertRegex(process.stderr, message)
    self.assertNotIn("Traceback", process.stderr)

  @pytest.mark.slow
  def test_plans_a_run(self):
    # Given a small model of the kind that is pretrained
    process, workdir = self.plan(
        "--config.model.variant=lmm",
        "--config.model.num_layers=2",
        "--config.model.model_dim=256",
        "--config.model.num_heads=4",
        "--config.model.head_dim=64",
        "--config.model.ffn_dim=512",
        "--config.data.sequence_length=1024",
        "--config.data.batch_size=4",
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    plan = json.loads((workdir / "plan.json").read_text())
    # Then it fits, with the kernels, and by devices what it must
    self.assertTrue(plan["fits"])
    self.assertIn("fused_scan_forward", plan["kernels"])
    self.assertGreater(plan["bytes_per_device"]["total"], 0)
    self.assertLess(
        plan["bytes_per_device"]["total"], plan["device_memory_bytes"]
    )
    ratio = plan["flops_per_step"]["model_over_formula"]
    self.assertBetween(ratio, 0.95, 1.05)
    # And sends parameters and gradients, but nothing of the memory's state
    self.assertNotEmpty(plan["collectives"])
    for row in plan["collectives"]:
      self.assertNotRegex(row["shape"], r"f32\[4,4,\d+,\d+\]")
    self.assertIn("estimate", process.stdout.lower())
    with self.subTest("its data is read more quickly than it is consumed"):
      text = processes.write_text(workdir / "text.txt")
      process = processes.run(
          "read_data",
          f"--plan={workdir}/plan.json",
          f"--config.data.source={text}",
          "--config.data.sequence_length=1024",
          "--config.data.batch_size=4",
          "--seconds=0.5",
      )
      self.assertEqual(process.returncode, 0, process.stderr)
      self.assertRegex(process.stdout, r"alone: [\d,]+ tokens/s")
      self.assertRegex(process.stdout, r"on each of 1 processes: [\d.]+ times")

  @pytest.mark.slow
  def test_plans_a_run_on_gpus(self):
    process, workdir = self.plan(
        "--topology=h100:1x4",
        "--config.model.variant=lmm",
        "--config.model.num_layers=1",
        "--config.data.batch_size=4",
        needs="jax_cuda13_plugin",
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    plan = json.loads((workdir / "plan.json").read_text())
    self.assertTrue(plan["fits"])
    self.assertEqual(plan["chip"], "NVIDIA H100")
    self.assertBetween(plan["flops_per_step"]["model_over_formula"], 0.9, 1.1)
    self.assertNotEmpty(plan["collectives"])


if __name__ == "__main__":
  absltest.main()
