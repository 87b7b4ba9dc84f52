# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Labelled DNA in every form that is read, and files that are wrong."""

import pathlib

from absl.testing import parameterized
import numpy as np

from titans_jax.data import genomes


def write_classes(folder, classes):
  """Writes GenomicBenchmarks' form: a folder a class, a file a sequence."""
  for name, sequences in classes.items():
    (folder / name).mkdir(parents=True)
    for i, sequence in enumerate(sequences):
      (folder / name / f"{i}.txt").write_text(sequence)
  return folder


class GenomesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_every_form_is_the_same_set(self):
    classes = {"negative": ["ACGTN", "ttag"], "positive": ["GGRA"]}
    folder = write_classes(self.folder / "folder", classes)
    fasta = self.folder / "fasta"
    for name, sequences in classes.items():
      (fasta / name).mkdir(parents=True)
      records = (
          f">{i} A>G of {name}\n{s[:3]}\n{s[3:]}\n"
          for i, s in enumerate(sequences)
      )
      (fasta / name / "all.fa").write_text("".join(records))
    table = self.folder / "table.csv"
    rows = [f"{s},{name}" for name, ss in classes.items() for s in ss]
    table.write_text("sequence,label\n" + "\n".join(rows) + "\n")
    found = [genomes.read(path) for path in (folder, fasta, table)]
    self.assertEqual(found[0].classes, ("negative", "positive"))
    np.testing.assert_array_equal(found[0].labels, [0, 0, 1])
    # N, and what is one of several bases, share a token.
    for tokens, expected in zip(
        found[0].tokens, ([0, 1, 2, 3, 4], [3, 3, 0, 2], [2, 2, 4, 0])
    ):
      np.testing.assert_array_equal(tokens, expected)
    self.assertLen({s.fingerprint for s in found}, 1)

  def test_reverse_complement(self):
    tokens = genomes.encode("AACGTN", "here")
    other = genomes.reverse_complement(tokens)
    np.testing.assert_array_equal(other, genomes.encode("NACGTT", "here"))
    np.testing.assert_array_equal(genomes.reverse_complement(other), tokens)

  def test_bad_sets(self):
    with self.assertRaisesRegex(ValueError, "--data: there is no /nowhere"):
      genomes.read("/nowhere")
    folder = write_classes(self.folder / "one", {"only": ["ACGT"]})
    with self.assertRaisesRegex(ValueError, "has 1 classes"):
      genomes.read(folder)
    (folder / "empty").mkdir()
    with self.assertRaisesRegex(ValueError, "empty holds no file"):
      genomes.read(folder)
    (folder / "empty" / ".hidden").write_text("no bases")
    (folder / "empty" / "a.fa").write_text("ACGT\n")
    with self.assertRaisesRegex(ValueError, "a.fa holds no record"):
      genomes.read(folder)
    for i, (text, message) in enumerate(
        (
            ("AC5T", r"0\.txt: '5' at base 3 is none of ACGTN"),
            (" \n", "the sequence is empty"),
            ("ACÜT", "'Ã' at base 3|'Ü' at base 3"),
        )
    ):
      folder = write_classes(
          self.folder / f"bad{i}", {"a": [text], "b": ["ACGT"]}
      )
      with self.assertRaisesRegex(ValueError, message):
        genomes.read(folder)

  @parameterized.parameters(
      ("bases,label\nACGT,1\n", r"has the columns \['bases', 'label'\]"),
      ("sequence,label\nACGT\n", "line 2: a sequence and a label"),
      ("sequence,label\nAC-T,1\n", "line 2: '-' at base 3"),
      ("sequence,label\nACGT,1\n", "has 1 classes"),
      ("sequence,label\nAC\u03b2T,1\n", "line 2: '\u03b2' at base 3"),
  )
  def test_bad_tables(self, text, message):
    path = self.folder / "table.csv"
    path.write_text(text)
    with self.assertRaisesRegex(ValueError, message):
      genomes.read(path)
