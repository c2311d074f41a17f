"""Identity FedPara as the adapter that PEFT and LyCORIS call LoHa, which took its formula from the FedPara paper.

LoHa is W = W0 + alpha / r (W1 * W2), and FedPara is W = W1 * W2. So FedPara is a LoHa over a base whose weight W0 is
zero, with alpha = r. After fine-tuning (`fedpara.nn.frozen`) W0 is the pretrained weight. Its factors (`hada_*`) are
ours after renaming, for each branch i:

- linear, and convolutions without a core: `hada_w{i}_a` = X_i (O, r), `hada_w{i}_b` = Y_i^T (r, I K).
- convolutions with a core: `hada_t{i}` = T_i (r, r, k, k), `hada_w{i}_a` = X_i^T (r, O), `hada_w{i}_b` = Y_i^T (r, I).

PEFT has one switch for the cores of all convolutions, and gives none to a convolution with a 1x1 kernel. So the core of
a 1x1 convolution is multiplied into Y, and so are all cores if some other convolution has none.

PEFT 0.21 (peft/tuners/loha/layer.py), LyCORIS 4.1 (lycoris/modules/loha.py).
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpara.export.formats import WAY_OUT, write_safetensors
from fedpara.files import write_atomically
from fedpara.nn import Factorization, Hadamard, merge
from fedpara.nn.factorizations import Factors, rows_of
from fedpara.nn.frozen import Base
from fedpara.state import State

LAYERS = nn.Linear, nn.Conv1d, nn.Conv2d  # that PEFT's LoHa can adapt
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names
LYCORIS, BASE = "lycoris.safetensors", "base.safetensors"


def require_loha(network: nn.Module) -> None:
    """Check that every factorised weight is one that LoHa can compose.

    Raises:
        ValueError: one line with the layer, the reason and the way out.
    """
    found, names = list(_factorized(network)), dict[int, str]()
    if not found:
        raise ValueError(f"export=loha: the network has no factorised layer; {WAY_OUT}")
    for name, layer, factors in found:
        if isinstance(factors, Hadamard) and factors.nonlinearity is not None:
            function = getattr(factors.nonlinearity, "__name__", "a function")
            way_out = f"{WAY_OUT}, and a model trained with factorization.nonlinearity=identity is a LoHa"
            raise ValueError(f"export=loha: {name} takes the {function} of W1 and W2, LoHa cannot; {way_out}")
        if not isinstance(factors, Hadamard):
            raise ValueError(f"export=loha: {name} is a {type(factors).__name__}, not FedPara's W1 * W2; {WAY_OUT}")
        if not isinstance(layer, LAYERS) or not name:
            kinds = "Linear, Conv1d and Conv2d layers within a network"
            kind = type(layer).__name__.removeprefix("Parametrized")
            raise ValueError(f"export=loha: {name or 'the network'} is a {kind}, PEFT adapts {kinds}; {WAY_OUT}")
        if first := names.get(id(factors)):
            raise ValueError(f"export=loha: {first} and {name} share a weight, PEFT merges it wrongly; {WAY_OUT}")
        names[id(factors)] = name
    _require_own_names(network, names.values())


def export_loha(network: nn.Module, folder: Path, metadata: dict[str, str]) -> None:
    """Write a network as an adapter for PEFT and for LyCORIS, and merge it in place.

    `base.safetensors` has the rest of the network (biases, norms, layers that are not factorised), for a base whose
    other weights are zero; after fine-tuning it has those too.

    Args:
        folder: a folder that exists; files in it are replaced.
        metadata: facts about the model, stored beside the weights.

    Raises:
        ValueError: see `require_loha`.
    """
    require_loha(network)
    found = {name: factors for name, _, factors in _factorized(network)}
    cores = _have_cores(found.values())
    layers = {name: _as_loha(factors, cores) for name, factors in found.items()}
    adapter = {
        f"base_model.model.{name}.{part}": tensor[..., None] if tensor.dim() == 3 else tensor  # as PEFT's Conv1d has it
        for name, loha in layers.items()
        for part, tensor in loha.items()
    }
    write_safetensors(adapter, folder / ADAPTER, {"format": "pt", **metadata})
    write_safetensors(_of_lycoris(layers), folder / LYCORIS, metadata)
    config = adapter_config({name: factors.rank for name, factors in found.items()}, cores)
    write_atomically(folder / ADAPTER_CONFIG, json.dumps(config, indent=2).encode())
    pretrained = dict(_bases(network))
    dense = merge(network).state_dict()
    adapted = {f"{name}.weight" for name in found}
    rest = {name: tensor for name, tensor in dense.items() if name not in adapted}
    write_safetensors(rest | pretrained, folder / BASE, metadata)


def adapter_config(ranks: dict[str, int], cores: bool) -> dict[str, object]:
    """PEFT's configuration for layers of given ranks; with alpha = r its scale is 1.

    Args:
        cores: whether convolutions of several positions have a core.
    """
    (rank, _), *_ = Counter(ranks.values()).most_common()
    other = {f"^{re.escape(name)}": own for name, own in ranks.items() if own != rank}
    return {
        "peft_type": "LOHA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": "|".join(map(re.escape, ranks)),  # as one expression it matches whole names
        "r": rank,
        "alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "use_effective_conv2d": cores,
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
    }


def _as_loha(factors: Factorization, cores: bool) -> State:
    """The tensors of one layer by LoHa's names; `hada_t` has the kernel's own dimensions."""
    tensors: State = {}
    for number, branch in enumerate(factors.branches(), 1):
        x, y, t = branch["x"], branch["y"], branch.get("t")
        if t is None:
            tensors |= {f"hada_w{number}_a": x, f"hada_w{number}_b": y.mT}
        elif not cores or prod(factors.shape[2:]) == 1:
            tensors |= {f"hada_w{number}_a": x, f"hada_w{number}_b": _columns(branch, factors)}
        else:
            core = _unfolded(t, factors)
            tensors |= {f"hada_t{number}": core, f"hada_w{number}_a": x.mT, f"hada_w{number}_b": y.mT}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _unfolded(core: Tensor, factors: Factorization) -> Tensor:
    """T as (r, r, *kernel), from its unfolding T[r, k R + s]."""
    return core.view(factors.rank, *factors.shape[2:], factors.rank).movedim(-1, 1)


def _columns(branch: Factors, factors: Factorization) -> Tensor:
    """T x2 Y as (r, I K), so that X times it is the weight as a matrix."""
    rows = rows_of(torch.eye(factors.rank, dtype=branch["x"].dtype, device=branch["x"].device), branch["t"])
    columns = (rows @ branch["y"].mT).view(factors.rank, -1, factors.shape[1])  # (r, K, I)
    return columns.mT.reshape(factors.rank, -1)


def _of_lycoris(layers: dict[str, State]) -> State:
    """The tensors by LyCORIS' names, in which underscores are in the place of dots; each layer has its alpha."""
    short = {name: _lycoris_name(name) for name in layers}
    own = {f"{short[name]}.{part}": tensor for name, loha in layers.items() for part, tensor in loha.items()}
    ranks = {f"{short[name]}.alpha": torch.tensor(float(len(loha["hada_w1_b"]))) for name, loha in layers.items()}
    return own | ranks


def _lycoris_name(name: str) -> str:
    return f"lycoris_{name}".replace(".", "_")


def _require_own_names(network: nn.Module, layers: Iterable[str]) -> None:
    """Refuse a layer whose LyCORIS name is that of another layer, dense or not: one would get the other's factors."""
    others: dict[str, list[str]] = defaultdict(list)
    for name, _ in network.named_modules(remove_duplicate=False):
        others[_lycoris_name(name)].append(name)
    for name in layers:
        if clash := next((other for other in others[_lycoris_name(name)] if other != name), None):
            both = f"{name} and {clash} are both {_lycoris_name(name)} to LyCORIS"
            allowed = "names must differ in more than dots and underscores"
            raise ValueError(f"export=loha: {both}; {allowed}; {WAY_OUT}")


def _factorized(network: nn.Module) -> Iterator[tuple[str, nn.Module, Factorization]]:
    """Every layer with a factorised weight, by all of its names; a weight's own name if it has one."""
    for name, layer in network.named_modules(remove_duplicate=False):
        for tensor, steps in getattr(layer, "parametrizations", {}).items():
            if isinstance(steps[0], Factorization):
                yield f"{name}.{tensor}".removesuffix(".weight").removeprefix("."), layer, steps[0]


def _bases(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The pretrained weight under the factors of each layer, in fine-tuning."""
    for name, layer in network.named_modules():
        for tensor, steps in getattr(layer, "parametrizations", {}).items():
            yield from ((f"{name}.{tensor}", step.get_buffer("weight")) for step in steps if isinstance(step, Base))


def _have_cores(found: Iterable[Factorization]) -> bool:
    """Whether all convolutions of several positions have a core."""
    several = [factors.tucker for factors in found if prod(factors.shape[2:]) > 1]
    return bool(several) and all(several)
