# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""`fused_scan`: `jax.lax.scan` as one kernel, its carry in on-chip memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import compat
from pallas_kernels import program as program_lib
from pallas_kernels import tpu
from pallas_kernels import tuning

Array = jax.Array

# Share of VMEM that a kernel may ask for.
_LIMIT = 0.95


def fused_scan(
    step: Callable[..., Any],
    init,
    xs,
    consts=None,
    *,
    parallel_axes: int = 2,
    group: int | None = None,
    tile: tuple[int, ...] | None = None,
    interpret: Any = None,
):
  """Runs `jax.lax.scan` for many independent instances, carry on the chip.

  `jax.lax.scan` writes its carry to main memory after every step and reads it
  back. Here one kernel walks through the steps and holds the carry in VMEM.
  Reverse-mode differentiable with respect to init, xs and consts.

  Args:
    step: a pure function (carry, x, consts) -> (carry, y) of one instance; it
      sees none of the leading axes. Arrays that it needs come in consts: it
      must not close over any.
    init: pytree, leaves [*axes, ...], as many leading axes as `parallel_axes`
      ([B, H, ...] for two): an instance for each place.
    xs: pytree, leaves [*axes, N, ...].
    consts: pytree, leaves [*axes, ...], of size 1 along axes that share them.
    parallel_axes: how many leading axes there are, at least one.
    group: steps per iteration of the backward kernel's grid, whose carries stay
      in VMEM, at most as many as it holds; the carry is kept once per group.
      None: by the device's size and the step's.
    tile: instances along each parallel axis that one program runs in lockstep,
      divisors of the axes. None: by the device's size and the step's.
    interpret: None: compiled on TPU, interpreted on CPU, an error elsewhere.
      True or `pltpu.InterpretParams`: interpreted wherever it runs. False:
      compiled.

  Returns:
    The last carry, and ys, leaves [*axes, N, ...].

  Raises:
    ValueError: leaves that do not fit each other; float64; a step that changes
      its carry's type, closes over arrays or uses an operation that a TPU
      kernel cannot; a carry larger than VMEM.
  """
  problem = _Problem.make(step, init, xs, consts, parallel_axes)
  problem.check(interpret)
  plans = problem.plans(group, tile)
  last, ys = _scan(
      problem.flat_step,
      plans,
      interpret,
      tuple(jax.tree.leaves(init)),
      tuple(jax.tree.leaves(xs)),
      tuple(jax.tree.leaves(consts)),
  )
  return (
      jax.tree.unflatten(jax.tree.structure(init), last),
      jax.tree.unflatten(problem.y_structure, ys),
  )


def why_not(step, init, xs, consts=None, *, parallel_axes: int = 2):
  """Returns why `fused_scan` cannot run a scan compiled; None: it can."""
  try:
    problem = _Problem.make(step, init, xs, consts, parallel_axes)
    problem.check(interpret=None)
  except ValueError as error:
    return str(error)
  return None


def plans(
    step,
    init,
    xs,
    consts=None,
    *,
    parallel_axes: int = 2,
    group=None,
    tile=None,
) -> tuple[tpu.Plan, tpu.Plan]:
  """Returns how `fused_scan` cuts a scan: its forward and backward kernel."""
  problem = _Problem.make(step, init, xs, consts, parallel_axes)
  return problem.plans(group, tile)


@dataclasses.dataclass(frozen=True)
class _Bytes:
  """What one instance takes.

  Attributes:
    carry: its carry in VMEM.
    kept: its carry in main memory.
    consts: the blocks of consts, which are double, in VMEM.
    forward: likewise a step's blocks of the forward kernel.
    backward: those of the backward kernel, and the step's carry.
    work: what the backward kernel leaves in VMEM from a step's way there for
      its way back. In the forward kernel two thirds of it wait at once.
  """

  carry: int
  kept: int
  consts: int
  forward: int
  backward: int
  work: int

  @property
  def fixed_forward(self) -> int:
    """The carries before and after a step, consts, and what waits at once."""
    return 2 * self.carry + self.consts + 2 * self.work // 3

  @property
  def fixed_backward(self) -> int:
    """The next group's first carry, the cotangent of the current one, consts
    and their cotangents."""
    return 2 * self.carry + 2 * self.consts + self.work

  @property
  def least(self) -> int:
    return self.fixed_backward + self.backward


@dataclasses.dataclass(frozen=True)
class _FlatStep:
  """A step on lists of leaves; equal ones share what was traced."""

  step: Callable[..., Any]
  structures: tuple[Any, ...]

  def __call__(self, carry, x, consts):
    arguments = map(jax.tree.unflatten, self.structures, (carry, x, consts))
    carry, y = self.step(*arguments)
    # A Python number is a result too.
    carry, y = jax.tree.map(jnp.asarray, (carry, y))
    return jax.tree.leaves(carry), jax.tree.leaves(y)


@dataclasses.dataclass(frozen=True)
class _Problem:
  """A scan, flat: lists of leaves instead of pytrees.

  Attributes:
    flat_step: (carry, x, consts) -> (carry, y) on lists.
    axes: sizes of the parallel axes.
    steps: N.
    init: leaves [*axes, ...].
    xs: leaves [*axes, N, ...].
    consts: leaves [*axes, ...].
    program: of the step.
    y_structure: of ys.
  """

  flat_step: tpu.Step
  axes: tuple[int, ...]
  steps: int
  init: list[Any]
  xs: list[Any]
  consts: list[Any]
  program: program_lib.Program
  y_structure: Any

  @classmethod
  def make(cls, step, init, xs, consts, parallel_axes: int) -> _Problem:
    """Traces a scan, or takes up one that was traced before."""
    trees = (init, xs, {} if consts is None else consts)
    shapes = tuple(tuple(tpu.avals_of(jax.tree.leaves(t), 0)) for t in trees)
    structures = tuple(map(jax.tree.structure, trees))
    return cls._traced(step, structures, shapes, parallel_axes)

  @classmethod
  @functools.lru_cache(maxsize=256)
  def _traced(cls, step, structures, shapes, parallel_axes: int) -> _Problem:
    axes, steps = _check_axes(shapes, parallel_axes)
    avals = [
        tpu.avals_of(leaves, lead)
        for leaves, lead in zip(
            shapes, (parallel_axes, parallel_axes + 1, parallel_axes)
        )
    ]
    trees = [jax.tree.unflatten(s, a) for s, a in zip(structures, avals)]
    new, y = jax.eval_shape(step, *trees)
    _check_carry(trees[0], new)
    flat_step = _FlatStep(step, structures)
    init, xs, consts = map(list, shapes)
    return cls(
        flat_step,
        axes,
        steps,
        init=init,
        xs=xs,
        consts=consts,
        program=program_lib.Program(flat_step, *avals),
        y_structure=jax.tree.structure(y),
    )

  def check(self, interpret) -> None:
    """Raises ValueError for what a kernel cannot run."""
    if interpret:  # An interpreter can.
      return
    for x in (*self.init, *self.xs, *self.consts):
      if x.dtype in (jnp.float64, jnp.int64, jnp.uint64):
        raise ValueError(
            f"fused_scan has no {x.dtype} on TPU, got {x.dtype}{list(x.shape)}:"
            " use float32, or jax.lax.scan."
        )
    unknown = compat.not_lowered(self.program.primitives())
    if unknown:
      raise ValueError(
          f"fused_scan: the step uses {', '.join(unknown)}, which Mosaic does"
          " not lower in a TPU kernel: write it with other operations, or use"
          " jax.lax.scan."
      )
    needed = self._bytes()
    limit = int(_LIMIT * tuning.chip().vmem)
    if needed.least > limit:
      raise ValueError(
          f"fused_scan: a carry of {needed.carry} bytes needs some"
          f" {needed.least} bytes of VMEM with what a step keeps, more than the"
          f" {limit} that a kernel may have on {tuning.chip_name()}: use more"
          " and smaller instances, or jax.lax.scan."
      )

  def _bytes(self) -> _Bytes:
    rank = len(self.axes)
    carry = sum(map(_bytes, tpu.avals_of(self.init, rank)))
    x = sum(map(_bytes, tpu.avals_of(self.xs, rank + 1)))
    y = sum(map(_bytes, self.program.avals)) - carry
    return _Bytes(
        carry=carry,
        kept=sum(math.prod(a.shape) * a.dtype.itemsize for a in self.init)
        // math.prod(self.axes),
        consts=2 * sum(map(_bytes, tpu.avals_of(self.consts, rank))),
        forward=2 * (x + y),
        backward=carry + 4 * x + 2 * y,
        work=_work_bytes(self.program),
    )

  def plans(self, group, tile) -> tuple[tpu.Plan, tpu.Plan]:
    """Returns the cuts of the forward and the backward kernel.

    Raises:
      ValueError: a group or tile that does not fit.
    """
    chip = tuning.chip()
    budget = tuning.budget(chip)
    needed = self._bytes()
    flops = self.program.unit_flops()
    tiles = [
        tuning.choose_tile(self.axes, flops, bytes_per_instance, budget)
        if tile is None
        else self._check_tile(tuple(tile))
        for bytes_per_instance in (
            needed.fixed_forward + 2 * needed.forward,
            needed.least,
        )
    ]
    room = [
        budget // math.prod(tile) - fixed
        for tile, fixed in zip(
            tiles, (needed.fixed_forward, needed.fixed_backward)
        )
    ]
    most = max(1, min(self.steps, room[1] // needed.backward))
    if group is None:
      keep_every = tuning.choose_kept(
          self.steps,
          math.prod(self.axes) * self.steps * needed.kept,
          most=most,
          chip=chip,
      )
    elif group < 1:
      raise ValueError(f"group must be at least 1, got {group}.")
    else:
      keep_every = min(group, most)
    together = tuning.choose_group(self.steps, room[0] // needed.forward)
    forward_plan, backward_plan = (
        tpu.Plan(
            tuple(self.axes),
            tile,
            self.steps,
            group=steps,
            keep_every=keep_every,
            vmem_limit=int(_LIMIT * chip.vmem),
        )
        for tile, steps in zip(tiles, (together, keep_every))
    )
    return forward_plan, backward_plan

  def _check_tile(self, tile: tuple[int, ...]) -> tuple[int, ...]:
    axes = tuple(self.axes)
    if len(tile) != len(axes) or any(
        t < 1 or a % t for a, t in zip(axes, tile)
    ):
      raise ValueError(
          f"tile must hold a divisor of each parallel axis {axes}, got {tile}."
      )
    return tile


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(step, plans, interpret, init, xs, consts):
  last, ys, _ = _forward(
      step, plans[0], interpret, init, xs, consts, keep=False
  )
  return last, ys


def _forward(step, plan, interpret, init, xs, consts, keep):
  def run(interpret, init, xs, consts):
    return tpu.forward(
        step,
        plan.interpreted(interpret),
        init,
        xs,
        consts,
        keep=keep,
    )

  return _on_platform(run, interpret, init, xs, consts)


def _scan_fwd(step, plans, interpret, init, xs, consts):
  last, ys, kept = _forward(
      step, plans[0], interpret, init, xs, consts, keep=True
  )
  return (last, ys), (kept, xs, consts)


def _scan_bwd(step, plans, interpret, residuals, cotangents):
  kept, xs, consts = residuals

  def run(interpret, kept, xs, consts, d_last, d_ys):
    return tpu.backward(
        step,
        plans[1].interpreted(interpret),
        kept,
        xs,
        consts,
        d_last,
        d_ys,
    )

  d_init, d_xs, d_consts = _on_platform(
      run, interpret, kept, xs, consts, *map(tpu.floats, cotangents)
  )
  shared = (c for c in consts if tpu.is_float(c))
  d_consts = map(_sum_shared, d_consts, shared)
  return (
      _with_gradients(_without_rows(kept, plans[1].rank), d_init),
      _with_gradients(xs, d_xs),
      _with_gradients(consts, d_consts),
  )


_scan.defvjp(_scan_fwd, _scan_bwd)


def _on_platform(run, interpret, *arguments):
  """Compiles on TPU, interprets on CPU, and has nothing for other devices."""
  if interpret is not None:
    return run(interpret, *arguments)
  return jax.lax.platform_dependent(
      *arguments,
      tpu=functools.partial(run, False),
      cpu=functools.partial(run, True),
  )


def _sum_shared(gradient: Array, const: Array) -> Array:
  axes = tuple(
      axis
      for axis, (g, c) in enumerate(zip(gradient.shape, const.shape))
      if c == 1 and g > 1
  )
  return jnp.sum(gradient, axes, keepdims=True).astype(const.dtype)


def _without_rows(kept, rank: int) -> list[jax.ShapeDtypeStruct]:
  """Returns the shapes of a carry, of which [*axes, rows, ...] are given."""
  return [
      jax.ShapeDtypeStruct((*x.shape[:rank], *x.shape[rank + 1 :]), x.dtype)
      for x in kept
  ]


def _with_gradients(leaves, gradients) -> tuple[Array, ...]:
  """Returns gradients for all leaves: of float0 for those that have none."""
  none = (
      x if tpu.is_float(x) else np.zeros(x.shape, jax.dtypes.float0)
      for x in leaves
  )
  return tuple(tpu.with_floats(none, gradients))


def _bytes(aval) -> int:
  return tuning.padded_bytes(aval.shape, max(4, aval.dtype.itemsize))


def _work_bytes(program: program_lib.Program) -> int:
  """Estimates what the way back needs of a step's way there.

  A third of its results, and of products of float32 the operands' bfloat16
  parts, of which the way back has as many again, twice. By what the compiler
  took for the presets' kernels.
  """
  free = ("broadcast_in_dim", "reshape", "concatenate", "convert_element_type")
  results = sum(
      _bytes(aval)
      for operation in program.operations
      if operation.name not in free
      for aval in operation.out_avals
  )
  return results // 3 + 4 * sum(map(_bytes, program.split_operands()))


def _check_axes(leaves, rank: int):
  """Returns (sizes of the parallel axes, N), or raises ValueError."""
  init, xs, consts = leaves
  if rank < 1:
    raise ValueError(f"parallel_axes must be at least 1, got {rank}.")
  if not init or not xs:
    raise ValueError("fused_scan needs at least one leaf in init and in xs.")
  for name, leaves, lead in (
      ("init", init, rank),
      ("xs", xs, rank + 1),
      ("consts", consts, rank),
  ):
    for x in leaves:
      if x.ndim < lead:
        raise ValueError(
            f"A leaf of {name} has shape {x.shape}, but {lead} leading axes are"
            " expected."
        )
  axes, steps = xs[0].shape[:rank], xs[0].shape[rank]
  if not math.prod(axes) or not steps:
    raise ValueError(f"The scan is empty: leading axes {(*axes, steps)}.")
  for x in xs:
    if x.shape[: rank + 1] != (*axes, steps):
      raise ValueError(
          f"Leaves of xs start with {(*axes, steps)} and {x.shape[: rank + 1]}."
      )
  for x in init:
    if x.shape[:rank] != axes:
      raise ValueError(
          f"Leaves of init must start with {axes}, like xs, got {x.shape}."
      )
  for x in consts:
    if any(n not in (1, a) for n, a in zip(x.shape, axes)):
      raise ValueError(
          f"Leaves of consts must start with {axes}, or 1 where they are shared,"
          f" got {x.shape}."
      )
  return axes, steps


def _check_carry(carry, new) -> None:
  def types(tree):
    return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype).name), tree)

  if str(types(carry)) != str(types(new)):
    raise ValueError(
        f"The step must not change its carry's type: from {types(carry)} to"
        f" {types(new)}."
    )
