# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Packed sequences that several steps read, one after another."""

import functools
import itertools
import pathlib

from absl.testing import parameterized
import jax
import numpy as np

import titans_jax as titans
from titans_jax import data
from titans_jax import parallel
from titans_jax.models import states
from titans_jax.training import config as config_lib
from titans_jax.training import optimizer as optimizer_lib
from titans_jax.training import step as step_lib
from titans_jax.training import tasks

_OPTIONS = dict(batch_size=2, seed=0)


class SegmentsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = titans.TitansLM(
        titans.presets.tiny(
            variant="mac",
            num_layers=1,
            dtype="float64",
            param_dtype="float64",
            vocab_size=257,
            memory=titans.memory.MLP(depth=1, residual=False),
        )
    )
    cls.optimizer = optimizer_lib.make_optimizer(
        config_lib.OptimizerConfig(learning_rate=1e-30), 10
    )
    cls.state = jax.jit(
        functools.partial(step_lib.init_state, cls.model, cls.optimizer, 0, 2)
    )()

  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path)
    rng = np.random.default_rng(0)
    for i in range(12):  # documents of all lengths
      text = rng.integers(97, 123, 40 + 25 * i).astype(np.uint8)
      (folder / f"{i:02d}.txt").write_bytes(text.tobytes())
    self.corpus = data.prepare(
        f"{folder}/*.txt",
        data.ByteTokenizer(),
        folder / "data",
        sequence_length=96,
        unit=self.model.config.unit,
    )

  def test_batches_are_the_sequences_cut(self):
    whole = tasks.TextTask(self.model, self.corpus, **_OPTIONS).batches(0)
    task = tasks.TextTask(self.model, self.corpus, segments=3, **_OPTIONS)
    parts = list(itertools.islice(task.batches(0), 9))
    for i, batch in zip(range(3), whole):
      three = parts[3 * i : 3 * i + 3]
      for name in ("tokens", "targets", "mask"):
        joined = np.concatenate([p[name] for p in three], axis=1)
        np.testing.assert_array_equal(joined, batch[name])
    # A sequence starts another document than the one before ends with.
    for before, after in ((2, 3), (5, 6)):
      self.assertNoCommonElements(
          parts[before]["document_ids"][:, -1].tolist(),
          parts[after]["document_ids"][:, 0].tolist(),
      )
    # Whichever step a run goes on with, its batch is the same.
    for first in (1, 2, 4):
      again = next(task.batches(first))
      jax.tree.map(np.testing.assert_array_equal, again, parts[first])

  def test_steps_read_what_one_step_reads(self):
    # Given a model that learns nothing
    step = step_lib.jit_train_step(self.model, self.optimizer)
    task = tasks.TextTask(self.model, self.corpus, segments=3, **_OPTIONS)
    state = jax.tree.map(lambda x: x.copy(), self.state)
    nats = []
    for batch in itertools.islice(task.batches(0), 6):
      state, metrics = step(state, batch)
      nats.append(float(metrics["loss"] * metrics["num_tokens"]))
    # Then what is predicted depends on all that was read of the sequence
    whole = tasks.TextTask(self.model, self.corpus, **_OPTIONS)
    read = step_lib.jit_eval_step(self.model)
    expected = [
        float(read(self.state.params, batch, None)[0]["nats"])
        for batch in itertools.islice(whole.batches(0), 2)
    ]
    np.testing.assert_allclose(
        np.reshape(nats, (2, 3)).sum(axis=1), expected, rtol=1e-9
    )

  def test_evaluations_are_equal(self):
    whole, parts = (
        tasks.TextTask(
            self.model, self.corpus, segments=segments, **_OPTIONS
        ).evaluate(self.state.params)
        for segments in (1, 3)
    )
    self.assertAlmostEqual(whole["eval_loss"], parts["eval_loss"], places=9)

  def test_evaluation_holds_a_state_where_it_belongs(self):
    mesh = parallel.make_mesh(
        parallel.ParallelConfig(tensor=2), jax.devices()[:4]
    )
    with jax.set_mesh(mesh):
      state = step_lib.fresh_model_state(self.model, self.state.params, 2)
      task = tasks.TextTask(self.model, self.corpus, segments=3, **_OPTIONS)
      batch = parallel.place(next(task.batches(0)), 2)
      weights = state[0].mixer.memory.memory.chunk_start.weights[0]
      _, behind = step_lib.jit_eval_step(self.model)(
          self.state.params, batch, state
      )
    after = behind[0].mixer.memory.memory.chunk_start.weights[0]
    for x in (weights, after):
      self.assertEqual(x.sharding.shard_shape(x.shape)[:2], (1, 1))

  def test_gradients_end_where_a_step_ends(self):
    def total(old, fresh):
      leaves = jax.tree.leaves(states.carry(old, fresh))
      return sum(x.sum() for x in leaves if x.dtype == np.float64)

    fresh = self.model.init_state({"params": self.state.params}, batch_size=1)
    old, new = jax.grad(total, argnums=(0, 1), allow_int=True)(
        self.state.model_state, fresh
    )
    kinds = jax.tree_util.tree_leaves_with_path(old)
    for (path, gradient), of_fresh in zip(kinds, jax.tree.leaves(new)):
      if gradient.dtype != np.float64:
        continue
      self.assertEqual(float(abs(gradient).max()), 0.0, path)
      expected = 1.0 if states.of_all_rows(path) else 0.0
      np.testing.assert_array_equal(of_fresh, expected)

  def test_bad_input(self):
    values = dict(data=config_lib.DataConfig(segments=2))
    with self.assertRaisesRegex(ValueError, "keep_every=5 must be a multiple"):
      config_lib.TrainConfig(checkpoint_every=2, keep_every=5)
    full = titans.presets.tiny(
        variant="transformer", window=None, max_length=1000
    )
    with self.assertRaisesRegex(ValueError, "segments=2 .*max_length=1000"):
      config_lib.RunConfig(full, **values)
    with self.assertRaisesRegex(ValueError, "segments must be at least 1"):
      config_lib.DataConfig(segments=0)
    with self.assertRaisesRegex(ValueError, "accumulation=2 cannot be had"):
      config_lib.RunConfig(
          self.model.config,
          train=config_lib.TrainConfig(accumulation=2),
          **values,
      )
