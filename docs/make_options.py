"""Prints docs/options.md, every option of every verb, from the settings that both the command and Python read.

python docs/make_options.py > docs/options.md
"""

from dataclasses import MISSING, Field, fields

from sae_core.checks import limits
from subrank.settings.circuit import CircuitSettings
from subrank.settings.demo import DemoSettings
from subrank.settings.experiments import (
    EvaluateSettings,
    FeatureSettings,
    ImportSettings,
    IOISettings,
    RemoveSettings,
    SteerSettings,
)
from subrank.settings.fields import choices, documented, flag_of, hints, limits_of
from subrank.settings.prompt import PromptSettings
from subrank.settings.studies import STUDIES
from subrank.settings.train import HarvestSettings, TrainSettings

VERBS = {
    "harvest": ("sr.harvest", HarvestSettings),
    "train": ("sr.train, sr.sweep", TrainSettings),
    "import": ("sr.import_saes", ImportSettings),
    "evaluate": ("sr.evaluate", EvaluateSettings),
    "ioi": ("sr.ioi", IOISettings),
    "circuit": ("sr.discover", CircuitSettings),
    "remove": ("sr.remove", RemoveSettings),
    "steer": ("sr.steer", SteerSettings),
    "features": ("sr.features", FeatureSettings),
    "prompt": ("sr.prompt", PromptSettings),
    **{f"study {name}": (f"sr.{name.replace('-', '_')}", study.settings) for name, study in STUDIES.items()},
    "demo": ("the command only", DemoSettings),
}
HEAD = """# Options

Every verb of `subrank` takes these options, and the function of the same work takes them as keywords, with the same
defaults: `subrank ioi DIR --prompts 24` is `sr.ioi(model, saes, prompts=24)`. Where several values are allowed, the
command takes them with spaces between (`-k 8 16`) and Python as a tuple (`k=(8, 16)`).

Every verb also takes `--out` (a folder for the results), `--device` and `--dtype` (the precision of the language model:
`auto`, `float32`, `bfloat16` or `float16`; by default the checkpoint's on CUDA, else float32; in Python both are
`sr.load_model`'s), and `--lm-batch` (contexts of a text that go through the language model together: less takes less
memory, and changes numbers by rounding only); the model runs on one device. Those on a set take the folder of the set,
and `--model` where the model has moved. `harvest` and `train` take a MODEL and `--text`. `train` keeps activations with
`--cache DIR`, `--resume` goes on from a checkpoint, `--save-every SECONDS` says how often there is one, `--config
run.json` repeats a run, `--log wandb tensorboard trackio` (in Python `log=`) sends its numbers there as well,
`--shards`, `--replicas` and `--patience` are for processes of `torchrun` ([scale](scale.md)).
`circuit` takes `--target`, `remove` `--task`, `steer` and
`features` `--features`, `prompt` a text and `--circuit`. `study superposition` reads no model, and of these takes
`--out` alone.

Defaults that are less "for large models" fall, from what they are for a model of 10 million weights in its blocks
(12 x layers x width²) to that for one of 100 million and more; the run says so. They go by sizes, not by the clock,
and what is given stays.

Made by `python docs/make_options.py`.
"""


def shown(field: Field) -> str:
    """A default as it is typed, and what it is for a large model."""
    default, large = field.default, field.metadata.get("large")
    if default in (None, MISSING):
        return ""
    text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return text + (f" ({large} for large models)" if large is not None else "")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for verb, (function, kind) in VERBS.items():
        texts = documented(kind)
        rows = []
        for field in fields(kind):
            allowed = choices(hints(kind)[field.name])
            text = " ".join(texts[field.name].split()) + (f": {', '.join(allowed)}" if allowed else "")
            text += f" ({words})" if (words := limits(**limits_of(field))) else ""
            rows.append(f"| `{flag_of(field)}` | {text} | {shown(field)} |")
        parts += [f"## {verb} ({function})\n", "| option | | default |", "|---|---|---|", *rows, ""]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
