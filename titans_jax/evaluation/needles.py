# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A needle in a haystack: the single-needle tasks of RULER (S-NIAH).

A sentence that gives a magic value to a key stands somewhere in a long text, and
the text's last line asks for it. An answer is right if it holds the value.
"""

from __future__ import annotations

import dataclasses
from typing import Sequence
import uuid

import numpy as np

from titans_jax import tokenizers
from titans_jax.evaluation import answers
from titans_jax.evaluation import haystacks

# A task's haystack and the kind of its values (the paper's Table 2 calls them
# S-NIAH-PK, -N and -W; RULER's third has identifiers for values).
TASKS = {
    "passkey": ("noise", "number"),
    "number": ("essay", "number"),
    "word": ("essay", "word"),
    "uuid": ("essay", "uuid"),
}

_INTRODUCTION = (
    "A special magic {kind} is hidden within the following text. Make sure to"
    " memorize it. I will quiz you about the {kind} afterwards.\n"
)
_NEEDLE = " One of the special magic {kind}s for {key} is: {value}."
_QUESTION = (
    "\nWhat is the special magic {kind} for {key} mentioned in the provided"
    " text? The special magic {kind} for {key} mentioned in the provided text"
    " is"
)

_ADJECTIVES = (
    "able amber ancient arctic bitter blank bold brave brief bright brisk broad"
    " calm careful cheap clean clear clever cloudy cold crisp curly damp daring"
    " dark deep distant dry dusty eager early easy empty exact faint fair famous"
    " fast fierce final firm flat fond formal fragile free fresh frozen gentle"
    " giant glad golden grand grave great green grumpy handy happy harsh heavy"
    " hidden hollow honest huge humble icy idle jolly keen kind large late lazy"
    " light little lively lonely long loud lucky mellow merry mild misty modern"
    " narrow neat noble noisy odd old open orange pale patient plain polite"
    " proud pure quick quiet rapid rare raw ready rich rigid ripe rough round"
    " royal rusty sandy scarce secret sharp shiny short shy silent silver simple"
    " sleepy slim slow small smooth soft solid sour spare stable steady steep"
    " stiff strange strict strong sudden sunny sweet swift tall tame tender thick"
    " thin tidy tiny tough true upset vague vast violet vivid warm weak weary"
    " white wide wild wise witty wooden young zealous"
)
_NOUNS = (
    "acorn actor anchor ankle apple apron arrow artist badge baker ball banana"
    " banker barrel basket beach bell bench berry bird blanket boat bottle bowl"
    " branch bread brick bridge brush bucket button cabin cable cactus camel"
    " candle canoe carpet castle cattle cellar chain chair cherry circle cloud"
    " coach coast coffee collar comet copper corner cotton cousin cradle crane"
    " crown curtain daisy dancer desert diamond doctor donkey dragon drawer drum"
    " eagle engine falcon farmer feather fence ferry fiddle field finger flag"
    " flame flower flute forest fossil fountain fox garden garlic giraffe glacier"
    " glove goat grape guitar hammer harbor hat hedge helmet hill honey horse"
    " hotel island jacket jewel judge jungle kettle kitten knight ladder lake"
    " lantern lemon letter lion lizard lobster magnet mango maple marble market"
    " meadow melon mirror monkey moon mountain museum needle nephew nest oasis"
    " ocean olive onion orchard otter oven owl oyster paddle palace panda paper"
    " parrot peach pebble pencil pepper piano pillow pilot planet pocket pond"
    " pony potato prince puzzle rabbit ribbon river robin rocket sailor salmon"
    " school shadow sheep shell ship shovel singer spider spoon stable star"
    " statue stone summer table teacher temple ticket tiger tower train tulip"
    " tunnel turtle valley vessel village violin wagon walnut window winter wolf"
    " yacht zebra"
)
_WORDS = [np.array(part.split()) for part in (_ADJECTIVES, _NOUNS)]


@dataclasses.dataclass(frozen=True)
class NeedleData(answers.AnswerData):
  """What is trained on.

  Attributes:
    tasks: names of `TASKS`, with commas between; each as often.
  """

  tasks: str = "passkey,number,word,uuid"
  least_length: int = 448

  def __post_init__(self):
    super().__post_init__()
    for name in self.tasks.split(","):
      if name not in TASKS:
        raise ValueError(f"data.tasks: {name!r} is none of {', '.join(TASKS)}.")


class Needles:
  """Draws the examples of the tasks.

  Attributes:
    fingerprint: equal exactly where the examples are.
  """

  def __init__(self, haystack: str, tokenizer: tokenizers.Tokenizer):
    """Reads the essays' source, as `haystacks.read`."""
    self._tokenizer = tokenizer
    self._haystacks = {
        "noise": haystacks.read("noise", tokenizer),
        "essay": haystacks.read(haystack, tokenizer),
    }
    self.fingerprint = self._haystacks["essay"].fingerprint

  def check(self, tasks: Sequence[str], length: int, where: str) -> None:
    """Raises ValueError where texts of a length do not hold their needles.

    Args:
      tasks: of `TASKS`.
      length: tokens.
      where: the flag or field that holds the length.
    """
    for task in tasks:
      for seed in range(50):  # Words are of several lengths.
        try:
          self.draw(task, length, 0.5, np.random.default_rng(seed))
        except ValueError as error:
          raise ValueError(f"{where}={length}: {error}") from error

  def draw(
      self,
      task: str,
      length: int,
      depth: float,
      rng: np.random.Generator,
  ) -> answers.Example:
    """Returns an example.

    Args:
      task: of `TASKS`.
      length: tokens, answer and all.
      depth: where the needle stands: 0 is the beginning, 1 in front of the
        question.
      rng: what to draw from.

    Raises:
      ValueError: introduction, needle and question are longer.
    """
    haystack, kind = TASKS[task]
    words = {"kind": kind, "key": _word(rng), "value": _value(kind, rng)}

    def encode(template):
      return self._tokenizer.encode(template.format(**words).encode())

    answer = encode(" {value}")
    question = encode(_QUESTION)
    start = np.append(
        np.int32(self._tokenizer.document_token), encode(_INTRODUCTION)
    )
    needle = encode(_NEEDLE)
    rest = length - len(start) - len(question) - len(answer)
    if rest < len(needle):
      raise ValueError(
          f"A {task} needle with its question takes"
          f" {length - rest + len(needle)} tokens, more than a length of"
          f" {length}."
      )
    text = self._haystacks[haystack].hide([needle], [depth], rest, rng)
    return answers.Example(
        np.concatenate([start, text]).astype(np.int32),
        question.astype(np.int32),
        answer.astype(np.int32),
        _QUESTION.format(**words),
        words["value"],
    )


def make_task(model, data: NeedleData, seed: int) -> answers.AnswerTask:
  """Returns the training loop's task: every kind, at any depth.

  Raises:
    ValueError: a text of the least length does not hold its needle.
  """
  tokenizer = tokenizers.make_tokenizer(data.tokenizer)
  needles = Needles(data.haystack, tokenizer)
  names = data.tasks.split(",")

  def draw(rng, length):
    return needles.draw(str(rng.choice(names)), length, rng.random(), rng)

  needles.check(names, data.least_length, "data.least_length")
  return answers.AnswerTask(
      model,
      draw,
      tokenizer,
      data,
      seed=seed,
      fingerprint=repr((names, needles.fingerprint)),
  )


def is_right(example: answers.Example, said: str) -> bool:
  """Returns RULER's score of what was said: whether it holds the value."""
  return example.target.lower() in said.lower()


def _word(rng: np.random.Generator) -> str:
  return "-".join(rng.choice(part) for part in _WORDS)


def _value(kind: str, rng: np.random.Generator) -> str:
  if kind == "number":
    return str(rng.integers(10**6, 10**7))
  if kind == "word":
    return _word(rng)
  return str(uuid.UUID(bytes=rng.bytes(16), version=4))
