"""Error norms, forward and backward through the layers, and what they do to the gradient of each batch row.

Write hats for the estimator's values, ``e_i^l`` for a bound on ``|h^_i^l - h_i^l|`` and ``q_i^l`` for one on
``|V^_i^l - V_i^l|``. One layer, ``z_i = W sum_j A_ij r_j + b (+ R r_i)`` with ``r = before(h)``:

- forward:   ``|z^_i - z_i| <= |W sum_j D_ij r_j| + |W| sum_j |A^_ij| |r^_j - r_j| (+ |R| |r^_i - r_i|)``;
- backward:  the cotangent of r_j is ``W^T sum_i A_ij t_i (+ R^T t_j)``, and likewise with D and ``|t^_i - t_i|``;
- parameters: ``|t^ m^T - t m^T| <= |t^ - t| |m| + |t| |m^ - m| + |t^ - t| |m^ - m|``; biases ``|t^ - t|``.

D is what the local set changes in the operator (see `lmc_verify.bounds.scopes`); node-wise parts and the loss are in
`lmc_verify.bounds.nodewise` and `lmc_verify.bounds.terms`. Halo rows get ``(1 - beta_i) * history error + beta_i *
fresh error``, of ``h`` or, with feature momentum, of what the layer above reads. Every step adds a rounding allowance,
relative to what it adds up, so that a bound of zero stays above what two floating-point evaluations differ by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmc_verify.bounds.nodewise import error_table, row_norm
from lmc_verify.bounds.scopes import Scope
from lmc_verify.bounds.terms import ExactTerms, LayerTerms, LinearTerms
from lmc_verify.estimators.compensated.policies import Blend, Held, Momentum

__all__ = ["RowTerm", "RowTerms", "propagate"]


@dataclass(frozen=True, eq=False)
class RowTerm:
    """Part of a parameter's gradient error: ``sum_j weight_j d_j x_j^T`` over batch rows, with ``|d_j| <= error_j``.

    Attributes:
        error: [batch slots].
        factor: the known ``x_j`` [batch slots, width], or None where ``|x_j| = 1``.
    """

    error: Tensor
    factor: Tensor | None = None

    def contributions(self) -> Tensor:
        """Return ``error_j |x_j|`` [batch slots]."""
        return self.error if self.factor is None else self.error * row_norm(self.factor)


@dataclass(frozen=True, eq=False)
class _LayerErrors:
    """Error tables of one layer's forward values by slot: inputs h, what it reads, aggregates, z."""

    inputs: Tensor
    read: Tensor
    aggregate: Tensor
    z: Tensor


@dataclass
class RowTerms:
    """The terms of every parameter, by name; a name of None is a frozen parameter, and is left out."""

    terms: dict[str, list[RowTerm]] = field(default_factory=dict)

    def add(self, name: str | None, error: Tensor, factor: Tensor | None = None) -> None:
        """Add one term."""
        if name is not None:
            self.terms.setdefault(name, []).append(RowTerm(error, factor))

    def linear(self, lin: LinearTerms, t: Tensor, t_error: Tensor, m: Tensor, m_error: Tensor) -> None:
        """Add the terms of ``sum t m^T`` and ``sum t``."""
        self.add(lin.weight_name, t_error, m)
        self.add(lin.weight_name, m_error, t)
        self.add(lin.weight_name, t_error * m_error)
        self.add(lin.bias_name, t_error)

    def elementwise(self, name: str, u: Tensor, u_error: Tensor, s: Tensor, s_error: Tensor) -> None:
        """Add the terms of ``sum u * s``, coordinate by coordinate."""
        largest_u, largest_s = (values.abs().amax(dim=1) for values in (u, s))
        self.add(name, u_error * (largest_s + s_error) + largest_u * s_error)


def propagate(
    terms: ExactTerms, scope: Scope, embedding_errors: Mapping[int, Tensor], auxiliary_errors: Mapping[int, Tensor]
) -> Mapping[str, list[RowTerm]]:
    """Return, by parameter name, the terms that bound the gradient error of a batch.

    Args:
        terms: the problem's exact quantities.
        scope: one batch, or every batch of a design.
        embedding_errors: error tables of the histories of H by layer [n, 1 + width], for policies that blend forward.
        auxiliary_errors: those of V, for policies that blend backward.
    """
    forward = _forward(terms, scope, embedding_errors)
    return _backward(terms, scope, forward, auxiliary_errors)


def _blended(scope: Scope, policy: Blend, history: Tensor, fresh: Tensor, rounding: Tensor) -> Tensor:
    """Return the batch slots' errors with the halo slots' blend, given the rounding of a stored row [n]."""
    held = history[scope.halo] + rounding[scope.halo, None]
    return torch.cat([fresh[: scope.size], scope.blend(policy, held, fresh[scope.size :])])


def _momentum(terms: ExactTerms, scope: Scope, index: int, fresh: Tensor, histories: Mapping[int, Tensor]) -> Tensor:
    """Return the error table of what the layer above `index` reads at halo slots; fresh rows have no residual part."""
    layer, above, policy, halo = terms.layers[index - 1], terms.layers[index], scope.policies.forward, scope.halo
    assert isinstance(policy, Momentum)
    fresh = fresh[scope.size :]
    if layer.residual:
        left_out = terms.exact.embeddings[index - 1][halo].abs()
        fresh = fresh + torch.cat([row_norm(left_out)[:, None], left_out], dim=1)
    held = histories[index][halo] + terms.relative * row_norm(above.read)[halo, None]
    return scope.blend(policy, held, above.before.error(halo, fresh))


def _forward(terms: ExactTerms, scope: Scope, histories: Mapping[int, Tensor]) -> tuple[list[_LayerErrors], Tensor]:
    nodes, policy = scope.nodes, scope.policies.forward
    x0 = terms.exact.embeddings[0]
    e = x0.new_zeros(nodes.numel(), 1 + x0.shape[1])
    if terms.encoder is not None:
        e = e + terms.relative * terms.encoder.rounding(row_norm(terms.problem.graph.x))[nodes, None]
    found = []
    momentum: Tensor | None = None  # error table of what the layer reads at halo slots
    for index, layer in enumerate(terms.layers, start=1):
        operator = scope.operator(layer.kind)
        read = layer.before.error(nodes, e)
        if momentum is not None:
            read = torch.cat([read[: scope.size], momentum])
        spread = operator.forward_error(read)
        spread = error_table(spread[:, 0], spread[:, 1:])
        aggregate = spread[:, 0] + row_norm(operator.forward_missing(layer.read))
        z = layer.lin.error(spread, operator.forward_missing(layer.message))
        if layer.root is not None:
            z = z + layer.root.error(read)
        aggregate = aggregate + terms.relative * layer.aggregate_size[nodes]
        z = z + terms.relative * layer.z_size[nodes, None]
        found.append(_LayerErrors(e, read, aggregate, z))
        fresh = layer.after.error(nodes, z)
        e = fresh + e if layer.residual else fresh
        if isinstance(policy, Held):
            e = torch.zeros_like(e)
        elif isinstance(policy, Momentum):
            momentum = _momentum(terms, scope, index, fresh, histories) if index < len(terms.layers) else None
        elif isinstance(policy, Blend) and scope.halo.numel():
            e = _blended(scope, policy, histories[index], e, terms.relative * row_norm(terms.exact.embeddings[index]))
    return found, e


def _backward(
    terms: ExactTerms,
    scope: Scope,
    forward: tuple[list[_LayerErrors], Tensor],
    histories: Mapping[int, Tensor],
) -> Mapping[str, list[RowTerm]]:
    nodes, policy, out = scope.nodes, scope.policies.backward, RowTerms()
    errors, top = forward
    q = _head(terms, scope, top, out)
    for index in range(len(terms.layers), 0, -1):
        layer, known = terms.layers[index - 1], errors[index - 1]
        if isinstance(policy, Held):
            q = torch.zeros_like(q)
        t = layer.after.cotangent_error(nodes, known.z, layer.v.abs()[nodes], None, q)
        t = t + terms.relative * layer.t_size[nodes]
        _collect(scope, layer, known, q, t, out)
        if index == 1 and not terms.encoded:
            break
        operator = scope.operator(layer.kind)
        kept, missing = operator.backward(layer.y, layer.y_root)
        arriving = layer.lin.norm * operator.backward_error(t[:, None])[:, 0]
        if layer.root is not None:
            arriving = arriving + layer.root.norm * t
        arriving = arriving + terms.relative * layer.c_size[nodes]
        below = layer.before.cotangent_error(nodes, known.inputs, kept, missing, arriving)
        q = below + q if layer.residual else below
        if index > 1 and isinstance(policy, Blend) and scope.halo.numel():
            rounding = terms.relative * row_norm(terms.exact.auxiliary[index - 1])
            q = _blended(scope, policy, histories[index - 1][:, :1], q[:, None], rounding)[:, 0]
    if terms.encoded:
        _encoder(terms, scope, torch.zeros_like(q) if isinstance(policy, Held) else q, out)
    return out.terms


def _head(terms: ExactTerms, scope: Scope, e: Tensor, out: RowTerms) -> Tensor:
    """Return the error of V^L, and collect the head's parameters."""
    nodes, graph = scope.nodes, terms.problem.graph
    part, head = terms.head_part, terms.head
    read = part.error(nodes, e)
    read, outputs, size = read[:, 0], read[:, 0], row_norm(part.out)
    if head is not None:
        outputs, size = head.norm * read, head.rounding(size)
    weight = graph.train_mask[nodes].to(e.dtype) / graph.num_labelled
    p = terms.loss_cotangent
    p_error = weight * (terms.loss_error(outputs + terms.relative * size[nodes]) + terms.relative)
    if head is None:
        return part.cotangent_error(nodes, e, p.abs()[nodes], None, p_error)
    batch = slice(0, scope.size)
    read = read + terms.relative * row_norm(part.out)[nodes]
    out.linear(head, p[nodes[batch]], p_error[batch], part.out[nodes[batch]], read[batch])
    arriving = head.norm * p_error + terms.relative * head.size * row_norm(p)[nodes]
    return part.cotangent_error(nodes, e, (p @ head.weight).abs()[nodes], None, arriving)


def _encoder(terms: ExactTerms, scope: Scope, q: Tensor, out: RowTerms) -> None:
    """Collect the encoder's parameters: its input is exact at every row."""
    lin, batch = terms.encoder, scope.nodes[: scope.size]
    if lin is None:
        return
    x, v = terms.problem.graph.x, terms.exact.auxiliary[0]
    rounded = (terms.relative * lin.rounding(row_norm(x))[batch, None]).expand(-1, 1 + v.shape[1])
    t = v * (terms.encoder_part.inner > 0) if terms.encoder_part.relu else v
    t_error = terms.encoder_part.cotangent_error(batch, rounded, v.abs()[batch], None, q[: scope.size])
    t_error = t_error + terms.relative * row_norm(v)[batch]
    out.linear(lin, t[batch], t_error, x[batch], torch.zeros_like(t_error))


def _collect(scope: Scope, layer: LayerTerms, errors: _LayerErrors, q: Tensor, t: Tensor, out: RowTerms) -> None:
    """Collect one layer's parameters, given the errors of V^l and of the convolution's output cotangent."""
    size = scope.size
    nodes, t_batch = scope.nodes[:size], t[:size]
    out.linear(layer.lin, layer.t[nodes], t_batch, layer.aggregate[nodes], errors.aggregate[:size])
    if layer.root is not None:
        out.linear(layer.root, layer.t[nodes], t_batch, layer.read[nodes], errors.read[:size, 0])
    _collect_before(scope, layer, errors, t, out)
    factors, rounded = layer.after.factors(), layer.relative * row_norm(layer.v)[nodes]
    found = layer.after.factor_errors(nodes, errors.z[:size])
    for key, name in layer.norm_names(layer.after).items():
        out.elementwise(name, layer.v[nodes], q[:size] + rounded, factors[key][nodes], found[key])


def _collect_before(scope: Scope, layer: LayerTerms, errors: _LayerErrors, t: Tensor, out: RowTerms) -> None:
    """Collect a LayerNorm before the convolution: batch rows differentiate it at every source they read.

    Row i's gradient is ``(W^T t_i) * sum_j A_ij s_j (+ (R^T t_i) * s_i)`` with ``s`` from `Activation.factors`.
    """
    size, operator = scope.size, scope.operator(layer.kind)
    nodes = scope.nodes[:size]
    found = layer.before.factor_errors(scope.nodes, errors.inputs)
    for key, name in layer.norm_names(layer.before).items():
        s, aggregate = layer.before.factors()[key], layer.factor_aggregates[key]
        s_error = operator.forward_error(found[key][:, None])[:, 0] + row_norm(operator.forward_missing(s))
        out.elementwise(name, layer.y[nodes], layer.lin.norm * t[:size], aggregate[nodes], s_error[:size])
        if layer.root is not None and layer.y_root is not None:
            own = found[key][:size]
            out.elementwise(name, layer.y_root[nodes], layer.root.norm * t[:size], s[nodes], own)
