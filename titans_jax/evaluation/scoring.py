# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of many continuations, each prefix read once."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.models import language_model
from titans_jax.models import states

# Rows are read in pieces of this many tokens, shorter ones in a power of 2.
_PIECE = 1024
_SHORTEST = 16


class Score(NamedTuple):
  """What a model gives a continuation.

  Attributes:
    log_prob: of all its tokens, nats.
    greedy: whether each was the most likely one.
  """

  log_prob: float
  greedy: bool


def score_continuations(
    model: language_model.TitansLM,
    variables: Any,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int,
    share_prefixes: bool = True,
) -> list[Score]:
  """Scores continuations, each behind its context.

  Contexts are read in batches of similar length. From the state behind a
  context all of its continuations are scored.

  Args:
    model: the model.
    variables: its parameters.
    pairs: of token ids [n], a context and a continuation, neither empty.
    batch_size: rows at a time.
    share_prefixes: False: a context is read anew for each of its continuations.

  Returns:
    A score for each pair.
  """
  groups: dict[Any, list[int]] = {}
  for i, (context, _) in enumerate(pairs):
    key = context.tobytes() if share_prefixes else i
    groups.setdefault(key, []).append(i)
  found: list[Any] = [None] * len(pairs)
  # The longest first: what does not fit is found at once.
  ordered = sorted(groups.values(), key=lambda g: -len(pairs[g[0]][0]))
  for some in _batches(ordered, batch_size):
    # The last token of a context predicts: it is read with the continuation.
    prefixes = [pairs[group[0]][0][:-1] for group in some]
    rows = [(prefix, np.full(len(prefix), -1)) for prefix in prefixes]
    _, state = _read(model, variables, rows, None, batch_size)
    members = [(row, i) for row, group in enumerate(some) for i in group]
    members.sort(key=lambda member: -len(pairs[member[1]][1]))
    for part in _batches(members, batch_size):
      rows = []
      for _, i in part:
        context, continuation = pairs[i]
        ids = np.append(context[-1:], continuation)
        rows.append((ids[:-1], ids[1:]))
      places = [row for row, _ in part]
      places += [0] * (batch_size - len(part))
      scores, _ = _read(
          model, variables, rows, states.select_rows(state, places), batch_size
      )
      for (_, i), score in zip(part, scores):
        found[i] = score
  return found


def score_texts(
    model: language_model.TitansLM,
    variables: Any,
    texts: Sequence[np.ndarray],
    *,
    batch_size: int,
) -> list[Score]:
  """Scores all tokens of texts but their first.

  A text of any length is read from its first token to its last. Full attention
  has room for max_length tokens: it begins anew behind them, from the last.

  Args:
    model: the model.
    variables: its parameters.
    texts: token ids [n]. Nothing is scored of a text of one.
    batch_size: rows at a time.

  Returns:
    A score for each text.
  """
  config = model.config
  full = config.variant == "transformer" and config.window is None
  rows, owners = [], []
  for owner, ids in enumerate(texts):
    room = config.max_length if full else len(ids)
    for start in range(0, len(ids) - 1, room):
      window = ids[start : start + room + 1]
      rows.append((window[:-1], window[1:]))
      owners.append(owner)
  found = [Score(0.0, True)] * len(texts)
  order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
  for part in _batches(order, batch_size):
    scores, _ = _read(
        model, variables, [rows[i] for i in part], None, batch_size
    )
    for i, score in zip(part, scores):
      before = found[owners[i]]
      found[owners[i]] = Score(
          before.log_prob + score.log_prob, before.greedy and score.greedy
      )
  return found


def _read(model, variables, rows, state, batch_size: int):
  """Reads rows of (tokens, targets); returns their scores, and the state."""
  if state is None:
    state = _init_state(model, variables, batch_size)
  length = max(len(tokens) for tokens, _ in rows)
  log_probs, greedy = np.zeros(batch_size), np.ones(batch_size, bool)
  piece = _SHORTEST
  while piece < min(length, _PIECE):
    piece *= 2
  for start in range(0, length, piece):
    here = slice(start, start + piece)
    tokens = np.zeros((batch_size, piece), np.int32)
    targets = np.full((batch_size, piece), -1, np.int32)
    mask = np.zeros((batch_size, piece), bool)
    for row, (ids, wanted) in enumerate(rows):
      size = len(ids[here])
      tokens[row, :size] = ids[here]
      targets[row, :size] = wanted[here]
      mask[row, :size] = True
    model.check_room(state, mask.sum(axis=1))
    parts, correct, state = score(
        model, variables, tokens, targets, mask, state
    )
    log_probs += np.asarray(parts, np.float64).sum(axis=1)
    greedy &= (np.asarray(correct) | (targets < 0)).all(axis=1)
  found = [Score(float(p), bool(g)) for p, g in zip(log_probs, greedy)]
  return found[: len(rows)], state


def _batches(items, size: int):
  for start in range(0, len(items), size):
    yield items[start : start + size]


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init_state(model, variables, batch_size):
  return model.init_state(variables, batch_size=batch_size)


@functools.partial(jax.jit, static_argnums=0)
def score(model, variables, tokens, targets, mask, state=None):
  """`TitansLM.score`, compiled."""
  return model.apply(
      variables,
      tokens,
      targets,
      state,
      mask=jnp.asarray(mask),
      method="score",
  )
