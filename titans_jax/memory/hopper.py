# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory's scan as one kernel for Hopper GPUs, of the two-layer MLP.

Mosaic GPU has no product of any shape, so this kernel is written for one network
(M(x) = x + g * LN(gelu(x W_1) W_2)) and lives beside it, not in `pallas_kernels`.
It is `chunk.step`, product by product, on the tensor cores (`wgmma`).

A block of threads owns a head. The hidden units are cut into tiles of 64; a
warpgroup owns some of them, with their rows of W_1^T, W_2 and of both momenta:
[64, D] each. Everything a hidden unit needs is then local to its warpgroup, but
for the two sums over all hidden units, f(k) and f(q); those, and what is done to
whole rows (LN, the loss, the output), are the first warpgroup's. Activations are
kept transposed, hidden units by tokens, so a tile fills a `wgmma` whatever the
chunk size.

What lies where: weights are the sum of a bfloat16 part in shared memory, which
the products take, and of what its rounding left, in registers: together 16 bits
of mantissa. Momentum is bfloat16 in shared memory: it decays, and with it what
rounding did to it. Chunks come by TMA while the last one is finished.

The backward pass is XLA's: the kernel keeps its state before every few chunks,
from which `jax.lax.scan` recomputes them in reverse.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Callable, NamedTuple

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from pallas_kernels import tuning
from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import dual
from titans_jax.memory import kept as kept_lib
from titans_jax.memory import networks

plgpu: Any
try:
  from jax.experimental.pallas import mosaic_gpu as plgpu
except ImportError:  # A jaxlib without it.
  plgpu = None

Array = jax.Array
Scan = Callable[..., Any]

# Its error at most, as a multiple of what bfloat16 products cost `jax.lax.scan`.
ROUNDING = 2

# Rows of a `wgmma`.
TILE = 64
CHUNKS = (16, 32, 64)
# Head dimensions, with four hidden units a channel.
WIDTHS = (16, 32, 48, 64)
_BARRIERS = ("a chunk came", "gradients came", "the state came", "everyone")
# Rows of the numbers per token of a chunk, in `_Chunks.tokens`.
_BETA_2, _F_2, _G_2, _N_2, _BETA_1, _F_1, _G_1, _N_1 = range(8)


class _State(NamedTuple):
  """W and S of I instances, hidden units first: leaves [I, hidden / 64, 64, D].

  Attributes:
    weights: both layers', in the products' dtype.
    momentum: both layers', likewise.
    rest: what rounding left of the weights; as a result, the first D of 64
      columns: it comes out through buffers as wide.
  """

  weights: tuple[Array, Array]
  momentum: tuple[Array, Array]
  rest: tuple[Array, Array]


class _Chunks(NamedTuple):
  """What the kernel reads, of I instances and N chunks.

  Attributes:
    keys: [I, N, b, D].
    queries: [I, N, b, D].
    errors: keys - values, [I, N, b, D].
    scores: (-G_1 * (Q K^T))^T, [I, N, b, b].
    gradients: -G_2, [I, N, b, b].
    tokens: float32 [I, N, 8, 64], a coefficient per row, a token per column.
    ends: float32 [I, N, 6], last beta, f and m of each layer.
    gain: float32 [I, D].
    zero: int32 [1].
    places: int32 [N], where the state before a chunk is kept; negative: nowhere.
  """

  keys: Array
  queries: Array
  errors: Array
  scores: Array
  gradients: Array
  tokens: Array
  ends: Array
  gain: Array
  zero: Array
  places: Array


@dataclasses.dataclass(frozen=True)
class _Shape:
  """Sizes of a scan.

  Attributes:
    instances: I, rows times heads.
    chunks: N.
    chunk: b.
    width: D.
    hidden: units between the layers.
    dtype: of the products' operands.
    keep_every: chunks between states that are kept; None: none is.
  """

  instances: int
  chunks: int
  chunk: int
  width: int
  hidden: int
  dtype: Any
  keep_every: int | None = None

  @property
  def tiles(self) -> int:
    return self.hidden // TILE

  @property
  def tiles_per_group(self) -> int:
    """Tiles that a warpgroup owns: four warpgroups would have too few registers
    each for 64 channels."""
    return 2 if self.width > 48 else 1

  @property
  def warpgroups(self) -> int:
    return self.tiles // self.tiles_per_group

  @property
  def shared_bytes(self) -> int:
    """Shared memory of its buffers, each in whole KiB, and its barriers."""
    buffers = jax.tree.leaves(_scratch(self))[: -len(_BARRIERS)]
    sizes = [math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in buffers]
    return sum(-(-size // 1024) * 1024 for size in sizes) + 8 * len(_BARRIERS)


# ------------------------------------------------------------------------------
# What it can run.


def why_not(
    options: chunk_lib.Rule,
    carry: chunk_lib.Carry,
    chunks: chunk_lib.Prepared,
    constants: chunk_lib.Constants,
) -> str | None:
  """Returns why a scan cannot run as this kernel; None: it can.

  Args:
    options: the rule.
    carry: leaves [B, H, ...], turned.
    chunks: leaves [B, H, N, ...].
    constants: what all chunks share.
  """
  return (
      why_not_device()
      or why_not_rule(options, carry, constants)
      or why_not_shape(options, chunks.keys.shape)
  )


def why_not_device() -> str | None:
  """Returns why the kernel does not run on the devices meant, or here at all."""
  if plgpu is None or not hasattr(plgpu, "InterpretGPUParams"):
    return f"the kernel for Hopper needs jax 0.11, this is {jax.__version__}"
  kind = tuning.gpu_kind()
  if kind is None or not tuning.is_hopper(kind):
    return f"the kernel is for H100 and H200, not for {kind or 'no GPU'}"
  return None


def why_not_rule(options, carry, constants) -> str | None:
  """Returns why the kernel does not know a rule, whatever its sizes."""
  net = options.net
  default = networks.MLP(expansion=getattr(net, "expansion", 4))
  if net != default:
    return f"the kernel is written for {default}, not for {net}"
  if options.max_grad_norm is not None:
    return "the kernel has no max_grad_norm"
  if carry.momentum is None:
    return "the kernel has no rule without momentum"
  if constants.initial is not None:
    return "the kernel cannot start documents inside a scan"
  return None


def why_not_shape(options, keys: tuple[int, ...]) -> str | None:
  """Returns why the kernel does not run on keys [B, H, N, b, D]."""
  chunk, width = keys[-2:]
  hidden = options.net.layer_shapes(width)[0][1]
  if options.dtype is None or jnp.dtype(options.dtype) != jnp.bfloat16:
    return "the kernel's products are of bfloat16"
  if width not in WIDTHS:
    return (
        f"the kernel takes head dimensions of {', '.join(map(str, WIDTHS))}, not"
        f" of {width}"
    )
  if hidden != 4 * width:
    return f"the kernel takes {4 * width} hidden units, not {hidden}"
  if chunk not in CHUNKS:
    return (
        f"the kernel takes chunks of {', '.join(map(str, CHUNKS))} tokens, not of"
        f" {chunk}"
    )
  return None


# ------------------------------------------------------------------------------
# The kernel.


def _columns(fn, *xs: Array):
  """Applies fn to 16 columns after the other, which frees registers as it goes."""
  size = min(16, xs[0].shape[1])
  parts = [
      fn(*(x[:, i : i + size] for x in xs))
      for i in range(0, xs[0].shape[1], size)
  ]
  if len(parts) == 1:
    return parts[0]
  return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)


def _per_row(x: Array, columns: int) -> Array:
  return jax.lax.broadcast_in_dim(x, (TILE, columns), [0])


def _per_column(x: Array) -> Array:
  return jax.lax.broadcast_in_dim(x, (TILE, x.shape[0]), [1])


def _packed(*xs: Array) -> tuple[Array, ...]:
  """Keeps the compiler from rounding a value at its use instead of here, which
  would hold it in twice the registers."""
  return tuple(jax.lax.optimization_barrier(xs))


def _load(ref, axis: int | None = None) -> Array:
  """Loads [64, n] from main memory; or what lies along an axis of such."""
  layout = plgpu.Layout.WGMMA
  if axis is not None:
    layout = layout.reduce(1 - axis)
  return plgpu.load(ref, layout=layout, optimized=False)


def _normalize(x: Array) -> tuple[Array, Array]:
  """Returns LN(x) [64, D], and one over the deviation [64]."""
  width = x.shape[1]
  x = x - _per_row(jnp.sum(x, axis=1) * (1 / width), width)
  variance = jnp.sum(x * x, axis=1) * (1 / width)
  scale = jax.lax.rsqrt(variance + networks.NORM_EPSILON)
  return x * _per_row(scale, width), scale


def _gelu(z: Array) -> Array:
  return z * networks.gelu_gate(z)


def _gelu_slope(z: Array) -> Array:
  gate = networks.gelu_gate(z)
  return gate + z * gate * (1 - gate) * networks.gelu_steepness(z)


def _split(x: Array, dtype) -> tuple[Array, Array]:
  """Returns x rounded, and what that left."""
  rounded = x.astype(dtype)
  return rounded, (x - rounded.astype(x.dtype)).astype(dtype)


class _Products:
  """Products of 64 rows, accumulated in float32.

  An operand on the left is in shared memory or in registers, one on the right in
  shared memory. GPU interpret mode has none in registers: there they are
  multiplied by JAX.
  """

  def __init__(self, interpreted: bool):
    self._interpreted = interpreted

  def __call__(self, left, right) -> Array:
    if self._interpreted and isinstance(left, jax.Array):
      return jnp.dot(left, right[...], preferred_element_type=jnp.float32)
    return self.sum([left], [right])

  def sum(self, lefts, rights) -> Array:
    """Returns the sum of products."""

    def run(accumulator):
      for left, right in zip(lefts, rights):
        plgpu.wgmma(accumulator, left, right)
      return accumulator[...]

    shape = (TILE, rights[0].shape[1])
    return pl.run_scoped(run, plgpu.ACC(shape, jnp.float32))


def _turned(ref):
  return ref.transpose((1, 0))


def _kernel(shape: _Shape, interpreted: bool, state, chunks, results, scratch):
  """What a warpgroup does for one head."""
  outputs, losses, last, *kept = results
  (weights, momentum, acts, reads, keys, queries, scores, errors, tokens), (
      chunk_came,
      gradients_came,
      state_came,
      everyone,
  ) = (scratch[:-4], scratch[-4:])
  size, width, dtype = shape.chunk, shape.width, shape.dtype
  instance, group = jax.lax.axis_index("instance"), jax.lax.axis_index("group")
  first = group * shape.tiles_per_group
  own = [first + i for i in range(shape.tiles_per_group)]
  all_tiles = range(shape.tiles)
  product = _Products(interpreted)
  is_leader = group == 0

  def leads(fn):
    pl.when(is_leader)(fn)

  def sync():
    """Waits for all warpgroups, and lets them read what this one wrote."""
    plgpu.commit_smem()
    plgpu.barrier_arrive(everyone)
    plgpu.barrier_wait(everyone)

  def zero():
    """A zero that the compiler does not know: what is computed from it, like the
    descriptors of operands, cannot be moved out of the loop over chunks, where it
    would take all registers."""
    return chunks.zero[0]

  def times_tokens(matrix, t, rows):
    z0 = zero()
    return product(matrix.at[t + z0], _turned(rows.at[z0, :size]))

  def fetch(n):
    for source, target in (
        (chunks.keys, keys),
        (chunks.queries, queries),
        (chunks.scores, scores),
        (chunks.errors, errors),
    ):
      plgpu.copy_gmem_to_smem(
          source.at[instance, n], target.at[0, :size], chunk_came
      )
    plgpu.copy_gmem_to_smem(chunks.tokens.at[instance, n], tokens, chunk_came)

  def state_pairs(other):
    refs = (*weights, *momentum), (*other.weights, *other.momentum)
    return [(a.at[t], b, t) for a, b in zip(*refs) for t in all_tiles]

  @leads
  def _():
    fetch(0)
    for here, source, t in state_pairs(state):
      plgpu.copy_gmem_to_smem(source.at[instance, t], here, state_came)

  rest = tuple(
      _packed(*(_load(layer.at[instance, t]) for layer in state.rest))
      for t in own
  )
  plgpu.barrier_wait(state_came)

  def store(target, where, rest):
    """Starts to write the state to main memory, through the hidden units' buffers
    where it is in registers; W and S have to be waited for."""
    of_layers = tuple(zip((acts, reads), target.rest))
    for t, layers in zip(own, rest):
      for layer, (here, _) in zip(layers, of_layers):
        here[t + zero(), :, :width] = layer
    plgpu.commit_smem()
    for t in own:
      for here, there in of_layers:
        plgpu.copy_smem_to_gmem(here.at[t], there.at[*where, t])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    @leads
    def _():
      for here, there, t in state_pairs(target):
        plgpu.copy_smem_to_gmem(here, there.at[*where, t])

  def update(layer, t, n, rest, changes):
    """Writes a tile's next W and S, given each one's change; returns the rest.

    W' = beta W + f S - A^T diag(g) Delta,  S' = m S - A^T diag(n) Delta.
    """
    beta, f, m = (
        chunks.ends[instance + zero(), n, 3 * layer + i] for i in range(3)
    )

    def new_weights(w, rest, s, change):
      w = w.astype(jnp.float32) + rest.astype(jnp.float32)
      return _split(beta * w + f * s.astype(jnp.float32) + change, dtype)

    def new_momentum(s, change):
      return (m * s.astype(jnp.float32) + change).astype(dtype)

    w, s = weights[layer], momentum[layer]
    t += zero()
    old = s[t]
    rounded, rest = _packed(
        *_columns(new_weights, w[t], rest, old, changes[0]())
    )
    w[t] = rounded
    s[t] = _columns(new_momentum, s[t], changes[1]())
    return rest

  def step(n, rest):
    rest = list(rest)
    plgpu.barrier_wait(chunk_came)
    if shape.keep_every is not None:
      place = chunks.places[n]
      pl.when(place >= 0)(lambda: store(kept[0], (instance, place), rest))

    # The keys' hidden units: a and its slope, which waits where the queries' a
    # will be.
    for t in own:
      z = times_tokens(weights[0], t, keys)
      t += zero()
      acts[t, :, :size], reads[t, :, :size] = _columns(
          lambda z: (_gelu(z).astype(dtype), _gelu_slope(z).astype(dtype)), z
      )
    sync()

    @leads
    def _():
      # f(k) of all tokens, the loss, and its gradient delta_2.
      z0 = zero()
      f = product.sum(
          [_turned(acts.at[t + z0]) for t in all_tiles],
          [weights[1].at[t + z0] for t in all_tiles],
      )
      y, scale = _normalize(f)
      gain = _load(chunks.gain.at[instance + zero()], 1)
      dy = _columns(
          lambda y, error, gain: 2 * (error.astype(jnp.float32) + gain * y),
          y,
          errors[zero()],
          _per_column(gain),
      )
      losses[instance, n] = 0.25 * jnp.sum(dy * dy, axis=1)
      dy = _columns(lambda dy, gain: dy * gain, dy, _per_column(gain))
      mean = jnp.sum(dy, axis=1) * (1 / width)
      along = jnp.sum(y * dy, axis=1) * (1 / width)

      def across(dy, y):
        rows = functools.partial(_per_row, columns=dy.shape[1])
        return rows(scale) * (dy - rows(mean) - y * rows(along))

      # Errors have been read: delta_2 takes their place.
      errors[zero()] = _columns(across, dy, y).astype(dtype)
      if shape.keep_every is not None:
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    sync()
    deltas = errors

    def of_tokens(row):
      return _per_column(tokens[row, :size])

    for i, t in enumerate(own):
      (delta,) = _packed(
          _columns(
              lambda x, slope: (x * slope.astype(jnp.float32)).astype(dtype),
              times_tokens(weights[1], t, deltas),
              reads[t + zero(), :, :size],
          )
      )

      x = of_tokens(_BETA_1) * times_tokens(weights[0], t, queries)
      x += of_tokens(_F_1) * times_tokens(momentum[0], t, queries)
      x += product(delta, scores.at[zero(), :size])
      reads[t + zero(), :, :size] = _columns(
          lambda x: _gelu(x).astype(dtype), x
      )

      def change(row, delta=delta):
        share = _columns(
            lambda delta, g: (delta.astype(jnp.float32) * g).astype(dtype),
            delta,
            of_tokens(row),
        )
        return product(*_packed(share), keys.at[zero(), :size])

      changes = [functools.partial(change, row) for row in (_G_1, _N_1)]
      rest[i] = update(0, t, n, rest[i][0], changes), rest[i][1]
    sync()

    @leads
    def _():
      # f(q), and the rows that the second layer's update takes.
      plgpu.copy_gmem_to_smem(
          chunks.gradients.at[instance, n],
          scores.at[0, :size],
          gradients_came,
      )

      def times(right):
        z0 = zero()
        return product.sum(
            [_turned(reads.at[t + z0]) for t in all_tiles],
            [right(t + z0) for t in all_tiles],
        )

      of_chunk = times(lambda t: acts.at[t, :, :size])
      plgpu.barrier_wait(gradients_came)
      scores[zero()] = _columns(
          lambda g, x: (g.astype(jnp.float32) * x).astype(dtype),
          scores[zero()],
          of_chunk,
      )
      plgpu.commit_smem()
      f = _per_row(tokens[_BETA_2], width) * times(lambda t: weights[1].at[t])
      f += _per_row(tokens[_F_2], width) * times(lambda t: momentum[1].at[t])
      f += product(scores.at[zero()], deltas.at[zero(), :size])
      outputs[instance, n], _ = _normalize(f)
      # The chunk's keys and queries have been read.
      for row, target in ((_G_2, keys), (_N_2, queries)):
        g = tokens[row]
        target[zero()] = _columns(
            lambda delta, g=g: (
                delta.astype(jnp.float32) * _per_row(g, delta.shape[1])
            ).astype(dtype),
            deltas[zero()],
        )

    sync()

    for i, t in enumerate(own):

      def change(scaled, t=t):
        z0 = zero()
        return product(acts.at[t + z0, :, :size], scaled.at[z0, :size])

      changes = [functools.partial(change, x) for x in (keys, queries)]
      rest[i] = rest[i][0], update(1, t, n, rest[i][1], changes)
    sync()
    pl.when(is_leader & (n + 1 < shape.chunks))(lambda: fetch(n + 1))
    return tuple(rest)

  rest = jax.lax.fori_loop(0, shape.chunks, step, rest)
  store(last, (instance,), rest)
  plgpu.wait_smem_to_gmem(0)


def _state_types(shape: _Shape, *lead: int) -> _State:
  def tiles(width):
    return jax.ShapeDtypeStruct((*lead, shape.tiles, TILE, width), shape.dtype)

  x, rest = tiles(shape.width), tiles(TILE)
  return _State((x, x), (x, x), (rest, rest))


def _scratch(shape: _Shape):
  """Returns the buffers in shared memory, and the barriers."""
  tiles, size, width = shape.tiles, shape.chunk, shape.width
  # Every product contracts or slices whole columns of this many numbers.
  columns = math.gcd(TILE, width, size)
  transforms = (
      plgpu.TilingTransform((8, columns)),
      plgpu.SwizzleTransform(2 * columns),
  )

  def buffer(*sizes):
    if shape.dtype != jnp.bfloat16:  # Interpreted.
      return plgpu.SMEM(sizes, shape.dtype)
    return plgpu.SMEM(sizes, shape.dtype, transforms=transforms)

  def barrier(arrivals):
    return plgpu.Barrier(num_arrivals=arrivals)

  layer = buffer(tiles, TILE, width)
  tokens = buffer(1, TILE, width)
  return (
      (layer, layer),  # weights
      (layer, layer),  # momentum
      buffer(tiles, TILE, TILE),  # the keys' hidden units
      buffer(tiles, TILE, TILE),  # their slopes, the queries' hidden units
      tokens,  # keys
      tokens,  # queries
      buffer(1, TILE, size),  # scores of either layer
      tokens,  # errors, delta_2
      plgpu.SMEM((8, TILE), jnp.float32),
      barrier(5),
      barrier(1),
      barrier(4 * tiles),
      barrier(shape.warpgroups),
  )


def _run(shape: _Shape, state: _State, chunks: _Chunks, interpret):
  """Returns outputs, losses, the last state and, if wanted, the states kept."""
  of_chunks = shape.instances, shape.chunks, TILE
  results: tuple[Any, ...] = (
      jax.ShapeDtypeStruct((*of_chunks, shape.width), jnp.float32),
      jax.ShapeDtypeStruct(of_chunks, jnp.float32),
      _state_types(shape, shape.instances),
  )
  if shape.keep_every is not None:
    kept = -(-shape.chunks // shape.keep_every)
    results += (_state_types(shape, shape.instances, kept),)
  scratch = _scratch(shape)
  trees = (state, chunks, results, scratch)
  counts = [len(jax.tree.leaves(tree)) for tree in trees]

  def fused_memory_scan(*refs):
    refs, parts = iter(refs), []
    for tree, count in zip(trees, counts):
      leaves = [next(refs) for _ in range(count)]
      parts.append(jax.tree.unflatten(jax.tree.structure(tree), leaves))
    _kernel(shape, bool(interpret), *parts)

  if shape.keep_every is not None:
    fused_memory_scan.__name__ += "_keeping"
  run = plgpu.kernel(
      fused_memory_scan,
      out_type=jax.tree.leaves(results),
      scratch_types=jax.tree.leaves(scratch),
      grid=(shape.instances,),
      grid_names=("instance",),
      num_threads=shape.warpgroups,
      thread_name="group",
      compiler_params=plgpu.CompilerParams(
          approx_math=True, reduction_scratch_bytes=0
      ),
      **({"interpret": interpret} if interpret else {}),
  )
  leaves = run(*jax.tree.leaves((state, chunks)))
  return jax.tree.unflatten(jax.tree.structure(results), leaves)


# ------------------------------------------------------------------------------
# What goes in and comes out.


def _pack(shape: _Shape, carry: chunk_lib.Carry) -> _State:
  """Returns a turned carry [B, H, D, hidden] as the kernel has it."""

  def rows(x):
    x = jnp.swapaxes(x, -1, -2)
    x = x.reshape(shape.instances, shape.tiles, TILE, shape.width)
    return x.astype(jnp.float32)

  (w1, w2), (s1, s2) = jax.tree.map(rows, (carry.weights, carry.momentum))
  (w1, rest1), (w2, rest2) = _split(w1, shape.dtype), _split(w2, shape.dtype)
  return _State(
      (w1, w2), (s1.astype(shape.dtype), s2.astype(shape.dtype)), (rest1, rest2)
  )


def _unpack(state: _State, lead: tuple[int, ...], like) -> chunk_lib.Carry:
  """Returns a state [I, ...] as a turned carry, leaves [*lead, D, hidden]."""

  def turned(x):
    x = x.reshape(*lead, -1, x.shape[-1])
    return jnp.swapaxes(x, -1, -2)

  whole = jax.tree.map(
      lambda w, rest: w.astype(jnp.float32)
      + rest[..., : w.shape[-1]].astype(jnp.float32),
      state.weights,
      state.rest,
  )
  carry = chunk_lib.Carry(
      jax.tree.map(turned, whole), jax.tree.map(turned, state.momentum)
  )
  return jax.tree.map(lambda x, y: x.astype(y.dtype), carry, like)


def _prepare(
    shape: _Shape, chunks: chunk_lib.Prepared, params: networks.Params
) -> _Chunks:
  """Computes what does not depend on the state, for all chunks at once: the
  kernel's time is what has to wait for it."""
  batch, heads = chunks.keys.shape[:2]
  gates: Any = chunks.gates
  first, second = gates
  lead = (shape.instances, shape.chunks)

  def flat(x):
    return x.reshape(*lead, *x.shape[3:])

  def operand(x):
    return flat(x).astype(shape.dtype)

  def row(x):  # [..., b, 1] or [..., 1, b] -> [I, N, 64]
    x = x.reshape(*lead, shape.chunk)
    return jnp.pad(x, [(0, 0), (0, 0), (0, TILE - shape.chunk)])

  keys, queries = operand(chunks.keys), operand(chunks.queries)
  scores = jnp.einsum(
      "inkd,inqd->inkq", keys, queries, preferred_element_type=jnp.float32
  )
  scores *= -jnp.swapaxes(flat(first.gradients), -1, -2)
  rows: list[Any] = [None] * 8
  rows[_BETA_2], rows[_F_2] = second.weights, second.momentum
  rows[_G_2], rows[_N_2] = -second.last_gradients, -second.momentum_gradients
  rows[_BETA_1], rows[_F_1] = first.weights, first.momentum
  rows[_G_1], rows[_N_1] = -first.last_gradients, -first.momentum_gradients
  ends = [
      x.reshape(lead)
      for c in (first, second)
      for x in (c.last_weights, c.last_momentum, c.momentum_kept)
  ]
  n, every = jnp.arange(shape.chunks, dtype=jnp.int32), shape.keep_every or 1
  gain = jnp.broadcast_to(params["gain"], (batch, heads, shape.width))
  return _Chunks(
      keys=keys,
      queries=queries,
      errors=operand(chunks.keys - chunks.values),
      scores=scores.astype(shape.dtype),
      gradients=operand(-second.gradients),
      tokens=jnp.stack([row(x) for x in rows], axis=2).astype(jnp.float32),
      ends=jnp.stack(ends, axis=-1).astype(jnp.float32),
      gain=gain.reshape(-1, shape.width).astype(jnp.float32),
      zero=jnp.zeros(1, jnp.int32),
      places=jnp.where(n % every == 0, n // every, -1),
  )


def _close(chunks: chunk_lib.Prepared) -> chunk_lib.Prepared:
  """Gives chunks that do not close the coefficients of no update."""
  if chunks.closes is None:
    return chunks

  def of_layer(c: dual.Coefficients) -> dual.Coefficients:
    def if_closed(value, otherwise):
      return jnp.where(chunks.closes, value, otherwise)

    return c._replace(
        last_weights=if_closed(c.last_weights, 1),
        last_momentum=if_closed(c.last_momentum, 0),
        last_gradients=if_closed(c.last_gradients, 0),
        momentum_kept=if_closed(c.momentum_kept, 1),
        momentum_gradients=if_closed(c.momentum_gradients, 0),
    )

  gates = [of_layer(c) for c in chunks.gates]
  return chunks._replace(gates=gates, closes=None)


def scan(
    options: chunk_lib.Rule,
    by_lax: Scan,
    carry: chunk_lib.Carry,
    chunks: chunk_lib.Prepared,
    constants: chunk_lib.Constants,
    *,
    group: int | None = None,
    interpret: Any = None,
):
  """Runs `chunk.step` over chunks; see `why_not` for what it can run.

  Args:
    options: the rule.
    by_lax: (carry, chunks, constants) -> (carry, ys), the same scan by XLA, for
      the backward pass. Keeps what its own backward pass needs.
    carry: W and S, leaves [B, H, D, hidden], turned.
    chunks: leaves [B, H, N, ...], with coefficients.
    constants: the network's slow parameters.
    group: chunks between states that are kept for the backward pass, made a
      divisor of N. None: one, or near sqrt(N) where states are many.
    interpret: `plgpu.InterpretGPUParams`; None: compiled.

  Returns:
    The carry at the end, and outputs [B, H, N, b, D] and losses [B, H, N, 1, b].
  """
  call = _Call(options, by_lax, group, interpret)
  return _scan(call, carry, _close(chunks), constants.params)


@dataclasses.dataclass(frozen=True)
class _Call:
  """What is static about a call of `scan`."""

  options: chunk_lib.Rule
  by_lax: Scan | None
  group: int | None
  interpret: Any

  def shape(self, carry, chunks, *, keep: bool) -> _Shape:
    batch, heads, steps, size, width = chunks.keys.shape
    keep_every = None
    if keep:
      sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(carry)]
      keep_every = choose_kept(steps, sum(sizes), self.group)
    return _Shape(
        instances=batch * heads,
        chunks=steps,
        chunk=size,
        width=width,
        hidden=carry.weights[0].shape[-1],
        dtype=jnp.dtype(self.options.dtype or jnp.float32),
        keep_every=keep_every,
    )


def choose_kept(steps: int, size: int, group: int | None) -> int:
  """Returns the chunks between states that are kept, a divisor of N.

  Args:
    steps: N.
    size: bytes of a state.
    group: chunks that were asked for; None: as few as memory allows.
  """
  group = kept_lib.choose_group(steps, group, size)
  return max(n for n in range(1, group + 1) if steps % n == 0)


def budget(options, carry, chunks, *, group=None) -> dict[str, int | None]:
  """Returns what a block of the kernel takes, and how often states are kept."""
  call = _Call(options, None, group, None)
  shape = call.shape(carry, chunks, keep=True)
  return {
      "threads": 128 * shape.warpgroups,
      "shared_bytes": shape.shared_bytes,
      "keep_every": shape.keep_every,
  }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(call, carry, chunks, params):
  return _forward(call, carry, chunks, params, keep=False)[:2]


def _forward(call, carry, chunks, params, *, keep):
  shape = call.shape(carry, chunks, keep=keep)
  lead = chunks.keys.shape[:3]
  outputs, losses, last, *kept = _run(
      shape,
      _pack(shape, carry),
      _prepare(shape, chunks, params),
      call.interpret,
  )
  outputs = outputs[:, :, : shape.chunk].reshape(chunks.keys.shape)
  gain = params["gain"][:, :, None, None]
  losses = losses[:, :, : shape.chunk].reshape(*lead, 1, shape.chunk)
  carry = _unpack(last, lead[:2], carry)
  return carry, (chunks.queries + gain * outputs, losses), kept


def _scan_fwd(call, carry, chunks, params):
  carry, ys, kept = _forward(call, carry, chunks, params, keep=True)
  like = jax.tree.map(lambda x: jnp.zeros((), x.dtype), carry)
  return (carry, ys), (kept[0], like, chunks, params)


def _scan_bwd(call, saved, cotangents):
  """Goes through the groups of chunks in reverse, recomputing each by XLA."""
  kept, like, chunks, params = saved
  batch, heads, steps = chunks.keys.shape[:3]
  groups = kept.rest[0].shape[1]

  def by_group(x):  # [B, H, N, ...] -> [groups, B, H, N / groups, ...]
    x = x.reshape(batch, heads, groups, steps // groups, *x.shape[3:])
    return jnp.moveaxis(x, 2, 0)

  def back(x):
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(batch, heads, steps, *x.shape[4:])

  def step(later, group):
    d_carry, d_params = later
    state, chunks, d_ys = group
    carry = _unpack(state, (batch, heads), like)
    _, vjp = jax.vjp(
        lambda carry, chunks, params: call.by_lax(
            carry, chunks, chunk_lib.Constants(params)
        ),
        carry,
        chunks,
        params,
    )
    d_carry, d_chunks, own = vjp((d_carry, d_ys))
    return (d_carry, jax.tree.map(jnp.add, d_params, own)), d_chunks

  d_last, d_ys = cotangents
  groups_of = (
      jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), kept),
      jax.tree.map(by_group, chunks),
      jax.tree.map(by_group, d_ys),
  )
  zeros = jax.tree.map(jnp.zeros_like, params)
  (d_carry, d_params), d_chunks = jax.lax.scan(
      step, (d_last, zeros), groups_of, reverse=True
  )
  return d_carry, jax.tree.map(back, d_chunks), d_params


_scan.defvjp(_scan_fwd, _scan_bwd)
