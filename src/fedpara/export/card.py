"""The model card of a run, README.md of a folder for the Hub: a YAML header and a text, both from the run's files.

The header's keys are those of https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedpara.data import FederatedDataModule, Normalize
from fedpara.metric import Metric
from fedpara.record import counted, size
from fedpara.runs import Run

UNKNOWN = "unknown"
SECRET = "secret"
HUB_NAMES = {  # data sets whose files are those of a data set on the Hub
    "cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}  # fmt: skip
# groups of the configuration that say how a model was trained; the others name folders and accounts
GROUPS = (
    "seed", "model", "factorization", "algorithm", "sharing", "link", "data", "partition", "federation", "aggregation",
    "privacy", "faults", "trainer",
)  # fmt: skip
CLASS = "_target_"
USE = {
    "hub": "`model.safetensors` has the merged weights, those of a dense network: the factors are multiplied out.",
    "loha": (
        "`adapter_model.safetensors` is a LoHa adapter for PEFT (`lycoris.safetensors` is the same one for LyCORIS). "
        "alpha is r. `base.safetensors` has everything else. **What it lacks is zero in the base**: without "
        "fine-tuning FedPara's product is the whole weight of a layer and no change of one. The last line merges the "
        "adapter into the base; networks that read their weights without calling their layers, such as `CharLSTM`, "
        "need that."
    ),
}
CODE = {
    "hub": """network.load_state_dict(load_file(folder / "model.safetensors"))
network.eval()""",
    "loha": """for parameter in network.parameters():
    parameter.data.zero_()
network.load_state_dict(load_file(folder / "base.safetensors"), strict=False)
network = PeftModel.from_pretrained(network, str(folder)).merge_and_unload().eval()""",
}


@dataclass(frozen=True)
class Card:
    """What a model card is made from.

    Attributes:
        run: the run folder.
        data: what `data_facts` gives.
        metrics: what was measured, by the names of metrics.csv.
        form: `hub` or `loha`.
        client: whose model it is; None: the global one.
        licence: an identifier of the Hub, such as `mit`; None: it is unknown.
    """

    run: Run
    data: dict[str, Any]
    metrics: dict[str, float]
    form: str = "hub"
    client: int | None = None
    licence: str | None = None

    def config(self) -> dict[str, Any]:
        """config.json: the network's class and arguments, the inputs, and how it was trained, without any folder."""
        whole = self.run.nested_config
        network = dict((whole.get("model") or {}).get("network") or {})
        name = network.pop(CLASS, UNKNOWN)
        arguments = {key: value for key, value in network.items() if not key.startswith("_")}
        training = {group: _pruned(whole[group], _is_folder) for group in GROUPS if whole.get(group) is not None}
        if self._is_private:  # from the seed follow the cohorts, which must stay secret
            training = {"seed": SECRET} | _pruned(training, _is_seed)
        return {"class": name, "network": arguments, "data": self.data, "training": training}

    def text(self) -> str:
        """README.md."""
        template = Environment(
            loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True
        ).get_template("card.md")  # fmt: skip
        body = template.render(
            title=self.title, what=self._what(), clients=self._clients(), method=self._method(),
            use=USE[self.form], code=self._code(), inputs=self._inputs(), training=self._training(),
            results=self._results(), metrics=self._metrics(), communication=self._communication(),
            unknown=self._unknown(), origin=self._origin(), table=_table,
        )  # fmt: skip
        return f"---\n{yaml.safe_dump(self.header(), sort_keys=False, allow_unicode=True)}---\n\n{body}\n"

    @property
    def title(self) -> str:
        """The network's class and the data set."""
        return f"{self._class.rpartition('.')[2]} on {self.data['data']}"

    def header(self) -> dict[str, Any]:
        """The YAML header, with the keys that are known."""
        kind = _last(self._value(f"factorization.{CLASS}"))
        header: dict[str, Any] = {
            "license": self.licence or UNKNOWN,
            "library_name": "peft" if self.form == "loha" else "fedpara",
            "tags": ["federated-learning", "fedpara", *(["loha"] if self.form == "loha" else []), kind.lower()],
        }
        header["tags"] = [tag for tag in dict.fromkeys(header["tags"]) if tag != UNKNOWN]
        if self._task:
            header["pipeline_tag"] = self._task
        if name := HUB_NAMES.get(self.data["data"]):
            header["datasets"] = [name]
        if results := self._index():
            header |= {"metrics": ["accuracy"], "model-index": [{"name": self.title, "results": results}]}
        return header

    def _index(self) -> list[dict[str, Any]]:
        """The result by which the run is judged, if the Hub has a name for the task and the metric."""
        judged = f"personal/acc/{self.client}" if self.client is not None else self.run.judged.name
        value = self.metrics.get(judged)
        if not self._task or self.run.headline.name != "acc" or value is None:
            return []
        name = self.data["data"]
        data = {"type": HUB_NAMES.get(name, name), "name": name, "split": self._tested}
        metric = {"type": "accuracy", "name": judged, "value": value}
        return [{"task": {"type": self._task}, "dataset": data, "metrics": [metric]}]

    @property
    def _task(self) -> str | None:
        images = len(self.data["input_shape"]) == 3 and self.data["num_classes"]
        return "image-classification" if images else None

    @property
    def _tested(self) -> str:
        return "train" if self._value("data.validation", 0) else "test"

    @property
    def _class(self) -> str:
        return str(self._value(f"model.network.{CLASS}"))

    def _value(self, key: str, default: Any = UNKNOWN) -> Any:
        value = self.run.config.get(key)
        return default if value is None else value

    def _what(self) -> str:
        text = f"A `{self._class}`, trained on the data set `{self.data['data']}`."
        if self.client is not None:
            text += f" This is the model of client {self.client}."
        if self.run.is_personal:
            own = "has its initial values" if self.client is None else "was trained on this client's data alone"
            text += f" Each client keeps a part of its own; here that part {own}."
        return text

    def _clients(self) -> str:
        number = self._value("federation.num_clients")
        noun = "client" if self.run.is_deployed else "simulated client"
        return counted(number, noun) if isinstance(number, int) else f"an unknown number of {noun}s"

    def _method(self) -> str:
        sizes = self.run.summary.get("parameters", {})
        shared, dense = sizes.get("shared"), sizes.get("dense")
        if not shared or not dense:
            return "an unknown number of parameters a round"
        most = sizes.get("up", shared)  # what clients send, where that is less than they are sent
        least = min([most, *(number for name, number in sizes.items() if name.startswith("shared_"))])
        ends = sorted({least, most})
        sent, share = (
            " to ".join(f"{end * by:{form}}" for end in ends) for by, form in ((1, ","), (100 / dense, ".1f"))
        )
        return f"{sent} of the {dense:,} parameters of the dense network ({share} %) a round"

    def _code(self) -> str:
        package, _, name = self._class.rpartition(".")
        if not package:
            return f"# the run does not say which class its network has\n{CODE[self.form]}"
        imports = [f"from {package} import {name}", "from safetensors.torch import load_file"]
        imports += ["from peft import PeftModel"] if self.form == "loha" else []
        return "\n".join(
            [
                "import json", "from pathlib import Path", "", *sorted(imports), "",
                'folder = Path(".")  # where these files are',
                'config = json.loads((folder / "config.json").read_text())',
                f'network = {name}(**config["network"])', CODE[self.form],
            ]
        )  # fmt: skip

    def _inputs(self) -> str:
        shape = ", ".join(map(str, ("B", *self.data["input_shape"])))
        if "mean" not in self.data:
            return f"Its inputs have the shape ({shape})."
        scale = f"normalised by mean {tuple(self.data['mean'])} and standard deviation {tuple(self.data['std'])}"
        return f"Its inputs are float32 images ({shape}), scaled to 0 to 1 and then {scale}."

    def _training(self) -> list[tuple[str, str]]:
        rows = {
            "data set": self.data["data"],
            "examples used at most": f"{self._value('data.max_train', 'all')} to train, "
            f"{self._value('data.max_test', 'all')} to test",
            "partition": _last(self._value(f"partition.{CLASS}")),
            "clients": self._value("federation.num_clients"),
            "clients in a round": self._value("federation.clients_per_round"),
            "rounds": f"{self.metrics.get('round', UNKNOWN)} of {self._value('federation.num_rounds')}",
            "local epochs, batch": f"{self._value('trainer.max_epochs')}, {self._value('data.batch_size')}",
            "algorithm": _last(self._value(f"algorithm.{CLASS}")),
            "optimizer": f"{_last(self._value(f'model.optimizer.{CLASS}'))}, learning rate "
            f"{self._value('model.optimizer.lr')}",
            "factorisation": self._factorisation(),
            "stays with the clients": ", ".join(map(str, self._value("sharing.personal", []))) or "nothing",
            "seed": SECRET if self._is_private else self._value("seed"),
        }
        return [(name, str(value)) for name, value in rows.items()]

    def _factorisation(self) -> str:
        kind = _last(self._value(f"factorization.{CLASS}"))
        given = {
            name: self.run.config.get(f"factorization.{name}")
            for name in ("gamma", "conv", "nonlinearity", "ratio", "aad", "kronecker")
        }
        return ", ".join([kind, *(f"{name} {value}" for name, value in given.items() if value is not None)])

    def _results(self) -> str:
        if self._value("data.validation", 0):
            return "Measured on training examples that the clients held out; no test example was read."
        return "Measured on the test examples of the data set."

    def _metrics(self) -> list[tuple[str, str]]:
        own = f"personal/{self.run.headline.name}/{self.client}"
        kept = {n: v for n, v in self.metrics.items() if n.startswith("test/") or _is_spread(n) or n == own}
        return [(name + ", %" * Metric(name).is_share, Metric(name).written(value)) for name, value in kept.items()]

    def _communication(self) -> list[tuple[str, str]]:
        sizes, sent = self.run.summary.get("parameters", {}), self.run.last("comm/total_bytes")
        rows = {name: f"{sizes[name]:,}" if name in sizes else UNKNOWN for name in ("dense", "factorized", "shared")}
        named = [(f"parameters, {name}", value) for name, value in rows.items()]
        return [*named, ("bytes sent in all rounds, both ways", UNKNOWN if sent is None else size(sent))]

    def _unknown(self) -> list[str]:
        lines = [] if self.licence else ["The licence of these weights."]
        lines += [
            "The licence of the data set, and whether it allows this use of the weights.",
            "What the model is fit for. Its fairness, its robustness and its calibration were not measured.",
            f"What the weights reveal about the clients' data. {self._privacy()}",
            "The hardware and the energy of the training.",
        ]
        return lines

    @property
    def _is_private(self) -> bool:
        return self.run.config.get(f"privacy.{CLASS}") is not None

    def _privacy(self) -> str:
        epsilon = self.run.last("privacy/epsilon")
        if not self._is_private or epsilon is None:
            return "No differential privacy was added."
        cohorts = "secret" if self._value("privacy.secret_cohorts", True) else "known"
        delta = self.run.config.get("privacy.delta") or self.run.config["federation.num_clients"] ** -1.1
        return (
            f"Client-level differential privacy bounds it: epsilon is {epsilon:.3g} at delta {delta:.2g}, if one "
            f"client is replaced and cohorts are {cohorts}."
        )

    def _origin(self) -> list[tuple[str, str]]:
        versions = self.run.summary.get("versions", {})
        named = [(name, versions.get(name, UNKNOWN)) for name in ("fedpara", "torch")]
        commit = self.run.summary.get("git_commit") or UNKNOWN
        return [("state of the run", self.run.summary.get("state", UNKNOWN)), ("commit", commit), *named]


def data_facts(data: FederatedDataModule) -> dict[str, Any]:
    """What a user of the model must know of its data: name, classes, shape of an example, normalisation."""
    inputs, _ = next(iter(data.test_dataloader()))
    known: dict[str, Any] = {"data": data.name, "num_classes": data.num_classes, "input_shape": list(inputs.shape[1:])}
    if isinstance(data.prepare, Normalize):
        known |= {"mean": data.prepare.mean, "std": data.prepare.std}
    return known


def metadata_of(data: dict[str, Any], metrics: dict[str, float]) -> dict[str, str]:
    """The facts about a model that are stored in the files of its weights, as JSON."""
    return {name: json.dumps(value) for name, value in {**data, "metrics": metrics}.items()}


def _is_spread(name: str) -> bool:
    """Whether it is a mean or a percentile over the clients' own models."""
    return name.startswith("personal/") and name.count("/") == 1


def _last(name: Any) -> str:
    return str(name).rpartition(".")[2]


def _pruned(node: Any, left_out: Callable[[str, Any], bool]) -> Any:
    """The values without those that are left out, by their name (empty in a list) and value."""
    if isinstance(node, dict):
        return {name: _pruned(value, left_out) for name, value in node.items() if not left_out(name, value)}
    return [_pruned(value, left_out) for value in node if not left_out("", value)] if isinstance(node, list) else node


def _is_folder(_: str, value: Any) -> bool:
    """Whether it is an absolute path, which says where someone keeps files."""
    return isinstance(value, str) and (os.path.isabs(value) or value.startswith("~"))


def _is_seed(name: str, _: Any) -> bool:
    """Whether it is a seed, of any group: an algorithm has the run's too."""
    return name == "seed"


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
