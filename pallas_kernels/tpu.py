# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""`fused_scan` on TPU: one Pallas kernel forward, one backward.

A program owns a tile of instances (batch rows and heads), whose carries stay in
VMEM scratch while the last grid axis walks over groups of steps. The backward
kernel walks over the groups in reverse: it takes up the carry that the forward
kernel kept behind the group before, runs the group forward by `jax.vjp`,
leaving each step's residuals in VMEM, and then backward through them.

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

from pallas_kernels import lockstep

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
    keep_every: steps between carries that are kept; divides the group.
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
  def grid(self) -> tuple[int, ...]:
    return (*(a // t for a, t in zip(self.axes, self.tile)), self.groups)

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


def _store(refs, values, index) -> None:
  for ref, x in zip(refs, values):
    x = x if x.ndim >= 2 else x.reshape(_tail(x.shape))
    ref[index] = x.astype(ref.dtype)


def _copy(sources, targets) -> None:
  for source, target in zip(sources, targets):
    target[...] = source[...]


@dataclasses.dataclass(frozen=True)
class _Cut:
  """How the blocks of an array follow the grid.

  Attributes:
    plan: of the scan.
    along: "whole": a block holds what does not depend on the step, of arrays
      [*axes, *tail]; "steps": a group's rows of [*axes, N, *tail]; "kept": its
      rows of [*axes, N / keep_every, *tail]; "before": the row before those.
    reverse: whether the grid walks from the last group to the first.
    single: one buffer instead of two: the block is loaded once a program, not
      while the one before is worked on.
  """

  plan: Plan
  along: str = "whole"
  reverse: bool = False
  single: bool = False

  @property
  def lead(self) -> int:
    return self.plan.rank + (self.along != "whole")

  def shape(self, aval) -> jax.ShapeDtypeStruct:
    """Returns the array in memory of one value per instance (and row)."""
    plan = self.plan
    rows = {"whole": (), "kept": (-(-plan.steps // plan.keep_every),)}.get(
        self.along, (plan.steps,)
    )
    return jax.ShapeDtypeStruct(
        (*plan.axes, *rows, *_tail(aval.shape)), _memory_dtype(aval.dtype)
    )

  def spec(self, array) -> pl.BlockSpec:
    plan, shape = self.plan, array.shape
    shared = [s == 1 for s in shape[: plan.rank]]
    tile = (1 if one else t for one, t in zip(shared, plan.tile))
    rows = {
        "whole": (),
        "kept": (plan.group // plan.keep_every,),
        "before": (None,),
    }.get(self.along, (plan.group,))
    tail = shape[self.lead :]

    def index(*ids):
      *ids, group = ids
      if self.reverse:
        group = plan.groups - 1 - group
      if self.along == "before":
        group = jnp.maximum(group - 1, 0)
      ids = (0 if one else i for one, i in zip(shared, ids))
      where = () if self.along == "whole" else (group,)
      return (*ids, *where, *(0,) * len(tail))

    mode = pl.Buffered(1) if self.single else None
    return pl.BlockSpec((*tile, *rows, *tail), index, pipeline_mode=mode)


def _scratch(plan: Plan, avals, rows: tuple[int, ...] = ()):
  return [
      pltpu.VMEM((*plan.tile, *rows, *_tail(a.shape)), _memory_dtype(a.dtype))
      for a in avals
  ]


def avals_of(leaves: Leaves, lead: int) -> list[jax.ShapeDtypeStruct]:
  """Returns the leaves of one instance (and step), without leading axes."""
  return [jax.ShapeDtypeStruct(x.shape[lead:], x.dtype) for x in leaves]


def _for_steps(plan: Plan, group, body, reverse: bool = False) -> None:
  """Runs body(n) for the steps of a group; the last group may be shorter."""
  if plan.group == 1:
    body(0)
    return
  count: Any = plan.group
  if plan.steps % plan.group:
    count = jnp.minimum(count, plan.steps - group * plan.group)

  def run(i, carry):
    body(count - 1 - i if reverse else i)
    return carry

  jax.lax.fori_loop(0, count, run, 0)


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
    keep: whether carries are kept: those behind every `keep_every` steps.

  Returns:
    The last carry, ys, and the kept carries [*axes, N / keep_every, ...], the
    last one among them (or none).
  """
  carry_avals, x_avals, const_avals = (
      avals_of(init, plan.rank),
      avals_of(xs, plan.rank + 1),
      avals_of(consts, plan.rank),
  )
  program = lockstep.Program(step, carry_avals, x_avals, const_avals)
  y_avals = program.avals[len(carry_avals) :]

  def kernel(init, xs, consts, behind, ys, carry):
    group = pl.program_id(plan.rank)

    @pl.when(group == 0)
    def _():
      _copy(init, carry)

    def body(n):
      results = program(
          [
              (
                  _load(carry, carry_avals, i),
                  _load(xs, x_avals, (*i, n)),
                  _load(consts, const_avals, i),
              )
              for i in plan.instances
          ]
      )
      row = (n // plan.keep_every,) if keep else ()
      for i, (new, y) in zip(plan.instances, results):
        _store(carry, new, i)
        # Every step's, though those of some stay: stores among a step's other
        # work cost nothing, a copy of its own would.
        _store(behind, new, (*i, *row))
        _store(ys, y, (*i, n))

    _for_steps(plan, group, body)

  whole, steps = _Cut(plan), _Cut(plan, "steps")
  start, kept = _Cut(plan, single=True), _Cut(plan, "kept")
  behind, ys = _call(
      kernel,
      "fused_scan_forward",
      plan,
      [program],
      [(init, start), (xs, steps), (consts, whole)],
      [(carry_avals, kept if keep else whole), (y_avals, steps)],
      [_scratch(plan, carry_avals)],
  )
  if not keep:
    return behind, ys, []
  last = (slice(None),) * plan.rank + (-1,)
  return [x[last] for x in behind], ys, behind


# ------------------------------------------------------------------------------
# Backward.


# Operations that are repeated rather than their results kept: a TPU core loads
# three registers in the time that it stores one.
_CHEAP = frozenset(
    {
        "and",
        "broadcast_in_dim",
        "convert_element_type",
        "div",
        "eq",
        "ge",
        "gt",
        "iota",
        "le",
        "lt",
        "ne",
        "not",
        "or",
        "rem",
        "reshape",
        "select_n",
        "slice",
        "squeeze",
    }
)


class Linearized:
  """A step's forward pass that leaves residuals, and its backward pass.

  Attributes:
    forward: program (carry, x, consts) -> (new carry, residuals to be kept).
    backward: program (carry, x, consts, kept, d_carry, d_y) -> cotangents of
      carry, x and consts. Only float leaves have any.
    kept: shapes of the residuals that are kept: not those that are arguments of
      the step, constants, or cheaply made from these.
  """

  def __init__(self, step: Step, carry, x, consts):
    y = jax.eval_shape(step, carry, x, consts)[1]

    def run(*arguments):
      def of_floats(*new):
        carry, y = step(*map(with_floats, arguments, new))
        return (floats(carry), floats(y)), carry

      _, vjp, carry = jax.vjp(of_floats, *map(floats, arguments), has_aux=True)
      residuals, self._structure = jax.tree.flatten(vjp)
      return carry, residuals

    whole = lockstep.Program(run, carry, x, consts)
    places = whole.outputs[len(carry) :]
    cheap = whole.made_from_arguments(_CHEAP)
    slots = [place for place in places if isinstance(place, int)]
    kept = [slot for slot in dict.fromkeys(slots) if slot not in cheap]
    chosen = [places.index(slot) for slot in kept]

    def run_kept(carry, x, consts):
      carry, residuals = run(carry, x, consts)
      return carry, [residuals[i] for i in chosen]

    self.forward = lockstep.Program(run_kept, carry, x, consts)
    self.kept = self.forward.avals[len(carry) :]

    def run_back(carry, x, consts, saved, d_carry, d_y):
      known = dict(enumerate([*carry, *x, *consts])) | dict(zip(kept, saved))
      residuals = [whole.value(place, known) for place in places]
      vjp = jax.tree.unflatten(self._structure, residuals)
      return vjp((d_carry, d_y))

    self.backward = lockstep.Program(
        run_back, carry, x, consts, self.kept, floats(carry), floats(y)
    )


def is_float(x) -> bool:
  return jnp.issubdtype(x.dtype, jnp.floating)


def floats(leaves):
  """Returns the leaves that have a gradient."""
  return [x for x in leaves if is_float(x)]


def with_floats(leaves, new):
  """Returns the leaves with others in the floats' places."""
  new = iter(new)
  return [next(new) if is_float(x) else x for x in leaves]


@functools.partial(jax.jit, static_argnames=("step", "plan"))
def backward(
    step: Step, plan: Plan, init, kept, xs, consts, d_last, d_ys
) -> tuple[Leaves, Leaves, Leaves]:
  """Returns the cotangents of init, xs and consts, of float leaves alone.

  Those of consts are of each instance, leaves [*axes, ...] in float32: their
  sums over shared axes are left to the caller. See `forward`; d_last and d_ys
  are the cotangents of its results' float leaves.
  """
  carry_avals, x_avals, const_avals, y_avals = (
      avals_of(init, plan.rank),
      avals_of(xs, plan.rank + 1),
      avals_of(consts, plan.rank),
      avals_of(d_ys, plan.rank + 1),
  )
  linearized = Linearized(step, carry_avals, x_avals, const_avals)
  float_avals = floats(carry_avals)

  def kernel(
      init,
      kept,
      xs,
      consts,
      d_last,
      d_ys,
      d_init,
      d_xs,
      d_consts,
      carries,
      saved,
  ):
    turn = pl.program_id(plan.rank)
    group = plan.groups - 1 - turn
    first = (slice(None),) * plan.rank + (0,)

    @pl.when(turn == 0)
    def _():
      _copy(d_last, d_init)
      for ref in d_consts:
        ref[...] = jnp.zeros_like(ref)

    @pl.when(group > 0)
    def _():
      for source, target in zip(kept, carries):
        target[first] = source[...]

    @pl.when(group == 0)
    def _():
      for source, target in zip(init, carries):
        target[first] = source[...]

    def load(i, n):
      return (
          _load(carries, carry_avals, (*i, n)),
          _load(xs, x_avals, (*i, n)),
          _load(consts, const_avals, i),
      )

    def run(n):
      results = linearized.forward([load(i, n) for i in plan.instances])
      for i, (carry, residuals) in zip(plan.instances, results):
        _store(saved, residuals, (*i, n))
        _store(carries, carry, (*i, n + 1))

    def run_back(n):
      results = linearized.backward(
          [
              (
                  *load(i, n),
                  _load(saved, linearized.kept, (*i, n)),
                  _load(d_init, float_avals, i),
                  _load(d_ys, y_avals, (*i, n)),
              )
              for i in plan.instances
          ]
      )
      for i, (d_carry, d_x, d_const) in zip(plan.instances, results):
        _store(d_init, d_carry, i)
        _store(d_xs, d_x, (*i, n))
        for ref, g in zip(d_consts, d_const):
          ref[i] += g.reshape(_tail(g.shape)).astype(ref.dtype)

    _for_steps(plan, group, run)
    _for_steps(plan, group, run_back, reverse=True)

  whole, start = _Cut(plan), _Cut(plan, single=True)
  steps, before = _Cut(plan, "steps", True), _Cut(plan, "before", True)
  return _call(
      kernel,
      "fused_scan_backward",
      plan,
      [linearized.forward, linearized.backward],
      [
          (init, start),
          (kept, before),
          (xs, steps),
          (consts, whole),
          (d_last, start),
          (d_ys, steps),
      ],
      [
          (float_avals, whole),
          (floats(x_avals), steps),
          (
              [
                  jax.ShapeDtypeStruct(a.shape, jnp.float32)
                  for a in floats(const_avals)
              ],
              whole,
          ),
      ],
      [
          _scratch(plan, carry_avals, (plan.group + 1,)),
          _scratch(plan, linearized.kept, (plan.group,)),
      ],
  )
