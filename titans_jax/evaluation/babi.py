# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""BABILong: the facts of a bAbI story scattered in a long text.

The facts keep their order; the text's last line asks about them. Stories are
read from files in the bAbI format: numbered lines that begin anew with every
story, a question's line holding question, answer and supporting facts with tabs
between.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import NamedTuple, Sequence

import numpy as np

from titans_jax import tokenizers
from titans_jax.evaluation import answers
from titans_jax.evaluation import haystacks
from titans_jax.training import tasks

_FEW_SHOT = (
    "Facts about persons and things are hidden in the text. Answer the question"
    " at its end from these facts alone; where they contradict each other, the"
    " last one holds.\n\n"
)


@dataclasses.dataclass(frozen=True)
class BabiData(answers.AnswerData):
  """What is trained on.

  Attributes:
    stories: file in the bAbI format.
  """

  stories: str = ""


class Story(NamedTuple):
  """A question with the facts before it."""

  facts: tuple[str, ...]
  question: str
  answer: str


def read_stories(path: str, flag: str = "data.stories") -> list[Story]:
  """Returns every question of a file in the bAbI format.

  Raises:
    ValueError: no such file, or a line that is not in the format.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(
        f"{flag}={path!r} is no file: give one in the bAbI format."
    )
  stories: list[Story] = []
  facts: list[str] = []
  lines = pathlib.Path(path).read_text(errors="replace").splitlines()
  for number, line in enumerate(lines, 1):
    found = re.fullmatch(r"(\d+) (.+)", line.strip("\r"))
    if not found:
      if line.strip():
        raise ValueError(
            f"{flag}={path}, line {number}: expected a number and a sentence,"
            f" got {line[:60]!r}."
        )
      continue
    if found[1] == "1":
      facts = []
    text, *rest = found[2].split("\t")
    if not rest:
      facts.append(" ".join(text.split()))
      continue
    if not rest[0].strip() or not facts:
      raise ValueError(
          f"{flag}={path}, line {number}: a question needs an answer behind a"
          f" tab, and facts before it, got {line[:60]!r}."
      )
    stories.append(Story(tuple(facts), text.strip(), rest[0].strip()))
  if not stories:
    raise ValueError(f"{flag}={path} holds no question.")
  return stories


class Stories:
  """Draws a file's questions, their facts scattered in other text.

  Attributes:
    labels: every answer that the file gives; of several things, each.
    fingerprint: equal exactly where the examples are.
  """

  def __init__(
      self,
      stories: list[Story],
      haystack: str,
      tokenizer: tokenizers.Tokenizer,
      *,
      shots: Sequence[Story] = (),
  ):
    """Reads the background.

    Args:
      stories: to draw from.
      haystack: source of the background, as `haystacks.read`.
      tokenizer: of the examples.
      shots: solved questions that stand in front of every text.
    """
    self._stories = stories
    self._tokenizer = tokenizer
    self._haystack = haystacks.read(haystack, tokenizer)
    self.labels = sorted(
        {label for story in stories for label in _parts(story.answer.lower())}
    )
    start = ""
    if shots:
      start = _FEW_SHOT + "".join(
          f"{' '.join(s.facts)}\nQuestion: {s.question} Answer: {s.answer}.\n\n"
          for s in shots
      )
    self._start = np.append(
        np.int32(tokenizer.document_token), tokenizer.encode(start.encode())
    ).astype(np.int32)
    self.fingerprint = tasks.fingerprint(
        (stories, start, self._haystack.fingerprint)
    )

  def check(self, length: int, where: str) -> None:
    """Raises ValueError where texts of a length hold no story.

    Args:
      length: tokens.
      where: the flag or field that holds the length.
    """
    try:
      self.draw(length, np.random.default_rng(0))
    except ValueError as error:
      raise ValueError(f"{where}={length}: {error}") from error

  def draw(self, length: int, rng: np.random.Generator) -> answers.Example:
    """Returns an example of a story that fits.

    Args:
      length: tokens, answer and all.
      rng: what to draw from.

    Raises:
      ValueError: none of 100 stories is short enough.
    """
    encode = lambda text: self._tokenizer.encode(text.encode())
    for _ in range(100):
      story = self._stories[rng.integers(len(self._stories))]
      question = encode(f"\nQuestion: {story.question} Answer:")
      answer = encode(f" {story.answer}").astype(np.int32)
      facts = [encode(f" {fact}") for fact in story.facts]
      rest = length - len(self._start) - len(question) - len(answer)
      if rest >= sum(map(len, facts)):
        break
    else:
      raise ValueError(f"A length of {length} tokens holds no story.")
    depths = np.sort(rng.random(len(facts)))
    text = self._haystack.hide(facts, depths, rest, rng)
    return answers.Example(
        np.concatenate([self._start, text]).astype(np.int32),
        question.astype(np.int32),
        answer,
        story.question,
        story.answer,
    )


def make_task(model, data: BabiData, seed: int) -> answers.AnswerTask:
  """Returns the training loop's task."""
  tokenizer = tokenizers.make_tokenizer(data.tokenizer)
  stories = Stories(read_stories(data.stories), data.haystack, tokenizer)
  stories.check(data.least_length, "data.least_length")
  return answers.AnswerTask(
      model,
      lambda rng, length: stories.draw(length, rng),
      tokenizer,
      data,
      seed=seed,
      fingerprint=stories.fingerprint,
  )


def is_right(example: answers.Example, said: str, labels: list[str]) -> bool:
  """Returns BABILong's score of what was said.

  Only its first sentence counts, and must name the answer and no other label but
  those of the question.

  Args:
    example: with question and answer.
    said: by the model.
    labels: every answer of the task, in lower case.
  """
  said = said.lower().split(".")[0]
  for end in ("<context>", "<example>", "question"):
    said = said.split(end)[0]
  question = example.asked.lower()
  named = {x for x in labels if x in said} - {
      x for x in labels if x in question
  }
  return named == set(_parts(example.target.lower()))


def _parts(answer: str) -> list[str]:
  """Returns the things that an answer names: several in task 8, but a path of
  task 19, `n,w`, is one."""
  return answer.split(",") if len(answer) > 3 else [answer]
