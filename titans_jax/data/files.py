# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import pathlib
from typing import BinaryIO, Iterator
import uuid


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


def replace(path: pathlib.Path, text: str) -> None:
  """Writes a text file whole or not at all."""
  with replacing(path) as file:
    file.write(text.encode())
