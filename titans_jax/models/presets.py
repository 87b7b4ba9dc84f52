# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Named configurations: the paper's sizes, hardware-friendly ones, and a tiny one.

The paper's (NeurIPS Table 5 and appendix E.1): chunk 16, segment 512, window
2048, 128 persistent tokens, a 32,000-token vocabulary. The `_fast` set keeps
depth and width, with chunk 64 and head dimension 128, which fill a 128 x 128
matrix unit.
"""

from __future__ import annotations

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
