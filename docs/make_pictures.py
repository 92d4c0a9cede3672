"""Makes the README's pictures and its table of results from what `subrank demo` wrote; needs Chromium.

python docs/make_pictures.py demo     # docs/circuit_story.svg, docs/ioi_curve.png; prints the table
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import subrank as sr
from editing.removal.measurement.evaluation import Method
from editing.removal.result import RemovalResult

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = "chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()


def screenshot(figure, path: Path, width: int = 1000, height: int = 640) -> None:
    """A plotly figure as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        figure.update_layout(width=width, height=height).write_html(page, config={"displayModeBar": False})
        options = [f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", f"--screenshot={path}"]
        options.append("--hide-scrollbars")
        subprocess.run(
            [*CHROMIUM, *options, "--virtual-time-budget=5000", page.as_uri()], check=True, stderr=subprocess.DEVNULL
        )


def kl(result: dict, name: str, n: int) -> float:
    """KL(clean || patched) of a method's first curve after `n` directions."""
    curve = next(curve for curve in result["curves"] if curve["name"] == name)
    point = next(point for point in curve["points"] if point["n_features"] == n)
    return point["kl"]["value"] if isinstance(point["kl"], dict) else point["kl"]


def table(demo: Path) -> list[str]:
    """The rows of the README's table: what the demo found, beside the best forms of the rivals."""
    rows = ["| | dictionary features | beside them |", "|---|---|---|"]
    names = {"swap": "names swap roles", "io": "only the indirect object differs"}
    for result in sr.load_result(demo / "ioi").to_dict()["ioi"]:
        others = list(dict.fromkeys(c["name"] for c in result["curves"] if c["name"] != "dictionary"))
        for n in (16, 64):
            beside = ", ".join(f"{name} {kl(result, name, n):.2f}" for name in others)
            what = f"IOI, {names[result['corruption']]}, {result['site']}: KL after {n} directions"
            before = f" ({kl(result, 'dictionary', 0):.2f} before)"
            rows.append(f"| {what}{before} | {kl(result, 'dictionary', n):.2f} | {beside} |")
    rows += removal_rows(sr.load_result(demo / "remove").result)
    circuit = sr.load_result(demo / "circuit")
    reached = circuit.evaluation.reached[-1]
    layers = len({site.rpartition(".")[2] for site in reached.sites})
    what = f"the circuit of {circuit.target}, {layers} layers left to its {reached.n_members} nodes"
    controls = circuit.evaluation.controls[0]
    first, random = (each.ablated.value for each in (controls.first_order, controls.best_random))
    beside = f"ceiling (all latents) {reached.ceiling.value:.2f}, first order {first:.2f}, random {random:.2f}"
    rows.append(f"| {what}: faithfulness | {reached.faithfulness.value:.2f} | {beside} |")
    return rows


def removal_rows(result: RemovalResult) -> list[str]:
    """What a removal needs and leaves, at the chosen site and at all layers at once."""
    rows = []
    for where in filter(None, (result.methods, result.everywhere)):
        curves, site = result.curves_at(where[0].site), where[0].site
        needed = {curve.method: str(curve.at(result.share)) for curve in curves.values()}
        left = {row.method: f"{row.left:.2f} at {row.damage.value:.2g}" for row in where}
        for what, texts in (
            (f"damage at {result.share:.0%} removed, nats per token", needed),
            ("capability left at the chosen strength, and at what damage", left),
        ):
            beside = ", ".join(f"{name} {texts[name]}" for name in (Method.LEACE, Method.MEANS) if name in texts)
            rows.append(f"| pronouns, {site}: {what} | {texts[Method.FEATURES]} | {beside} |")
    return rows


if __name__ == "__main__":
    demo = Path(sys.argv[1])
    sr.load_result(demo / "circuit").draw_story(ROOT / "docs" / "circuit_story.svg")
    screenshot(sr.load_result(demo / "ioi").plot(), ROOT / "docs" / "ioi_curve.png")
    print("\n".join(table(demo)))
