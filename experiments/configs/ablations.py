# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A small model on text, of which experiments.ablations takes parts away."""

from titans_jax.training import recipes


def get_config():
  return recipes.small_text()
