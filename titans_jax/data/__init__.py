# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Text in, packed batches out."""

from titans_jax.data.batches import heldout_batches
from titans_jax.data.batches import train_batches
from titans_jax.data.corpus import Corpus
from titans_jax.data.corpus import prepare
from titans_jax.tokenizers import ByteTokenizer
from titans_jax.tokenizers import make_tokenizer

__all__ = (
    "ByteTokenizer",
    "Corpus",
    "heldout_batches",
    "make_tokenizer",
    "prepare",
    "train_batches",
)
