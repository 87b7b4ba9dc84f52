# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Set before JAX starts: the CPU, eight devices of it, float64, quick compiles."""

import os
import pathlib
import sys

import tests

_CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        tests.QUICK_COMPILES,
    ]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from absl import flags  # pylint: disable=g-import-not-at-top
import jax

jax.config.update("jax_enable_x64", True)
# Grain asks for parsed flags.
flags.FLAGS(sys.argv[:1])
