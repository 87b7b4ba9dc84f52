# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of states, and states in files."""

import pathlib
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import titans_jax as titans
from titans_jax.inference import saved_states
from titans_jax.models import config as model_config


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


class RowsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = titans.TitansLM(
        titans.presets.tiny(variant="mag", num_layers=1)
    )
    tokens = jax.random.randint(jax.random.key(0), (3, 5), 0, 256)
    cls.variables = jax.jit(cls.model.init)(jax.random.key(1), tokens)
    cls.read = staticmethod(jax.jit(cls.model.apply))
    init = jax.jit(
        lambda variables: cls.model.init_state(variables, batch_size=1)
    )
    cls.fresh = init(cls.variables)
    start = titans.select_rows(cls.fresh, [0, 0, 0])
    _, cls.state = cls.read(cls.variables, tokens, start)

  def test_rows_taken_apart_are_the_whole(self):
    parts = [titans.select_rows(self.state, [i]) for i in (2, 0, 1)]
    again = titans.select_rows(titans.merge_rows(parts), np.array([1, 2, 0]))
    _equal(again, self.state)

  def test_beams_read_on_as_their_row_does(self):
    tokens = jax.random.randint(jax.random.key(2), (3, 5), 0, 256)
    whole, _ = self.read(self.variables, tokens, self.state)
    beams = titans.select_rows(self.state, [1, 1])
    beams = titans.merge_rows([beams, titans.select_rows(self.state, [0])])
    logits, _ = self.read(self.variables, tokens[jnp.array([1, 1, 0])], beams)
    np.testing.assert_allclose(
        logits, whole[jnp.array([1, 1, 0])], rtol=1e-5, atol=1e-5
    )

  def test_reset_rows_have_read_nothing(self):
    tokens = jax.random.randint(jax.random.key(2), (3, 5), 0, 256)
    state = titans.reset_rows(
        self.state, jnp.array([False, True, False]), self.fresh
    )
    logits, _ = self.read(self.variables, tokens, state)
    kept, _ = self.read(self.variables, tokens, self.state)
    new, _ = self.read(
        self.variables, tokens, titans.select_rows(self.fresh, [0, 0, 0])
    )
    for row, expected in enumerate((kept, new, kept)):
      np.testing.assert_allclose(
          logits[row], expected[row], rtol=1e-5, atol=1e-5
      )

  def test_size_does_not_depend_on_what_was_read(self):
    one = titans.size_in_bytes(self.fresh)
    three = titans.size_in_bytes(self.state)
    self.assertBetween(three, one, 3 * one)
    _, longer = self.read(
        self.variables, jnp.zeros((3, 5), jnp.int32), self.state
    )
    self.assertEqual(titans.size_in_bytes(longer), three)

  @parameterized.parameters(
      ([3], "must lie between 0 and 2"),
      ([-1], "must lie between 0 and 2"),
      ([], "must be a list of integers"),
      ([0.5], "must be a list of integers"),
  )
  def test_rows_that_are_not_there(self, rows, message):
    with self.assertRaisesRegex(ValueError, message):
      titans.select_rows(self.state, rows)

  def test_states_that_do_not_fit(self):
    with self.assertRaisesRegex(ValueError, "no state to merge"):
      titans.merge_rows([])
    with self.assertRaisesRegex(ValueError, "models of different forms"):
      titans.merge_rows([self.state, self.state[0].mixer])
    with self.assertRaisesRegex(ValueError, r"rows must be bool \[3\]"):
      titans.reset_rows(self.state, jnp.zeros(2, bool), self.fresh)


class SavedStateTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / "state"

  def make(self, variant="lmm", seed=0, **overrides):
    """Returns a model, and parameters and a state of two rows, both random."""
    overrides = {"num_layers": 1, "dtype": "bfloat16"} | overrides
    model = titans.TitansLM(titans.presets.tiny(variant=variant, **overrides))
    rng = np.random.default_rng(seed)

    def random(x):
      return jnp.asarray(rng.normal(size=x.shape) * 10, x.dtype)

    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32), jnp.int32))
    )
    state = jax.eval_shape(lambda v: model.init_state(v, batch_size=2), shapes)
    return model, jax.tree.map(random, shapes), jax.tree.map(random, state)

  @parameterized.parameters(*model_config.VARIANTS)
  def test_is_the_same_behind_the_file(self, variant):
    model, variables, state = self.make(variant)
    titans.save_state(self.path, state, model, variables)
    again = titans.load_state(self.path, model, variables)
    self.assertEqual(jax.tree.structure(again), jax.tree.structure(state))
    _equal(again, state)
    self.assertLen(list(self.path.parent.iterdir()), 1)

  def test_bad_input(self):
    model, variables, state = self.make()
    titans.save_state(self.path, state, model, variables)
    whole = self.path.read_bytes()
    other, theirs, _ = self.make(chunk_size=4)
    with self.assertRaisesRegex(ValueError, "its chunk_size is .* model's 4"):
      titans.load_state(self.path, other, theirs)
    _, theirs, _ = self.make(seed=1)
    with self.assertRaisesRegex(ValueError, "with other parameters"):
      titans.load_state(self.path, model, theirs)
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", b"text"):
      self.path.write_bytes(damaged)
      with self.assertRaisesRegex(ValueError, "is no whole state"):
        titans.load_state(self.path, model, variables)
    with self.assertRaisesRegex(ValueError, "is no whole state.*No such file"):
      titans.load_state(self.path.with_name("none"), model, variables)
    self.path.write_bytes(whole)
    with (
        mock.patch.object(saved_states, "_VERSION", 2),
        self.assertRaisesRegex(ValueError, "version 1, .* reads version 2"),
    ):
      titans.load_state(self.path, model, variables)
