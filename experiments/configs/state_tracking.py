# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small models on word problems, for experiments.state_tracking."""

from titans_jax.evaluation import state_tracking
from titans_jax.training import overlay


def get_config():
  return overlay.run_config_dict(
      model={
          "num_layers": 2,
          "model_dim": 64,
          "num_heads": 2,
          "memory": {"expansion": 2},
          "chunk_size": 4,
          "segment_length": 16,
          "window": 64,
          "num_persistent": 4,
          "ffn_dim": 128,
      },
      data_class=state_tracking.StateTrackingData,
      optimizer={
          "learning_rate": 3e-3,
          "warmup_steps": 100,
          "weight_decay": 0.01,
          "b2": 0.99,
      },
      train={
          "num_steps": 2000,
          "eval_every": 200,
          "checkpoint_every": 500,
          "keep_checkpoints": 1,
          "log_every": 20,
      },
  )
