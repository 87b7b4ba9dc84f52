# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small models on associative recall, for experiments.recall."""

from titans_jax.evaluation import recall
from titans_jax.training import recipes


def get_config():
  return recipes.synthetic(
      recall.RecallData,
      model={"window": 16},
      warmup_steps=50,
      train={"num_steps": 800, "eval_every": 200, "checkpoint_every": 400},
  )
