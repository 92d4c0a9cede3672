"""How good a circuit is, in the two lines that stand below its pictures."""

from circuits.evaluation import CircuitEvaluation, Reached
from circuits.scoring.circuit_runs import Errors
from sae_core.sites import Site


def quality_strip(evaluation: CircuitEvaluation) -> tuple[str, ...]:
    """Nodes scored, layers covered, and faithfulness beside the ceiling, the first-order circuit and random ones.

    Of the first ablation, with error terms ablated; numbers to two digits, without their intervals.
    """
    score, controls, whole = evaluation.scores[0], evaluation.controls[0], evaluation.reached[-1]
    lines = [
        f"Scored on {score.n_prompts} other examples: {len(score.members)} nodes at {_layers(score.covered)} "
        f"({', '.join(score.covered)}); outside the circuit: {score.ablation}.",
        f"Faithfulness {score.ways[Errors.ABLATED].faithfulness.value:.2f}; ceiling (all latents) "
        f"{score.ceiling.value:.2f}; first-order circuit of the same size {controls.first_order.ablated.value:.2f}; best of "
        f"{len(controls.random)} random circuits {controls.best_random.ablated.value:.2f}.",
    ]
    return (*lines, _reached(whole)) if whole.sites != score.covered else tuple(lines)


def _reached(whole: Reached) -> str:
    return (
        f"With {_layers(whole.sites)} covered, {whole.n_members} nodes: faithfulness {whole.faithfulness.value:.2f}; "
        f"ceiling {whole.ceiling.value:.2f}."
    )


def _layers(sites: tuple[str, ...]) -> str:
    n = len({Site.parse(site).layer for site in sites})
    return f"{n} layer" + "s" * (n > 1)
