# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training step has to compute, by formula.

Operations are the additions and multiplications of matrix products, forward and
backward, each once: what is recomputed to save memory is not counted. They are
what model FLOPs utilisation (MFU) is a share of.
"""

from __future__ import annotations

from typing import Any

import jax

from titans_jax.models import config as config_lib


def of_step(
    config: config_lib.TitansConfig,
    params: Any,
    rows: int,
    length: int,
    shards: int = 1,
) -> dict[str, float]:
  """Returns what a training step needs by formula: forward and backward, once.

  Three times the forward pass, by part of the model: `projections`,
  `attention`, `memory`, `persistent` (tokens, in the memory) and `logits`.

  Args:
    config: of the model.
    params: its parameters, or their shapes.
    rows: sequences of a step, all devices together.
    length: tokens of a sequence.
    shards: of the rows. Each makes the persistent tokens' part for itself.
  """
  assert config.head_dim is not None  # the configuration sets it
  width = config.num_heads * config.head_dim
  layers = config.num_layers
  prefix = config.num_persistent
  # Multiply-adds of a token and layer.
  attention = memory = 0.0
  if config.variant == "mac":
    segment = config.segment_length
    attention = 2.0 * width * (prefix + segment + 1)
  elif config.variant != "lmm":
    attention = 2.0 * width * (prefix + _mean_visible(config, length))
  if config.variant != "transformer":
    memory = config.num_heads * _memory_macs(config)
    if config.variant == "mac":  # the recall reads W
      memory += config.num_heads * _layer_macs(config)
  projections, of_prefix = _projection_sizes(config, params)
  tokens = rows * length
  per_pass = {
      "projections": layers * projections * tokens,
      "attention": layers * attention * tokens,
      "memory": layers * memory * tokens,
      "persistent": layers * (of_prefix + memory) * prefix * shards,
      "logits": config.model_dim * config.vocab_size * tokens,
  }
  return {name: 6.0 * macs for name, macs in per_pass.items()}


# The recall has queries, and an output, of its own; attention has keys and
# values (but no queries) of what is recalled too.
_USES_IN_MAC = {
    "memory/query/kernel": 2.0,
    "memory/out/kernel": 2.0,
    "memory/out_gate/kernel": 2.0,
    "attention/value/kernel": 2.0,
    "attention/query_key/kernel": 1.5,
}


def _projection_sizes(config, params) -> tuple[float, float]:
  """Returns the multiply-adds of a token's, and of a persistent token's,
  projections in one layer."""
  total = of_prefix = 0.0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params["blocks"]):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not name.endswith("/kernel") or "_conv/" in name:
      continue
    uses = 1.0
    if config.variant == "mac":
      uses = next((n for k, n in _USES_IN_MAC.items() if name.endswith(k)), 1.0)
    total += uses * leaf.size / config.num_layers
    if "/memory/" in name:
      of_prefix += leaf.size / config.num_layers
  return total, of_prefix


def _mean_visible(config, length: int) -> float:
  """Returns how many tokens a query sees, on average."""
  window = min(config.window or length, length)
  return window - window * (window - 1) / (2 * length)


def _layer_macs(config) -> float:
  return float(
      sum(a * b for a, b in config.memory.layer_shapes(config.head_dim))
  )


def _memory_macs(config) -> float:
  """Returns the multiply-adds of a token in one head's memory, forward.

  Keys through the network and the error back through all layers but the first;
  queries through W and S; both updated by products; and the two products of a
  layer within the chunk.
  """
  shapes = config.memory.layer_shapes(config.head_dim)
  first = shapes[0][0] * shapes[0][1]
  every = _layer_macs(config)
  terms = 2 if config.momentum else 1
  chunk = config.chunk_size * sum(a + b for a, b in shapes)
  return every + (every - first) + 2 * terms * every + chunk
