"""The private names of wandb-workspaces that this package uses.

Note [A workspace as text]
~~~~~~~~~~~~~~~~~~~~~~~~~~
The only public thing to do with a workspace is to save it to W&B's server. `_to_model` gives the data that would be
sent, so that one can look at it, and compare it, without an account.
"""

from wandb_workspaces.workspaces import Workspace


def as_json(workspace: Workspace) -> str:
    """The JSON that would be sent to W&B."""
    text: str = workspace._to_model().model_dump_json(by_alias=True, indent=2)
    return text
