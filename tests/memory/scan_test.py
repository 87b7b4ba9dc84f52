# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""`memory.scan` is the token-by-token rule, however a sequence is cut."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import testing
from titans_jax import memory
from titans_jax.memory import chunk as chunk_lib
from titans_jax.memory import reference
from titans_jax.memory import state as state_lib
from titans_jax.memory import tokens as tokens_lib

MLP = memory.MLP

# Every option stands in some case; depths run from 1 to 3.
CASES = {
    "depth_1_linear": (
        MLP(depth=1, residual=False, norm=False),
        {"shared": True, "forget": "none"},
    ),
    "depth_2_default": (MLP(expansion=2), {"mask": True, "resets": [(1, 8)]}),
    "depth_2_per_channel": (
        MLP(expansion=1.5, activation="silu"),
        {"forget": "channel", "max_grad_norm": 0.5},
    ),
    "depth_2_no_momentum": (
        MLP(expansion=2, activation="relu", norm=False),
        {"momentum": False, "mask": True, "gates_per_chunk": True},
    ),
    "depth_3_clipped": (
        MLP(depth=3, expansion=1, residual=False),
        {"max_grad_norm": 0.3, "resets": [(0, 4), (1, 8)]},
    ),
}
DEEPER = {
    "depth_4_held_gates": (
        MLP(depth=4, expansion=2),
        {"gates_per_chunk": True, "mask": True},
    ),
}


def _cases(*names):
  return ((name, *(CASES | DEEPER)[name]) for name in names)


def _objective(call, arguments):
  """A scalar of everything that a call returns, and that."""
  outputs, state = call(**arguments)
  weights = (state.weights, state.momentum)
  total = jnp.sum(jnp.sin(outputs)) + sum(
      jnp.sum(jnp.cos(w)) for w in jax.tree.leaves(weights)
  )
  return total, (outputs, state)


def _gradients(call, arguments):
  """Returns gradients, and what a call returns."""
  objective = functools.partial(_objective, call)
  grad = jax.grad(objective, allow_int=True, has_aux=True)
  return jax.jit(grad)(arguments)


class ScanTest(parameterized.TestCase):

  @parameterized.named_parameters(*_cases(*CASES))
  def test_equals_the_literal_rule(self, net, kwargs):
    self.check_equals_the_literal_rule(net, kwargs)

  @parameterized.named_parameters(*_cases(*DEEPER))
  @pytest.mark.exhaustive
  def test_equals_the_literal_rule_deeper(self, net, kwargs):
    self.check_equals_the_literal_rule(net, kwargs)

  def check_equals_the_literal_rule(self, net, kwargs):
    # Given random tokens, and three chunks of them, the last one open
    inputs = testing.make_inputs(net, **kwargs)
    arguments = {
        "state": inputs.state,
        "tokens": inputs.tokens,
        "params": inputs.params,
    }
    # When both run, forward and backward
    gradients, (actual, expected) = zip(
        *(
            _gradients(
                functools.partial(inputs.call, implementation), arguments
            )
            for implementation in ("xla", "reference")
        )
    )
    # Then outputs, state, weights, momentum and gradients are equal
    testing.assert_close(actual, expected, 1e-9)
    for state, other in [(actual[1], expected[1])]:
      testing.assert_close(state.weights, other.weights, 1e-9)
      testing.assert_close(state.momentum, other.momentum, 1e-9)
    testing.assert_close(*map(testing.floats, gradients), 1e-9)

  def test_state_reads_what_the_recurrence_left(self):
    # The recurrence's own W and S, not those rebuilt from the open chunk.
    inputs = testing.make_inputs(MLP(expansion=2), mask=True)
    tokens = tokens_lib.make_tokens(
        inputs.net,
        *(inputs.tokens[k] for k in ("queries", "keys", "values", "gates")),
    )
    _, carry = reference.recurrence(
        chunk_lib.Rule(inputs.net),
        inputs.state,
        tokens,
        inputs.params,
        inputs.tokens["mask"],
    )
    _, state = inputs.run()
    testing.assert_close(state.weights, carry.now.weights, 1e-9)
    testing.assert_close(state.momentum, carry.now.momentum, 1e-9)

  @parameterized.named_parameters(
      *_cases("depth_2_default", "depth_2_per_channel", "depth_2_no_momentum")
  )
  def test_split_invariance(self, net, kwargs):
    self.check_split_invariance(net, kwargs)

  @parameterized.named_parameters(*_cases(*DEEPER))
  @pytest.mark.exhaustive
  def test_split_invariance_deeper(self, net, kwargs):
    self.check_split_invariance(net, kwargs)

  def check_split_invariance(self, net, kwargs):
    # Given one sequence, in one call, and cut at random, down to one token
    inputs = testing.make_inputs(net, **kwargs)
    length = inputs.tokens["keys"].shape[1]
    outputs, state = inputs.run()
    cuts = (
        [0, 4, 5, 8, length] if kwargs.get("resets") else [0, 3, 4, 10, length]
    )
    # When the pieces are read one after another
    pieces, piecewise = [], inputs.state
    for first, last in zip(cuts[:-1], cuts[1:]):
      piece, piecewise = inputs.run(
          state=piecewise, tokens=testing.cut(inputs.tokens, first, last)
      )
      pieces.append(piece)
    # Then nothing differs
    testing.assert_close(jnp.concatenate(pieces, axis=1), outputs, 1e-10)
    testing.assert_close(*map(testing.seen, (piecewise, state)), 1e-10)

  def test_gradients_through_a_split(self):
    self.check_gradients_through_a_split("depth_2_default")

  @pytest.mark.exhaustive
  def test_gradients_through_a_split_with_gates_per_channel(self):
    self.check_gradients_through_a_split("depth_2_per_channel")

  def check_gradients_through_a_split(self, case):
    net, kwargs = CASES[case]
    inputs = testing.make_inputs(net, **kwargs)

    def split(state, tokens, params):
      # Where a chunk is open
      first, state = inputs.call(
          "xla", state, testing.cut(tokens, 0, 9), params
      )
      rest, state = inputs.call(
          "xla", state, testing.cut(tokens, 9, 11), params
      )
      return jnp.concatenate([first, rest], axis=1), state

    whole = functools.partial(inputs.call, "xla")
    arguments = {
        "state": inputs.state,
        "tokens": inputs.tokens,
        "params": inputs.params,
    }
    gradients = [
        testing.floats(_gradients(call, arguments)[0])
        for call in (whole, split)
    ]
    testing.assert_close(*gradients, 1e-9)

  def test_one_token_at_a_time(self):
    inputs = testing.make_inputs(MLP(expansion=2), mask=True, length=10)
    outputs, state = inputs.run()
    step = jax.jit(lambda state, tokens: inputs.call("xla", state, tokens))
    tokenwise, pieces = inputs.state, []
    for t in range(10):
      piece, tokenwise = step(tokenwise, testing.cut(inputs.tokens, t, t + 1))
      pieces.append(piece)
    testing.assert_close(jnp.concatenate(pieces, axis=1), outputs, 1e-10)
    testing.assert_close(*map(testing.seen, (tokenwise, state)), 1e-10)

  def test_rows_and_heads_are_apart(self):
    inputs = testing.make_inputs(MLP(expansion=2))
    before, _ = inputs.run()
    changed = dict(inputs.tokens)
    changed["keys"] = changed["keys"].at[0, 5, 1].multiply(-1)
    after, _ = inputs.run(tokens=changed)
    np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(before[0, :, 0], after[0, :, 0])
    # Causality: nothing before the token, and its own read does change.
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    self.assertGreater(np.abs(before[0, 5, 1] - after[0, 5, 1]).max(), 1e-4)

  def test_masked_tokens_change_nothing(self):
    inputs = testing.make_inputs(MLP(expansion=2), mask=True)
    outputs, state = inputs.run()
    noise = dict(inputs.tokens)
    masked = ~inputs.tokens["mask"][..., None, None]
    for name in ("queries", "keys", "values"):
      noise[name] = jnp.where(masked, 7.0, noise[name])
    other_outputs, other_state = inputs.run(tokens=noise)
    np.testing.assert_array_equal(outputs, other_outputs)
    testing.assert_close(other_state, state, 0)
    np.testing.assert_array_equal(jnp.where(masked, outputs, 0), 0)

  def test_a_document_is_the_document_alone(self):
    inputs = testing.make_inputs(MLP(expansion=2), resets=[(0, 4), (1, 8)])
    outputs, state = inputs.run()
    row = testing.cut(inputs.tokens, 8, 11)
    del row["resets"]
    alone, alone_state = inputs.run(tokens=row)
    testing.assert_close(outputs[1, 8:], alone[1], 1e-10)
    testing.assert_close(
        [w[1] for w in state.weights],
        [w[1] for w in alone_state.weights],
        1e-10,
    )

  def test_packed_tokens_are_not_moved(self):
    # The promise `packed` changes the path, not the result.
    inputs = testing.make_inputs(
        MLP(expansion=2), length=12, resets=[(0, 4), (1, 8)]
    )
    mask = jnp.ones((2, 12), bool).at[0, 3].set(False).at[1, 10:].set(False)
    inputs.tokens["mask"] = mask
    general, general_state = inputs.run()
    inputs.options["packed"] = True
    packed, packed_state = inputs.run()
    testing.assert_close(packed, general, 1e-12)
    testing.assert_close(packed_state, general_state, 1e-12)

  def test_group_size_changes_nothing(self):
    self.check_group_sizes(1, 2, 7)

  @pytest.mark.exhaustive
  def test_group_size_changes_nothing_too(self):
    self.check_group_sizes(3, 5, 100)

  def check_group_sizes(self, *groups):
    inputs = testing.make_inputs(MLP(expansion=2), length=20)

    def gradient(checkpoint_every):
      inputs.options["checkpoint_every"] = checkpoint_every

      def objective(tokens):
        return jnp.sum(jnp.sin(inputs.call(tokens=tokens)[0]))

      return jax.jit(jax.grad(objective))(inputs.tokens)

    expected = gradient(None)
    for group in groups:
      with self.subTest(group):
        testing.assert_close(gradient(group), expected, 1e-12)

  def test_bfloat16_products_stay_near(self):
    inputs = testing.make_inputs(
        MLP(expansion=4), dim=16, length=40, chunk=8, dtype=jnp.float32
    )
    exact, _ = inputs.run()
    inputs.options["dtype"] = "bfloat16"
    rounded, state = inputs.run()
    self.assertEqual(rounded.dtype, jnp.float32)
    self.assertEqual(state.weights[0].dtype, jnp.float32)
    error = jnp.sqrt(jnp.mean((rounded - exact) ** 2) / jnp.mean(exact**2))
    self.assertLess(error, 0.06)
    self.assertGreater(error, 1e-6)  # The products were rounded at all.

  @parameterized.parameters(16, 64)
  def test_one_token_ten_thousand_times(self, chunk):
    self.check_one_token_ten_thousand_times(chunk, 0.95)

  @parameterized.parameters(16, 64)
  @pytest.mark.exhaustive
  def test_one_token_ten_thousand_times_with_less_momentum(self, chunk):
    self.check_one_token_ten_thousand_times(chunk, 0.5)

  def check_one_token_ten_thousand_times(self, chunk, momentum):
    # All tokens of a chunk share one stale gradient: alike tokens add up.
    net = MLP()
    length, dim = 10_000, 32
    inputs = testing.make_inputs(
        net, batch=1, length=1, heads=1, dim=dim, chunk=chunk, dtype=jnp.float32
    )

    def repeat(x):
      return jnp.broadcast_to(x, (1, length, *x.shape[2:]))

    tokens = jax.tree.map(repeat, inputs.tokens)
    tokens["queries"] = tokens["keys"]
    shape = (1, length, 1)
    tokens["gates"] = memory.Gates(
        jnp.full(shape, 0.0025),
        jnp.full(shape, net.max_learning_rate(dim, chunk)),
        jnp.full(shape, momentum),
    )
    outputs, state = inputs.run(tokens=tokens)
    self.assertTrue(jnp.all(jnp.isfinite(outputs)))
    error = jnp.mean((outputs - tokens["values"]) ** 2)
    self.assertLess(error, jnp.mean(tokens["values"] ** 2))
    self.assertLess(jnp.linalg.norm(state.weights[0]), 1e3)


class StateTest(parameterized.TestCase):

  def test_read_changes_nothing_and_reads_the_last_weights(self):
    inputs = testing.make_inputs(MLP(expansion=2))
    outputs, state = inputs.run()
    queries = inputs.tokens["queries"][:, -1:]
    read = memory.read(inputs.net, state, queries, inputs.params)
    testing.assert_close(read, outputs[:, -1:], 1e-10)

  def test_close_chunk_keeps_the_weights(self):
    inputs = testing.make_inputs(MLP(expansion=2))
    _, state = inputs.run()
    closed = memory.close_chunk(inputs.net, state)
    testing.assert_close(closed.weights, state.weights, 1e-12)
    testing.assert_close(closed.momentum, state.momentum, 1e-12)
    np.testing.assert_array_equal(closed.count, 0)

  def test_structure_is_fixed(self):
    inputs = testing.make_inputs(MLP(expansion=2))
    _, state = inputs.run()
    self.assertEqual(
        jax.tree.structure(state), jax.tree.structure(inputs.state)
    )
    self.assertEqual(
        jax.tree.map(jnp.shape, state), jax.tree.map(jnp.shape, inputs.state)
    )

  def test_state_without_momentum_has_none(self):
    inputs = testing.make_inputs(MLP(expansion=2), momentum=False)
    _, state = inputs.run()
    self.assertIsNone(state.chunk_start.momentum)
    np.testing.assert_array_equal(state.momentum[0], 0)

  def test_state_form_can_be_fixed_from_the_start(self):
    inputs = testing.make_inputs(
        MLP(expansion=2), momentum=False, forget="channel"
    )
    start = state_lib.init_state(
        inputs.net,
        inputs.weights,
        batch_size=2,
        chunk_size=4,
        momentum=False,
        forget_per_channel=True,
    )
    _, state = inputs.run(state=start)
    self.assertEqual(jax.tree.structure(state), jax.tree.structure(start))

  def test_gate_per_token_on_a_state_with_gates_per_channel(self):
    inputs = testing.make_inputs(MLP(expansion=2))
    expected, _ = inputs.run()
    start = state_lib.init_state(
        inputs.net,
        inputs.weights,
        batch_size=2,
        chunk_size=4,
        forget_per_channel=True,
    )
    outputs, state = inputs.run(state=start)
    testing.assert_close(outputs, expected, 1e-12)
    self.assertEqual(
        jax.tree.map(jnp.shape, state.open), jax.tree.map(jnp.shape, start.open)
    )

  def test_a_chunk_closes_alike_in_one_call_and_token_by_token(self):
    # Also where products are rounded.
    inputs = testing.make_inputs(MLP(expansion=2), length=4, dtype=jnp.float32)
    inputs.options["dtype"] = "bfloat16"
    _, whole = inputs.run()
    state = inputs.state
    for t in range(4):
      token = jax.tree.map(lambda x, t=t: x[:, t : t + 1], inputs.tokens)
      _, state = inputs.run(tokens=token, state=state)
    testing.assert_close(state.weights, whole.weights, 1e-6)


class BadInputTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.inputs = testing.make_inputs(MLP(expansion=2))

  def test_shapes(self):
    tokens = dict(self.inputs.tokens)
    tokens["values"] = tokens["values"][:, :-1]
    with self.assertRaisesRegex(ValueError, r"values \(2, 10, 2, 4\)"):
      self.inputs.call(tokens=tokens)

  def test_gates(self):
    tokens = dict(self.inputs.tokens)
    tokens["gates"] = memory.Gates(None, jnp.ones((2, 11, 2, 3)), None)
    with self.assertRaisesRegex(ValueError, "gates.learning_rate"):
      self.inputs.call(tokens=tokens)

  def test_batch_of_the_state(self):
    tokens = jax.tree.map(lambda x: x[:1], self.inputs.tokens)
    with self.assertRaisesRegex(ValueError, "2 rows, but the batch has 1"):
      self.inputs.call(tokens=tokens)

  def test_documents_inside_a_chunk(self):
    tokens = dict(self.inputs.tokens)
    tokens["resets"] = jnp.zeros((2, 11), bool).at[1, 6].set(True)
    for implementation in ("xla", "reference"):
      with self.assertRaisesRegex(ValueError, "row 1 one starts at token 6"):
        self.inputs.call(implementation, tokens=tokens)

  def test_packed_tokens_with_gaps(self):
    tokens = dict(self.inputs.tokens)
    tokens["mask"] = jnp.ones((2, 11), bool).at[1, 6].set(False)
    self.inputs.options["packed"] = True
    with self.assertRaisesRegex(ValueError, "token 7 is real, token 6"):
      self.inputs.call(tokens=tokens)

  def test_momentum_without_room_for_it(self):
    inputs = testing.make_inputs(MLP(expansion=2), momentum=False)
    _, state = inputs.run()
    with self.assertRaisesRegex(ValueError, "made without"):
      self.inputs.call(state=state)

  def test_open_chunk_that_cannot_go_on(self):
    tokens = jax.tree.map(lambda x: x[:, :3], self.inputs.tokens)
    _, state = self.inputs.run(tokens=tokens)
    without = testing.make_inputs(MLP(expansion=2), momentum=False)
    with self.assertRaisesRegex(ValueError, "begun with momentum"):
      without.call(state=state)
    self.inputs.options["packed"] = True
    with self.assertRaisesRegex(ValueError, r"have \[3, 3\] tokens"):
      self.inputs.call(state=state)

  def test_tokens_wider_than_the_state(self):
    narrow = testing.make_inputs(MLP(expansion=2), dtype=jnp.float32)
    with self.assertRaisesRegex(ValueError, "float64 do not fit a state of fl"):
      self.inputs.call(state=narrow.state)

  @parameterized.parameters(
      ({"implementation": "reference", "dtype": "bfloat16"}, "as its arrays"),
      ({"implementation": "cuda"}, "implementation must be one of"),
      ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
      ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
  )
  def test_options(self, option, message):
    implementation = option.pop("implementation", "xla")
    self.inputs.options.update(option)
    with self.assertRaisesRegex(ValueError, message):
      self.inputs.call(implementation)

  @parameterized.parameters(
      ({"batch_size": 0, "chunk_size": 4}, "batch_size must be at least 1"),
      ({"batch_size": 2, "chunk_size": 0}, "chunk_size must be at least 1"),
  )
  def test_sizes_of_a_state(self, sizes, message):
    with self.assertRaisesRegex(ValueError, message):
      memory.init_state(self.inputs.net, self.inputs.weights, **sizes)

  def test_weights_of_another_network(self):
    weights = self.inputs.weights
    with self.assertRaisesRegex(ValueError, "are not those of MLP"):
      memory.init_state(MLP(expansion=3), weights, batch_size=1, chunk_size=4)
