# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Matrix products in a compute dtype with at least float32 accumulation.

The rule differentiates its products twice (the inner gradient, then the outer
one). JAX's own transpose of a mixed product would multiply a float32 cotangent
with a bfloat16 operand, off the matrix unit's fast path. The three products
below are closed under transposition, so every derivative of every order is
again one of them, with both operands in the compute dtype.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

Array = jax.Array

_CONTRACTIONS = {"ab": (1, 0), "abT": (1, 1), "aTb": (0, 0)}


def check_dtype(dtype) -> None:
  """Raises ValueError for float64 where JAX has it switched off."""
  if jnp.dtype(dtype) == jnp.float64 and not jax.config.jax_enable_x64:
    raise ValueError(
        "dtype float64 needs jax.config.update('jax_enable_x64', True) before"
        " anything is computed."
    )


def at_least_float32(dtype):
  """Returns the dtype that state, gates and accumulators are kept in."""
  return jnp.promote_types(dtype, jnp.float32)


def matmul(a: Array, b: Array, dtype=None) -> Array:
  """Returns a b for matrices; operands are cast to `dtype` unless it is None."""
  return _product("ab", a, b, dtype)


def matmul_nt(a: Array, b: Array, dtype=None) -> Array:
  """Returns a b^T."""
  return _product("abT", a, b, dtype)


def matmul_tn(a: Array, b: Array, dtype=None) -> Array:
  """Returns a^T b."""
  return _product("aTb", a, b, dtype)


def _product(kind: str, a: Array, b: Array, dtype) -> Array:
  if dtype is None or jnp.promote_types(a.dtype, b.dtype) == dtype:
    return _contract(kind, a, b)
  return _cast_product(kind, jnp.dtype(dtype), a, b)


def _contract(kind: str, a: Array, b: Array) -> Array:
  left, right = _CONTRACTIONS[kind]
  dtype = jnp.promote_types(a.dtype, b.dtype)
  return jax.lax.dot_general(
      a,
      b,
      (((left,), (right,)), ((), ())),
      # A TPU would multiply float32 as bfloat16 unless told otherwise.
      precision="highest" if dtype == jnp.float32 else None,
      preferred_element_type=at_least_float32(dtype),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cast_product(kind, dtype, a, b):
  return _contract(kind, a.astype(dtype), b.astype(dtype))


def _cast_product_fwd(kind, dtype, a, b):
  return _cast_product(kind, dtype, a, b), (a, b)


def _cast_product_bwd(kind, dtype, operands, g):
  a, b = operands
  da, db = _derivatives(kind, dtype, a, b, g)
  return da.astype(a.dtype), db.astype(b.dtype)


def _derivatives(kind, dtype, a, b, g) -> tuple[Array, Array]:
  """Returns the cotangents of a product's operands, as products accumulate."""
  product = functools.partial(_product, dtype=dtype)
  if kind == "ab":
    if b.shape[0] < a.shape[0]:
      # The longer side along lanes, which a short one would leave empty.
      da = product("abT", a=b, b=g).T
    else:
      da = product("abT", a=g, b=b)
    return da, product("aTb", a=a, b=g)
  if kind == "abT":
    return product("ab", a=g, b=b), product("aTb", a=g, b=a)
  return product("abT", a=b, b=g), product("ab", a=a, b=g)


_cast_product.defvjp(_cast_product_fwd, _cast_product_bwd)
