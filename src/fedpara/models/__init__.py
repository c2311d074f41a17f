"""Dense networks and the one LightningModule that trains any of them."""

from fedpara.models.char_lstm import CharLSTM, LSTMLayer
from fedpara.models.mlp import MLP
from fedpara.models.module import ClassificationModule
from fedpara.models.resnet import ResNet
from fedpara.models.vgg import VGG

__all__ = ["MLP", "VGG", "CharLSTM", "ClassificationModule", "LSTMLayer", "ResNet"]
