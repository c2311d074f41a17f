"""A folder as the Hugging Face Hub wants it: weights as safetensors, config.json, and README.md as the model card."""

import importlib.util
import json
from pathlib import Path

from torch import nn

from fedpara.export.card import Card, metadata_of
from fedpara.export.formats import write_safetensors
from fedpara.export.loha import export_loha
from fedpara.files import write_atomically
from fedpara.installation import install_line
from fedpara.nn import merge

CONFIG, README, WEIGHTS = "config.json", "README.md", "model.safetensors"  # the Hub's names


def export_folder(network: nn.Module, folder: Path, card: Card) -> None:
    """Merge `network` in place and write it with its card, as merged weights or as an adapter.

    The weights keep the names of the network's own class, so that it loads them with `load_state_dict`.

    Args:
        folder: made if it is missing; files of the same names are replaced.

    Raises:
        ValueError: the card is one of an adapter, and LoHa cannot express the network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = metadata_of(card.data, card.metrics)
    if card.form == "loha":
        export_loha(network, folder, metadata)
    else:
        write_safetensors(merge(network).state_dict(), folder / WEIGHTS, {"format": "pt", **metadata})
    write_atomically(folder / CONFIG, json.dumps(card.config(), indent=2).encode())
    write_atomically(folder / README, card.text().encode())


def require_repo(repo: str) -> None:
    """Check that a folder can be pushed to a repository of this name, before the model is tested.

    Raises:
        ValueError: the package that pushes is not installed, or the name is not `user/name`.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError(f"hub.repo={repo}: needs huggingface-hub; {install_line('hub')}")
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"hub.repo={repo}: must be user/name ({error})") from error
    if "/" not in repo:
        raise ValueError(f"hub.repo={repo}: must be user/name")


def push(folder: Path, repo: str, private: bool = True) -> str:
    """Upload a folder to the Hub, into a repository that is made if it is missing, and return its address.

    Args:
        private: whether a repository that is made is private; one that exists stays as it is.

    Raises:
        ValueError: the Hub cannot be reached, or it refuses; one line with its reason.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi(library_name="fedpara")
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Model of a fedpara run")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"hub.repo={repo}: the Hub did not take it ({reason}); the folder is {folder}") from error
    return str(address)
