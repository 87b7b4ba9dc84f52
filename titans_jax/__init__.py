# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Titans: Learning to Memorize at Test Time, in JAX and Flax."""

from titans_jax import memory
from titans_jax.inference.exporting import export
from titans_jax.inference.exporting import load
from titans_jax.inference.generation import generate
from titans_jax.inference.generation import stream
from titans_jax.inference.saved_states import load_state
from titans_jax.inference.saved_states import save_state
from titans_jax.layers.neural_memory import NeuralMemory
from titans_jax.models import presets
from titans_jax.models.config import TitansConfig
from titans_jax.models.language_model import TitansLM
from titans_jax.models.states import merge_rows
from titans_jax.models.states import reset_rows
from titans_jax.models.states import select_rows
from titans_jax.models.states import size_in_bytes

__all__ = (
    "NeuralMemory",
    "TitansConfig",
    "TitansLM",
    "export",
    "generate",
    "load",
    "load_state",
    "memory",
    "merge_rows",
    "presets",
    "reset_rows",
    "save_state",
    "select_rows",
    "size_in_bytes",
    "stream",
)
