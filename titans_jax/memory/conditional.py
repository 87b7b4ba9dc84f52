# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rare changes of a large state, at no cost where nothing changes."""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def change_if(
    change: Callable[..., Any], predicate: Array, old: Any, *args: Any
) -> Any:
  """Returns change(old, *args) if the predicate holds, else `old`.

  A loop that runs once or not at all: it leaves an unchanged state where it is,
  while the other branch of `jax.lax.cond` would copy it, at every token.

  Args:
    change: keeps the shapes and dtypes of `old`; closes over no traced value.
    predicate: bool [].
    old: any pytree.
    *args: of `change`.
  """

  def body(carry):
    return jnp.zeros((), bool), change(carry[1], *args)

  return jax.lax.while_loop(lambda c: c[0], body, (predicate, old))[1]


@change_if.defjvp
def _change_if_jvp(change, primals, tangents):
  def branches(predicate, old, *args):  # a loop has no reverse derivative
    return jax.lax.cond(predicate, change, lambda old, *_: old, old, *args)

  return jax.jvp(branches, primals, tangents)
