# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Several hosts: joining them, and who speaks for all.

`jax.distributed.initialize` waits for the others in silence, and where one does
not come it aborts the process. So the processes are counted first: each calls
at the coordinator's port, which is JAX's own a moment later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import time
from typing import Any

from absl import logging
import jax
import numpy as np

_SECONDS_BETWEEN_LINES = 10.0
_LONGEST_WAIT = 24 * 3600  # seconds, for a process that tokenises

# What calls and answers begin with: a port may be another program's.
_GREETING = "titans_jax "


@dataclasses.dataclass(frozen=True)
class Processes:
  """Where a process stands among those of its run.

  Attributes:
    address: of the coordinator, "HOST:PORT".
    count: of all processes.
    index: of this one; 0 is the coordinator.
  """

  address: str
  count: int
  index: int


class ProcessesError(RuntimeError):
  """The processes of a run did not find together, or lost one."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300.0,
    heartbeat_timeout: float = 60.0,
) -> None:
  """Joins the processes of a run; alone, it does nothing.

  What is not given comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, or from the cluster that the process runs in, as JAX finds it:
  a TPU pod, SLURM, Kubernetes, Open MPI. Must come before any computation.

  Args:
    coordinator_address: "HOST:PORT" of process 0.
    num_processes: of the run.
    process_id: of this one, from 0.
    timeout: seconds to wait for the others.
    heartbeat_timeout: seconds of silence after which a process counts as dead,
      and the others end.

  Raises:
    ValueError: some of the three are given and the others cannot be found.
    ProcessesError: not all processes came in time, or the coordinator is not to be
      reached; the message says how many came, and which did not.
  """
  found = _find(coordinator_address, num_processes, process_id, timeout)
  if found is None or found.count == 1:
    return
  deadline = time.monotonic() + timeout
  if found.index == 0:
    _call_roll(found, deadline, timeout)
  else:
    _answer_roll(found, deadline, timeout)
  jax.distributed.initialize(
      found.address,
      found.count,
      found.index,
      initialization_timeout=int(timeout),
      heartbeat_timeout_seconds=int(heartbeat_timeout),
  )


def is_main() -> bool:
  """Returns whether this process is the one that logs and writes."""
  return jax.process_index() == 0


def say(message: str) -> None:
  """Prints a message, once for all processes."""
  if is_main():
    print(message, flush=True)


@contextlib.contextmanager
def main_first(name: str):
  """Lets process 0 through before the others: what it writes they find."""
  if not is_main():
    barrier(name)
  yield
  if is_main():
    barrier(name)


def barrier(name: str) -> None:
  """Waits until all processes are here, as long as they live."""
  if jax.process_count() > 1:
    # Not a collective of the devices: those give up after a minute or so.
    from jax._src import distributed  # pylint: disable=g-import-not-at-top

    client: Any = distributed.global_state.client
    client.wait_at_barrier(name, timeout_in_ms=_LONGEST_WAIT * 1000)


def check_same(values: dict[str, Any]) -> None:
  """Raises ValueError where the processes of a run have other values.

  Args:
    values: what must be the same everywhere, by name; plain values.
  """
  if jax.process_count() == 1:
    return
  from jax.experimental import multihost_utils  # pylint: disable=g-import-not-at-top

  for name, value in values.items():
    text = json.dumps(value, sort_keys=True).encode()
    mine = np.frombuffer(hashlib.sha256(text).digest(), np.uint32)
    every = multihost_utils.process_allgather(mine)
    other = np.flatnonzero((every != every[0]).any(axis=1))
    if other.size:
      raise ValueError(
          f"The {name} of processes {other.tolist()} is another than that of"
          " process 0: give all the same flags and the same files."
      )


def _find(address, count, index, timeout) -> Processes | None:
  """Returns this process's place, or None where nothing speaks of others."""
  environ = os.environ
  address = address or environ.get("JAX_COORDINATOR_ADDRESS")
  if count is None and "JAX_NUM_PROCESSES" in environ:
    count = int(environ["JAX_NUM_PROCESSES"])
  if index is None and "JAX_PROCESS_ID" in environ:
    index = int(environ["JAX_PROCESS_ID"])
  if None in (address, count, index):
    address, count, index = _detect(address, count, index, timeout)
  values = {
      "coordinator_address": address,
      "num_processes": count,
      "process_id": index,
  }
  absent = [name for name, value in values.items() if value is None]
  if len(absent) == 3:
    return None
  if absent:
    raise ValueError(
        f"Several processes need --{absent[0]} too, or the environment variable"
        f" JAX_{absent[0].upper()}."
    )
  if count < 1 or not 0 <= index < count:
    raise ValueError(
        f"process_id={index} must be at least 0 and below num_processes="
        f"{count}."
    )
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit():
    raise ValueError(
        f"coordinator_address={address!r} must be HOST:PORT, such as"
        " 10.0.0.1:8482."
    )
  return Processes(address, count, index)


def _detect(address, count, index, timeout):
  """Completes what was given from the cluster, as JAX finds it."""
  try:
    from jax._src import clusters  # pylint: disable=g-import-not-at-top

    return clusters.ClusterEnv.auto_detect_unset_distributed_params(
        address, count, index, None, None, int(timeout)
    )[:3]
  except (ImportError, AttributeError, TypeError):
    logging.warning("This version of jax detects no cluster; use the flags.")
    return address, count, index


def _call_roll(me: Processes, deadline: float, timeout: float) -> None:
  """Counts the others until all have come."""
  _, port = _split(me.address)
  came: dict[int, socket.socket] = {}
  said = 0.0
  try:
    listener = socket.create_server(
        ("", port), family=_family(), dualstack_ipv6=socket.has_dualstack_ipv6()
    )
  except OSError as error:
    raise ProcessesError(
        f"Process 0 cannot listen on port {port}: {error}. Another run may use"
        " it."
    ) from error
  with listener:
    while len(came) < me.count - 1:
      now = time.monotonic()
      if now - said > _SECONDS_BETWEEN_LINES:
        said = now
        print(
            f"Waiting at port {port} for {me.count} processes:"
            f" {len(came) + 1} came, not yet {_absent(me, came)}.",
            flush=True,
        )
      if now > deadline:
        break
      listener.settimeout(min(1.0, max(deadline - now, 0.01)))
      try:
        caller, _ = listener.accept()
      except TimeoutError:
        continue
      caller.settimeout(5.0)
      try:
        call = caller.recv(64).decode(errors="replace")
        greeting, *numbers = call.split(" ")
        index, count = map(int, numbers)
        if f"{greeting} " != _GREETING or count != me.count:
          raise ValueError(call)
        if not 1 <= index < count:
          raise ValueError(call)
      except (OSError, ValueError):
        caller.close()  # of another run, or not one of us
        continue
      if (
          index in came
      ):  # it called again: the first call is no longer waited on
        came.pop(index).close()
      came[index] = caller
  answer = "go"
  if len(came) < me.count - 1:
    answer = (
        f"Only {len(came) + 1} of {me.count} processes came within"
        f" {timeout:g} s; those that did not are {_absent(me, came)}."
    )
  for caller in came.values():
    # One that is gone by now will be missed by JAX.
    with caller, contextlib.suppress(OSError):
      caller.sendall((_GREETING + answer).encode())
  if answer != "go":
    raise ProcessesError(answer)


def _answer_roll(me: Processes, deadline: float, timeout: float) -> None:
  """Calls process 0 until it answers."""
  host, port = _split(me.address)
  print(
      f"Process {me.index} of {me.count} waits for process 0 at {me.address}.",
      flush=True,
  )
  reason: Exception | str = "no answer"
  while (now := time.monotonic()) < deadline:
    try:
      with socket.create_connection((host, port), deadline - now) as caller:
        caller.sendall(f"{_GREETING}{me.index} {me.count}".encode())
        # A moment longer than process 0 waits, which knows who is missing.
        caller.settimeout(deadline - now + 10)
        answer = caller.recv(4096).decode(errors="replace")
        if answer == _GREETING + "go":
          return
        if answer.startswith(_GREETING):
          raise ProcessesError(answer.removeprefix(_GREETING))
        reason = f"it answered {answer[:20]!r}" if answer else "it hung up"
    except OSError as error:
      reason = error
    time.sleep(0.2)
  raise ProcessesError(
      f"Process {me.index} could not reach process 0 at {me.address} within"
      f" {timeout:g} s: {reason}. Is it running, and its port open?"
  )


def _absent(me: Processes, came) -> str:
  absent = [i for i in range(1, me.count) if i not in came]
  more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
  return ", ".join(map(str, absent[:8])) + more


def _split(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  return host.strip("[]"), int(port)


def _family():
  dual = socket.has_dualstack_ipv6()
  return socket.AF_INET6 if dual else socket.AF_INET
