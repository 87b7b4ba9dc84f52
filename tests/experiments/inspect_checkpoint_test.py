# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint is, and its page, opened in a browser."""

import html
import re
import shutil
import subprocess

from absl.testing import absltest
import jax
import numpy as np

from experiments import _inspect_page
from tests.experiments import processes
import titans_jax as titans
from titans_jax.evaluation import inspection

_TEXT = "naïve <b>&amp;</script> text of a memory\n" * 4


class InspectCheckpointTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = processes.folder(cls)
    config = titans.presets.tiny(variant="lmm", vocab_size=257)
    model = titans.TitansLM(config)
    variables = jax.jit(model.init)(jax.random.key(0), **model.init_inputs())
    variables = jax.tree.map(lambda x: x.astype("float32"), variables)
    cls.model = cls.folder / "exported"
    titans.export(cls.model, model, variables)
    cls.size = sum(x.size for x in jax.tree.leaves(variables))
    with jax.enable_x64(False):  # as the program has it
      state = jax.eval_shape(lambda: model.init_state(variables, batch_size=1))
    cls.bytes = titans.size_in_bytes(state)
    cls.text = cls.folder / "text.txt"
    cls.text.write_text(_TEXT)
    cls.page = cls.folder / "pages" / "text.html"
    cls.process = processes.run(
        "inspect_checkpoint",
        f"--checkpoint={cls.model}",
        f"--text={cls.text}",
        f"--output={cls.page}",
    )

  def test_says_what_it_is(self):
    self.assertEqual(self.process.returncode, 0, self.process.stderr)
    for line in (
        r"format +exported model, version 1",
        rf"parameters +{self.size:,} \({4 * self.size:,} bytes\)",
        rf"state +{self.bytes:,} bytes a sequence",
        r"model\.variant +lmm",
    ):
      self.assertRegex(self.process.stdout, line)

  def browse(self, address, name="text.html"):
    """Returns the document that a browser makes of the page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
      self.skipTest("There is no Chromium.")
    process = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            f"--user-data-dir={self.folder / 'browser'}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            f"file://{self.page.with_name(name)}{address}",
        ],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    return process.stdout

  def test_page_shows_text_and_values(self):
    document = self.browse("#measure=contribution&token=7")
    (text,) = re.findall(r'<div id="text">(.*?)</div>', document, re.DOTALL)
    self.assertEqual(html.unescape(re.sub("<.*?>", "", text)), _TEXT)
    spans = re.findall(r"<span.*?</span>", text, re.DOTALL)
    self.assertLen(spans, len(_TEXT.encode()))
    self.assertTrue(all("background: rgba(" in span for span in spans))
    self.assertIn('class="here"', spans[7])
    self.assertIn('aria-pressed="true">what learning added<', document)
    self.assertRegex(document, r"learning rate <b>[\d.e-]+</b>")
    # The curve goes through all tokens
    (path,) = re.findall(r'<path id="line" d="(.*?)"', document)
    self.assertLen(re.findall("[ML]", path), len(spans))
    # Another measure and block colour it otherwise
    other = self.browse("#measure=surprise&block=1")
    self.assertIn('aria-pressed="true">surprise<', other)
    self.assertNotIn(spans[3], other)

  def test_what_is_not_finite_is_said(self):
    trace = inspection.Trace(
        *(np.zeros(2),) * 2,
        *(np.array([[np.nan, 3.0], [1.0, 2.0]]),) * 5,
    )
    self.page.with_name("nan.html").write_text(
        _inspect_page.page("@DATA@ <x>", [("a", "@ABOUT@")], ["x", "y"], trace)
    )
    document = self.browse("#measure=surprise&block=&token=0", "nan.html")
    self.assertIn("<h1>@DATA@ &lt;x&gt;</h1>", document)
    self.assertIn("<td>@ABOUT@</td>", document)
    self.assertIn("surprise <b>not finite</b>", document)
    self.assertRegex(document, r"background: (magenta|rgb\(255, 0, 255\))")

  def test_refuses(self):
    empty = self.folder / "empty.txt"
    empty.touch()
    page = f"--output={self.page}"
    for args, message in (
        ((f"--text={self.text}",), "without each other"),
        ((f"--text={empty}", page), f"--text={empty}: "),
        (
            (f"--text={self.text}", f"--output={self.folder / 'x.txt'}"),
            "must end in .html",
        ),
        (("--max_tokens=5",), "--max_tokens means nothing without --text"),
    ):
      process = processes.run(
          "inspect_checkpoint", f"--checkpoint={self.model}", *args
      )
      processes.assert_refused(self, process, message)


if __name__ == "__main__":
  absltest.main()
