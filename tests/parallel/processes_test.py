# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs of several real processes: joined, killed, and gone on with by others."""

import signal
import socket
import subprocess
import time

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from tests.experiments import processes
from titans_jax.training import metrics

_ARGUMENTS = (
    *processes.TINY,
    "--config.train.checkpoint_every=10",
    "--config.train.eval_every=60",
    "--heartbeat_timeout=10",
    "--join_timeout=60",
)


def _free_port():
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def _start(workdir, *args, devices=2, count=1):
  """Starts the processes of a run, each with so many devices."""
  environ = processes.environment()
  environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
  environ["JAX_PLATFORMS"] = "cpu"
  address = f"--coordinator_address=127.0.0.1:{_free_port()}"
  started = []
  for index in range(count):
    several = (address, f"--num_processes={count}", f"--process_id={index}")
    started.append(
        subprocess.Popen(
            processes.command(
                "pretrain",
                f"--workdir={workdir}",
                *_ARGUMENTS,
                *args,
                *(several if count > 1 else ()),
            ),
            cwd=processes.ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    )
  return started


def _finish(started, timeout=240):
  """Returns the exit statuses and outputs of processes that end."""
  try:
    outputs = [p.communicate(timeout=timeout)[0] for p in started]
  finally:
    for process in started:
      process.kill()
  return [p.returncode for p in started], outputs


def _wait_for_row(started, workdir, row):
  deadline = time.monotonic() + 240
  while len(metrics.read_metrics(workdir)) < row:
    if time.monotonic() > deadline or started[0].poll() is not None:
      statuses, outputs = _finish(started, timeout=1)
      raise AssertionError(f"{statuses}: {outputs}")
    time.sleep(0.01)


def _losses(workdir):
  rows = metrics.read_metrics(workdir)
  return np.array([row["loss"] for row in rows if "loss" in row])


class ProcessesTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_run_goes_on_with_other_processes_and_meshes(self):
    folder = processes.folder(self)
    text = processes.write_text(folder / "text.txt")
    # In three steps a sequence, so that what goes on is the memory too.
    data = (f"--config.data.source={text}", "--config.data.segments=3")
    # Given a run that one process finishes
    whole = folder / "whole"
    statuses, outputs = _finish(_start(whole, *data, devices=1))
    self.assertEqual(statuses, [0], outputs)
    # And one of two processes, of which one is killed behind a checkpoint
    workdir = folder / "run"
    started = _start(workdir, *data, "--config.parallel.layout=fsdp", count=2)
    _wait_for_row(started, workdir, 14)
    started[1].send_signal(signal.SIGKILL)
    # Then the other ends in bounded time, and says why
    start = time.monotonic()
    statuses, outputs = _finish(started, timeout=60)
    self.assertLess(time.monotonic() - start, 45)
    self.assertNotIn(0, statuses)
    self.assertIn("another process", outputs[0])
    # When one process goes on, with another mesh, until it is terminated
    args = ("--config.parallel.layout=fsdp_tp",)
    started = _start(workdir, *data, *args, devices=4)
    _wait_for_row(started, workdir, 22)
    started[0].send_signal(signal.SIGTERM)
    statuses, outputs = _finish(started)
    self.assertEqual(statuses, [0], outputs)
    self.assertIn("Resuming from step 10.", outputs[0])
    self.assertIn("Stopped by SIGTERM", outputs[0])
    # And then two again, of which one is terminated, so that both stop
    started = _start(workdir, *data, count=2)
    _wait_for_row(started, workdir, 35)
    started[1].send_signal(signal.SIGTERM)
    statuses, outputs = _finish(started)
    self.assertEqual(statuses, [0, 0], outputs)
    self.assertIn("Stopped by SIGTERM", outputs[0])
    # Then the losses are those of the run that nobody stopped
    losses = _losses(workdir)
    self.assertGreaterEqual(len(losses), 35)
    np.testing.assert_allclose(losses, _losses(whole)[: len(losses)], rtol=1e-6)
    self.assertNotIn("Resuming", outputs[1])  # process 0 speaks for all

  @parameterized.parameters(
      (0, "Only 1 of 2 processes came within 4 s"),
      (1, "could not reach process 0 at 127.0.0.1"),
  )
  def test_absent_process(self, left, message):
    folder = processes.folder(self)
    started = _start(folder / "run", "--join_timeout=4", count=2)
    started[1 - left].kill()
    statuses, outputs = _finish(started)
    self.assertEqual(statuses[left], 1)
    self.assertIn(message, outputs[left])
    self.assertNotIn("Traceback", outputs[left])


if __name__ == "__main__":
  absltest.main()
