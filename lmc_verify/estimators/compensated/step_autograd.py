"""One compensated estimate by automatic differentiation, for layers of any kind.

Batch rows and halo rows of a layer are evaluated separately. Parameters are differentiated through batch rows only, so
no halo term can reach a parameter gradient, whatever the layer (biases, encoder and norm layers included).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmc_verify.estimators.compensated.policies import Blend, Cut, HaloPolicy, Held, Policies
from lmc_verify.estimators.compensated.step import Step
from lmc_verify.estimators.history import AUXILIARY, EMBEDDING, History
from lmc_verify.graphs import Batch, Block, take_rows
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective import Problem

__all__ = ["AutogradStep", "Tape"]


class AutogradStep(Step):
    """An estimate, layer by layer, with autograd's vector-Jacobian product of one layer at a time."""

    def __init__(self, problem: Problem, state: History, batch: Batch, policies: Policies, weighting: str) -> None:
        super().__init__(problem, state, batch, policies, weighting)
        self._tapes: dict[int, Tape] = {}

    def _block(self, kind: str, *, halo: bool) -> Block:
        """Return batch rows (or halo rows) x local columns of an operator."""
        return self.structure.block(kind, halo=halo, renormalised=self._renormalised)

    # --------------------------------------------------------------- forward

    def forward(self) -> None:
        """Fill the local values of every layer, keeping what the backward pass differentiates."""
        problem, model, size = self.problem, self.problem.model, self.size
        with torch.enable_grad():
            x = take_rows(problem.graph.x, self.local.nodes)
            self._encoded = model.encode(x[:size])  # only these rows are differentiated
        with torch.no_grad():
            x0 = self._encoded.detach()
            if size < len(x):
                x0 = torch.cat([x0, model.encode(x[size:], size)])
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
            self._tapes[index] = Tape(source, read_x0, batch_out, halo_out)
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
        self.loss = float(ordered_sum(losses.detach() * self.weights))
        (v_batch,) = _vjp(losses, [h], torch.ones_like(losses))
        self._collect(head, losses, torch.ones_like(losses))
        if not self.policies.compensates or not self.local.halo.numel():
            return v_batch, None
        h_halo = top[size:].detach().requires_grad_()
        with torch.enable_grad():
            halo_losses = problem.node_losses(problem.model.predict(h_halo, size), self.local.halo)
        (v_halo,) = _vjp(halo_losses, [h_halo], torch.ones_like(halo_losses))
        return v_batch, v_halo

    def _collect(self, parameters: Mapping[str, Tensor], rows: Tensor, cotangent: Tensor) -> None:
        """Add ``sum over batch rows j of weight_j * (d row_j / d parameter)^T cotangent_j`` to the gradient."""
        if not parameters or not rows.requires_grad:
            return
        weights = self.weights if cotangent.dim() == 1 else self.weights[:, None]
        for name, grad in zip(parameters, _vjp(rows, list(parameters.values()), weights * cotangent), strict=True):
            self.gradient[name] += grad


@dataclass(frozen=True, eq=False)
class Tape:
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
