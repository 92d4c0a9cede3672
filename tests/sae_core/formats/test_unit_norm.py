"""Directions become unit vectors; rows that are, and rows of zeros."""

import torch
from foreign_files import N, X, gated_values, sae_lens, sae_lens_card, tensors, w64, without

from sae_core.formats.readers import load_foreign


def test_rows_that_are_nearly_unit_are_left_alone_to_the_bit(tmp_path):
    for kind in ("standard", "jumprelu", "gated", "topk"):
        values = gated_values(unit=True) if kind == "gated" else tensors(unit=True)
        values = values if kind == "jumprelu" else without(values, "threshold")
        values["W_dec"] *= 1 + 5e-6 * torch.linspace(-1, 1, N)[:, None]
        values["W_dec"][7] *= 2
        sae = load_foreign(sae_lens(tmp_path / kind, values, sae_lens_card(kind))).dictionary
        rest = torch.arange(N) != 7
        for name, value in values.items():
            loaded = getattr(sae, name)
            if name == "b_dec":
                assert torch.equal(loaded, value)
            else:
                chosen = (slice(None), rest) if name == "W_enc" else rest
                assert torch.equal(loaded[chosen], value[chosen]), (kind, name)
        assert (sae.W_dec[7].norm() - 1).abs() < 1e-6
        if kind == "topk":
            assert torch.equal(sae.gain[rest], torch.ones(N - 1)) and abs(sae.gain[7] - 2) < 1e-4


def test_rows_of_zeros_do_not_become_nan(tmp_path):
    for kind in ("standard", "jumprelu", "gated", "topk", "rescaled"):
        values = gated_values() if kind == "gated" else tensors()
        values = values if kind == "jumprelu" else without(values, "threshold")
        values["W_dec"][[3, 11]] = 0
        card = sae_lens_card("topk" if kind == "rescaled" else kind, rescale_acts_by_decoder_norm=kind == "rescaled")
        sae = load_foreign(sae_lens(tmp_path / kind, values, card | {"apply_b_dec_to_input": False})).dictionary
        assert all(value.isfinite().all() for value in sae.state_dict().values())
        assert torch.allclose(sae.directions.norm(dim=-1), torch.ones(N))
        f = sae.encode(X.float())
        assert f.isfinite().all() and (f[:, [3, 11]] == 0).all() and (f != 0).any()
        if kind == "standard":
            w = w64(values)
            g = (X @ w["W_enc"] + w["b_enc"]).relu()
            assert torch.allclose(sae.decode(f).double(), g @ w["W_dec"] + w["b_dec"], atol=1e-4)
