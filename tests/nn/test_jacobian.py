"""Jacobian correction (appendix B, eq. 9) against its formulas written out for a fully connected layer."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedpara.execution.local import JacobianCorrection
from fedpara.models import MLP, ClassificationModule
from fedpara.nn import (
    EqualSizeLowRank,
    FedPara,
    Hadamard,
    PFedPara,
    factorizations,
    factorize,
    jacobian_correction,
    jacobian_penalty,
)
from fedpara.nn.factorizations import TanhProduct
from fedpara.nn.jacobian import Watch


def written_out(f, jacobian, eta):
    """W' = ((X1 - eta J_X1)(Y1 - eta J_Y1)^T) * (...), J_X1 = (J_W * W2) Y1, J_Y1 = (J_W * W2)^T X1, likewise 2."""
    w1, w2 = f["x"][0] @ f["y"][0].T, f["x"][1] @ f["y"][1].T
    j1, j2 = jacobian * w2, jacobian * w1
    first = (f["x"][0] - eta * j1 @ f["y"][0]) @ (f["y"][0] - eta * j1.T @ f["x"][0]).T
    second = (f["x"][1] - eta * j2 @ f["y"][1]) @ (f["y"][1] - eta * j2.T @ f["x"][1]).T
    return 0.5 * (first * second - (w1 * w2 - eta * jacobian)).square().sum()


def test_penalty_and_gradient_equal_the_paper_written_out():
    torch.manual_seed(0)
    made = Hadamard((6, 5), 2, tucker=False, nonlinearity=None).double()
    for factor in made.parameters():
        torch.nn.init.normal_(factor)
    jacobian = torch.randn(6, 5).double()
    factors = {name: value.detach().clone().requires_grad_() for name, value in made.named_parameters()}
    expected = written_out(factors, jacobian, 0.1)
    torch.testing.assert_close(jacobian_penalty(made, factors, jacobian, 0.1), expected)
    correction = jacobian_correction(made, jacobian, 0.1)
    for name, gradient in zip(factors, torch.autograd.grad(expected, list(factors.values())), strict=True):
        torch.testing.assert_close(correction[name], gradient)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3)])
def test_correction_is_the_gradient_of_the_penalty_with_tanh_and_proposition_3(shape):
    torch.manual_seed(0)
    made = Hadamard(shape, 2, tucker=len(shape) > 2).double()
    for factor in made.parameters():
        torch.nn.init.normal_(factor)
    jacobian = torch.randn(shape).double()
    names = list(dict(made.named_parameters()))

    def penalty(*values):
        return jacobian_penalty(made, dict(zip(names, values, strict=True)), jacobian, 0.05)

    values = [value.detach().clone().requires_grad_() for value in made.parameters()]
    assert torch.autograd.gradcheck(penalty, values)


@pytest.mark.parametrize("clients", [(), (3,)])
@pytest.mark.parametrize("nonlinearity", [torch.tanh, None])
@pytest.mark.parametrize(("shape", "tucker"), [((6, 5), False), ((6, 5, 3, 3), True), ((6, 5, 3), False)])
def test_the_closed_form_is_autograds_gradient_in_blocks_of_any_size(shape, tucker, nonlinearity, clients, monkeypatch):
    """For the weights of several clients at once, too."""
    torch.manual_seed(0)
    made = Hadamard(shape, 2, tucker, nonlinearity).double()
    for name, factor in list(made.named_parameters()):
        setattr(made, name, torch.nn.Parameter(torch.randn(*clients, *factor.shape, dtype=torch.float64)))
    jacobian = torch.randn(*clients, *shape, dtype=torch.float64)
    leaves = {name: factor.detach().clone().requires_grad_() for name, factor in made.named_parameters()}
    penalty = jacobian_penalty(made, leaves, jacobian, 0.05)
    expected = torch.autograd.grad(penalty, list(leaves.values()))
    for block in (1, 12, 2**17):
        monkeypatch.setattr("fedpara.nn.jacobian.BLOCK", block)
        for got, value in zip(jacobian_correction(made, jacobian, 0.05).values(), expected, strict=True):
            torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-10 * float(value.abs().max()))


FROZEN = [({"x"}, False), ({"y"}, False), *((set(names), True) for names in ("x", "y", "t", "xy", "xt", "yt"))]


@pytest.mark.parametrize("nonlinearity", [torch.tanh, torch.sigmoid, None])
@pytest.mark.parametrize(("frozen", "tucker"), FROZEN)
def test_a_frozen_factor_takes_no_step_and_gets_no_correction(frozen, tucker, nonlinearity):
    """Against autograd's gradient of the penalty by the others, when only those step; watched and not."""
    torch.manual_seed(0)
    shape = (6, 5, 3, 3) if tucker else (6, 5)
    made = Hadamard(shape, 2, tucker, nonlinearity).double()
    for name, factor in made.named_parameters():
        torch.nn.init.normal_(factor).requires_grad_(name not in frozen)
    jacobian = torch.randn(shape, dtype=torch.float64)
    leaves = {n: f.detach().clone().requires_grad_(f.requires_grad) for n, f in made.named_parameters()}
    trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    weight = made.refold(made.compose(leaves))
    gradients = torch.autograd.grad(weight, list(trained.values()), jacobian, create_graph=True)
    after = {n: f - 0.05 * g for (n, f), g in zip(trained.items(), gradients, strict=True)}
    error = made.refold(made.compose(leaves | after)) - (weight - 0.05 * jacobian)
    expected = dict(zip(trained, torch.autograd.grad(0.5 * error.square().sum(), list(trained.values())), strict=True))
    watch = Watch(made)
    (made() * jacobian).sum().backward()
    for got in (watch.correction(0.05), jacobian_correction(made, jacobian, 0.05)):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10 * float(value.abs().max()))


def test_the_watch_of_a_frozen_weight_has_no_correction():
    made = Hadamard((6, 5), 2, tucker=False).requires_grad_(False)
    watch, bias = Watch(made), torch.zeros(5, requires_grad=True)
    (made() + bias).sum().backward()
    assert watch.correction(0.05) == {}
    assert jacobian_correction(made, torch.ones(6, 5), 0.05) == {}


@pytest.mark.parametrize("large", [1, 2**19])
@pytest.mark.parametrize("nonlinearity", [torch.tanh, torch.sigmoid, None])
@pytest.mark.parametrize(("shape", "tucker"), [((6, 5), False), ((6, 5, 3, 3), True)])
def test_a_watched_step_gives_the_same_correction(shape, tucker, nonlinearity, large, monkeypatch):
    """After two backward passes of a loss that is 8 times too large, as with accumulation and fp16's scaler."""
    monkeypatch.setattr(TanhProduct, "large", large)
    torch.manual_seed(0)
    made = Hadamard(shape, 2, tucker, nonlinearity).double()
    for factor in made.parameters():
        torch.nn.init.normal_(factor)
    jacobians = torch.randn(2, *shape, dtype=torch.float64)
    watch = Watch(made)
    assert watch.correction(0.05) == {}
    for jacobian in jacobians:
        (made() * jacobian * 8).sum().backward()
    for factor in made.parameters():
        factor.grad /= 8
    expected = jacobian_correction(made, jacobians.sum(0), 0.05)
    got = watch.correction(0.05, scale=8.0)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10 * float(value.abs().max()))
    watch.clear()
    assert watch.correction(0.05) == {}
    watch.remove()
    made().sum().backward()
    assert watch.correction(0.05) == {}


@pytest.mark.parametrize("case", ["other factors", "decay in the loss", "changed gradients", "copied", "compiled"])
@pytest.mark.parametrize(("shape", "tucker"), [((6, 5), False), ((6, 5, 3, 3), True)])
def test_a_watch_takes_the_gradients_of_the_weight_alone(shape, tucker, case, monkeypatch):
    """Not those of another term of the loss, of other factors, or as callbacks left them; it can be copied, too."""
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: case == "compiled")
    torch.manual_seed(0)
    made = Hadamard(shape, 2, tucker).double()
    for factor in made.parameters():
        torch.nn.init.normal_(factor)
    jacobian = torch.randn(shape, dtype=torch.float64)
    watch = Watch(made)
    loss = (made() * jacobian).sum()
    if case == "other factors":
        torch.func.functional_call(made, {name: torch.ones_like(value) for name, value in made.named_parameters()}, ())
    elif case == "decay in the loss":
        loss = loss + sum(factor.square().sum() for factor in made.parameters())
    elif case == "compiled":  # one composition of it that is not, and is not used
        monkeypatch.undo()
        made()
    loss.backward()
    if case == "changed gradients":
        for factor in made.parameters():
            factor.grad *= 0.1
    elif case == "copied":
        copied = copy.deepcopy(made)
        assert all(map(torch.equal, copied.parameters(), made.parameters()))
    expected = jacobian_correction(made, jacobian, 0.05)
    for name, value in watch.correction(0.05).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10 * float(expected[name].abs().max()))


def test_the_correction_costs_nine_products_beside_the_three_of_the_step():
    made = Hadamard((64, 48), 5, tucker=False)
    for factor in made.parameters():
        torch.nn.init.normal_(factor)
    watch = Watch(made)
    with FlopCounterMode(display=False) as step:
        made().square().sum().backward()
    with FlopCounterMode(display=False) as correction:
        watch.correction(0.05)
    product = 2 * 2 * 64 * 48 * made.rank  # of two branches
    assert step.get_total_flops() == 3 * product
    assert correction.get_total_flops() == 9 * product


def test_another_nonlinearity_goes_by_autograd():
    torch.manual_seed(0)
    made = Hadamard((6, 5), 2, False, torch.sigmoid).double()
    for factor in made.parameters():
        torch.nn.init.normal_(factor)
    jacobian = torch.randn(6, 5, dtype=torch.float64)
    leaves = {name: factor.detach().clone().requires_grad_() for name, factor in made.named_parameters()}
    expected = torch.autograd.grad(jacobian_penalty(made, leaves, jacobian, 0.05), list(leaves.values()))
    for got, value in zip(jacobian_correction(made, jacobian, 0.05).values(), expected, strict=True):
        assert torch.equal(got, value)


def test_a_low_rank_baseline_gets_no_correction():
    callback, module = JacobianCorrection(1.0), factorize(MLP([16, 8, 3]), EqualSizeLowRank(gamma=1.0))
    callback.on_train_start(None, module)
    module(torch.randn(2, 16)).sum().backward()
    before = [parameter.grad.clone() for parameter in module.parameters()]
    trainer, optimizer = SimpleNamespace(precision_plugin=None), torch.optim.SGD(module.parameters(), lr=0.1)
    callback.on_before_optimizer_step(trainer, module, optimizer)
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("recipe", [FedPara(gamma=0.5), PFedPara(gamma=0.5)])
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_callback_adds_lambda_times_the_correction(precision, recipe):
    """One SGD step by Lightning against the same step by hand."""

    def network():
        torch.manual_seed(0)
        net = factorize(MLP([16, 8, 3]), recipe)
        return net.double() if precision == "64-true" else net

    images, labels = torch.randn(8, 1, 4, 4), torch.arange(8) % 3
    images = images.double() if precision == "64-true" else images
    trained, byhand = network(), network()
    module = ClassificationModule(trained, partial(torch.optim.SGD, lr=0.1), 3)
    trainer = pytorch_lightning.Trainer(
        max_epochs=1, accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[JacobianCorrection(strength=3.0)],
    )  # fmt: skip
    dataset = torch.utils.data.TensorDataset(images, labels)
    trainer.fit(module, torch.utils.data.DataLoader(dataset, batch_size=8))

    mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed")
    with mixed, torch.nn.utils.parametrize.cached():
        loss = torch.nn.functional.cross_entropy(byhand(images), labels)
        weights = [byhand.get_submodule(name).weight for name, _ in factorizations(byhand)]
    jacobians = torch.autograd.grad(loss, weights, retain_graph=True)
    loss.backward()
    for (_, made), jacobian in zip(factorizations(byhand), jacobians, strict=True):
        correction = jacobian_correction(made, jacobian, 0.1)
        assert all(value.any() for value in correction.values())
        for name, value in correction.items():
            made.get_parameter(name).grad.add_(3.0 * value)
    with torch.no_grad():
        for parameter in byhand.parameters():
            parameter.sub_(0.1 * parameter.grad)
    for (name, got), expected in zip(trained.named_parameters(), byhand.parameters(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)


def test_the_callback_takes_the_learning_rate_of_each_layers_own_group():
    """A personal layer can have one of its own."""
    torch.manual_seed(0)
    network = factorize(MLP([16, 16, 16]).double(), FedPara(gamma=0.5))
    images, trainer = torch.randn(4, 16, dtype=torch.float64), SimpleNamespace(precision_plugin=None)

    def corrected(*rates):
        callback = JacobianCorrection(1.0)
        callback.on_train_start(trainer, network)
        network.zero_grad()
        network(images).square().sum().backward()
        layers = [made for _, made in factorizations(network)]
        groups = [{"params": made.parameters(), "lr": rate} for made, rate in zip(layers, rates, strict=True)]
        callback.on_before_optimizer_step(trainer, network, torch.optim.SGD(groups, lr=1.0))
        callback.on_train_end(trainer, network)
        return [[factor.grad for factor in made.parameters()] for made in layers]

    (first, _), (_, second), both = corrected(0.1, 0.1), corrected(0.4, 0.4), corrected(0.1, 0.4)
    for expected, got in zip([*first, *second], [*both[0], *both[1]], strict=True):
        assert torch.equal(expected, got)
    assert not torch.equal(corrected(0.1, 0.1)[1][0], second[0])


def test_a_scaled_step_is_that_of_a_learning_rate_as_often():
    """One step with gradients scaled by s, and one at s times the rate; lambda is the same."""
    after = []
    for scale, rate in ((4.0, 0.1), (1.0, 0.4)):
        torch.manual_seed(0)
        network = factorize(MLP([16, 16]).double(), FedPara(gamma=0.5))
        ((_, made),) = factorizations(network)
        made.gradient_scale = scale
        trainer, optimizer = SimpleNamespace(precision_plugin=None), torch.optim.SGD(made.parameters(), lr=rate)
        callback = JacobianCorrection(1.0)
        callback.on_train_start(trainer, network)
        network(torch.ones(4, 16, dtype=torch.float64)).square().sum().backward()
        callback.on_before_optimizer_step(trainer, network, optimizer)
        optimizer.step()
        callback.on_train_end(trainer, network)
        after.append(made.x.detach())
    torch.testing.assert_close(*after)


def test_the_callback_leaves_frozen_factors_alone():
    """With an optimizer that has the others only."""
    torch.manual_seed(0)
    network = factorize(MLP([16, 16, 16]).double(), FedPara(gamma=0.5))
    first, second = (made for _, made in factorizations(network))
    first.y.requires_grad_(False)
    second.requires_grad_(False)
    callback, trainer = JacobianCorrection(2.0), SimpleNamespace(precision_plugin=None)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    callback.on_train_start(trainer, network)
    network(torch.randn(4, 16, dtype=torch.float64)).square().sum().backward()
    before = first.x.grad.clone()
    expected = callback._watches[0].correction(0.1)["x"]
    callback.on_before_optimizer_step(trainer, network, optimizer)
    assert expected.any()
    torch.testing.assert_close(first.x.grad, before + 2.0 * expected)
    assert all(parameter.grad is None for parameter in (first.y, *second.parameters()))
