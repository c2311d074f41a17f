"""The networks: sizes of the paper, outputs of the textbook, the start."""

from functools import partial

import pytest
import torch

from fedpara.models import VGG, CharLSTM, ClassificationModule, ResNet, ViT
from fedpara.models.char_lstm import LSTMLayer
from fedpara.models.vit import Block, sines
from fedpara.nn import Dense, EqualSizeLowRank, FedPara, PFedPara, factorizations, factorize, merge
from fedpara.sharing import Split


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [Dense(), FedPara(gamma=0.1)], ids=["dense", "fedpara"])
def test_vgg16_can_take_the_papers_first_steps(recipe):
    """SGD at 0.1 must lower the loss of a batch step by step; a start too hot throws VGG16 to chance, for good."""
    torch.manual_seed(0)
    network = VGG([[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3], [512, 512], 10, dropout=0.0)
    factorize(network, recipe, ["classifier.*"])
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.303, abs=0.02)
    assert losses[0] > losses[1] > losses[2]


def test_groups_must_divide_every_width():
    with pytest.raises(ValueError, match="groups=3: must divide every width in stages, but does not divide 4"):
        VGG([[6, 4]], [], 10, groups=3)


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


def resnet18(**options):
    return ResNet([64, 128, 256, 512], [2, 2, 2, 2], 10, **options)


def test_the_weights_of_batch_norms_load_from_a_file_without_versions():
    network = resnet18()
    found = resnet18().load_state_dict(dict(network.state_dict()))
    assert not found.missing_keys + found.unexpected_keys
    with_counters = {**network.state_dict(), "norm1.num_batches_tracked": torch.tensor(7)}  # as torchvision has them
    resnet18().load_state_dict(with_counters)


def test_outputs_that_are_not_finite_are_wrong_and_their_loss_is_no_number():
    module = ClassificationModule(torch.nn.Identity(), partial(torch.optim.SGD, lr=0.1), num_classes=3)
    logits = torch.eye(3)[[0, 1, 0]]
    module.test_step((logits, torch.tensor([0, 1, 2])), 0)
    assert module.accuracy.compute() == pytest.approx(2 / 3)
    module.test_step((logits[:1], torch.tensor([1])), 0)  # batches weigh by their sizes
    every, labels = logits[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 1])
    assert module.loss.compute() == pytest.approx(torch.nn.functional.cross_entropy(every, labels).item())
    module.test_step((torch.full((3, 3), torch.nan), torch.zeros(3, dtype=torch.long)), 1)
    assert module.accuracy.compute() == pytest.approx(2 / 7)
    assert module.loss.compute().isnan()


def test_lstm_layers_are_those_of_torch():
    torch.manual_seed(0)
    layer, reference = LSTMLayer(5, 7, weight_norm=False), torch.nn.LSTM(5, 7)
    for kind in ("weight", "bias"):
        setattr(reference, f"{kind}_ih_l0", layer.get_parameter(f"input.{kind}"))
        setattr(reference, f"{kind}_hh_l0", layer.get_parameter(f"recurrent.{kind}"))
    inputs = torch.randn(11, 3, 5)
    torch.testing.assert_close(layer(inputs), reference(inputs)[0])


def test_weight_norm_changes_nothing_at_the_start_and_keeps_the_length_of_rows_apart():
    torch.manual_seed(0)
    plain, normed = LSTMLayer(5, 7, weight_norm=False), LSTMLayer(5, 7, weight_norm=True)
    normed.load_state_dict(plain.state_dict() | {k: v for k, v in normed.state_dict().items() if k.endswith("gain")})
    with torch.no_grad():
        normed.input_gain.copy_(plain.input.weight.norm(dim=1, keepdim=True))
        normed.recurrent_gain.copy_(plain.recurrent.weight.norm(dim=1, keepdim=True))
    inputs = torch.randn(4, 3, 5)
    expected = plain(inputs)
    torch.testing.assert_close(normed(inputs), expected)
    with torch.no_grad():
        normed.input.weight.mul_(3)  # only directions count
    torch.testing.assert_close(normed(inputs), expected)


def test_char_lstm_has_the_papers_share_of_parameters_and_is_merged():
    """Table 11: FedPara at gamma 0 has 19 % of the dense network's parameters."""
    torch.manual_seed(0)
    network, characters = CharLSTM(80), torch.randint(0, 80, (3, 20))
    dense = size(network)
    factorize(network, FedPara(gamma=0.0), ["output"])
    assert len(list(factorizations(network))) == 4
    assert size(network) / dense == pytest.approx(0.19, abs=0.005)
    before = network(characters)
    assert before.shape == (3, 80)
    assert torch.equal(merge(network)(characters), before)
    assert size(network) == dense
    low_rank = factorize(CharLSTM(80), EqualSizeLowRank(gamma=0.0), ["output"])
    assert size(low_rank) / dense == pytest.approx(0.19, abs=0.005)


def test_the_personal_half_of_a_factorised_lstm_stays():
    names = list(factorize(CharLSTM(80), PFedPara(gamma=0.0), ["output"]).state_dict())
    split = Split(names, ["*.parametrizations.*.0.[xyt]2"])
    assert len(split.personal) == 8
    assert "layers.0.recurrent.parametrizations.weight.0.x1" in split.shared


@pytest.mark.slow
def test_resnet18_has_its_known_size_and_the_papers_three_gammas_shrink_it():
    """11,173,962 parameters for 32 x 32 images and ten classes; first, second and 1x1 layers at gamma 1 (Fig. 8)."""
    assert size(resnet18()) == 11_173_962
    rules = {name: {"gamma": 1.0} for name in ("conv1", "stages.0.0.conv1", "*.shortcut.conv")}
    shares = []
    for gamma in (0.1, 0.6, 0.9):
        network = factorize(resnet18(), FedPara(gamma=gamma, layers=rules, initialization="he"), ["output"])
        shares.append(size(network) / 11_173_962)
    assert shares == pytest.approx([0.089, 0.475, 0.844], abs=0.001)


def test_batch_norm_statistics_are_state_and_its_counter_is_not():
    names = set(resnet18().state_dict())
    assert "stages.1.0.shortcut.norm.running_var" in names
    assert not any("num_batches_tracked" in name for name in names)
    assert not any("running" in name for name in resnet18(norm="group").state_dict())
    split = Split(names, ["*norm*"])
    assert not any("norm" in name for name in split.shared)
    assert len(split.personal) == 20 * 4
    network = ResNet([4, 8], [1, 1], 3)
    before = network.norm1.running_mean.clone()
    assert network(torch.randn(5, 3, 8, 8)).shape == (5, 3)
    assert not torch.equal(network.norm1.running_mean, before)


def test_resnets_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"blocks=\[1\]: must be as many as widths \(2\)"):
        ResNet([4, 8], [1], 3)
    with pytest.raises(ValueError, match="groups=3: must divide every width in widths, but does not divide 4"):
        ResNet([3, 4], [1, 1], 3, norm="group", groups=3)


def test_autocast_leaves_the_recurrence_in_float32():
    """On a GPU it would be float16 even where bfloat16 was asked for."""
    torch.manual_seed(0)
    layer, inputs = LSTMLayer(3, 4, weight_norm=True), torch.randn(5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        states = layer(inputs.bfloat16().float())
        assert layer(inputs.bfloat16()).dtype == torch.float32
    assert torch.equal(states, layer(inputs.bfloat16().float()))


def test_a_block_of_the_transformer_is_torchs_own():
    torch.manual_seed(0)
    block, reference = Block(12, 3, 20), torch.nn.TransformerEncoderLayer(12, 3, 20, 0.0, "gelu", 1e-5, True, True)
    attention = reference.self_attn
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
        for kind in ("weight", "bias"):
            parts = [getattr(layer, kind) for layer in (block.query, block.key, block.value)]
            getattr(attention, f"in_proj_{kind}").copy_(torch.cat(parts))
        for own, other in ((block.output, attention.out_proj), (block.norm1, reference.norm1)):
            other.load_state_dict(own.state_dict())
        for own, other in ((block.norm2, reference.norm2), (block.hidden, reference.linear1)):
            other.load_state_dict(own.state_dict())
        reference.linear2.load_state_dict(block.back.state_dict())
    patches = torch.randn(2, 5, 12)
    torch.testing.assert_close(block(patches), reference(patches), rtol=1e-4, atol=1e-4)


def test_the_transformer_takes_images_of_any_size_and_sees_where_a_patch_is():
    torch.manual_seed(0)
    network = ViT(patch=4, width=16, depth=1, heads=2, hidden=8, num_classes=3)
    torch.nn.init.normal_(network.classifier.weight)
    image = torch.randn(1, 3, 8, 12)
    assert network(image).shape == network(torch.randn(1, 3, 30, 9)).shape == (1, 3)
    assert not torch.allclose(network(image), network(image.flip(-1).unflatten(-1, (3, 4)).flip(-1).flatten(-2)))
    places = sines(6, 7, 16)
    assert places.shape == (42, 16)
    assert torch.cdist(places, places).add(torch.eye(42)).min() > 0.1
    assert places[0].tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="width=18: must be a multiple of 4 and of heads=3"):
        ViT(patch=4, width=18, depth=1, heads=3, hidden=8, num_classes=3)


def test_a_transformer_is_fine_tuned_as_by_lora():
    torch.manual_seed(0)
    network = ViT(patch=4, width=32, depth=2, heads=2, hidden=64, num_classes=10)
    torch.nn.init.normal_(network.classifier.weight)
    images = torch.randn(3, 3, 16, 16)
    before = network(images)
    tuned = factorize(network, EqualSizeLowRank(gamma=0.1), delta=True, trainable=["classifier.*"])
    assert torch.equal(tuned(images), before)
    layers = {name.partition(".parametrizations")[0] for name, _ in tuned.named_parameters()}
    kinds = {name.rpartition(".")[2] for name in layers if name.startswith("blocks")}
    assert kinds == {"query", "key", "value", "output", "hidden", "back"}
    assert layers - {name for name in layers if name.startswith("blocks")} == {
        "patches",
        "classifier.weight",
        "classifier.bias",
    }
