"""The study of superposition: one shape with all results, and what the lecture shows."""

import json

import pytest
import torch
from planted import unchecked
from tiny import user_error
from verbs import one_line, run

import subrank as sr
from subrank.result import _KINDS
from subrank.settings.fields import make
from subrank.settings.studies import STUDIES, SuperpositionSettings
from subrank.studies.toys.figures import models_figure
from subrank.studies.toys.models import linear_optimum

SMALL = {"features": 6, "dimensions": 2, "densities": (0.05, 1.0), "copies": 2, "steps": 30, "batch": 16}
SMALL |= {"dictionary_steps": 4}


@pytest.fixture(scope="module")
def result() -> sr.Result:
    with unchecked():
        return sr.superposition(progress=False, **SMALL)


def plain_of(result: sr.Result) -> dict:
    """What `result.json` holds of it."""
    return json.loads(json.dumps(result.to_dict(), allow_nan=False))


# ---- the frame: any study is a module, settings, a page --------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_at_the_front_door_and_its_result_is_known(name):
    module = name.replace("-", "_")
    function = getattr(sr, module)
    assert module in sr.__all__ and function.__module__ == f"subrank.studies.{module}"
    assert _KINDS[name].startswith(f"subrank.studies.{module}:")


@pytest.mark.slow
def test_the_result_is_as_all_others_are(result, tmp_path):
    plain = plain_of(result)
    assert 1 <= len(result.lines()) <= 10 and str(result) == "\n".join(result.lines())
    page = result.save(tmp_path / "out")
    again = sr.load_result(tmp_path / "out")
    assert plain_of(again) == plain == json.loads((tmp_path / "out" / "result.json").read_text())
    assert again.lines() == result.lines() and again.provenance == result.provenance
    assert result.provenance.settings["features"] == 6 and not result.provenance.model
    text = page.read_text()
    assert text.count('class="plot"') == len(result.figures()) == 3 and "plotly-graph-div" in text
    assert "<script" not in result._repr_html_() and result.plot() == result.figures()["features"]


def test_the_command_writes_what_the_function_returns(result, tmp_path, capsys):
    options = ["--densities", "1", "0.05", "--dictionary-steps", "4"]
    for name in ("features", "dimensions", "copies", "steps", "batch"):
        options += [f"--{name}", SMALL[name]]
    status, printed, _ = run(capsys, "study", "superposition", "--out", tmp_path, *options)
    assert status == 0 and json.loads((tmp_path / "result.json").read_text()) == plain_of(result)
    assert result.lines()[0] in printed and str(tmp_path / "superposition.html") in printed and "about" in printed


def test_the_same_seed_gives_the_same_and_another_other_numbers(result):
    with unchecked():
        again, other = (sr.superposition(progress=False, seed=seed, **SMALL) for seed in (0, 1))
    assert again.to_dict() == result.to_dict() != other.to_dict()


def test_stages_are_counted_and_the_cost_is_said_first():
    stages = []
    with unchecked():
        quick = sr.superposition(on_progress=stages.append, quick=True, **SMALL)
    assert stages[0].stage.startswith("about ") and stages[0].total is None
    assert [stage.done for stage in stages[1:]] == [*range(22)] and {stage.total for stage in stages[1:]} == {22}
    assert "quick" in quick.note() and "quick" in str(quick)


def test_quick_is_a_tenth():
    quick, usual = (make(SuperpositionSettings, {"quick": quick}) for quick in (True, False))
    assert quick.steps * quick.copies == pytest.approx(usual.steps * usual.copies / 10, rel=0.2)


def test_what_makes_no_sense_is_one_line(tmp_path, capsys):
    assert "--dimensions" in one_line(capsys, "study", "superposition", "--dimensions", 20, "--out", tmp_path)
    assert "superposition" in one_line(capsys, "study", "superpositoin")
    for wrong in ({"densities": 0.0}, {"densities": 1.5}, {"copies": 0}, {"importance": -1}, {"steps": "many"}):
        with user_error(f"--{next(iter(wrong))}"):
            sr.superposition(**wrong)
    with user_error("memory", "--copies"):
        sr.superposition(copies=1000, features=256, batch=65536, progress=False)


def test_each_column_of_the_picture_is_a_model(result):
    figure = models_figure(result.models)
    assert len(figure.data) == 3 * len(result.models)
    for column, solution in enumerate(result.models):
        heat, bars, bias = figure.data[3 * column : 3 * column + 3]
        torch.testing.assert_close(torch.tensor(heat.z), solution.W.T @ solution.W, rtol=0, atol=1e-6)
        assert bars.y == solution.norms and bars.marker.color == solution.interference and bias.y == solution.bias


def test_the_best_copy_is_shown(result):
    for solution in result.models:
        assert list(solution.losses) == sorted(solution.losses)
    assert {len(solution.losses) for solution in result.models} == {2}


# ---- what the lecture shows ------------------------------------------------------------------------


TRAINED = {"features": 10, "dimensions": 3, "densities": (1.0, 0.1, 0.003), "copies": 3, "steps": 2500, "batch": 128}
TRAINED |= {"dictionary_steps": 300}


@pytest.fixture(scope="module")
def trained(training_seed) -> sr.Result:
    with unchecked():
        return sr.superposition(progress=False, seed=training_seed, **TRAINED)


@pytest.mark.slow
def test_linear_and_dense_models_keep_the_most_important_features(trained):
    """W^T W is the projector on them, as PCA's; the sparsest ReLU model is the control."""
    projector = torch.zeros(10, 10)
    projector[range(3), range(3)] = 1
    dense, *_, sparsest = trained.of_kind("ReLU")
    for solution in [*trained.of_kind("linear"), dense]:
        least = linear_optimum(torch.tensor(trained.importance), 3, solution.model.density)[-1]
        assert (solution.W.T @ solution.W - projector).abs().max() < 0.3
        assert solution.represented == (0, 1, 2) and min(solution.dimensions[:3]) > 0.9
        assert 0.94 < solution.losses[0] / least < 1.06
    assert (sparsest.W.T @ sparsest.W - projector).abs().max() > 0.8
    assert sparsest.losses[0] < 0.9 * linear_optimum(torch.tensor(trained.importance), 3, 0.003)[-1]


@pytest.mark.slow
def test_antipodal_pairs_come_first_and_superposition_of_all_last(trained):
    dense, between, sparsest = trained.of_kind("ReLU")
    assert not dense.pairs and len(dense.represented) == 3
    assert between.represented == (*range(6),) and len(between.pairs) == 3
    assert all(abs(value - 1 / 2) < 0.05 for value in between.dimensions[:6])
    assert len(sparsest.represented) > 6 and not sparsest.alone and len(sparsest.pairs) < 3
    assert max(sparsest.dimensions) < 0.45 and sparsest.per_feature < between.per_feature - 0.05
    negative = [solution.bias[i] for solution in (dense, sparsest) for i in solution.represented]
    assert min(negative[:3]) > -0.05 and max(negative[3:]) < -0.02  # the dense model is the control


@pytest.mark.slow
def test_dictionaries_find_what_is_sparse_and_not_what_is_dense(trained):
    dense, between, sparsest = trained.recoveries
    assert between.found > 0.9 and between.cosine.low > between.chance.high
    assert sparsest.cosine.value > sparsest.chance.high and sparsest.found > sparsest.chance_found + 0.3
    assert dense.found < 0.6 and dense.cosine.low < dense.chance.high
