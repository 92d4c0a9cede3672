"""Points of IOI curves by full forward passes, at one site and at two jointly; and faults are seen."""

from dataclasses import replace

import pytest
from checks import wrong
from handmade import random_topk
from planted import unchecked

from editing.ioi.config import IOIConfig
from editing.ioi.study import IOIStudy
from editing.tasks.ioi import Corruption, Role
from sae_core.data.text import Text
from sae_core.sites import Site, Stream
from subrank.checking.ioi import recomputed

MLP = Site(3, Stream.MLP_OUT)
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("sites", [(Site(3),), (Site(1), MLP)], ids=["one site", "jointly"])
def test_every_number_agrees_and_faults_are_seen(storybook, sites):
    contexts = Text("storybook", 48, True, 10 * 48).contexts(storybook)
    dictionaries = {site: random_topk(128, 96, 8, seed=n) for n, site in enumerate((Site(1), Site(3), MLP))}
    config = IOIConfig(4, 3, selectors=("attribution",), baselines=("pca",))
    where = None if len(sites) == 1 else (Role.S1, Role.IO, -1)
    with unchecked():
        study = IOIStudy(storybook, {"dictionary": dictionaries}, contexts, config)
        result = study.run(Corruption.IO, site=sites, positions=where)
        curve, *others = result.curves
        points = [replace(point, kl=replace(point.kl, value=point.kl.value * 1.001)) for point in curve.points]
        faulty = replace(result, curves=(replace(curve, points=tuple(points)), *others))
        numbers = recomputed(study, [faulty], seed=0)
        assert len(numbers) == 10 and sum(", PCA by" in number.what for number in numbers) == 4
        named = wrong(numbers)
        assert len(named) == 2 and all("KL" in what and ", dictionary by" in what for what in named)
        if len(sites) == 1:
            study.sets = {"dictionary": {site: random_topk(128, 96, 8, seed=9) for site in dictionaries}}
            named = wrong(recomputed(study, [result], seed=0))
            assert len(named) >= 4 and all("PCA" not in what and "nothing" not in what for what in named)
