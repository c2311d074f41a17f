"""Dense networks, the LightningModule that trains any of them, and the contract of one of your own."""

from fedpara.models.char_lstm import CharLSTM, LSTMLayer
from fedpara.models.contract import FederatedModule
from fedpara.models.mlp import MLP
from fedpara.models.module import ClassificationModule
from fedpara.models.pretrained import load_pretrained
from fedpara.models.resnet import ResNet
from fedpara.models.vgg import VGG
from fedpara.models.vit import ViT

__all__ = [
    "MLP",
    "VGG",
    "CharLSTM",
    "ClassificationModule",
    "FederatedModule",
    "LSTMLayer",
    "ResNet",
    "ViT",
    "load_pretrained",
]
