"""What cannot be run is refused at once."""

from tiny import user_error

from editing.removal.config import RemovalConfig


def test_what_cannot_be_run_is_refused_at_once():
    for wrong in ({"strengths": ()}, {"strengths": (1.0, 0.5)}, {"strengths": (0.0, 0.5)}, {"text_contexts": 4}):
        with user_error(str(next(iter(wrong)))):
            RemovalConfig(**wrong)
    for wrong in ("selection_prompts", "test_prompts", "fit_prompts", "shortlist", "max_features", "random_draws"):
        with user_error(wrong, "got 0"):
            RemovalConfig(**{wrong: 0})
    for share in (0.0, 1.0, float("nan")):
        with user_error("share", str(share)):
            RemovalConfig(share=share)
    for budget in (0.0, -1.0, float("nan"), float("inf")):
        with user_error("budget", str(budget)):
            RemovalConfig(budget=budget)
