# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The state's five properties, through every variant of the model, in float64."""

import dataclasses
import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.memory import testing
import titans_jax as titans
from titans_jax.layers import attention
from titans_jax.models import config as config_lib
from titans_jax.models import language_model
from titans_jax.models import memory_as_context

BATCH, LENGTH, PIECE = 2, 48, 11
# Documents start at multiples of the largest unit, MAC's segment.
UNIT = 16


class Properties:
  """What holds for every variant. The programs are compiled once a class."""

  variant = ""
  overrides = {}

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    config = titans.presets.tiny(
        variant=cls.variant,
        dtype="float64",
        param_dtype="float64",
        **cls.overrides,
    )
    cls.config = config
    cls.model = model = titans.TitansLM(config)
    cls.tokens = jax.random.randint(
        jax.random.key(0), (BATCH, LENGTH), 0, config.vocab_size, jnp.int32
    )

    @jax.jit
    def init():
      variables = model.init(jax.random.key(1), cls.tokens)
      # Away from the initial values, where gains and scales are one.
      leaves, structure = jax.tree.flatten(variables)
      keys = jax.random.split(jax.random.key(2), len(leaves))
      variables = jax.tree.unflatten(
          structure,
          [
              x + 0.1 * jax.random.normal(k, x.shape, x.dtype)
              for k, x in zip(keys, leaves)
          ],
      )
      return variables, model.init_state(variables, batch_size=BATCH)

    cls.variables, cls.start = init()
    cls.all_real = jnp.ones((BATCH, LENGTH), bool)
    cls._read = staticmethod(
        jax.jit(lambda v, t, s, m: model.apply(v, t, s, mask=m))
    )
    cls._read_packed = staticmethod(
        jax.jit(
            lambda v, t, m, ids: model.apply(v, t, mask=m, document_ids=ids)
        )
    )

  def read(self, tokens, state, mask):
    return self._read(self.variables, tokens, state, mask)

  def read_pieces(self, tokens, mask, lengths):
    """Reads pieces of the given lengths, one after another."""
    pieces, state, first = [], self.start, 0
    for length in lengths:
      here = slice(first, first + length)
      piece, state = self.read(tokens[:, here], state, mask[:, here])
      pieces.append(piece)
      first += length
    self.assertEqual(first, tokens.shape[1])
    return jnp.concatenate(pieces, axis=1), state

  @functools.cached_property
  def whole(self):
    return self.read(self.tokens, self.start, self.all_real)

  def test_causality_and_independence_of_rows(self):
    logits, _ = self.whole
    for place in (5, 20, 33):
      changed = self.tokens.at[0, place].add(1) % self.config.vocab_size
      other, _ = self.read(changed, self.start, self.all_real)
      np.testing.assert_array_equal(other[0, :place], logits[0, :place])
      np.testing.assert_array_equal(other[1], logits[1])
      self.assertGreater(np.abs(other[0, place] - logits[0, place]).max(), 1e-3)
      # What was read last is still remembered at the end.
      self.assertGreater(np.abs(other[0, -1] - logits[0, -1]).max(), 1e-9)

  def test_split_invariance(self):
    logits, state = self.whole
    lengths = [PIECE, 1, PIECE, 1, PIECE, PIECE, 1, 1]
    pieces, piecewise = self.read_pieces(self.tokens, self.all_real, lengths)
    testing.assert_close(pieces, logits, 1e-9)
    testing.assert_close(*map(seen, (piecewise, state)), 1e-9)

  def test_one_token_at_a_time(self):
    logits, state = self.whole
    pieces, piecewise = self.read_pieces(
        self.tokens, self.all_real, [1] * LENGTH
    )
    testing.assert_close(pieces, logits, 1e-9)
    testing.assert_close(*map(seen, (piecewise, state)), 1e-9)

  def test_fresh_training_path_is_the_same_function(self):
    logits, state = self.whole
    ids = jnp.zeros((BATCH, LENGTH), jnp.int32)
    packed, packed_state = self._read_packed(
        self.variables, self.tokens, self.all_real, ids
    )
    testing.assert_close(packed, logits, 1e-9)
    testing.assert_close(
        [s.mixer for s in packed_state], [s.mixer for s in state], 1e-9
    )

  def test_padding_changes_nothing(self):
    # Given rows with padding anywhere, each at its own places
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, (BATCH, LENGTH))
    noise = jnp.where(mask, self.tokens, 7)
    logits, state = self.read(noise, self.start, mask)
    # When each row's real tokens are read without padding, behind a tail
    for row in range(BATCH):
      places = np.flatnonzero(mask[row])
      compact = jnp.zeros((BATCH, LENGTH), jnp.int32)
      compact = compact.at[:, : len(places)].set(self.tokens[row, places])
      tail = jnp.broadcast_to(jnp.arange(LENGTH) < len(places), mask.shape)
      alone, alone_state = self.read(compact, self.start, tail)
      # Then logits and state are the same
      testing.assert_close(logits[row, places], alone[row, : len(places)], 1e-9)
      testing.assert_close(
          select_row(state, row), select_row(alone_state, row), 1e-9
      )
    # And padding in pieces is padding
    lengths = [PIECE, 1, PIECE, 1, PIECE, PIECE, 1, 1]
    pieces, piecewise = self.read_pieces(noise, mask, lengths)
    testing.assert_close(
        pieces * mask[..., None], logits * mask[..., None], 1e-9
    )
    testing.assert_close(*map(seen, (piecewise, state)), 1e-9)

  def test_packed_documents_are_the_documents_alone(self):
    ids = jnp.zeros((BATCH, LENGTH), jnp.int32)
    ids = (
        ids.at[0, UNIT:]
        .set(1)
        .at[0, 2 * UNIT :]
        .set(2)
        .at[1, 2 * UNIT :]
        .set(5)
    )
    mask = self.all_real.at[0, UNIT - 3 : UNIT].set(False)
    mask = mask.at[1, 2 * UNIT - 5 : 2 * UNIT].set(False)
    logits, state = self._read_packed(self.variables, self.tokens, mask, ids)
    for row, first, last in (
        (0, 0, UNIT - 3),
        (0, UNIT, 2 * UNIT),
        (0, 2 * UNIT, LENGTH),
        (1, 0, 2 * UNIT - 5),
        (1, 2 * UNIT, LENGTH),
    ):
      document = jnp.zeros((BATCH, LENGTH), jnp.int32)
      document = document.at[row, : last - first].set(
          self.tokens[row, first:last]
      )
      tail = jnp.broadcast_to(jnp.arange(LENGTH) < last - first, mask.shape)
      alone, alone_state = self.read(document, self.start, tail)
      testing.assert_close(
          alone[row, : last - first], logits[row, first:last], 1e-9
      )
      if last == LENGTH:
        testing.assert_close(
            select_row([s.mixer for s in state], row),
            select_row([s.mixer for s in alone_state], row),
            1e-9,
        )

  def test_documents_over_a_split(self):
    # A document that begins in the second call, behind an open chunk.
    end = 2 * UNIT
    ids = jnp.zeros((BATCH, LENGTH), jnp.int32).at[:, UNIT:].set(1)
    mask = self.all_real.at[:, UNIT - 3 : UNIT].set(False)
    mask = mask.at[:, end:].set(False)
    logits, state = self._read_packed(self.variables, self.tokens, mask, ids)
    read = jax.jit(
        lambda t, s, m, i: self.model.apply(
            self.variables, t, s, mask=m, document_ids=i
        )
    )
    here, there = slice(0, UNIT), slice(UNIT, end)
    first, middle = read(
        self.tokens[:, here], self.start, mask[:, here], ids[:, here]
    )
    second, last = read(
        self.tokens[:, there], middle, mask[:, there], ids[:, there]
    )
    testing.assert_close(first[:, : UNIT - 3], logits[:, : UNIT - 3], 1e-9)
    testing.assert_close(second, logits[:, UNIT:end], 1e-9)
    testing.assert_close(*map(seen, (last, state)), 1e-9)
    # Its first token in a call of its own, and with padding behind it.
    alone = slice(UNIT, UNIT + 1)
    first, one = read(
        self.tokens[:, alone], middle, mask[:, alone], ids[:, alone]
    )
    testing.assert_close(first, second[:, :1], 1e-9)
    only = mask.at[:, UNIT + 1 :].set(False)
    _, padded = read(
        self.tokens[:, there], middle, only[:, there], ids[:, there]
    )
    testing.assert_close(*map(seen, (one, padded)), 1e-9)

  def test_a_call_changes_nothing_in_the_model(self):
    before = jax.tree.map(np.array, (self.variables, self.start))
    logits, _ = self.read(self.tokens, self.start, self.all_real)
    again, _ = self.read(self.tokens, self.start, self.all_real)
    np.testing.assert_array_equal(logits, again)
    jax.tree.map(
        np.testing.assert_array_equal, (self.variables, self.start), before
    )

  def test_reading_without_learning(self):
    tokens = self.tokens[:, :PIECE]
    read = jax.jit(
        lambda s: self.model.apply(
            self.variables, tokens, s, update_memory=False
        )
    )
    _, state = self.read(tokens, self.start, self.all_real[:, :PIECE])
    logits, after = read(state)
    learned, _ = self.read(tokens, state, self.all_real[:, :PIECE])
    for memory_before, memory_after in zip(memories(state), memories(after)):
      testing.assert_close(memory_after.weights, memory_before.weights, 1e-12)
      testing.assert_close(memory_after.momentum, memory_before.momentum, 1e-12)
    if memories(state):
      self.assertGreater(np.abs(logits - learned).max(), 1e-6)

  def test_loss_is_that_of_the_logits(self):
    targets = jnp.roll(self.tokens, -1, axis=1).at[:, -2:].set(-1)
    mask = jax.random.bernoulli(jax.random.key(3), 0.8, (BATCH, LENGTH))
    loss, metrics, state = jax.jit(
        lambda: self.model.apply(
            self.variables, self.tokens, targets, mask=mask, method="loss"
        )
    )()
    logits, expected_state = self.read(self.tokens, self.start, mask)
    scored = mask & (targets >= 0)
    nats = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(targets, 0)
    )
    expected = jnp.sum(nats * scored) / jnp.sum(scored)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)
    np.testing.assert_allclose(metrics["cross_entropy"], expected, rtol=1e-9)
    self.assertEqual(metrics["num_tokens"], jnp.sum(scored))
    testing.assert_close(state, expected_state, 1e-9)

  @pytest.mark.exhaustive
  def test_random_tokens_cannot_be_predicted(self):
    # Trained on uniformly random tokens, fresh at every step, a model that sees
    # the future, or another row, falls below their entropy.
    vocab, length = 8, 32
    config = dataclasses.replace(
        self.config, vocab_size=vocab, dtype="float32", param_dtype="float32"
    )
    model = titans.TitansLM(config)
    optimizer = optax.adam(1e-2)

    def draw(key):
      return jax.random.randint(key, (8, length), 0, vocab)

    def loss_fn(params, tokens):
      targets = jnp.roll(tokens, -1, axis=1).at[:, -1].set(-1)
      ids = jnp.zeros_like(tokens)
      loss, _, _ = model.apply(
          {"params": params}, tokens, targets, document_ids=ids, method="loss"
      )
      return loss

    @jax.jit
    def train(key):
      params = model.init(key, draw(key))["params"]

      def step(carry, key):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, draw(key))
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

      carry = (params, optimizer.init(params))
      return jax.lax.scan(step, carry, jax.random.split(key, 80))[1]

    losses = train(jax.random.key(0))
    self.assertTrue(np.all(np.isfinite(losses)))
    # The mean over 20 steps of 8 x 31 tokens has a deviation below 0.01.
    self.assertGreater(np.mean(losses[-20:]), np.log(vocab) - 0.02)
    self.assertLess(np.mean(losses[-20:]), np.log(vocab) + 0.2)


class LongTermMemoryTest(Properties, parameterized.TestCase):
  variant = "lmm"


class MemoryAsLayerTest(Properties, parameterized.TestCase):
  variant = "mal"


class MemoryAsGateTest(Properties, parameterized.TestCase):
  variant = "mag"


class MemoryAsContextTest(Properties, parameterized.TestCase):
  variant = "mac"


@pytest.mark.exhaustive
class ReadBeforeWriteTest(Properties, parameterized.TestCase):
  variant = "mac"
  overrides = {"read_before_write": True}

  def test_reading_without_learning(self):
    self.skipTest("The token that waits is written all the same.")


class TransformerTest(Properties, parameterized.TestCase):
  variant = "transformer"
  overrides = {"window": None}


def seen(state):
  """Returns a model's state with zeros at places that no token will see."""

  def clear(cache, position):
    def where_filled(x):
      filled = jnp.arange(x.shape[1]) < position[:, None]
      return jnp.where(filled[..., None, None], x, 0)

    return jax.tree.map(where_filled, cache)

  def clear_part(part, position):
    if isinstance(part, titans.memory.MemoryState):
      return testing.seen(part)
    if isinstance(part, attention.WindowState):
      return part._replace(ring=clear(part.ring, position))
    return part

  def clear_block(block):
    mixer = block.mixer
    if isinstance(mixer, memory_as_context.MACState):
      place = block.position % mixer.sequence.keys.shape[1]
      mixer = mixer._replace(
          recalled=clear(mixer.recalled, place),
          sequence=clear(mixer.sequence, place),
      )
    mixer = jax.tree.map(
        lambda part: clear_part(part, block.position),
        mixer,
        is_leaf=lambda x: isinstance(
            x, (titans.memory.MemoryState, attention.WindowState)
        ),
    )
    return block._replace(mixer=mixer)

  return tuple(map(clear_block, state))


def memories(state):
  """Returns the memory states within a model's state."""
  found = jax.tree.leaves(
      state, is_leaf=lambda x: isinstance(x, titans.memory.MemoryState)
  )
  return [x for x in found if isinstance(x, titans.memory.MemoryState)]


def select_row(state, row):
  """Returns a row's leaves; those that all rows share are left out."""
  return [x[row] for x in jax.tree.leaves(state) if x.shape[0] == BATCH]


class BadInputTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.model = titans.TitansLM(titans.presets.tiny(variant="transformer"))
    self.tokens = jnp.zeros((2, 8), jnp.int32)
    self.variables = jax.jit(self.model.init)(jax.random.key(0), self.tokens)

  def call(self, *args, **kwargs):
    return self.model.apply(self.variables, *args, **kwargs)

  @parameterized.parameters(256, -1)
  def test_tokens_outside_the_vocabulary(self, token):
    with self.assertRaisesRegex(ValueError, f"hold {token}, outside"):
      self.call(self.tokens.at[1, 3].set(token))
    # Padding may hold anything.
    mask = jnp.ones((2, 8), bool).at[1, 3].set(False)
    self.call(self.tokens.at[1, 3].set(token), mask=mask)

  def test_shapes(self):
    with self.assertRaisesRegex(ValueError, "integers of shape"):
      self.call(self.tokens[0])
    with self.assertRaisesRegex(ValueError, "integers of shape"):
      self.call(self.tokens.astype(jnp.float32))
    with self.assertRaisesRegex(ValueError, "mask must be bool"):
      self.call(self.tokens, mask=jnp.ones((2, 7), bool))
    with self.assertRaisesRegex(ValueError, "document_ids must be integers"):
      self.call(self.tokens, document_ids=jnp.ones((2, 7), jnp.int32))
    with self.assertRaisesRegex(ValueError, "empty"):
      self.call(self.tokens[:, :0])

  def test_state_of_another_batch(self):
    state = self.model.init_state(self.variables, batch_size=3)
    with self.assertRaisesRegex(ValueError, "3 rows, but the batch has 2"):
      self.call(self.tokens, state)
    with self.assertRaisesRegex(ValueError, "batch_size must be at least 1"):
      self.model.init_state(self.variables, batch_size=0)

  def test_state_of_another_depth(self):
    state = self.model.init_state(self.variables, batch_size=2)
    with self.assertRaisesRegex(ValueError, "1 blocks, but the model has 2"):
      self.call(self.tokens, state[:1])

  def test_full_attention_is_bounded(self):
    model = titans.TitansLM(
        titans.presets.tiny(variant="transformer", window=None, max_length=10)
    )
    apply = jax.jit(model.apply)
    _, state = apply(self.variables, self.tokens)
    with self.assertRaisesRegex(ValueError, "max_length=10 tokens, but 8 were"):
      model.apply(self.variables, self.tokens[:, :3], state)
    tokens = jnp.zeros((2, 12), jnp.int32)
    ids = jnp.zeros((2, 12), jnp.int32)
    with self.assertRaisesRegex(ValueError, "0 were read and 12 more"):
      model.apply(self.variables, tokens, document_ids=ids)
    # What is counted is a document's own, real tokens.
    model.apply(self.variables, tokens, document_ids=ids.at[:, 6:].set(1))
    mask = jnp.ones((2, 12), bool).at[:, 2:5].set(False)
    model.apply(self.variables, tokens, mask=mask)

  @parameterized.parameters(
      ({"window": 8}, "a window of 16 tokens, but this one has 8"),
      ({"variant": "mag"}, "another variant than 'mag'"),
  )
  def test_state_of_another_model(self, overrides, message):
    _, state = self.call(self.tokens)
    config = titans.presets.tiny(**{"variant": "transformer"} | overrides)
    with self.assertRaisesRegex(ValueError, message):
      titans.TitansLM(config).apply(self.variables, self.tokens, state)

  def test_state_of_another_chunk_or_segment(self):
    tokens = jnp.zeros((2, 16), jnp.int32)
    model = titans.TitansLM(titans.presets.tiny(variant="mac"))
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    state = model.init_state(variables, batch_size=2)
    for overrides, message in (
        ({"chunk_size": 4}, "chunks of 8 tokens, but the layer chunk_size=4"),
        ({"segment_length": 32}, "segments of 16 tokens, but this one has 32"),
    ):
      other = titans.TitansLM(titans.presets.tiny(variant="mac", **overrides))
      with self.assertRaisesRegex(ValueError, message):
        other.apply(variables, tokens, state)

  def test_documents_off_the_boundaries(self):
    model = titans.TitansLM(titans.presets.tiny(variant="mac"))
    ids = jnp.zeros((2, 32), jnp.int32).at[0, 8:].set(1)
    tokens = jnp.zeros((2, 32), jnp.int32)
    with self.assertRaisesRegex(ValueError, "multiples of 16 .* token 8"):
      model.init(jax.random.key(0), tokens, document_ids=ids)

  def test_targets(self):
    with self.assertRaisesRegex(ValueError, "targets hold 300, outside"):
      self.call(self.tokens, self.tokens + 300, method="loss")
    with self.assertRaisesRegex(ValueError, "differ in shape"):
      self.call(self.tokens, self.tokens[:, 1:], method="loss")


class DtypeTest(parameterized.TestCase):

  @parameterized.parameters("bfloat16", "float64")
  def test_derivative_of_logits_is_multiplied_in_the_models_dtype(self, dtype):
    rng = np.random.default_rng(0)
    hidden, matrix = (
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in ((2, 3, 4), (5, 4))
    )
    d_logits = rng.normal(size=(2, 3, 5))

    def derivative(hidden, matrix):
      logits, vjp = jax.vjp(language_model._logits, hidden, matrix)
      return vjp(jnp.asarray(d_logits, logits.dtype))

    jaxpr = jax.make_jaxpr(derivative)(hidden, matrix).jaxpr
    products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    self.assertLen(products, 2)
    for product in products:
      self.assertEqual({x.aval.dtype for x in product.invars}, {hidden.dtype})
    expected = (
        np.einsum("btv,vd->btd", d_logits, np.asarray(matrix, float)),
        np.einsum("btv,btd->vd", d_logits, np.asarray(hidden, float)),
    )
    tolerance = 1e-12 if dtype == "float64" else 0.02
    testing.assert_close(derivative(hidden, matrix), expected, tolerance)

  @parameterized.parameters(
      ("lmm", "bfloat16", True),
      ("lmm", "float64", False),
      ("mac", "bfloat16", False),
      ("mac", "float64", True),
  )
  def test_computation_in_another_dtype_than_the_parameters(
      self, variant, dtype, tie_embeddings
  ):
    config = titans.presets.tiny(
        variant=variant,
        num_layers=1,
        dtype=dtype,
        tie_embeddings=tie_embeddings,
    )
    model = titans.TitansLM(config)
    tokens = jnp.zeros((1, 17), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(leaf.dtype, jnp.float32)
    logits, state = jax.eval_shape(model.apply, variables, tokens)
    _, again = jax.eval_shape(model.apply, variables, tokens[:, :1], state)
    wide = jnp.promote_types(dtype, jnp.float32)
    self.assertEqual(logits.dtype, wide)
    self.assertEqual(memories(state)[0].chunk_start.weights[0].dtype, wide)
    self.assertEqual(
        jax.tree.map(lambda x: (x.shape, x.dtype), again),
        jax.tree.map(lambda x: (x.shape, x.dtype), state),
    )

  @parameterized.parameters("lmm", "mac")
  def test_state_keeps_its_dtypes(self, variant):
    # Given parameters of a wider dtype than the computation's
    config = titans.presets.tiny(
        variant=variant, num_layers=1, param_dtype="float64"
    )
    model = titans.TitansLM(config)
    tokens = jnp.zeros((1, 5), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    state = jax.eval_shape(
        lambda v: model.init_state(v, batch_size=1), variables
    )
    _, after = jax.eval_shape(model.apply, variables, tokens, state)
    dtypes = [jax.tree.map(lambda x: x.dtype, s) for s in (state, after)]
    self.assertEqual(*dtypes)

  def test_float64_where_jax_has_none(self):
    model = titans.TitansLM(titans.presets.tiny(dtype="float64"))
    tokens = jnp.zeros((1, 16), jnp.int32)
    with (
        jax.enable_x64(False),
        self.assertRaisesRegex(ValueError, "jax_enable_x64"),
    ):
      jax.eval_shape(model.init, jax.random.key(0), tokens)

  def test_masked_token_alone_has_the_logits_of_no_input(self):
    model = titans.TitansLM(titans.presets.tiny(variant="lmm", num_layers=1))
    tokens = jnp.ones((2, 8), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    state = jax.jit(functools.partial(model.init_state, batch_size=2))(
        variables
    )
    mask = jnp.array([[True], [False]])
    logits, _ = jax.jit(model.apply)(variables, tokens[:, :1], state, mask=mask)
    np.testing.assert_array_equal(np.any(logits, axis=(1, 2)), [True, False])


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(
      ({"variant": "mak"}, "variant must be one of"),
      ({"num_heads": 3}, "model_dim=32 is not divisible by num_heads=3"),
      ({"segment_length": 20}, "segment_length=20 is not a multiple"),
      ({"chunk_size": 0}, "chunk_size must be an integer of at least 1"),
      ({"num_layers": 1.5}, "num_layers must be an integer"),
      ({"dtype": "float16"}, "dtype must be one of"),
      ({"variant": "mag", "window": None}, "needs a window"),
      ({"model_dim": 30, "num_heads": 2}, "head_dim=15 must be even"),
      ({"max_learning_rate": -1.0}, "max_learning_rate must be positive"),
      ({"forget": "all"}, "forget must be one of"),
      ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
      ({"rope_theta": -1.0}, "rope_theta must be positive"),
      ({"memory": None}, "memory must be a memory network"),
  )
  def test_bad_values(self, override, message):
    with self.assertRaisesRegex(ValueError, message):
      titans.presets.tiny(**override)

  @parameterized.parameters(*config_lib.VARIANTS)
  def test_presets(self, variant):
    for name, heads, head_dim in (
        ("titans_170m", 16, 48),
        ("titans_340m", 16, 64),
        ("titans_760m", 16, 96),
        ("titans_1_3b", 8, 256),
        ("titans_170m_fast", 6, 128),
        ("titans_1_3b_fast", 16, 128),
    ):
      config = getattr(titans.presets, name)(variant=variant, dtype="bfloat16")
      self.assertEqual((config.num_heads, config.head_dim), (heads, head_dim))
      self.assertEqual(config.dtype, "bfloat16")
      self.assertEqual(config.chunk_size, 64 if "fast" in name else 16)
