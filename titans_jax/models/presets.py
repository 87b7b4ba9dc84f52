# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Named configurations: the paper's sizes, hardware-friendly ones, and a tiny one.

The paper's (NeurIPS Table 5 and appendix E.1): chunk 16, segment 512, window
2048, 128 persistent tokens, a 32,000-token vocabulary. The `_fast` set keeps
depth and width, with chunk 64 and head dimension 128, which fill a 128 x 128
matrix unit.
"""

from __future__ import annotations

from titans_jax import memory as memory_lib
from titans_jax.memory import special_cases
from titans_jax.models import config as config_lib

TitansConfig = config_lib.TitansConfig


def _preset(sizes: dict, variant: str, overrides: dict) -> TitansConfig:
  if variant == "transformer":
    # Transformer++ of the paper's tables: full attention, no persistent tokens.
    sizes = sizes | {"window": None, "num_persistent": 0}
  return TitansConfig(variant=variant, **sizes | overrides)


def titans_170m(variant: str = "mac", **overrides) -> TitansConfig:
  """12 blocks of width 768, 16 heads of 48."""
  sizes = {"num_layers": 12, "model_dim": 768, "num_heads": 16}
  return _preset(sizes, variant, overrides)


def titans_340m(variant: str = "mac", **overrides) -> TitansConfig:
  """24 blocks of width 1024, 16 heads of 64."""
  sizes = {"num_layers": 24, "model_dim": 1024, "num_heads": 16}
  return _preset(sizes, variant, overrides)


def titans_760m(variant: str = "mac", **overrides) -> TitansConfig:
  """24 blocks of width 1536, 16 heads of 96."""
  sizes = {"num_layers": 24, "model_dim": 1536, "num_heads": 16}
  return _preset(sizes, variant, overrides)


def titans_1_3b(variant: str = "mac", **overrides) -> TitansConfig:
  """18 blocks of width 2048, 8 heads of 256."""
  sizes = {"num_layers": 18, "model_dim": 2048, "num_heads": 8}
  return _preset(sizes, variant, overrides)


def _fast(model_dim: int, num_layers: int) -> dict:
  return {
      "num_layers": num_layers,
      "model_dim": model_dim,
      "num_heads": model_dim // 128,
      "head_dim": 128,
      "chunk_size": 64,
  }


def titans_170m_fast(variant: str = "mac", **overrides) -> TitansConfig:
  """12 blocks of width 768, 6 heads of 128, chunk 64."""
  return _preset(_fast(768, 12), variant, overrides)


def titans_340m_fast(variant: str = "mac", **overrides) -> TitansConfig:
  """24 blocks of width 1024, 8 heads of 128, chunk 64."""
  return _preset(_fast(1024, 24), variant, overrides)


def titans_760m_fast(variant: str = "mac", **overrides) -> TitansConfig:
  """24 blocks of width 1536, 12 heads of 128, chunk 64."""
  return _preset(_fast(1536, 24), variant, overrides)


def titans_1_3b_fast(variant: str = "mac", **overrides) -> TitansConfig:
  """18 blocks of width 2048, 16 heads of 128, chunk 64."""
  return _preset(_fast(2048, 18), variant, overrides)


# Models whose memory is a known rule (`memory.special_cases`), of the size of
# titans_170m. Their rates are the layer's: theta in [0, theta_max].


def _special(sizes: dict, overrides: dict) -> TitansConfig:
  sizes = {"momentum": False, "num_persistent": 0, **sizes}
  return titans_170m("lmm", **sizes | overrides)


def delta_rule(**overrides) -> TitansConfig:
  """DeltaNet's rule: a linear memory that does not forget, token by token."""
  sizes = {
      "memory": special_cases.LINEAR,
      "chunk_size": 1,
      "forget": "none",
      "max_learning_rate": 0.5,  # beta of at most 1
  }
  return _special(sizes, overrides)


def gated_delta_rule(**overrides) -> TitansConfig:
  """The same with forgetting.

  Gated DeltaNet's up to the scale of what is written: v, where it has v / alpha.
  """
  return delta_rule(**{"forget": "token"} | overrides)


def ttt_linear(**overrides) -> TitansConfig:
  """TTT-Linear's rule: one layer with residual and norm, chunks of 16."""
  sizes = {
      "memory": memory_lib.MLP(depth=1),
      "chunk_size": 16,
      "forget": "none",
  }
  return _special(sizes, overrides)


def ttt_mlp(**overrides) -> TitansConfig:
  """TTT-MLP's rule: two layers, chunks of 16."""
  return ttt_linear(**{"memory": memory_lib.MLP(depth=2)} | overrides)


def tiny(variant: str = "mac", **overrides) -> TitansConfig:
  """2 blocks of width 32 over bytes, for tests: every size is small."""
  sizes = {
      "vocab_size": 256,
      "num_layers": 2,
      "model_dim": 32,
      "num_heads": 2,
      "chunk_size": 8,
      "segment_length": 16,
      "window": 16,
      "num_persistent": 4,
      "max_length": 256,
  }
  return TitansConfig(variant=variant, **sizes | overrides)
