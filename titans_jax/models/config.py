# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The configuration of a Titans language model."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from titans_jax import memory as memory_lib
from titans_jax.layers import neural_memory

VARIANTS = ("mac", "mag", "mal", "lmm", "transformer")
DTYPES = ("bfloat16", "float32", "float64")
IMPLEMENTATIONS = ("auto", "xla", "pallas")


@dataclasses.dataclass(frozen=True)
class TitansConfig:
  """Sizes and options of a model.

  Attributes:
    variant: "mac" (memory as a context, v1 section 4.1), "mag" (as a gate,
      4.2), "mal" (as a layer, 4.3), "lmm" (memory alone, 4.3) or "transformer"
      (attention alone, the baseline).
    vocab_size: tokens are integers below it.
    num_layers: blocks.
    model_dim: width of the residual stream.
    num_heads: heads of the memory and of attention.
    head_dim: width of a head; None: model_dim / num_heads.
    memory: the memory network M.
    chunk_size: b, tokens whose inner gradients are taken at the same weights. A
      part of the function: train and serve with the same.
    segment_length: C, tokens of a MAC segment, a multiple of chunk_size.
    window: W, tokens that sliding-window attention sees, itself included;
      None: full attention (variant "transformer" only).
    num_persistent: N_p, learned persistent tokens per block.
    max_length: tokens that full attention can hold.
    ffn_dim: hidden width of SwiGLU; None: 8/3 model_dim, rounded up to a
      multiple of 32.
    momentum: False: the rule without momentum.
    forget: alpha per "token" and memory layer, per output "channel", or "none".
    gates_per_layer: whether every memory layer has gates of its own.
    gates_per_chunk: whether a chunk's first token sets the gates of all of it.
    max_learning_rate: theta_max; None: what the network bears.
    forget_bias: initial bias of alpha's logit.
    max_grad_norm: bound on a token's inner gradient per memory layer, or None.
      On text 1 was seen to help (MAC's memory above all, which may grow without
      it); where few tokens must be written strongly it is in the way.
    normalize_values: RMS-normalises the memory's values.
    read_before_write: whether a token reads the memory that the tokens before it
      have left, instead of that with itself in it (v1 equation 15).
    conv_size: taps of the memory's convolutions; 0: none.
    rope_theta: base of the rotary frequencies.
    tie_embeddings: whether the output projection is the embedding's transpose.
    remat: whether the backward pass recomputes each block's activations.
    checkpoint_every: chunks per group in the memory's backward pass, or None.
    implementation: of the memory's scan over chunks: "auto" (a kernel where it
      runs, `jax.lax.scan` elsewhere), "xla" (`jax.lax.scan`) or "pallas" (the
      kernel, interpreted on CPU).
    dtype: of the computation: "bfloat16", "float32" or "float64". Memory state,
      gates, norms' sums and the loss stay in at least float32.
    param_dtype: of the parameters.
  """

  variant: str = "mac"
  vocab_size: int = 32_000
  num_layers: int = 12
  model_dim: int = 768
  num_heads: int = 16
  head_dim: int | None = None
  memory: memory_lib.MLP = memory_lib.MLP()
  chunk_size: int = 16
  segment_length: int = 512
  window: int | None = 2048
  num_persistent: int = 128
  max_length: int = 4096
  ffn_dim: int | None = None
  momentum: bool = True
  forget: str = "token"
  gates_per_layer: bool = True
  gates_per_chunk: bool = False
  max_learning_rate: float | None = None
  forget_bias: float = -6.0
  max_grad_norm: float | None = None
  normalize_values: bool = True
  read_before_write: bool = False
  conv_size: int = 4
  rope_theta: float = 10_000.0
  tie_embeddings: bool = True
  remat: bool = False
  checkpoint_every: int | None = None
  implementation: str = "auto"
  dtype: str = "float32"
  param_dtype: str = "float32"

  def __post_init__(self):
    _check_choice("variant", self.variant, VARIANTS)
    _check_choice("forget", self.forget, neural_memory.FORGET)
    _check_choice("implementation", self.implementation, IMPLEMENTATIONS)
    _check_choice("dtype", self.dtype, DTYPES)
    _check_choice("param_dtype", self.param_dtype, DTYPES)
    for name in (
        "vocab_size",
        "num_layers",
        "model_dim",
        "num_heads",
        "chunk_size",
        "segment_length",
        "max_length",
    ):
      _check_at_least(name, getattr(self, name), 1)
    for name in ("num_persistent", "conv_size"):
      _check_at_least(name, getattr(self, name), 0)
    for name in ("head_dim", "window", "ffn_dim", "checkpoint_every"):
      if getattr(self, name) is not None:
        _check_at_least(name, getattr(self, name), 1)
    if self.head_dim is None:
      if self.model_dim % self.num_heads:
        raise ValueError(
            f"model_dim={self.model_dim} is not divisible by"
            f" num_heads={self.num_heads}: choose a multiple, or set head_dim."
        )
      object.__setattr__(self, "head_dim", self.model_dim // self.num_heads)
    if self.head_dim % 2 and self.variant != "lmm":
      raise ValueError(
          f"head_dim={self.head_dim} must be even: rotary positions pair the"
          " channels of attention."
      )
    if self.ffn_dim is None:
      hidden = -(-8 * self.model_dim // 3)
      object.__setattr__(self, "ffn_dim", -(-hidden // 32) * 32)
    if self.variant == "mac" and self.segment_length % self.chunk_size:
      raise ValueError(
          f"segment_length={self.segment_length} is not a multiple of"
          f" chunk_size={self.chunk_size}."
      )
    if self.window is None and self.variant in ("mag", "mal"):
      raise ValueError(
          f"variant={self.variant!r} needs a window: full attention (window ="
          " None) is for variant='transformer'."
      )
    for name in ("max_learning_rate", "max_grad_norm", "rope_theta"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f"{name} must be positive, got {value!r}.")
    for name in ("init", "apply", "layer_shapes"):
      if not hasattr(self.memory, name):
        raise ValueError(
            "memory must be a memory network, titans.memory.MLP() say, got"
            f" {self.memory!r}."
        )

  @property
  def unit(self) -> int:
    """Tokens between the places where a document may start."""
    if self.variant == "transformer":
      return 1
    return self.segment_length if self.variant == "mac" else self.chunk_size


def make_config(values: dict[str, Any]) -> TitansConfig:
  """Returns the configuration that plain values describe, those of `asdict`."""
  values = dict(values)
  net = memory_lib.MLP(**values.pop("memory"))
  return TitansConfig(memory=net, **values)


def _check_choice(name: str, value, choices) -> None:
  if value not in choices:
    raise ValueError(f"{name} must be one of {choices}, got {value!r}.")


def _check_at_least(name: str, value, least: int) -> None:
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < least:
    raise ValueError(
        f"{name} must be an integer of at least {least}, got {value!r}."
    )
