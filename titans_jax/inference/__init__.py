# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generation from a trained model; models and states in files."""

from titans_jax.inference.exporting import export
from titans_jax.inference.exporting import is_exported
from titans_jax.inference.exporting import load
from titans_jax.inference.generation import generate
from titans_jax.inference.generation import pad_prompts
from titans_jax.inference.generation import stream
from titans_jax.inference.saved_states import load_state
from titans_jax.inference.saved_states import save_state

__all__ = (
    "export",
    "generate",
    "is_exported",
    "load",
    "load_state",
    "pad_prompts",
    "save_state",
    "stream",
)
