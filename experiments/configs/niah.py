# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small models on needles in haystacks, for experiments.niah."""

from titans_jax.evaluation import needles
from titans_jax.training import recipes


def get_config():
  return recipes.synthetic(
      needles.NeedleData,
      model=recipes.LASTING,
      data={"tasks": "passkey,number,word", "batch_size": 8},
      train={"num_steps": 12000, "eval_every": 500, "checkpoint_every": 500},
  )
