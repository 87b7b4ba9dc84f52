# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles the memory's kernels for a TPU that is not there.

libtpu reads its options when it is loaded, so `schedule` runs this in a process
of its own: one argument, a `Case` as JSON; the last line of standard output is
what `compile_case` returns, or {"error": message}.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import sys
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np

from pallas_kernels import api
from pallas_kernels import tuning
from titans_jax import memory
from titans_jax.memory import chunk as chunk_lib

# The smallest slice of each chip.
TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}

# The least tokens and chunks of a scan, so that its start is as small a part
# of it as in training.
_TOKENS = 4096
_CHUNKS = 32


@dataclasses.dataclass(frozen=True)
class Case:
  """A scan of the default memory network, one batch row.

  Attributes:
    chip: a key of `tuning.CHIPS`.
    head_dim: D.
    hidden: width of the network's hidden layer.
    chunk: b.
    heads: H.
    tile: heads that a program runs in lockstep; None: by tuning.
    group: chunks between carries that are kept; None: by tuning.
    documents: whether documents start, and end, inside the scan.
    dtype: of the products' operands.
    max_grad_norm: as in `memory.scan`.
  """

  chip: str
  head_dim: int
  hidden: int
  chunk: int
  heads: int
  tile: int | None = None
  group: int | None = None
  documents: bool = False
  dtype: str = "bfloat16"
  max_grad_norm: float | None = None

  @property
  def net(self) -> memory.MLP:
    return memory.MLP(expansion=self.hidden / self.head_dim)

  @property
  def chunks(self) -> int:
    multiple = 2 * tuning.MOST_STEPS * (self.group or 1)
    least = max(_CHUNKS, _TOKENS / self.chunk, 2 * multiple)
    return math.ceil(least / multiple) * multiple


def devices(topology_name: str, num_slices: int = 1) -> np.ndarray:
  """Returns the devices of slices of TPUs, which need not be there."""
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  options = {"num_slices": num_slices} if num_slices > 1 else {}
  topology = topologies.get_topology_desc(
      platform="tpu", topology_name=topology_name, **options
  )
  return np.array(topology.devices)


def compile_case(case: Case) -> dict[str, Any]:
  """Compiles both kernels and returns, for each direction, how they are cut."""
  chips = devices(TOPOLOGIES[case.chip])
  mesh = jax.sharding.Mesh(chips[:1], ("data",))
  step, arguments = scan_arguments(case)
  options: dict[str, Any] = {
      "group": case.group,
      "tile": None if case.tile is None else (1, case.tile),
  }

  def run(init, xs, consts):
    return api.fused_scan(step, init, xs, consts, interpret=False, **options)

  def run_both(arguments, cotangents):
    results, vjp = jax.vjp(run, *arguments)
    return results, vjp(cotangents)

  with jax.set_mesh(mesh):
    if tuning.chip() != tuning.CHIPS[case.chip]:
      raise ValueError(
          f"The kernels are cut for {tuning.chip()}, not for a {case.chip}: jax"
          f" calls it {chips[0].device_kind!r}."
      )
    plans = api.plans(step, *arguments, **options)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    compiled = (
        jax.jit(run_both, in_shardings=sharding, out_shardings=sharding)
        .lower(arguments, jax.eval_shape(run, *arguments))
        .compile()
    )
  vmem = _vmem(compiled.as_text())
  return {
      direction: {
          "tile": list(plan.tile),
          "group": plan.group,
          "groups": plan.groups,
          "programs": math.prod(plan.grid[:-1]),
          "inner_loops": plan.inner_loops(direction),
          "vmem_bytes": vmem[direction],
      }
      for direction, plan in zip(("forward", "backward"), plans)
  }


def scan_arguments(case: Case):
  """Returns the step, and shapes of (init, xs, consts), as `memory.scan` has
  them."""
  options = chunk_lib.Rule(
      case.net,
      max_grad_norm=case.max_grad_norm,
      dtype=jnp.dtype(case.dtype),
  )
  shapes = case.net.layer_shapes(case.head_dim)
  lead, tokens = (1, case.heads), (case.chunks, case.chunk)

  def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((*lead, *shape), dtype)

  def token(width):
    return array(*tokens, width)

  def flags(*shape):
    return array(*shape, dtype=jnp.bool_) if case.documents else None

  weights = tuple(array(*shape) for shape in shapes)
  carry = jax.eval_shape(chunk_lib.turn, chunk_lib.Carry(weights, weights))
  chunks = chunk_lib.Chunk(
      *[token(case.head_dim)] * 3,
      forget=(token(1),) * len(shapes),
      learning_rate=token(len(shapes)),
      momentum=token(len(shapes)),
      written=flags(*tokens),
      closes=flags(tokens[0]),
      resets=flags(tokens[0]),
  )
  arguments = (
      carry,
      jax.eval_shape(
          chunk_lib.over_chunks(functools.partial(chunk_lib.prepare, options)),
          chunks,
      ),
      chunk_lib.Constants(
          {"gain": array(case.head_dim)}, carry if case.documents else None
      ),
  )
  return chunk_lib.Step(options), arguments


def _vmem(hlo: str) -> dict[str, int]:
  """Returns the bytes of VMEM that the compiler gave each kernel."""
  found = {}
  for line in hlo.splitlines():
    kernel = re.match(r"\s*%\S*fused_scan_(forward|backward)\S* = ", line)
    used = re.search(
        r'"used_scoped_memory_configs":\[\{"memory_space":"1",'
        r'"offset":"\d+","size":"(\d+)"',
        line,
    )
    if kernel and used:
      found[kernel[1]] = int(used[1])
  return found


def main() -> None:
  try:
    result = compile_case(Case(**json.loads(sys.argv[1])))
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    result = {"error": str(error)}
  print(json.dumps(result))


if __name__ == "__main__":
  main()
