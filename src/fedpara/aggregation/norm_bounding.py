"""Norm bounding (Sun, Kairouz, Suresh, McMahan 2019, arXiv 1911.07963, section 4.2): long updates are made shorter.

It is the clip of `fedpara.privacy` without noise. It bounds how far an attacker moves the model, and not where to.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field, validate_call

from fedpara.aggregation.rule import Rule
from fedpara.algorithms.base import Upload
from fedpara.communication import Codec
from fedpara.privacy import clipped
from fedpara.state import Parts, PartsLayout


class NormBounding(Rule):
    """Each update is shortened to a norm; uploads stream, and none is kept.

    Args:
        bound: the largest norm of an update, over all its values.

    Example:
        >>> import torch
        >>> known = {"model": {"w": torch.zeros(2)}}
        >>> uploads = [Upload({"model": {"w": torch.tensor(w)}}, num_examples=9) for w in ([0.3, 0.4], [30.0, 40.0])]
        >>> [upload.parts["model"]["w"] for upload in NormBounding(bound=1.0).bound_to(["w"]).replaced(uploads, known)]
        [tensor([0.3000, 0.4000]), tensor([0.6000, 0.8000])]
    """

    @validate_call
    def __init__(self, bound: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0) -> None:
        self.norm = bound

    def require(self, upload: PartsLayout, clients_per_round: int, up_codec: Codec) -> None:
        """Refuse what an update's norm does not bound."""
        if others := upload.keys() - {"model"}:
            raise ValueError(
                f"NormBounding bounds the model alone, but the algorithm also uploads its {', '.join(others)}; "
                "take another rule, such as aggregation=median"
            )
        if untrained := sorted(upload["model"].keys() - self.trained):
            raise ValueError(
                f"NormBounding cannot bound {untrained[0]}, which is not trained; keep it with the clients "
                "(sharing=fedbn), take a network without batch norms, or another rule, such as aggregation=median"
            )

    def replaced(self, uploads: Iterable[Upload], known: Parts) -> Iterator[Upload]:
        """The uploads one by one, at most `bound` away from the broadcast."""
        for upload in uploads:
            model = upload.parts["model"]
            short, _ = clipped(model, known["model"], [[*model]], self.norm)
            yield Upload({"model": short}, 1)
