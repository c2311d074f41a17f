"""Factors that a round starts anew and takes into the weights at its end: FedMUD's schedule (`fedpara.nn.mud`).

What the server holds, tests and sends whole are the weights and all that is not factorised. A round trains and sends
back the factors in place of the weights. Both ends draw the factors' start from the seed, the round and the layer.
"""

from collections.abc import Iterable, Mapping

from torch import nn

from fedpara.nn.mud import TRAINED, Update, updates
from fedpara.sampling import derive_seed
from fedpara.sharing.split import Split
from fedpara.state import Layout, Parts, State, TensorSpec, only

WAY_OUT = "where factors are reset (factorization=mud)"


class Resetting(Split):
    """All is shared but the factors of updates, which belong to a round.

    Args:
        names: every name of the model's state.
        layers: the factors of each layer, by the start of their names.
        seed: of what is drawn in each round.

    Attributes:
        factors: names, shapes and types of the factors that travel.
        weights: names of the weights that take them up.

    Example:
        >>> from fedpara.nn import MUD, factorize
        >>> network = factorize(nn.Linear(8, 8), MUD(ratio=0.5))
        >>> split = Resetting(network.state_dict(), dict(updates(network)), seed=0)
        >>> split.shared
        ['bias', 'parametrizations.weight.1.weight']
        >>> list(split.moving(split.shared_part(network.state_dict()), round_index=0))
        ['bias', 'parametrizations.weight.0.u', 'parametrizations.weight.0.v']
    """

    def __init__(self, names: Iterable[str], layers: Mapping[str, Update], seed: int) -> None:
        super().__init__(names)
        self._layers, self._seed = dict(layers), seed
        of_rounds = {
            f"{layer}0.{name}": tensor for layer, own in layers.items() for name, tensor in own.factors.items()
        }
        self.factors: Layout = {
            name: TensorSpec(factor.shape, factor.dtype)
            for name, factor in of_rounds.items()
            if name.rpartition(".")[2] in TRAINED
        }
        self.weights = {f"{layer}1.weight" for layer in layers}
        self._sent = [name for name in self.shared if name in self.factors or name not in {*of_rounds, *self.weights}]
        self.shared = [name for name in self.shared if name not in of_rounds]

    def require_round(self, server: Parts, error_feedback: bool, private: bool) -> None:
        """What is kept from one round to the next would be of factors that are no more."""
        if kept := ", ".join(sorted(server.keys() - {"model"})):
            raise ValueError(f"algorithm must be fedavg or fedprox {WAY_OUT}, not one whose server also keeps {kept}")
        if error_feedback:
            raise ValueError(f"error_feedback=True: must be false {WAY_OUT}, a loss is of factors that are gone then")
        if private:
            raise ValueError(f"privacy must be none {WAY_OUT}, it clips no factors of a round")

    def started(self, shared: State, round_index: int) -> State:
        """With the factors at the round's start, trained and fixed, which compose 0."""
        drawn: State = {}
        for number, (layer, own) in enumerate(self._layers.items()):
            factors = own.drawn(derive_seed(self._seed, round_index, number, "factors of an update"))
            dtype = self.factors[f"{layer}0.{TRAINED[0]}"].dtype
            drawn |= {f"{layer}0.{name}": factor.to(dtype) for name, factor in factors.items()}
        return shared | drawn

    def movable(self, shared: State) -> State:
        """The factors and what is given of all that is not factorised."""
        state = self.started(shared, 0)
        return {name: state[name] for name in self._sent if name in state}

    def moving(self, shared: State, round_index: int) -> State:
        """The factors at the round's start in place of the weights."""
        return self.sent(self.started(shared, round_index), round_index)

    def sent(self, state: State, round_index: int) -> State:
        """The factors and all that is not factorised."""
        return only(self._sent, state)

    def moved(self, shared: State, moving: State, round_index: int) -> State:
        """What is shared, with each weight W + D.

        D is computed in float64 and rounded once: a client that takes up the same factors has the server's bits, and
        on a processor that adds in another order all but rare ones.
        """
        factors = self.started({}, round_index) | moving
        new = dict(moving)
        for layer, own in self._layers.items():
            given = {name: factors[f"{layer}0.{name}"].double() for name in own.factors}
            weight = shared[f"{layer}1.weight"]
            new[f"{layer}1.weight"] = weight + own.refold(own.compose(given)).to(weight.dtype)
        return only(shared, new)


def resetting(split: Split, network: nn.Module, seed: int) -> Split:
    """The split for a network: the one given, or a `Resetting` if the network has factors of updates.

    Raises:
        ValueError: it has, and the split given keeps or freezes a part of the model.
    """
    layers = dict(updates(network))
    if not layers or isinstance(split, Resetting):
        return split
    if type(split) is not Split or split.personal:
        raise ValueError(f"what travels must be the whole model, sharing=full, {WAY_OUT}")
    return Resetting(split.shared, layers, seed)
