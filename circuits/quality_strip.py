"""How good a circuit is, in the lines that stand below its pictures."""

from circuits.evaluation import CircuitEvaluation
from circuits.scoring.circuit_runs import Errors
from sae_core.sites import Site


def quality_strip(evaluation: CircuitEvaluation) -> tuple[str, ...]:
    """Nodes scored, layers covered, and faithfulness beside the ceiling, the first-order circuit and random ones.

    Of the first ablation, with error terms ablated; numbers to two digits, without their intervals.
    """
    score, controls, whole = evaluation.scores[0], evaluation.controls[0], evaluation.reached[-1]
    best, first = controls.best_random.ablated.value, controls.first_order.ablated.value
    line = (
        f"Scored on {score.n_prompts} other examples with everything ablated but {len(score.members)} nodes at "
        f"{_layers(score.covered)} ({score.ablation}; error terms too): faithfulness "
        f"{score.ways[Errors.ABLATED].faithfulness.value:.2f}; ceiling (all latents) {score.ceiling.value:.2f}; "
        f"first-order circuit of the same size {first:.2f}; best of {len(controls.random)} random circuits {best:.2f}."
    )
    if whole.sites == score.covered:
        return (line,)
    further = f"faithfulness {whole.faithfulness.value:.2f}; ceiling {whole.ceiling.value:.2f}."
    return line, f"The same with {whole.n_members} nodes at {_layers(whole.sites)}: {further}"


def _layers(sites: tuple[str, ...]) -> str:
    if len(sites) < 2:
        return ", ".join(sites)
    n = len({Site.parse(site).layer for site in sites})
    return f"{n} layer{'s' * (n > 1)}, {sites[0]} to {sites[-1]}"
