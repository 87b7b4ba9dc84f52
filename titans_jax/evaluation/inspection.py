# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model's memories do at every token of a text.

The text is read one token at a time, which gives the numbers of any other way to
read it; the gauges of a call are then those of one token.
"""

from __future__ import annotations

import codecs
import functools
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from titans_jax import tokenizers
from titans_jax.inference import generation
from titans_jax.models import language_model

_REPLACEMENT = "\ufffd".encode()

# Tokens of one compiled call.
_PIECE = 128


class Trace(NamedTuple):
  """What was seen at each of T tokens, of L blocks.

  Attributes:
    log_prob: log p of the token, nats, given those before it: float [T].
    log_prob_unlearned: the same from memories that learn nothing from the text:
      they stay what they are in front of it; attention sees it all the same.
    surprise: the inner loss per channel, where the token is written: [T, L].
    forget: alpha: [T, L].
    learning_rate: theta: [T, L].
    momentum: eta: [T, L].
    weight_norm: of a head's W at the start of the chunk that is open behind the
      token: [T, L].
  """

  log_prob: np.ndarray
  log_prob_unlearned: np.ndarray
  surprise: np.ndarray
  forget: np.ndarray
  learning_rate: np.ndarray
  momentum: np.ndarray
  weight_norm: np.ndarray

  @property
  def loss(self) -> np.ndarray:
    """-log p of a token, nats: [T]."""
    return -self.log_prob

  @property
  def contribution(self) -> np.ndarray:
    """What learning from the text added to a token's log p, nats: [T]."""
    return self.log_prob - self.log_prob_unlearned


def trace(
    model: language_model.TitansLM,
    variables: Any,
    tokenizer: tokenizers.Tokenizer,
    ids: np.ndarray,
    *,
    progress: Callable[[int], None] | None = None,
) -> Trace:
  """Reads a document twice side by side, with learning and without.

  Args:
    model: with memories.
    variables: its parameters.
    tokenizer: that it was trained with; its document token is read first.
    ids: tokens of the document, int [T].
    progress: is told how many tokens have been read, now and then.

  Raises:
    ValueError: the model has no memory, or `ids` is empty.
  """
  if model.config.variant == "transformer":
    raise ValueError("The model has no memory: there is nothing to watch.")
  if not len(ids):
    raise ValueError("There is no text to read.")
  model.check_tokens(np.asarray(ids)[None])
  states = (generation.init_state(model, variables, 1),) * 2
  # What a token does is seen at its place, or where it is written one later.
  late = int(model.config.read_before_write)
  ends = [tokenizer.document_token]
  tokens = np.concatenate([ends, ids, ends * late]).astype(np.int32)
  # What is read last has nothing behind it; its own prediction is left out.
  targets = np.append(tokens[1:], 0)
  parts = []
  for start in range(0, len(tokens), _PIECE):
    here = slice(start, start + _PIECE)
    count = len(tokens[here])
    # The last piece is filled up: what stands behind the text changes nothing.
    tokens_here, targets_here = (
        np.pad(x[here], (0, _PIECE - count)) for x in (tokens, targets)
    )
    seen, states = _read(model, variables, tokens_here, targets_here, states)
    parts.append({name: np.asarray(x)[:count] for name, x in seen.items()})
    if progress is not None:
      progress(min(start + count - 1, len(ids)))
  whole = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
  # A token's log p is seen where the token before it is read.
  return Trace(
      **{
          name: x[: len(ids)] if name.startswith("log_prob") else x[1 + late :]
          for name, x in whole.items()
      }
  )


def pieces(tokenizer: tokenizers.Tokenizer, ids: np.ndarray) -> list[str]:
  """Returns the text of every token: what it adds to the text before it.

  A character of several tokens is its last one's; those before have none.
  """
  decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
  found = []
  # What is decoded together: from the tokens before the last place at which all
  # characters were whole, for some tokens begin with a space in a text only.
  context = whole = sent = 0
  for end in range(1, len(ids) + 1):
    before = len(tokenizer.decode(ids[context:whole]))
    text = tokenizer.decode(ids[context:end])[before:]
    shown = text
    if end < len(ids) and end - whole < 4:  # No character has more bytes.
      # What a part of a character becomes, unless the text is whole with it.
      while shown.endswith(_REPLACEMENT):
        shown = shown.removesuffix(_REPLACEMENT)
    found.append(decoder.decode(shown[sent:], final=end == len(ids)))
    sent = len(shown)
    if shown == text:
      context, whole, sent = whole, end, 0
  return found


@functools.partial(jax.jit, static_argnums=0)
def _read(model, variables, tokens, targets, states):
  """Reads one row of tokens; returns what was seen at each, and the states."""

  def one(states, token_and_target):
    token, target = (x[None, None] for x in token_and_target)
    losses, gauges, behind = [], [], []
    for state, learns in zip(states, (True, False), strict=True):
      _, metrics, state = model.apply(
          variables,
          token,
          target,
          state,
          update_memory=learns,
          method="loss",
      )
      losses.append(metrics["cross_entropy"])
      gauges.append(metrics["memory"])
      behind.append(state)
    seen = {"log_prob": -losses[0], "log_prob_unlearned": -losses[1]}
    for name in Trace._fields[2:]:
      seen[name] = getattr(gauges[0], name)
    return tuple(behind), seen

  states, seen = jax.lax.scan(one, states, (tokens, targets))
  return seen, states
