"""A trained student on the model hub: its checkpoint as it was saved, with a card that is written from its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hoi_distill.pipeline.reports.model_card import model_card
from hoi_distill.stages.student.student import read_record, refuse_damaged
from hoi_distill.storage.errors import UserError


def push_to_hub(
    checkpoint: Path, repository: str, *, license_name: str, private: bool = False, run: Path | None = None
) -> str:
    """Upload a checkpoint in one commit. The repository is made where there is none.

    The token is the one that ``hf auth login`` stored, or that ``HF_TOKEN`` holds.

    Args:
        checkpoint: the folder of the student's checkpoint.
        repository: ``organisation/name``.
        license_name: the hub's key of the license of these weights, such as ``apache-2.0`` or ``other``.
        private: whether a new repository is private.
        run: the folder of the run that trained it; default: the one that the checkpoint lies in.

    Returns:
        The address of the commit.

    Raises:
        UserError: the checkpoint is damaged, the name is none, or the hub refuses or cannot be reached.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"{repository}: no name of a repository; it is organisation/name")
    if not license_name.strip():
        raise UserError("--license: name the license of these weights, for example apache-2.0, or other")
    record = read_record(checkpoint)
    refuse_damaged(checkpoint)
    names = sorted({"config.json", "model.safetensors", "vocabulary.json", *(record.get("checksums") or {})})
    card = model_card(checkpoint, record, repository, license_name=license_name, run=run or checkpoint.parent)
    return _committed(repository, private, [(name, checkpoint / name) for name in names], card)


def _committed(repository: str, private: bool, files: Sequence[tuple[str, Path]], card: str) -> str:
    """Commit files and a card; the commit's address. An error of the client is one line."""
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        operations = [CommitOperationAdd(name, path) for name, path in files]
        operations.append(CommitOperationAdd("README.md", card.encode()))
        done = api.create_commit(repository, operations, commit_message="A student that hoi-distill trained")
    except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen unrelated classes
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{repository}: not uploaded: {why}; log in with `hf auth login`, or set HF_TOKEN, and unset HF_HUB_OFFLINE"
        ) from None
    return str(done.commit_url)
