# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from typing import BinaryIO, Iterator
import uuid
import weakref

from etils import epath


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a file that takes the place of another when it is whole."""
  # A name of its own: other hosts may have a process of the same number.
  part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
  try:
    with part.open("wb") as file:
      yield file
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def replace(path: pathlib.Path | epath.Path, text: str) -> None:
  """Writes a text file whole or not at all."""
  if is_remote(path):
    path.write_text(text)  # An object appears when it is whole.
    return
  with replacing(path) as file:
    file.write(text.encode())


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is that of a bucket, such as gs://BUCKET/RUN."""
  return "://" in os.fspath(path)


def absolute(path: str | os.PathLike[str] | None) -> str | None:
  """Returns a path that means the same from everywhere; None for None."""
  if path is None:
    return None
  return os.fspath(path) if is_remote(path) else os.path.abspath(path)


class Mirror:
  """The local files of a workdir: those that grow, which a bucket's cannot.

  Attributes:
    workdir: the workdir.
    path: the same, or for a bucket a temporary folder, whose files `push`
      copies there.
  """

  def __init__(self, workdir: str | os.PathLike[str], *names: str):
    """Makes the folder, with copies of the named files that the workdir has."""
    self.workdir = epath.Path(workdir)
    self._pushed: dict[pathlib.Path, tuple[int, int]] = {}
    self._is_remote = is_remote(workdir)
    if not self._is_remote:
      self.path = pathlib.Path(workdir)
      return
    self.path = pathlib.Path(tempfile.mkdtemp(prefix="titans_jax_"))
    weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
    for name in names:
      if (self.workdir / name).exists():
        (self.path / name).write_bytes((self.workdir / name).read_bytes())
        self._pushed[self.path / name] = _version(self.path / name)

  def push(self) -> None:
    """Copies what is new or has grown; one process of a run does."""
    if not self._is_remote:
      return
    for path in self.path.rglob("*"):
      if path.is_file() and self._pushed.get(path) != _version(path):
        self._pushed[path] = _version(path)
        target = self.workdir / path.relative_to(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def _version(path: pathlib.Path) -> tuple[int, int]:
  status = path.stat()
  return status.st_size, status.st_mtime_ns
