# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generation continues what the model itself predicts."""

from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import titans_jax as titans
from titans_jax.inference import generation
from titans_jax.inference import sampling

PROMPTS = jax.random.randint(jax.random.key(0), (3, 21), 0, 256)
LENGTHS = np.array([21, 4, 13])


class GenerateTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.models = {}
    for variant in ("lmm", "mac"):
      model = titans.TitansLM(
          titans.presets.tiny(
              variant=variant,
              dtype="float64",
              param_dtype="float64",
              memory=titans.memory.MLP(depth=1, residual=False),
          )
      )
      variables = jax.jit(model.init)(jax.random.key(1), PROMPTS)
      cls.models[variant] = model, variables

  def generate(self, variant, prompts=PROMPTS, **kwargs):
    model, variables = self.models[variant]
    kwargs = {"max_new_tokens": 9, "temperature": 0} | kwargs
    return np.asarray(titans.generate(model, variables, prompts, **kwargs))

  @parameterized.parameters("lmm", "mac")
  def test_greedy_is_the_argmax_of_the_whole_sequence(self, variant):
    model, variables = self.models[variant]
    new = self.generate(variant)
    whole = jnp.concatenate([PROMPTS, new], axis=1)
    logits, _ = jax.jit(model.apply)(variables, whole)
    expected = jnp.argmax(logits[:, PROMPTS.shape[1] - 1 : -1], axis=-1)
    np.testing.assert_array_equal(new, expected)

  @parameterized.parameters(("lmm", 2), ("mac", 1), ("mac", 2))
  def test_ragged_prompts_are_the_prompts_alone(self, variant, row):
    together = self.generate(variant, lengths=LENGTHS)
    alone = self.generate(variant, PROMPTS[row : row + 1, : LENGTHS[row]])
    np.testing.assert_array_equal(together[row], alone[0])
    # The first fills its row, as all do in a call without lengths.
    np.testing.assert_array_equal(together[0], self.generate(variant)[0])

  def test_prefill_in_pieces_is_prefill(self):
    # Prompts longer than the window and than a piece are read in full.
    whole = self.generate("mac", lengths=LENGTHS)
    with mock.patch.object(generation, "_PIECE", 8):
      pieces = self.generate("mac", lengths=LENGTHS)
    np.testing.assert_array_equal(pieces, whole)

  def test_short_prompts_read_token_by_token_are_read_alike(self):
    with mock.patch.object(generation, "_SHORT", 0):
      whole = self.generate("mac", lengths=LENGTHS)
    with mock.patch.object(generation, "_SHORT", 2):
      tokens = self.generate("mac", lengths=LENGTHS)
    np.testing.assert_array_equal(tokens, whole)

  def test_goes_on_from_a_state(self):
    model, variables = self.models["lmm"]
    _, state = jax.jit(model.apply)(variables, PROMPTS[:, :10])
    before = jax.tree.map(np.array, state)
    new = self.generate("lmm", PROMPTS[:, 10:], state=state)
    np.testing.assert_array_equal(new, self.generate("lmm"))
    # The state is the caller's, and is not consumed.
    jax.tree.map(np.testing.assert_array_equal, state, before)

  def test_stop_token_ends_a_row(self):
    free = self.generate("lmm")
    stop = int(free[0, 3])
    stopped = self.generate("lmm", stop_token=stop)
    for row, expected in zip(stopped, free):
      places = np.flatnonzero(expected == stop)
      end = places[0] if places.size else len(expected)
      np.testing.assert_array_equal(row[:end], expected[:end])
      np.testing.assert_array_equal(row[end:], stop)

  @parameterized.parameters(
      {"temperature": 0}, {"temperature": 1.3, "top_k": 20, "top_p": 0.9}
  )
  def test_stream_yields_what_generate_returns(self, **options):
    model, variables = self.models["lmm"]
    rng = jax.random.key(7)
    stream = titans.stream(
        model,
        variables,
        PROMPTS,
        lengths=LENGTHS,
        max_new_tokens=9,
        rng=rng,
        **options,
    )
    expected = self.generate("lmm", lengths=LENGTHS, rng=rng, **options)
    np.testing.assert_array_equal(np.stack(list(stream), axis=1), expected)

  def test_seed_decides(self):
    options = {"temperature": 1.0, "lengths": LENGTHS}
    first, again, other = (
        self.generate("lmm", rng=jax.random.key(seed), **options)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    self.assertFalse(np.array_equal(first, other))

  @parameterized.parameters(
      ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
      ({"temperature": -1}, "temperature must be at least 0"),
      ({"temperature": 1.0}, "Sampling needs a key"),
      ({"top_k": 0}, "top_k must be at least 1"),
      ({"top_p": 0.0}, "top_p must lie in"),
      ({"lengths": np.array([21, 0, 3])}, "lengths must lie between 1 and 21"),
      ({"lengths": np.array([21, 3])}, "lengths must have shape"),
      ({"prompts": jnp.zeros((2, 0), jnp.int32)}, "prompts must have shape"),
      ({"prompts": jnp.full((2, 4), 999)}, "hold 999, outside the vocabulary"),
  )
  def test_bad_input(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      self.generate("lmm", **options)

  def test_state_of_another_batch(self):
    model, variables = self.models["lmm"]
    state = model.init_state(variables, batch_size=2)
    with self.assertRaisesRegex(ValueError, "2 rows, but the batch has 3"):
      self.generate("lmm", state=state)

  def test_prompt_longer_than_full_attention_holds(self):
    model = titans.TitansLM(
        titans.presets.tiny(variant="transformer", window=None, max_length=25)
    )
    variables = jax.jit(model.init)(jax.random.key(1), PROMPTS)
    with self.assertRaisesRegex(ValueError, "max_length=25 .* 29 more"):
      titans.generate(
          model, variables, PROMPTS, max_new_tokens=9, temperature=0
      )


class SamplingTest(parameterized.TestCase):

  def draw(self, count=400, **options):
    logits = jnp.log(jnp.array([[0.05, 0.4, 0.15, 0.3, 0.1]]))
    options = {"temperature": 1.0, "top_k": None, "top_p": None} | options
    keys = jax.random.split(jax.random.key(0), count)
    tokens = jax.vmap(lambda k: sampling.sample(k, logits, **options)[0])(keys)
    return np.bincount(tokens, minlength=5) / count

  def test_temperature(self):
    np.testing.assert_allclose(
        self.draw(4000), [0.05, 0.4, 0.15, 0.3, 0.1], atol=0.04
    )
    self.assertGreater(self.draw(temperature=0.2)[1], 0.7)
    self.assertEqual(self.draw(temperature=0)[1], 1)

  def test_top_k(self):
    np.testing.assert_array_equal(
        self.draw(top_k=2) > 0, [False, True, False, True, False]
    )

  @parameterized.parameters((0.4, 1), (0.41, 2), (0.71, 3), (1.0, 5))
  def test_top_p_keeps_the_smallest_set(self, top_p, count):
    self.assertEqual((self.draw(top_p=top_p) > 0).sum(), count)
