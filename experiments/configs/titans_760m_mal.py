# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Titans 760M, memory as a layer; `:fast` behind the file name for the fast preset.

Plan it with experiments.plan, prepare data with experiments.prepare_data, train
it with experiments.pretrain.
"""

from titans_jax.training import recipes


def get_config(kind=""):
  return recipes.pretraining("760m", "mal", kind)
