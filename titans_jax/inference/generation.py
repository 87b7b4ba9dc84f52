# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generation: prefill in pieces of one size, then one compiled step."""

from __future__ import annotations

import functools
from typing import Any, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.inference import sampling
from titans_jax.models import language_model

Array = jax.Array

# Prompts are read in pieces of this many tokens, shorter ones in a power of 2:
# few programs are compiled, and activations do not grow with the prompt.
_PIECE = 1024

# A piece is computed as whole units, two of them where the first is open. Less
# than this share of one is read token by token.
_SHORT = 1 / 8


def generate(
    model: language_model.TitansLM,
    variables: Any,
    prompts: Array,
    *,
    lengths: Array | None = None,
    max_new_tokens: int,
    rng: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    state: language_model.State | None = None,
) -> Array:
  """Continues a batch of prompts.

  Time and memory per token do not depend on how many came before. While it runs
  it holds a second copy of the blocks' parameters (`language_model.unstack`).

  Args:
    model: the model.
    variables: its parameters, as `init` returns them.
    prompts: int32 [B, P], padded at the end.
    lengths: int [B], each prompt's tokens, at least 1; None: all P.
    max_new_tokens: tokens to add.
    rng: a key; may be None at temperature 0.
    temperature: 0 is greedy.
    top_k: keeps the k most likely tokens only.
    top_p: keeps the most likely tokens of total probability p only.
    stop_token: a row that has produced it goes on with it alone.
    state: what the rows have read before; None: nothing.

  Returns:
    int32 [B, max_new_tokens].

  Raises:
    ValueError: options or lengths out of range, tokens outside the vocabulary,
      a state of another batch size, more tokens than full attention can hold.
  """
  options = {
      "temperature": float(temperature),
      "top_k": top_k,
      "top_p": top_p,
  }
  rng, logits, state = _begin(
      model,
      variables,
      prompts,
      lengths,
      max_new_tokens,
      rng,
      options,
      stop_token,
      state,
  )
  return _generate_rest(
      model,
      _unstack(variables),
      logits,
      state,
      rng,
      None if stop_token is None else jnp.int32(stop_token),
      max_new_tokens=max_new_tokens,
      **options,
  )


def stream(
    model: language_model.TitansLM,
    variables: Any,
    prompts: Array,
    *,
    lengths: Array | None = None,
    max_new_tokens: int,
    rng: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    state: language_model.State | None = None,
) -> Iterator[np.ndarray]:
  """Yields the tokens of `generate` one by one, int32 [B] each.

  Ends early when every row has produced the stop token.
  """
  options = {
      "temperature": float(temperature),
      "top_k": top_k,
      "top_p": top_p,
  }
  rng, logits, state = _begin(
      model,
      variables,
      prompts,
      lengths,
      max_new_tokens,
      rng,
      options,
      stop_token,
      state,
  )
  variables = _unstack(variables)

  # Apart, so that errors and prefill come with the call, not the first token.
  def tokens_one_by_one(logits, state):
    stopped = np.zeros(prompts.shape[0], bool)
    for i in range(max_new_tokens):
      tokens = np.array(_sample(jax.random.fold_in(rng, i), logits, **options))
      if stop_token is not None:
        tokens = np.where(stopped, stop_token, tokens).astype(np.int32)
        stopped |= tokens == stop_token
      yield tokens
      if stopped.all() or i == max_new_tokens - 1:
        return
      logits, state = _next_logits(model, variables, jnp.asarray(tokens), state)

  return tokens_one_by_one(logits, state)


def pad_prompts(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Returns prompts of any lengths as what `generate` takes.

  Args:
    prompts: tokens, [P] each.

  Returns:
    int32 [B, P] of the longest, padded with zeros, and the lengths, int [B].
  """
  lengths = np.array([len(prompt) for prompt in prompts])
  padded = np.zeros((len(prompts), lengths.max()), np.int32)
  for row, prompt in zip(padded, prompts):
    row[: len(prompt)] = prompt
  return padded, lengths


def prefill(
    model: language_model.TitansLM,
    variables: Any,
    prompts: Array,
    lengths: Array | None,
    state: language_model.State | None,
    reserve: int = 0,
) -> tuple[Array, language_model.State]:
  """Reads prompts and returns the logits behind each row's last token.

  Args:
    model: the model.
    variables: its parameters.
    prompts: int32 [B, P].
    lengths: int [B] or None.
    state: what was read before, or None.
    reserve: tokens that will follow, for which full attention must have room.

  Returns:
    Logits [B, V], and the state.
  """
  text = np.asarray(prompts, np.int32)
  batch, size = text.shape
  ends = np.full(batch, size) if lengths is None else np.asarray(lengths)
  if state is None:
    state = init_state(model, variables, batch)
  # The last sampled token is not read.
  model.check_room(state, ends + max(reserve - 1, 0))
  piece = min(_PIECE, 1 << (size - 1).bit_length())
  mask = np.arange(size) < ends[:, None]
  short = piece <= _SHORT * model.config.unit
  read = _prefill_steps if short else _prefill_piece
  logits: Any = None
  for first in range(0, size, piece):
    tokens = np.zeros((batch, piece), np.int32)
    here = np.zeros((batch, piece), bool)
    width = min(piece, size - first)
    tokens[:, :width] = text[:, first : first + width]
    here[:, :width] = mask[:, first : first + width]
    model.check_tokens(np.where(here, tokens, 0))
    if logits is not None and not here.any():
      break
    logits, state = read(model, variables, tokens, here, state, logits)
  return logits, state


@functools.partial(jax.jit, static_argnums=0)
def _prefill_piece(model, variables, tokens, mask, state, logits):
  """Reads one piece; rows without a token in it keep their logits."""
  last, state = model.apply(
      variables, tokens, state, mask=mask, method="last_logits"
  )
  if logits is not None:
    last = jnp.where(jnp.any(mask, axis=1)[:, None], last, logits)
  return last, state


@functools.partial(jax.jit, static_argnums=0)
def _prefill_steps(model, variables, tokens, mask, state, logits):
  """`_prefill_piece`, token by token."""
  variables = language_model.unstack(variables)

  def step(carry, x):
    logits, state = carry
    tokens, mask = x
    new, state = model.apply(variables, tokens, state, mask=mask)
    return (jnp.where(mask, new[:, 0], logits), state), None

  # [P, B, 1]: what a step takes.
  xs = (tokens.T[..., None], mask.T[..., None])
  if logits is None:  # Every row's first token replaces them.
    first = jax.tree.map(lambda x: x[0], xs)
    like, _ = jax.eval_shape(lambda x: step((0.0, state), x)[0], first)
    logits = jnp.zeros_like(like)
  return jax.lax.scan(step, (logits, state), xs)[0]


@functools.partial(jax.jit, static_argnums=(0, 2))
def init_state(model, variables, batch_size):
  """Returns `model.init_state`, compiled."""
  return model.init_state(variables, batch_size=batch_size)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _next_logits(model, variables, tokens, state):
  logits, state = model.apply(variables, tokens[:, None], state)
  return logits[:, 0], state


_unstack = jax.jit(language_model.unstack)
_sample = jax.jit(
    sampling.sample, static_argnames=("temperature", "top_k", "top_p")
)


@functools.partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("max_new_tokens", "temperature", "top_k", "top_p"),
)
def _generate_rest(
    model,
    variables,
    logits,
    state,
    rng,
    stop_token,
    *,
    max_new_tokens,
    temperature,
    top_k,
    top_p,
):
  """Samples and reads until all is done, in one program."""
  batch = logits.shape[0]

  def choose(i, logits, stopped):
    tokens = sampling.sample(
        jax.random.fold_in(rng, i),
        logits,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    if stop_token is not None:
      tokens = jnp.where(stopped, stop_token, tokens)
      stopped = stopped | (tokens == stop_token)
    return tokens, stopped

  def cond(carry):
    i, _, _, _, stopped = carry
    return (i < max_new_tokens) & ~jnp.all(stopped)

  def body(carry):
    i, tokens, state, new_tokens, stopped = carry
    logits, state = model.apply(variables, tokens[:, None], state)
    tokens, stopped = choose(i, logits[:, 0], stopped)
    new_tokens = new_tokens.at[:, i].set(tokens)
    return i + 1, tokens, state, new_tokens, stopped

  tokens, stopped = choose(0, logits, jnp.zeros(batch, bool))
  fill = 0 if stop_token is None else stop_token
  new_tokens = jnp.full((batch, max_new_tokens), fill, jnp.int32)
  new_tokens = new_tokens.at[:, 0].set(tokens)
  carry = (jnp.int32(1), tokens, state, new_tokens, stopped)
  return jax.lax.while_loop(cond, body, carry)[3]


def _begin(
    model,
    variables,
    prompts,
    lengths,
    max_new_tokens,
    rng,
    options,
    stop_token,
    state,
) -> tuple[Array, Array, language_model.State]:
  """Checks a call, reads its prompts and returns key, logits and state."""
  sampling.check_options(**options)
  if prompts.ndim != 2 or prompts.shape[1] < 1:
    raise ValueError(
        f"prompts must have shape [B, P] with P >= 1, got {prompts.shape}."
    )
  if not jnp.issubdtype(prompts.dtype, jnp.integer):
    raise ValueError(f"prompts must be integers, got {prompts.dtype}.")
  vocab_size = model.config.vocab_size
  if stop_token is not None and not 0 <= stop_token < vocab_size:
    raise ValueError(
        f"stop_token={stop_token} is outside the vocabulary of {vocab_size}"
        " tokens."
    )
  if max_new_tokens < 1:
    raise ValueError(
        f"max_new_tokens must be at least 1, got {max_new_tokens}."
    )
  if lengths is not None:
    lengths = np.asarray(lengths)
    if lengths.shape != prompts.shape[:1]:
      raise ValueError(
          f"lengths must have shape {prompts.shape[:1]}, got {lengths.shape}."
      )
    if lengths.min() < 1 or lengths.max() > prompts.shape[1]:
      raise ValueError(
          f"lengths must lie between 1 and {prompts.shape[1]}, the prompts'"
          f" width, got {lengths.tolist()}."
      )
  if rng is None:
    if options["temperature"] > 0:
      raise ValueError("Sampling needs a key: rng=jax.random.key(0), say.")
    rng = jax.random.key(0)
  logits, state = prefill(
      model, variables, prompts, lengths, state, max_new_tokens
  )
  return rng, logits, state
