# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generation from a trained model."""

from titans_jax.inference.generate import generate
from titans_jax.inference.generate import stream

__all__ = ("generate", "stream")
