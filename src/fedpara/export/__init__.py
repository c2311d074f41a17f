"""A trained model for use elsewhere: merged weights, a graph, a LoHa adapter, or a folder for the Hub."""

from fedpara.export.card import Card, data_facts, metadata_of
from fedpara.export.formats import export_dense, export_onnx
from fedpara.export.hub import export_folder, push, require_repo
from fedpara.export.loha import export_loha, require_loha

__all__ = [
    "Card", "data_facts", "export_dense", "export_folder", "export_loha", "export_onnx", "metadata_of", "push",
    "require_loha", "require_repo",
]  # fmt: skip
