# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Long-term forecasting in the literature's setting, for experiments.forecast."""

from titans_jax.evaluation import forecasting
from titans_jax.training import overlay


def get_config():
  return overlay.run_config_dict(
      model={
          "variant": "lmm",
          "vocab_size": 1,  # there are no tokens
          "num_layers": 1,
          "model_dim": 32,
          "num_heads": 2,
          "memory": {"expansion": 2},
          "chunk_size": 4,
          "window": 16,
          "num_persistent": 4,
          "ffn_dim": 64,
      },
      data_class=forecasting.ForecastData,
      optimizer={
          "learning_rate": 1e-3,
          "warmup_steps": 50,
          "weight_decay": 0.0,
      },
      train={
          "keep_checkpoints": 1,
          "log_every": 20,
          "checkpoint_every": 500,
      },
  )
