# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""AdamW with warm-up, cosine decay and a decay mask."""

from __future__ import annotations

import jax
import optax

from titans_jax.training import config as config_lib


def learning_rate(
    config: config_lib.OptimizerConfig, num_steps: int
) -> optax.Schedule:
  """Returns the schedule: linear warm-up, then cosine to a share of the peak."""
  warmup = min(config.warmup_steps, num_steps - 1)
  return optax.warmup_cosine_decay_schedule(
      init_value=config.learning_rate / (warmup + 1),
      peak_value=config.learning_rate,
      warmup_steps=warmup,
      decay_steps=num_steps,
      end_value=config.learning_rate * config.final_fraction,
  )


def make_optimizer(
    config: config_lib.OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """Returns gradient clipping followed by AdamW."""
  return optax.chain(
      optax.clip_by_global_norm(config.max_grad_norm),
      optax.adamw(
          learning_rate(config, num_steps),
          b1=config.b1,
          b2=config.b2,
          eps=config.epsilon,
          weight_decay=config.weight_decay,
          mask=decay_mask,
      ),
  )


def decay_mask(params):
  """Returns True for the leaves that weight decay acts on.

  Those are the kernels of projections and convolutions, and the embedding: not
  norms, biases, gates, persistent tokens, nor anything of the initial memory.
  """

  def decayed(path, _):
    names = [getattr(entry, "key", str(entry)) for entry in path]
    if "gates" in names:
      return False
    return names[-1] in ("kernel", "embedding")

  return jax.tree_util.tree_map_with_path(decayed, params)
