# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Learns a byte-level BPE tokenizer from text (extra `hf`).

    python -m experiments.train_tokenizer --source='books/*.txt' \
        --vocab_size=16000 --output=tokenizer.json

The result is a `tokenizer.json` for data.tokenizer and
experiments.prepare_data. Every digit is a token of its own, so that numbers are
read alike wherever they stand.
"""

from __future__ import annotations

import pathlib

from absl import app
from absl import flags

from titans_jax import files
from titans_jax import tokenizers as our_tokenizers
from titans_jax.data import sources

from . import _flags

_SOURCE = flags.DEFINE_string(
    "source", None, "Text, as data.source.", required=True
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 16_000, "Tokens of the vocabulary.", lower_bound=257
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The tokenizer.json to write.", required=True
)


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors():
    try:
      import tokenizers  # pylint: disable=g-import-not-at-top
    except ImportError as error:
      raise ImportError(
          "Learning a tokenizer needs the `tokenizers` package: pip install"
          " 'titans-jax[hf]'."
      ) from error
    output = pathlib.Path(_OUTPUT.value)
    if not output.parent.is_dir():
      raise ValueError(
          f"--output={output}: there is no folder {output.parent}."
      )
    tokenizer = _learn(tokenizers)
    with files.replacing(output) as file:
      file.write(tokenizer.to_str(pretty=True).encode())
    print(f"{tokenizer.get_vocab_size():,} tokens: {output}")


def _learn(tokenizers):
  """Returns the tokenizer of the flags' text."""
  end = our_tokenizers.HuggingFaceTokenizer.DOCUMENT_TOKENS[0]
  byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
      [tokenizers.pre_tokenizers.Digits(individual_digits=True), byte_level]
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=_VOCAB_SIZE.value,
      special_tokens=[end],
      initial_alphabet=byte_level.alphabet(),
  )
  texts = (
      text.decode("utf-8", errors="replace")
      for text in sources.documents(_SOURCE.value)
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer


if __name__ == "__main__":
  app.run(main)
