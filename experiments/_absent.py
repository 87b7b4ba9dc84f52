# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Accelerators that are planned for and need not be there."""

from __future__ import annotations

import re

import jax
import numpy as np

from pallas_kernels import _aot
from pallas_kernels import _aot_gpu

NAMES = (*_aot.TOPOLOGIES, *_aot_gpu.GPUS)


def devices(topology: str, num_slices: int = 1) -> np.ndarray:
  """Returns the devices of a topology, for whatever JAX compiles.

  Args:
    topology: TPUs as GENERATION:XxYxZ or XxY, GPUs as NAME:MACHINESxGPUS.
    num_slices: of TPUs.

  Raises:
    ValueError: no such topology, or no compiler for it; slices of GPUs.
  """
  name, _, shape = topology.partition(":")
  form = r"\d+x\d+" if name in _aot_gpu.GPUS else r"\d+(x\d+){1,2}"
  if name not in NAMES or not re.fullmatch(form, shape):
    raise ValueError(
        f"--topology={topology!r} must be GENERATION:SHAPE, such as v5p:2x2x1,"
        f" or GPU:MACHINESxGPUS, such as h100:2x8, of {sorted(NAMES)}."
    )
  if name in _aot_gpu.GPUS and num_slices > 1:
    raise ValueError(
        f"--num_slices={num_slices} are of TPUs; give GPUs' machines in"
        f" --topology={name}:MACHINESxGPUS."
    )
  extra = "cuda13" if name in _aot_gpu.GPUS else "tpu"
  try:
    if name in _aot_gpu.GPUS:
      return _aot_gpu.devices(name, shape)
    return _aot.devices(topology, num_slices)
  except (RuntimeError, jax.errors.JaxRuntimeError) as error:
    raise ValueError(
        f"--topology={topology}: {str(error).splitlines()[0]}. Is its compiler"
        f" installed (pip install 'titans-jax[{extra}]'), and is this a shape"
        " that these come in?"
    ) from error
