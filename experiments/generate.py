# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Continues text with a trained model.

    python -m experiments.generate --checkpoint=runs/quickstart \
        --prompt='The ' [--max_new_tokens=300] [--temperature=0.8]

One prompt is printed as it is written. --prompt_file holds a prompt per line;
they may differ in length and are continued as one batch.
"""

import pathlib
import sys

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax import inference
from titans_jax.models import states
from titans_jax.training import checkpoints

from . import _checkpoint
from . import _flags

_CHECKPOINT, _STEP = _checkpoint.define_flags()
_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue.")
_PROMPT_FILE = flags.DEFINE_string(
    "prompt_file", None, "File of texts to continue, one per line."
)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 300, "Tokens to add.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 is greedy.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Keeps the k likeliest tokens.")
_TOP_P = flags.DEFINE_float(
    "top_p", None, "Keeps the likeliest tokens of total probability p."
)
_LOAD_STATE = flags.DEFINE_string(
    "load_state",
    None,
    "State of experiments.stream, behind whose text the prompts stand.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")


def main(argv) -> None:
  _flags.start(argv)
  with _flags.clean_errors(checkpoints.CheckpointError):
    texts = _read_prompts()
    trained = _checkpoint.load(_CHECKPOINT.value, _STEP.value)
    model, variables, tokenizer = trained[:3]
    state, start = None, [tokenizer.document_token]
    if _LOAD_STATE.value is not None:
      start = []  # The prompts go on with what the state has read.
      state = _checkpoint.load_state(_LOAD_STATE.value, model, variables)
      state = states.select_rows(state, [0] * len(texts))
    prompts = [
        np.concatenate([np.array(start, np.int32), tokenizer.encode(text)])
        for text in texts
    ]
    if not all(map(len, prompts)):
      raise ValueError("A prompt is empty: the state goes on with its tokens.")
    padded, lengths = inference.pad_prompts(prompts)
    arguments = {
        "lengths": lengths,
        "max_new_tokens": _MAX_NEW_TOKENS.value,
        "rng": jax.random.key(_SEED.value),
        "temperature": _TEMPERATURE.value,
        "top_k": _TOP_K.value,
        "top_p": _TOP_P.value,
        "stop_token": tokenizer.document_token,
        "state": state,
    }
    if len(texts) == 1:
      _write(texts[0])
      new = inference.stream(model, variables, jnp.asarray(padded), **arguments)
      _stream(tokenizer, (int(tokens[0]) for tokens in new))
      return
    rows = inference.generate(
        model, variables, jnp.asarray(padded), **arguments
    )
    for text, tokens in zip(texts, np.asarray(rows)):
      _write(text + tokenizer.decode(tokens) + b"\n---\n")


def _read_prompts() -> list[bytes]:
  """Returns the prompts that the flags name."""
  if (_PROMPT.value is None) == (_PROMPT_FILE.value is None):
    raise ValueError("Give --prompt or --prompt_file, one of the two.")
  if _PROMPT.value is not None:
    return [_PROMPT.value.encode()]
  lines = pathlib.Path(_PROMPT_FILE.value).read_bytes().splitlines()
  lines = [line for line in lines if line.strip()]
  if not lines:
    raise ValueError(f"--prompt_file={_PROMPT_FILE.value} holds no prompt.")
  return lines


# Tokens before the last whole character that a tokenizer may need to decode what
# follows (whether a space stands before it, say).
_CONTEXT = 8


def _stream(tokenizer, tokens) -> None:
  """Writes text as it comes, whole characters at a time."""
  recent, written = [], b""  # the last tokens, and their text so far
  for token in tokens:
    recent.append(token)
    text = tokenizer.decode(recent)
    if _is_whole(text):
      _write(text[len(written) :])
      recent = recent[-_CONTEXT:]
      written = tokenizer.decode(recent)
  _write(tokenizer.decode(recent)[len(written) :] + b"\n")


def _is_whole(text: bytes) -> bool:
  """Whether text ends with a whole character, or will never."""
  if text.endswith("\ufffd".encode()):
    return False  # A tokenizer's way to say so.
  try:
    text.decode()
  except UnicodeDecodeError as error:
    return error.reason != "unexpected end of data"
  return True


def _write(text: bytes) -> None:
  sys.stdout.buffer.write(text)
  sys.stdout.buffer.flush()


if __name__ == "__main__":
  app.run(main)
