"""The HTML page in Chromium: sorting, filter, dark mode, no console error, nothing wider than a phone's screen.

Slow, and only where a Chromium is installed; everything that can be checked without one is in test_render.py.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from handmade import both, everything, hostile, many_layers
from test_comparison import document as sweep
from test_comparison import row

from lcnn_analyze import RENDERERS, Report
from lcnn_analyze.render import study
from lcnn_analyze.render.sweep import sweep_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]

PROBE = """<!doctype html><meta charset="utf-8">
<iframe id="page" src="report.html" style="width:{width}px;height:900px;border:0"></iframe>
<pre id="answer"></pre><script>
const errors = [];
page.onload = () => {{
  const d = page.contentDocument, w = page.contentWindow;
  w.onerror = message => errors.push(message);
  const answer = (() => {{ {script} }})();
  document.getElementById("answer").textContent = JSON.stringify({{ answer, errors }});
}};
</script>"""


@pytest.fixture
def ask(tmp_path):
    """Open a report in a frame of this width, run a script (``d`` is its document, ``w`` its window) and return."""

    def call(made: Report | bytes, script: str, width: int = 1280):
        page = made if isinstance(made, bytes) else RENDERERS["html"].render(made)
        (tmp_path / "report.html").write_bytes(page)
        probe = tmp_path / "probe.html"
        probe.write_text(PROBE.format(width=width, script=script), encoding="utf-8")
        dumped, log = _chromium(probe, tmp_path / "profile")
        assert not re.findall(r"CONSOLE.*", log)
        text = re.search(r'<pre id="answer">(.*?)</pre>', dumped, re.S).group(1)
        answer = json.loads(html.unescape(text))
        assert answer["errors"] == []
        return answer["answer"]

    return call


def _chromium(page: Path, profile: Path) -> tuple[str, str]:
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync "
    options += f"disable-component-update allow-file-access-from-files enable-logging=stderr user-data-dir={profile} "
    options += "virtual-time-budget=4000 dump-dom"
    command = [CHROMIUM, *(f"--{option}" for option in options.split()), page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return ran.stdout, ran.stderr


NAMES = "[...table.tBodies[0].rows].filter(r => r.getClientRects().length).map(r => r.cells[0].textContent)"


def test_a_click_sorts_a_second_turns_round_a_third_restores(ask):
    script = f"""
      const table = d.querySelector("#m1"), heads = [...table.tHead.rows[0].cells];
      const total = heads.find(head => head.textContent.startsWith("total"));
      const seen = [{NAMES}];
      for (let i = 0; i < 3; i++) {{ total.click(); seen.push({NAMES}, total.getAttribute("aria-sort")); }}
      return seen;"""
    order, down, first, up, second, back, third = ask(everything(), script)
    model = everything().models[1]
    macs = {layer.name: layer.values["macs"] for layer in model.costs.layers}
    assert order == back == [name for name in macs if macs[name]]
    assert down == sorted(order, key=lambda name: -macs[name])
    assert up == down[::-1]
    assert (first, second, third) == ("descending", "ascending", None)


def test_the_keyboard_sorts_too(ask):
    script = f"""
      const table = d.querySelector("#m1"), head = table.tHead.rows[0].cells[0];
      head.dispatchEvent(new w.KeyboardEvent("keydown", {{ key: "Enter" }}));
      return {NAMES};"""
    assert ask(everything(), script) == ["body.0", "body.1", "head", "stem"]


def test_the_filter_and_the_hidden_calls(ask):
    script = f"""
      const table = d.querySelector("#m1"), tools = table.closest("section").querySelector(".tools");
      const filter = tools.querySelector("[type=search]"), free = tools.querySelector("[name=free]");
      const type = text => {{ filter.value = text; filter.oninput(); return {NAMES}; }};
      const seen = [type("lookup 3x3"), type("nothing"), type("")];
      free.click(); seen.push({NAMES}); seen.push(tools.querySelector("output").textContent);
      return seen;"""
    shown = ["stem", "body.0", "body.1", "head"]
    assert ask(everything(), script) == [["body.0"], [], shown, ["stem", "norm", "body.0", "body.1", "head"], ""]


def test_all_columns_show_when_asked(ask):
    script = """
      const heads = () => [...d.querySelectorAll("#m1 thead th")].filter(h => h.getClientRects().length).length;
      const before = heads(); d.querySelectorAll("[name=wide]")[1].click(); return [before, heads()];"""
    before, after = ask(everything(), script)
    assert 8 <= before < after


def test_dark_mode_turns_and_text_stays_readable(ask):
    script = """
      const weights = [0.2126, 0.7152, 0.0722];
      const channels = color => color.match(/[\\d.]+/g).slice(0, 3);
      const luminance = color => channels(color).reduce((sum, c, i) => sum + weights[i] * c / 255, 0);
      const look = () => {
        const style = w.getComputedStyle(d.body);
        return [luminance(style.backgroundColor), luminance(style.color)];
      };
      const light = look(); d.getElementById("theme").click(); return [light, look()];"""
    (ground, ink), (dark_ground, dark_ink) = ask(everything(), script)
    assert ground > 0.9 > 0.2 > ink
    assert dark_ground < 0.15 < 0.8 < dark_ink


def sweep_page():
    long = {"command": "OMP_NUM_THREADS=1 lcnn train --from " + "a-long-folder/" * 9 + "x.pt", "checkpoint": "t/" * 40}
    rows = [row("narrow", 3.0, seed, 0.9, latency={"network": 1, "dense": 2, "spread": 0.1}, **long) for seed in (0, 1)]
    return study.html(sweep_study([sweep(rows, network=name * 9) for name in ("net-", "<b>")]))


@pytest.mark.parametrize(
    "make",
    [everything, both, hostile, lambda: many_layers(60), sweep_page],
    ids=["two", "both", "hostile", "60", "sweep"],
)
@pytest.mark.parametrize("width", [375, 1280])
def test_no_element_is_wider_than_the_screen(ask, make, width):
    script = """
      d.querySelectorAll("details").forEach(e => { e.open = true; });
      d.querySelectorAll(".tools input[type=checkbox]").forEach(e => { if (w.innerWidth < 700) e.click(); });
      const room = d.documentElement.clientWidth;
      return [...d.body.querySelectorAll("*")].filter(e => { const r = e.getBoundingClientRect();
        return r.width && (r.right > room + 0.5 || r.left < -0.5) && !(room > 700 && e.closest(".scroll")); })
        .map(e => e.tagName + " " + e.textContent.slice(0, 40));"""
    assert ask(make(), script, width) == []


def test_nothing_is_requested_and_the_json_is_whole(ask):
    script = """
      const data = JSON.parse(d.getElementById("report").textContent);
      const requests = w.performance.getEntriesByType("resource").length;
      return [requests, data.models.length, d.querySelectorAll("img").length];"""
    assert ask(hostile(), script) == [0, 1, 0]


def test_a_page_of_2000_layers_stays_usable(ask):
    script = """
      const head = d.querySelector("#m0 thead th"), start = w.performance.now();
      head.click();
      return [d.querySelectorAll("#m0 tbody tr").length, w.performance.now() - start];"""
    rows, milliseconds = ask(many_layers(2000), script)
    assert rows == 2000
    assert milliseconds < 3000
