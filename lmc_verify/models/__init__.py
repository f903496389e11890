"""Layered models: the layer contract, native convolutions, the PyG adapter, and the models built from them."""

from lmc_verify.models.adapter import PyGConv
from lmc_verify.models.convs import GCNConv, SAGEConv
from lmc_verify.models.dropout import Dropout, key_dropout
from lmc_verify.models.layered import Conv, ConvLayer, Layer, LayeredModel, active_dropout
from lmc_verify.models.stacks import GAT, GCN, MODELS, SAGE, make_model

__all__ = [
    "GAT",
    "GCN",
    "MODELS",
    "SAGE",
    "Conv",
    "ConvLayer",
    "Dropout",
    "GCNConv",
    "Layer",
    "LayeredModel",
    "PyGConv",
    "SAGEConv",
    "active_dropout",
    "key_dropout",
    "make_model",
]
