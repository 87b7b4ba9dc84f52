# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets of the Hugging Face hub, from a server of this machine."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

from absl.testing import absltest

from titans_jax.data import sources

_COMMIT = "a" * 40
_FILES = {
    "README.md": b"no document",
    "data/a.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    "data/more/b.jsonl": b'{"text": "three"}\n',
}


class _Hub(http.server.BaseHTTPRequestHandler):
  """As much of the hub as a client needs to fetch a data set."""

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path = self.path.partition("?")[0]
    resolve = f"/datasets/owner/name/resolve/{_COMMIT}/"
    if path.startswith("/api/datasets/owner/name/tree/"):
      tree = [
          {"type": "file", "path": name, "size": len(content), "oid": "0"}
          for name, content in _FILES.items()
      ]
      return self.answer(json.dumps(tree).encode())
    if path.startswith("/api/datasets/owner/name"):
      files = [{"rfilename": name} for name in _FILES]
      info = {"id": "owner/name", "sha": _COMMIT, "siblings": files}
      return self.answer(json.dumps(info).encode())
    if path.startswith(resolve) and path[len(resolve) :] in _FILES:
      self.server.sent.add(path[len(resolve) :])
      return self.answer(_FILES[path[len(resolve) :]])
    return self.answer(b"{}", 404)

  def answer(self, content, status=200):
    self.send_response(status)
    self.send_header("Content-Length", str(len(content)))
    self.send_header("X-Repo-Commit", _COMMIT)
    self.send_header("ETag", hashlib.sha256(content).hexdigest())
    if status == 404:
      self.send_header("X-Error-Code", "RepoNotFound")
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(content)

  def log_message(self, *_):
    pass


class HubTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=self.server.serve_forever, daemon=True).start()
    self.addCleanup(self.server.server_close)
    self.addCleanup(self.server.shutdown)

  def documents(self, source):
    # A process of its own: the client reads its address when it is imported.
    read = (
        "import sys\nfrom titans_jax.data import sources\n"
        "print(list(sources.documents(sys.argv[1])))"
    )
    address = f"http://127.0.0.1:{self.server.server_address[1]}"
    return subprocess.run(
        [sys.executable, "-c", read, source],
        capture_output=True,
        encoding="utf-8",
        env=os.environ
        | {"HF_ENDPOINT": address, "HF_HOME": self.create_tempdir().full_path},
        check=False,
        timeout=120,
    )

  def test_files_are_fetched_and_read(self):
    for pattern, expected, files in (
        ("/data/*.jsonl", [b"one", b"two"], {"data/a.jsonl"}),
        (
            "@refs/convert/parquet/**/*.jsonl",
            [b"one", b"two", b"three"],
            {"data/a.jsonl", "data/more/b.jsonl"},
        ),
    ):
      self.server.sent = set()
      process = self.documents(f"hf://datasets/owner/name{pattern}")
      self.assertEqual(process.stdout, f"{expected}\n", process.stderr)
      self.assertEqual(self.server.sent, files)

  def test_bad_input(self):
    process = self.documents("hf://datasets/owner/nobody/*.jsonl")
    self.assertRegex(process.stderr, "cannot be fetched.*Repository Not Found")
    process = self.documents("hf://datasets/owner/name")
    self.assertIn("matches no file", process.stderr)  # it has no Parquet files
    with self.assertRaisesRegex(ValueError, "must be hf://datasets/OWNER"):
      sources.files("hf://datasets/name")
