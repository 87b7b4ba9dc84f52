# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small models on BABILong, for experiments.babilong."""

from titans_jax.evaluation import babi
from titans_jax.training import recipes


def get_config():
  return recipes.synthetic(
      babi.BabiData,
      model=recipes.LASTING,
      train={"num_steps": 6000, "eval_every": 500, "checkpoint_every": 500},
  )
