"""The explorer's frames in Chromium: 300 nodes and 16,384 features, panned, zoomed and searched.

    PYTHONPATH=.:tests/support python benchmarks/explorer_frames.py [--nodes 300] [--features 16384] [--frames 120]

Every frame one thing is done: the wheel turns, the pointer drags, the search gets another letter. Printed are the
median and the 95th percentile of the time from frame to frame, and of the script's own part of it; 16.7 ms is 60 frames
per second. Without a graphics card the pixels are drawn by the processor, and count. Beside them stands an empty frame
of the same page, which is what the machine does at best.
"""

import argparse
import tempfile
from pathlib import Path

from chromium import CHROMIUM, chromium
from explorer_pages import card, large
from report import Report

from subrank.pages.explorer import explore

FRAMES = """(async (n) => {
  const stage = document.querySelector("#stage"), search = document.querySelector("#search");
  const finger = {bubbles: true, button: 0, pointerId: 1, isPrimary: true};
  const point = (type, i) => stage.dispatchEvent(
    new PointerEvent(type, {...finger, clientX: 500 + 4 * (i % 40), clientY: 450 + 2 * (i % 30)}));
  const wheel = (deltaY) =>
    stage.dispatchEvent(new WheelEvent("wheel", {deltaY, clientX: 500, clientY: 450, cancelable: true}));
  const words = ["label 1", "she", ")", "5_20", "no such thing", "label"];
  const acts = {
    nothing: () => {},
    pan: (i) => point(i === 0 ? "pointerdown" : i === n - 1 ? "pointerup" : "pointermove", i),
    zoom: (i) => wheel(i % 40 < 20 ? 40 : -40),
    hover: (i) => { const nodes = stage.querySelectorAll(".node:not([hidden])");
      nodes[i % nodes.length].dispatchEvent(new MouseEvent("mouseenter")); },
    search: (i) => { const word = words[Math.floor(i / 12) % words.length];
      search.value = word.slice(0, 1 + (i % 12) % word.length); search.dispatchEvent(new Event("input")); },
    scroll: (i) => { document.querySelector(".scroll").scrollTop = 3000 * i; },
  };
  stage.setPointerCapture = () => {}; // a made-up pointer cannot be captured
  stage.hasPointerCapture = () => true;
  const frame = () => new Promise(requestAnimationFrame);
  const at = (values, share) => [...values].sort((a, b) => a - b)[Math.floor(share * (values.length - 1))];
  const rows = [];
  for (const [name, act] of Object.entries(acts)) {
    document.querySelector(`[data-view=${name === "scroll" ? "features" : "circuit"}]`).click();
    const [whole, script] = [[], []];
    let before = await frame();
    for (let i = 0; i < n; i++) {
      const start = performance.now();
      act(i);
      script.push(performance.now() - start);
      const now = await frame();
      whole.push(now - before);
      before = now;
    }
    rows.push([name, at(whole, 0.5), at(whole, 0.95), at(script, 0.5), at(script, 0.95)]);
  }
  return rows;
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("nodes", 300), ("features", 16_384), ("frames", 120)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    if not CHROMIUM:
        raise SystemExit("no Chromium on this machine; install chromium and run this again")
    graph = large(-(-(options.nodes - 2) // 5), 6, seed=1)
    slim = {"histogram": None, "drops": None, "promotes": [], "suppresses": [], "near": []}
    cards = (card(f"{i % 6}_{i // 6}", f"label {i}", **slim) for i in range(options.features))
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "profile") as browser:
        path = explore(Path(folder) / "explore", graph, cards)
        report, page = Report(), browser.page(1440, 900)
        for tidy in (True, False):  # the strongest arrows, as it opens; then all nodes and arrows
            page.open(path, f"#min={'' if tidy else '0'}&tidy={int(tidy)}")
            drawn = page.run("[...document.querySelectorAll('.node')].filter(n => !n.hidden).length")
            arrows = page.run("document.querySelector('#count').innerText")
            report.say(f"{drawn} of {len(graph.nodes)} nodes, {arrows}:")
            head = ("frames", "median, ms", "95th percentile, ms", "script, median", "script, 95th percentile")
            rows = page.run(f"{FRAMES}({options.frames})")
            report.table(head, [(name, *(f"{value:.1f}" for value in values)) for name, *values in rows])


if __name__ == "__main__":
    main()
