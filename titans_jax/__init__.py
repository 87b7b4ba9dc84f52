# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Titans: Learning to Memorize at Test Time, in JAX and Flax."""

from titans_jax import memory
from titans_jax.inference.generation import generate
from titans_jax.inference.generation import stream
from titans_jax.layers.neural_memory import NeuralMemory
from titans_jax.models import presets
from titans_jax.models.config import TitansConfig
from titans_jax.models.language_model import TitansLM

__all__ = (
    "NeuralMemory",
    "TitansConfig",
    "TitansLM",
    "generate",
    "memory",
    "presets",
    "stream",
)
