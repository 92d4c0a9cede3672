"""What patches set latents to, and values and latents that are refused."""

import pytest
import torch
from comparing import close
from handmade import normal, random_topk
from patch_runs import MLP, RESID
from tiny import user_error

from editing.interventions.patch import (
    FeaturePatch,
    FeatureScale,
    ablate,
    clamp,
    mean_ablate,
    patch_features,
    resample_ablate,
    scale,
)
from sae_core.sites import FeatureId


class OneSite:
    """Activations at a site without a model, and more of them to take values from."""

    def __init__(self):
        self.sae, self.h, self.x = random_topk(32), 3 * normal(3, 9, 32), 3 * normal(40, 32, seed=1)
        self.latents = [4, 7, 30, 31]
        self.d, self.f = self.sae.directions[self.latents], self.sae.encode(self.h)[..., self.latents]

    def expected(self, target) -> torch.Tensor:
        return self.h + (target - self.f) @ self.d


def test_each_way_to_set_latents_writes_its_values():
    case, values = OneSite(), torch.tensor([0.0, 1.0, -2.0, 0.5])
    features = (RESID, case.sae, case.latents)
    other = 3 * normal(3, 9, 32, seed=2)
    close(ablate(*features)(case.h), case.expected(0.0))
    close(clamp(*features, 1.5)(case.h), case.expected(1.5))
    close(clamp(*features, values)(case.h), case.expected(values))
    close(patch_features(*features, other)(case.h), case.expected(case.sae.encode(other)[..., case.latents]))
    close(mean_ablate(*features, case.x)(case.h), case.expected(case.sae.encode(case.x)[:, case.latents].mean(0)))
    close(scale(*features, 2.5)(case.h), case.h + 1.5 * case.f @ case.d)
    close(scale(*features, values)(case.h), case.h + ((values - 1) * case.f) @ case.d)
    assert case.f.any(0).any(0).sum() > 2  # control: latents that are never active would prove little


def test_resampled_values_are_those_of_one_token_for_each_position():
    case = OneSite()

    def resampled(seed: int, shape=(3, 9)) -> FeaturePatch:
        generator = torch.Generator().manual_seed(seed)
        return resample_ablate(RESID, case.sae, case.latents, case.x, shape, generator=generator)

    patch, pool = resampled(0), case.sae.encode(case.x)[:, case.latents]
    assert patch.target.shape == (3, 9, 4)
    matches = (patch.target[..., None, :] == pool).all(-1)
    assert matches.any(-1).all()
    assert len({tuple(row.tolist()) for row in patch.target.flatten(0, 1)}) > 5
    close(patch(case.h), case.expected(patch.target))
    assert torch.equal(patch(case.h), resampled(0)(case.h)) and torch.equal(patch(case.h), patch(case.h))
    assert not torch.equal(patch(case.h), resampled(1)(case.h))
    assert resampled(0, (3, 1)).target.shape == (3, 1, 4)


def test_features_are_named_by_number_by_name_or_by_tensor():
    case = OneSite()
    expected = ablate(RESID, case.sae, [4, 7])(case.h)
    for latents in (torch.tensor([4, 7]), [FeatureId(RESID, 4), FeatureId(RESID, 7)], (4, FeatureId(RESID, 7))):
        assert torch.equal(ablate(RESID, case.sae, latents)(case.h), expected)


def test_a_feature_of_another_site_is_refused():
    with user_error("mlp_out.1_4", "mlp_out.1", "resid_post.1"):
        ablate(RESID, random_topk(32), [3, FeatureId(MLP, 4)])


def test_values_that_do_not_fit_the_latents_are_refused():
    with user_error("2 latents", "3 values", "resid_post.1"):
        FeaturePatch(RESID, random_topk(32), torch.tensor([0, 1]), torch.zeros(1, 1, 3))
    with user_error("48", "resid_post.1"):
        FeaturePatch(RESID, random_topk(32), torch.tensor([0, 48]), torch.zeros(1, 1, 2))
    with user_error("-1", "resid_post.1"):
        FeatureScale(RESID, random_topk(32), torch.tensor([-1]), torch.ones(1))
    with user_error("no activations", "resid_post.1"):
        mean_ablate(RESID, random_topk(32), [0], torch.zeros(0, 32))


@pytest.mark.parametrize("latent", [48, -1, 10**9])
def test_an_unknown_latent_is_refused(latent):
    with user_error(str(latent), "resid_post.1", "48"):
        ablate(RESID, random_topk(32), [0, latent])
