# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where tokens stand: behind the open unit, in order, each document apart."""

from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np

from titans_jax.memory import layout as layout_lib


def _expected_places(mask, starts, offset, unit):
  """Places by the definition, token by token."""
  places, place = [], offset
  for real, start in zip(mask, starts):
    if real and start:
      place = -(-place // unit) * unit
    places.append(place if real else None)
    place += bool(real)
  return places


class AlignTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=6, deadline=None)
  @hypothesis.given(
      unit=st.sampled_from([1, 3, 4]),
      units=st.integers(1, 4),
      extra=st.integers(0, 3),
      with_state=st.booleans(),
      with_documents=st.booleans(),
      seed=st.integers(0, 2**16),
  )
  def test_places(self, unit, units, extra, with_state, with_documents, seed):
    # Given padding anywhere, open units, and documents at multiples of the unit
    rng = np.random.default_rng(seed)
    length, batch = units * unit + extra, 3
    mask = rng.uniform(size=(batch, length)) < 0.7
    starts = np.zeros((batch, length), bool)
    if with_documents:
      starts[:, ::unit] = rng.uniform(size=starts[:, ::unit].shape) < 0.5
    offset = (
        rng.integers(unit, size=batch) if with_state else np.zeros(batch, int)
    )
    layout = layout_lib.align(
        (batch, length),
        unit,
        mask=jnp.array(mask),
        starts=jnp.array(starts) if with_documents else None,
        offset=jnp.array(offset, jnp.int32) if with_state else None,
        position=jnp.array(offset + 10 * unit, jnp.int32),
    )
    x = jnp.arange(1, batch * length + 1).reshape(batch, length)
    aligned = np.asarray(layout.arrange(x))
    # Then the buffer is whole units, at most one more than the tokens need
    self.assertEqual(layout.size % unit, 0)
    self.assertLessEqual(layout.size, -(-length // unit) * unit + unit)
    positions = np.asarray(layout.positions())
    next_position = np.asarray(layout.next_position(batch))
    for row in range(batch):
      places = _expected_places(
          mask[row], starts[row] & mask[row], offset[row], unit
      )
      real = [p for p in places if p is not None]
      # Then every real token stands at its place, and nothing else anywhere
      expected = np.zeros(layout.size, int)
      for token, place in enumerate(places):
        if place is not None:
          expected[place] = x[row, token]
      np.testing.assert_array_equal(aligned[row], expected)
      np.testing.assert_array_equal(
          np.flatnonzero(np.asarray(layout.mask)[row]), sorted(real)
      )
      end = max(real, default=-1) + 1 if real else offset[row]
      self.assertEqual(int(layout.end[row]), end)
      # And positions count from the document's start
      position = offset[row] + 10 * unit
      for token in range(length):
        if mask[row, token]:
          position = 0 if starts[row, token] else position
          self.assertEqual(positions[row, places[token]], position)
          position += 1
      self.assertEqual(next_position[row], position)
    # And outputs come back to where they came from
    np.testing.assert_array_equal(
        layout.restore(jnp.array(aligned)), np.where(mask, x, 0)
    )

  def test_units_close_when_full_or_followed(self):
    layout = layout_lib.align(
        (2, 6),
        3,
        mask=jnp.array([[True] * 5 + [False], [True] * 2 + [False] * 4]),
        offset=jnp.array([1, 2], jnp.int32),
    )
    np.testing.assert_array_equal(
        layout.closed(3), [[True, True, False], [True, False, False]]
    )

  def test_fresh_whole_units_are_not_touched(self):
    layout = layout_lib.align((2, 6), 3)
    self.assertEqual(layout, layout_lib.Layout(*[None] * 7, 6, 6))
    x = jnp.ones((2, 6, 4))
    self.assertIs(layout.arrange(x), x)

  def test_documents_off_the_boundaries(self):
    starts = jnp.zeros((1, 6), bool).at[0, 4].set(True)
    with self.assertRaisesRegex(ValueError, "multiples of 3 .* token 4"):
      layout_lib.align((1, 6), 3, starts=starts)
