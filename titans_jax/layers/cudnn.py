# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Causal attention behind a prefix on NVIDIA GPUs, by cuDNN's flash attention.

`jax.nn.dot_product_attention` reaches the same kernels, but rounds the
log-sum-exps to the queries' dtype and takes none into the backward pass, which
the joint softmax over prefix and sequence needs (`joint`). So what it is made of
is called here. Where JAX has moved it, `why_not` says so.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp

from pallas_kernels import tuning
from titans_jax.layers import joint

Array = jax.Array

_fused: Any
try:
  from jax._src.cudnn import fused_attention_stablehlo as _fused  # pylint: disable=g-import-not-at-top
except ImportError:
  _fused = None

_NAMES = (
    "dot_product_attention",
    "_dot_product_attention_bwd_p_wrapper",
    "_dot_product_attention_bwd_rule",
    "MaskType",
    "AttentionLayout",
    "cuda_versions",
)
_LARGEST_HEAD = 128
_LEAST_CAPABILITY = 8.0


def why_not(
    queries: Array, parts: Sequence[tuple[Array, Array]], positions: Any
) -> str | None:
  """Returns why cuDNN is not used; None: it is.

  Args:
    queries: [B, T, H, D].
    parts: keys and values of the sequence, [B, S, H, D] each.
    positions: places of queries in their documents, or None.
  """
  head_dim = queries.shape[-1]
  if tuning.gpu_kind() is None:
    return "the program is not traced for an NVIDIA GPU"
  if not all(hasattr(_fused, name) for name in _NAMES):
    return f"jax {jax.__version__} has no cuDNN attention of the known form"
  if _fused.cuda_versions is None:
    return "cuDNN is not installed (the cuda13 extra)"
  # JAX does not ask. A GPU that is not there is one of those planned for.
  capability = getattr(jax.devices()[0], "compute_capability", "9.0")
  if float(capability) < _LEAST_CAPABILITY:
    return (
        f"cuDNN's attention needs compute capability {_LEAST_CAPABILITY}, this"
        f" is {capability}"
    )
  if queries.dtype not in (jnp.bfloat16, jnp.float16):
    return f"cuDNN's attention is of 16 bits, not of {queries.dtype}"
  if head_dim % 8 or head_dim > _LARGEST_HEAD:
    return (
        "cuDNN's attention takes head dimensions that are multiples of 8 up to"
        f" {_LARGEST_HEAD}, not {head_dim}"
    )
  if positions is not None:
    return "cuDNN's masks know no documents"
  if any(keys.shape[1] != queries.shape[1] for keys, _ in parts):
    return "cuDNN's causal mask has no room for keys in front of the queries"
  return None


def attend(
    queries: Array,
    rotated: Array,
    prefix: tuple[Array, Array],
    parts: Sequence[tuple[Array, Array]],
    positions: Array | None = None,
    *,
    window: int,
) -> Array:
  """`attention.attend_causally` by cuDNN; same arguments and results.

  Of what `why_not` has nothing to say about.
  """
  assert positions is None
  length = queries.shape[1]
  sliding = window if window < length else None
  kernels = [_Kernel(causal=True, window=sliding)] * len(parts)
  inputs = [joint.Inputs(rotated, *part) for part in parts]
  if prefix[0].shape[1]:
    rows = [
        jnp.broadcast_to(x, (queries.shape[0], *x.shape[1:])) for x in prefix
    ]
    kernels.append(_Kernel(causal=False, window=None))
    inputs.append(joint.Inputs(queries, *rows))
  return joint.attend(tuple(kernels), tuple(inputs))


class _Kernel(NamedTuple):
  """cuDNN's attention over inputs [B, T or S, H, D], of as many batch rows.

  Attributes:
    causal: whether a query sees no key behind it.
    window: keys that a query sees of a causal part; None: all.
  """

  causal: bool
  window: int | None

  def _options(self, inputs: joint.Inputs) -> dict[str, Any]:
    masks = _fused.MaskType
    return {
        "scale": inputs.queries.shape[-1] ** -0.5,
        "mask_type": masks.CAUSAL if self.causal else masks.NO_MASK,
        "sliding_window_length": self.window,
    }

  def forward(self, inputs: joint.Inputs) -> tuple[Array, Array]:
    return _fused.dot_product_attention(
        *inputs[:3], **self._options(inputs), return_residual=True
    )

  def backward(self, inputs, outputs, z, cotangent):
    none = jnp.zeros(0, inputs.queries.dtype)
    options = self._options(inputs)
    # pylint: disable=protected-access
    if (
        "score_mod"
        in inspect.signature(_fused._dot_product_attention_bwd_rule).parameters
    ):
      options["score_mod"] = None
    gradients = _fused._dot_product_attention_bwd_p_wrapper.bind(
        *inputs[:3],
        # Bias, lengths and offsets of queries and keys, tables of pages.
        *[none] * 7,
        z,
        outputs,
        cotangent,
        **options,
        seed=42,
        dropout_rate=0.0,
        variadic_args=(False, False),
        layout=_fused.AttentionLayout.BTNH.value,
    )
    return tuple(gradients[:3])

  def per_query(self, z: Array) -> Array:
    return jnp.swapaxes(z, 1, 2)[..., None]
