# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The same small model for experiments.depth, its inner gradients bounded."""

from titans_jax.training import recipes


def get_config():
  return recipes.small_text(max_grad_norm=1.0)
