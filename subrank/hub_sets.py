"""Sets of dictionaries on the Hugging Face hub: `saes.push_to_hub("OWNER/NAME")`, `sr.load("hf:OWNER/NAME")`.

A repository, or a folder in it, holds what the folder of a set holds: `set.json`, `quality.json`, and the dictionaries
in the layout that SAELens reads (`SITE/cfg.json`, `SITE/sae_weights.safetensors`); and a model card. JSON and
safetensors are all that is fetched: nothing pickled comes along.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from editing.set_quality import SetQuality
from sae_core.dictionaries.kinds import parts
from sae_core.errors import UserError
from sae_core.files import first_line, read_json, user_path, write_json, write_text
from sae_core.model.hub import hub_answers
from sae_core.storage import QUALITY, SET, DictionarySet, public_name

PREFIX, KINDS = "hf:", (".json", ".safetensors")
_NAME = r"[\w.-]+/[\w.-]+"
_CACHED = re.compile(r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})(?:/(.+))?", re.ASCII)
_PLACE = re.compile(rf"(?:{PREFIX})?({_NAME})(?:@([^/\s]+))?(?:/([\w.=+/-]+))?", re.ASCII)


_CARD = """---
library_name: saelens
tags:
- sparse-autoencoder
- subrank
{base}---

# Sparse dictionaries of {model}

Dictionaries of the activations of `{model}` at {n} sites on the text `{text}`, {how} with subrank.

| site | kind | latents | FVU | L0 | dead | loss recovered |
|---|---|---|---|---|---|---|
{rows}

FVU: share of the variance that is left unexplained. L0: active latents per token. Dead: share of latents that were
never active. Loss recovered: the model's cross-entropy with the reconstruction in place, on the scale from zero
ablation (0) to the model as it is (1). All on text that was held out of training.

```python
import subrank as sr
saes = sr.load("{place}")

from sae_lens import SAE
sae = SAE.from_pretrained("{repository}", "{sae_id}")
```
"""


@dataclass(frozen=True)
class HubPlace:
    """A folder of a repository at a revision."""

    repository: str
    revision: str | None = None
    folder: str = ""
    """In the repository; empty for all of it."""

    @classmethod
    def parse(cls, text: str) -> "HubPlace":
        """The place that `OWNER/NAME`, `hf:OWNER/NAME@REVISION/FOLDER` names; raises `UserError` for any other text."""
        match = _PLACE.fullmatch(text)
        folder = ((match[3] if match else "") or "").strip("/")
        if not match or {".", ".."} & {*folder.split("/")}:
            raise UserError(f"{text!r:.80} is no place on the hub; it reads like {PREFIX}OWNER/NAME@REVISION/FOLDER")
        return cls(match[1], match[2], folder)

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{at}" + (f"/{self.folder}" if self.folder else "")


# ---- from the hub ----------------------------------------------------------------------------------


def local_path(place: str | Path) -> Path:
    """A path of this machine as it is; of `hf:OWNER/NAME@REVISION/FOLDER` a folder with a copy, made if need be.

    Raises `UserError`, in one line that names the place, where there is nothing that may be read.
    """
    if not str(place).startswith(PREFIX):
        return user_path(place)
    at = HubPlace.parse(str(place))
    folder = _copy(at, KINDS)
    if not any(folder.rglob("*.safetensors")):
        raise UserError(
            f"{at} holds no safetensors, on the hub or in the copy here; other files are not fetched from there: "
            "download and read them"
        )
    return folder


def _copy(at: HubPlace, kinds: Sequence[str]) -> Path:
    """A copy of the files of a place whose names end so; the one that is here, where the hub does not answer."""
    from huggingface_hub import constants, snapshot_download

    hub = constants.ENDPOINT
    with _faults_of(at):
        copy = snapshot_download(
            at.repository,
            revision=at.revision,
            allow_patterns=[f"{at.folder}/*{kind}" if at.folder else f"*{kind}" for kind in kinds],
            ignore_patterns=["survey/*", "*/survey/*"],  # what others say that a set makes of a text
            endpoint=hub,
            local_files_only=not hub_answers(hub),
        )
    return Path(copy) / at.folder


def place_of(path: Path) -> str:
    """Of a path in the hub's cache the place that it is a copy of, at its commit; of any other the whole path."""
    whole = path.expanduser().absolute()
    if match := _CACHED.fullmatch(whole.as_posix()):
        owner, name, commit, folder = match.groups()
        return str(HubPlace(f"{owner}/{name}", commit, folder or ""))
    return str(whole)


def local_set(place: str | Path) -> Path:
    """`local_path` of a set; raises `UserError` that tells the way for a place on the hub with other people's files."""
    if str(place).startswith(PREFIX):  # before gigabytes of a model are fetched
        folder = _copy(HubPlace.parse(str(place)), [SET])
        if not any((*folder.glob(SET), *folder.glob(f"*/{SET}"))):
            way = f"sr.import_saes makes one: give it {place}/FOLDER"
            raise UserError(f"{place} is no set of subrank's (no {SET}); {way}")
    return local_path(place)


# ---- to the hub ------------------------------------------------------------------------------------


def push(
    place: str, saes: DictionarySet, quality: SetQuality | None, *, private: bool = False, message: str | None = None
) -> str:
    """Put a set with its card at `OWNER/NAME` or `OWNER/NAME/FOLDER`; returns `hf:OWNER/NAME@COMMIT/FOLDER`.

    Makes the repository where there is none; what else lies in it stays. Raises `UserError` without a token, and where
    the hub does not answer or does not allow it.
    """
    from huggingface_hub import HfApi, constants, get_token

    at = HubPlace.parse(place)
    if get_token() is None:
        raise UserError(f"pushing to {at} needs a token that may write; log in with `hf auth login`, or set HF_TOKEN")
    if not hub_answers(constants.ENDPOINT):
        raise UserError(f"the hub does not answer at {constants.ENDPOINT}; save(folder) keeps the set here")
    api = HfApi(endpoint=constants.ENDPOINT)
    with tempfile.TemporaryDirectory() as folder:
        saes.write(Path(folder))
        _without_paths(Path(folder))
        write_text(Path(folder) / "README.md", model_card(at, saes, quality))
        with _faults_of(at):
            api.create_repo(at.repository, private=private, exist_ok=True)
            is_public = private and not api.repo_info(at.repository).private
        if is_public:
            raise UserError(f"{at.repository} is there already, and public; make it private on the hub first")
        with _faults_of(at):
            commit = api.upload_folder(
                repo_id=at.repository,
                folder_path=folder,
                path_in_repo=at.folder,
                revision=at.revision,
                delete_patterns=[QUALITY],  # of the set that was there
                commit_message=message or "A set of dictionaries, written by subrank",
            )
    return str(HubPlace(at.repository, commit.oid, at.folder))


def _without_paths(folder: Path) -> None:
    """Leave of the paths in a set's card their last parts: what is given away says nothing of the machine."""
    card = read_json(folder / SET)
    card["model"], card["text"]["source"] = public_name(card["model"]), public_name(card["text"]["source"])
    card["origin"] = {site: public_name(origin) for site, origin in card["origin"].items()}
    write_json(folder / SET, card)


def model_card(at: HubPlace, saes: DictionarySet, quality: SetQuality | None) -> str:
    """The model card: what the dictionaries are, a table of what they are worth, and how to read them."""
    model, rows = public_name(saes.model), []
    for site in saes.sites:
        kind = parts(saes.at(site)).kind.sae_lens
        worth = ["", "", "", ""]
        if quality is not None and site in quality.quality:
            number, cost = quality.quality[site], quality.cost[site]
            worth = [f"{number.fvu:.3f}", f"{number.l0:.1f}", f"{number.dead:.1%}", f"{cost.recovered:.3f}"]
        rows.append(" | ".join([f"| `{site}`", kind, str(saes.at(site).n_latents), *worth]) + " |")
    return _CARD.format(
        base=f"base_model: {model}\n" if re.fullmatch(_NAME, model, re.ASCII) else "",
        model=model,
        n=len(rows),
        text=public_name(saes.text.source),
        how="trained" if saes.training else "imported",
        rows="\n".join(rows),
        place=HubPlace(at.repository, None, at.folder),
        repository=at.repository,
        sae_id="/".join(filter(None, [at.folder, str(saes.sites[0])])),
    )


@contextmanager
def _faults_of(at: HubPlace) -> Iterator[None]:
    """Let what the hub's client raises within the block be a `UserError` of one line."""
    try:
        yield
    except Exception as error:  # its classes come from several libraries, which differ between its versions
        if getattr(error, "errno", None):
            raise  # this machine's disk, which says itself what is wrong
        raise UserError(_reason(error, at)) from error


def _reason(error: Exception, at: HubPlace) -> str:
    from huggingface_hub import constants, errors

    cause = error
    while isinstance(cause, (errors.LocalEntryNotFoundError, RuntimeError)) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__  # no copy here either, or in a thread: for a reason that it carries
    status = getattr(getattr(cause, "response", None), "status_code", None)
    match cause:
        case errors.RevisionNotFoundError():
            return f"{at.repository} has no revision {at.revision or 'main'}; give a branch, a tag or a commit of it"
        case errors.GatedRepoError():
            return f"{at.repository} asks for consent; give it at {constants.ENDPOINT}/{at.repository}, and log in"
        case errors.RepositoryNotFoundError():
            return f"the hub has no repository {at.repository}, or it is private; check the name, or log in (HF_TOKEN)"
        case errors.HFValidationError():
            return f"{at.repository} is no name of a repository: {first_line(cause)}"
        case errors.LocalEntryNotFoundError():
            return f"the hub does not answer at {constants.ENDPOINT}, and no copy of {at} is here; try again later"
    if status in (401, 403):
        return f"the hub does not allow it ({status}); give a token that may use {at.repository} (HF_TOKEN)"
    if status:
        return f"the hub answers {status} for {at.repository}; try again later"
    return f"{at} could not be reached ({first_line(cause)}); try again later"
