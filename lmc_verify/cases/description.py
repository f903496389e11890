"""What records and reports say of a case: typed, and as the flat JSON object that it is written as."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lmc_verify.cases.settings import CaseSettings, Settings

__all__ = ["CaseDescription", "departures"]

_GROUPS = ("sampling", "training")
"""Fields whose settings are written one by one, under the field's name and a dot."""


def departures(settings: Settings, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the settings that are not the defaults, except for some of them."""
    usual = type(settings)()
    named = ((name, getattr(settings, name)) for name in type(settings).model_fields if name not in without)
    return {name: value for name, value in named if value != getattr(usual, name)}


@dataclass(frozen=True)
class CaseDescription:
    """A case in plain values. What is None, False, 0.0 or empty is unknown or not so, and is not written.

    The order of the fields is the order in which they are written.

    Attributes:
        dataset: name of the data set with its options; of a case assembled from objects, the graph's name.
        nodes: number of nodes.
        edges: number of directed edges.
        model: name of the model.
        layers: number of message-passing layers.
        width: of the hidden layers, in units.
        activation_cut: ``"pre"`` or ``"post"``: which side of the activation histories are kept on.
        activation: name of the activation where it is not ReLU.
        encoder: whether a linear layer comes before the first layer.
        head: whether a linear layer comes after the last one.
        residual: whether layers have residual connections.
        norm: kind of normalisation.
        jump: kind of jumping knowledge.
        dropout: probability with which training runs drop a unit.
        frozen: parts whose parameters are not trained.
        model_options: settings that only this model has.
        estimator: name of the estimator.
        normaliser: how the estimator weights a batch's losses.
        design: name of the batch design.
        per_batch: clusters or nodes in a batch; None for a design that does not say.
        support: number of batches that the design can draw, in words where it is astronomic.
        histories: ``"exact"``, ``"zero"`` or ``"sweeps:K"``.
        seed: root seed.
        dtype: floating-point type, such as ``"float64"``.
        estimator_settings: settings of the estimator. A name that a field or a model option has is theirs.
        normalisation: where a sampler's normalisation constants come from.
        partition: how the clusters were made.
        parts: number of clusters.
        replicate: number of the repetition of a statistical check.
        seen: clusters that the epoch has already visited.
        sampling: of how verdicts from draws are reached, what departs from the defaults; not the error level, which
            depends on what else is checked.
        training: of the training runs, what departs from the defaults.
        function: of an audit, the function that names what is audited, such as ``"loops:gas"``.
        arguments: of that function.
    """

    dataset: str | None = None
    nodes: int | None = None
    edges: int | None = None
    model: str | None = None
    layers: int | None = None
    width: int | None = None
    activation_cut: str | None = None
    activation: str | None = None
    encoder: bool = False
    head: bool = False
    residual: bool = False
    norm: str | None = None
    jump: str | None = None
    dropout: float = 0.0
    frozen: tuple[str, ...] = ()
    model_options: Mapping[str, Any] = field(default_factory=dict)
    estimator: str | None = None
    normaliser: str | None = None
    design: str | None = None
    per_batch: int | None = None
    support: int | str | None = None
    histories: str | None = None
    seed: int | None = None
    dtype: str | None = None
    estimator_settings: Mapping[str, Any] = field(default_factory=dict)
    normalisation: str | None = None
    partition: str | None = None
    parts: int | None = None
    replicate: int = 0
    seen: tuple[int, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    function: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def planned(cls, settings: CaseSettings) -> CaseDescription:
        """Describe a case that was not built, as far as its settings say."""
        return cls(
            dataset=settings.dataset.describe(),
            model=settings.model.name,
            estimator=settings.estimator.name,
            design=settings.design.name,
            histories=settings.histories,
            seed=settings.seed,
        )

    @classmethod
    def asked(cls, settings: CaseSettings) -> CaseDescription:
        """Describe a case by its settings alone: all of them that tell it from another case."""
        model = settings.model
        return replace(
            cls.planned(settings),
            layers=model.layers,
            width=model.width,
            activation_cut=model.activation_cut,
            activation=None if model.activation == "relu" else model.activation,
            encoder=model.encoder,
            head=model.head,
            residual=model.residual,
            norm=model.norm,
            jump=model.jump,
            dropout=model.dropout,
            frozen=model.frozen,
            model_options=model.options,
            estimator_settings=settings.estimator.settings,
            per_batch=settings.design.per_batch,
            partition=settings.design.partition,
            parts=settings.design.parts,
            seen=settings.design.seen,
            sampling=departures(settings.sampling, ("alpha", "replicate")),
            training=departures(settings.training),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return one flat mapping, for JSON and for readers."""
        out: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "model_options":
                out.update(value)
            elif item.name == "estimator_settings":
                for key, setting in value.items():
                    out.setdefault(key, setting)
            elif item.name == "arguments":
                out |= {"arguments": dict(value)} if value else {}
            elif item.name == "seen":
                out |= {"seen": ",".join(map(str, value))} if value else {}
            elif item.name in _GROUPS:
                out |= {f"{item.name}.{key}": setting for key, setting in value.items()}
            # The size of a batch is written of every design that was built, known or not.
            elif value != item.default or (item.name == "per_batch" and self.support is not None):
                out[item.name] = value
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CaseDescription:
        """Undo `to_dict`.

        Keys without a field are the model's options before the estimator's name, and the estimator's settings after it,
        except for those of a group, such as ``"training.steps"``.
        """
        names = {item.name for item in fields(cls)}
        known: dict[str, Any] = {}
        model_options: dict[str, Any] = {}
        estimator_settings: dict[str, Any] = {}
        groups: dict[str, dict[str, Any]] = {name: {} for name in _GROUPS}
        for key, value in values.items():
            group, _, setting = key.partition(".")
            if group in groups and setting:
                groups[group][setting] = tuple(value) if isinstance(value, list) else value
            elif key in names:
                known[key] = value
            else:
                (estimator_settings if "estimator" in known else model_options)[key] = value
        if "frozen" in known:
            known["frozen"] = tuple(known["frozen"])
        if "seen" in known:
            known["seen"] = tuple(int(part) for part in known["seen"].split(","))
        return cls(**known | groups | {"model_options": model_options, "estimator_settings": estimator_settings})
