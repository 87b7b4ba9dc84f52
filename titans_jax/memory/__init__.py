# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The neural long-term memory (the paper's section 3): pure functions, no Flax."""

from titans_jax.memory import special_cases
from titans_jax.memory.interface import read
from titans_jax.memory.interface import scan
from titans_jax.memory.networks import MLP
from titans_jax.memory.networks import Network
from titans_jax.memory.state import close_chunk
from titans_jax.memory.state import init_state
from titans_jax.memory.state import MemoryState
from titans_jax.memory.tokens import Gates

__all__ = (
    "Gates",
    "MLP",
    "MemoryState",
    "Network",
    "close_chunk",
    "init_state",
    "read",
    "scan",
    "special_cases",
)
