# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Known learning rules as cases of the memory's (v1 section 3.1, appendix C).

Each function returns what `memory.init_state` and `memory.scan` take::

    case = special_cases.gated_delta_rule(values, alpha, beta)
    state = memory.init_state(case.net, weights, batch_size=B,
                              chunk_size=case.chunk_size, momentum=False)
    outputs, state = memory.scan(case.net, state, queries, keys, case.values,
                                 case.gates)

The rule takes its gradient at the weights of the chunk's start; the delta rules,
whose gradient is at the weights of the token before, are chunks of one token.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from titans_jax.memory import networks
from titans_jax.memory import tokens as tokens_lib

Array = jax.Array

LINEAR = networks.MLP(depth=1, residual=False, norm=False)


class SpecialCase(NamedTuple):
  """A rule in the memory's terms.

  Attributes:
    net: the memory network.
    chunk_size: tokens whose gradients are taken at the same weights.
    values: to be written, [B, T, H, D].
    gates: alpha, theta and eta.
  """

  net: networks.MLP
  chunk_size: int
  values: Array
  gates: tokens_lib.Gates


def delta_rule(values: Array, beta: Array) -> SpecialCase:
  """DeltaNet's rule: W_t = W_{t-1} + beta_t k_t^T (v_t - k_t W_{t-1}).

  Args:
    values: v, [B, T, H, D].
    beta: [B, T, H].
  """
  return SpecialCase(LINEAR, 1, values, _gates(beta / 2))


def gated_delta_rule(values: Array, alpha: Array, beta: Array) -> SpecialCase:
  """Gated DeltaNet's: W_t = alpha_t (I - beta_t k_t^T k_t) W_{t-1}
  + beta_t k_t^T v_t.

  It forgets before it looks for the error, the memory at the same time: the
  same with a rate of alpha * beta / 2 and values of v / alpha.

  Args:
    values: v, [B, T, H, D].
    alpha: what is kept, above 0, [B, T, H].
    beta: [B, T, H].
  """
  return SpecialCase(
      LINEAR,
      1,
      values / alpha[..., None],
      _gates(alpha * beta / 2, forget=1 - alpha),
  )


def ttt_linear(values: Array, rate: Array, chunk_size: int = 16) -> SpecialCase:
  """TTT-Linear's: a gradient step on |k + LN(k W) - v|^2 / 2 at the weights of
  the mini-batch's start.

  Args:
    values: v, [B, T, H, D]. (Its authors have v - k as target of LN(k W).)
    rate: the inner learning rate, [B, T, H].
    chunk_size: tokens of a mini-batch.
  """
  return SpecialCase(
      networks.MLP(depth=1), chunk_size, values, _gates(rate / 2)
  )


def ttt_mlp(values: Array, rate: Array, chunk_size: int = 16) -> SpecialCase:
  """TTT-MLP's: the same with two layers, without their biases.

  Args:
    values: v, [B, T, H, D].
    rate: the inner learning rate, [B, T, H].
    chunk_size: tokens of a mini-batch.
  """
  return SpecialCase(
      networks.MLP(depth=2), chunk_size, values, _gates(rate / 2)
  )


def _gates(rate: Array, forget: Array | None = None) -> tokens_lib.Gates:
  return tokens_lib.Gates(forget=forget, learning_rate=rate, momentum=None)
