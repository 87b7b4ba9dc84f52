# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generation from a trained model."""

from titans_jax.inference.generation import generate
from titans_jax.inference.generation import stream

__all__ = ("generate", "stream")
