"""The study of scaling: planted sweeps give what was planted, the hull by hand, and one shape of result."""

import json
import math

import numpy as np
import pytest
from handmade import random_topk
from planted import unchecked
from tiny import user_error
from verbs import run

import subrank as sr
from editing.loss_recovered import SpliceCost
from editing.set_quality import SetQuality
from sae_core.data.text import Text
from sae_core.estimate import Estimate
from sae_core.evaluation.reconstruction import Quality
from sae_core.sites import Site
from sae_core.storage import DictionarySet
from sae_core.training.config import TrainConfig
from sae_core.training.topk_recipes import TopK
from subrank.saes import Saes
from subrank.settings.fields import make
from subrank.settings.studies import ScalingSettings
from subrank.studies.laws.curves import LOG, Checkpoint, flops_per_token, logged, lower_hull
from subrank.studies.laws.figures import all_figures, metric_figure
from subrank.studies.laws.page import scaling_section, sentences
from subrank.studies.laws.power_law import TOKENS, fit_law
from subrank.studies.laws.scaling_laws import Laws, Point, best_size, joint_of, series_of
from subrank.studies.metrics.measured import METRICS, Measured, ProbeTask, ReadAt, SetMetrics

SITE, D_IN, SIZES = Site(2), 64, (128, 256, 512, 1024, 2048)
SETTINGS = make(ScalingSettings, {"draws": 100, "budget": 1e11})


def planted(k: int = 8, sizes=SIZES, *, kind: str = "gated", e: float = 0.1, dent: float = 0.0) -> list[Point]:
    """Finished dictionaries on L(n) = e + 3 n^-0.4, that were on L(n, T) = e + 2 n^-0.3 + 30 T^-0.5 on their way."""
    tokens = np.geomspace(1e4, 1e6, 8)
    return [
        Point(
            name=f"n{n}",
            site=SITE,
            kind=kind,
            k=k,
            n_latents=n,
            d_in=D_IN,
            tokens=10**6,
            fvu=(e + 3 * n**-0.4) * (1 + dent * (-1) ** i),
            l0=k,
            dead=0.0,
            original=1.0,
            rise=0.5 * n**-0.2,
            curve=tuple(zip(tokens.tolist(), (e + 2 * n**-0.3 + 30 * tokens**-0.5).tolist(), strict=True)),
        )
        for i, n in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def series():
    return series_of(planted(), SETTINGS)


def test_a_planted_sweep_gives_its_laws(series):
    fvu, rise = series.sizes["fvu"], series.sizes["rise"]
    assert fvu.law.exponents[0].value == pytest.approx(0.4, rel=0.02) and fvu.law.irreducible
    assert fvu.law.irreducible.value == pytest.approx(0.1, rel=0.02)
    assert fvu.beyond == 8192 and fvu.predicted and fvu.predicted.value == pytest.approx(0.1 + 3 * 8192**-0.4, rel=0.02)
    assert rise.law.exponents[0].value == pytest.approx(0.2, rel=0.02) and rise.law.irreducible is None
    assert series.tokens and [m.value for m in series.tokens.exponents] == pytest.approx([0.3, 0.5], rel=0.02)
    assert not series.notes


def test_the_best_size_is_where_calculus_has_it():
    """d/dn of A n^-a + B (c n / C)^b, at C = 10 d n T of dense codes: n^(a+b) = a A / (b B) (C / 10 d)^b."""
    best = series_of(planted(), SETTINGS).optimum
    by_hand = (0.3 * 2 / (0.5 * 30) * (1e11 / (10 * D_IN)) ** 0.5) ** (1 / 0.8)
    assert best and best.flops == 1e11 and best.n_latents.value == pytest.approx(by_hand, rel=0.02)
    assert best.n_latents.low <= best.n_latents.value <= best.n_latents.high


def test_no_best_size_is_told_where_tokens_do_not_matter():
    n = np.repeat(np.array(SIZES, float), 4)
    x = {"n": n, "T": np.tile(np.geomspace(1e4, 1e6, 4), 5)}
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(20))
    fit = fit_law([TOKENS], x, (0.1 + n**-0.3) * noise, draws=40, seed=0, groups=[str(each) for each in n])
    assert best_size(fit, 1e11, planted()[0]) is None


def test_few_sizes_have_a_law_without_irreducible_term_and_a_line_says_so():
    small = series_of(planted(sizes=SIZES[:4]), SETTINGS)
    assert small.sizes["fvu"].law.irreducible is None
    assert any("too few for an irreducible term" in note for note in small.notes)
    two = series_of(planted(sizes=SIZES[:2]), SETTINGS)
    assert not two.sizes and any("a law needs 3" in note for note in two.notes)


def test_a_law_that_is_flat_is_not_read_beyond_its_sizes():
    flat = [Point(**{**vars(p), "fvu": 0.3 * (1 + 0.01 * (-1) ** i)}) for i, p in enumerate(planted())]
    series = series_of(flat, SETTINGS)
    assert series.sizes["fvu"].predicted is None
    assert "not read beyond" in " ".join(sentences(Laws(tuple(flat), (series,), ())))


def test_the_joint_law_is_fitted_as_far_as_the_grid_allows():
    def grid(ks: tuple[int, ...]) -> list[Point]:
        def loss(n: int, k: int) -> float:
            return math.exp(0.3 - 0.1 * math.log(k) - 0.2 * math.log(n)) + math.exp(-2 - 0.1 * math.log(k))

        return [Point(**{**vars(p), "fvu": loss(p.n_latents, k)}) for k in ks for p in planted(k)]

    full, few = (joint_of(grid(ks), SETTINGS) for ks in ((4, 8, 16, 32), (4, 8)))
    assert full and few and joint_of(grid((4,)), SETTINGS) is None
    planted_law = {"alpha": 0.3, "beta_k": -0.1, "beta_n": -0.2, "gamma": 0, "zeta": -2, "eta": -0.1}
    recovered = {name: value.value for name, value in full.laws["fvu"].coefficients.items()}
    assert recovered == pytest.approx(planted_law, rel=0.02, abs=1e-3)
    assert "eta" not in few.laws["fvu"].coefficients and "too few" in few.note and "too few" not in full.note


# ---- compute ---------------------------------------------------------------------------------------


def checkpoint(n: int, flops: float, loss: float) -> Checkpoint:
    return Checkpoint(f"n{n}", n, flops, flops, loss)


def test_the_hull_by_hand():
    """In logarithms to base 10: (0, 0), (1, -2), (2, -3) are corners; (1, -1), (2, -2) lie above, (3, -3) is dearer."""
    a, b, c = (checkpoint(1, 1, 1), checkpoint(2, 10, 1e-2), checkpoint(4, 100, 1e-3))
    others = [checkpoint(4, 10, 1e-1), checkpoint(1, 100, 1e-2), checkpoint(8, 1000, 1e-3 + 1e-9)]
    on_the_way = checkpoint(1, 10**0.5, 0.3)  # ln-ln above the chord from a to b, which is at 0.1 there
    assert lower_hull([*others, c, b, on_the_way, a]) == [a, b, c] and lower_hull([a]) == [a] and lower_hull([]) == []


def test_flops_are_counted_by_what_a_step_multiplies():
    assert flops_per_token("topk", 2, 8, 1) == 2 * 2 * 8 + 8 * 2 and flops_per_token("jumprelu", 2, 8, 1) == 10 * 2 * 8


def test_the_log_is_read_where_the_learning_rate_is_full(tmp_path):
    def line(tokens: int, fvu: float, lr: float, member: str = "small", site: Site = SITE) -> str:
        return json.dumps({"tokens": tokens, "fvu": fvu, "lr": lr, "member": member, "site": str(site)})

    lines = [line(10, 0.9, 0.1), line(1000, 0.5, 0.2), line(1001, 0.4, 0.2), line(4000, 0.3, 0.2), line(5000, 0.2, 0.1)]
    lines += [line(1000, 0.7, 0.2, "large"), line(1000, 0.7, 0.2, site=Site(0)), '{"tokens": 1', "[]"]
    (tmp_path / LOG).write_text("\n".join(lines))
    (first, second) = logged(str(tmp_path / "small"), SITE)
    assert first == pytest.approx((math.sqrt(1000 * 1001), math.sqrt(0.5 * 0.4)))
    assert second == pytest.approx((4000, 0.3))
    assert logged(str(tmp_path / "other"), SITE) == [] == logged(None, SITE) and len(logged(str(tmp_path), SITE)) == 2


# ---- the verb --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(storybook) -> dict[str, Saes]:
    """Untrained dictionaries of three sizes of storybook that say that they lie on a law."""
    text, site = Text("storybook", 32, True, max_tokens=4_000), storybook.sites()[0]
    sets = {}
    for n in (16, 32, 64):
        training = TrainConfig(TopK(4), expansion=1, tokens=4096)
        plain = DictionarySet("storybook", storybook.fingerprint(), text, {site: random_topk(128, n, 4)}, training)
        quality = {site: Quality(fvu=n**-0.5, l0=4.0, dead=0.0, n_tokens=100)}
        sets[f"of{n}"] = Saes.of(plain, storybook, SetQuality(quality, {site: SpliceCost(1.0, 1 + n**-0.25, 3.0)}))
    return sets


@pytest.fixture(scope="module")
def result(storybook, sets) -> sr.Result:
    with unchecked():
        return sr.scaling(storybook, sets, metrics=False, draws=100, progress=False)


def test_what_training_measured_is_what_laws_are_fitted_to(result, tmp_path):
    (series,) = result.laws.series
    exponents = [series.sizes[loss].law.exponents[0].value for loss in ("fvu", "rise")]
    assert exponents == pytest.approx([0.5, 0.25])
    assert result.laws.points[0].flops == 4096 * (2 * 128 * 16 + 8 * 128 * 4)
    assert len(series.hull) == 3 and series.compute and series.optimum is None
    result.save(tmp_path)
    again = sr.load_result(tmp_path)
    assert json.dumps(again.to_dict()) == json.dumps(result.to_dict()) and again.lines() == result.lines()
    assert len(result.lines()) <= 10 and "FVU over n" in next(iter(result.figures()))


def test_metrics_are_tabled_and_drawn(result):
    by_chance = Measured(Estimate(0.5, 0.4, 0.6), {"shuffled": Estimate(0.9)})
    task = ProbeTask("digits", 3, 9, 1, Estimate(0.2), 0.3, 0.4, 0.6)
    read = ReadAt(2, Estimate(0.3), Estimate(0.3), 2.0)
    metrics = SetMetrics(16, Estimate(4.0), 0.0, dict.fromkeys(METRICS, by_chance), (task,), (read,))
    laws = Laws(result.laws.points, result.laws.series, (), {p.name: {p.site: metrics} for p in result.laws.points})
    drawn = metric_figure(laws)
    assert len(drawn.data) == len(METRICS) * 2 * (1 + 3)  # with its control, over n: one k; over k: three n
    assert drawn.data[0].y == (0.5,) * 3
    page = scaling_section(laws, all_figures(laws))
    assert "probe: digits" in page and "shuffled 0.900" in page and "Read at another k" in page


@pytest.mark.slow
def test_the_command_writes_what_the_function_returns(result, sets, tmp_path, capsys):
    for name, saes in sets.items():
        saes.save(tmp_path / "sweep" / name)
    status, printed, _ = run(capsys, "study", "scaling", tmp_path / "sweep", "--no-metrics", "--out", tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "result.json").read_text())
    exponent = numbers["series"][0]["sizes"]["fvu"]["law"]["coefficients"]["beta_n"]["value"]
    assert status == 0 and exponent == pytest.approx(-0.5) and "FVU = " in printed


def test_without_a_sweep_there_is_no_law_and_a_line_says_what_to_train(storybook, sets):
    two = sr.scaling(storybook, {name: sets[name] for name in ("of16", "of32")}, metrics=False, progress=False)
    assert "--expansion" in two.lines()[0] and len(two.lines()) == 1 and len(two.laws.points) == 2
    with user_error("resid_post.5"):
        sr.scaling(storybook, sets, site="resid_post.5", progress=False)
