# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A small model on text, of which experiments.ablations takes parts away."""

from titans_jax.training import overlay


def get_config():
  return overlay.run_config_dict(
      model={
          "variant": "lmm",
          "num_layers": 2,
          "model_dim": 64,
          "num_heads": 2,
          "memory": {"expansion": 2},
          "chunk_size": 16,
          "segment_length": 32,
          "window": 32,
          "num_persistent": 4,
      },
      data={"sequence_length": 256, "batch_size": 8},
      optimizer={"learning_rate": 3e-3, "warmup_steps": 50},
      train={
          "num_steps": 600,
          "eval_every": 300,
          "checkpoint_every": 300,
          "keep_checkpoints": 1,
      },
  )
