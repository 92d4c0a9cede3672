"""`import subrank as sr`: light to import, one shape of results, and the same numbers as the command."""

import inspect
import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from planted import unchecked
from plotly.graph_objects import Figure
from tiny import user_error

import subrank as sr
from circuits.graph import FeatureGraph
from subrank.cli import command
from subrank.result import Result
from subrank.settings.circuit import CircuitSettings
from subrank.settings.demo import DemoSettings
from subrank.settings.experiments import (
    EvaluateSettings,
    FeatureSettings,
    ImportSettings,
    IOISettings,
    RemoveSettings,
    SteerSettings,
)
from subrank.settings.fields import documented, make
from subrank.settings.prompt import PromptSettings
from subrank.settings.studies import (
    DarkMatterSettings,
    ExplainSettings,
    MatchingSettings,
    ScalingSettings,
    SplittingSettings,
    SuperpositionSettings,
)
from subrank.settings.train import HarvestSettings, TrainSettings

SETTINGS = {
    "train": TrainSettings,
    "harvest": HarvestSettings,
    "sweep": TrainSettings,
    "ioi": IOISettings,
    "discover": CircuitSettings,
    "remove": RemoveSettings,
    "steer": SteerSettings,
    "features": FeatureSettings,
    "prompt": PromptSettings,
    "evaluate": EvaluateSettings,
    "import_saes": ImportSettings,
    "dark_matter": DarkMatterSettings,
    "explain": ExplainSettings,
    "scaling": ScalingSettings,
    "matching": MatchingSettings,
    "splitting": SplittingSettings,
    "superposition": SuperpositionSettings,
}
QUIET = {"progress": False}
SMALL = {
    "ioi": {
        "prompts": 6,
        "corruption": "swap",
        "site": "resid_post.4",
        "selectors": "attribution",
        "baselines": "pca",
        "contexts": 16,
    },
    "remove": {"prompts": 8, "site": "resid_post.5", "contexts": 8, "budget": 2.0},
    "steer": {"tokens": 3, "contexts": 2, "mode": "off", "read": 32},
    "features": {"contexts": 24, "full": 2},
    "prompt": {"prompt": "print ( sqrt ( x", "exact": 3, "contexts": 24},
    "evaluate": {"contexts": 4, "spliced": 2},
}


@pytest.fixture(autouse=True)
def _as_users_run_it():
    """Every part of what is called here is checked in tests of its own."""
    with unchecked():
        yield


@pytest.fixture(scope="module")
def saes(storybook_set) -> sr.Saes:
    return sr.load(storybook_set)


@pytest.fixture(scope="module")
def results(storybook, saes) -> dict[str, Result]:
    with unchecked():
        by_verb = {verb: getattr(sr, verb)(storybook, saes, check=True, **QUIET, **SMALL[verb]) for verb in SMALL}
        small = {"contexts": 60, "max_targets": 1, "null": 5, "held": 16, "draws": 0, "cards": 8, "cover": 1}
        return by_verb | {"circuit": sr.discover(storybook, saes, check=True, **QUIET, **small)}


# ---- the door itself -------------------------------------------------------------------------------


def test_importing_it_loads_nothing_heavy():
    code = "import subrank, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "subrank" in loaded and not {"torch", "numpy", "transformers", "plotly", "jinja2"} & {*loaded}


def test_every_public_name_is_there_and_a_misspelt_one_is_an_attribute_error():
    assert all(getattr(sr, name) is not None for name in sr.__all__)
    assert {*sr.__all__} <= {*dir(sr)}
    with pytest.raises(AttributeError, match="discovr"):
        _ = sr.discovr


def test_public_functions_take_few_parameters_and_are_documented():
    for name in sr.__all__:
        value = getattr(sr, name)
        assert inspect.getdoc(value), name
        if inspect.isfunction(value):
            parameters = inspect.signature(getattr(value, "__wrapped__", value)).parameters.values()
            settings = {each.name for each in fields(SETTINGS[name])} if name in SETTINGS else set()
            assert len([p for p in parameters if p.name not in settings]) <= 6, name


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_stand_in_the_signature_and_in_the_docstring(name):
    function, kind = getattr(sr, name), SETTINGS[name]
    shown = inspect.signature(function).parameters
    for each in fields(kind):
        assert shown[each.name].default == each.default and f"{each.name}: " in function.__doc__


@pytest.mark.parametrize("kind", [*dict.fromkeys(SETTINGS.values()), DemoSettings], ids=lambda kind: kind.__name__)
def test_every_setting_says_what_it_is(kind):
    assert {each.name for each in fields(kind)} == documented(kind).keys()


def test_the_command_offers_the_settings_of_the_functions(capsys):
    for verb, kind in (("ioi", IOISettings), ("circuit", CircuitSettings), ("train", TrainSettings)):
        with pytest.raises(SystemExit):
            command.main([verb, "--help"])
        help = " ".join(capsys.readouterr().out.split())
        assert all(each.metadata.get("flag", "--" + each.name.replace("_", "-")) in help for each in fields(kind))


@pytest.mark.parametrize(
    ("kind", "wrong", "words"),
    [
        (TrainSettings, {"token": 3}, ("no setting 'token'", "tokens")),
        (TrainSettings, {"kind": "topp"}, ("'topp'", "topk")),
        (TrainSettings, {"memory": float("nan")}, ("--memory", "finite")),
        (TrainSettings, {"seed": -1}, ("--seed", "at least 0")),
        (CircuitSettings, {"examples": 8}, ("--examples", "at least 16")),
        (CircuitSettings, {"min_effect": float("inf")}, ("--min-effect", "finite")),
        (CircuitSettings, {"exhaustive": True, "screen_only": True}, ("exclude each other",)),
        (IOISettings, {"site": "resid_post.1", "sites": ("all",)}, ("exclude each other",)),
        (IOISettings, {"prompts": 1}, ("--prompts", "at least 2")),
        (SteerSettings, {"prompt": " "}, ("empty",)),
    ],
)
def test_settings_that_make_no_sense_are_one_line(kind, wrong, words):
    with user_error(*words):
        make(kind, wrong)


# ---- a set -----------------------------------------------------------------------------------------


def test_features_and_sites_by_name(saes):
    feature = saes["5_452"]
    assert str(feature.id) == "5_452" and torch.equal(feature.direction, saes.at("resid_post.5").directions[452])
    assert torch.equal(saes[feature.id].direction, feature.direction)
    with user_error("resid_post.9", "resid_post.5"):
        saes["9_1"]
    with user_error("5_99999", "512"):
        saes["5_99999"]
    with user_error("resid_pst.3", "resid_post"):
        saes.at("resid_pst.3")


def test_codes_of_a_text_are_those_of_its_activations(storybook, saes):
    codes = saes.encode(storybook, "Mary went to the store")
    tokens = saes.tokens(storybook, "Mary went to the store")
    assert tokens[0, 0] == storybook.bos_id and codes.keys() == saes.dictionaries.keys()
    for site, x in storybook.record(tokens, saes.dictionaries).items():
        assert torch.equal(codes[site], saes.at(site).encode(x[0]))


def test_edits_by_name_are_those_of_the_floors_below(storybook, saes):
    """Ablating is steering by 0, steering by 1 changes nothing, and a patch to the text itself changes nothing."""
    text = "Mary went to the store"
    tokens = saes.tokens(storybook, text)
    code = saes.encode(storybook, text)
    active = [f"{site.layer}_{int(f[-1].argmax())}" for site, f in code.items() if site.layer in (2, 4)]
    plain = storybook.logits(tokens)

    def edited(edits):
        with storybook.hooks(*edits):
            return storybook.logits(tokens)

    ablated = edited(saes.ablate(*active))
    assert len(saes.ablate(*active)) == 2 and (ablated - plain).abs().max() > 1e-3
    assert torch.allclose(ablated, edited(saes.steer(*active, strength=0.0)), atol=1e-4)
    assert torch.allclose(ablated, edited(saes.clamp(*active, value=0.0)), atol=1e-4)
    assert torch.equal(edited(saes.steer(*active, strength=1.0)), plain)
    assert torch.allclose(edited(saes.patch(storybook, text, *active)), plain, atol=1e-4)
    with user_error("at least one feature"):
        saes.ablate()
    for nothing in ("nonsense", "", 5, None, ["5_1"], sr.FeatureId(sr.Site(5), -1)):
        with user_error("no feature"):
            saes.ablate(nothing)
    with user_error("twice"):
        saes.ablate("5_1", sr.FeatureId.parse("5_1"))
    with user_error("finite"):
        saes.clamp("5_1", value=float("nan"))
    with user_error("tokens", "less text"):
        saes.encode(storybook, "Mary " * 300)


def test_top_examples_end_at_the_strongest_token(saes):
    examples = saes.top_examples("5_452", 3, contexts=60)
    assert 0 < len(examples) <= 3
    for example in examples:
        assert example.activations[example.peak] == max(example.activations[: example.peak + 1])
        assert example.tokens[example.peak].strip() in str(example)
    strengths = [example.activations[example.peak] for example in examples]
    assert strengths == sorted(strengths, reverse=True)
    assert "5_452" in examples._repr_html_()


def test_saving_and_loading_are_inverse(saes, tmp_path):
    saes.save(tmp_path / "copy")
    again = sr.load(tmp_path / "copy")
    assert again.quality == saes.quality and again.text == saes.text and again.training == saes.training
    for site, dictionary in saes.dictionaries.items():
        for name, tensor in dictionary.state_dict().items():
            assert torch.equal(again.dictionaries[site].state_dict()[name], tensor)


class Listener:
    """A logger of our own."""

    def __init__(self) -> None:
        self.steps, self.closed = {}, False

    def log(self, step, numbers) -> None:
        self.steps[step] = numbers

    def close(self) -> None:
        self.closed = True


@pytest.mark.slow
def test_training_in_python_is_training_by_the_command(storybook, tmp_path):
    options = ["--tokens", "2048", "--batch", "256", "--context", "32", "--sites", "resid_post.1"]
    listener = Listener()
    saes = sr.train(storybook, tokens=2048, batch=256, context=32, sites="resid_post.1", log=listener, **QUIET)
    assert {step: round(row["tokens"]) for step, row in listener.steps.items()} == {8: 2048} and listener.closed
    assert command.main(["train", "storybook", "--out", str(tmp_path), *options]) == 0
    by_command = sr.load(tmp_path)
    assert saes.quality.to_json() == by_command.quality.to_json()
    for site, dictionary in by_command.dictionaries.items():
        assert torch.equal(saes.at(site).W_dec, dictionary.W_dec)
    with user_error("2 sets", "sr.sweep"):
        sr.train(storybook, k=(8, 16), **QUIET)


# ---- results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [*SMALL, "circuit"])
def test_a_result_has_one_shape(results, verb, tmp_path):
    """Ten lines at most, a figure, a fragment for notebooks; and what `save` writes `load_result` reads."""
    result = results[verb]
    assert result.verb == verb and 0 < len(result.lines()) <= 10
    assert not result.figures() or isinstance(result.plot(), Figure)
    assert "<table" in result._repr_html_() and "<script" not in result._repr_html_()
    page = result.save(tmp_path / "out")
    assert page.name == f"{verb}.html" and page.is_file()
    plain = json.loads((tmp_path / "out" / "result.json").read_text())
    assert plain.pop("check")["disagreeing"] == 0
    assert plain == json.loads(json.dumps(result.to_dict(), allow_nan=False))
    again = sr.load_result(tmp_path / "out")
    assert type(again) is type(result) and again.provenance == result.provenance
    assert json.loads(json.dumps(again.to_dict(), allow_nan=False)) == plain
    assert again.lines() == result.lines() and again.check == result.check


@pytest.mark.parametrize("verb", [*SMALL, "circuit"])
def test_what_a_verb_reports_is_what_full_forward_passes_say(results, verb):
    check = results[verb].check
    assert len(check.numbers) >= 5 and not check.disagreeing, check.line()
    assert str(results[verb]).splitlines()[-1] == check.line() and "Computed again" in results[verb]._repr_html_()


def test_a_circuit_stands_where_its_features_act_on_a_prompt(results, storybook, saes, tmp_path):
    circuit = results["circuit"]
    circuit.save(tmp_path)
    view = sr.prompt(storybook, saes, "print ( sqrt ( x", tmp_path, exact=0, features=1, contexts=0, **QUIET)
    members, listed = {*circuit.graph.features()}, {}
    for cell in view.features.cells:
        for n, each in enumerate(cell.features):
            assert n == 0 or each.feature in members
            listed.setdefault(each.feature, []).append(cell.position)
    labels = results["prompt"].labels
    assert not view.labels and {cell.features[0].feature for cell in results["prompt"].features.cells} <= {*labels}
    assert view.circuit.places and view.circuit.n_features == len(members)
    assert all(listed[feature] == [*places] for feature, places in view.circuit.places.items())
    assert any(line.startswith(f"of the circuit of {circuit.target}") for line in view.lines())
    results["evaluate"].save(tmp_path / "other")
    with user_error("no circuit", "evaluate"):
        sr.prompt(storybook, saes, "print", tmp_path / "other", **QUIET)
    others = replace(saes, dictionaries={site: d for site, d in saes.dictionaries.items() if site.layer != 2})
    with user_error("other dictionaries"):
        sr.prompt(storybook, others, "print", replace(circuit, graph=FeatureGraph(circuit.target, (), ())), **QUIET)


def test_a_folder_without_a_result(storybook_set, tmp_path):
    with user_error("no result"):
        sr.load_result(tmp_path)
    with user_error("holds dictionaries", "sr.load"):
        sr.load_result(storybook_set)


def test_a_damaged_result_is_one_line(results, tmp_path):
    """Whatever its JSON holds in place of what it should hold, or of whichever verb it says that it is."""
    results["evaluate"].save(tmp_path)
    card, numbers = (json.loads((tmp_path / name).read_text()) for name in ("provenance.json", "result.json"))
    wrong = [(card | {"verb": verb}, numbers) for verb in ("ioi", "circuit", "remove", "steer", "features", None, [])]
    wrong += [(card, dict.fromkeys(numbers, value)) for value in (None, [], "x", {})]
    wrong += [(card, {}), (card, [1]), ([1], numbers), ({"verb": "evaluate"}, numbers)]
    wrong += [(card | {"verb": "ioi"}, {"ioi": []})]
    for provenance, result in wrong:
        (tmp_path / "provenance.json").write_text(json.dumps(provenance))
        (tmp_path / "result.json").write_text(json.dumps(result))
        with user_error("json"):
            sr.load_result(tmp_path)
    (tmp_path / "result.json").write_text("[" * 100_000)
    with user_error("damaged"):
        sr.load_result(tmp_path)


@pytest.mark.parametrize("verb", [*SMALL, "discover"])
def test_what_is_no_model_or_no_set_is_one_line(storybook, saes, storybook_set, verb):
    function, words = getattr(sr, verb), {"prompt": "a prompt"} if verb == "prompt" else {}
    for wrong in ((saes, storybook), ("storybook", saes), (storybook, str(storybook_set)), (storybook, [saes])):
        with user_error("is no ", "sr.load"):
            function(*wrong, **QUIET, **words)
    with user_error("is no language model"):
        sr.train("storybook", **QUIET)


def test_a_circuit_that_is_not_scored_says_so_after_loading_too(results, tmp_path):
    unscored = replace(results["circuit"], evaluation=None, explored=None, notes=("not scored: too little text",))
    unscored.save(tmp_path)
    assert sr.load_result(tmp_path).lines() == unscored.lines()


def test_progress_is_reported_stage_by_stage_or_not_at_all(storybook, saes, capsys):
    stages = []
    loud = sr.evaluate(storybook, saes, contexts=2, spliced=1, on_progress=stages.append)
    quiet = sr.evaluate(storybook, saes, contexts=2, spliced=1, progress=False)
    before, counted = stages[1], [stage for stage in stages if stage.total is not None]
    assert before.stage.startswith("about ") and len(counted) == len(stages) - 1  # how long it takes is no stage
    assert [stage.done for stage in counted] == list(range(len(counted))) and counted[0].total == len(counted)
    assert loud.to_dict() == quiet.to_dict() and not capsys.readouterr().err


def test_the_command_writes_what_the_function_returns(results, storybook_set, tmp_path, capsys):
    options = [option for name, value in SMALL["ioi"].items() for option in (f"--{name}", str(value))]
    assert command.main(["ioi", str(storybook_set), "--out", str(tmp_path), *options]) == 0
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(results["ioi"].to_dict()))


def test_a_circuit_is_drawn_into_the_file_that_is_named(results, tmp_path):
    circuit = results["circuit"]
    assert circuit.draw(tmp_path / "c.svg").read_text().count("<svg") == 1
    assert circuit.draw(tmp_path / "c.dot").read_text().startswith("digraph")
    assert circuit.draw_story(tmp_path / "s.svg").read_text().count("<svg") == 1
    assert circuit.draw_story(tmp_path / "s.pdf").read_bytes().startswith(b"%PDF")
    with user_error(".svg"):
        circuit.draw(tmp_path / "c.jpg")


def test_numbers_are_saved_also_where_graphviz_does_not_work(results, tmp_path, monkeypatch, caplog):
    """A `dot` that fails used to end in a traceback after the whole search."""

    def broken(source, kind):
        raise subprocess.CalledProcessError(1, ["dot"])

    for module in ("circuits.drawing", "subrank.experiments.circuit_result"):
        monkeypatch.setattr(f"{module}.render", broken)
    page = results["circuit"].save(tmp_path)
    assert page.is_file() and (tmp_path / "result.json").is_file() and (tmp_path / "explore" / "index.html").is_file()
    assert "Graphviz" in caplog.text and "circuit.dot" in page.read_text()
    assert (tmp_path / "circuit_story.dot").is_file() and not (tmp_path / "circuit_story.svg").exists()
    with user_error("Graphviz", ".dot"):
        results["circuit"].draw(tmp_path / "c.svg")


def test_a_home_folder_is_the_same_for_saving_and_loading(saes, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saes.save("~/set")
    assert sr.load("~/set").text == saes.text and (tmp_path / "set" / "set.json").is_file()
