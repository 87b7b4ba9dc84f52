# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading without end, as a user sees it: files, pipes, signals."""

import json
import signal
import subprocess
import time

from absl.testing import absltest
import numpy as np

from tests.experiments import processes


class StreamTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)
    cls.workdir = cls.folder / "run"
    cls.text = processes.write_text(cls.folder / "text.txt", size=1500)
    processes.run(
        "pretrain",
        f"--workdir={cls.workdir}",
        *processes.TINY,
        f"--config.data.source={cls.text}",
        "--config.train.num_steps=7",
        "--sample_tokens=0",
    )

  def arguments(self, source, *args):
    return (
        f"--checkpoint={self.workdir}",
        f"--input={source}",
        "--tokens_per_call=512",
        *args,
    )

  def stream(self, source, *args):
    return processes.run("stream", *self.arguments(source, *args))

  def generate(self, state):
    return processes.run(
        "generate",
        f"--checkpoint={self.workdir}",
        f"--load_state={state}",
        "--prompt=one ",
        "--temperature=0",
        "--max_new_tokens=8",
    )

  def test_a_text_in_two_parts_is_the_text(self):
    # Given a text read at once, and in two parts with the state saved between
    text = self.text.read_bytes()
    for name, part in (("a", text[:3001]), ("b", text[3001:])):
      (self.folder / name).write_bytes(part)
    whole, half, both = (self.folder / f"{n}.state" for n in ("w", "h", "b"))
    metrics = self.folder / "metrics.jsonl"
    process = self.stream(
        self.text,
        f"--save_state={whole}",
        f"--metrics={metrics}",
        "--report_every=2000",
    )
    self.assertEqual(process.returncode, 0, process.stderr)
    count = f"{len(text) + 1:,}"  # with the document token
    self.assertIn(f"Read {count} tokens", process.stdout)
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    self.assertEqual(rows[-1]["tokens"], len(text) + 1)
    for row in rows:
      self.assertBetween(row["loss"], 0.5, 6)
      self.assertGreater(row["weight_norm"], 0)
    first = self.stream(self.folder / "a", f"--save_state={half}")
    self.assertEqual(first.returncode, 0, first.stderr)
    second = self.stream(
        self.folder / "b", f"--load_state={half}", f"--save_state={both}"
    )
    self.assertEqual(second.returncode, 0, second.stderr)
    # Then what is written behind them is the same
    texts = [self.generate(state).stdout for state in (whole, both)]
    self.assertStartsWith(texts[0], "one ")
    self.assertEqual(*texts)

  def test_a_signal_ends_it_and_nothing_is_lost(self):
    state = self.folder / "stopped.state"
    process = subprocess.Popen(
        processes.command(
            "stream",
            *self.arguments(
                "-", f"--save_state={state}", "--report_every=1000"
            ),
        ),
        cwd=processes.ROOT,
        env=processes.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    process.stdin.write("one two " * 400)
    process.stdin.flush()
    process.stdout.readline()  # it reads, and then waits for more
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    self.assertEqual(process.returncode, 0, output)
    self.assertIn("Read 3,201 tokens", output)
    self.assertIn("Stopped by a signal.", output)
    self.assertEqual(self.generate(state).returncode, 0)

  def test_bad_input(self):
    empty = self.folder / "empty"
    empty.write_bytes(b"")
    floats = self.folder / "floats.npy"
    np.save(floats, np.zeros(4))
    large = self.folder / "large.npy"
    np.save(large, np.array([1, 2, 999]))
    for source, args, message in (
        (self.folder / "none", (), "is no file"),
        (floats, (), "must hold integers"),
        (large, (), "tokens hold 999, outside the vocabulary"),
        (self.text, (f"--load_state={empty}",), "is no whole state"),
    ):
      processes.assert_refused(self, self.stream(source, *args), message)


if __name__ == "__main__":
  absltest.main()
