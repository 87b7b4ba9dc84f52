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


def stacked(kind: str, a: Array, parts: tuple[Array, ...], dtype) -> Array:
  """Returns one product of a with matrices laid on top of each other.

  Small ones leave part of a matrix unit empty, which together they fill.

  Args:
    kind: "ab", a [m, 2 n] times [2 n, k], or "abT", a [m, k] times [k, 2 n].
    a: the left operand.
    parts: the matrices, [n, k] each.
    dtype: of the operands.
  """
  return _stacked(kind, jnp.dtype(dtype), a, parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _stacked(kind, dtype, a, parts):
  return _contract(kind, a.astype(dtype), _stack(parts, dtype))


def _stack(parts, dtype):
  return jnp.concatenate([part.astype(dtype) for part in parts])


def _stacked_bwd(kind, dtype, operands, g):
  # The parts, not the stack, are what is kept: they are there anyway.
  a, parts = operands
  da, db = _derivatives(kind, dtype, a, _stack(parts, dtype), g)
  sizes = [part.shape[0] for part in parts]
  ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
  db = tuple(
      d.astype(part.dtype) for d, part in zip(jnp.split(db, ends), parts)
  )
  return da.astype(a.dtype), db


_stacked.defvjp(
    lambda kind, dtype, a, parts: (
        _stacked(kind, dtype, a, parts),
        (a, parts),
    ),
    _stacked_bwd,
)


def exact_tn(a: Array, b: Array, dtype=None) -> Array:
  """Returns a^T b of thin matrices to float32 precision, whatever `dtype` is.

  For bfloat16 each operand is cut into three parts of bfloat16, and the six
  products that count become one: side by side along the contracted dimension,
  which a thin matrix leaves all but empty. Derivatives are ordinary products.
  """
  if dtype is None or jnp.dtype(dtype) != jnp.bfloat16:
    return matmul_tn(a, b)
  return _exact_tn(a, b)


@jax.custom_vjp
def _exact_tn(a, b):
  a0, a1, a2 = _parts(a)
  b0, b1, b2 = _parts(b)
  return _contract(
      "aTb",
      jnp.concatenate([a0, a0, a1, a1, a0, a2]),
      jnp.concatenate([b0, b1, b0, b1, b2, b0]),
  )


def _parts(x: Array) -> list[Array]:
  """Returns three bfloat16 arrays whose sum is x to float32 precision."""
  parts = []
  for _ in range(3):
    parts.append(x.astype(jnp.bfloat16))
    x = x - parts[-1].astype(x.dtype)
  return parts


def _exact_tn_bwd(operands, g):
  return _derivatives("aTb", jnp.dtype(jnp.bfloat16), *operands, g)


_exact_tn.defvjp(lambda a, b: (_exact_tn(a, b), (a, b)), _exact_tn_bwd)


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
