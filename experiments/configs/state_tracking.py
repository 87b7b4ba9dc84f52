# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small models on word problems, for experiments.state_tracking."""

from titans_jax.evaluation import state_tracking
from titans_jax.training import recipes


def get_config():
  return recipes.synthetic(
      state_tracking.StateTrackingData,
      model={"chunk_size": 4, "window": 64},
      train={"num_steps": 2000, "eval_every": 200, "checkpoint_every": 500},
  )
