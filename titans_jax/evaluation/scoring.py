# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of many continuations, each prefix read once."""

from __future__ import annotations

import functools
from typing import Any, Iterator, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.inference import generation
from titans_jax.models import language_model
from titans_jax.models import states

# Rows are read in pieces of this many tokens, shorter ones in a power of 2: few
# programs are compiled, and activations do not grow with the text.
_PIECE = 1024
_SHORTEST = 16


class TokenScores(NamedTuple):
  """What a model gives the targets of one row.

  Attributes:
    log_probs: nats, float64 [n].
    correct: whether each was the most likely token, bool [n].
  """

  log_probs: np.ndarray
  correct: np.ndarray


class Score(NamedTuple):
  """What a model gives a continuation.

  Attributes:
    log_prob: of all its tokens, nats.
    greedy: whether each was the most likely one.
  """

  log_prob: float
  greedy: bool


def windows(ids: np.ndarray, length: int) -> Iterator[np.ndarray]:
  """Cuts ids into windows of at most length + 1, of which the first is the last
  one of the window before: every id but the first is predicted once."""
  for start in range(0, len(ids) - 1, length):
    yield ids[start : start + length + 1]


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

  Raises:
    ValueError: an empty context or continuation, ids outside the vocabulary, or
      more of them than full attention holds.
  """
  groups: dict[Any, list[int]] = {}
  for i, (context, continuation) in enumerate(pairs):
    if not len(context) or not len(continuation):
      raise ValueError(
          f"Pair {i} has {len(context)} ids of context and {len(continuation)}"
          " of continuation: each must have one at least."
      )
    key = context.tobytes() if share_prefixes else i
    groups.setdefault(key, []).append(i)
  found: list[Any] = [None] * len(pairs)
  # The longest first: what does not fit is found at once.
  ordered = sorted(groups.values(), key=lambda g: -len(pairs[g[0]][0]))
  for some in batches(ordered, batch_size):
    # The last token of a context predicts: it is read with the continuation.
    prefixes = [pairs[group[0]][0][:-1] for group in some]
    state = _read_prefixes(model, variables, prefixes, batch_size)
    members = [(row, i) for row, group in enumerate(some) for i in group]
    members.sort(key=lambda member: -len(pairs[member[1]][1]))
    for part in batches(members, batch_size):
      rows = [np.append(pairs[i][0][-1:], pairs[i][1]) for _, i in part]
      places = [row for row, _ in part] + [0] * (batch_size - len(part))
      scores = score_rows(
          model,
          variables,
          rows,
          batch_size=batch_size,
          state=states.select_rows(state, places),
      )
      for (_, i), score in zip(part, scores):
        found[i] = _sum([score])
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

  Raises:
    ValueError: ids outside the vocabulary.
  """
  config = model.config
  full = config.variant == "transformer" and config.window is None
  rows = [
      (owner, window)
      for owner, ids in enumerate(texts)
      for window in windows(ids, config.max_length if full else len(ids))
  ]
  rows.sort(key=lambda row: -len(row[1]))
  found: list[list[TokenScores]] = [[] for _ in texts]
  for part in batches(rows, batch_size):
    scores = score_rows(
        model, variables, [ids for _, ids in part], batch_size=batch_size
    )
    for (owner, _), score in zip(part, scores):
      found[owner].append(score)
  return [_sum(parts) for parts in found]


def score_rows(
    model: language_model.TitansLM,
    variables: Any,
    rows: Sequence[np.ndarray],
    *,
    batch_size: int,
    state: language_model.State | None = None,
) -> list[TokenScores]:
  """Scores every token of rows but their first, in one batch.

  Args:
    model: the model.
    variables: its parameters.
    rows: token ids [n], at most batch_size of them.
    batch_size: rows that are computed, those that are missing being empty.
    state: of batch_size rows, what was read before; None: nothing.

  Returns:
    A score for each row, [n - 1].

  Raises:
    ValueError: ids outside the vocabulary, or more of them than full attention
      holds.
  """
  if state is None:
    state = generation.init_state(model, variables, batch_size)
  log_probs, correct = [], []
  targets = _pieces([ids[1:] for ids in rows], batch_size)
  for tokens, mask in _pieces([ids[:-1] for ids in rows], batch_size):
    wanted, _ = next(targets)
    model.check_tokens(tokens)
    model.check_tokens(wanted)
    model.check_room(state, mask.sum(axis=1))
    parts, right, state = _score(
        model, variables, tokens, np.where(mask, wanted, -1), mask, state
    )
    log_probs.append(np.asarray(parts, np.float64))
    correct.append(np.asarray(right))
  if not log_probs:
    return [TokenScores(np.zeros(0), np.zeros(0, bool)) for _ in rows]
  whole = np.concatenate(log_probs, axis=1), np.concatenate(correct, axis=1)
  return [
      TokenScores(*(x[row, : len(ids) - 1] for x in whole))
      for row, ids in enumerate(rows)
  ]


def _read_prefixes(model, variables, prefixes, batch_size: int):
  """Returns the state behind prefixes, which may be empty."""
  lengths = np.zeros(batch_size, np.int32)
  lengths[: len(prefixes)] = [len(prefix) for prefix in prefixes]
  padded = np.zeros((batch_size, lengths.max()), np.int32)
  for row, prefix in zip(padded, prefixes):
    row[: len(prefix)] = prefix
  return generation.prefill(model, variables, padded, lengths, None)[1]


def _pieces(rows, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Cuts rows of ids into batches of tokens and mask, [batch_size, piece]."""
  length = max(map(len, rows), default=0)
  piece = _SHORTEST
  while piece < min(length, _PIECE):
    piece *= 2
  for start in range(0, length, piece):
    tokens = np.zeros((batch_size, piece), np.int32)
    mask = np.zeros((batch_size, piece), bool)
    for row, ids in enumerate(rows):
      here = ids[start : start + piece]
      tokens[row, : len(here)] = here
      mask[row, : len(here)] = True
    yield tokens, mask


def _sum(parts: Sequence[TokenScores]) -> Score:
  return Score(
      float(sum(part.log_probs.sum() for part in parts)),
      all(bool(part.correct.all()) for part in parts),
  )


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
  """Yields at most `size` items at a time, in their order."""
  for start in range(0, len(items), size):
    yield items[start : start + size]


@functools.partial(jax.jit, static_argnums=0)
def _score(model, variables, tokens, targets, mask, state):
  return model.apply(
      variables,
      tokens,
      targets,
      state,
      mask=jnp.asarray(mask),
      method="score",
  )
