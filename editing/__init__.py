"""First floor: interventions, the tasks they act on, and the experiments made of both."""

from editing.erase import Erasure, fit_leace, mean_difference
from editing.ioi import IOIConfig, IOIResult, run_ioi
from editing.metrics import auroc, kl_divergence, logit_difference
from editing.patch import ActivationPatch, ErrorPatch, FeaturePatch, Together, ablate
from editing.removal import Removal, RemovalConfig, RemovalResult, remove_pronouns
from editing.splice import Splice, SpliceCost, SpliceReport, splice_costs, splice_reports
from editing.tasks.ioi import Corruption, IOITask
from editing.tasks.pairs import PromptPairs, own_score
from editing.tradeoff import Curve, CurvePoint, PatchExperiment

__all__ = [
    "ActivationPatch",
    "Corruption",
    "Curve",
    "CurvePoint",
    "Erasure",
    "ErrorPatch",
    "FeaturePatch",
    "IOIConfig",
    "IOIResult",
    "IOITask",
    "PatchExperiment",
    "PromptPairs",
    "Removal",
    "RemovalConfig",
    "RemovalResult",
    "Splice",
    "SpliceCost",
    "SpliceReport",
    "Together",
    "ablate",
    "auroc",
    "fit_leace",
    "kl_divergence",
    "logit_difference",
    "mean_difference",
    "own_score",
    "remove_pronouns",
    "run_ioi",
    "splice_costs",
    "splice_reports",
]
