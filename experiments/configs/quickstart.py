# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A small MAC model on the text that every Python carries.

python -m experiments.pretrain --config=experiments/configs/quickstart.py \
        --workdir=runs/quickstart
"""

from titans_jax.training import overlay


def get_config():
  return overlay.run_config_dict(
      model={
          "variant": "mac",
          "num_layers": 2,
          "model_dim": 128,
          "num_heads": 4,
          "memory": {"expansion": 2},
          "chunk_size": 32,
          "segment_length": 64,
          "window": 64,
          "num_persistent": 4,
          "max_grad_norm": 1.0,
      },
      data={
          "source": "builtin",
          "sequence_length": 256,
          "batch_size": 8,
      },
      optimizer={"learning_rate": 3e-3, "warmup_steps": 50},
      train={
          "num_steps": 400,
          "eval_every": 100,
          "checkpoint_every": 100,
      },
  )
