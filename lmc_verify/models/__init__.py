"""Layered models: the layer contract, native convolutions, the PyG adapter, and the models built from them."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.models.adapter import PNAConv, PyGConv
    from lmc_verify.models.architecture import Architecture, ArchitectureModel
    from lmc_verify.models.convs import GCNConv, SAGEConv, initialise
    from lmc_verify.models.dropout import Dropout, key_dropout
    from lmc_verify.models.gin import GIN, GINConv
    from lmc_verify.models.initial_residual import APPNP, GCNII, APPNPLayer, GCNIILayer
    from lmc_verify.models.jumping import JumpingHead, JumpingLayer
    from lmc_verify.models.layered import Conv, ConvLayer, Layer, LayeredModel, active_dropout
    from lmc_verify.models.recurrent import RecurrentGNN, RecurrentLayer
    from lmc_verify.models.registry import MODELS, check_jump, check_options, graph_settings, make_model
    from lmc_verify.models.stacks import GAT, GCN, PNA, SAGE
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "APPNP",
    "GAT",
    "GCN",
    "GCNII",
    "GIN",
    "MODELS",
    "PNA",
    "SAGE",
    "APPNPLayer",
    "Architecture",
    "ArchitectureModel",
    "Conv",
    "ConvLayer",
    "Dropout",
    "GCNConv",
    "GCNIILayer",
    "GINConv",
    "JumpingHead",
    "JumpingLayer",
    "Layer",
    "LayeredModel",
    "PNAConv",
    "PyGConv",
    "RecurrentGNN",
    "RecurrentLayer",
    "SAGEConv",
    "active_dropout",
    "check_jump",
    "check_options",
    "graph_settings",
    "initialise",
    "key_dropout",
    "make_model",
]
