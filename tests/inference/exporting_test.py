# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""An exported model is the model; what does not fit is refused by name."""

import contextlib
import io
import json
import pathlib
import re
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from tests import tokenizers_test
import titans_jax as titans


class ExportTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / "exported"

  def make(self, **fields):
    config = titans.presets.tiny(variant="lmm", num_layers=1, **fields)
    model = titans.TitansLM(config)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(x.dtype),
        jax.eval_shape(model.init, jax.random.key(0), **model.init_inputs()),
    )
    return model, variables

  @parameterized.parameters("float32", "bfloat16")
  def test_comes_back_bit_for_bit(self, dtype):
    model, variables = self.make(param_dtype=dtype, vocab_size=257)
    matrix = variables["params"]["embedding"]
    variables["params"]["embedding"] = np.asfortranarray(matrix)
    titans.export(self.path, model, variables)
    loaded, theirs, tokenizer = titans.load(self.path)
    self.assertEqual(loaded.config, model.config)
    jax.tree.map(np.testing.assert_array_equal, theirs, variables)
    self.assertEqual(
        jax.tree.map(lambda x: x.dtype, theirs),
        jax.tree.map(lambda x: x.dtype, variables),
    )
    self.assertEqual(tokenizer.vocab_size, 257)
    card = (self.path / "README.md").read_text()
    size = sum(x.size for x in jax.tree.leaves(variables))
    self.assertIn(f"{size:,} parameters", card)
    self.assertEqual([p.name for p in self.folder.iterdir()], ["exported"])
    with self.subTest("computed otherwise"):
      other, _, _ = titans.load(self.path, implementation="xla")
      self.assertEqual(other.config.implementation, "xla")
      with self.assertRaisesRegex(ValueError, "chunk_size cannot be chosen"):
        titans.load(self.path, chunk_size=16)

  def test_the_card_s_example_runs(self):
    model, variables = self.make(vocab_size=257)
    titans.export(self.path, model, variables)
    card = (self.path / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    example = example.replace("PATH", str(self.path))
    with contextlib.redirect_stdout(io.StringIO()) as text:
      exec(example.replace("=64", "=2"), {})  # pylint: disable=exec-used
    self.assertNotEmpty(text.getvalue())

  def test_tokenizer_goes_along(self):
    path = tokenizers_test.write_tokenizer(self.folder)
    model, variables = self.make(vocab_size=400)
    titans.export(self.path, model, variables, str(path))
    shutil.move(path, self.folder / "elsewhere.json")
    _, _, tokenizer = titans.load(self.path)
    ids = tokenizer.encode(b"the cat")
    self.assertEqual(tokenizer.decode(ids), b"the cat")

  def test_bad_export(self):
    model, variables = self.make(vocab_size=256)
    with self.assertRaisesRegex(
        ValueError, "ids up to 256, but the model's vocab_size is 256"
    ):
      titans.export(self.path, model, variables)
    (self.folder / "file").touch()
    with self.assertRaisesRegex(ValueError, "is not empty"):
      titans.export(self.folder, model, variables)
    model, variables = self.make(vocab_size=257)
    del variables["params"]["embedding"]
    with self.assertRaisesRegex(ValueError, "embedding is missing, where"):
      titans.export(self.path, model, variables)
    with self.assertRaisesRegex(ValueError, "gs://b/m is in a bucket"):
      titans.export("gs://b/m", model, variables)
    self.assertFalse(self.path.exists())

  def test_bad_folder(self):
    model, variables = self.make(vocab_size=257)
    titans.export(self.path, model, variables)
    params, config = self.path / "model.safetensors", self.path / "config.json"
    whole, about = params.read_bytes(), json.loads(config.read_text())
    for damaged in (whole[:-8], whole[:100], b"", b"text"):
      params.write_bytes(damaged)
      with self.assertRaisesRegex(
          ValueError, "model.safetensors cannot be read"
      ):
        titans.load(self.path)
    params.write_bytes(whole)
    for change, message in (
        ({"model_type": "llama"}, "of the type 'llama', not 'titans_jax'"),
        ({"format_version": 2}, "version 2, .* reads version 1"),
        (
            {"model": about["model"] | {"vocab_size": 300}},
            r"embedding is \(257, 32\), where the model has \(300, 32\)",
        ),
        (
            {"model": about["model"] | {"conv_size": 0}},
            "conv/?.* is .*, where the model has none",
        ),
        ({"tokenizer": "tokenizer.json"}, "the model's tokenizer, is missing"),
        ({"model": {}}, "describes no model: KeyError"),
        ({"model": about["model"] | {"depth": 1}}, "describes no model.*depth"),
    ):
      config.write_text(json.dumps(about | change))
      with self.assertRaisesRegex(ValueError, message):
        titans.load(self.path)
    for text in ("{", "[]"):
      config.write_text(text)
      with self.assertRaisesRegex(ValueError, "config.json cannot be read"):
        titans.load(self.path)


if __name__ == "__main__":
  absltest.main()
