# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The layers and the model as Flax NNX modules.

In use::

    from titans_jax import nnx as titans_nnx

    memory = titans_nnx.NeuralMemory(
        model_dim=256, num_heads=4, head_dim=64, rngs=nnx.Rngs(0)
    )
    y, state = memory(x)
    y, state = memory(more, state)

The parameters are `nnx.Param`; what was learned while reading is the state, which
goes in and comes out as with Linen. Construct them under `nnx.jit`, or every
operation of the initialisation is compiled by itself.
"""

from __future__ import annotations

from typing import Any

from flax import nnx
import jax.numpy as jnp

from titans_jax.layers import neural_memory
from titans_jax.models import config as model_config
from titans_jax.models import language_model


class _Bridged(nnx.bridge.ToNNX):
  """A Linen module with its parameters as attributes."""

  @property
  def variables(self) -> dict[str, Any]:
    """The parameters as Linen takes them."""
    return {"params": nnx.to_pure_dict(nnx.state(self, nnx.Param))}


class NeuralMemory(_Bridged):
  """`titans_jax.NeuralMemory`, called as it is."""

  def __init__(self, *, rngs: nnx.Rngs, **fields: Any):
    """Makes the parameters.

    Args:
      rngs: with the stream "params".
      **fields: of `titans_jax.NeuralMemory`.
    """
    module = neural_memory.NeuralMemory(**fields)
    super().__init__(module, rngs)
    self.lazy_init(jnp.zeros((1, module.chunk_size, module.model_dim)))


class TitansLM(_Bridged):
  """`titans_jax.TitansLM`, called as it is; `loss`, `score` and `last_logits`
  are methods."""

  def __init__(self, config: model_config.TitansConfig, *, rngs: nnx.Rngs):
    """Makes the parameters.

    Args:
      config: of the model.
      rngs: with the stream "params".
    """
    module = language_model.TitansLM(config)
    super().__init__(module, rngs)
    self.lazy_init(**module.init_inputs())

  @property
  def linen(self) -> Any:
    """The Linen module, for `titans_jax.generate` with `variables`."""
    return self.to_nnx__module

  def init_state(self, *, batch_size: int) -> language_model.State:
    """Returns the state of rows that have read nothing."""
    return self.linen.init_state(self.variables, batch_size=batch_size)
