# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A small model on labelled DNA, for experiments.genomics."""

from titans_jax.data import genomes
from titans_jax.evaluation import genomics
from titans_jax.training import recipes


def get_config():
  return recipes.synthetic(
      genomics.GenomicsData,
      model={
          "variant": "lmm",
          "vocab_size": genomes.VOCAB_SIZE,
          "window": 64,
          "forget_bias": -10.0,
      },
      train={"checkpoint_every": 200},
  )
