"""What theory expects of an estimator on a case. Where only a coincidence could decide, it expects nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TypeGuard

import torch
from torch import Tensor

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Outcome
from lmc_verify.claims.residuals import NOTHING_TO_COMPARE, RESOLUTION_LIMIT, norm_by_layer
from lmc_verify.estimators import Blend, Cut, Drop, Held, SampledDesign, Shadow, properties_of
from lmc_verify.estimators.compensated.policies import HaloPolicy
from lmc_verify.graphs import Batch, Graph, LocalSet
from lmc_verify.models import active_dropout
from lmc_verify.objective import gradient_norm, summand_sizes

__all__ = [
    "UNKNOWN",
    "Expectation",
    "HaloView",
    "expect_from_halo",
    "expect_from_sample",
    "frozen_sweeps",
    "halo_view",
    "trains_encoder",
    "weights_fail",
    "where_gradient_vanishes",
]


SAMPLES = 500
"""First samples of a batch whose losses are compared, to see whether the sample reaches the loss."""


@dataclass(frozen=True)
class Expectation:
    """What theory says of a claim on a case, and why; None where it says nothing."""

    outcome: Outcome | None
    reason: str


UNKNOWN = Expectation(None, "the estimator is not one that theory knows")


def where_gradient_vanishes(case: Case, found: Expectation) -> Expectation:
    """Return what theory says of a comparison with the exact gradient, given what it says where that is not zero.

    Where the gradient of every node vanishes (a network that has died, outputs that fit to the last bit), an estimate
    from exact values is zero as well. That 0 equals 0 supports nothing, for an estimator that returns zeros would pass:
    the claim is not applicable. What an estimate from other values is there depends on the case.
    """
    if found.outcome is None or gradient_norm(case.exact.gradient) > 0 or any(summand_sizes(case.problem).values()):
        return found
    if found.outcome is Outcome.EXACT:
        return Expectation(Outcome.NOT_APPLICABLE, NOTHING_TO_COMPARE)
    if found.outcome is Outcome.REFUTED:
        return Expectation(None, f"{found.reason}, which need not show where the exact gradient vanishes")
    return found


@dataclass(frozen=True)
class HaloView:
    """What the halos of a set of batches are like.

    Attributes:
        exists: some batch has a halo.
        lacks_source: some halo row has a source outside the local set: its fresh embedding is incomplete.
        lacks_destination: some halo row has a destination outside: its fresh auxiliary variable is incomplete.
        sender_lacks_source: the same of a source, for a halo row that sends messages to the batch, and into which the
            estimator mixes its fresh value: with a linear score that needs a source inside.
        receiver_lacks_source: the same, for a halo row that receives messages from the batch, and sends back what its
            own Jacobian says.
        labelled_receiver_lacks_source: the same, for such a row with a loss of its own.
        receiver_lacks_destination: such a row with a fresh value mixed in lacks a destination that has a loss.
        carries_signal: for every trained part below the last layer, some batch would lose a part of its gradient if
            the messages that the halo sends back to it were dropped. Dead activations on the way can stop them all.
    """

    exists: bool = False
    lacks_source: bool = False
    lacks_destination: bool = False
    sender_lacks_source: bool = False
    receiver_lacks_source: bool = False
    labelled_receiver_lacks_source: bool = False
    receiver_lacks_destination: bool = False
    carries_signal: bool = False

    @classmethod
    def unknown(cls) -> HaloView:
        """Return what batches are taken to be like that are too many to look at: with all that can be lacking."""
        return cls(**{field.name: field.name != "carries_signal" for field in fields(cls)})


def trains_encoder(case: Case) -> bool:
    """Whether the encoder has trainable parameters: it then counts as layer 0."""
    return bool(case.problem.parameters_of(case.problem.model.encoder))


def frozen_sweeps(case: Case) -> int:
    """Return the sweep from which every gradient is exact at fixed parameters: 2L - 1, or 2L with a trained encoder.

    The gradient of layer l needs V^l at batch rows, which sweep 2L - l is the first to compute from exact halo values;
    the encoder is layer 0.
    """
    return 2 * case.problem.num_layers - (0 if trains_encoder(case) else 1)


class _LostMessages:
    """What parameter gradients lose, at exact values, where the halo sends nothing back.

    The messages ``sum over halo rows i of (d h_i^l / d h_j^{l-1})^T V_i^l`` to batch rows j are followed through the
    activations' slopes into the parameters of the part below layer l.
    """

    def __init__(self, case: Case) -> None:
        self._case, self._problem = case, case.problem
        self._units = norm_by_layer(case.problem, case.exact.gradient)
        self._tapes: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        layers = range(1 if trains_encoder(case) else 2, case.problem.num_layers + 1)
        dropping = active_dropout(case.problem.model) is not None  # layers are then random: there are no exact values
        self._unseen = set() if dropping else {layer for layer in layers if self._below(layer)}
        self._some = bool(self._unseen)

    @property
    def everywhere(self) -> bool:
        """Whether every trained part below the last layer has been seen to lose something."""
        return self._some and not self._unseen

    def look(self, inside: Tensor, halo: Tensor) -> None:
        """Look at one batch, given as masks of its rows and of its halo's [n]."""
        source, destination = self._case.graph.edge_index
        receivers = inside[source] & halo[destination]
        if self._unseen and bool(receivers.any()):
            self._unseen -= {layer for layer in self._unseen if self._loses(layer, inside, halo)}

    def _below(self, layer: int) -> dict[str, torch.nn.Parameter]:
        model = self._problem.model
        return self._problem.parameters_of(model.layer(layer - 1) if layer > 1 else model.encoder)

    def _rows(self, layer: int, h: Tensor) -> Tensor:
        part, exact = self._problem.model.layer(layer), self._case.exact
        rows: Tensor = part(h, h, exact.embeddings[0], self._case.graph.operator(part.operator))
        return rows

    def _loses(self, layer: int, inside: Tensor, halo: Tensor) -> bool:
        exact = self._case.exact
        if layer not in self._tapes:
            h = exact.embeddings[layer - 1].detach().requires_grad_()
            with torch.enable_grad():
                below = (
                    self._rows(layer - 1, exact.embeddings[layer - 2])
                    if layer > 1
                    else self._problem.model.encode(self._case.graph.x)
                )
                self._tapes[layer] = (h, self._rows(layer, h), below)
        h, rows, below = self._tapes[layer]
        (messages,) = torch.autograd.grad(
            rows,
            h,
            exact.auxiliary[layer] * halo[:, None],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        parameters = self._below(layer)
        lost = torch.autograd.grad(
            below,
            list(parameters.values()),
            messages * inside[:, None],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        named = dict(zip(parameters, lost, strict=True))
        return any(
            norm > RESOLUTION_LIMIT * self._units[part] for part, norm in norm_by_layer(self._problem, named).items()
        )


def halo_view(case: Case, batches: Iterable[Batch]) -> HaloView:
    """Look at the halos of some batches."""
    graph, lost, passes = case.graph, _LostMessages(case), properties_of(case.estimator).passes
    source, destination = graph.edge_index
    forward, backward = (None, None) if passes is None else (passes.forward, passes.backward)
    layers = range(1, case.problem.num_layers + 1)
    linear = all(case.problem.model.layer(index).aggregate_linear for index in layers)
    asked = {
        "lacks_source": True,
        "lacks_destination": True,
        "sender_lacks_source": _mixes(forward),
        "receiver_lacks_source": not linear,
        "labelled_receiver_lacks_source": not linear,
        "receiver_lacks_destination": _mixes(backward),
    }
    seen, exists = dict.fromkeys(asked, False), False
    for batch in batches:
        inside, halo, sends, receives = torch.zeros(4, graph.num_nodes, dtype=torch.bool, device=graph.device)
        nodes = batch.nodes.to(graph.device)
        local = LocalSet(torch.cat([nodes, graph.neighbourhood(nodes)]), nodes.numel())
        inside[nodes] = True
        halo[local.halo] = True
        outside = ~(inside | halo)
        exists |= bool(halo.any())
        sends[source[inside[destination]]] = True
        receives[destination[inside[source]]] = True
        no_source, no_destination, no_label = torch.zeros(3, graph.num_nodes, dtype=torch.bool, device=graph.device)
        no_source[destination[outside[source]]] = True
        no_destination[source[outside[destination]]] = True
        no_label[source[(outside & graph.train_mask)[destination]]] = True
        rows = {
            "lacks_source": halo & no_source,
            "lacks_destination": halo & no_destination,
            "sender_lacks_source": _mixed(forward, graph, local) & sends & no_source,
            "receiver_lacks_source": halo & receives & no_source,
            "labelled_receiver_lacks_source": halo & receives & no_source & graph.train_mask,
            "receiver_lacks_destination": _mixed(backward, graph, local) & receives & no_label,
        }
        seen = {name: seen[name] or bool(found.any()) for name, found in rows.items()}
        lost.look(inside, halo)
        if exists and all(seen[name] for name in asked if asked[name]) and lost.everywhere:
            break  # what is not asked is not worth going through every batch
    return HaloView(exists, **seen, carries_signal=lost.everywhere)


def _mixes(policy: HaloPolicy | None) -> TypeGuard[Blend]:
    return isinstance(policy, Blend) and policy.uses_fresh


def _mixed(policy: HaloPolicy | None, graph: Graph, local: LocalSet) -> Tensor:
    """Return the halo rows into which a policy mixes fresh values, bool [n]; all of them where it does not say."""
    rows = torch.zeros(graph.num_nodes, dtype=torch.bool, device=graph.device)
    rows[local.halo] = policy.coefficients(graph, local)[:, 0] != 0 if _mixes(policy) else True
    return rows


def expect_from_sample(case: Case) -> Expectation:
    """Return whether the gradient is unbiased over batches and samples, for an estimator that samples messages.

    Args:
        case: the case; its design can be enumerated.
    """
    sampler, problem = properties_of(case.estimator).sampler, case.problem
    assert sampler is not None
    base = case.design.base if isinstance(case.design, SampledDesign) else case.base_design
    if case.design.support_size == base.support_size and not sampler.reweights:
        return Expectation(Outcome.EXACT, "the budget covers every message: nothing is left to chance")
    if sampler.corrected:
        if case.histories == "exact" or (problem.num_layers == 1 and not trains_encoder(case)):
            return Expectation(
                Outcome.EXACT, "with exact histories the forward pass is exact, and layers are sampled independently"
            )
        if case.histories != "zero":
            return Expectation(None, "after some sweeps histories are exact in parts only")
    if not _sample_shows(case):
        return Expectation(None, "the sample need not reach the loss on this case")
    reason = "the histories are not exact" if sampler.corrected else "activations and the loss are not linear"
    return Expectation(Outcome.REFUTED, reason)


def _expect_own_objective(case: Case, shadow: Shadow) -> Expectation:
    """Return whether shaDow's objective is the whole graph's."""
    if not shadow.renormalise and shadow.depth >= case.problem.num_layers:
        return Expectation(None, "the ego networks reach as far as the layers: the mean is exact, batches differ")
    loss, _ = shadow.objective(case.problem)
    if abs(loss - case.exact.loss) > RESOLUTION_LIMIT * abs(case.exact.loss):
        return Expectation(Outcome.REFUTED, "the ego networks' objective is not the whole graph's")
    return Expectation(None, "the two objectives need not differ on this case")


def _sample_shows(case: Case) -> bool:
    """Whether the loss differs between some of the first samples of one batch."""
    state, seen = case.initial_state(), dict[tuple[int, ...], float]()
    for number, (batch, _) in enumerate(case.design.enumerate()):
        loss = case.estimate(state, batch).loss
        first = seen.setdefault(tuple(batch.nodes.tolist()), loss)
        if abs(loss - first) > RESOLUTION_LIMIT * max(abs(loss), abs(first)):
            return True
        if number > SAMPLES:
            break
    return False


def expect_from_halo(case: Case, batches: Iterable[Batch] | None, *, histories: str) -> Expectation:
    """Return whether the estimates equal Backward SGD's on the batches, by what is put at the halo.

    Args:
        case: the case.
        batches: the batches that are looked at; None where they are too many: then halos are taken to exist and to
            lack what they can lack, and nothing but "exact" is expected.
        histories: ``"exact"``, ``"zero"`` or ``"sweeps:K"``.
    """
    exact = Expectation(Outcome.EXACT, "exact values at the halo in both passes leave nothing out")
    found = properties_of(case.estimator)
    if not found.known:
        return UNKNOWN
    if found.exact:
        return Expectation(Outcome.EXACT, "every estimate is the exact gradient")
    if found.own_objective is not None:
        return _expect_own_objective(case, found.own_objective)
    policies, layers = found.passes, case.problem.num_layers
    if found.starts_exact:
        histories = "exact"
    if policies is None:
        return UNKNOWN
    if isinstance(policies.forward, Held):
        return exact
    view = HaloView.unknown() if batches is None else halo_view(case, batches)
    if not view.exists:
        return Expectation(Outcome.EXACT, "no message crosses a batch's border")
    if isinstance(policies.forward, Cut):
        if batches is None:
            return Expectation(None, "edges that leave a batch are cut, if there are any")
        return Expectation(Outcome.REFUTED, "edges that leave the batch are cut")
    encoder = trains_encoder(case)
    if layers == 1 and not encoder:  # inputs are exact, and no halo message is needed backward
        return exact
    compensates = isinstance(policies.backward, Blend)
    reasons: list[str] = []
    unsure: list[str] = []
    if isinstance(policies.backward, Drop):
        reasons.append("messages from the halo are dropped in the backward pass")
    forward_read = layers > 1 or compensates
    backward_read = compensates and layers > (1 if encoder else 2)
    for policy, read, lacking, matters in (
        (policies.forward, forward_read, view.lacks_source, view.sender_lacks_source),
        (policies.backward, backward_read, view.lacks_destination, view.receiver_lacks_destination),
    ):
        if isinstance(policy, Blend) and read and policy.uses_fresh and lacking:
            sure = policy.blends and matters  # other rows are read by the loss alone, or by nobody
            (reasons if sure else unsure).append("incomplete fresh values are mixed into the halo")
    # Halo Jacobians of layers 2 ... L are read, to get V^1; that of layer 1 only if an encoder is trained.
    read_layers = range(1 if encoder else 2, layers + 1)
    linear = all(case.problem.model.layer(index).aggregate_linear for index in read_layers)
    if compensates and not linear and view.receiver_lacks_source:
        sure = view.labelled_receiver_lacks_source  # where V vanishes the Jacobian does not show
        (reasons if sure else unsure).append(
            "a layer is not aggregate-linear: halo Jacobians see incomplete aggregates"
        )
    if histories == "zero":
        reasons.append("the histories are not exact")
    elif histories != "exact" and int(histories.removeprefix("sweeps:")) < frozen_sweeps(case) - 1:
        unsure.append("after so few sweeps the histories are exact in parts only")
    if reasons and view.carries_signal:
        return Expectation(Outcome.REFUTED, "; ".join(dict.fromkeys(reasons)))
    if reasons or unsure:
        return Expectation(None, "; ".join(dict.fromkeys([*reasons, *unsure])) + ", which need not show on this case")
    return exact


def weights_fail(case: Case) -> list[str]:
    """Return why the weights of batch rows are not the inclusion probabilities' inverses; empty if they are."""
    out: list[str] = []
    if case.conditioned:
        out.append(
            "the weights are those of the marginal distribution, but the batches are drawn conditionally on what the "
            "epoch has visited"
        )
    weighting = case.weighting
    if weighting == "inclusion":
        return out
    mask = case.graph.train_mask.cpu()
    drawn = [batch for batch, _ in case.design.enumerate()]
    if all(batch.sample is not None and batch.sample.weights is not None for batch in drawn):
        return out  # the estimator's own distribution gives the weights, not its setting
    batches = [batch.nodes for batch in drawn]
    if weighting == "node-count" and len({nodes.numel() for nodes in batches}) > 1:
        out.append("batches differ in size, so |V| / |V_B| is not the inverse inclusion probability")
    if weighting == "batch-mean" and len({int(mask[nodes].sum()) for nodes in batches}) > 1:
        out.append("batches differ in their number of labelled nodes, so the batch mean is not the objective's weight")
    return out
