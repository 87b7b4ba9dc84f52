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
from titans_jax.models import states
from titans_jax.training import config as config_lib

Array = jax.Array


class TrainState(NamedTuple):
  """What changes from step to step.

  Attributes:
    step: optimizer steps made, int32 [].
    params: of the model.
    opt_state: of the optimizer.
    model_state: the model's state behind the last step's tokens, where the next
      step goes on from it; else None.
  """

  step: Array
  params: Any
  opt_state: Any
  model_state: Any = None


def init_params(model: language_model.TitansLM, seed: int):
  """Returns fresh parameters."""
  tokens = jnp.zeros((1, model.config.unit), jnp.int32)
  return model.init(jax.random.key(seed), tokens)["params"]


def init_state(
    model: language_model.TitansLM,
    optimizer: optax.GradientTransformation,
    seed: int,
    carried_rows: int | None = None,
) -> TrainState:
  """Returns fresh parameters and optimizer state.

  Args:
    model: the model.
    optimizer: of the run.
    seed: of the parameters.
    carried_rows: rows of the state that is carried from step to step, if it is.
  """
  params = init_params(model, seed)
  model_state = None
  if carried_rows is not None:
    model_state = model.init_state({"params": params}, batch_size=carried_rows)
  return TrainState(
      jnp.zeros((), jnp.int32), params, optimizer.init(params), model_state
  )


def abstract_state(
    model: language_model.TitansLM,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    config: parallel.ParallelConfig,
    carried_rows: int | None = None,
) -> TrainState:
  """Returns the shapes of a state, and where on the mesh its arrays live."""
  shapes = jax.eval_shape(
      functools.partial(init_state, model, optimizer, 0, carried_rows)
  )
  shardings = parallel.params_shardings(
      shapes._replace(model_state=None), mesh, config
  )._replace(model_state=parallel.state_shardings(shapes.model_state, mesh))
  return jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=sharding
      ),
      shapes,
      shardings,
  )


def create_state(
    model: language_model.TitansLM,
    optimizer: optax.GradientTransformation,
    seed: int,
    like: TrainState,
) -> TrainState:
  """Returns a fresh state, made where the arrays of `like` live."""
  shardings = jax.tree.map(lambda x: x.sharding, like)
  rows = None
  if like.model_state is not None:
    rows = states.num_rows(like.model_state)
  init = functools.partial(init_state, model, optimizer, seed, rows)
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


def _loss(params, batch, model_state, model, z_loss, write_cost=0.0):
  """Returns the loss, metrics and, if a state came in, the one behind."""
  variables = {"params": params}
  carried = None
  if model_state is not None:
    fresh = model.init_state(variables, batch_size=1)
    carried = states.carry(model_state, fresh)
  loss, metrics, behind = model.apply(
      variables,
      batch["tokens"],
      batch["targets"],
      carried,
      mask=batch["mask"],
      document_ids=batch["document_ids"],
      z_loss=z_loss,
      write_cost=write_cost,
      method="loss",
  )
  if model_state is None:
    behind = None  # What is returned is kept in memory.
  return loss, (metrics, behind)


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    *,
    model: language_model.TitansLM,
    optimizer: optax.GradientTransformation,
    accumulation: int,
    z_loss: float,
    write_cost: float = 0.0,
) -> tuple[TrainState, dict[str, Any]]:
  """Makes one optimizer step.

  Args:
    state: before it.
    batch: `tokens`, `targets`, `mask` and `document_ids`, [B, T] each.
    model: the model.
    optimizer: makes updates of gradients.
    accumulation: microbatches that the batch is cut into, one after another.
    z_loss: weight of the mean of log(Z)**2.
    write_cost: weight of the mean learning rate of the memories.

  Returns:
    The state behind the step, and metrics: `loss` (cross-entropy, nats per
    token), `accuracy`, `num_tokens`, `grad_norm`, `param_norm`, and `memory`,
    the gauges of every block.
  """
  grad_fn = jax.value_and_grad(
      functools.partial(
          _loss, model=model, z_loss=z_loss, write_cost=write_cost
      ),
      has_aux=True,
  )
  model_state = None
  if accumulation == 1:
    (_, (metrics, model_state)), grads = grad_fn(
        state.params, batch, state.model_state
    )
  else:
    if state.model_state is not None:
      raise ValueError("Microbatches cannot go on from a state of all rows.")
    grads, metrics = _accumulated(grad_fn, state.params, batch, accumulation)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = metrics | {
      "loss": metrics["cross_entropy"],
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(params),
  }
  del metrics["cross_entropy"]
  return TrainState(state.step + 1, params, opt_state, model_state), metrics


def jit_train_step(
    model: language_model.TitansLM,
    optimizer: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    z_loss: float = 0.0,
    write_cost: float = 0.0,
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
    write_cost: as in `train_step`.
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
      write_cost=write_cost,
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
    (_, (metrics, _)), grads = grad_fn(params, microbatch, None)
    count = metrics.pop("num_tokens")
    weighted = jax.tree.map(
        lambda x: x * count.astype(x.dtype), (grads, metrics)
    )
    return jax.tree.map(jnp.add, total, (*weighted, count)), None

  (_, (metrics, _)), grads = jax.eval_shape(
      grad_fn, params, jax.tree.map(lambda x: x[0], batch), None
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


@functools.partial(jax.jit, static_argnums=(0, 2))
def fresh_model_state(model: language_model.TitansLM, params: Any, rows: int):
  """Returns the state of rows that have read nothing, made where it belongs on
  the mesh of `jax.set_mesh`."""
  state = model.init_state({"params": params}, batch_size=rows)
  return parallel.constrain_state(state)


def jit_eval_step(model: language_model.TitansLM):
  """Returns (params, batch, model_state or None) -> (sums, model_state).

  The sums are over a batch's scored tokens: `nats` (of -log p), `correct` (most
  likely tokens) and `num_tokens`. The state is the one behind the batch where
  one came in (it is donated), else None.
  """

  def eval_step(params, batch, model_state):
    _, (metrics, behind) = _loss(params, batch, model_state, model, 0.0)
    count = metrics["num_tokens"]
    sums = {
        "nats": metrics["cross_entropy"] * count,
        "correct": metrics["accuracy"] * count,
        "num_tokens": count,
    }
    return sums, parallel.constrain_state(behind)

  return jax.jit(eval_step, donate_argnums=2)
