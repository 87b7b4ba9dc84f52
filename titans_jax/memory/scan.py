# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The neural long-term memory over sequences: scan, step and read."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Callable

import jax
import jax.numpy as jnp

from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import networks
from titans_jax.memory import products
from titans_jax.memory import reference
from titans_jax.memory import state as state_lib

Array = jax.Array
MemoryState = state_lib.MemoryState

IMPLEMENTATIONS = ("auto", "xla", "pallas", "reference")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["forget", "learning_rate", "momentum"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Gates:
  """The rule's data-dependent gates (v1 equations 13 and 14).

  Each is [B, T, H], shared by the memory's layers, or [B, T, H, L].

  Attributes:
    forget: alpha in [0, 1], the share of W that is forgotten; a tuple of L
      arrays [B, T, H, d_out] lets every output channel forget at its own rate;
      None: nothing is forgotten.
    learning_rate: theta >= 0, the weight of the momentary surprise.
    momentum: eta in [0, 1], the share of past surprise that is kept; None: the
      rule without momentum, whose state has no S.
  """

  forget: Array | tuple[Array, ...] | None
  learning_rate: Array
  momentum: Array | None = None


def scan(
    net: networks.Network,
    state: MemoryState,
    queries: Array,
    keys: Array,
    values: Array,
    gates: Gates,
    params: networks.Params | None = None,
    *,
    mask: Array | None = None,
    resets: Array | None = None,
    packed: bool = False,
    gates_per_chunk: bool = False,
    max_grad_norm: float | None = None,
    checkpoint_every: int | None = None,
    dtype: Any = None,
    implementation: str = "auto",
) -> tuple[Array, MemoryState]:
  """Learns a sequence token by token and reads after each token's own write.

  One call over a sequence and calls over its pieces, of whatever lengths, give
  the same outputs and the same final state.

  Args:
    net: the memory network M.
    state: from `init_state` or an earlier call.
    queries: [B, T, H, D].
    keys: [B, T, H, D].
    values: [B, T, H, D].
    gates: of every token.
    params: slow parameters of the network, leaves [H, ...]; None: its defaults.
    mask: bool [B, T], False for padding, anywhere: such a token changes nothing
      and its output is zero.
    resets: bool [B, T], first tokens of documents, where everything starts
      again; at multiples of the chunk size within the call.
    packed: a promise that no chunk is open in `state` and that tokens are
      masked only at a document's tail, as packed training data are. Saves the
      moving of tokens to chunk boundaries.
    gates_per_chunk: the gates of a chunk's first real token hold for the whole
      chunk. Like the chunk size this is part of the function.
    max_grad_norm: bound on the norm of a token's inner gradient, per layer.
    checkpoint_every: chunks per group: the backward pass keeps the state once
      per group and recomputes inside. None: about the square root of their
      number.
    dtype: dtype of the products' operands ("bfloat16" on accelerators); sums,
      gates and state stay in at least float32. None: as the arrays come.
    implementation: "auto", "xla", "pallas" or "reference" (token by token, the
      oracle that the others are tested against).

  Returns:
    Outputs [B, T, H, D] in at least float32, and the state after the last
    token.

  Raises:
    ValueError: shapes that do not fit each other or the state; an unknown
      implementation; documents that start inside a chunk.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
        f"implementation must be one of {IMPLEMENTATIONS}, got"
        f" {implementation!r}."
    )
  _check_shapes(net, state, queries, keys, values, mask, resets)
  options = chunk_lib.Rule(
      net=net,
      max_grad_norm=max_grad_norm,
      gates_per_chunk=gates_per_chunk,
      dtype=None if dtype is None else jnp.dtype(dtype),
  )
  tokens = make_tokens(net, queries, keys, values, gates)
  state = state_lib.conform(state, tokens)
  params = default_params(net, state, params)
  if implementation == "reference":
    return reference.scan(options, state, tokens, params, mask, resets)
  if queries.shape[1] == 1 and not packed:
    layout_lib.check_starts(resets, state.chunk_size)
    written = jnp.ones(queries.shape[:2], bool) if mask is None else mask
    outputs, _, state = step(
        options,
        state,
        tokens._replace(written=written),
        params,
        mask=None if mask is None else mask[:, 0],
        starts=None if resets is None else resets[:, 0],
    )
    return outputs, state
  layout = layout_lib.align(
      queries.shape[:2],
      state.chunk_size,
      mask=mask,
      starts=resets,
      offset=None if packed else state.count,
      packed=packed,
  )
  tokens = jax.tree.map(layout.arrange, tokens)
  outputs, _, state = advance(
      options,
      state,
      tokens,
      params,
      layout,
      checkpoint_every=checkpoint_every,
      implementation=implementation,
  )
  return layout.restore(outputs), state


def read(
    net: networks.Network,
    state: MemoryState,
    queries: Array,
    params: networks.Params | None = None,
    *,
    dtype: Any = None,
) -> Array:
  """Reads M_{W_t}(q) from the weights as of the last token, without update.

  Args:
    net: the memory network.
    state: of the memory.
    queries: [B, T, H, D].
    params: slow parameters, leaves [H, ...]; None: the network's defaults.
    dtype: dtype of the products' operands; None: as they come.

  Returns:
    [B, T, H, D] in at least float32.
  """
  _check_shapes(net, state, queries, queries, queries, None, None)
  options = chunk_lib.Rule(net, dtype=None if dtype is None else jnp.dtype(dtype))
  params = default_params(net, state, params)
  return read_weights(options, state.weights, queries, params)


def read_weights(
    options: chunk_lib.Rule, weights: chunk_lib.Weights, queries: Array, params
) -> Array:
  """Reads [B, T, H, D] from weights [B, H, d_in, d_out]."""
  queries = queries.astype(products.at_least_float32(queries.dtype))

  def read_head(weights, queries, params):
    def dense(layer, x):
      return products.matmul(x, weights[layer], options.dtype)

    return options.net.apply(dense, queries, params)

  per_head = jax.vmap(read_head, in_axes=(0, 1, 0), out_axes=1)
  return jax.vmap(per_head, in_axes=(0, 0, None))(weights, queries, params)


# ----------------------------------------------------------------------------
# What the layers call: the same over aligned tokens, without the checks.


def make_tokens(
    net: networks.Network,
    queries: Array,
    keys: Array,
    values: Array,
    gates: Gates,
) -> chunk_lib.Chunk:
  """Returns the tokens of a call with every gate in its full form.

  Raises:
    ValueError: a gate of another shape than `Gates` says.
  """
  batch, length, num_heads, head_dim = keys.shape
  layers = net.layer_shapes(head_dim)
  dtype = products.at_least_float32(keys.dtype)
  shared = (batch, length, num_heads)

  def per_layer(name, gate):
    if gate.shape not in (shared, (*shared, len(layers))):
      raise ValueError(
          f"gates.{name} must have shape {shared} or {(*shared, len(layers))},"
          f" got {gate.shape}."
      )
    if gate.ndim == 3:
      gate = gate[..., None]
    return jnp.broadcast_to(gate, (*shared, len(layers))).astype(dtype)

  forget = gates.forget
  if forget is None:
    forget = jnp.zeros(shared, dtype)
  if isinstance(forget, (tuple, list)):
    expected = [(*shared, d_out) for _, d_out in layers]
    if [f.shape for f in forget] != expected:
      raise ValueError(
          "gates.forget per channel must be a tuple of arrays of shapes"
          f" {expected}, got {[f.shape for f in forget]}."
      )
    forget = tuple(f.astype(dtype) for f in forget)
  else:
    forget = per_layer("forget", forget)
    forget = tuple(forget[..., i : i + 1] for i in range(len(layers)))
  return chunk_lib.Chunk(
      queries=queries.astype(dtype),
      keys=keys.astype(dtype),
      values=values.astype(dtype),
      forget=forget,
      learning_rate=per_layer("learning_rate", gates.learning_rate),
      momentum=None
      if gates.momentum is None
      else per_layer("momentum", gates.momentum),
      written=jnp.ones((batch, length), bool),
  )


def default_params(net, state: MemoryState, params):
  """Returns the network's slow parameters, its own where None are given."""
  if params is not None:
    return params
  return net.init_params(
      num_heads=state.num_heads,
      head_dim=state.open.keys.shape[-1],
      dtype=state.open.keys.dtype,
  )


def advance(
    options: chunk_lib.Rule,
    state: MemoryState,
    tokens: chunk_lib.Chunk,
    params: networks.Params,
    layout: layout_lib.Layout,
    *,
    checkpoint_every: int | None = None,
    implementation: str = "auto",
) -> tuple[Array, Array, MemoryState]:
  """Scans aligned tokens, leaves [B, A, H, ...], from a state to a state.

  Returns:
    Outputs [B, A, H, D], inner losses [B, A, H], and the new state.
  """
  size = state.chunk_size
  tokens = with_written(tokens, layout)
  if layout.offset is not None:
    first = layout.offset // size * size
    tokens = state_lib.put_open(state, tokens, first)
  outputs, loss, carry = scan_chunks(
      options,
      state.chunk_start,
      state.initial,
      tokens,
      params,
      chunk_size=size,
      closes=layout.closed(size),
      resets=layout.resets(size),
      checkpoint_every=checkpoint_every,
      implementation=implementation,
  )
  state = state_lib.with_open(
      options, params, carry, state.initial, tokens, layout, size
  )
  return outputs, loss, state


def with_written(
    tokens: chunk_lib.Chunk, layout: layout_lib.Layout
) -> chunk_lib.Chunk:
  """Leaves the tokens that are not real ones unwritten."""
  if layout.mask is None:
    return tokens
  return tokens._replace(written=tokens.written & layout.mask)


def scan_chunks(
    options: chunk_lib.Rule,
    carry: chunk_lib.Carry,
    initial: chunk_lib.Carry,
    tokens: chunk_lib.Chunk,
    params: networks.Params,
    *,
    chunk_size: int,
    closes: Array | None,
    resets: Array | None,
    checkpoint_every: int | None = None,
    implementation: str = "auto",
) -> tuple[Array, Array, chunk_lib.Carry]:
  """Threads (W, S) through whole chunks.

  Args:
    options: the rule.
    carry: W and S at the start, leaves [B, H, ...].
    initial: those that documents start from, [1, H, ...].
    tokens: aligned, leaves [B, A, H, ...].
    params: slow parameters, leaves [H, ...].
    chunk_size: b.
    closes: bool [B, A / b] or None, as in `chunk.Chunk`.
    resets: bool [B, A / b] or None.
    checkpoint_every: chunks per group of the backward pass.
    implementation: "auto", "xla" or "pallas".

  Returns:
    Outputs [B, A, H, D], inner losses [B, A, H], and the carry at the end.
  """
  batch, size, num_heads, _ = tokens.keys.shape
  num_chunks = size // chunk_size

  def split(x):  # [B, A, H, ...] -> [B, H, N, b, ...]
    x = x.reshape(batch, num_chunks, chunk_size, *x.shape[2:])
    return jnp.moveaxis(x, 3, 1)

  def per_row(x):  # [B, N, ...] -> [B, H, N, ...]
    if x is None:
      return None
    shape = (batch, num_heads, num_chunks, *x.shape[2:])
    return jnp.broadcast_to(x[:, None], shape)

  def join(y):  # [B, H, N, b, ...] -> [B, A, H, ...]
    y = jnp.moveaxis(y, 1, 3)
    return y.reshape(batch, size, num_heads, *y.shape[4:])

  written = tokens.written.reshape(batch, num_chunks, chunk_size)
  chunks = jax.tree.map(split, tokens._replace(written=None))._replace(
      written=per_row(written), closes=per_row(closes), resets=per_row(resets)
  )
  constants = chunk_lib.Constants(
      params=jax.tree.map(lambda p: p[None], params),
      initial=None if resets is None else initial,
  )
  if implementation == "pallas":
    raise NotImplementedError(
        "implementation='pallas' has no kernel yet; use 'auto' or 'xla'."
    )
  carry, (outputs, loss) = lax_scan(
      functools.partial(chunk_lib.step, options),
      carry,
      chunks,
      constants,
      group=checkpoint_every,
  )
  return join(outputs), join(loss), carry


def lax_scan(
    step_fn: Callable[..., Any], init, xs, consts, *, group: int | None
):
  """`jax.lax.scan` with leading axes [B, H], keeping the carry once per group.

  Args:
    step_fn: (carry, x, consts) -> (carry, y), of one batch row and head.
    init: leaves [B, H, ...].
    xs: leaves [B, H, N, ...].
    consts: leaves [B, H, ...], or of size 1 there.
    group: steps per group: reverse-mode differentiation keeps the carry once
      per group and recomputes inside. None: about the square root of N.

  Returns:
    The last carry, and ys, leaves [B, H, N, ...].
  """
  body = _over_leading_axes(step_fn, consts, depth=2)
  steps = jax.tree.leaves(xs)[0].shape[2]
  xs = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), xs)
  sizes = _group_sizes(steps, group)

  @jax.checkpoint
  def run(carry, xs):
    return jax.lax.scan(lambda c, x: body(c, x, consts), carry, xs)

  whole = sizes.count(sizes[0]) * sizes[0]
  split = jax.tree.map(
      lambda x: x[:whole].reshape(-1, sizes[0], *x.shape[1:]), xs
  )
  carry, ys = jax.lax.scan(run, init, split)
  ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
  if whole < steps:
    carry, rest = run(carry, jax.tree.map(lambda x: x[whole:], xs))
    ys = jax.tree.map(lambda *y: jnp.concatenate(y), ys, rest)
  return carry, jax.tree.map(lambda y: jnp.moveaxis(y, 0, 2), ys)


def _group_sizes(steps: int, group: int | None) -> list[int]:
  """Splits steps into groups of one size, and one smaller if need be."""
  if group is None:
    root = math.isqrt(steps)
    divisors = [g for g in range(root, 2 * root + 1) if steps % g == 0]
    group = divisors[0] if divisors else root
  if group < 1:
    raise ValueError(f"checkpoint_every must be at least 1, got {group}.")
  group = min(group, steps)
  sizes = [group] * (steps // group)
  return sizes + [steps % group] * (steps % group > 0)


def _over_leading_axes(fn, consts, depth: int):
  """Maps fn(carry, x, consts) over leading axes; consts may be of size 1."""
  if depth == 0:
    return fn
  axes = jax.tree.map(lambda c: None if c.shape[0] == 1 else 0, consts)
  squeezed = jax.tree.map(
      lambda c: jax.ShapeDtypeStruct(c.shape[1:], c.dtype), consts
  )
  inner = jax.vmap(
      _over_leading_axes(fn, squeezed, depth - 1), in_axes=(0, 0, axes)
  )

  def mapped(carry, x, consts):
    consts = jax.tree.map(lambda c: c[0] if c.shape[0] == 1 else c, consts)
    return inner(carry, x, consts)

  return mapped


def step(
    options: chunk_lib.Rule,
    state: MemoryState,
    token: chunk_lib.Chunk,
    params: networks.Params,
    *,
    mask: Array | None = None,
    starts: Array | None = None,
) -> tuple[Array, Array, MemoryState]:
  """Learns and reads one token: `advance` for T = 1, unaligned.

  Reads W and S a constant number of times, and writes them only when some
  row's chunk closes.

  Args:
    options: the rule.
    state: of the memory.
    token: leaves [B, 1, H, ...].
    params: slow parameters, leaves [H, ...].
    mask: bool [B], False for a row without a token; None: all have one.
    starts: bool [B], rows whose document starts with this token.

  Returns:
    Outputs [B, 1, H, D], inner losses [B, 1, H], and the new state.
  """
  if starts is not None:
    rows = starts if mask is None else starts & mask
    state = jax.lax.cond(
        jnp.any(rows), state_lib.start_documents, lambda s, _: s, state, rows
    )
  place = jnp.arange(state.chunk_size) == state.count[:, None]
  if mask is not None:
    place = place & mask[:, None]
  written = jnp.where(place, token.written, state.open.written)
  token = jax.tree.map(
      lambda x: jnp.moveaxis(x, 1, 2), token._replace(written=None)
  )
  if options.gates_per_chunk:
    token = _hold_open(token, state)

  def linearize(weights, keys, values, params):
    return chunk_lib.linearize(options, params, weights, keys, values)

  inputs, deltas, loss = _per_head(linearize)(
      state.chunk_start.weights, token.keys, token.values, params
  )

  def put(new, old):  # [B, H, 1, ...] into [B, H, b, ...]
    return jnp.where(place[:, None, :, None], new.astype(old.dtype), old)

  kept = state.open._replace(written=None)
  added = state_lib.OpenChunk(
      keys=token.keys,
      values=token.values,
      forget=token.forget,
      learning_rate=token.learning_rate,
      momentum=token.momentum,
      written=None,
      inputs=inputs,
      deltas=deltas,
  )
  tokens = jax.tree.map(put, added, kept)

  def read_head(carry, tokens, written, queries, params):
    coefficients, _ = state_lib.end_coefficients(tokens, written)
    coefficients = jax.tree.map(lambda c: c[None], coefficients)
    return chunk_lib.read(
        options,
        params,
        carry,
        coefficients,
        tokens.inputs,
        tokens.deltas,
        queries,
    )

  every_head = jnp.broadcast_to(
      written[:, None], (written.shape[0], state.num_heads, state.chunk_size)
  )
  outputs = _per_head(read_head)(
      state.chunk_start, tokens, every_head, token.queries, params
  )
  outputs, loss = jnp.moveaxis(outputs, 2, 1), jnp.moveaxis(loss, 2, 1)
  if mask is not None:
    outputs = jnp.where(mask[:, None, None, None], outputs, 0)
  count = state.count + (1 if mask is None else mask.astype(jnp.int32))
  state = dataclasses.replace(
      state, open=tokens._replace(written=written), count=count
  )
  full = count == state.chunk_size
  state = jax.lax.cond(
      jnp.any(full), state_lib.close_rows, lambda s, _: s, state, full
  )
  return outputs, loss, state


def _hold_open(token: chunk_lib.Chunk, state: MemoryState) -> chunk_lib.Chunk:
  """Takes the gates of the open chunk's first token, where there is one."""
  begun = (state.count > 0)[:, None, None, None]

  def hold(new, kept):
    return jnp.where(begun, kept[:, :, :1].astype(new.dtype), new)

  kept = state.open
  return token._replace(
      forget=jax.tree.map(hold, token.forget, kept.forget),
      learning_rate=hold(token.learning_rate, kept.learning_rate),
      momentum=None
      if token.momentum is None
      else hold(token.momentum, kept.momentum),
  )


def _per_head(fn):
  """Maps fn over [B, H]; its last argument, the parameters, over [H] alone."""

  def mapped(*args):
    axes = (0,) * (len(args) - 1)
    per_head = jax.vmap(fn, in_axes=(*axes, 0))
    return jax.vmap(per_head, in_axes=(*axes, None))(*args)

  return mapped


def _check_shapes(net, state, queries, keys, values, mask, resets) -> None:
  """Raises ValueError where the arguments of a call do not fit each other."""
  if keys.ndim != 4:
    raise ValueError(f"keys must have shape [B, T, H, D], got {keys.shape}.")
  for name, x in (("queries", queries), ("values", values)):
    if x.shape != keys.shape:
      raise ValueError(f"{name} {x.shape} and keys {keys.shape} differ in shape.")
  batch, length, num_heads, head_dim = keys.shape
  if length < 1:
    raise ValueError("The sequence is empty: T must be at least 1.")
  for name, x in (("mask", mask), ("resets", resets)):
    if x is not None and (x.shape != (batch, length) or x.dtype != jnp.bool_):
      raise ValueError(
          f"{name} must be bool of shape {(batch, length)}, got {x.dtype} of"
          f" shape {x.shape}."
      )
  if state.batch_size != batch:
    raise ValueError(
        f"The state holds {state.batch_size} rows, but the batch has {batch}."
    )
  weights = state.chunk_start.weights
  expected = [(num_heads, *s) for s in net.layer_shapes(head_dim)]
  if [w.shape[1:] for w in weights] != expected:
    raise ValueError(
        f"A state with weights {[w.shape[1:] for w in weights]} does not fit"
        f" {net} with {num_heads} heads of dimension {head_dim}: {expected}."
    )
