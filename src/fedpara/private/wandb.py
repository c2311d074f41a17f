"""What is used of wandb-workspaces beyond its public interface.

Note [A workspace as text]
~~~~~~~~~~~~~~~~~~~~~~~~~~
A workspace can be saved, to W&B's server, and nothing else. `_to_model` gives what would be sent, so that it can be
looked at, and compared, without an account.
"""

from wandb_workspaces.workspaces import Workspace


def as_json(workspace: Workspace) -> str:
    """What W&B would be sent."""
    text: str = workspace._to_model().model_dump_json(by_alias=True, indent=2)
    return text
