# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One optimizer step, and one batch of evaluation, as pure functions."""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from titans_jax import parallel
from titans_jax.models import language_model
from titans_jax.models import operations
from titans_jax.models import states
from titans_jax.training import config as config_lib

Array = jax.Array


class Model(Protocol):
  """What is asked of a Flax module that is trained.

  `apply(variables, **batch, method="loss")` returns the loss, a dictionary of
  metrics with `num_tokens` among them (what the loss is the mean over), and the
  state behind the batch, None where it has none.
  """

  def init_inputs(self) -> dict[str, Array]:
    """Returns arguments for `init`, of the smallest size."""

  init: Callable[..., Any]
  apply: Callable[..., Any]


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


def init_params(model: Model, seed: int):
  """Returns fresh parameters."""
  return _init(model, jax.random.key(seed), model.init_inputs())["params"]


# One function of all calls: shapes and values are traced once.
@functools.partial(jax.jit, static_argnums=0)
def _init(model: Model, key: Array, inputs: dict[str, Array]):
  return model.init(key, **inputs)


def init_state(
    model: Model,
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
    model: Model,
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
    model: Model,
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


def _loss(params, batch, model_state, model, z_loss=0.0, memory_cost=0.0):
  """Returns the loss, metrics and, if a state came in, the one behind."""
  variables = {"params": params}
  options = {"z_loss": z_loss, "memory_cost": memory_cost}
  # Not every model has them.
  options = {name: value for name, value in options.items() if value}
  if model_state is not None:
    fresh = model.init_state(variables, batch_size=1)
    options["state"] = states.carry(model_state, fresh)
  loss, metrics, behind = model.apply(
      variables, **batch, **options, method="loss"
  )
  # Where there are options, without what they add.
  metrics["loss"] = metrics.pop("cross_entropy", loss)
  if model_state is None:
    behind = None  # What is returned is kept in memory.
  return loss, (metrics, behind)


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    accumulation: int,
    z_loss: float,
    memory_cost: float = 0.0,
) -> tuple[TrainState, dict[str, Any]]:
  """Makes one optimizer step.

  Args:
    state: before it.
    batch: arrays [B, ...], by the names of the arguments of the model's `loss`.
    model: the model.
    optimizer: makes updates of gradients.
    accumulation: microbatches that the batch is cut into, one after another.
    z_loss: weight of the mean of log(Z)**2.
    memory_cost: weight of what the memories write and forget.

  Returns:
    The state behind the step, and metrics: those of the model's
    `loss`, and `loss` (of a language model cross-entropy, nats per token),
    `grad_norm` and `param_norm`.
  """
  grad_fn = jax.value_and_grad(
      functools.partial(
          _loss, model=model, z_loss=z_loss, memory_cost=memory_cost
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
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(params),
  }
  return TrainState(state.step + 1, params, opt_state, model_state), metrics


def jit_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    z_loss: float = 0.0,
    memory_cost: float = 0.0,
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
    memory_cost: as in `train_step`.
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
      memory_cost=memory_cost,
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
    _, (metrics, behind) = _loss(params, batch, model_state, model)
    count = metrics["num_tokens"]
    sums = {
        "nats": metrics["loss"] * count,
        "correct": metrics["accuracy"] * count,
        "num_tokens": count,
    }
    return sums, parallel.constrain_state(behind)

  return jax.jit(eval_step, donate_argnums=2)
