# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Accelerators that are planned for and need not be there."""

from __future__ import annotations

import re

import jax
from jax.experimental import topologies
import numpy as np

from pallas_kernels import _aot

# What XLA's compiler asks of a GPU: makers' figures, and limits of CUDA's
# programming guide by compute capability.
_GPUS = {
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

NAMES = (*_aot.TOPOLOGIES, *_GPUS)


def devices(topology: str, num_slices: int = 1) -> np.ndarray:
  """Returns the devices of a topology, for whatever JAX compiles.

  Args:
    topology: TPUs as GENERATION:XxYxZ or XxY, GPUs as NAME:MACHINESxGPUS.
    num_slices: of TPUs.

  Raises:
    ValueError: no such topology, or no compiler for it; slices of GPUs.
  """
  name, _, shape = topology.partition(":")
  form = r"\d+x\d+" if name in _GPUS else r"\d+(x\d+){1,2}"
  if name not in NAMES or not re.fullmatch(form, shape):
    raise ValueError(
        f"--topology={topology!r} must be GENERATION:SHAPE, such as v5p:2x2x1,"
        f" or GPU:MACHINESxGPUS, such as h100:2x8, of {sorted(NAMES)}."
    )
  if name in _GPUS and num_slices > 1:
    raise ValueError(
        f"--num_slices={num_slices} are of TPUs; give GPUs' machines in"
        f" --topology={name}:MACHINESxGPUS."
    )
  extra = "cuda13" if name in _GPUS else "tpu"
  try:
    if name in _GPUS:
      return _gpus(_GPUS[name], shape)
    return _aot.devices(topology, num_slices)
  except (RuntimeError, jax.errors.JaxRuntimeError) as error:
    raise ValueError(
        f"--topology={topology}: {str(error).splitlines()[0]}. Is its compiler"
        f" installed (pip install 'titans-jax[{extra}]'), and is this a shape"
        " that these come in?"
    ) from error


def _gpus(gpu: dict, shape: str) -> np.ndarray:
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
