# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small models on associative recall, for experiments.recall."""

from titans_jax.evaluation import recall
from titans_jax.training import overlay


def get_config():
  return overlay.run_config_dict(
      model={
          "num_layers": 2,
          "model_dim": 64,
          "num_heads": 2,
          "memory": {"expansion": 2},
          "chunk_size": 16,
          "segment_length": 16,
          "window": 16,
          "num_persistent": 4,
          "ffn_dim": 128,
      },
      data_class=recall.RecallData,
      optimizer={
          "learning_rate": 3e-3,
          "warmup_steps": 50,
          "weight_decay": 0.01,
          "b2": 0.99,
      },
      train={
          "num_steps": 800,
          "eval_every": 200,
          "checkpoint_every": 400,
          "keep_checkpoints": 1,
          "log_every": 20,
      },
  )
