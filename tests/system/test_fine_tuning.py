"""Fine-tuning from the command line: pretrained weights, factors that are added to them, resumes, exports, errors."""

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from fedpara.app import evaluation
from fedpara.app.resume import is_finished
from helpers.runs import rows
from helpers.shell import SMALL, newest

TUNE = [*SMALL, "factorization.delta=true", "factorization.trainable=[classifier.*]", "seed=1"]
FITTED = ["factors.gamma=1", "factorization.initialization=fitted"]


@pytest.fixture
def pretrained(shell, tmp_path):
    """The merged weights of a run."""
    assert shell(*SMALL)[0] == 0
    run = newest(tmp_path)
    assert shell(f"run={run}", "export=dense", program=evaluation)[0] == 0
    return run / "model.safetensors"


def test_the_head_alone_travels_and_resumes(shell, tmp_path, pretrained):
    assert shell(*SMALL, "factorization=frozen", f"pretrained.file={pretrained}", "federation.num_rounds=1")[0] == 0
    run = newest(tmp_path)
    assert all("classifier" in name for name in load_file(run / "checkpoint.safetensors"))
    assert shell(f"resume={run}", "federation.num_rounds=2")[0] == 0
    status, _, out = shell(f"run={run}", "export=dense", program=evaluation)
    assert status == 0
    assert f"test/acc: {float(rows(run)[-1]['test/acc'])}" in out
    tuned, base = load_file(run / "model.safetensors"), load_file(pretrained)
    assert {name for name in base if not torch.equal(tuned[name], base[name])} == {
        name for name in base if name.startswith("classifier.")
    }


def test_only_factors_and_the_head_travel_and_the_rest_stays_as_pretrained(shell, tmp_path, pretrained):
    command = [*TUNE, f"pretrained.file={pretrained}"]
    assert shell(*command, "federation.num_rounds=2")[0] == 0
    whole = newest(tmp_path)
    state = load_file(whole / "checkpoint.safetensors")
    assert all(".parametrizations." in name or "classifier" in name for name in state), list(state)
    status, _, out = shell(f"run={whole}", "export=dense", program=evaluation)
    assert status == 0
    assert f"test/acc: {float(rows(whole)[-1]['test/acc'])}" in out
    tuned, base = load_file(whole / "model.safetensors"), load_file(pretrained)
    assert tuned.keys() == base.keys()
    moved = {name for name in base if not torch.equal(tuned[name], base[name])}
    assert {name for name in base if "norm" in name or (name.endswith("bias") and "features" in name)}.isdisjoint(moved)
    assert "classifier.0.weight" in moved
    assert any(name.startswith("features.conv") for name in moved)

    assert shell(*command, "federation.num_rounds=1")[0] == 0
    resumed = newest(tmp_path)
    assert shell(f"resume={resumed}", "federation.num_rounds=2")[0] == 0
    again = load_file(resumed / "checkpoint.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())

    cfg = OmegaConf.load(resumed / "config.yaml")
    cfg.pretrained.crc32 = None  # as a sweep composes it, which skips jobs that are finished
    assert is_finished(cfg)

    changed = load_file(pretrained)
    save_file({name: tensor + 1 for name, tensor in changed.items()}, pretrained)
    status, err, _ = shell(f"resume={resumed}", "federation.num_rounds=3")
    assert status == 2
    assert "cannot be resumed with another pretrained.crc32" in err
    status, err, _ = shell(f"run={resumed}", program=evaluation)
    assert status == 2
    assert "has changed since the run began" in err
    status, err, _ = shell(*TUNE, "pretrained.file=5")
    assert (status, err) == (2, "error: pretrained.file=5: must be the path of a file, or null\n")


def test_a_warm_start_goes_on_from_the_pretrained_weights_in_factors(shell, tmp_path, pretrained):
    """Without a step of training, fitted factors have a lower loss than random ones."""
    command, loss = [*SMALL, "factors.gamma=1", f"pretrained.file={pretrained}", "model.optimizer.lr=0"], {}
    for start in ("fitted", "variance"):
        status, err, out = shell(*command, "federation.num_rounds=1", f"factorization.initialization={start}")
        assert status == 0, err
        assert ("random factors replace the pretrained weights" in out + err) == (start == "variance")
        loss[start] = float(rows(newest(tmp_path))[-1]["test/loss"])
    assert loss["fitted"] < loss["variance"]


@pytest.mark.slow
def test_a_warm_start_is_resumed_as_any_run(shell, tmp_path, pretrained):
    fitted, states = [*SMALL, *FITTED, f"pretrained.file={pretrained}"], []
    for rounds in ([2], [1, 2]):
        assert shell(*fitted, f"federation.num_rounds={rounds[0]}")[0] == 0
        run = newest(tmp_path)
        assert all(shell(f"resume={run}", f"federation.num_rounds={number}")[0] == 0 for number in rounds[1:])
        states.append(load_file(run / "checkpoint.safetensors"))
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_warm_start_needs_one_factorisation_for_all_of_a_weight(shell, pretrained):
    fitted = [*SMALL, *FITTED, f"pretrained.file={pretrained}"]
    status, err, _ = shell(*fitted, "federation.tiers={a:{share:1,gamma:0}}")
    assert status == 2
    assert "factorization.initialization=fitted: must be another one with federation.tiers" in err
    status, err, _ = shell(*fitted, "factorization=pfedpara", "sharing=pfedpara")
    assert status == 2
    assert "factorization.initialization=fitted: must be another one with pFedPara" in err
