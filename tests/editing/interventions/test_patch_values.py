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
    one, values = OneSite(), torch.tensor([0.0, 1.0, -2.0, 0.5])
    given = (RESID, one.sae, one.latents)
    other = 3 * normal(3, 9, 32, seed=2)
    close(ablate(*given)(one.h), one.expected(0.0))
    close(clamp(*given, 1.5)(one.h), one.expected(1.5))
    close(clamp(*given, values)(one.h), one.expected(values))
    close(patch_features(*given, other)(one.h), one.expected(one.sae.encode(other)[..., one.latents]))
    close(mean_ablate(*given, one.x)(one.h), one.expected(one.sae.encode(one.x)[:, one.latents].mean(0)))
    close(scale(*given, 2.5)(one.h), one.h + 1.5 * one.f @ one.d)
    close(scale(*given, values)(one.h), one.h + ((values - 1) * one.f) @ one.d)
    assert one.f.any(0).any(0).sum() > 2  # control: latents that are never active would prove little


def test_resampled_values_are_those_of_one_token_for_each_position():
    one = OneSite()

    def resampled(seed: int, shape=(3, 9)) -> FeaturePatch:
        generator = torch.Generator().manual_seed(seed)
        return resample_ablate(RESID, one.sae, one.latents, one.x, shape, generator=generator)

    patch, pool = resampled(0), one.sae.encode(one.x)[:, one.latents]
    assert patch.target.shape == (3, 9, 4)
    found = (patch.target[..., None, :] == pool).all(-1)
    assert found.any(-1).all()
    assert len({tuple(row.tolist()) for row in patch.target.flatten(0, 1)}) > 5
    close(patch(one.h), one.expected(patch.target))
    assert torch.equal(patch(one.h), resampled(0)(one.h)) and torch.equal(patch(one.h), patch(one.h))
    assert not torch.equal(patch(one.h), resampled(1)(one.h))
    assert resampled(0, (3, 1)).target.shape == (3, 1, 4)


def test_features_are_named_by_number_by_name_or_by_tensor():
    one = OneSite()
    expected = ablate(RESID, one.sae, [4, 7])(one.h)
    for latents in (torch.tensor([4, 7]), [FeatureId(RESID, 4), FeatureId(RESID, 7)], (4, FeatureId(RESID, 7))):
        assert torch.equal(ablate(RESID, one.sae, latents)(one.h), expected)


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
