"""`sr.ioi`: its defaults are the experiment's, and how sites and positions are read."""

from types import SimpleNamespace

from tiny import user_error

import subrank.experiments.ioi as front
from editing.ioi.config import IOIConfig
from editing.ioi.feature_selection import Selector
from editing.tasks.ioi import Role
from sae_core.sites import Site, Stream
from subrank.settings.experiments import IOISettings
from subrank.settings.fields import make


def config_of(**settings) -> IOIConfig:
    saes = SimpleNamespace(text=SimpleNamespace(prepend_bos=True))
    return front.ioi_config(make(IOISettings, settings), saes)


def test_the_defaults_are_the_experiments():
    assert config_of() == IOIConfig() and config_of(seed=3) == IOIConfig(seed=3)
    few = config_of(prompts=12, thresholds=4, selectors=("random", "threshold"), baselines=())
    assert few.selectors == (Selector.RANDOM, Selector.THRESHOLD) and few.baselines == ()
    assert (few.test_prompts, few.selection_prompts, few.selection.n_thresholds) == (12, 4, 4)


def test_settings_of_a_greedy_search_that_a_large_model_does_not_have_are_refused():
    small, large = (SimpleNamespace(name="it", block_weights=front.GREEDY_BELOW + more) for more in (-1, 0))
    search = {"shortlist": 8, "features": 4}
    assert Selector.GREEDY in front.selectors_of(make(IOISettings, search), small)
    for name, n in search.items():
        with user_error(f"--{name}", "it is too large", "--selectors greedy"):
            front.selectors_of(make(IOISettings, {name: n}), large)
        wanted = make(IOISettings, {name: n, "selectors": "greedy"})
        assert front.selectors_of(wanted, large) == (Selector.GREEDY,)
    assert front.selectors_of(make(IOISettings, {"quick": True}), large) == IOIConfig().selectors


def test_positions_are_roles_or_count_from_the_end():
    assert front.positions_of(["all"]) is None and front.positions_of(["s2", "END", "-3"]) == (Role.S2, Role.END, -3)
    for wrong in ("0", "2", "S3", "-0", "all"):
        with user_error(wrong, "IO, S1, S2, END", "from the end"):
            front.positions_of(["-1", wrong])


def test_sites_are_one_by_one_or_jointly_and_all_are_those_that_every_set_has(storybook):
    def with_sites(*sites: Site) -> SimpleNamespace:
        dictionaries = dict.fromkeys(sites)
        return SimpleNamespace(dictionaries=dictionaries, at=dictionaries.__getitem__)

    out = Site(1, Stream.MLP_OUT)
    sets = {"a": with_sites(Site(1), out, Site(3), Site(4)), "b": with_sites(out, Site(3), Site(4))}
    for settings, places in (
        ({}, (None,)),
        ({"site": "resid_post.3"}, (Site(3),)),
        ({"sites": ("all",)}, (out, Site(3), Site(4))),
        ({"jointly": ("all",)}, ((out, Site(3), Site(4)),)),
        ({"jointly": ("resid_post.4", "mlp_out.1")}, ((out, Site(4)),)),
    ):
        assert front._places(make(IOISettings, settings), storybook, sets) == places
