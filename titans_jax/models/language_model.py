# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Titans as a language model: tokens and state in, logits and state out."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from titans_jax.layers import linear
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import products
from titans_jax.memory import sharding
from titans_jax.models import blocks
from titans_jax.models import config as config_lib
from titans_jax.models import loss as loss_lib

Array = jax.Array
State = tuple[blocks.BlockState, ...]


class TitansLM(nn.Module):
  """A decoder-only language model whose memories learn while it reads.

  Pure: `apply` returns the state behind its tokens and changes nothing. One
  call over a sequence, and calls over its pieces with the state passed on, give
  the same logits; training, prefill and decoding are one function.

  Attributes:
    config: sizes and options.
  """

  config: config_lib.TitansConfig

  def setup(self):
    config = self.config
    for dtype in (config.dtype, config.param_dtype):
      products.check_dtype(dtype)
    # Rows of deviation d**-0.5, multiplied by sqrt(d) on the way in: the
    # residual stream and tied logits both start at unit variance.
    self.embedding = self.param(
        "embedding",
        nn.initializers.normal(config.model_dim**-0.5),
        (config.vocab_size, config.model_dim),
        config.param_dtype,
    )
    self.blocks = blocks.Block(config)
    self.final_norm = linear.rms_norm(config)
    if not config.tie_embeddings:
      self.unembedding = self.param(
          "unembedding",
          nn.initializers.normal(config.model_dim**-0.5),
          (config.vocab_size, config.model_dim),
          config.param_dtype,
      )

  def __call__(
      self,
      tokens: Array,
      state: State | None = None,
      *,
      mask: Array | None = None,
      document_ids: Array | None = None,
      update_memory: bool = True,
  ) -> tuple[Array, State]:
    """Reads tokens and predicts, at each, the next one.

    Args:
      tokens: int32 [B, T].
      state: from `init_state` or an earlier call; None: nothing was read yet.
      mask: bool [B, T], False for padding, anywhere; such a token changes
        nothing and its logits are those of no input.
      document_ids: int32 [B, T], equal within a document; where the id changes
        everything starts again. Documents start at multiples of
        `config.unit` (the chunk; for MAC the segment). With no state and
        document ids, tokens may be masked only at a document's tail, as in
        packed training data, which are then not moved.
      update_memory: False: reads without learning.

    Returns:
      Logits [B, T, V] in at least float32, and the state, a tuple with one
      entry per block.

    Raises:
      ValueError: shapes that do not fit; and, where the values are concrete,
        tokens outside the vocabulary, documents off the boundaries, more tokens
        than full attention holds. (Traced, it would see the last max_length
        tokens only.)
    """
    layout, document = self._layout(tokens, state, mask, document_ids)
    hidden, state, _ = self._read(
        tokens, state, layout, document, update_memory
    )
    return self._logits(layout.restore(hidden)), state

  def loss(
      self,
      tokens: Array,
      targets: Array,
      state: State | None = None,
      *,
      mask: Array | None = None,
      document_ids: Array | None = None,
      update_memory: bool = True,
      z_loss: float = 0.0,
      memory_cost: float = 0.0,
  ) -> tuple[Array, dict[str, Any], State]:
    """Returns the mean loss over scored tokens, without holding all logits.

    Args:
      tokens: int32 [B, T].
      targets: int32 [B, T], the token that follows each; a negative one, or a
        masked token, is not scored.
      state: as in `__call__`.
      mask: as in `__call__`.
      document_ids: as in `__call__`.
      update_memory: as in `__call__`.
      z_loss: weight of the mean of log(Z)**2, which keeps logits from drifting.
      memory_cost: weight of what the memories write and forget, as
        `Gauges.cost` has it.

    Returns:
      The loss, nats per token (plus what the weights add);
      metrics: `cross_entropy`,
      `accuracy`, `num_tokens` (scored), and `memory`, the gauges of every block
      ([num_layers] each; None without memory); and the state.
    """
    _check_targets(tokens, targets, mask, self.config)
    layout, document = self._layout(tokens, state, mask, document_ids)
    hidden, state, gauges = self._read(
        tokens, state, layout, document, update_memory
    )
    scored = targets >= 0 if mask is None else mask & (targets >= 0)
    # Zeros elsewhere: a place without a token is not scored.
    targets, scored = layout.arrange(targets), layout.arrange(scored)
    total, log_z2, correct = loss_lib.cross_entropy(
        hidden,
        targets,
        scored.astype(jnp.float32),
        self._output_matrix(),
        _logits,
    )
    count = jnp.sum(scored, dtype=jnp.int32)
    scale = 1 / jnp.maximum(count, 1).astype(total.dtype)
    metrics = {
        "cross_entropy": total * scale,
        "accuracy": correct * scale,
        "num_tokens": count,
        "memory": gauges,
    }
    loss = total * scale + z_loss * log_z2 * scale
    if memory_cost and gauges is not None:
      loss += memory_cost * gauges.cost(tokens.shape[1])
    return loss, metrics, state

  def score(
      self,
      tokens: Array,
      targets: Array,
      state: State | None = None,
      *,
      mask: Array | None = None,
      update_memory: bool = True,
  ) -> tuple[Array, Array, State]:
    """Returns what the model gives each target, without holding all logits.

    Args:
      tokens: int32 [B, T].
      targets: int32 [B, T], as in `loss`.
      state: as in `__call__`.
      mask: as in `__call__`.
      update_memory: as in `__call__`.

    Returns:
      log p(target) in nats, [B, T] in at least float32, and whether it is the
      most likely token, bool [B, T]: zero and False where a target is not
      scored; and the state.
    """
    _check_targets(tokens, targets, mask, self.config)
    layout, document = self._layout(tokens, state, mask, None)
    hidden, state, _ = self._read(
        tokens, state, layout, document, update_memory
    )
    scored = targets >= 0 if mask is None else mask & (targets >= 0)
    nats, correct = loss_lib.token_losses(
        layout.restore(hidden),
        jnp.where(scored, targets, 0),
        self._output_matrix(),
        _logits,
    )
    return jnp.where(scored, -nats, 0), correct & scored, state

  def last_logits(
      self,
      tokens: Array,
      state: State | None = None,
      *,
      mask: Array | None = None,
      update_memory: bool = True,
  ) -> tuple[Array, State]:
    """Reads tokens like `__call__`; returns logits behind each row's last one.

    Returns:
      Logits [B, V] (those of a row without a real token mean nothing), and the
      state.
    """
    layout, document = self._layout(tokens, state, mask, None)
    hidden, state, _ = self._read(
        tokens, state, layout, document, update_memory
    )
    if isinstance(layout, layout_lib.Token) or layout.end is None:
      hidden = hidden[:, -1:]
    else:
      last = jnp.maximum(layout.end - 1, 0)
      hidden = layout_lib.rows_at(hidden, last, 1)
    return self._logits(hidden)[:, 0], state

  def init_state(self, variables, *, batch_size: int) -> State:
    """Returns the state of rows that have read nothing.

    Args:
      variables: of the model, as `init` returns them.
      batch_size: B.
    """
    if batch_size < 1:
      raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    state: Any = self.apply(
        variables, batch_size=batch_size, method=self._initial_state
    )
    return state

  def init_inputs(self) -> dict[str, Array]:
    """Returns arguments for `init`."""
    return {"tokens": jnp.zeros((1, self.config.unit), jnp.int32)}

  def check_tokens(self, tokens: Array) -> None:
    """Raises ValueError for concrete tokens outside the vocabulary."""
    _check_vocabulary(tokens, self.config.vocab_size, "tokens")

  def check_room(self, state: State | None, lengths: Array | int) -> None:
    """Raises ValueError where full attention cannot hold so many more tokens.

    All other variants read on without bound. Where the state's position is
    traced only the new tokens can be counted.

    Args:
      state: what was read before, or None.
      lengths: int [B], or one for all rows: the tokens to come.
    """
    config = self.config
    if config.variant != "transformer" or config.window is not None:
      return
    position = np.zeros(1, np.int32)
    if state is not None and layout_lib.concrete(state[0].position):
      position = np.asarray(state[0].position)
    seen, more = np.broadcast_arrays(position, np.asarray(lengths))
    row = np.argmax(seen + more)
    if seen[row] + more[row] > config.max_length:
      raise ValueError(
          f"Full attention holds max_length={config.max_length} tokens, but"
          f" {seen[row]} were read and {more[row]} more are to come. Set"
          " max_length, or a window."
      )

  # --------------------------------------------------------------------------

  def _initial_state(self, batch_size: int) -> State:
    def body(block, carry, _):
      return carry, block.initial_state(batch_size)

    _, stacked = blocks.over_layers(self.config, body)(self.blocks, (), None)
    return _by_layer(stacked)

  def _layout(self, tokens, state, mask, document_ids):
    """Returns where the tokens stand, and the last token's document [B]."""
    config = self.config
    _check_call(tokens, state, mask, document_ids, config)
    batch, length = tokens.shape
    if document_ids is not None:
      self.check_room(None, _longest_document(document_ids, mask))
    elif mask is None:
      self.check_room(state, length)
    elif layout_lib.concrete(mask):
      self.check_room(state, np.asarray(mask).sum(axis=1))
    unit = config.unit
    position = None if state is None else state[0].position
    document = jnp.full(batch, -1, jnp.int32)
    if state is not None:
      document = state[0].document
    starts = None
    if document_ids is not None:
      starts, document = _document_starts(document_ids, document, mask)
      if state is None:
        # A document that starts with the call starts where everything does.
        starts = starts.at[:, 0].set(False)
    if length == 1 and state is not None:
      return layout_lib.token(mask, starts, position), document
    layout = layout_lib.align(
        (batch, length),
        unit,
        mask=mask,
        starts=starts,
        offset=None if state is None or unit == 1 else position % unit,
        position=position,
        packed=state is None and document_ids is not None,
    )
    return layout, document

  def _read(self, tokens, state, layout, document, update_memory):
    """Returns hidden [B, A, d], the state, and gauges stacked over blocks."""
    config = self.config
    tokens = layout.arrange(tokens)
    table = sharding.gather(self.embedding, tensor=0)
    x = table[tokens].astype(config.dtype) * config.model_dim**0.5
    x = sharding.constrain(x)
    if isinstance(layout, layout_lib.Token) and not self.is_initializing():
      x, state, gauges = self._step(x, state, layout, document, update_memory)
    else:
      stacked = None
      if state is not None:
        stacked = jax.tree.map(lambda *s: jnp.stack(s), *state)

      def body(block, x, state):
        if state is None:
          state = block.initial_state(tokens.shape[0])
        x, state, gauges = block(x, state, layout, document, update_memory)
        return sharding.constrain(x), (state, gauges)

      if config.remat:
        body = nn.remat(body, prevent_cse=False)
      x, (stacked, gauges) = blocks.over_layers(self.config, body)(
          self.blocks, x, stacked
      )
      state = _by_layer(stacked)
    return self.final_norm(x), state, gauges

  def _step(self, x, state, token, document, update_memory):
    """One token a row. Unrolled over blocks: a scan would copy every state."""
    params_of = self.blocks.variables["params"]
    if "0" in params_of:  # as `unstack` returns them
      params_of = [params_of[str(i)] for i in range(len(state))]
    else:
      params_of = _by_layer(params_of)
    block = blocks.Block(self.config, parent=None)
    states, gauges = [], []
    for params, block_state in zip(params_of, state, strict=True):
      x, block_state, gauge = block.apply(
          {"params": params}, x, block_state, token, document, update_memory
      )
      states.append(block_state)
      gauges.append(gauge)
    return x, tuple(states), jax.tree.map(lambda *g: jnp.stack(g), *gauges)

  def _output_matrix(self) -> Array:
    tied = self.config.tie_embeddings
    matrix = self.embedding if tied else self.unembedding
    return sharding.gather(matrix.astype(self.config.dtype), tensor=0)

  def _logits(self, hidden: Array) -> Array:
    return _logits(hidden, self._output_matrix())


def _logits(hidden: Array, matrix: Array) -> Array:
  """Maps [B, T, d] to logits [B, T, V]."""
  return sharding.constrain(_times_matrix(hidden, matrix), tensor=2)


@jax.custom_vjp
def _times_matrix(hidden: Array, matrix: Array) -> Array:
  """Returns logits in at least float32.

  JAX's own derivative would multiply their cotangent in float32, on a GPU at half
  the speed or less.
  """
  return _summed("btd,vd->btv", hidden, matrix)


def _summed(subscripts: str, left: Array, right: Array) -> Array:
  """Returns an einsum in at least float32, whatever its operands are in."""
  dtype = jnp.promote_types(left.dtype, right.dtype)
  return jnp.einsum(
      subscripts,
      left,
      right,
      preferred_element_type=jnp.promote_types(dtype, jnp.float32),
  )


def _times_matrix_bwd(operands, d_logits):
  hidden, matrix = operands
  d_logits = d_logits.astype(jnp.promote_types(hidden.dtype, matrix.dtype))
  return (
      _summed("btv,vd->btd", d_logits, matrix).astype(hidden.dtype),
      _summed("btv,btd->vd", d_logits, hidden).astype(matrix.dtype),
  )


_times_matrix.defvjp(
    lambda hidden, matrix: (_times_matrix(hidden, matrix), (hidden, matrix)),
    _times_matrix_bwd,
)


def unstack(variables):
  """Returns variables for one-token calls, with every layer's parameters apart.

  A step that finds them stacked copies each layer's out of the stack first.
  """
  params = dict(variables["params"])
  layers = _by_layer(params["blocks"])
  params["blocks"] = {str(i): layer for i, layer in enumerate(layers)}
  return {**variables, "params": params}


def _by_layer(stacked) -> tuple[Any, ...]:
  """Returns each block's share of leaves [num_layers, ...]."""
  layers = range(jax.tree.leaves(stacked)[0].shape[0])
  return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in layers)


def _document_starts(ids, document, mask):
  """Returns where documents start, bool [B, T], and the last document [B].

  A document starts at a real token whose id differs from the last real token's
  before it, in this call or, at its beginning, in the state.
  """
  ids = ids.astype(jnp.int32)
  batch, length = ids.shape
  if mask is None:
    mask = jnp.ones((batch, length), bool)
  real = jnp.where(mask, jnp.arange(length), -1)
  latest = jax.lax.cummax(real, axis=1)
  known = jnp.take_along_axis(ids, jnp.maximum(latest, 0), axis=1)
  known = jnp.where(latest >= 0, known, document[:, None])
  before = jnp.concatenate([document[:, None], known[:, :-1]], axis=1)
  return mask & (ids != before), known[:, -1]


def _longest_document(ids, mask) -> int:
  """Returns the tokens of the longest document, at most, where ids are known."""
  if not layout_lib.concrete(ids, mask):
    return 0
  longest = 0
  for row, ids_of_row in enumerate(np.asarray(ids)):
    real = ids_of_row if mask is None else ids_of_row[np.asarray(mask)[row]]
    ends = np.flatnonzero(np.diff(real, append=real[-1:] + 1))
    longest = max(longest, int(np.diff(ends, prepend=-1).max(initial=0)))
  return longest


def _check_vocabulary(tokens, vocab_size, name, least=0) -> None:
  if not layout_lib.concrete(tokens):
    return
  tokens = np.asarray(tokens)
  wrong = tokens >= vocab_size
  if least is not None:
    wrong |= tokens < least
  if wrong.any():
    value = tokens[tuple(np.argwhere(wrong)[0])]
    raise ValueError(
        f"{name} hold {value}, outside the vocabulary of {vocab_size} tokens"
        f" (0 to {vocab_size - 1})."
    )


def _check_targets(tokens, targets, mask, config) -> None:
  """Raises ValueError for targets that are not the tokens'."""
  if targets.shape != tokens.shape:
    raise ValueError(
        f"targets {targets.shape} and tokens {tokens.shape} differ in shape."
    )
  if mask is None or layout_lib.concrete(mask, targets):
    scored = targets if mask is None else np.where(mask, targets, -1)
    _check_vocabulary(scored, config.vocab_size, "targets", least=None)


def _check_call(tokens, state, mask, document_ids, config) -> None:
  """Raises ValueError for arguments that do not fit each other."""
  if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(
        f"tokens must be integers of shape [B, T], got {tokens.dtype} of shape"
        f" {tuple(tokens.shape)}."
    )
  batch, length = tokens.shape
  if length < 1:
    raise ValueError("The sequence is empty: T must be at least 1.")
  if mask is not None and (mask.shape != tokens.shape or mask.dtype != bool):
    raise ValueError(
        f"mask must be bool of shape {tokens.shape}, got {mask.dtype} of shape"
        f" {mask.shape}."
    )
  if document_ids is not None and (
      document_ids.shape != tokens.shape
      or not jnp.issubdtype(document_ids.dtype, jnp.integer)
  ):
    raise ValueError(
        f"document_ids must be integers of shape {tokens.shape}, got"
        f" {document_ids.dtype} of shape {document_ids.shape}."
    )
  if mask is None or layout_lib.concrete(mask):
    real = tokens
    if mask is not None and layout_lib.concrete(tokens):
      real = np.where(np.asarray(mask), np.asarray(tokens), 0)
    _check_vocabulary(real, config.vocab_size, "tokens")
  if state is not None:
    if len(state) != config.num_layers:
      raise ValueError(
          f"The state holds {len(state)} blocks, but the model has"
          f" {config.num_layers}."
      )
    rows = state[0].position.shape[0]
    if rows != batch:
      raise ValueError(
          f"The state holds {rows} rows, but the batch has {batch}."
      )
    blocks.check_state(state[0], config)
