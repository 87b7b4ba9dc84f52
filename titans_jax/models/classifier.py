# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A classifier of sequences over the models' blocks (v1 section 5.6)."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from titans_jax.layers import linear
from titans_jax.layers import neural_memory
from titans_jax.models import blocks
from titans_jax.models import config as config_lib

Array = jax.Array


class Classifier(nn.Module):
  """Reads a sequence and names its class.

  What the blocks make of the tokens is averaged over them, and mapped linearly.

  Attributes:
    config: of the blocks; tokens are below its vocab_size.
    num_classes: classes.
  """

  config: config_lib.TitansConfig
  num_classes: int

  def setup(self):
    config = self.config
    self.embedding = self.param(
        "embedding",
        nn.initializers.normal(1.0),
        (config.vocab_size, config.model_dim),
        config.param_dtype,
    )
    self.blocks = blocks.Block(config)
    self.final_norm = linear.rms_norm(config)
    self.head = nn.Dense(
        self.num_classes,
        dtype=jnp.promote_types(config.dtype, jnp.float32),
        param_dtype=config.param_dtype,
    )

  def __call__(self, tokens: Array, lengths: Array | None = None) -> Array:
    """Returns logits.

    Args:
      tokens: int32 [B, T].
      lengths: int32 [B], tokens of each row, padding behind them; None: all.

    Returns:
      [B, num_classes], in at least float32.
    """
    return self._read(tokens, lengths)[0]

  def _read(
      self, tokens: Array, lengths: Array | None
  ) -> tuple[Array, neural_memory.Gauges | None]:
    """Returns logits, and the blocks' gauges."""
    config = self.config
    x = self.embedding[tokens].astype(config.dtype)
    mask = None
    if lengths is not None:
      mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
    x, gauges = blocks.read_fresh(self.blocks, x, config, tail_mask=mask)
    x = self.final_norm(x)
    x = x.astype(self.head.dtype)
    if mask is None:
      return self.head(jnp.mean(x, axis=1)), gauges
    weights = mask.astype(x.dtype)[..., None]
    total = jnp.sum(x * weights, axis=1)
    count = jnp.maximum(jnp.sum(weights, axis=1), 1)
    return self.head(total / count), gauges

  def loss(
      self,
      tokens: Array,
      labels: Array,
      lengths: Array | None = None,
      *,
      memory_cost: float = 0.0,
  ) -> tuple[Array, dict[str, Any], None]:
    """Returns the mean cross-entropy of a batch.

    Args:
      tokens: int32 [B, T].
      labels: int32 [B]; a negative one is not scored.
      lengths: int32 [B], as in `__call__`.
      memory_cost: weight of what the memories write and forget, as
        `Gauges.cost` has it.

    Returns:
      The loss, nats (plus what the weight adds); metrics: `cross_entropy`,
      `accuracy`, `num_tokens`, the sequences scored, and `memory`, the gauges of
      every block ([num_layers] each; None without memory); and no state.
    """
    logits, gauges = self._read(tokens, lengths)
    scored = labels >= 0
    count = jnp.sum(scored, dtype=jnp.int32)
    nats = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(labels, 0)
    )
    scale = 1 / jnp.maximum(count, 1)
    correct = jnp.argmax(logits, axis=-1) == labels
    loss = jnp.sum(jnp.where(scored, nats, 0)) * scale
    metrics = {
        "cross_entropy": loss,
        "accuracy": jnp.sum(correct & scored) * scale,
        "num_tokens": count,
        "memory": gauges,
    }
    if memory_cost and gauges is not None:
      loss += memory_cost * gauges.cost(tokens.shape[1])
    return loss, metrics, None

  def init_inputs(self) -> dict[str, Array]:
    """Returns arguments for `init`."""
    return {"tokens": jnp.zeros((1, self.config.unit), jnp.int32)}
