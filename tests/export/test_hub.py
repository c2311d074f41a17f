"""Folders for the Hub: what their card says is in the run, their code loads the model, and nothing is pushed untold."""

from pathlib import Path

import pytest
import torch
import yaml

from fedpara.app import evaluation
from fedpara.export import Card
from fedpara.export.hub import push
from fedpara.runs import Run
from fedpara.state import load_state
from helpers.hub_server import HubServer
from helpers.shell import SMALL, newest

IDENTITY = [*SMALL, "factorization.nonlinearity=identity"]
PERSONAL = [*SMALL, "factorization=pfedpara", "sharing=pfedpara"]


def trained(shell, tmp_path, typed=IDENTITY):
    status, error, _ = shell(*typed)
    assert status == 0, error
    return newest(tmp_path)


def read(folder):
    """Header and text of the card."""
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def run_its_code(folder, monkeypatch):
    """The network that the code of the card makes, run as it is written there."""
    (code,) = [part for part in read(folder)[1].split("```") if part.startswith("python\n")]
    monkeypatch.chdir(folder)
    names = {}
    exec(code.removeprefix("python\n"), names)
    return names["network"]


def logits(run, client=None):
    experiment, federation = evaluation.load(run, [])
    network, (inputs, _) = experiment.executor.module.network, next(iter(experiment.datamodule.test_dataloader()))
    load_state(network, federation.model(client))
    with torch.no_grad():
        return inputs, network.eval()(inputs)


def test_the_folder_has_the_model_and_a_card_filled_from_the_run(shell, tmp_path, monkeypatch):
    run = trained(shell, tmp_path)
    status, error, out = shell(f"run={run}", "export=hub", program=evaluation)
    assert (status, error) == (0, "")
    assert out.splitlines()[-1] == f"wrote {run / 'hub'}"
    assert {path.name for path in (run / "hub").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    inputs, expected = logits(run)
    with torch.no_grad():
        torch.testing.assert_close(run_its_code(run / "hub", monkeypatch)(inputs), expected, rtol=0, atol=1e-6)
    header, text = read(run / "hub")
    assert header["license"] == "unknown"
    assert header["pipeline_tag"] == "image-classification"
    (result,) = header["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "test/acc", "value": Run(run).last("test/acc")}]
    sizes = Run(run).summary["parameters"]
    for known in (
        "| rounds | 2 of 2 |\n", "| data set | mnist_small |", "| algorithm | FedAvg |", "4 simulated clients",
        f"| parameters, shared | {sizes['shared']:,} |", f"{Run(run).last('comm/total_bytes') / 1e6:.2f} MB",
        f"| test/acc, % | {100 * Run(run).last('test/acc'):.2f} |", Run(run).summary["git_commit"],
        "FedPara, gamma 0.1, conv tucker, nonlinearity identity", "- The licence of these weights.",
    ):  # fmt: skip
        assert known in text, known
    whole = "".join(path.read_text(errors="ignore") for path in (run / "hub").iterdir())
    assert str(tmp_path) not in whole
    assert str(Path.home()) not in whole


def test_what_a_run_does_not_say_is_unknown(tmp_path):
    data = {"data": "own", "num_classes": None, "input_shape": [7]}
    card = Card(Run(tmp_path), data, {"round": 3, "test/mse": 0.5})
    header, text = yaml.safe_load(card.text().split("---\n")[1]), card.text()
    assert header == {"license": "unknown", "library_name": "fedpara", "tags": ["federated-learning", "fedpara"]}
    for line in (
        "| algorithm | unknown |", "| seed | unknown |", "| bytes sent in all rounds, both ways | unknown |",
        "| commit | unknown |", "an unknown number of simulated clients", "| test/mse | 0.5 |",
    ):  # fmt: skip
        assert line in text, line
    assert "None" not in text


def test_the_folder_of_a_client_says_whose_model_it_is(shell, tmp_path, monkeypatch):
    run = trained(shell, tmp_path, PERSONAL)
    assert shell(f"run={run}", "export=hub", "client=1", "hub.license=mit", program=evaluation)[0] == 0
    inputs, expected = logits(run, client=1)
    with torch.no_grad():
        torch.testing.assert_close(run_its_code(run / "hub-client1", monkeypatch)(inputs), expected, rtol=0, atol=1e-6)
    header, text = read(run / "hub-client1")
    assert header["license"] == "mit"
    assert "The licence of these weights" not in text
    assert "This is the model of client 1" in text
    assert header["model-index"][0]["results"][0]["metrics"][0]["name"] == "personal/acc/1"
    assert shell(f"run={run}", "export=hub", program=evaluation)[0] == 0
    assert "Each client keeps a part of its own" in read(run / "hub")[1]


def test_the_adapter_of_a_run_loads_by_its_card(shell, tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="needs peft")
    run = trained(shell, tmp_path)
    status, error, _ = shell(f"run={run}", "export=loha", program=evaluation)
    assert status == 0, error
    inputs, expected = logits(run)
    with torch.no_grad():
        found = run_its_code(run / "loha", monkeypatch)(inputs)
    print(f"largest difference of a logit: {float((found - expected).abs().max()):.1e}")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    header, text = read(run / "loha")
    assert header["library_name"] == "peft"
    assert "What it lacks is zero in the base" in text


def test_tanh_is_refused_before_the_model_is_tested(shell, tmp_path):
    run = trained(shell, tmp_path, SMALL)
    status, error, out = shell(f"run={run}", "export=loha", program=evaluation)
    assert (status, error.count("\n"), out) == (2, 1, "")
    assert error.startswith("error: export=loha: features.conv1_1 takes the tanh of W1 and W2, LoHa cannot; ")
    assert "export=dense writes merged weights" in error
    assert not (run / "loha").exists()


def test_the_hubs_own_library_reads_the_card(shell, tmp_path):
    """`validate` asks a server; this is all of it that needs none, and the rules for names of licences."""
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface-hub (fedpara[hub])")
    run = trained(shell, tmp_path)
    assert shell(f"run={run}", "export=hub", "hub.license=apache-2.0", program=evaluation)[0] == 0
    card = hub.ModelCard.load(run / "hub" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-classification"
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_name) == ("mnist_small", "accuracy", "test/acc")
    assert yaml.safe_load(card.data.to_yaml()) == read(run / "hub")[0]


@pytest.mark.parametrize(("typed", "private"), [([], True), (["hub.private=false"], False)])
def test_a_folder_is_pushed_only_when_told(shell, tmp_path, monkeypatch, typed, private):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface-hub (fedpara[hub])")
    calls = []

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo, **options):
            calls.append((repo, options))
            return f"https://hub/{repo}"

        def upload_folder(self, folder_path, repo_id, **_):
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr(hub, "HfApi", Api)
    run = trained(shell, tmp_path)
    assert shell(f"run={run}", "export=hub", program=evaluation)[0] == 0
    assert calls == []
    status, error, out = shell(f"run={run}", "export=hub", "hub.repo=me/digits", *typed, program=evaluation)
    assert (status, error) == (0, "")
    assert out.splitlines()[-1] == "pushed to https://hub/me/digits"
    assert calls == [
        ("me/digits", {"private": private, "exist_ok": True}),
        ("me/digits", ["README.md", "config.json", "model.safetensors"]),
    ]


@pytest.mark.parametrize("private", [True, False])
def test_a_push_by_the_hubs_own_client_reaches_a_server(tmp_path, monkeypatch, private):
    """The requests of huggingface-hub, to a stand-in of the Hub."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs huggingface-hub (fedpara[hub])")
    content = {
        "README.md": b"---\nlicense: mit\n---\ncard",
        "config.json": b"{}",
        "model.safetensors": bytes(range(256)),
    }
    (tmp_path / "hub").mkdir()
    for name, written in content.items():
        (tmp_path / "hub" / name).write_bytes(written)
    server = HubServer(token="hf_good")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(ValueError, match=r"^hub.repo=me/digits: the Hub did not take it \(.*401") as caught:
        push(tmp_path / "hub", "me/digits", private)
    assert "\n" not in str(caught.value)
    assert not server.files
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert push(tmp_path / "hub", "me/digits", private) == f"{server.url}/me/digits"
    server.shutdown()
    assert server.files == {"me/digits": content}
    made = server.repos["me/digits"]
    assert (made.get("visibility") == "private" or made.get("private", False)) == private


def test_a_refusal_of_the_hub_is_one_line(shell, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface-hub (fedpara[hub])")

    def create_repo(self, repo, **_):
        raise hub.errors.LocalTokenNotFoundError("Token is required, but no token found.\nSee the docs.")

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    run = trained(shell, tmp_path)
    status, error, _ = shell(f"run={run}", "export=hub", "hub.repo=me/digits", program=evaluation)
    reason = f"the Hub did not take it (Token is required, but no token found.); the folder is {run / 'hub'}"
    assert (status, error) == (2, f"error: hub.repo=me/digits: {reason}\n")


@pytest.mark.parametrize("repo", ["digits", "me/a--b", "a/b/c"])
def test_a_wrong_name_of_a_repository_is_refused_before_anything_is_read(shell, tmp_path, repo):
    pytest.importorskip("huggingface_hub", reason="needs huggingface-hub (fedpara[hub])")
    status, error, _ = shell("run=nowhere", "export=hub", f"hub.repo={repo}", program=evaluation)
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith(f"error: hub.repo={repo}: must be user/name")


WRONG = {
    "export=hub hub.repo=me/digits": "hub.repo=me/digits: needs huggingface-hub; pip install -e '.[hub]'",
    "export=dense hub.license=mit": "hub.license=mit: needs export=hub or export=loha",
    "hub.license=mit": "hub.license=mit: needs export=hub or export=loha",
    "export=hub hub.name=me": "hub.name: no such key; allowed in hub: hub.repo, hub.private, hub.license",
    "export=hub hub.private=yes": "hub.private=yes: must be true or false",
}


@pytest.mark.parametrize("typed", WRONG)
def test_wrong_keys_of_the_hub_are_one_line(shell, monkeypatch, typed):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert shell("run=nowhere", *typed.split(" "), program=evaluation)[:2] == (2, f"error: {WRONG[typed]}\n")
