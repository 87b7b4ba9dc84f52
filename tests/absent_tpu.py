# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""TPUs that are not there, to compile for."""

import importlib.util
import os

import jax
from jax.experimental import topologies
import numpy as np


def devices(test, name: str) -> np.ndarray:
  """Returns a topology's devices, or skips the test."""
  if importlib.util.find_spec("libtpu") is None:
    test.skipTest("Compiling for TPU takes libtpu (the tpu extra).")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  # What was compiled for absent devices cannot be read back.
  option = "jax_persistent_cache_min_compile_time_secs"
  test.addCleanup(jax.config.update, option, getattr(jax.config, option))
  jax.config.update(option, float("inf"))
  topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
  return np.array(topology.devices)
