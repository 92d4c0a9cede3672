"""The explorer in a headless Chromium: what it opens with, on any screen; search, groups and addresses."""

import json
from dataclasses import replace
from itertools import combinations

from chromium import Page
from explorer_pages import card, counted, edge, example, example_cards, large, node, panel, slide

from circuits.features.feature_label import FeatureLabel
from circuits.graph import FeatureGraph
from subrank.pages.explorer import Captions, explore
from subrank.pages.names import read_groups

SIZES = """[...document.querySelectorAll("SELECTOR")].filter(e => e.getClientRects().length)
  .map(e => parseFloat(getComputedStyle(e).fontSize) * e.getBoundingClientRect().width / e.offsetWidth)"""


def sizes(page: Page, selector: str) -> list[float]:
    """Sizes of letters on the screen, in pixels."""
    return page.run(SIZES.replace("SELECTOR", selector))


def shown(page: Page) -> list[str]:
    return page.run("[...document.querySelectorAll('.node')].filter(n => !n.hidden).map(n => n.dataset.id)")


def search(page: Page, text: str) -> str:
    """What the page says of a search in the circuit."""
    page.run(
        f"(e => (e.value = {json.dumps(text)}, e.dispatchEvent(new Event('input'))))(document.querySelector('#search'))"
    )
    return page.run("new Promise(done => setTimeout(() => done(document.querySelector('#hits').textContent), 30))")


def test_a_large_circuit_opens_with_its_strongest_arrows_and_can_be_read(page, tmp_path):
    graph = large(8, 6, seed=2)
    path = explore(tmp_path / "own", graph, [])
    for width, height in ((1440, 900), (390, 844)):
        page.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        page.open(path)
        assert 15 <= counted(page) <= 25 and len(shown(page)) < len(graph.nodes)
        assert min(sizes(page, ".node:not([hidden]) .id")) >= 10 and min(sizes(page, ".number")) >= 10
        assert page.run("document.documentElement.scrollWidth") == width
        inside = "(r => r.left >= 0 && r.right <= innerWidth)(e.getBoundingClientRect())"
        assert all(page.all(".controls > :not([hidden]), .bar > *, .legend, #panel", inside))
        legend, stage = (page.all(name, "e.offsetWidth * e.offsetHeight")[0] for name in (".legend", "#stage"))
        assert legend < 0.15 * stage
    page.press("t")
    assert len(shown(page)) == len(graph.nodes)  # control: all of them are there
    assert page.errors() == []


def test_texts_have_the_spaces_of_their_model(page, tmp_path):
    """Tokens that bring their spaces stand side by side, others apart; what follows the end of an example is shown."""
    words = (["In", "Athens", "it", "stays", ")"], ["In", " Athens", " it", " stays", ")"])
    for i, tokens in enumerate(words):
        texts = [{"group": "top", "tokens": tokens, "activations": [0.0, 1.0, 0.0, 0.0, 0.0], "end": 1}]
        behind = {"tokens": tokens, "cause": [0.5, 1.0, 0.0], "target": [0.0, 0.0, 2.0], "end": 2, "drop": 0.5}
        link = example().edges[0]
        path = explore(
            tmp_path / str(i),
            example(),
            [card("1_1", "x", examples=texts)],
            edge_examples={(link.cause, link.target): [behind]},
        )
        expected = "In Athens it stays" + " )" * (i == 0) + ")" * (i == 1)
        for fragment in ("#1_1", "#1_1>2_1"):
            page.open(path, fragment)
            page.wait("document.querySelector('.example .text')")
            assert page.run("document.querySelector('.example .text').textContent") == expected
    assert page.errors() == []


def test_a_search_marks_nodes_goes_to_them_and_says_where_nothing_is(page, tmp_path):
    cards = [
        card("0_1", "a, b (+5)", ")"),
        card("0_2", "left", " x"),
        card("1_1", "right", " y"),
        card("3_9", "far", ")"),
    ]
    page.open(explore(tmp_path / "own", example(), cards))
    assert search(page, ")") == "1 of 5 nodes, 2 features"  # not those that leave five tokens out
    marked = page.run("[...document.querySelectorAll('.match')].map(e => e.dataset.id)")
    assert marked == ["0_1"] and not page.run("document.querySelector('#stage').hidden")
    assert "nothing" in search(page, "bracket")
    search(page, "0_2")
    page.run("subrank.camera.zoom(3), document.querySelector('#search').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#name')?.innerText === 'left'")
    (box,), (stage,) = (
        page.all(s, "(r => [r.left, r.right])(e.getBoundingClientRect())") for s in ('.node[data-id="0_2"]', "#stage")
    )
    assert stage[0] <= box[0] and box[1] <= stage[1]
    assert search(page, "far") == "0 of 5 nodes, 1 feature"
    page.press("Enter")  # only the list has it
    assert not page.run("document.querySelector('#list').hidden")
    search(page, "no such thing")
    assert "No feature has “no such thing”" in page.run("document.querySelector('.nothing').innerText")
    assert page.errors() == []


def test_an_address_brings_back_what_is_seen(page, tmp_path):
    path = explore(tmp_path / "own", example(), example_cards())
    page.open(path)
    page.click('.node[data-id="1_1"]')
    page.wait("document.querySelector('#name')")
    page.press("p")
    page.run("subrank.graph.flip('hidden', '0_2')")
    slide(page, 400)
    search(page, "0_1")
    page.wait("location.hash.includes('q=')")
    seen = "[location.hash, document.querySelector('#limit').value, document.querySelector('#name').innerText]"
    before, drawn = page.run(seen), (counted(page), shown(page), page.all(".pinned, .match", "e.dataset.id"))
    page.send("Storage.clearDataForOrigin", origin="file://", storageTypes="all")
    page.open(path, before[0])
    page.wait("document.querySelector('#name')")
    assert (
        page.run(seen) == before and (counted(page), shown(page), page.all(".pinned, .match", "e.dataset.id")) == drawn
    )
    page.open(path, "#0_1>1_1")  # the short form
    page.wait("document.querySelector('.badge')")
    assert page.run("document.querySelector('.ends').innerText").split() == [
        "0_1",
        "label",
        "of",
        "0_1",
        "→",
        "1_1",
        "label",
        "of",
        "1_1",
    ]
    assert page.errors() == []


def test_nodes_are_grouped_by_hand_and_by_label(page, tmp_path):
    """The effects of a group are its members', summed: 0.2 and 0.1 of 1_1, 0.6 of 1_2, 0.3 of 2_1."""
    labels = {"1": FeatureLabel("alike", f1=0.9, control=0.1), "0": FeatureLabel("word", f1=0.9, control=0.1)}
    nodes = tuple(replace(n, label=labels.get(str(n.id)[0])) for n in example().nodes)
    path = explore(tmp_path / "own", replace(example(), nodes=nodes), example_cards())
    page.open(path)
    for name in ("0_1", "0_2"):
        page.run(f"subrank.graph.flip('pinned', '{name}')")
    page.press("g")
    page.wait("document.querySelector('#newname')")
    page.run("document.querySelector('#newname').select()")
    page.type("openers")
    page.press("Enter")
    page.wait("document.querySelector('#name')?.innerText === 'openers'")
    group = "group: openers"
    assert set(shown(page)) == {"2_1", "1_1", "1_2", group}
    effects = dict(page.all(f'.edge[data-cause="{group}"]', "[e.dataset.target, e.querySelector('title').textContent]"))
    assert "+0.30, the sum of 2 arrows" in effects["1_1"] and "+0.60" in effects["1_2"] and "+0.30" in effects["2_1"]
    assert all(name in panel(page) for name in ("0_1", "0_2"))
    page.reload()
    assert group in shown(page)  # it stays, and is in the address
    assert "group=openers" in page.run("location.hash")
    folder = tmp_path / "downloads"
    page.browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.click("#save")
    page.wait("true")
    for _ in range(100):
        if (folder / "names.json").is_file() and (folder / "names.json").stat().st_size:
            break
        page.run("new Promise(done => setTimeout(done, 20))")
    assert read_groups(folder / "names.json") == {"openers": ["0_1", "0_2"]}
    page.click("#ungroup")
    assert len(shown(page)) == 5
    page.click("#bylabel")
    assert set(shown(page)) == {"2_1", "group: word (layer 0)", "group: alike (layer 1)"}
    page.open(
        explore(tmp_path / "shipped", example(), example_cards(), captions=Captions(groups={"both": ["1_1", "1_2"]}))
    )
    page.send("Storage.clearDataForOrigin", origin="file://", storageTypes="all")
    page.open(tmp_path / "shipped" / "index.html")
    assert "group: both" in shown(page) and page.errors() == []


def test_a_node_is_moved_with_the_mouse_and_its_arrows_with_it(page, tmp_path):
    page.open(explore(tmp_path / "own", example(), example_cards()))
    place = "(r => [r.left + r.width / 2, r.top + r.height / 2])(e.getBoundingClientRect())"
    end = (
        "(p => { const q = p.getPointAtLength(0).matrixTransform(p.getScreenCTM()); return [q.x, q.y] })(e.firstChild)"
    )
    (x, y), (a, b) = (
        page.all('.node[data-id="0_1"]', place)[0],
        page.all('.edge[data-cause="0_1"][data-target="1_1"]', end)[0],
    )
    button = {"button": "left", "buttons": 1, "clickCount": 1}
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    page.send("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **button)
    for step in (20, 60):
        page.send("Input.dispatchMouseEvent", type="mouseMoved", x=x - step, y=y + step / 2, **button)
    page.send("Input.dispatchMouseEvent", type="mouseReleased", x=x - 60, y=y + 30, **button)
    moved, arrow = (
        page.all('.node[data-id="0_1"]', place)[0],
        page.all('.edge[data-cause="0_1"][data-target="1_1"]', end)[0],
    )
    assert [round(moved[0] - x), round(moved[1] - y)] == [-60, 30]
    assert [round(arrow[0] - a), round(arrow[1] - b)] == [-60, 30]
    assert page.run("document.querySelector('#name')") is None  # a drag is no click
    page.click('.node[data-id="0_1"]')
    page.wait("document.querySelector('#name')")
    assert page.errors() == []


def test_two_fingers_zoom_and_one_pans(page, tmp_path):
    page.send("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    page.send("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    page.open(explore(tmp_path / "own", example(), []))
    scale = "new DOMMatrix(getComputedStyle(document.querySelector('.world')).transform)"
    before = page.run(f"(m => [m.a, m.e])({scale})")

    def touch(kind: str, *points: tuple[int, int]) -> None:
        fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        page.send("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    touch("touchStart", (200, 300))
    touch("touchMove", (240, 300))
    touch("touchEnd")
    panned = page.run(f"(m => [m.a, m.e])({scale})")
    assert panned[0] == before[0] and round(panned[1] - before[1]) == 40
    touch("touchStart", (180, 300), (220, 300))
    touch("touchMove", (160, 300), (240, 300))
    touch("touchEnd")
    assert page.run(f"{scale}.a") > 1.5 * before[0]
    page.send("Emulation.setTouchEmulationEnabled", enabled=False)
    assert page.errors() == []


def test_rows_are_named_above_what_moves_below_them(page, tmp_path):
    """Zoomed in, boxes pass under the names of layers; numbers stay within the picture."""
    edges = tuple(edge(f"0_{i}", "1_0", 0.5 - i / 20) for i in range(8))
    graph = FeatureGraph(edges[0].target, (node("1_0"), *(node(f"0_{i}") for i in range(8))), edges)
    page.open(explore(tmp_path / "own", graph, []))
    assert "gradient" in page.run("getComputedStyle(document.querySelector('.rows')).backgroundImage")
    assert (
        page.run("document.querySelector('.world').compareDocumentPosition(document.querySelector('.rows')) & 4") == 4
    )
    inside = "(r => r.left >= 0 && r.right <= document.querySelector('#stage').clientWidth)(e.getBoundingClientRect())"
    numbers = page.all(".number", "(r => [r.left, r.right, r.top, r.bottom])(e.getBoundingClientRect())")
    assert len(numbers) >= 4 and all(page.all(".number", inside))
    apart = [a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2] for a, b in combinations(numbers, 2)]
    assert all(apart)


def test_the_run_says_how_good_it_is_and_does_not_contradict_itself(page, tmp_path):
    """A screen that left no candidate out is no screen."""
    facts = {"search": "screened", "exhaustive": True, "pairs_run": 66043}
    captions = Captions(quality=["faithfulness 0.35; ceiling 0.98"])
    page.open(explore(tmp_path / "own", replace(example(), facts=facts), [], captions=captions))
    assert "screened" not in panel(page) and "as exhaustive ablation finds" in panel(page) and "66,043" in panel(page)
    assert "faithfulness 0.35; ceiling 0.98" in panel(page)
    page.open(explore(tmp_path / "own", replace(example(), facts=facts | {"exhaustive": False}), []))
    assert "screened" in panel(page)
