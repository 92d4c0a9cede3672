"""First floor: interventions, the tasks they act on, and the experiments made of both."""

from editing.baselines import Baseline
from editing.capability import Capability, capability_of
from editing.curve_comparison import CurveComparison
from editing.directions import AddDirection
from editing.dose import DoseConfig, DoseResponse, dose_response
from editing.erase import Erasure, fit_leace, mean_difference, orthogonal, project_out
from editing.experiment import PatchExperiment
from editing.hook_export import export_hook
from editing.ioi import IOIConfig, IOIResult, IOIStudy, run_ioi
from editing.joint import JointExperiment
from editing.metrics import auroc, bootstrap, kl_divergence, logit_difference
from editing.patch import (
    ActivationPatch,
    ErrorPatch,
    FeaturePatch,
    FeatureScale,
    Together,
    ablate,
    clamp,
    mean_ablate,
    patch_features,
    resample_ablate,
    scale,
    splice_with_error,
)
from editing.positions import Onward
from editing.removal import Removal, RemovalConfig, RemovalResult, remove, remove_pronouns
from editing.saved import load_edit, save_edit
from editing.scaled import Scaled, spare_bos
from editing.selection import Selection, SelectionConfig, Selector
from editing.sizes import Measured, edit_sizes
from editing.splice import Splice, SpliceCost, SpliceReport, splice_costs, splice_reports
from editing.steer import Mode, continuations, read_features, steering
from editing.tasks.ioi import Corruption, IOITask, Role
from editing.tasks.own import load_pairs
from editing.tasks.pairs import PromptPairs, own_score
from editing.tasks.task import Task, task_of
from editing.tradeoff import Curve, CurvePoint

__all__ = [
    "ActivationPatch",
    "AddDirection",
    "Baseline",
    "Capability",
    "Corruption",
    "Curve",
    "CurveComparison",
    "CurvePoint",
    "DoseConfig",
    "DoseResponse",
    "Erasure",
    "ErrorPatch",
    "FeaturePatch",
    "FeatureScale",
    "IOIConfig",
    "IOIResult",
    "IOIStudy",
    "IOITask",
    "JointExperiment",
    "Measured",
    "Mode",
    "Onward",
    "PatchExperiment",
    "PromptPairs",
    "Removal",
    "RemovalConfig",
    "RemovalResult",
    "Role",
    "Scaled",
    "Selection",
    "SelectionConfig",
    "Selector",
    "Splice",
    "SpliceCost",
    "SpliceReport",
    "Task",
    "Together",
    "ablate",
    "auroc",
    "bootstrap",
    "capability_of",
    "clamp",
    "continuations",
    "dose_response",
    "edit_sizes",
    "export_hook",
    "fit_leace",
    "kl_divergence",
    "load_edit",
    "load_pairs",
    "logit_difference",
    "mean_ablate",
    "mean_difference",
    "orthogonal",
    "own_score",
    "patch_features",
    "project_out",
    "read_features",
    "remove",
    "remove_pronouns",
    "resample_ablate",
    "run_ioi",
    "save_edit",
    "scale",
    "spare_bos",
    "splice_costs",
    "splice_reports",
    "splice_with_error",
    "steering",
    "task_of",
]
