# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The schedule command: what it counts, and a kernel compiled with no TPU."""

import importlib.util
import json
import pathlib
import sys

from absl.testing import absltest
from absl.testing import parameterized

from pallas_kernels import _aot
from pallas_kernels import _aot_gpu
from pallas_kernels import _dumps
from pallas_kernels import _work
from pallas_kernels import tuning
from tests.experiments import processes
from titans_jax import memory
from titans_jax.memory import hopper

# A grid loop (0x1 to 0x9) around a block that a branch skips (0x3, 0x4) and a
# loop (0x5 to 0x7); an empty bundle behind a branch is bare.
_BUNDLES = """\
= control target key start
LB: loop body
PF: predicated region fallthrough
LE: loop exit

     0   :  { %s0 = inlined_call_operand.hbm [shape: f32[8]] }
   0x1 LB: > { %s1 = sphi %s2 }
   0x2   : > { %9 = sbr.rel (%p1) target = $region21 } /* Start region 20 */
   0x3   :  {}
   0x4   : > { %10 = vst [vmem:[#allocation2]] %v1 } /* End region 20 */
   0x5 LB: >> { %v2 = vmatmul %v1 } /* Start/End empty region 21 :: Start region 22 */
   0x6   : >> { %11 = sbr.rel (!%p2) target = $region22 }
   0x7   :  {} /* End region 22 */
   0x8   : > { %12 = sbr.rel (!%p3) target = $region2 }
   0x9   :  {}
   0xa LE:  { %13 = vsyncpa }
"""
_UTILIZATION = """\
== CAPACTIY:
MXU, VSTORE, VSTORE:SPILL
    4     2     1
== UTILIZATION:
0 0 0
1 0 0
0 0 0
0 1 0
0 2 0
4 0 0
2 1 1
0 0 0
0 0 0
0 0 0
0 0 0
"""


def shapes(head_dim, hidden, depth=2):
  return memory.MLP(depth, hidden / head_dim).layer_shapes(head_dim)


def run(*args):
  return processes.run_module("pallas_kernels.schedule", *args)


class LeastCyclesTest(parameterized.TestCase):

  @parameterized.parameters((128, 512, 64), (64, 256, 16), (48, 96, 32))
  def test_multiply_adds_of_two_layers(self, d, hidden, chunk):
    chip = tuning.CHIPS["v5p"]
    args = (shapes(d, hidden), chunk)
    least = _work.least_cycles(*args, "forward", chip)
    expected = 11 * d * hidden + 2 * chunk * (d + hidden)
    self.assertAlmostEqual(least * chip.macs_per_cycle, expected)
    back = _work.least_cycles(*args, "backward", chip)
    self.assertAlmostEqual(back, 3 * least)

  def test_multiply_adds_of_any_depth(self):
    chip = tuning.CHIPS["v6e"]
    layers, chunk = shapes(64, 128, depth=3), 16
    expected = sum(
        i * o * (1 + 2 + 2 + (layer > 0)) + chunk * (i + o)
        for layer, (i, o) in enumerate(layers)
    )
    least = _work.least_cycles(layers, chunk, "forward", chip)
    self.assertAlmostEqual(least * chip.macs_per_cycle, expected)

  @parameterized.parameters(
      ((128, 512), 64, 0.70), ((64, 256), 64, 0.48), ((64, 256), 16, 0.22)
  )
  def test_bound(self, widths, chunk, expected):
    chip = tuning.CHIPS["v5p"]
    bound = _work.bound(shapes(*widths), chunk, "forward", chip)
    self.assertAlmostEqual(bound, expected, delta=0.005)

  @parameterized.product(
      chip=list(tuning.CHIPS), direction=["forward", "backward"]
  )
  def test_bound_of_products_that_fill_the_unit(self, chip, direction):
    layers, chip = shapes(256, 512), tuning.CHIPS[chip]
    self.assertEqual(_work.bound(layers, 256, direction, chip), 1)

  def test_wider_unit_is_filled_less(self):
    args = (shapes(128, 512), 64, "backward")
    self.assertLess(
        _work.bound(*args, tuning.CHIPS["v6e"]),
        _work.bound(*args, tuning.CHIPS["v5p"]),
    )

  def test_every_chip_has_a_topology(self):
    self.assertEqual(set(_aot.TOPOLOGIES), set(tuning.CHIPS))


class DumpsTest(parameterized.TestCase):

  def test_loops_run_as_often_as_told(self):
    dump = _dumps.parse(_BUNDLES, _UTILIZATION)
    counts = dump.executed(10, [30])
    # Two outside, six of the grid's loop, three of the inner one.
    self.assertEqual(counts.bundles, 2 + 6 * 10 + 3 * 30)
    self.assertEqual(
        counts.uses,
        {"MXU": 10 + 6 * 30, "VSTORE": 3 * 10 + 30, "VSTORE:SPILL": 30},
    )

  def test_loops_that_copy_are_left_out(self):
    copies = _UTILIZATION.replace("4 0 0", "0 0 0").replace("2 1 1", "0 1 1")
    dump = _dumps.parse(_BUNDLES, copies)
    self.assertEqual(dump.executed(10, []).bundles, 2 + 6 * 10)

  def test_other_loops_than_expected_are_an_error(self):
    dump = _dumps.parse(_BUNDLES, _UTILIZATION)
    with self.assertRaisesRegex(_dumps.DumpError, "1 inner loops, expected 2"):
      dump.executed(10, [30, 20])
    deeper = _dumps.parse(
        _BUNDLES.replace("0x6   : >>", "0x6   : >>>"), _UTILIZATION
    )
    with self.assertRaisesRegex(_dumps.DumpError, "loops 3 deep"):
      deeper.executed(10, [30])

  def test_bundles_without_their_uses_are_an_error(self):
    lines = _UTILIZATION.splitlines()[:-1]
    with self.assertRaisesRegex(_dumps.DumpError, "11 bundles, but 10 rows"):
      _dumps.parse(_BUNDLES, "\n".join(lines))

  def test_read_finds_the_one_kernel(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(_dumps.DumpError, "0 files .*expected one"):
      _dumps.read(folder, "fused_scan_forward")
    for name, text in {
        "1-jvp_fused_scan_forward_.1-72-final_bundles": _BUNDLES,
        "1-jvp_fused_scan_forward_.1-71-schedule-analysis_final_bundles": "",
        "1-jvp_fused_scan_forward_.1-70-final_hlo-static-per-bundle-utilization": (
            _UTILIZATION
        ),
        "1-copy.17-66-final_bundles": "",
    }.items():
      (folder / f"{name}.txt").write_text(text)
    dump = _dumps.read(folder, "fused_scan_forward")
    self.assertEqual(dump, _dumps.parse(_BUNDLES, _UTILIZATION))


class ReportTest(parameterized.TestCase):

  def test_reads_registers_and_spills(self):
    text = """\
ptxas info    : Compiling entry function 'a_mosaic_gpu_kernel' for 'sm_90a'
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 147 registers, used 16 barriers, 17 bytes smem
"""
    expected = {"registers": 147, "spill_stores": 4, "spill_loads": 12}
    self.assertEqual(_aot_gpu.read_report(text), {"a": expected})
    with self.assertRaisesRegex(ValueError, "neither registers nor spills of"):
      _aot_gpu.read_report(text.replace("Used", "Took"))

  @parameterized.parameters(
      # By registers, by shared memory, by threads.
      (255, 256, 1024, 1),
      (64, 128, 100_000, 2),
      (16, 128, 1024, 16),
  )
  def test_blocks(self, registers, threads, shared, expected):
    blocks = _aot_gpu.blocks_per_core("h200", registers, threads, shared)
    self.assertEqual(blocks, expected)


class CommandTest(parameterized.TestCase):

  @parameterized.parameters(
      ("--chip=v3", "v4|v5e|v5p|v6e|tpu7x"),
      ("--chunk=16,x", "must be positive integers"),
      ("--head_dim=0", "must be positive integers"),
      ("--group=0", "flag --group=0"),
      ("--tile=3", "--tile=3 must divide --heads=16"),
      ("v5p", "Unexpected arguments: ['v5p']"),
      ("--target=a100", "h100|h200"),
  )
  def test_bad_value(self, arg, message):
    process = run(arg)
    self.assertNotEqual(process.returncode, 0)
    self.assertIn(message, process.stdout + process.stderr)
    self.assertNotIn("Traceback", process.stderr)

  def test_a_gpu_has_no_tile(self):
    process = run("--target=h200", "--tile=2")
    self.assertNotEqual(process.returncode, 0)
    self.assertIn("--tile is of TPUs", process.stderr)

  def test_missing_gpu_compiler_names_the_extra(self):
    code = (
        "import runpy, sys; sys.modules['jax_cuda13_plugin'] = None;"
        "sys.argv.append('--target=h200');"
        "runpy.run_module('pallas_kernels.schedule', run_name='__main__')"
    )
    process = processes.finish([sys.executable, "-c", code])
    processes.assert_refused(self, process, "titans-jax[cuda13]")

  def test_compiles_for_a_gpu(self):
    reason = _aot_gpu.why_not()
    if reason is not None:
      self.skipTest(reason)
    process = run("--target=h200", "--head_dim=48", "--chunk=16", "--json")
    self.assertEqual(process.returncode, 0, process.stderr)
    rows = json.loads(process.stdout)
    by_direction = {row["direction"]: row for row in rows}
    scans = ("forward", "forward, kept", "backward")
    self.assertEqual(set(by_direction), set(hopper.KERNELS.values()))
    for row in rows:
      self.assertEqual((row["source"], row["hidden"]), ("compiler", 192))
      self.assertEqual((row["spill_stores"], row["spill_loads"]), (0, 0))
    for row in map(by_direction.get, scans):
      self.assertEqual((row["threads"], row["cluster"]), (3 * 128, 1))
      # A state of 108 KiB in 16-bit parts, of a multiprocessor's 227.
      self.assertBetween(row["shared_bytes"], 72 * 1024, 227 * 1024)
      self.assertEqual(row["blocks_per_core"], 1)

  def test_refuses_what_no_kernel_runs(self):
    reason = _aot_gpu.why_not()
    if reason is not None:
      self.skipTest(reason)
    process = run("--target=h200", "--head_dim=256")
    processes.assert_refused(self, process, "head dimensions of 16, 32, 48, 64")

  def test_missing_compiler_names_the_extra(self):
    code = (
        "import runpy, sys; sys.modules['libtpu'] = None;"
        "runpy.run_module('pallas_kernels.schedule', run_name='__main__')"
    )
    process = processes.finish([sys.executable, "-c", code])
    processes.assert_refused(self, process, "titans-jax[tpu]")

  def test_compiles(self):
    if importlib.util.find_spec("libtpu") is None:
      self.skipTest("libtpu (the tpu extra) is not installed.")
    process = run(
        "--head_dim=64", "--hidden=256", "--chunk=16", "--heads=2", "--json"
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    rows = json.loads(process.stdout)
    self.assertEqual([r["direction"] for r in rows], ["forward", "backward"])
    for row in rows:
      self.assertEqual(
          (row["source"], row["chip"], row["head_dim"], row["hidden"]),
          ("compiler", "v5p", 64, 256),
      )
      self.assertGreater(row["efficiency"], 0)
      self.assertLess(row["efficiency"], row["bound"])
      self.assertAlmostEqual(
          row["efficiency"] * row["bundles_per_token_head"],
          row["least_cycles_per_token_head"],
      )
      self.assertBetween(
          row["vmem_bytes"], tuning.MIB, tuning.CHIPS["v5p"].vmem
      )
      for name, fill in row["units"].items():
        self.assertBetween(fill, 0, 1, name)
      # The matrix unit cannot do more than it is asked to.
      self.assertGreater(row["units"]["MXU"], row["efficiency"])


if __name__ == "__main__":
  absltest.main()
