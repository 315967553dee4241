"""The report page in a real browser: nothing is cut off, at the width of a desk and of a telephone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visynth.cli import main

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
ASKED = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll") && !e.closest("svg"))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + " " + e.textContent.slice(0, 40));
  const images = [...document.images];
  document.title = JSON.stringify({
    scroll: document.documentElement.scrollWidth, inner: innerWidth, wide: wide,
    images: images.length, broken: images.filter(i => !i.naturalWidth).length,
    charts: document.querySelectorAll("svg").length, cards: document.querySelectorAll(".card").length,
    hidden: [...document.querySelectorAll("td.wide svg")].filter(e => e.getBoundingClientRect().right > innerWidth).length,
  });
});</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    assert main(["quickstart", "--out", str(out / "q"), "--minutes", "1", "--quiet"]) == 0
    return out / "q/trial/report.html"


def browse(page: Path, width: int, folder: Path) -> dict:
    import json

    asked = folder / f"asked-{width}.html"
    asked.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{ASKED}</body>"), encoding="utf-8")
    shot = folder / f"{width}.png"
    common = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},6000"]
    dom = subprocess.run(
        [*common, "--dump-dom", asked.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    subprocess.run([*common, f"--screenshot={shot}", page.as_uri()], capture_output=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", dom.stdout, re.DOTALL)
    assert title is not None
    import html

    return json.loads(html.unescape(title.group(1)))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    seen = browse(page, width, tmp_path)
    assert seen["inner"] == width
    assert seen["scroll"] <= width, seen["wide"]
    assert seen["wide"] == []
    assert seen["images"] > 10
    assert seen["broken"] == 0
    assert seen["charts"] > 10
    assert seen["cards"] >= 2
    if width == 1280:
        assert seen["hidden"] == 0  # the interval of every arm is seen without scrolling
    with Image.open(tmp_path / f"{width}.png") as shot:
        values = np.asarray(shot.convert("L"))
    assert values.shape[1] == width
    assert len(np.unique(values)) > 50


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    from visynth.core.report import Report, lines, table, text

    report = Report("trial", "tiles & <more>")
    curve = lines("shares", [(0.0, 0.2), (0.1, 0.4)], {"classic": 0.3}, "share", "AP")
    report.section("A", text("<b>not bold</b>"), table(["x"], [["<i>"]]), curve)
    report.write(tmp_path)
    words = (tmp_path / "report.html").read_text()
    assert "http" not in words
    assert "<script" not in words
    assert "&lt;b&gt;not bold" in words
    assert "AP by share" in words
    assert "classic 0.300" in words
