# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The neural long-term memory as a layer (v1 sections 3.1 and 4.4).

A token's path: linear q, k, v -> causal depthwise convolution -> SiLU ->
L2-normalised q and k, RMS-normalised v -> memory -> RMSNorm, gate with a linear
layer, output projection.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from titans_jax import memory as memory_lib
from titans_jax.layers import convolution
from titans_jax.layers import linear
from titans_jax.layers import recompute
from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import interface
from titans_jax.memory import layout as layout_lib
from titans_jax.memory import products
from titans_jax.memory import stepping
from titans_jax.memory import tokens as tokens_lib

Array = jax.Array
Layout = layout_lib.Layout
ConvolutionState = convolution.ConvolutionState

_NORM_EPSILON = 1e-6

# Keeps the gradient of a root finite where a gate is shut.
_LEAST_SHARE = 1e-6


class WriteState(NamedTuple):
  """State of what is written.

  Attributes:
    key: convolution state of the keys (None without).
    value: that of the values.
    delay: the last token, which is written with the next one, and whether it is:
      states of its input and of a number, 1 or 0; None where every token is
      written before it reads.
  """

  key: ConvolutionState | None
  value: ConvolutionState | None
  delay: tuple[ConvolutionState, ConvolutionState] | None


class NeuralMemoryState(NamedTuple):
  """State of `NeuralMemory`.

  Attributes:
    memory: the memory itself.
    query: convolution state of the stream that reads (None without).
    write: those of the streams that are written.
  """

  memory: memory_lib.MemoryState
  query: ConvolutionState | None
  write: WriteState

  def broadcast(self, batch_size: int) -> NeuralMemoryState:
    """Returns a state of one row as one of `batch_size` rows."""
    convolutions = jax.tree.map(
        lambda conv: conv.broadcast(batch_size),
        (self.query, self.write),
        is_leaf=lambda x: isinstance(x, ConvolutionState),
    )
    return NeuralMemoryState(self.memory.broadcast(batch_size), *convolutions)


FORGET = ("token", "channel", "none")


class Gauges(NamedTuple):
  """What a memory did in a call, averaged over its real tokens; float32 scalars.

  Gates are those of each token, also where one holds for a chunk or nothing is
  learned.

  Attributes:
    surprise: the inner loss at the chunk's start, per channel of the value.
    forget: alpha.
    learning_rate: theta.
    effort: what a token's update of W weighs, e_t = eta_t e_{t-1} + theta_t, the
      root of its share of theta_max: to a root many weak writes add more than a
      few strong ones of the same sum.
    momentum: eta; zero without momentum.
    weight_norm: Frobenius norm of a head's W, all layers together, where the
      call's last whole chunk ends.
    momentum_norm: the same of S.
  """

  surprise: Array
  forget: Array
  learning_rate: Array
  effort: Array
  momentum: Array
  weight_norm: Array
  momentum_norm: Array

  def cost(self, length: int) -> Array:
    """Returns what the memories write, `effort`, plus what of their contents
    `length` tokens forget, `length` times `forget`, both as means over blocks.

    In a short text neither is in the way, nor a momentum that goes on writing; in
    a long one they are.
    """
    return jnp.mean(self.effort + length * self.forget)


class NeuralMemory(nn.Module):
  """A memory that keeps learning while the model reads. State in, state out.

  Attributes:
    model_dim: d.
    num_heads: H, memories side by side.
    head_dim: D, width of a head's keys and values.
    chunk_size: b, tokens whose inner gradients are taken at the same weights.
    net: the memory network M.
    momentum: False: the rule without momentum (eta = 0, no S).
    forget: "token" (alpha a scalar per token), "channel" (one per output
      channel of every memory layer) or "none".
    gates_per_layer: whether every memory layer has gates of its own.
    gates_per_chunk: whether a chunk's first token sets the gates of all of it.
    max_learning_rate: theta_max, theta = theta_max * sigmoid(.); None: what the
      network bears at this chunk size (`net.max_learning_rate`).
    forget_bias: initial bias of alpha's logit; -6 is a half-life of 280 tokens.
      (At 0 the memory would be wiped at every token.)
    max_grad_norm: bound on a token's inner gradient per layer, or None.
    normalize_values: RMS-normalises v.
    read_before_write: a token reads W_{t-1}, what the tokens before it have left,
      instead of W_t (v1 equation 15): it is written with the token behind it,
      which is one place later in its chunk, also where that one is read without
      learning. The last token of a call is not in the state's weights yet, nor
      that of a segment in what MAC recalls in the next. Not with
      gates_per_chunk: a document's first place has no token to take gates from.
    conv_size: taps of the convolutions on q, k and v; 0: none.
    checkpoint_every: chunks per group of the backward pass, or None.
    implementation: of the scan over chunks, as in `memory.scan`: "auto", "xla"
      or "pallas".
    dtype: of the computation; state and gates stay in at least float32.
    param_dtype: of the parameters.
    out_scale: scale of the output projection's initial deviation.
  """

  model_dim: int
  num_heads: int
  head_dim: int
  chunk_size: int = 16
  net: memory_lib.Network = memory_lib.MLP()
  momentum: bool = True
  forget: str = "token"
  gates_per_layer: bool = True
  gates_per_chunk: bool = False
  max_learning_rate: float | None = None
  forget_bias: float = -6.0
  max_grad_norm: float | None = None
  normalize_values: bool = True
  read_before_write: bool = False
  conv_size: int = 4
  checkpoint_every: int | None = None
  implementation: str = "auto"
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  out_scale: float = 1.0

  def setup(self):
    for dtype in (self.dtype, self.param_dtype):
      products.check_dtype(dtype)
    if self.forget not in FORGET:
      raise ValueError(f"forget must be one of {FORGET}, got {self.forget!r}.")
    if self.read_before_write and self.gates_per_chunk:
      raise ValueError(
          "read_before_write and gates_per_chunk exclude each other: nothing is"
          " written at a document's first place, so that there are no gates to"
          " hold."
      )
    if self.checkpoint_every is not None and self.checkpoint_every < 1:
      raise ValueError(
          "checkpoint_every must be at least 1, or None, got"
          f" {self.checkpoint_every}."
      )
    width = self.num_heads * self.head_dim
    for name in ("query", "key", "value"):
      setattr(self, name, linear.dense(width, self))
      conv = None
      if self.conv_size:
        conv = convolution.CausalConvolution(
            width, self.conv_size, self.dtype, self.param_dtype
        )
      setattr(self, f"{name}_conv", conv)
    self.gates = nn.Dense(
        self.num_heads * sum(self._gate_sizes()),
        dtype=products.at_least_float32(self.dtype),
        param_dtype=self.param_dtype,
        kernel_init=nn.initializers.normal(0.02),
        bias_init=self._init_gate_bias,
    )
    heads = {"num_heads": self.num_heads, "head_dim": self.head_dim}
    heads["dtype"] = products.at_least_float32(self.param_dtype)
    self.initial_weights = tuple(
        self.param(
            f"initial_weights_{layer}",
            lambda key, layer=layer: self.net.init(key, **heads)[layer],
        )
        for layer in range(self._num_layers())
    )
    self.net_params = {
        name: self.param(f"net_{name}", lambda _, value=value: value)
        for name, value in self.net.init_params(**heads).items()
    }
    self.norm = linear.rms_norm(self, reduction_axes=-1, feature_axes=(-2, -1))
    self.out_gate = linear.dense(width, self)
    self.out = linear.dense(self.model_dim, self, scale=self.out_scale)
    self.options = chunk_lib.Rule(
        net=self.net,
        max_grad_norm=self.max_grad_norm,
        gates_per_chunk=self.gates_per_chunk,
        dtype=jnp.dtype(self.dtype),
        implementation=self.implementation,
    )

  # --------------------------------------------------------------------------
  # For users' own models.

  def __call__(
      self,
      x: Array,
      state: NeuralMemoryState | None = None,
      *,
      mask: Array | None = None,
      resets: Array | None = None,
      update_memory: bool = True,
  ) -> tuple[Array, NeuralMemoryState]:
    """Learns a sequence while reading it.

    Args:
      x: [B, T, d].
      state: from an earlier call; None: nothing was read yet.
      mask: bool [B, T], False for padding, anywhere.
      resets: bool [B, T], first tokens of documents, at multiples of the chunk
        size within the call.
      update_memory: False: reads without learning.

    Returns:
      [B, T, d], zero at masked tokens, and the state after the last token.

    Raises:
      ValueError: x, mask or resets of another shape, or a state of another
        batch size.
    """
    check_input(x, self.model_dim, mask, resets)
    batch, length, _ = x.shape
    if state is None:
      # Told apart by its static size, so that nothing is moved in training.
      count, state = None, self.initial_state()[0].broadcast(batch)
    else:
      if state.memory.batch_size != batch:
        raise ValueError(
            f"The state holds {state.memory.batch_size} rows, but the batch has"
            f" {batch}."
        )
      check_chunk_size(state.memory, self.chunk_size)
      count = state.memory.count
    layout: Layout | layout_lib.Token
    if length == 1 and count is not None:
      layout = layout_lib.token(mask, resets, count)
    else:
      layout = layout_lib.align(
          (batch, length),
          self.chunk_size,
          mask=mask,
          starts=resets,
          offset=count,
          position=count,
      )
    x = layout.arrange(x)
    y, state, _ = self.apply_aligned(x, state, layout, update_memory)
    return layout.restore(y), state

  # --------------------------------------------------------------------------
  # For the blocks: the same on aligned tokens, and its parts.

  def initial_state(
      self, prefix: Array | None = None
  ) -> tuple[NeuralMemoryState, Array | None]:
    """Returns the state that a document starts from, of one row.

    Args:
      prefix: persistent tokens [N_p, d] that are written first (v1 equation
        19). A chunk closes behind them.

    Returns:
      The state, and the outputs [N_p, d] at the prefix (None without one).
    """
    dtype = products.at_least_float32(self.dtype)
    memory = memory_lib.init_state(
        self.net,
        tuple(
            w.astype(jnp.promote_types(w.dtype, dtype))
            for w in self.initial_weights
        ),
        batch_size=1,
        chunk_size=self.chunk_size,
        momentum=self.momentum,
        forget_per_channel=self.forget == "channel",
    )
    query, key, value = (
        conv and conv.initial_state()
        for conv in (self.query_conv, self.key_conv, self.value_conv)
    )
    delay = None
    if self.read_before_write:
      delay = (
          convolution.initial_state(2, self.model_dim, self.dtype),
          convolution.initial_state(2, 1, self.dtype),
      )
    state = NeuralMemoryState(memory, query, WriteState(key, value, delay))
    if prefix is None or not prefix.shape[0]:
      return state, None
    layout = layout_lib.align((1, prefix.shape[0]), self.chunk_size)
    y, state, _ = self.apply_aligned(
        layout.arrange(prefix[None]), state, layout, True
    )
    memory = memory_lib.close_chunk(self.net, state.memory)
    state = jax.tree.map(
        lambda conv: conv._replace(initial=conv.tail),
        state._replace(memory=None),
        is_leaf=lambda x: isinstance(x, ConvolutionState),
    )
    memory = dataclasses.replace(memory, initial=memory.chunk_start)
    return state._replace(memory=memory), layout.restore(y)[0]

  def apply_aligned(
      self,
      x: Array,
      state: NeuralMemoryState,
      layout: Layout | layout_lib.Token,
      update_memory: bool,
  ) -> tuple[Array, NeuralMemoryState, Gauges]:
    """Learns and reads x [B, A, d] where `layout` says its tokens stand."""

    def paths(self):
      return (
          self.queries(x, state.query, layout),
          self.writes(x, state.write, layout, update_memory),
      )

    (queries, query), (tokens, write) = recompute.light(paths)(self)
    outputs, loss, memory = interface.advance(
        self.options,
        state.memory,
        tokens._replace(queries=queries),
        self.net_params,
        layout,
        checkpoint_every=self.checkpoint_every,
    )
    gauges = self.gauges(tokens, loss, memory.chunk_start, layout.mask)
    return (
        self.output(outputs, x),
        NeuralMemoryState(memory, query, write),
        gauges,
    )

  def queries(
      self, x: Array, state: ConvolutionState | None, layout
  ) -> tuple[Array, ConvolutionState | None]:
    """Returns the query path's q [B, A, H, D], and its convolution state."""
    q, state = self._stream(self.query, self.query_conv, x, state, layout)
    return _l2_normalize(q), state

  def writes(
      self, x: Array, state: WriteState, layout, update_memory: bool
  ) -> tuple[chunk_lib.Chunk, WriteState]:
    """Returns what x [B, A, d] writes: tokens without queries."""
    written = None
    if not update_memory:
      # A token that is read without learning takes its place in the chunk.
      written = jnp.zeros(x.shape[:2], bool)
    delay = None
    if state.delay is not None:
      learns = jnp.full((*x.shape[:2], 1), update_memory)
      (x, _), of_input = convolution.taps(
          x.astype(self.dtype), state.delay[0], layout
      )
      (learned, _), of_learns = convolution.taps(
          learns.astype(self.dtype), state.delay[1], layout
      )
      delay = of_input, of_learns
      written = learned[..., 0] > 0
    k, key = self._stream(self.key, self.key_conv, x, state.key, layout)
    v, value = self._stream(self.value, self.value_conv, x, state.value, layout)
    k = _l2_normalize(k)
    if self.normalize_values:
      v = _rms_normalize(v)
    tokens = tokens_lib.make_tokens(self.net, None, k, v, self._gate(x))
    return tokens._replace(written=written), WriteState(key, value, delay)

  def recall(
      self, weights: chunk_lib.Weights, queries: Array, x: Array
  ) -> Array:
    """Reads q [B, A, H, D] of x [B, A, d] from fixed weights, without update."""
    outputs = stepping.read_weights(
        self.options, weights, queries, self.net_params
    )
    return self.output(outputs, x)

  def output(self, outputs: Array, x: Array) -> Array:
    """Maps the memory's outputs [B, A, H, D] to the model's width.

    Args:
      outputs: of the memory.
      x: [B, A, d], the layer's input, which gates them.
    """

    def gated(self):
      y = self.norm(outputs.astype(self.dtype))
      gate = nn.silu(self.out_gate(x))
      return self.out(y.reshape(gate.shape) * gate)

    return recompute.light(gated)(self)

  def gauges(self, tokens, loss, carry, mask) -> Gauges:
    """Averages over the real tokens of [B, A, H, ...], and heads."""
    if mask is None:
      weight = jnp.ones(loss.shape[:2])
    else:
      weight = mask.reshape(loss.shape[:2])
    weight = weight.astype(jnp.float32)
    weight /= jnp.maximum(jnp.sum(weight), 1)

    def mean(x):
      x = jnp.mean(x.astype(jnp.float32).reshape(*x.shape[:2], -1), axis=-1)
      return jnp.sum(x * weight)

    def norm(weights):
      square = sum(jnp.sum(w * w, axis=(-2, -1)) for w in weights)
      return jnp.mean(jnp.sqrt(jax.lax.stop_gradient(square)))

    zero = jnp.zeros((), jnp.float32)
    alphas = [mean(f) for f in tokens.forget]
    return Gauges(
        surprise=mean(jax.lax.stop_gradient(loss)) / self.head_dim,
        forget=sum(alphas) / len(alphas),
        learning_rate=mean(tokens.learning_rate),
        effort=mean(jnp.sqrt(self._weights_of_updates(tokens) + _LEAST_SHARE)),
        momentum=mean(tokens.momentum) if self.momentum else zero,
        weight_norm=norm(carry.weights).astype(jnp.float32),
        momentum_norm=norm(carry.momentum).astype(jnp.float32)
        if self.momentum
        else zero,
    )

  def _weights_of_updates(self, tokens) -> Array:
    """Returns e_t of `Gauges.effort`, as a share of theta_max, [B, A, H, L]."""
    share = tokens.learning_rate.astype(jnp.float32) / self._theta_max()
    if not self.momentum:
      return share

    def joined(before, after):
      return before[0] * after[0], after[0] * before[1] + after[1]

    momentum = tokens.momentum.astype(jnp.float32)
    return jax.lax.associative_scan(joined, (momentum, share), axis=1)[1]

  def _stream(self, projection, conv, x, state, layout):
    y = projection(x)
    if conv is not None:
      y, state = conv(y, state, layout)
    y = nn.silu(y)
    return y.reshape(*y.shape[:-1], self.num_heads, self.head_dim), state

  def _num_layers(self) -> int:
    return len(self.net.layer_shapes(self.head_dim))

  def _gate_sizes(self) -> tuple[int, int, int]:
    """Returns a head's numbers of gates (alpha, theta, eta)."""
    layers = self._num_layers() if self.gates_per_layer else 1
    channels = sum(d_out for _, d_out in self.net.layer_shapes(self.head_dim))
    forget = {"none": 0, "token": layers, "channel": channels}[self.forget]
    return forget, layers, layers if self.momentum else 0

  def _theta_max(self) -> float:
    """Returns the largest learning rate: the one asked for, or what the network
    bears."""
    if self.max_learning_rate is not None:
      return self.max_learning_rate
    if not hasattr(self.net, "max_learning_rate"):
      raise ValueError(
          f"{type(self.net).__name__} has no method max_learning_rate: set the"
          " layer's max_learning_rate."
      )
    return self.net.max_learning_rate(self.head_dim, self.chunk_size)

  def _init_gate_bias(self, key, shape, dtype):
    del key
    forget, *others = self._gate_sizes()
    bias = [self.forget_bias] * forget + [0.0] * sum(others)
    return jnp.asarray(bias * self.num_heads, dtype).reshape(shape)

  def _gate(self, x: Array) -> memory_lib.Gates:
    """Returns the gates of x [B, A, d]."""
    sizes = self._gate_sizes()
    logits = self.gates(x)
    logits = logits.reshape(*x.shape[:-1], self.num_heads, sum(sizes))
    gates = jax.nn.sigmoid(logits)
    alpha, rate, momentum = jnp.split(
        gates, [sizes[0], sizes[0] + sizes[1]], axis=-1
    )
    max_rate = self._theta_max()

    def every_layer(gate):  # one value holds for all layers
      return gate if self.gates_per_layer else gate[..., 0]

    forget: Any = None
    if self.forget == "token":
      forget = every_layer(alpha)
    elif self.forget == "channel":
      widths = [d_out for _, d_out in self.net.layer_shapes(self.head_dim)]
      ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
      forget = tuple(jnp.split(alpha, ends, axis=-1))
    return memory_lib.Gates(
        forget=forget,
        learning_rate=every_layer(max_rate * rate),
        momentum=every_layer(momentum) if self.momentum else None,
    )


def check_chunk_size(state: memory_lib.MemoryState, chunk_size: int) -> None:
  """Raises ValueError for the state of a memory with another chunk size."""
  if state.chunk_size != chunk_size:
    raise ValueError(
        f"The state's memory has chunks of {state.chunk_size} tokens, but the"
        f" layer chunk_size={chunk_size}."
    )


def check_input(x, model_dim, mask, resets) -> None:
  """Raises ValueError for arguments of a layer that do not fit."""
  if x.ndim != 3 or x.shape[-1] != model_dim:
    raise ValueError(
        f"x must have shape [B, T, {model_dim}], got {tuple(x.shape)}."
    )
  if x.shape[1] < 1:
    raise ValueError("The sequence is empty: T must be at least 1.")
  for name, array in (("mask", mask), ("resets", resets)):
    if array is not None and (
        array.shape != x.shape[:2] or array.dtype != jnp.bool_
    ):
      raise ValueError(
          f"{name} must be bool of shape {x.shape[:2]}, got {array.dtype} of"
          f" shape {array.shape}."
      )


def _l2_normalize(x: Array) -> Array:
  x = x.astype(products.at_least_float32(x.dtype))
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(square + _NORM_EPSILON)


def _rms_normalize(x: Array) -> Array:
  x = x.astype(products.at_least_float32(x.dtype))
  square = jnp.mean(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(square + _NORM_EPSILON)
