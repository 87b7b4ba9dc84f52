# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Small models on needles in haystacks, for experiments.niah."""

from titans_jax.evaluation import needles
from titans_jax.training import recipes


def get_config():
  return recipes.synthetic(
      needles.NeedleData,
      # Of a needle most stands in one segment, so that what writes it sees it.
      model={**recipes.LASTING, "segment_length": 64},
      data={"tasks": "passkey,number,word", "batch_size": 16},
      train={"num_steps": 4000, "eval_every": 250, "checkpoint_every": 250},
  )
