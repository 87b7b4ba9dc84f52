# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The comparison with a peer, run beside a stand-in for it."""

import json
import sys

from absl.testing import absltest
import pytest

from tests.experiments import processes

COMMON = """
import json, resource, time
CONFIGS = {"mem_h4": dict(batch=2, seq=12, dim=8, chunk_size=4, heads=2,
                          dim_head=4, depth=2, expansion=2.0)}
GEN = {}
def measure(fn, warmup=2, iters=8):
  start = time.perf_counter(); fn()
  first = time.perf_counter() - start
  start = time.perf_counter(); fn()
  return dict(first_s=first, median_s=time.perf_counter() - start)
def emit(**kw):
  usage = resource.getrusage(resource.RUSAGE_SELF)
  print(json.dumps(kw | {"peak_rss_mb": usage.ru_maxrss / 1024}), flush=True)
"""

# Has the name of the package that it imports, as the real one.
PEER = """
import sys
from common import emit
from titans_pytorch import NeuralMemory
if "--compile" in sys.argv:
  sys.exit("no compiler")
emit(tokens_per_s=NeuralMemory.speed, first_s=1.0, argv=sys.argv[1:])
"""


@pytest.mark.slow
class PeersTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)
    cls.bench = cls.folder / "bench"
    cls.bench.mkdir()
    (cls.bench / "common.py").write_text(COMMON)
    (cls.bench / "titans_pytorch.py").write_text(PEER)
    cls.python = cls.make_python("whole", "torch", "titans-pytorch")

  @classmethod
  def make_python(cls, name, *packages):
    """Returns an interpreter that has packages of these names."""
    site = cls.folder / name
    site.mkdir()
    for package in packages:
      info = site / f"{package.replace('-', '_')}-7.5.dist-info"
      info.mkdir()
      (info / "METADATA").write_text(f"Name: {package}\nVersion: 7.5\n")
      module = site / f"{package.replace('-', '_')}.py"
      module.write_text("class NeuralMemory:\n  speed = 50.0\n")
    python = site / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" -S "$@"\n'
    )
    python.chmod(0o755)
    return python

  def peers(self, *args, **flags):
    flags = {"bench": self.bench, "workdir": self.folder / "run"} | flags
    named = [f"--{name}={value}" for name, value in flags.items()]
    return processes.run("peers", *named, *args)

  def test_table_and_results(self):
    process = self.peers(
        peer_python=self.python, rows="mem_h4,products_h4", rounds=1
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    out = process.stdout
    results = json.loads((self.folder / "run" / "results.json").read_text())
    self.assertEqual(
        results["versions"], {"torch": "7.5", "titans-pytorch": "7.5"}
    )
    row = results["rows"]["mem_h4"]
    self.assertEqual(
        row["theirs"][0]["argv"], ["mem_h4", "fwdbwd", "--threads=2"]
    )
    ours = row["ours"][0]
    self.assertGreater(ours["first_s"], ours["median_s"])
    self.assertGreater(ours["params"], 0)
    self.assertEqual(row["compiled"], [{"error": "no compiler"}])
    ratio = ours["tokens_per_s"] / 50
    self.assertRegex(out, rf"mem_h4 .* 50 +{ratio:.2f} .* 1\.00 ")
    self.assertRegex(out, r"mem_h4 \(compiled\) .* - +- ")
    self.assertIn("Failed: mem_h4 (compiled): no compiler", out)
    self.assertIn("The functions differ", out)
    [products] = results["rows"]["products_h4"]["ours"]
    self.assertGreater(products["products_s"], 0)
    self.assertRegex(out, r"products_h4 +0\.")

  def test_bad_input(self):
    bare = self.make_python("bare", "torch")
    for flags, message in (
        ({"bench": self.folder}, "holds no common.py"),
        ({"rows": "mem_h4,mem_h5"}, "--rows: 'mem_h5' is none of"),
        ({"rows": ""}, "--rows names none"),
        ({"rows": "mem_h4"}, "--peer_python is missing"),
        ({"peer_python": "/no/such/python"}, "does not run Python: .*No such"),
        ({"peer_python": bare}, "lacks titans-pytorch: .* -m pip install"),
    ):
      with self.subTest(message):
        process = self.peers(**flags)
        self.assertEqual(process.returncode, 1, process.stderr)
        self.assertRegex(process.stderr, message)
        self.assertNotIn("Traceback", process.stderr)


if __name__ == "__main__":
  absltest.main()
