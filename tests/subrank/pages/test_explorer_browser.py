"""The explorer in a headless Chromium: what clicks, keys and names do."""

import json
import time
from dataclasses import replace
from pathlib import Path

from chromium import Page
from explorer_pages import HOSTILE, card, counted, edge, example, example_cards, node, panel, slide

from circuits.graph import FeatureGraph
from subrank.pages.explorer import Captions, explore
from subrank.pages.names import read_names


def test_it_opens_without_complaint(page, tmp_path):
    page.open(explore(tmp_path / "own", example(), example_cards(), captions=Captions("Own title")))
    assert page.errors() == []
    assert page.run("document.title") == "Own title"
    assert page.run("document.querySelectorAll('.node').length") == 5 and counted(page) == 6
    heights = dict(page.all(".node", "[e.dataset.id, e.getBoundingClientRect().y]"))
    assert heights["2_1"] < heights["1_1"] == heights["1_2"] < heights["0_1"] == heights["0_2"]
    assert page.run("document.querySelector('.node[data-id=\"1_1\"]').innerText").startswith("1_1")
    assert "label of 1_1" in page.run("document.querySelector('.node[data-id=\"1_1\"]').innerText")


def test_the_slider_changes_the_number_of_arrows(page, tmp_path):
    page.open(explore(tmp_path / "own", example(), []))
    for value in (0, 300, 500, 700, 900, 1000, 0):
        slide(page, value)
        limit = 0.8 * (value / 1000) ** 2
        expected = sum(abs(e.effect) >= limit for e in example().edges)
        assert counted(page) == expected and f"{expected} of 6 arrows" in page.run(
            "document.querySelector('#count').innerText"
        )
    assert page.errors() == []


def test_a_click_on_a_node_opens_its_card(page, tmp_path):
    page.open(explore(tmp_path / "own", example(), example_cards()))
    for name in ("0_2", "1_1", "2_1"):
        page.click(f'.node[data-id="{name}"]')
        page.wait(f"document.querySelector('#name')?.innerText === 'label of {name}'")
        text = panel(page)
        assert f"word{name}" in text and "0.90" in text.replace("0.9\n", "0.90\n") and "Nearest" in text.title()
        assert page.run("document.querySelectorAll('#panel .chart').length") == 2
    text = panel(page)
    assert all(name in text for name in ("1_1", "1_2", "0_1")) and "+0.80" in text and "−0.40" in text
    page.press("Escape")
    page.wait("!document.querySelector('#name')")
    assert page.errors() == []


FREE = """(() => { for (let part = 0.08; part < 0.95; part += 0.04) {
  const p = e.getPointAtLength(part * e.getTotalLength()).matrixTransform(e.getScreenCTM());
  if (document.elementFromPoint(p.x, p.y) === e) return [p.x, p.y] } })()"""
"""A point of an arrow that no other arrow or box covers."""


def test_a_click_on_an_arrow_shows_its_examples(page, tmp_path):
    graph = example()
    shown = {
        (e.cause, e.target): [
            {
                "tokens": ["from", f"{e.cause} to {e.target}"],
                "cause": [1.0, 0.0],
                "target": [0.0, 2.0],
                "end": 1,
                "drop": 0.25,
            }
        ]
        for e in graph.edges
    }
    page.open(explore(tmp_path / "own", graph, [], edge_examples=shown))
    for link in graph.edges:
        page.press("Escape")
        arrow = f'.edge[data-cause="{link.cause}"][data-target="{link.target}"] .hit'
        (middle,) = page.all(arrow, FREE)
        page.click("", at=tuple(middle))
        page.wait(f"document.querySelector('#panel').innerText.includes('{link.cause} to {link.target}')")
        assert f"{link.effect:+.2f}".replace("-", "−") in panel(page) and "−0.25" in panel(page)
    assert "Not certified" in panel(page)
    assert page.errors() == []


def test_search_finds_features_by_id_label_token_and_name(page, tmp_path):
    cards = [card(f"{layer}_{i}", f"label {layer}.{i}", f" w{i}w") for layer in range(2) for i in range(300)]
    page.open(explore(tmp_path / "own", example(), cards, captions=Captions(names={"1_250": "Nom de plume"})))
    page.press("f")
    page.press("/")
    for text, first, n in (
        ("1_250", "1_250", 1),
        ("LABEL 0.27", "0_27", 11),
        ("w123w", "0_123", 2),
        ("nom plume", "1_250", 1),
    ):
        page.run("document.querySelector('#search').select()")
        page.type(text)
        page.wait(f"document.querySelector('#found').innerText === '{n} of 600'")
        assert page.run("document.querySelector('.item').dataset.id") == first
    page.press("Enter")
    page.wait("document.querySelector('#name')?.innerText === 'Nom de plume'")
    assert "label 1.250" in panel(page)  # out of the right chunk
    page.press("Escape")
    assert page.run("document.querySelector('#found').innerText") == "600 features"
    page.all("#site", "(e.value = 'resid_post.1', e.dispatchEvent(new Event('change')))")
    assert page.run("document.querySelector('.item').dataset.id") == "1_0"
    assert page.errors() == []


def test_a_name_survives_and_is_saved(page, tmp_path):
    names = {"0_1": "given with the page", "0_2": "to be taken away"}
    path = explore(tmp_path / "own", example(), example_cards(), captions=Captions(names=names))
    page.open(path)
    for name, text in (("1_1", 'she <b>"said"</b> 🎉'), ("0_2", "")):
        page.click(f'.node[data-id="{name}"]')
        page.wait(f"document.querySelector('#panel .id')?.innerText === '{name}' && document.querySelector('#rename')")
        page.click("#rename")
        page.run("document.querySelector('#newname').select()")
        if text:
            page.type(text)
        else:
            page.run("document.querySelector('#newname').value = ''")
        page.press("Enter")
    page.reload()
    titles = dict(page.all(".node", "[e.dataset.id, e.querySelector('.name').innerText]"))
    assert titles["1_1"] == 'she <b>"said"</b> 🎉' and titles["0_1"] == "given with the page"
    assert titles["0_2"] == "label of 0_2"
    folder = tmp_path / "downloads"
    page.browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.click("#save")
    page_saved(folder / "names.json")
    assert read_names(folder / "names.json") == {"0_1": "given with the page", "1_1": 'she <b>"said"</b> 🎉'}
    page.open(
        explore(tmp_path / "other", replace(example(), edges=example().edges[1:]), example_cards())
    )  # another run
    assert page.run("document.querySelector('.node[data-id=\"1_1\"] .name').innerText") == "label of 1_1"
    assert page.errors() == []


def page_saved(path: Path) -> None:
    """Wait for a download."""
    for _ in range(200):
        if path.is_file() and path.stat().st_size:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{path.name} was not saved")


def test_hostile_tokens_are_text(page, tmp_path):
    words = [word for word in HOSTILE if word]
    nodes = tuple(node(f"{i % 3}_{i}", word) for i, word in enumerate(HOSTILE))
    cards = [
        card(str(n.id), word, word, near=[{"id": word, "cosine": 0.1}]) for n, word in zip(nodes, HOSTILE, strict=True)
    ]
    edges = (edge("0_0", "1_1", 0.5), edge("1_1", "2_2", 0.5))
    shown = {
        (edges[0].cause, edges[0].target): [
            {"tokens": words, "cause": [1.0] * len(words), "target": [0.5] * len(words), "end": 0, "drop": 0.1}
        ]
    }
    page.open(
        explore(
            tmp_path / "own",
            FeatureGraph(edges[1].target, nodes, edges),
            cards,
            edge_examples=shown,
            captions=Captions(HOSTILE[1]),
        )
    )
    for i, word in enumerate(HOSTILE):
        page.run(f"document.querySelector('.node[data-id=\"{i % 3}_{i}\"]').click()")
        page.wait(
            f"document.querySelector('#panel .id')?.innerText === '{i % 3}_{i}' && document.querySelector('.example')"
        )
        seen = page.run("document.querySelector('#panel').textContent")
        assert word in seen or not word.strip() or any(ord(c) in (0x202E, 0x202C, 0x2028, 0x2029, 0xD83D) for c in word)
    page.run("document.querySelector('.effect')?.click(), subrank.light.select(null)")
    page.run(f"location.hash = '#' + encodeURIComponent({json.dumps(HOSTILE[2])})")
    page.run("location.hash = '#' + encodeURIComponent('0_0>1_1')")
    page.wait("document.querySelectorAll('.example .token').length > 5")
    page.click(".more")  # the rest of the context
    tokens = page.all(".example .token", "e.textContent")
    for word, shown_as in zip(words, tokens, strict=True):
        if word.isprintable() and word.strip():
            assert shown_as == word
    assert "[U+202E]evil[U+202C]" in tokens and "↵⇥[CR][U+0000]" in tokens and "[U+D83D]" in tokens and "␣" in tokens
    page.press("f")
    page.press("/")
    page.type("script")
    page.wait("document.querySelector('#found').innerText.startsWith('2 of')")
    assert page.run("typeof boom") == "undefined"
    assert page.run("document.querySelectorAll('main script, main img').length") == 0
    assert page.run(
        "[...document.querySelectorAll('.token, bdi')].every(e => getComputedStyle(e).unicodeBidi === 'isolate')"
    )
    assert page.errors() == []


def test_what_goes_wrong_would_be_seen(page, tmp_path):
    """Control for all tests that find no errors: markup that runs, and a script that fails, are both told of."""
    page.open(explore(tmp_path / "own", example(), []))
    assert page.errors() == []
    page.run("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=x onerror=boom=1>')")
    page.wait("document.querySelectorAll('main img').length === 1")
    page.run("new Promise(done => setTimeout(done, 50))")
    assert any("event handler" in error for error in page.errors())  # and the policy of the page kept it from running
    assert page.run("typeof boom") == "undefined"
    page.run("setTimeout(() => { throw new Error('seen') })")
    page.run("new Promise(done => setTimeout(done, 50))")
    assert "seen" in page.errors()[-1]


def test_nodes_are_hidden_and_pinned(page, tmp_path):
    page.open(explore(tmp_path / "own", example(), example_cards()))
    page.click('.node[data-id="1_1"]')
    page.wait("document.querySelector('#hide')")
    page.press("h")
    assert counted(page) == 3 and page.run("document.querySelector('.node[data-id=\"1_1\"]').hidden")
    page.reload()
    assert counted(page) == 3  # it stays so
    page.click("#unhide")
    assert counted(page) == 6
    for name in ("0_2", "1_1"):
        page.click(f'.node[data-id="{name}"]')
        page.wait(f"document.querySelector('#panel .id')?.innerText === '{name}'")
        page.press("p")
    slide(page, 1000)
    assert counted(page) == 2  # the strongest, and the one between the pinned
    page.click("#only")
    assert counted(page) == 1
    assert page.run("[...document.querySelectorAll('.node')].filter(n => !n.hidden).length") == 2
    assert page.errors() == []


def test_the_keyboard_reaches_everything(page, tmp_path):
    page.open(explore(tmp_path / "own", example(), example_cards()))
    focused = "document.activeElement.dataset.id"
    page.press("ArrowDown")
    assert page.run(focused) == "2_1"  # the target comes first
    page.press("ArrowDown")
    assert page.run(focused) in ("1_1", "1_2")
    page.press("ArrowRight" if page.run(focused) == left(page, "1_1", "1_2") else "ArrowLeft")
    page.press("Enter")
    page.wait(f"document.querySelector('#panel .id')?.innerText === {focused}")
    page.press("?")
    assert page.run("document.querySelector('#keys').open")
    page.press("Escape")
    page.wait("!document.querySelector('#keys').open")
    page.press("Escape")
    assert page.run("document.querySelector('#name')") is None
    page.press("f")
    page.press("ArrowDown")
    page.press("ArrowDown")
    page.press("Enter")
    page.wait("document.querySelector('#panel .id')?.innerText === '0_2'")
    assert page.errors() == []


def left(page: Page, *names: str) -> str:
    """Which of some nodes stands furthest left."""
    return min(
        names,
        key=lambda name: page.run(f"document.querySelector('.node[data-id=\"{name}\"]').getBoundingClientRect().x"),
    )


def test_a_page_of_cards_alone_and_a_missing_chunk(page, tmp_path):
    path = explore(tmp_path / "own", None, (card(f"0_{i}", f"label {i}") for i in range(300)))
    (tmp_path / "own" / "data" / "features-001.js").unlink()
    page.open(path)
    assert page.errors() == []
    page.click('.item[data-id="0_3"]')
    page.wait("document.querySelector('#name')?.innerText === 'label 3'")
    page.run("location.hash = '#0_299'")
    page.wait("document.querySelector('.problem')?.innerText.includes('features-001.js')")
    page.press("Escape")
    page.run("location.hash = '#0_1'")
    page.wait("document.querySelector('#name')?.innerText === 'label 1'")
