# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles for GPUs that are not there, and reads what the compiler says.

XLA and Mosaic compile for a GPU by its description alone; the wheels of the
extra `cuda13` bring what they need, on Python 3.12 or newer. Mosaic prints
ptxas's report if the environment says so before it is loaded, so `schedule` runs
this in a process of its own: one argument, a `Case` as JSON; the last line of
standard output is what `compile_case` returns, or {"error": message}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import re
import sys
from typing import Any, Sequence

import jax
from jax.experimental import topologies
import numpy as np

from pallas_kernels import _aot
from titans_jax.memory import hopper

# What XLA's compiler asks of a GPU: makers' figures, and limits of CUDA's
# programming guide by compute capability.
GPUS: dict[str, dict[str, Any]] = {
    "a100": dict(
        capability=(8, 0),
        cores=108,
        shared=166_912,
        l2=41_943_040,
        clock=1.41,
        bandwidth=2_039_000_000_000,
        memory=85_094_825_984,
        name="NVIDIA A100-SXM4-80GB",
    ),
    "h100": dict(
        capability=(9, 0),
        cores=132,
        shared=232_448,
        l2=52_428_800,
        clock=1.98,
        bandwidth=3_350_000_000_000,
        memory=84_929_347_584,
        name="NVIDIA H100 80GB HBM3",
    ),
    "h200": dict(
        capability=(9, 0),
        cores=132,
        shared=232_448,
        l2=62_914_560,
        clock=1.98,
        bandwidth=4_800_000_000_000,
        memory=150_109_880_320,
        name="NVIDIA H200",
    ),
}

# Those that there is a kernel for.
TARGETS = ("h100", "h200")

# Says to Mosaic that ptxas reports on standard output.
REPORT = {"MOSAIC_GPU_DUMP_PTXAS": "1"}

_REGISTERS = 65_536

_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {per_core}
  shared_memory_per_block_optin: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
runtime_version {{ major: 13 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Case:
  """A scan of the default memory network, one batch row.

  Attributes:
    target: a key of `GPUS`.
    head_dim: D.
    hidden: width of the network's hidden layer.
    chunk: b.
    heads: H.
    group: chunks between states that are kept; None: as the kernel chooses.
    max_grad_norm: as in `memory.scan`.
  """

  target: str
  head_dim: int
  hidden: int
  chunk: int
  heads: int
  group: int | None = None
  max_grad_norm: float | None = None


def why_not() -> str | None:
  """Returns why this machine cannot compile for GPUs; None: it can."""
  if not hasattr(hopper.plgpu, "InterpretGPUParams"):
    return f"Mosaic GPU of jax 0.11 is missing, this is {jax.__version__}"
  try:
    found = importlib.util.find_spec("jax_cuda13_plugin")
  except ValueError:  # Known, and hidden.
    found = None
  if found is None:
    return "the compiler for GPUs is not installed (the cuda13 extra)"
  return None


def devices(name: str, shape: str = "1x1") -> np.ndarray:
  """Returns GPUs, which need not be there.

  Args:
    name: a key of `GPUS`.
    shape: MACHINESxGPUS.
  """
  gpu = GPUS[name]
  # A multiprocessor has a KiB more than a block may ask for.
  target = _TARGET.format(
      per_core=gpu["shared"] + 1024,
      fpus=64 if gpu["capability"] == (8, 0) else 128,
      **gpu,
  )
  topology = topologies.get_topology_desc(
      "gpus", "cuda", topology=f"1x{shape}", target_config=target
  )
  return np.array(topology.devices)


@contextlib.contextmanager
def tracing_for(name: str, shape: str = "1x1"):
  """Traces programs for such GPUs; yields the sharding of arrays that all have,
  over their mesh's axis "data".

  Args:
    name: a key of `GPUS`.
    shape: MACHINESxGPUS.
  """
  device = jax.sharding.AbstractDevice(
      device_kind=GPUS[name]["name"],
      num_cores=GPUS[name]["cores"],
      platform="cuda",
  )
  mesh = jax.sharding.Mesh(devices(name, shape).reshape(-1), ("data",))
  absent = jax.sharding.AbstractMesh(
      mesh.axis_sizes,
      mesh.axis_names,
      axis_types=(jax.sharding.AxisType.Auto,),
      abstract_device=device,
  )
  with jax.sharding.use_abstract_mesh(absent):
    yield jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def compile_case(case: Case) -> dict[str, Any]:
  """Compiles the kernels: forward, alone and with its states kept, backward, and
  those of the coefficients.

  Returns:
    As `hopper.budget`.

  Raises:
    ValueError: no kernel for these sizes.
  """
  step, arguments = _aot.scan_arguments(
      _aot.Case(
          "v4",
          case.head_dim,
          case.hidden,
          case.chunk,
          case.heads,
          max_grad_norm=case.max_grad_norm,
      )
  )
  carry, chunks, constants = arguments
  options = step.options

  def run(carry, chunks, constants):
    return hopper.scan(options, carry, chunks, constants, group=case.group)

  def run_both(carry, chunks, constants, cotangents):
    results, vjp = jax.vjp(run, carry, chunks, constants)
    return results, vjp(cotangents)

  with tracing_for(case.target) as sharding:
    reason = hopper.why_not(options, carry, chunks)
    if reason is not None:
      raise ValueError(f"{reason}.")
    results = jax.eval_shape(run, *arguments)
    shardings = {"in_shardings": sharding, "out_shardings": sharding}
    jax.jit(run, **shardings).lower(*arguments).compile()
    jax.jit(run_both, **shardings).lower(*arguments, results).compile()
  return hopper.budget(options, carry, chunks, group=case.group)


def read_report(text: str) -> dict[str, dict[str, int]]:
  """Returns registers a thread and bytes spilled, per kernel, from ptxas's report.

  Raises:
    ValueError: the report is not of the form that it had.
  """
  found: dict[str, dict[str, int]] = {}
  parts = re.split(r"Compiling entry function '(\w+)'", text)[1:]
  for name, part in zip(parts[::2], parts[1::2]):
    registers = re.search(r"Used (\d+) registers", part)
    spilled = re.search(
        r"(\d+) bytes spill stores, (\d+) bytes spill loads", part
    )
    if registers is None or spilled is None:
      raise ValueError(f"ptxas says neither registers nor spills of {name}.")
    found[name.removesuffix("_mosaic_gpu_kernel")] = {
        "registers": int(registers[1]),
        "spill_stores": int(spilled[1]),
        "spill_loads": int(spilled[2]),
    }
  return found


def blocks_per_core(
    target: str, registers: int, threads: int, shared_bytes: int
) -> int:
  """Returns how many blocks of a kernel a multiprocessor holds at once."""
  # Registers are given out in eights, and a block has a KiB of its own.
  by_registers = _REGISTERS // (-(-registers // 8) * 8 * threads)
  by_memory = (GPUS[target]["shared"] + 1024) // (shared_bytes + 1024)
  return min(by_registers, by_memory, 2048 // threads)


def main(argv: Sequence[str]) -> None:
  try:
    result = compile_case(Case(**json.loads(argv[1])))
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    result = {"error": str(error)}
  print(json.dumps(result), flush=True)


if __name__ == "__main__":
  main(sys.argv)
