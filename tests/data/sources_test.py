# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Documents from files of every kind, and from bad ones."""

import json
import pathlib

from absl.testing import parameterized

from titans_jax.data import sources


class SourcesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, name, content):
    path = self.folder / name
    path.write_bytes(content)
    return str(path)

  def test_a_text_file_is_one_document_whatever_its_bytes(self):
    content = b"not \xff\xfe UTF-8\n\x00"
    self.assertEqual(
        list(sources.documents(self.write("a.txt", content))), [content]
    )

  def test_globs_are_read_in_order(self):
    self.write("b.txt", b"second")
    self.write("a.txt", b"first")
    found = list(sources.documents(str(self.folder / "*.txt")))
    self.assertEqual(found, [b"first", b"second"])

  def test_json_lines(self):
    rows = [json.dumps({"text": text}) for text in ("one", "tw\u00f6")]
    path = self.write("a.jsonl", "\n\n".join(rows).encode())
    self.assertEqual(
        list(sources.documents(path)), [b"one", "tw\u00f6".encode()]
    )

  def test_array_record(self):
    from array_record.python import array_record_module

    path = str(self.folder / "a.array_record")
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    for text in (b"one", b"two"):
      writer.write(text)
    writer.close()
    self.assertEqual(list(sources.documents(path)), [b"one", b"two"])

  def test_builtin_repeats_no_paragraph(self):
    documents = list(sources.documents("builtin"))
    self.assertGreater(len(documents), 40)
    self.assertGreater(sum(map(len, documents)), 300_000)
    seen = set()
    for document in documents:
      for paragraph in document.split(b"\n\n"):
        words = b" ".join(paragraph.split())
        if len(words) > 40:
          self.assertNotIn(words, seen)
      seen.update(b" ".join(p.split()) for p in document.split(b"\n\n"))

  @parameterized.parameters(
      ("missing.txt", None, "matches no file"),
      ("empty.txt", b"", "is empty"),
      ("bad.jsonl", b'{"text": "a"}\n{"txt": 1}\n', "line 2: expected a JSON"),
      ("bad.jsonl", b"not json\n", "line 1: expected a JSON"),
      ("bad.jsonl", b'{"text": 3}\n', "line 1: expected a JSON"),
  )
  def test_bad_files(self, name, content, message):
    path = str(self.folder / name)
    if content is not None:
      self.write(name, content)
    with self.assertRaisesRegex(ValueError, message):
      list(sources.documents(path))
