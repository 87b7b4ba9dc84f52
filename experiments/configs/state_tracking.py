# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small models on word problems, for experiments.state_tracking."""

from titans_jax.evaluation import state_tracking
from titans_jax.training import recipes


def get_config():
  return recipes.synthetic(
      state_tracking.StateTrackingData,
      # A state that a token can turn over: every token's gradient is taken where
      # the token before left the weights, and a linear memory's (1 - alpha) I -
      # 2 theta k^T k has eigenvalues down to -1.
      model={"chunk_size": 1, "max_learning_rate": 1.0, "window": 64},
      # Enough for parity; the deep memory, token by token, takes its time.
      data={"batch_size": 16},
      train={"num_steps": 2000, "eval_every": 200, "checkpoint_every": 500},
  )
