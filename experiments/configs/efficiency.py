# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A small model of which 16,384 tokens a step are timed, by experiments.efficiency."""

from titans_jax.training import overlay


def get_config():
  return overlay.run_config_dict(
      model={
          "num_layers": 2,
          "model_dim": 128,
          "num_heads": 2,
          "memory": {"expansion": 2},
          "chunk_size": 64,
          "segment_length": 256,
          "window": 256,
          "num_persistent": 16,
          "remat": False,
      },
      data={"sequence_length": 16384, "batch_size": 1},
  )
