# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A language model as the Evaluation Harness asks it (extra `eval`).

`lm_eval` brings the tasks and their scoring; here its three kinds of requests are
answered. A text begins with the document token.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import pathlib
import tempfile
from typing import Any, Sequence

import jax
import jinja2
import jinja2.meta
import lm_eval
from lm_eval import tasks as lm_eval_tasks
from lm_eval.api import model as lm_eval_model
import numpy as np

from titans_jax import inference
from titans_jax import tokenizers
from titans_jax.evaluation import scoring
from titans_jax.models import language_model


class HarnessModel(lm_eval_model.LM):
  """Answers lm-eval's requests, in batches of similar length."""

  def __init__(
      self,
      model: language_model.TitansLM,
      variables: Any,
      tokenizer: tokenizers.Tokenizer,
      *,
      batch_size: int = 16,
      max_new_tokens: int = 256,
      share_prefixes: bool = True,
  ):
    """Keeps what is asked.

    Args:
      model: the model.
      variables: its parameters.
      tokenizer: that it was trained with.
      batch_size: rows at a time.
      max_new_tokens: of an answer whose task does not say.
      share_prefixes: as in `scoring.score_continuations`.

    Raises:
      ValueError: the tokenizer has ids that the model has not.
    """
    super().__init__()
    tokenizers.check_vocabulary(tokenizer, model.config.vocab_size)
    self._model, self._variables = model, variables
    self._tokenizer = tokenizer
    self._batch_size = batch_size
    self._max_new_tokens = max_new_tokens
    self._share_prefixes = share_prefixes

  def loglikelihood(self, requests) -> list[tuple[float, bool]]:
    pairs = [self._split(*request.args) for request in requests]
    scores = scoring.score_continuations(
        self._model,
        self._variables,
        pairs,
        batch_size=self._batch_size,
        share_prefixes=self._share_prefixes,
    )
    return [tuple(score) for score in scores]

  def loglikelihood_rolling(self, requests) -> list[float]:
    texts = [self._encode(request.args[0]) for request in requests]
    scores = scoring.score_texts(
        self._model,
        self._variables,
        texts,
        batch_size=self._batch_size,
    )
    return [score.log_prob for score in scores]

  def generate_until(self, requests) -> list[str]:
    answers: list[str] = [""] * len(requests)
    prompts = [self._encode(request.args[0]) for request in requests]
    asked = [_options(request.args[1]) for request in requests]
    alike: dict[tuple, list[int]] = {}
    for i, (_, *options) in enumerate(asked):
      alike.setdefault(tuple(options), []).append(i)
    for (temperature, most), members in alike.items():
      members.sort(key=lambda i: -len(prompts[i]))
      for part in scoring.batches(members, self._batch_size):
        texts = self._generate(
            [prompts[i] for i in part],
            [asked[i][0] for i in part],
            temperature,
            most or self._max_new_tokens,
        )
        for i, text in zip(part, texts):
          answers[i] = text
    return answers

  def _encode(self, text: str) -> np.ndarray:
    ids = self._tokenizer.encode(text.encode())
    return np.append([self._tokenizer.document_token], ids).astype(np.int32)

  def _split(self, context: str, continuation: str):
    """Returns the ids of a context and of its continuation, which is not empty.

    They are encoded as one text, as they stand in one, and cut where the
    context's own ids end. Spaces at its end are the continuation's.
    """
    if not continuation:
      raise ValueError(f"Nothing is to be scored behind {context[-80:]!r}.")
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    whole = self._encode(stripped + continuation)
    # Ids may have joined over the cut: one at least is the continuation's.
    cut = max(min(len(self._encode(stripped)), len(whole) - 1), 1)
    return whole[:cut], whole[cut:]

  def _generate(
      self,
      prompts: Sequence[np.ndarray],
      stops: Sequence[tuple[str, ...]],
      temperature: float,
      max_new_tokens: int,
  ) -> list[str]:
    """Returns continuations, each up to the first of its stops."""
    missing = self._batch_size - len(prompts)
    padded, lengths = inference.pad_prompts([*prompts, *[prompts[0]] * missing])
    end = self._tokenizer.document_token
    ids: list[list[int]] = [[] for _ in prompts]
    texts, done = [""] * len(prompts), [False] * len(prompts)
    for tokens in inference.stream(
        self._model,
        self._variables,
        padded,
        lengths=lengths,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        rng=jax.random.key(0),
        stop_token=end,
    ):
      for row, token in enumerate(tokens[: len(prompts)].tolist()):
        if done[row]:
          continue
        ids[row].append(token)
        text = self._tokenizer.decode(ids[row]).decode(errors="replace")
        texts[row], stopped = _cut(text, stops[row])
        done[row] = stopped or token == end
      if all(done):
        break
    return texts


def _options(kwargs: dict[str, Any]) -> tuple[tuple[str, ...], float, int]:
  """Returns the stops, temperature and most tokens (0: unsaid) of a request.

  Raises:
    ValueError: the request asks for what is not known here.
  """
  kwargs = dict(kwargs)
  until = kwargs.pop("until", None) or ()
  until = (until,) if isinstance(until, str) else tuple(until)
  most = kwargs.pop("max_gen_toks", 0)
  temperature = kwargs.pop("temperature", None)
  sampled = kwargs.pop("do_sample", bool(temperature))
  if not sampled:
    temperature = 0.0
  elif temperature is None:
    temperature = 1.0
  if kwargs:
    raise ValueError(
        f"A task asks for {sorted(kwargs)} of generation, which are not known:"
        " until, max_gen_toks, temperature and do_sample are."
    )
  return until, float(temperature), most


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
  """Returns a text up to the first of some stops, and whether one was there."""
  places = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
  return (text[: min(places)], True) if places else (text, False)


# The paper's tasks, by the names that lm-eval has for them.
TASKS = (
    "wikitext",
    "lambada_openai",
    "piqa",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "social_iqa",
    "boolq",
)
_SPLITS = ("train", "validation", "test")


def make_tasks(
    names: Sequence[str], data_dir: str | os.PathLike[str] | None = None
) -> list[Any]:
  """Returns tasks of lm-eval with their data loaded.

  Args:
    names: of tasks.
    data_dir: holds NAME/SPLIT.jsonl for every task, a document a line in the
      form of the task's data set, SPLIT being train, validation or test; None:
      the data come from the hub.

  Raises:
    ValueError: no such task, or data that are not there or cannot be loaded.
  """
  manager = _task_manager()
  known = set(manager.all_subtasks)
  tasks = []
  for name in names:
    if name in manager.all_groups or name in manager.all_tags:
      raise ValueError(f"{name!r} is a group of tasks: name those you want.")
    if name not in known:
      near = difflib.get_close_matches(name, known, 3, 0.5)
      raise ValueError(
          f"{name!r} is no task of lm-eval. Near: {near}; the paper's are"
          f" {', '.join(TASKS)}."
      )
    try:
      if data_dir is None:
        found = manager.load([name])
      else:
        yaml_path = manager.task_index[name].yaml_path
        fields = _local(name, pathlib.Path(data_dir) / name)
        with tempfile.TemporaryDirectory() as folder:
          path = pathlib.Path(folder) / "task.yaml"
          path.write_text(json.dumps({"include": str(yaml_path), **fields}))
          found = manager.load([str(path)])
    except Exception as error:  # whatever the data set's library raises
      if data_dir is None:
        where = "the hub"
        hint = (
            "Without a network give a folder with"
            f" {name}/validation.jsonl (or test.jsonl)."
        )
      else:
        where = f"{data_dir}/{name}"
        hint = "Are its documents in the form of the task's data set?"
      raise ValueError(
          f"{name} could not be loaded from {where}: {_first_line(error)}."
          f" {hint}"
      ) from error
    for task in found["tasks"].values():
      _check_fields(name, task)
      tasks.append(task)
  return tasks


@functools.cache  # It reads thousands of files.
def _task_manager() -> lm_eval_tasks.TaskManager:
  return lm_eval_tasks.TaskManager()


def _check_fields(name: str, task: Any) -> None:
  """Raises ValueError for a document without a field of the task's templates,
  which would be empty text."""
  environment = jinja2.Environment()
  fields: set[str] = set()
  for part in ("doc_to_text", "doc_to_target", "doc_to_choice"):
    template = getattr(task.config, part)
    if not isinstance(template, str):
      continue
    if template in task.features or template.isidentifier():
      fields.add(template)  # a field's name stands for its value
    else:
      fields |= jinja2.meta.find_undeclared_variables(
          environment.parse(template)
      )
  fields -= set(environment.globals)
  for i, document in enumerate(task.eval_docs):
    for field in sorted(fields):
      if document.get(field) is None:
        raise ValueError(
            f"Document {i + 1} of {name} lacks the field {field!r}, which the"
            f" task's templates name: {sorted(fields)}."
        )


def _local(name: str, folder: pathlib.Path) -> dict[str, Any]:
  """Returns what makes a task one whose data lie in a folder.

  Raises:
    ValueError: nothing to evaluate on is in it.
  """
  found = {s: folder / f"{s}.jsonl" for s in _SPLITS}
  found = {split: str(path) for split, path in found.items() if path.is_file()}
  if not set(found) & {"validation", "test"}:
    raise ValueError(
        f"{folder} holds neither validation.jsonl nor test.jsonl for {name}."
    )
  splits = (("training", "train"), *((s, s) for s in _SPLITS[1:]))
  return {
      "task": name,
      "dataset_path": "json",
      "dataset_name": None,
      "dataset_kwargs": {"data_files": found},
      **{f"{key}_split": s if s in found else None for key, s in splits},
  }


def evaluate(
    model: HarnessModel,
    tasks: Sequence[Any],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
  """Returns the metrics of tasks, by their names, as lm-eval computes them.

  Args:
    model: that is asked.
    tasks: of `make_tasks`.
    num_fewshot: solved examples in front; None: as the task has it.
    limit: documents of each task, the first ones; None: all.

  Raises:
    ValueError: a request is one that the model cannot answer.
  """
  results = lm_eval.simple_evaluate(
      model,
      tasks=list(tasks),
      num_fewshot=num_fewshot,
      limit=limit,
      log_samples=False,
      bootstrap_iters=0,
      task_manager=_task_manager(),
  )
  return {
      name: {
          metric.removesuffix(",none"): value
          for metric, value in found.items()
          if isinstance(value, float)
      }
      for name, found in results["results"].items()
  }


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0]}"[:300]
