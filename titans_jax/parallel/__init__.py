# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Meshes, sharding rules and several hosts."""

from titans_jax.parallel.mesh import LAYOUTS
from titans_jax.parallel.mesh import make_mesh
from titans_jax.parallel.mesh import ParallelConfig
from titans_jax.parallel.rules import batch_sharding
from titans_jax.parallel.rules import bytes_on_device
from titans_jax.parallel.rules import check
from titans_jax.parallel.rules import constrain_state
from titans_jax.parallel.rules import params_shardings
from titans_jax.parallel.rules import place
from titans_jax.parallel.rules import row_group
from titans_jax.parallel.rules import state_shardings

__all__ = (
    "LAYOUTS",
    "ParallelConfig",
    "batch_sharding",
    "bytes_on_device",
    "check",
    "constrain_state",
    "make_mesh",
    "params_shardings",
    "place",
    "row_group",
    "state_shardings",
)
