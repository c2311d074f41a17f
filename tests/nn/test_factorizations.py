"""Propositions 1 to 3, composition, merging, precision."""

import copy
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from fedpara.models import MLP, VGG
from fedpara.nn import Dense, EqualSizeLowRank, FedPara, Hadamard, LowRank, PFedPara, factorizations, factorize, merge
from fedpara.nn.factorizations import TanhProduct
from fedpara.nn.factorize import LayerRule
from fedpara.state import load_state, num_elements, read_state

RECIPES = {
    "fedpara": FedPara(gamma=0.3),
    "fedpara-linear": FedPara(gamma=0.3, nonlinearity="identity"),
    "fedpara-reshape": FedPara(gamma=0.3, conv="reshape"),
    "low-rank": EqualSizeLowRank(gamma=0.3),
    "low-rank-reshape": EqualSizeLowRank(gamma=0.3, conv="reshape"),
    "pfedpara": PFedPara(gamma=0.3),
    "dense": Dense(),
}


def small_vgg():
    torch.manual_seed(0)
    return VGG([[8, 16], [16]], [12], 5, dropout=0.0)


def filled(factorization):
    for factor in factorization.parameters():
        nn.init.normal_(factor)
    return factorization


@pytest.mark.parametrize("rank", [3, 10])
def test_proposition_1_rank_reaches_r_squared(rank):
    """Fig. 6: m = n = 100, r = 10, Gaussian factors: full rank, with 2.5 times fewer values; rank R^2 below that."""
    torch.manual_seed(0)
    for _ in range(20):
        weight = filled(Hadamard((100, 100), rank, tucker=False, nonlinearity=None).double())()
        assert torch.linalg.matrix_rank(weight) == rank**2


def test_low_rank_is_bounded_by_its_rank():
    torch.manual_seed(0)
    assert torch.linalg.matrix_rank(filled(LowRank((100, 100), 20, tucker=False))()) == 20


def test_proposition_3_rank_of_both_unfoldings():
    torch.manual_seed(0)
    weight = filled(Hadamard((30, 20, 3, 3), 4, tucker=True, nonlinearity=None))()
    assert torch.linalg.matrix_rank(weight.reshape(30, -1)) == 16
    assert torch.linalg.matrix_rank(weight.transpose(0, 1).reshape(20, -1)) == 16


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 2), (3,), (2, 2, 2)])
@pytest.mark.parametrize("stack", [(), (2,), (3, 2)])
def test_composition_is_the_notebooks_einsum(kernel, stack):
    torch.manual_seed(0)
    x, y = torch.randn(*stack, 7, 4).double(), torch.randn(*stack, 5, 4).double()
    t = torch.randn(*stack, 4, 4, *kernel).double()  # as the notebook has it: R, R, kernel
    branches = torch.einsum("...xyk,...ox,...iy->...oik", t.flatten(len(stack) + 2), x, y).unflatten(-1, kernel)
    factors = {"x": x, "y": y, "t": t.flatten(len(stack) + 2).mT.flatten(-2)}
    made = (Hadamard if stack else LowRank)((7, 5, *kernel), 4, tucker=True)
    expected = branches.tanh().prod(len(stack) - 1) if stack else branches
    torch.testing.assert_close(made.refold(made.compose(factors)), expected)


def test_a_large_weight_keeps_two_of_its_size_for_a_step_and_none_beside_it_without_one(monkeypatch):
    monkeypatch.setattr(TanhProduct, "large", 1)
    made, kept = filled(Hadamard((64, 50), 2, tucker=False)), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        weight = made()
    assert weight.untyped_storage().data_ptr() in kept
    assert sum(kept.values()) == 4 * (2 * 64 * 50 + made.x.numel() + made.y.numel())
    with torch.no_grad():
        again = made()
    assert torch.equal(again, weight)
    assert again.untyped_storage().nbytes() == 4 * 64 * 50


def test_tanh_is_applied_to_both_branches():
    made = filled(Hadamard((6, 5), 2, tucker=False))
    torch.testing.assert_close(made(), torch.tanh(made.x[0] @ made.y[0].T) * torch.tanh(made.x[1] @ made.y[1].T))


@pytest.mark.parametrize("zero", [None, 0, 1])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3)])
def test_the_quick_way_is_the_formula_and_so_are_its_gradients(shape, large, zero, monkeypatch):
    """Of a large weight and a small one, with a branch that is 0 and so learns from the other alone."""
    torch.manual_seed(0)
    if large:
        monkeypatch.setattr(TanhProduct, "large", 1)
    made = filled(Hadamard(shape, 3, tucker=len(shape) > 2)).double()
    if zero is not None:
        made.x.data[zero] = 0
    given = torch.randn(shape).double()
    factors = dict(made.named_parameters())
    formula = made.refold(made.compose(factors))
    expected = torch.autograd.grad(formula, list(factors.values()), given)
    torch.testing.assert_close(made(), formula, rtol=1e-13, atol=1e-13)
    for gradient, right in zip(torch.autograd.grad(made(), list(factors.values()), given), expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-12, atol=1e-12)


def composed_in(network, images):
    """A loss as a function of parameters, those parameters, and the gradients that autograd gives."""
    parameters = dict(network.named_parameters())

    def loss(parameters, images):
        return torch.func.functional_call(network, parameters, (images,)).square().mean()

    gradients = torch.autograd.grad(loss(parameters, images), list(parameters.values()))
    return loss, parameters, dict(zip(parameters, gradients, strict=True))


@pytest.fixture
def convolution_and_linear():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 4, 16))
    return factorize(network, FedPara(gamma=0.5)).double(), torch.randn(5, 8, 2, 2).double()


@pytest.mark.parametrize("large", [False, True])
def test_torch_func_goes_through_the_tanh_product(large, monkeypatch, convolution_and_linear):
    if large:
        monkeypatch.setattr(TanhProduct, "large", 1)
    network, images = convolution_and_linear
    loss, parameters, expected = composed_in(network, images)
    gradient = torch.func.grad(loss)
    torch.testing.assert_close(gradient(parameters, images), expected)
    of_each_image = torch.func.vmap(gradient, in_dims=(None, 0))(parameters, images[:, None])
    torch.testing.assert_close({name: each.mean(0) for name, each in of_each_image.items()}, expected)
    stacks = {name: torch.stack([tensor, 2 * tensor], dim=-1) for name, tensor in parameters.items()}
    of_each_network = torch.func.vmap(gradient, in_dims=(-1, None))(stacks, images)
    torch.testing.assert_close({name: each[0] for name, each in of_each_network.items()}, expected)
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(network, p, (images[:1],))[0])(parameters)
    of_one = torch.autograd.grad(network(images[:1])[0, 3], list(parameters.values()))
    torch.testing.assert_close([each[3] for each in jacobian.values()], list(of_one))


def test_what_is_differentiated_twice_or_forward_is_one_clear_error(convolution_and_linear):
    network, images = convolution_and_linear
    loss, parameters, _ = composed_in(network, images)
    once = torch.autograd.grad(loss(parameters, images), list(parameters.values()), create_graph=True)
    for twice in (
        lambda: sum(gradient.sum() for gradient in once).backward(),
        lambda: torch.func.grad(lambda p: sum(g.sum() for g in torch.func.grad(loss)(p, images).values()))(parameters),
    ):
        with pytest.raises(
            RuntimeError, match=r"can be differentiated only once; for higher derivatives use Hadamard.compose"
        ):
            twice()
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        torch.func.jvp(lambda p: loss(p, images), (parameters,), (parameters,))


def compiled_as_one_graph(network, images, backend):
    _, parameters, expected = composed_in(network, images)
    outputs = torch.compile(network, backend=backend, fullgraph=True)(images)
    torch.testing.assert_close(outputs, network(images))
    gradients = torch.autograd.grad(outputs.square().mean(), list(parameters.values()))
    torch.testing.assert_close(dict(zip(parameters, gradients, strict=True)), expected)


def test_a_factorised_network_is_compiled_as_one_graph(convolution_and_linear):
    """The graph alone, without what a backend makes of it: that takes seconds more."""
    compiled_as_one_graph(*convolution_and_linear, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_network_and_its_compiled_gradient_are_the_same(backend, convolution_and_linear):
    network, images = convolution_and_linear
    compiled_as_one_graph(network, images, backend)
    loss, parameters, expected = composed_in(network, images)
    gradient = torch.compile(torch.func.grad(loss), backend=backend, fullgraph=True)
    torch.testing.assert_close(gradient(parameters, images), expected)


class Operators(TorchDispatchMode):
    """Counts what is dispatched: on a GPU that, not arithmetic, is what a small step costs."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **kwargs or {})


def test_a_vgg16_step_dispatches_few_operators(monkeypatch):
    """Dense 274; the notebook's einsum 1,932 (SPEED.md); the goal is 660, and the optimizer's one.

    An eighth of its width, so that what is large is so at a 64th of the size.
    """
    counts = {}
    monkeypatch.setattr(TanhProduct, "large", TanhProduct.large // 64)
    for name, recipe in (("dense", Dense()), ("fedpara", FedPara(gamma=0.1)), ("pfedpara", PFedPara(gamma=0.1))):
        network = VGG([[8, 8], [16, 16], [32] * 3, [64] * 3, [64] * 3], [8, 8], 10, dropout=0.0)
        factorize(network, recipe, ["classifier.*"])
        with Operators() as operators:
            nn.functional.cross_entropy(network(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
        counts[name] = operators.count
    assert counts["fedpara"] <= 660, counts
    assert counts["dense"] < counts["fedpara"] < counts["pfedpara"], counts


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_merged_equals_factorised_exactly(recipe):
    network = factorize(small_vgg(), recipe, ["classifier.*"]).eval()
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        before = network(images)
        merge(network)
        assert torch.equal(network(images), before)
    assert set(network.state_dict()) == set(small_vgg().state_dict())
    assert not any("parametrizations" in name for name, _ in network.named_modules())


def test_names_and_untouched_biases():
    dense, network = small_vgg(), factorize(small_vgg(), FedPara(), ["classifier.*"])
    names = set(network.state_dict())
    assert {f"features.conv1_1.parametrizations.weight.0.{f}" for f in "xyt"} <= names
    assert "features.conv1_1.weight" not in names
    for name in ("features.conv1_1.bias", "features.norm1_1.weight", "classifier.0.weight", "classifier.3.weight"):
        assert torch.equal(network.state_dict()[name], dense.state_dict()[name])


def test_factors_receive_gradients_and_nothing_dead_remains():
    network = factorize(small_vgg(), FedPara(), ["classifier.*"])
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_pfedpara_is_w1_times_w2_plus_one_and_keeps_the_scale():
    torch.manual_seed(0)
    dense = nn.Linear(40, 30)
    scale = float(dense.weight.detach().std())
    made = dict(factorizations(factorize(dense, PFedPara(gamma=0.5))))[""]
    w1, w2 = made.x1 @ made.y1.T, made.x2 @ made.y2.T
    torch.testing.assert_close(made(), w1 * w2 + w1)
    assert float(made().detach().std()) == pytest.approx(scale, rel=1e-3)
    assert float(w2.detach().std()) == pytest.approx(1, rel=0.2)  # a smaller personal half hardly learns
    with torch.no_grad():
        made.x2.zero_()
    torch.testing.assert_close(made(), w1)  # without its personal part the weight is the global one


def test_composition_stays_float32_under_autocast():
    network = factorize(MLP([16, 8, 3]), FedPara(gamma=0.5))
    plain = network.layers[1].weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.layers[1].weight, plain)
        assert network(torch.randn(2, 16)).dtype == torch.bfloat16


def test_convolution_weight_comes_in_channels_last_without_a_copy():
    made = filled(Hadamard((8, 6, 3, 3), 4, tucker=True))
    assert made().is_contiguous(memory_format=torch.channels_last)


def test_float64_and_state_round_trip():
    network = factorize(small_vgg().double(), FedPara(), ["classifier.*"])
    other = factorize(small_vgg().double(), FedPara(), ["classifier.*"])
    load_state(other, read_state(network))
    images = torch.randn(2, 3, 8, 8).double()
    assert torch.equal(other(images), network(images))


def test_layer_rules_change_gamma_and_rank():
    rules = {"features.conv1_1": LayerRule(rank=2), "features.conv1_2": LayerRule(gamma=1.0)}
    network = factorize(small_vgg(), FedPara(gamma=0.1, layers=rules), ["classifier.*"])
    made = dict(factorizations(network))
    assert made["features.conv1_1"].rank == 2
    assert made["features.conv1_2"].rank == FedPara(gamma=1.0).rank("", (16, 8, 3, 3))
    assert made["features.conv2_1"].rank == FedPara(gamma=0.1).rank("", (16, 16, 3, 3))


def test_a_bare_layer_is_factorised_and_merged():
    layer = factorize(nn.Linear(20, 16), FedPara())
    weight = layer.weight.detach()
    assert torch.equal(merge(layer).weight, weight)
    assert not parametrize.is_parametrized(layer)


def test_a_rank_given_outright_is_the_baselines_too_and_never_exceeds_a_side():
    assert EqualSizeLowRank(layers={"a": LayerRule(rank=12)}).rank("a", (64, 64, 3, 3)) == 12
    assert EqualSizeLowRank(gamma=0.4).rank("a", (64, 3, 3, 3)) == FedPara(gamma=0.4).rank("a", (64, 3, 3, 3)) == 3


@pytest.mark.parametrize(
    ("recipe", "exclude"), [(FedPara(), ["clasifier.*"]), (FedPara(layers={"conv9": LayerRule(rank=1)}), [])]
)
def test_a_pattern_that_matches_nothing_is_an_error(recipe, exclude):
    with pytest.raises(ValueError, match=r"matches no layer; layers are features\.conv1_1"):
        factorize(small_vgg(), recipe, exclude)


def test_a_rule_for_layers_that_stay_dense_is_an_error():
    with pytest.raises(ValueError, match=r"^pattern='features\.conv1_1': its layers stay dense"):
        factorize(small_vgg(), FedPara(layers={"features.conv1_1": LayerRule(gamma=1.0)}), num_dense=1)
    with pytest.raises(ValueError, match=r"gamma=0\.5: must be null together with rank=3"):
        LayerRule(gamma=0.5, rank=3)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_composes_as_exactly_as_torchs_tanh(precision):
    torch.manual_seed(0)
    made = filled(Hadamard((64, 64, 3, 3), 9, tucker=True)).to(precision)
    exact = copy.deepcopy(made).double()
    lost, of_formula = (float((w.double() - exact()).norm()) for w in (made(), made.refold(made.compose(made.factors))))
    assert lost <= 1.05 * of_formula


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": -0.1}, {"gamma": 1.1}, {"conv": "prop9"}, {"nonlinearity": "relu"}, {"initialization": "x"},
        {"step": float("inf")},
    ],
)  # fmt: skip
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FedPara(**wrong)


def test_any_torch_network_with_a_transposed_and_grouped_layer():
    """A network that is not of this repository; grouped convolutions have I / groups input channels."""
    network = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Flatten(), nn.Linear(48, 6), nn.Unflatten(1, (6, 1)), nn.ReLU())
    factorize(network, FedPara(gamma=0.5))
    assert parametrize.is_parametrized(network[0], "weight")
    assert parametrize.is_parametrized(network[2], "weight")
    grouped = factorize(nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), FedPara())
    assert network(torch.randn(2, 4, 8)).shape == (2, 6, 1)
    assert grouped(torch.randn(2, 8, 5, 5)).shape == (2, 8, 3, 3)


class Tagger(nn.Module):
    """A network that is not of this repository: a transformer's layer, a GRU, a head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.mixer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.gru = nn.GRU(16, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, words):
        return self.head(self.gru(self.mixer(self.embedding(words)))[0])


@pytest.mark.parametrize("recipe", [FedPara(gamma=0.2), EqualSizeLowRank(gamma=0.2), PFedPara(gamma=0.2)])
def test_any_torch_network_is_factorised_trained_and_merged(recipe):
    """Recurrent weights and the projections of attention go by their own names."""
    torch.manual_seed(0)
    network = factorize(Tagger(), recipe, ["head"])
    assert {name for name, _ in factorizations(network)} == {
        "mixer.linear1", "mixer.linear2", "mixer.self_attn.out_proj", "mixer.self_attn.in_proj_weight",
        "gru.weight_ih_l0", "gru.weight_hh_l0", "gru.weight_ih_l1", "gru.weight_hh_l1"
    }  # fmt: skip
    words = torch.randint(0, 20, (4, 7))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = network(words).square().mean()
    before.backward()
    optimizer.step()
    network.zero_grad()
    after = network(words)
    assert after.square().mean() < before
    assert {name for name, _ in merge(network).named_parameters()} == {n for n, _ in Tagger().named_parameters()}
    torch.testing.assert_close(network(words), after)


def test_hybrid_leaves_the_first_layers_dense():
    network = factorize(small_vgg(), EqualSizeLowRank(), ["classifier.*"], num_dense=2)
    assert [name for name, _ in factorizations(network)] == ["features.conv2_1"]
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"num_dense={wrong}: must be 0 to 2, one less than the number of layers"):
            factorize(small_vgg(), FedPara(), ["classifier.*"], num_dense=wrong)


class Tied(nn.Module):
    """Two layers of one weight, and biases of their own; a third layer that is frozen."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(64, 64) for _ in range(3))
        self.second.weight = self.first.weight
        self.third.requires_grad_(False)

    def forward(self, images):
        return self.third(self.second(torch.relu(self.first(images))))


def test_a_tied_weight_is_factorised_once_for_all_its_holders_and_merged_to_one():
    torch.manual_seed(0)
    network = factorize(Tied(), FedPara(gamma=0.5))
    made = dict(factorizations(network))
    assert list(made) == ["first"]
    assert network.second.parametrizations.weight[0] is made["first"]
    assert torch.equal(network.second.weight, network.first.weight)
    factors = sum(factor.numel() for factor in made["first"].parameters())
    assert factors < 64 * 64
    assert num_elements(read_state(network)) == factors + 2 * 64 + network.third.weight.numel() + 64
    given = torch.randn(2, 64)
    outputs = network(given)
    outputs.sum().backward()
    with torch.no_grad():
        assert torch.equal(merge(network)(given), outputs)
    assert network.first.weight is network.second.weight
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in Tied().parameters())


def test_a_layer_in_two_places_goes_by_either_name():
    def twice():
        layer = nn.Linear(64, 64)
        return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(64, 64))

    network = factorize(twice(), FedPara(), ["2"])
    assert [name for name, _ in factorizations(network)] == ["3"]
    assert [name for name, _ in factorizations(factorize(twice(), FedPara()))] == ["0", "3"]
    with pytest.raises(ValueError, match=r"pattern='2': matches no layer; layers are 0 \(tied to 2\), 3"):
        factorize(twice(), FedPara(layers={"2": LayerRule(rank=1)}))


def test_a_frozen_layer_stays_as_it_is():
    network = Tied()
    weight = network.third.weight
    assert factorize(network, FedPara(gamma=0.5)).third.weight is weight
    assert not weight.requires_grad
    with pytest.raises(ValueError, match="no layer is left to factorise"):
        factorize(Tied().requires_grad_(False), FedPara())


class Embedded(nn.Module):
    """An output layer whose weight is the embedding's."""

    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.output = nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 50)
        self.output.weight = self.embedding.weight


def parametrized_norm():
    return nn.Sequential(nn.Linear(32, 32), nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)))


def legacy_norm(function):
    layer = nn.Linear(32, 32)
    layer = function(layer)
    return nn.Sequential(nn.Linear(32, 32), layer)


def recurrent_norm():
    return nn.Sequential(nn.Linear(32, 32), torch.nn.utils.weight_norm(nn.LSTM(32, 32), "weight_hh_l0"))


def pruned():
    network = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    nn.utils.prune.random_unstructured(network[1], "weight", 0.5)
    return network


UNFIT = {
    "tied embedding": (Embedded, r"^output: its weight is shared with embedding.weight, which cannot have factors; "),
    "weight norm": (parametrized_norm, "^1: a parametrisation or a hook .* already computes its weight"),
    "legacy weight norm": (partial(legacy_norm, nn.utils.weight_norm), "^1: a parametrisation or a hook"),
    "legacy spectral norm": (partial(legacy_norm, nn.utils.spectral_norm), "^1: a parametrisation or a hook"),
    "recurrent weight norm": (recurrent_norm, "^1.weight_hh_l0: a parametrisation or a hook"),
    "pruning": (pruned, "^1: a parametrisation or a hook"),
    "factors": (
        lambda: factorize(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)), FedPara(), ["0"]),
        "^1: a parametrisation or a hook .*factors",
    ),
    "lazy": (lambda: nn.Sequential(nn.Linear(32, 32), nn.LazyLinear(3)), "^1: its weight has no shape yet; run the"),
    "complex": (
        lambda: nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32, dtype=torch.complex64)),
        "^1: its weight is torch.complex64, but factors are real numbers",
    ),
}  # fmt: skip


def everything(network):
    """Which modules and parameters a network consists of, and by what names."""
    return [*network.named_modules(), *((n, id(p)) for n, p in network.named_parameters(remove_duplicate=False))]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_factorised_is_named_before_any_layer_is_changed(case):
    make, message = UNFIT[case]
    network = make()
    before = everything(network)
    with pytest.raises(ValueError, match=message):
        factorize(network, FedPara())
    assert everything(network) == before
    assert factorize(network, Dense()) is network


def test_a_recipe_that_fails_at_a_later_layer_leaves_the_network_whole():
    def failing(name, weight):
        if name == "2":
            raise RuntimeError("no")
        return Hadamard(tuple(weight.shape), 2, tucker=False)

    def of_another_shape(name, weight):
        return Hadamard((64, 32 if name == "2" else 64), 2, tucker=False)

    for recipe, error in ((failing, "no"), (of_another_shape, r"2: the recipe's weight is \(64, 32\), but must be")):
        network = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
        before = everything(network)
        with pytest.raises((RuntimeError, ValueError), match=error):
            factorize(network, recipe)
        assert everything(network) == before


def test_a_deep_copy_is_merged_and_factorised_without_the_network_it_is_of():
    network = factorize(small_vgg(), FedPara(), ["classifier.*"])
    weight = network.features.conv1_2.weight
    merged = merge(copy.deepcopy(network))
    assert torch.equal(network.features.conv1_2.weight, weight)
    assert torch.equal(merged.features.conv1_2.weight, weight)
    recurrent = factorize(nn.LSTM(32, 32), FedPara(), ["weight_ih_l0"])
    plain = recurrent.weight_ih_l0
    factorize(copy.deepcopy(recurrent), FedPara(), ["weight_hh_l0"])
    assert recurrent.weight_ih_l0 is plain


@pytest.mark.parametrize("exclude", [[], ["weight_ih_l0"]], ids=["all", "one"])
def test_a_recurrent_layer_is_copied_after_a_training_step(exclude):
    torch.manual_seed(0)
    network, inputs = factorize(nn.LSTM(32, 32), FedPara(), exclude), torch.randn(3, 2, 32)
    network(inputs)[0].sum().backward()
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(0.1)
        expected = copied(inputs)[0]
        assert not torch.equal(expected, network(inputs)[0])
    torch.testing.assert_close(merge(copied)(inputs)[0], expected)
    network(inputs)[0].sum().backward()


@pytest.mark.parametrize("trained", [True, False])
def test_merged_weights_are_parameters_that_are_trained_as_their_factors_were(trained):
    network = factorize(nn.Linear(32, 32), FedPara())
    network.parametrizations.requires_grad_(trained)
    with torch.no_grad():
        merge(network)
    assert {name: p.requires_grad for name, p in network.named_parameters()} == {"bias": True, "weight": trained}


def test_where_nothing_is_left_to_factorise_dense_is_to_be_said():
    for exclude in (["*"], ["1"]):  # the other one is too small
        with pytest.raises(ValueError, match=r"no layer is left to factorise, .* take Dense\(\) .factorization=dense"):
            factorize(nn.Sequential(nn.Linear(8, 3), nn.Linear(32, 32)), FedPara(), exclude)
    network = nn.Sequential(nn.Linear(8, 3))
    assert factorize(network, Dense(), ["*"]) is network


@pytest.mark.parametrize("recipe", [FedPara(), EqualSizeLowRank(), PFedPara()], ids=["fedpara", "low rank", "pfedpara"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_with_more_values_in_its_factors_stays_dense_unless_its_rank_is_given(recipe, caplog):
    caplog.set_level("INFO")
    layers = [nn.Linear(9, 3), nn.Linear(32, 32), nn.Linear(0, 5)]
    network = factorize(nn.Sequential(*layers), recipe)
    assert [name for name, _ in factorizations(network)] == ["1"]
    first, last = caplog.messages
    assert re.fullmatch(
        r"0 stays dense: its factors of rank \d would have \d\d values, but its weight \(3, 9\) has 27", first
    )
    assert last == "2 stays dense: its weight (5, 0) is empty"
    given = replace(recipe, layers={"0": LayerRule(rank=2)})
    assert dict(factorizations(factorize(nn.Sequential(nn.Linear(9, 3)), given)))["0"].rank == 2
