# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One optimizer step, and one batch of evaluation, as pure functions."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from titans_jax import parallel
from titans_jax.models import language_model
from titans_jax.models import operations
from titans_jax.training import config as config_lib

Array = jax.Array


class TrainState(NamedTuple):
  """What changes from step to step.

  Attributes:
    step: optimizer steps made, int32 [].
    params: of the model.
    opt_state: of the optimizer.
  """

  step: Array
  params: Any
  opt_state: Any


def init_params(model: language_model.TitansLM, seed: int):
  """Returns fresh parameters."""
  tokens = jnp.zeros((1, model.config.unit), jnp.int32)
  return model.init(jax.random.key(seed), tokens)["params"]


def init_state(
    model: language_model.TitansLM,
    optimizer: optax.GradientTransformation,
    seed: int,
) -> TrainState:
  """Returns fresh parameters and optimizer state."""
  params = init_params(model, seed)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract_state(
    model: language_model.TitansLM,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    config: parallel.ParallelConfig,
) -> TrainState:
  """Returns the shapes of a state, and where on the mesh its arrays live."""
  shapes = jax.eval_shape(functools.partial(init_state, model, optimizer, 0))
  return jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=sharding
      ),
      shapes,
      parallel.params_shardings(shapes, mesh, config),
  )


def create_state(
    model: language_model.TitansLM,
    optimizer: optax.GradientTransformation,
    seed: int,
    like: TrainState,
) -> TrainState:
  """Returns a fresh state, made where the arrays of `like` live."""
  shardings = jax.tree.map(lambda x: x.sharding, like)
  init = functools.partial(init_state, model, optimizer, seed)
  return jax.jit(init, out_shardings=shardings)()


def model_operations(
    run: config_lib.RunConfig, like: TrainState
) -> dict[str, float]:
  """Returns what a run's step needs by formula, as `operations.of_step`.

  Args:
    run: with the model and the batch.
    like: of `abstract_state`.
  """
  mesh = like.step.sharding.mesh
  return operations.of_step(
      run.model,
      like.params,
      run.data.batch_size,
      run.data.sequence_length,
      mesh.size // mesh.shape["tensor"],
  )


def _loss(params, batch, model, z_loss):
  loss, metrics, _ = model.apply(
      {"params": params},
      batch["tokens"],
      batch["targets"],
      mask=batch["mask"],
      document_ids=batch["document_ids"],
      z_loss=z_loss,
      method="loss",
  )
  return loss, metrics


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    *,
    model: language_model.TitansLM,
    optimizer: optax.GradientTransformation,
    accumulation: int,
    z_loss: float,
) -> tuple[TrainState, dict[str, Any]]:
  """Makes one optimizer step.

  Args:
    state: before it.
    batch: `tokens`, `targets`, `mask` and `document_ids`, [B, T] each.
    model: the model.
    optimizer: makes updates of gradients.
    accumulation: microbatches that the batch is cut into, one after another.
    z_loss: weight of the mean of log(Z)**2.

  Returns:
    The state behind the step, and metrics: `loss` (cross-entropy, nats per
    token), `accuracy`, `num_tokens`, `grad_norm`, `param_norm`, and `memory`,
    the gauges of every block.
  """
  grad_fn = jax.value_and_grad(
      functools.partial(_loss, model=model, z_loss=z_loss), has_aux=True
  )
  if accumulation == 1:
    (_, metrics), grads = grad_fn(state.params, batch)
  else:
    grads, metrics = _accumulated(grad_fn, state.params, batch, accumulation)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = metrics | {
      "loss": metrics["cross_entropy"],
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(params),
  }
  del metrics["cross_entropy"]
  return TrainState(state.step + 1, params, opt_state), metrics


def jit_train_step(
    model: language_model.TitansLM,
    optimizer: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    z_loss: float = 0.0,
    like: TrainState | None = None,
    **options,
):
  """Returns (state, batch) -> what `train_step` returns, under `jax.jit`.

  The state before the step is donated: it cannot be used any more.

  Args:
    model: the model.
    optimizer: makes updates of gradients.
    accumulation: as in `train_step`.
    z_loss: as in `train_step`.
    like: a state with the shardings that the states before and behind the step
      have; metrics are then whole on every device.
    **options: of `jax.jit`.
  """
  if like is not None:
    shardings = jax.tree.map(lambda x: x.sharding, like)
    whole = jax.sharding.NamedSharding(
        shardings.step.mesh, jax.sharding.PartitionSpec()
    )
    options["out_shardings"] = (shardings, whole)
  step = functools.partial(
      train_step,
      model=model,
      optimizer=optimizer,
      accumulation=accumulation,
      z_loss=z_loss,
  )
  return jax.jit(step, donate_argnums=0, **options)


def _accumulated(grad_fn, params, batch, accumulation):
  """Averages gradients and metrics over microbatches, by scored tokens."""
  # Every accumulation-th row, so that a microbatch has rows of every device.
  batch = jax.tree.map(
      lambda x: jnp.swapaxes(x.reshape(-1, accumulation, *x.shape[1:]), 0, 1),
      batch,
  )

  def body(total, microbatch):
    (_, metrics), grads = grad_fn(params, microbatch)
    count = metrics.pop("num_tokens")
    weighted = jax.tree.map(
        lambda x: x * count.astype(x.dtype), (grads, metrics)
    )
    return jax.tree.map(jnp.add, total, (*weighted, count)), None

  (_, metrics), grads = jax.eval_shape(
      grad_fn, params, jax.tree.map(lambda x: x[0], batch)
  )
  count = metrics.pop("num_tokens")
  zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics, count)
  )
  (grads, metrics, count), _ = jax.lax.scan(body, zeros, batch)
  grads, metrics = jax.tree.map(
      lambda x: x / jnp.maximum(count, 1).astype(x.dtype), (grads, metrics)
  )
  return grads, metrics | {"num_tokens": count}


def eval_step(
    params, batch: dict[str, Array], *, model: language_model.TitansLM
) -> dict[str, Array]:
  """Returns sums over a batch's scored tokens.

  They are `nats` (of -log p), `correct` (most likely tokens) and `num_tokens`.
  """
  _, metrics = _loss(params, batch, model, 0.0)
  count = metrics["num_tokens"]
  return {
      "nats": metrics["cross_entropy"] * count,
      "correct": metrics["accuracy"] * count,
      "num_tokens": count,
  }
