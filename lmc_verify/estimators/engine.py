"""The engine of the compensated family: layer by layer on batch and halo, with vector-Jacobian products.

Batch rows and halo rows of a layer are evaluated separately. Parameters are differentiated through batch rows only, so
no halo term can reach a parameter gradient, whatever the layer (biases, encoder and norm layers included).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmc_verify.batches import Batch
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import Cost, Estimate, check_batch, node_weights
from lmc_verify.estimators.history import AUXILIARY, EMBEDDING, History, HistoryWrite, Refresh, Write
from lmc_verify.estimators.local import local_structure
from lmc_verify.estimators.policies import Blend, Cut, Drop, HaloPolicy, Held
from lmc_verify.exact import exact_pass, refuse_dropout
from lmc_verify.graph import Block
from lmc_verify.problem import Problem

__all__ = ["Policies", "estimate_compensated"]


@dataclass(frozen=True)
class Policies:
    """The two halo policies of an estimator, and whether blended halo rows of H are written back.

    Raises:
        InvalidInputError: a combination without meaning.
    """

    forward: HaloPolicy
    backward: HaloPolicy
    write_halo: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.forward, Drop) or isinstance(self.backward, Cut):
            raise InvalidInputError("Cut belongs to the forward pass and Drop to the backward pass; swap them")
        if isinstance(self.forward, Held) != isinstance(self.backward, Held):
            raise InvalidInputError("exact values are held in both passes or in neither: use Held() twice")
        if isinstance(self.forward, Cut) and not isinstance(self.backward, Drop):
            raise InvalidInputError("without a halo in the forward pass there is none in the backward pass: use Drop()")

    @property
    def compensates(self) -> bool:
        """Whether halo rows send messages backward from a history."""
        return isinstance(self.backward, Blend)

    @property
    def writes_embeddings(self) -> bool:
        """Whether a history of H is kept."""
        return isinstance(self.forward, Blend)

    @property
    def writes_auxiliary(self) -> bool:
        """Whether a history of V is kept."""
        return isinstance(self.backward, Blend)


def estimate_compensated(
    problem: Problem, state: History, batch: Batch, policies: Policies, normaliser: str
) -> Estimate:
    """Estimate the gradient from one batch with the given halo policies.

    Args:
        problem: the problem; nothing in it is changed.
        state: histories to read; nothing in it is changed.
        batch: the batch, ids of the problem's graph.
        policies: what to put at the halo.
        normaliser: see `lmc_verify.NORMALISERS`.

    Raises:
        InvalidInputError: the batch does not belong to the graph, the state lacks a history that is needed, or dropout
            is active.
    """
    check_batch(problem, batch)
    # Other dropout would draw from torch's global generator, and the estimate would not be pure.
    refuse_dropout(problem, allow_keyed=True)
    writes: list[Write] = []
    if isinstance(policies.forward, Held) and not state.is_exact_for(problem):
        state = History.from_exact(problem, exact_pass(problem))
        writes.append(Refresh(state))
    _check_state(problem, state, policies)
    step = _Step(problem, state, batch, policies, normaliser)
    step.forward()
    step.backward()
    return Estimate(step.gradient, step.loss, (*writes, *step.writes()), step.cost())


def _check_state(problem: Problem, state: History, policies: Policies) -> None:
    needed = {EMBEDDING: policies.writes_embeddings, AUXILIARY: policies.writes_auxiliary}
    for kind, wanted in needed.items():
        table = state.table(kind)
        for layer in range(1, problem.num_layers + 1) if wanted else ():
            shape = (problem.graph.num_nodes, problem.widths[layer])
            if layer not in table or table[layer].shape != shape:
                found = tuple(table[layer].shape) if layer in table else "none"
                raise InvalidInputError(
                    f"the state has no {kind} history {list(shape)} for layer {layer} (found: {found}); "
                    "make it with this estimator's init(problem)"
                )
            if table[layer].dtype != problem.graph.dtype:
                raise InvalidInputError(
                    f"the state's histories are {table[layer].dtype}, the problem is {problem.graph.dtype}; "
                    "make the state with this estimator's init(problem)"
                )


class _Step:
    """One estimate: local values by layer, filled by `forward`, differentiated by `backward`."""

    def __init__(self, problem: Problem, state: History, batch: Batch, policies: Policies, normaliser: str) -> None:
        self.problem, self.state, self.policies = problem, state, policies
        graph = problem.graph
        self.structure = local_structure(graph, batch, cut=isinstance(policies.forward, Cut))
        self.local = self.structure.nodes
        self.size = self.local.num_batch
        self.weights = node_weights(problem, batch, normaliser)
        self.gradient = problem.zero_gradient()
        self.loss = 0.0
        self.embeddings: dict[int, Tensor] = {}  # h^l at local rows, l = 1 ... L
        self.auxiliary: dict[int, Tensor] = {}  # V^l at batch rows
        self._tapes: dict[int, _Tape] = {}
        self._encoder = problem.parameters_of(problem.model.encoder)

    def _block(self, kind: str, *, halo: bool) -> Block:
        """Return batch rows (or halo rows) x local columns of an operator."""
        policy = self.policies.forward
        return self.structure.block(kind, halo=halo, renormalised=isinstance(policy, Cut) and policy.renormalise)

    def _needs_input_gradient(self, layer: int) -> bool:
        return not isinstance(self.policies.backward, Held) and (layer > 1 or bool(self._encoder))

    # --------------------------------------------------------------- forward

    def forward(self) -> None:
        """Fill the local values of every layer, keeping what the backward pass differentiates."""
        problem, model, size = self.problem, self.problem.model, self.size
        with torch.enable_grad():
            x = problem.graph.x[self.local.nodes]
            self._encoded = model.encode(x[:size])  # only these rows are differentiated
        with torch.no_grad():
            x0 = (
                torch.cat([self._encoded.detach(), model.encode(x[size:])]) if size < len(x) else self._encoded.detach()
            )
        h = x0
        halo_rows = self.local.halo.numel() > 0
        for index in range(1, problem.num_layers + 1):
            layer = model.layer(index)
            need_input = self._needs_input_gradient(index)
            source = h.detach().requires_grad_(need_input)
            read_x0 = x0.detach().requires_grad_(layer.reads_x0 and bool(self._encoder))
            with torch.enable_grad():
                batch_out = layer(source, source[:size], read_x0[:size], self._block(layer.operator, halo=False))
            halo_out = None
            differentiate = self.policies.compensates and need_input
            fresh_wanted = isinstance(self.policies.forward, Blend) and self.policies.forward.uses_fresh
            if halo_rows and (differentiate or fresh_wanted):
                with torch.set_grad_enabled(differentiate):
                    halo_out = layer(
                        source, source[size:], read_x0[size:].detach(), self._block(layer.operator, halo=True)
                    )
            self._tapes[index] = _Tape(source, read_x0, batch_out, halo_out)
            h = self._local_values(index, batch_out.detach(), None if halo_out is None else halo_out.detach())
            self.embeddings[index] = h

    def _local_values(self, layer: int, batch_rows: Tensor, fresh: Tensor | None) -> Tensor:
        """Return h^l at local rows: batch rows as computed, halo rows as the forward policy says."""
        policy = self.policies.forward
        if isinstance(policy, Held):
            return self.state.read(EMBEDDING, layer, self.local.nodes)
        if isinstance(policy, Cut) or not self.local.halo.numel():
            return batch_rows
        return torch.cat([batch_rows, self._blend(policy, EMBEDDING, layer, fresh)])

    def _blend(self, policy: HaloPolicy, kind: str, layer: int, fresh: Tensor | None) -> Tensor:
        """Return the policy's halo values: history, or history blended with fresh values."""
        assert isinstance(policy, Blend)  # Policies admits no other kind here
        held = self.state.read(kind, layer, self.local.halo)
        if not policy.uses_fresh or fresh is None:
            return held
        beta = self.structure.coefficients(policy)
        return (1 - beta) * held + beta * fresh

    # -------------------------------------------------------------- backward

    def backward(self) -> None:
        """Send auxiliary variables down the layers and collect parameter gradients from batch rows."""
        problem, size, held = self.problem, self.size, isinstance(self.policies.backward, Held)
        v_batch, v_halo = self._start()
        x0_term = torch.zeros_like(self._encoded) if self._encoder else None
        for index in range(problem.num_layers, 0, -1):
            if held:
                v_batch = self.state.read(AUXILIARY, index, self.local.batch)
            self.auxiliary[index] = v_batch
            tape = self._tapes[index]
            reads_x0 = tape.x0.requires_grad
            self._collect(problem.parameters_of(problem.model.layer(index)), tape.batch_out, v_batch)
            need_input = self._needs_input_gradient(index)
            wanted = [*([tape.source] if need_input else []), *([tape.x0] if reads_x0 else [])]
            if not wanted:
                continue
            grads = _vjp(tape.batch_out, wanted, v_batch)
            if reads_x0 and x0_term is not None:
                x0_term += grads.pop()[:size]
            if need_input:
                below = grads.pop()
                if v_halo is not None and tape.halo_out is not None:
                    below = below + _vjp(tape.halo_out, [tape.source], v_halo)[0]
                v_batch = below[:size]
                if v_halo is not None and index > 1:
                    v_halo = self._blend(self.policies.backward, AUXILIARY, index - 1, below[size:])
        if x0_term is not None:
            # Held auxiliary variables of layer 0 include what layers send back through x0.
            total = self.state.read(AUXILIARY, 0, self.local.batch) if held else v_batch + x0_term
            self._collect(self._encoder, self._encoded, total)

    def _start(self) -> tuple[Tensor, Tensor | None]:
        """Return V^L at batch rows and, for compensating policies, at halo rows; collect the head's gradient."""
        problem, size, top = self.problem, self.size, self.embeddings[self.problem.num_layers]
        head = problem.parameters_of(problem.model.head)
        h = top[:size].detach().requires_grad_()
        with torch.enable_grad():
            losses = problem.node_losses(problem.model.predict(h), self.local.batch)
        self.loss = float(losses.detach() @ self.weights)
        (v_batch,) = _vjp(losses, [h], torch.ones_like(losses))
        self._collect(head, losses, torch.ones_like(losses))
        if not self.policies.compensates or not self.local.halo.numel():
            return v_batch, None
        h_halo = top[size:].detach().requires_grad_()
        with torch.enable_grad():
            halo_losses = problem.node_losses(problem.model.predict(h_halo), self.local.halo)
        (v_halo,) = _vjp(halo_losses, [h_halo], torch.ones_like(halo_losses))
        return v_batch, v_halo

    def _collect(self, parameters: Mapping[str, Tensor], rows: Tensor, cotangent: Tensor) -> None:
        """Add ``sum over batch rows j of weight_j * (d row_j / d parameter)^T cotangent_j`` to the gradient."""
        if not parameters or not rows.requires_grad:
            return
        weights = self.weights if cotangent.dim() == 1 else self.weights[:, None]
        for name, grad in zip(parameters, _vjp(rows, list(parameters.values()), weights * cotangent), strict=True):
            self.gradient[name] += grad

    # --------------------------------------------------------------- results

    def writes(self) -> tuple[HistoryWrite, ...]:
        """Return the history rows of this step."""
        layers, local = range(1, self.problem.num_layers + 1), self.local
        out = []
        if self.policies.writes_embeddings:
            rows = local.nodes if self.policies.write_halo else local.batch
            out += [HistoryWrite(EMBEDDING, n, rows, self.embeddings[n][: rows.numel()]) for n in layers]
        if self.policies.writes_auxiliary:
            out += [HistoryWrite(AUXILIARY, n, local.batch, self.auxiliary[n]) for n in layers]
        return tuple(out)

    def cost(self) -> Cost:
        """Count rows, messages and history bytes (layers 1 ... L together for the bytes)."""
        policies = self.policies
        sources, destinations, inner = self.structure.messages
        element = self.problem.graph.x.element_size()
        widths = sum(self.problem.widths[1:])
        halo, written = self.local.halo.numel(), self.writes()
        read = 0
        if policies.writes_embeddings:
            read += halo * widths
        if policies.compensates:
            read += halo * sum(self.problem.widths[1:-1])
        return Cost(
            nodes=self.local.nodes.numel(),
            messages_forward=inner if isinstance(policies.forward, Cut) else sources,
            messages_forward_needed=sources,
            messages_backward=inner if isinstance(policies.backward, Drop) else destinations,
            messages_backward_needed=destinations,
            history_bytes=element * (read + sum(write.values.numel() for write in written)),
        )


@dataclass(frozen=True, eq=False)
class _Tape:
    """What one layer's backward pass needs."""

    source: Tensor
    x0: Tensor
    batch_out: Tensor
    halo_out: Tensor | None


def _vjp(outputs: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Return vector-Jacobian products; inputs that the outputs do not depend on get zeros."""
    if not outputs.requires_grad:
        return [torch.zeros_like(value) for value in inputs]
    return list(
        torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True)
    )
