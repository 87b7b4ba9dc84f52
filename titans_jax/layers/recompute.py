# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the backward pass makes again because it is cheaper than to keep it."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax


def light(target: Any) -> Any:
  """Returns a module class, or a function of a module, that keeps for its
  derivative its arguments and results of products alone.

  All else is a pass over memory, as is to write a result and to read it again.
  For parts without a scan over chunks: of that every product would be kept.
  Outside of a scan over blocks XLA may merge what is made again with the forward
  pass; that costs memory alone.
  """
  return nn.remat(
      target, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable
  )
