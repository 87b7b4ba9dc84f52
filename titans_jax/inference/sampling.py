# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Choosing the next token from logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def sample(
    rng: Array,
    logits: Array,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Array:
  """Draws a token per row.

  Args:
    rng: a key.
    logits: [B, V].
    temperature: divides the logits; 0 takes the most likely token.
    top_k: keeps the k most likely tokens only.
    top_p: keeps the smallest set of most likely tokens whose probability is at
      least p.

  Returns:
    int32 [B].
  """
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits / temperature
  if top_k is not None and top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, top_k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if top_p is not None and top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    # A token is kept if those before it fall short of p: the first always is.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where(before < top_p, ordered, jnp.inf)
    least = jnp.min(kept, axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return jax.random.categorical(rng, logits, axis=-1).astype(jnp.int32)


def check_options(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
  """Raises ValueError for options out of range."""
  if not temperature >= 0:
    raise ValueError(f"temperature must be at least 0, got {temperature}.")
  if top_k is not None and top_k < 1:
    raise ValueError(f"top_k must be at least 1 or None, got {top_k}.")
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f"top_p must lie in (0, 1] or be None, got {top_p}.")
