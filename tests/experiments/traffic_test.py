# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bytes through main memory, counted in a compiled program's text."""

from absl.testing import absltest

from experiments import _hlo
from tests import absent_tpu
from tests.experiments import processes

# 4 KiB an array of [8, 128]; a row of it is a tile of its own.
_PROGRAM = """
HloModule test

%inside (p0: f32[16,8,128], p1: s32[]) -> f32[1,8,128] {
  %p0 = f32[16,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %c = s32[]{:T(128)} constant(0)
  ROOT %s = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p0, %p1, %c, %c), dynamic_slice_sizes={1,8,128}
}

%body (arg: (s32[], f32[16,8,128], f32[8,128])) -> (s32[], f32[16,8,128], f32[8,128]) {
  %arg = (s32[]{:T(128)S(1)}, f32[16,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)S(1)} get-tuple-element(%arg), index=0
  %x = f32[16,8,128]{2,1,0:T(8,128)} get-tuple-element(%arg), index=1
  %y = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%arg), index=2
  %slice = f32[1,8,128]{2,1,0:T(8,128)} fusion(%x, %i), kind=kLoop, calls=%inside, metadata={op_name="jit(f)/memory/slice"}
  %copy.1 = f32[1,8,128]{2,1,0:T(8,128)S(1)} copy(%slice)
  ROOT %tuple = (s32[]{:T(128)S(1)}, f32[16,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%i, %x, %y)
}

%condition (arg.1: (s32[], f32[16,8,128], f32[8,128])) -> pred[] {
  %arg.1 = (s32[]{:T(128)S(1)}, f32[16,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %j = s32[]{:T(128)S(1)} get-tuple-element(%arg.1), index=0
  %n = s32[]{:T(128)} constant(10)
  ROOT %lt = pred[]{:T(512)} compare(%j, %n), direction=LT
}

ENTRY %main (a: f32[16,8,128], b: f32[4,100]) -> f32[4,100] {
  %a = f32[16,8,128]{2,1,0:T(8,128)} parameter(0)
  %b = f32[4,100]{1,0:T(8,128)} parameter(1)
  %t = (s32[]{:T(128)S(1)}, f32[16,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%b, %a, %b)
  %loop = (s32[]{:T(128)S(1)}, f32[16,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) while(%t), condition=%condition, body=%body, metadata={op_name="jit(f)/memory/while"}
  ROOT %sum = f32[4,100]{1,0:T(8,128)} add(%b, %b), metadata={op_name="jit(f)/add"}
}
"""


# What a program for a TPU has besides.
_MORE = """
HloModule test

%inside (p0: f32[16,8,128], p1: f32[8,128], p2: s32[]) -> f32[16,8,128] {
  %p0 = f32[16,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %p2 = s32[]{:T(128)} parameter(2)
  %c = s32[]{:T(128)} constant(0)
  %twice = f32[8,128]{1,0:T(8,128)} add(%p1, %p1)
  %row = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%twice)
  ROOT %u = f32[16,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%p0, %row, %p2, %c, %c)
}

%yes (y: f32[8,128]) -> f32[8,128] {
  %y = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %negate.1 = f32[8,128]{1,0:T(8,128)} negate(%y)
}

%no (n: f32[8,128]) -> f32[8,128] {
  ROOT %n = f32[8,128]{1,0:T(8,128)} parameter(0)
}

ENTRY %main (a: f32[16,8,128], b: f32[8,128], i: s32[], p: pred[]) -> f32[16,8,128] {
  %a = f32[16,8,128]{2,1,0:T(8,128)} parameter(0)
  %b = f32[8,128]{1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)S(1)} parameter(2)
  %p = pred[]{:T(512)} parameter(3)
  %room = f32[16,8,128]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%b)
  %done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %kernel = f32[8,128]{1,0:T(8,128)} custom-call(%a, %done), custom_call_target="tpu_custom_call"
  %either = f32[8,128]{1,0:T(8,128)} conditional(%p, %b, %b), true_computation=%yes, false_computation=%no
  ROOT %put = f32[16,8,128]{2,1,0:T(8,128)} fusion(%a, %b, %i), kind=kLoop, calls=%inside
}
"""


class MovedTest(absltest.TestCase):

  def test_counts_updates_copies_kernels_and_branches(self):
    moved = {m.name: m.bytes for m in _hlo.moved(_MORE)}
    self.assertEqual(
        moved,
        {
            "start": 4096,  # Read from main memory, to VMEM.
            "kernel": 17 * 4096,
            "negate.1": 2 * 4096,
            "put": 2 * 4096,  # A row read, and one of sixteen written.
        },
    )

  def test_counts_slices_loops_padding_and_main_memory_only(self):
    moved = {m.name: m for m in _hlo.moved(_PROGRAM)}
    self.assertCountEqual(moved, ["slice", "copy.1", "sum"])
    # Ten times a slice, read and written; then read, and kept in VMEM.
    self.assertEqual(moved["slice"].bytes, 10 * 2 * 4096)
    self.assertEqual(moved["copy.1"].bytes, 10 * 4096)
    # 4 x 100 numbers take a tile of 8 x 128: twice read, once written.
    self.assertEqual(moved["sum"].bytes, 3 * 4096)

  def test_what_the_compiler_added_belongs_to_the_loop_around_it(self):
    sources = {m.name: m.source for m in _hlo.moved(_PROGRAM)}
    self.assertEqual(sources["copy.1"], "jit(f)/memory/while")

  def test_refuses_a_loop_without_a_constant(self):
    with self.assertRaisesRegex(ValueError, "one constant"):
      list(_hlo.moved(_PROGRAM.replace("constant(10)", "iota()")))


class CompiledTest(absltest.TestCase):

  def test_reads_what_a_compiler_writes(self):
    # A memory's training step, compiled for a TPU (compiler, not measurement).
    text = absent_tpu.compile_memory(self, "v5e:2x2", dim=32, chunk=16)
    kernels = [m for m in _hlo.moved(text) if "fused_scan" in m.name]
    self.assertLen(kernels, 2)
    # The weights of a layer at the least; the compiler has some in VMEM.
    for kernel in kernels:
      self.assertGreater(kernel.bytes, 32 * 128 * 4)


class CommandTest(absltest.TestCase):

  def test_names_an_unknown_preset(self):
    ran = processes.run("traffic", "--preset=titans_9b")
    self.assertNotEqual(ran.returncode, 0)
    self.assertIn("--preset=titans_9b", ran.stderr)


if __name__ == "__main__":
  absltest.main()
