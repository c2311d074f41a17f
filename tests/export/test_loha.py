"""LoHa: its own formula, PEFT and LyCORIS give the network's outputs from the exported tensors."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedpara.export import export_loha, require_loha
from fedpara.models import CharLSTM, ResNet
from fedpara.nn import EqualSizeLowRank, FedPara, PFedPara, factorize, merge

OWN = {"nonlinearity": "identity", "gamma": 0.3}


def linear():
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.Linear(20, 7)), torch.randn(5, 40)


def images():
    """3x3, 1x1 and grouped convolutions, and a norm; a layer left dense, `2`, has a name that another one ends in."""
    first = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(2, 12), nn.Conv2d(12, 24, 3, padding=1))
    second = nn.Sequential(nn.Conv2d(24, 16, 1), nn.Conv2d(16, 18, (3, 5), padding=1, groups=2), nn.Flatten())
    return nn.Sequential(first, second, nn.Linear(18 * 8 * 6, 10)), torch.randn(4, 3, 8, 8)


def sounds():
    layers = nn.Conv1d(16, 12, 3, padding=1), nn.Conv1d(12, 12, 1), nn.Flatten(), nn.Linear(12 * 8, 5)
    return nn.Sequential(*layers), torch.randn(4, 16, 8)


def residual():
    return ResNet([8, 16], [1, 1], num_classes=10), torch.randn(4, 3, 8, 8)


def mixed(name, weight):
    return FedPara(conv="reshape" if name == "0.2" else "tucker", **OWN)(name, weight)


CASES = {
    "linear": (linear, FedPara(**OWN), []),
    "tucker": (images, FedPara(**OWN), ["2"]),
    "reshape": (images, FedPara(conv="reshape", **OWN), ["2"]),
    "mixed": (images, mixed, ["2"]),
    "conv1d": (sounds, FedPara(**OWN), []),
    "conv1d reshape": (sounds, FedPara(conv="reshape", **OWN), []),
    "residual": (residual, FedPara(**OWN), []),
    "fine-tuning": (images, FedPara(**OWN), ["2"], {"delta": True, "trainable": ["2.*"]}),
}
every_case = pytest.mark.parametrize("case", CASES)


def exported(case, folder):
    """The network before it was factorised, and the trained one's inputs and outputs; its adapter is in the folder."""
    make, recipe, exclude, *options = CASES[case]
    torch.manual_seed(0)
    network, inputs = make()
    base = copy.deepcopy(network).eval()
    factorize(network, recipe, exclude, **dict(*options)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # as after training: no bias is zero
        outputs = network(inputs)
    export_loha(network, folder, {"data": "random"})
    return base, inputs, outputs


def with_rest(base, folder):
    """The base of the adapter: weights that are not in base.safetensors are zero."""
    for parameter in base.parameters():
        nn.init.zeros_(parameter)
    base.load_state_dict(load_file(folder / "base.safetensors"), strict=False)
    return base


def composed(loha):
    """W1 * W2 as LyCORIS and PEFT write it."""
    weights = []
    for branch in "12":
        a, b = loha[f"hada_w{branch}_a"], loha[f"hada_w{branch}_b"]
        core = loha.get(f"hada_t{branch}")
        weights.append(a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a))
    return weights[0] * weights[1]


def layers_of(state, prefix=""):
    found = {}
    for name, tensor in state.items():
        layer, _, part = name.removeprefix(prefix).rpartition(".")
        found.setdefault(layer, {})[part] = tensor
    return found


def difference(outputs, expected):
    return float((outputs - expected).abs().max() / expected.abs().max())


@every_case
def test_the_formula_of_loha_gives_the_outputs(case, tmp_path):
    base, inputs, outputs = exported(case, tmp_path)
    with_rest(base, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["alpha"] == config["r"]
    assert config["alpha_pattern"] == config["rank_pattern"]
    layers = layers_of(load_file(tmp_path / "adapter_model.safetensors"), "base_model.model.")
    with torch.no_grad():
        assert difference(base(inputs), outputs) > 0.1
        for name, loha in layers.items():
            weight = base.get_submodule(name).weight
            weight.add_(composed(loha).reshape(weight.shape))
        assert difference(base(inputs), outputs) < 1e-6


@every_case
def test_peft_loads_the_adapter(case, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    base, inputs, outputs = exported(case, tmp_path)
    model = peft.PeftModel.from_pretrained(with_rest(base, tmp_path), str(tmp_path)).eval()
    with torch.no_grad():
        beside = difference(model(inputs), outputs)
        merged = difference(model.merge_and_unload()(inputs), outputs)
    print(f"peft, {case}: {beside:.1e} beside the base, {merged:.1e} merged")
    assert max(beside, merged) < 1e-6


@every_case
def test_lycoris_loads_the_adapter(case, tmp_path):
    lycoris = pytest.importorskip("lycoris", reason="needs lycoris-lora")
    base, inputs, outputs = exported(case, tmp_path)
    network, _ = lycoris.create_lycoris_from_weights(
        1.0, str(tmp_path / "lycoris.safetensors"), with_rest(base, tmp_path)
    )
    network.apply_to()
    with torch.no_grad():
        found = difference(base(inputs), outputs)
    print(f"lycoris, {case}: {found:.1e}")
    assert found < 1e-6


def test_peft_merges_a_network_that_reads_its_weights_itself(tmp_path):
    """CharLSTM does not call the layers whose weights it uses, so an adapter beside them has no effect."""
    peft = pytest.importorskip("peft", reason="needs peft")
    torch.manual_seed(0)
    texts, network = torch.randint(20, (5, 9)), CharLSTM(20, hidden=12)
    base = copy.deepcopy(network)
    factorize(network, FedPara(**OWN), ["output"])
    with torch.no_grad():
        outputs = network(texts)
        export_loha(network, tmp_path, {})
        model = peft.PeftModel.from_pretrained(with_rest(base, tmp_path), str(tmp_path)).eval()
        assert difference(model(texts), outputs) > 0.1
        assert difference(model.merge_and_unload()(texts), outputs) < 1e-6


def tied():
    first, second = nn.Linear(20, 20), nn.Linear(20, 20)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


def alike(dense=False):
    """Layers `a_b` and `a.b`."""
    layer = nn.Conv2d(3, 3, 3) if dense else nn.Linear(30, 30)
    return nn.ModuleDict({"a_b": nn.Linear(30, 30), "a": nn.ModuleDict({"b": layer})})


WAY_OUT = "export=dense writes merged weights"
REFUSED = {
    "0 takes the tanh of W1 and W2, LoHa cannot; export=dense writes merged weights, and a model trained with "
    "factorization.nonlinearity=identity is a LoHa": (lambda: nn.Sequential(nn.Linear(30, 30)), FedPara(gamma=0.1)),
    f"0 is a LowRank, not FedPara's W1 * W2; {WAY_OUT}": (lambda: nn.Sequential(nn.Linear(30, 30)), EqualSizeLowRank()),
    f"0 is a PersonalHadamard, not FedPara's W1 * W2; {WAY_OUT}": (
        lambda: nn.Sequential(nn.Linear(30, 30)),
        PFedPara(gamma=0.1),
    ),
    f"0 is a Conv3d, PEFT adapts Linear, Conv1d and Conv2d layers within a network; {WAY_OUT}": (
        lambda: nn.Sequential(nn.Conv3d(9, 9, 3)),
        FedPara(**OWN),
    ),
    f"the network is a Linear, PEFT adapts Linear, Conv1d and Conv2d layers within a network; {WAY_OUT}": (
        lambda: nn.Linear(30, 30),
        FedPara(**OWN),
    ),
    f"0.weight_ih_l0 is a GRU, PEFT adapts Linear, Conv1d and Conv2d layers within a network; {WAY_OUT}": (
        lambda: nn.Sequential(nn.GRU(20, 20)),
        FedPara(**OWN),
    ),
    f"0 and 1 share a weight, PEFT merges it wrongly; {WAY_OUT}": (
        lambda: nn.Sequential(*[nn.Linear(30, 30)] * 2),
        FedPara(**OWN),
    ),
    f"0 and 2 share a weight, PEFT merges it wrongly; {WAY_OUT}": (tied, FedPara(**OWN)),
    f"a_b and a.b are both lycoris_a_b to LyCORIS; names must differ in more than dots and underscores; {WAY_OUT}": (
        alike,
        FedPara(**OWN),
    ),
}


@pytest.mark.parametrize("line", REFUSED, ids=range(len(REFUSED)))
def test_what_loha_cannot_express_is_refused_in_one_line(line):
    make, recipe = REFUSED[line]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        require_loha(factorize(make(), recipe))
    assert str(caught.value) == f"export=loha: {line}"


def test_a_dense_layer_with_the_lycoris_name_of_a_factorised_one_is_refused():
    """LyCORIS would add the factors to it instead."""
    network = factorize(alike(dense=True), FedPara(**OWN), ["a.b"])
    with pytest.raises(ValueError, match=r"^export=loha: a_b and a\.b are both lycoris_a_b to LyCORIS; names must"):
        require_loha(network)


def test_a_network_without_factors_is_refused():
    with pytest.raises(ValueError, match=r"the network has no factorised layer; export=dense writes merged weights"):
        require_loha(merge(factorize(nn.Sequential(nn.Linear(30, 30)), FedPara(**OWN))))
