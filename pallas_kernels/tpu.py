# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""`fused_scan` on TPU: one Pallas kernel forward, one backward.

A program owns a tile of instances (batch rows and heads), whose carries stay in
VMEM scratch while the last grid axis walks over groups of steps. The forward
kernel copies the carry before every group of the backward kernel to main memory
while it works on. The backward kernel walks over its groups in reverse: it runs
a group forward from the carry that was kept, leaving the carry of every step in
VMEM, and then each step, from the last to the first, there and back by
`jax.vjp`.

Here a scan is flat: carry, xs, consts and ys are lists of leaves.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any, Callable, Sequence

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from pallas_kernels import lockstep
from pallas_kernels import program as program_lib

Array = jax.Array
Leaves = Sequence[Array]
Step = Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a scan is cut.

  Attributes:
    axes: sizes of the parallel axes.
    tile: instances along each of them that one program owns; divides it.
    steps: N.
    group: steps per grid iteration.
    keep_every: steps between carries that are kept; the backward kernel's
      group.
    vmem_limit: bytes of VMEM that a kernel may use, or None (the compiler's
      default).
    interpret: as in `pl.pallas_call`.
  """

  axes: tuple[int, ...]
  tile: tuple[int, ...]
  steps: int
  group: int
  keep_every: int
  vmem_limit: int | None = None
  interpret: Any = False

  def interpreted(self, interpret: Any) -> Plan:
    """Returns the plan for an interpreter, which gains nothing by a tile."""
    if not interpret:
      return self
    tile = (1,) * len(self.axes)
    return dataclasses.replace(self, tile=tile, interpret=interpret)

  @property
  def rank(self) -> int:
    return len(self.axes)

  @property
  def groups(self) -> int:
    return -(-self.steps // self.group)

  @property
  def rows_kept(self) -> int:
    return -(-self.steps // self.keep_every)

  @property
  def grid(self) -> tuple[int, ...]:
    return (*(a // t for a, t in zip(self.axes, self.tile)), self.groups)

  def inner_loops(self, direction: str) -> list[int]:
    """Returns the trips of each loop inside the grid's, for a whole group."""
    if direction == "forward":  # Two steps a trip.
      trips = [(self.group + 1) // 2]
    else:
      trips = [self.group - 1, self.group]
    return [n for n in trips if n > 1]

  @property
  def instances(self) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, self.tile)))


# ------------------------------------------------------------------------------
# Leaves in memory. A leaf's own dimensions, of which Mosaic wants at least two,
# are kept whole in every block: so any size of them is a legal block. Booleans
# are no memory type: they travel as int32.


def _tail(shape: tuple[int, ...]) -> tuple[int, ...]:
  return (1,) * (2 - len(shape)) + tuple(shape)


def _memory_dtype(dtype):
  return jnp.dtype(jnp.int32 if dtype == jnp.bool_ else dtype)


def _to_memory(leaves: Leaves, lead: int) -> list[Array]:
  return [
      x.reshape(*x.shape[:lead], *_tail(x.shape[lead:])).astype(
          _memory_dtype(x.dtype)
      )
      for x in leaves
  ]


def _from_memory(leaves: Leaves, avals, lead: int) -> list[Array]:
  return [
      x.reshape(*x.shape[:lead], *a.shape).astype(a.dtype)
      for x, a in zip(leaves, avals)
  ]


def _load(refs, avals, index) -> list[Array]:
  """Reads one instance's (and step's) values out of blocks."""
  values = []
  for ref, aval in zip(refs, avals):
    # Constants may be of size 1 along a parallel axis.
    where = tuple(
        min(i, n - 1) if isinstance(i, int) else i
        for i, n in zip(index, ref.shape)
    )
    x = ref[where]
    x = x if x.shape == aval.shape else x.reshape(aval.shape)
    values.append(x != 0 if aval.dtype == jnp.bool_ else x)
  return values


def _at_least_2d(x):
  if isinstance(x, np.generic):  # A constant, which must not be captured.
    return jnp.full(_tail(()), x, x.dtype)
  return x if x.ndim >= 2 else x.reshape(_tail(x.shape))


def _store(refs, values, index) -> None:
  for ref, x in zip(refs, values):
    ref[index] = _at_least_2d(x).astype(ref.dtype)


@dataclasses.dataclass(frozen=True)
class _Cut:
  """How the blocks of an array follow the grid.

  Attributes:
    plan: of the scan.
    along: "whole": a block holds what does not depend on the step, of arrays
      [*axes, *tail]; "steps": a group's rows of [*axes, N, *tail]; "kept": no
      blocks, arrays [*axes, N / keep_every, *tail] stay in main memory, from
      where a kernel copies by itself; "apart": likewise arrays [*axes, *tail].
    reverse: whether the grid walks from the last group to the first.
  """

  plan: Plan
  along: str
  reverse: bool = False

  @property
  def lead(self) -> int:
    return self.plan.rank + (self.along in ("steps", "kept"))

  def shape(self, aval) -> jax.ShapeDtypeStruct:
    """Returns the array in memory of one value per instance (and row)."""
    plan = self.plan
    rows = {"steps": (plan.steps,), "kept": (plan.rows_kept,)}
    return jax.ShapeDtypeStruct(
        (*plan.axes, *rows.get(self.along, ()), *_tail(aval.shape)),
        _memory_dtype(aval.dtype),
    )

  def spec(self, array) -> pl.BlockSpec:
    if self.along in ("kept", "apart"):
      return pl.BlockSpec(memory_space=pltpu.HBM)
    plan, shape = self.plan, array.shape
    shared = [s == 1 for s in shape[: plan.rank]]
    tile = (1 if one else t for one, t in zip(shared, plan.tile))
    rows = (plan.group,) if self.along == "steps" else ()
    tail = shape[self.lead :]

    def index(*ids):
      *ids, group = ids
      if self.reverse:
        group = plan.groups - 1 - group
      ids = (0 if one else i for one, i in zip(shared, ids))
      where = (group,) if self.along == "steps" else ()
      return (*ids, *where, *(0,) * len(tail))

    return pl.BlockSpec((*tile, *rows, *tail), index)


def _scratch(plan: Plan, avals, rows: tuple[int, ...] = ()):
  return [
      pltpu.VMEM((*rows, *plan.tile, *_tail(a.shape)), _memory_dtype(a.dtype))
      for a in avals
  ]


class _Copies:
  """Copies of all leaves between main memory and scratch, by one semaphore."""

  def __init__(self, sources, targets, semaphore):
    self._copies = [
        pltpu.make_async_copy(source, target, semaphore)
        for source, target in zip(sources, targets)
    ]

  def start(self) -> None:
    for copy in self._copies:
      copy.start()

  def wait(self) -> None:
    for copy in self._copies:
      copy.wait()

  def run(self) -> None:
    self.start()
    self.wait()


def _at(refs, *index) -> list[Any]:
  return [ref.at[index] for ref in refs]


def _own(plan: Plan) -> list[Any]:
  """Returns where in the parallel axes a program's instances are."""
  return [pl.ds(pl.program_id(a) * n, n) for a, n in enumerate(plan.tile)]


def avals_of(leaves: Leaves, lead: int) -> list[jax.ShapeDtypeStruct]:
  """Returns the leaves of one instance (and step), without leading axes."""
  return [jax.ShapeDtypeStruct(x.shape[lead:], x.dtype) for x in leaves]


def _div(n, by: int):
  return jax.lax.div(jnp.int32(n), jnp.int32(by))


def _rem(n, by: int):
  return jax.lax.rem(jnp.int32(n), jnp.int32(by))


def _steps_of(plan: Plan, group):
  """Returns how many steps a group has; the last one may be shorter."""
  if plan.steps % plan.group == 0:
    return plan.group
  return jnp.minimum(plan.group, plan.steps - group * plan.group)


def _for_each(count, most: int, body) -> None:
  """Runs body(n) for n below count, which is at most `most`."""
  if most == 1:
    body(0)
    return
  jax.lax.fori_loop(0, count, lambda n, _: body(n), None)


def _call(kernel, name, plan, programs, inputs, outputs, scratch):
  """Calls a kernel on groups of leaves.

  Args:
    kernel: takes one list of refs per group of inputs, outputs and scratch.
    name: of the kernel.
    plan: of the scan.
    programs: what it runs for every instance and step.
    inputs: pairs (leaves, cut).
    outputs: pairs (avals, cut).
    scratch: lists of scratch shapes.

  Returns:
    A list of leaves per group of outputs.
  """
  arrays = [_to_memory(leaves, cut.lead) for leaves, cut in inputs]
  shapes = [[cut.shape(a) for a in avals] for avals, cut in outputs]
  results = pl.pallas_call(
      kernel,
      grid=plan.grid,
      in_specs=[
          [cut.spec(x) for x in leaves]
          for leaves, (_, cut) in zip(arrays, inputs)
      ],
      out_specs=[
          [cut.spec(x) for x in leaves]
          for leaves, (_, cut) in zip(shapes, outputs)
      ],
      out_shape=shapes,
      scratch_shapes=scratch,
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=("parallel",) * plan.rank + ("arbitrary",),
          vmem_limit_bytes=plan.vmem_limit,
      ),
      cost_estimate=_cost(plan, programs, arrays, shapes),
      interpret=plan.interpret,
      name=name,
  )(*arrays)
  return [
      _from_memory(leaves, avals, cut.lead)
      for leaves, (avals, cut) in zip(results, outputs)
  ]


def _cost(plan: Plan, programs, inputs, outputs) -> pl.CostEstimate:
  """What the compiler cannot see in a kernel, from its programs and arrays."""
  count = math.prod(plan.axes) * plan.steps
  arrays = jax.tree.leaves((inputs, outputs))
  return pl.CostEstimate(
      flops=count * sum(p.flops() for p in programs),
      transcendentals=count * sum(p.transcendentals() for p in programs),
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
  )


# ------------------------------------------------------------------------------
# Forward.


@functools.partial(jax.jit, static_argnames=("step", "plan", "keep"))
def forward(
    step: Step, plan: Plan, init, xs, consts, *, keep: bool
) -> tuple[Leaves, Leaves, Leaves]:
  """Runs the scan.

  Args:
    step: (carry, x, consts) -> (carry, y), of one instance.
    plan: how it is cut.
    init: leaves [*axes, ...].
    xs: leaves [*axes, N, ...].
    consts: leaves [*axes, ...], of size 1 where they are shared.
    keep: whether carries are kept: those before every `keep_every` steps.

  Returns:
    The last carry, ys, and the kept carries [*axes, N / keep_every, ...] (or
    none).
  """
  if plan.groups > 1 and plan.group % 2:
    raise ValueError(
        f"Iterations of {plan.group} steps would leave the carry in the second"
        " place: their number must be even."
    )
  carry_avals, x_avals, const_avals = (
      avals_of(init, plan.rank),
      avals_of(xs, plan.rank + 1),
      avals_of(consts, plan.rank),
  )
  program = program_lib.Program(
      step, carry_avals, x_avals, const_avals, side_by_side=True
  )
  y_avals = program.avals[len(carry_avals) :]

  def kernel(xs, consts, init, ys, last, kept, carry, semaphores):
    own, group = _own(plan), pl.program_id(plan.rank)

    # Of two places the carries of even steps are in the first, those of odd
    # steps in the second: one is kept while the next step fills the other.
    def keep_carry(t, place):
      return _Copies(
          _at(carry, place),
          _at(kept, *own, _div(t, plan.keep_every)),
          semaphores.at[place],
      )

    def is_kept(t):
      return (t >= 0) & (_rem(t, plan.keep_every) == 0)

    @pl.when(group == 0)
    def _():
      _Copies(_at(init, *own), _at(carry, 0), semaphores.at[0]).run()

    count = _steps_of(plan, group)

    def run(n, before, after):
      t = group * plan.group + n
      if keep:
        pl.when(is_kept(t))(lambda: keep_carry(t, before).start())
        pl.when(is_kept(t - 1))(lambda: keep_carry(t - 1, after).wait())
      results = lockstep.run(
          program,
          lockstep.in_turn,
          [
              (
                  _load(carry, carry_avals, (before, *i)),
                  _load(xs, x_avals, (*i, n)),
                  _load(consts, const_avals, i),
              )
              for i in plan.instances
          ],
      )
      for i, (new, y) in zip(plan.instances, results):
        _store(carry, new, (after, *i))
        _store(ys, y, (*i, n))

    def run_pair(pair):
      run(2 * pair, 0, 1)
      if plan.group > 1:
        pl.when(2 * pair + 1 < count)(lambda: run(2 * pair + 1, 1, 0))

    _for_each(_div(count + 1, 2), (plan.group + 1) // 2, run_pair)

    @pl.when(group == plan.groups - 1)
    def _():
      if keep and (plan.steps - 1) % plan.keep_every == 0:
        keep_carry(plan.steps - 1, (plan.steps - 1) % 2).wait()
      place = plan.steps % 2
      _Copies(_at(carry, place), _at(last, *own), semaphores.at[place]).run()

  steps, apart = _Cut(plan, "steps"), _Cut(plan, "apart")
  ys, last, kept = _call(
      kernel,
      "fused_scan_forward",
      plan,
      [program],
      [(xs, steps), (consts, _Cut(plan, "whole")), (init, apart)],
      [
          (y_avals, steps),
          (carry_avals, apart),
          (carry_avals if keep else [], _Cut(plan, "kept")),
      ],
      [_scratch(plan, carry_avals, (2,)), pltpu.SemaphoreType.DMA((2,))],
  )
  return last, ys, kept


# ------------------------------------------------------------------------------
# Backward.


def is_float(x) -> bool:
  return jnp.issubdtype(x.dtype, jnp.floating)


def floats(leaves):
  """Returns the leaves that have a gradient."""
  return [x for x in leaves if is_float(x)]


def with_floats(leaves, new):
  """Returns the leaves with others in the floats' places."""
  new = iter(new)
  return [next(new) if is_float(x) else x for x in leaves]


def transposed(step: Step):
  """Returns (carry, x, consts, d_carry, d_y) -> cotangents of the first three.

  Only float leaves have cotangents. The step runs forward in it.
  """

  def run(carry, x, consts, d_carry, d_y):
    given = carry, x, consts

    def of_floats(*new):
      carry, y = step(*map(with_floats, given, new))
      return floats(carry), floats(y)

    _, vjp = jax.vjp(of_floats, *map(floats, given))
    return vjp((d_carry, d_y))

  return run


@functools.partial(jax.jit, static_argnames=("step", "plan"))
def backward(
    step: Step, plan: Plan, kept, xs, consts, d_last, d_ys
) -> tuple[Leaves, Leaves, Leaves]:
  """Returns the cotangents of init, xs and consts, of float leaves alone.

  Those of consts are of each instance, leaves [*axes, ...] in at least float32:
  their sums over shared axes are left to the caller. See `forward`; d_last and d_ys
  are the cotangents of its results' float leaves.
  """
  carry_avals, x_avals, const_avals, y_avals = (
      avals_of(kept, plan.rank + 1),
      avals_of(xs, plan.rank + 1),
      avals_of(consts, plan.rank),
      avals_of(d_ys, plan.rank + 1),
  )
  float_avals = floats(carry_avals)
  avals = carry_avals, x_avals, const_avals
  # All of a step, there and back, and what of it makes the next carry.
  program = program_lib.Program(transposed(step), *avals, float_avals, y_avals)
  programs = [program]
  if plan.group > 1:
    advance = program_lib.Program(lambda *given: step(*given)[0], *avals)
    programs.append(advance)

  def kernel(
      xs,
      consts,
      d_ys,
      kept,
      d_last,
      d_xs,
      d_consts,
      d_init,
      carries,
      d_carry,
      semaphores,
  ):
    own, turn = _own(plan), pl.program_id(plan.rank)
    group = plan.groups - 1 - turn
    count = _steps_of(plan, group)

    # A group's first carry is in the first place or the second, so that one is
    # fetched while the other is in use; those of its other steps are behind.
    def place(n):
      return jnp.where(n == 0, _rem(group, 2), n + 1)

    def fetch(group):
      where = _rem(group, 2)
      return _Copies(
          _at(kept, *own, group),
          _at(carries, where),
          semaphores.at[where],
      )

    @pl.when(turn == 0)
    def _():
      fetch(group).start()
      _Copies(_at(d_last, *own), d_carry, semaphores.at[2]).run()
      for ref in d_consts:
        ref[...] = jnp.zeros_like(ref)

    fetch(group).wait()
    pl.when(group > 0)(lambda: fetch(group - 1).start())

    def load(i, n):
      return (
          _load(carries, carry_avals, (place(n), *i)),
          _load(xs, x_avals, (*i, n)),
          _load(consts, const_avals, i),
      )

    def run(n):
      results = lockstep.run(
          advance, lockstep.in_turn, [load(i, n) for i in plan.instances]
      )
      for i, carry in zip(plan.instances, results):
        _store(carries, carry, (place(n + 1), *i))

    def run_back(n):
      n = count - 1 - n
      results = lockstep.run(
          program,
          lockstep.scheduled,
          [
              (
                  *load(i, n),
                  _load(d_carry, float_avals, i),
                  _load(d_ys, y_avals, (*i, n)),
              )
              for i in plan.instances
          ],
      )
      for i, (d_before, d_x, d_const) in zip(plan.instances, results):
        _store(d_carry, d_before, i)
        _store(d_xs, d_x, (*i, n))
        for ref, g in zip(d_consts, d_const):
          ref[i] += _at_least_2d(g).astype(ref.dtype)

    if plan.group > 1:
      _for_each(count - 1, plan.group - 1, run)
    _for_each(count, plan.group, run_back)

    @pl.when(group == 0)
    def _():
      _Copies(d_carry, _at(d_init, *own), semaphores.at[2]).run()

  steps, whole = _Cut(plan, "steps", reverse=True), _Cut(plan, "whole")
  kept_cut, apart = _Cut(plan, "kept"), _Cut(plan, "apart")
  d_consts = [
      jax.ShapeDtypeStruct(a.shape, jnp.promote_types(a.dtype, jnp.float32))
      for a in floats(const_avals)
  ]
  d_xs, d_consts, d_init = _call(
      kernel,
      "fused_scan_backward",
      plan,
      programs,
      [
          (xs, steps),
          (consts, whole),
          (d_ys, steps),
          (kept, kept_cut),
          (d_last, apart),
      ],
      [(floats(x_avals), steps), (d_consts, whole), (float_avals, apart)],
      [
          _scratch(plan, carry_avals, (plan.group + 1,)),
          _scratch(plan, float_avals),
          pltpu.SemaphoreType.DMA((3,)),
      ],
  )
  return d_init, d_xs, d_consts
