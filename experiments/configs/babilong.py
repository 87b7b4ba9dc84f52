# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small models on BABILong, for experiments.babilong."""

from titans_jax.evaluation import babi
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
          "window": 32,
          "num_persistent": 4,
          "ffn_dim": 128,
          # What was read must last: at -6 half of it is gone after 280 tokens.
          "forget_bias": -10.0,
      },
      data_class=babi.BabiData,
      optimizer={
          "learning_rate": 3e-3,
          "warmup_steps": 100,
          "weight_decay": 0.01,
          "b2": 0.99,
      },
      train={
          "num_steps": 6000,
          "eval_every": 500,
          "checkpoint_every": 500,
          "keep_checkpoints": 1,
          "log_every": 20,
      },
  )
