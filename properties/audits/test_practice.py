"""Claim: what loops do in practice is judged for what it is: clipping, hooks, SAM, class weights, autocast, tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from common.crossed import crossed, slow_but
from common.helpers import seeded
from common.step_cases import few_hops
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import SAGEConv, SGConv
from torch_geometric.utils import k_hop_subgraph

import lmc_verify as lv
from lmc_verify import Audit, ContractError
from lmc_verify.audits.causes.enactments import _beyond_chance
from lmc_verify.seeds import torch_generator


class Net(nn.Module):
    def __init__(self, data: Data) -> None:
        super().__init__()
        classes = int(data.y.max()) + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1, self.conv2 = SAGEConv(data.num_features, 8), SAGEConv(8, classes)

    def forward(self, feats: Tensor, ei: Tensor) -> Tensor:
        return self.conv2(self.conv1(feats, ei).relu(), ei)


def labelled() -> Data:
    data = lv.load_data("karate")
    data.train_mask = torch.arange(data.num_nodes) % 3 > 0
    return data


def khop(data: Data, hops: int = 2) -> list[Data]:
    """Return clusters of unequal sizes, each with its neighbours so many hops away."""
    out = []
    for cluster in torch.arange(data.num_nodes).split([5, 8, data.num_nodes - 13]):
        nodes, _, rows, _ = k_hop_subgraph(cluster, hops, data.edge_index, num_nodes=data.num_nodes)
        batch: Any = data.subgraph(nodes)
        batch.n_id, batch.mapping = nodes, rows
        out.append(batch)
    return out


def loss_of(model: nn.Module, batch: Any, data: Data) -> Tensor:
    """Return the unbiased loss of a batch."""
    out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
    return F.cross_entropy(out[mask], batch.y[batch.mapping][mask], reduction="sum") * 3 / data.train_mask.sum()


def judge(step: Callable[..., Any], **options: Any) -> Audit:
    data = labelled()
    return lv.audit(Net(data), data, options.pop("batches", khop(data)), step, **options)


def explained(audit: Audit) -> list[str]:
    assert audit.explanation.complete
    return sorted(cause.id for cause in audit.causes if cause.explains)


def mean_gradient(batches: list[Data], gradient: Callable[[nn.Module, Any], list[Tensor]]) -> Tensor:
    """Return the mean of gradients over batches, flat, in plain code."""
    model = Net(labelled()).double()
    found = [torch.cat([part.flatten() for part in gradient(model, batch)]) for batch in batches]
    return torch.stack(found).mean(0)


def double(data: Data) -> Data:
    out: Data = data.clone()
    out.x = data.x.double()
    return out


# Gradients that are changed behind backward().


@pytest.mark.parametrize(
    ("optimise", "clip"),
    crossed([False, True], [lambda p: clip_grad_norm_(p, 0.1), lambda p: clip_grad_value_(p, 0.01)]),
)
def test_clipping_is_named(clip: Callable[..., Any], optimise: bool) -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        optimizer.zero_grad()
        loss_of(model, batch, data).backward()
        clip(model.parameters())
        if optimise:
            optimizer.step()

    audit = judge(step)
    assert (audit.outcome.value, explained(audit)) == ("REFUTED", ["changed-gradients"])


def test_the_bias_of_clipping_is_that_of_plain_code() -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        loss_of(model, batch, data).backward()
        clip_grad_norm_(model.parameters(), 0.1)

    data = double(labelled())

    def clipped(model: nn.Module, batch: Any) -> list[Tensor]:
        parts = list(torch.autograd.grad(loss_of(model, batch, data), list(model.parameters())))
        size = torch.stack([part.norm() for part in parts]).norm()
        return [part * (0.1 / (size + 1e-6)).clamp(max=1.0) for part in parts]

    def exact(model: nn.Module, whole: Any) -> list[Tensor]:
        mask = whole.train_mask
        loss = F.cross_entropy(model(whole.x, whole.edge_index)[mask], whole.y[mask])
        return list(torch.autograd.grad(loss, list(model.parameters())))

    right = mean_gradient([data], exact)
    bias = mean_gradient([double(batch) for batch in khop(labelled())], clipped) - right
    assert judge(step).bias == pytest.approx(float(bias.norm() / right.norm()), rel=1e-10)


def test_clipping_and_a_batch_mean_are_told_apart() -> None:
    def step(model: nn.Module, batch: Any) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        F.cross_entropy(out[mask], batch.y[batch.mapping][mask]).backward()
        clip_grad_norm_(model.parameters(), 0.1)

    assert explained(judge(step)) == ["batch-mean", "changed-gradients"]


def test_clipping_that_no_batch_reaches_is_no_bias() -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        loss_of(model, batch, data).backward()
        clip_grad_norm_(model.parameters(), 1e3)

    assert judge(step).outcome.value == "EXACT"


@pytest.mark.slow
def test_noise_on_gradients_is_no_bias_and_named_as_randomness() -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        loss_of(model, batch, data).backward()
        for value in model.parameters():
            assert value.grad is not None
            value.grad += 0.001 * torch.randn_like(value)

    audit = judge(step)
    assert audit.outcome.value == "SUPPORTED"
    assert any("draws for itself (changed-gradients)" in note for note in audit.notes)


# Hooks of the caller's model, and gradients at other parameters.


def unbiased(model: nn.Module, batch: Any, data: Data) -> None:
    loss_of(model, batch, data).backward()


def clamped(grad: Tensor) -> Tensor:
    return grad.clamp(-0.01, 0.01)


def clamp_in_place(value: Tensor) -> None:
    assert value.grad is not None
    value.grad.clamp_(-0.01, 0.01)


@pytest.mark.parametrize("where", slow_but({"parameter"}, ["parameter", "accumulation"]))
def test_clipping_in_a_hook_is_named_and_has_the_bias_of_plain_code(where: str) -> None:
    data = labelled()
    model = Net(data)
    for value in model.parameters():
        if where == "parameter":
            value.register_hook(clamped)
        else:
            value.register_post_accumulate_grad_hook(clamp_in_place)

    def plain(model: nn.Module, batch: Any, data: Data) -> None:
        unbiased(model, batch, data)
        clip_grad_value_(model.parameters(), 0.01)

    audit = lv.audit(model, data, khop(data), unbiased)
    assert (audit.outcome.value, explained(audit)) == ("REFUTED", ["changed-gradients"])
    assert audit.bias == pytest.approx(judge(plain, causes=False).bias, rel=1e-12)


def test_a_hook_that_does_nothing_is_no_bias() -> None:
    data, seen = labelled(), list[Tensor]()
    model = Net(data)
    for value in model.parameters():
        value.register_hook(lambda grad: seen.append(grad.detach()))
    assert lv.audit(model, data, khop(data), unbiased).outcome.value == "EXACT"
    assert seen


def test_a_backward_hook_of_a_module_is_no_part_of_the_objective() -> None:
    data = labelled()
    model = Net(data)
    model.conv2.lin_l.register_full_backward_hook(lambda _, grads, __: tuple(clamped(grad) for grad in grads))
    audit = lv.audit(model, data, khop(data), unbiased)
    assert (audit.outcome.value, explained(audit)) == ("REFUTED", ["changed-gradients"])
    assert audit.gradient_norm == judge(unbiased).gradient_norm


def ascend(model: nn.Module, radius: float) -> list[Tensor]:
    """Move the parameters along their gradient, and return them as they were."""
    values = list(model.parameters())
    old = [value.detach().clone() for value in values]
    size = torch.stack([value.grad.norm() for value in values if value.grad is not None]).norm()
    with torch.no_grad():
        for value in values:
            assert value.grad is not None
            value += radius * value.grad / size
            value.grad = None
    return old


def sharpness_aware(loss: Callable[[nn.Module, Any, Data], Tensor]) -> Callable[..., None]:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        loss(model, batch, data).backward()
        old = ascend(model, 0.1)
        loss(model, batch, data).backward()
        with torch.no_grad():
            for value, given in zip(model.parameters(), old, strict=True):
                value.copy_(given)

    return step


def mean_of(model: nn.Module, batch: Any, data: Data) -> Tensor:
    out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
    return F.cross_entropy(out[mask], batch.y[batch.mapping][mask])


def quasi_newton(model: nn.Module, batch: Any, data: Data) -> None:
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch, data)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "causes"),
    [
        (sharpness_aware(loss_of), ["moved-parameters"]),
        (sharpness_aware(mean_of), ["batch-mean", "moved-parameters"]),
        (quasi_newton, ["moved-parameters"]),
    ],
    ids=["SAM", "SAM on batch means", "L-BFGS"],
)
def test_gradients_at_other_parameters_are_named(step: Callable[..., None], causes: list[str]) -> None:
    audit = judge(step)
    assert (audit.outcome.value, explained(audit)) == ("REFUTED", causes)
    assert any("a backward pass after it has moved the parameters" in note for note in audit.notes)


def test_an_optimiser_that_steps_once_moves_nothing_that_is_judged() -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        optimizer.zero_grad()
        unbiased(model, batch, data)
        optimizer.step()

    audit = judge(step)
    assert audit.outcome.value == "EXACT"
    assert not any("moved the parameters" in note for note in audit.notes)


class Checkpointed(Net):
    def __init__(self, data: Data, reentrant: bool) -> None:
        super().__init__(data)
        self.reentrant = reentrant

    def forward(self, feats: Tensor, ei: Tensor) -> Tensor:
        hidden = self.conv1(feats, ei)
        hidden = checkpoint(
            lambda value: F.dropout(value.relu(), 0.5, self.training), hidden, use_reentrant=self.reentrant
        )
        return self.conv2(hidden, ei)


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [False, True])
def test_dropout_in_a_checkpoint_is_dropout(reentrant: bool) -> None:
    data = labelled()
    audit = lv.audit(Checkpointed(data, reentrant), data, khop(data), unbiased, draws=128, causes=False)
    assert any("draws for itself (dropout)" in note for note in audit.notes)
    assert any("without that: EXACT" in note for note in audit.notes)
    assert lv.audit(Checkpointed(data, reentrant).eval(), data, khop(data), unbiased).outcome.value == "EXACT"


# Which nodes come, and which are in the loss.


def around(data: Data, seeds: Tensor) -> Data:
    nodes, _, rows, _ = k_hop_subgraph(seeds, 2, data.edge_index, num_nodes=data.num_nodes)
    batch: Any = data.subgraph(nodes)
    batch.n_id, batch.mapping = nodes, rows
    return batch


def test_nodes_of_a_dropped_last_batch_are_named() -> None:
    data = labelled()
    seeds = data.train_mask.nonzero().flatten()
    batches = [around(data, part) for part in seeds.split(9) if len(part) == 9]
    assert len(seeds) % 9
    audit = judge(lambda model, batch: mean_of(model, batch, data).backward(), batches=batches)
    assert explained(audit) == ["unequal-inclusion"], str(audit)
    covered = data.clone()
    covered.train_mask = torch.zeros_like(data.train_mask)
    covered.train_mask[seeds[: len(seeds) // 9 * 9]] = True

    def gradient(model: nn.Module, whole: Any) -> list[Tensor]:
        mask = whole.train_mask
        loss = F.cross_entropy(model(whole.x, whole.edge_index)[mask], whole.y[mask])
        return list(torch.autograd.grad(loss, list(model.parameters())))

    right, found = mean_gradient([double(data)], gradient), mean_gradient([double(covered)], gradient)
    assert audit.bias == pytest.approx(float((found - right).norm() / right.norm()), rel=1e-9)


@pytest.mark.slow
def test_a_sampler_that_prefers_some_nodes_is_named() -> None:
    data = labelled()
    seeds = data.train_mask.nonzero().flatten()
    shares = torch.where(data.y[seeds] == 0, 5.0, 1.0)

    def loader() -> Any:
        for _ in range(4):
            chosen = seeds[torch.multinomial(shares, 6, replacement=True)]
            batch: Any = around(data, chosen.unique())
            batch.mapping = torch.searchsorted(batch.n_id, chosen)  # a node may be drawn twice
            yield batch

    audit = judge(lambda model, batch: mean_of(model, batch, data).backward(), batches=loader, draws=128)
    assert audit.outcome.value == "REFUTED"
    assert explained(audit) == ["unequal-inclusion"], str(audit)


def test_a_node_that_a_batch_names_twice_counts_twice() -> None:
    data = labelled()
    seeds, batches = data.train_mask.nonzero().flatten(), []
    for part in seeds.split(6):
        chosen = torch.cat([part, part[:2], part])[:8]
        batch: Any = around(data, chosen.unique())
        batch.mapping = torch.searchsorted(batch.n_id, chosen)
        batches.append(batch)
    audit = judge(lambda model, batch: mean_of(model, batch, data).backward(), batches=batches)
    assert explained(audit)[-1] == "unequal-inclusion", str(audit)


def test_nodes_that_come_alike_often_differ_by_chance_only() -> None:
    counts = torch.bincount(torch.randint(30, (300,), generator=torch_generator(0, "counts")), minlength=30).double()
    assert not _beyond_chance(counts)
    assert not _beyond_chance(torch.full((30,), 10.0))
    assert _beyond_chance(torch.tensor([16.0, 4.0] * 15))


@pytest.mark.slow
def test_a_sampler_without_preference_is_not_blamed() -> None:
    """Cut edges are the cause, though nodes come unequally often by chance."""
    data = labelled()

    def loader() -> Any:
        for part in torch.randperm(data.num_nodes).split(9)[:-1]:
            batch: Any = data.subgraph(part)
            batch.n_id, batch.mapping = part, torch.arange(len(part))
            yield batch

    audit = judge(unbiased, batches=loader, draws=128)
    assert audit.outcome.value == "REFUTED"
    assert "unequal-inclusion" not in {cause.id for cause in audit.causes}, str(audit)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_mask_that_is_forgotten_is_named(reduction: str) -> None:
    data = labelled()
    parts = torch.randperm(34, generator=torch_generator(0, "parts")).split(17)

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out = model(batch.x, batch.edge_index)[batch.mapping]
        loss = F.cross_entropy(out, batch.y[batch.mapping], reduction=reduction)
        (loss if reduction == "mean" else loss * 2 / data.train_mask.sum()).backward()

    audit = judge(step, batches=[around(data, part) for part in parts])
    assert explained(audit) == ["unlabelled-nodes-in-loss"], str(audit)


# A wrong scale beside other causes, and another loss than the one that is compared with.


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True])
def test_a_factor_is_named_beside_cut_edges(drawn: bool) -> None:
    data = labelled()

    def cut(parts: Any) -> list[Data]:
        out = []
        for part in parts:
            batch: Any = data.subgraph(part)
            batch.n_id, batch.mapping = part, torch.arange(len(part))
            out.append(batch)
        return out

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        (loss_of(model, batch, data) * 4).backward()

    batches: Any = cut(torch.arange(34).split([10, 12, 12]))
    if drawn:
        batches = lambda: cut(torch.randperm(34).split([10, 12, 12]))  # noqa: E731
    audit = judge(step, batches=batches, draws=128)
    factor = next(cause for cause in audit.causes if cause.id == "factor")
    if drawn:  # edges that are cut may be within the noise of four times the gradient
        assert set(explained(audit)) - {"missing-neighbours"} == {"factor"}, str(audit)
    else:
        assert explained(audit) == ["factor", "missing-neighbours"], str(audit)
        assert "the mean is 4 times the gradient" in factor.words


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_another_loss_than_the_usual_objective_is_said(given: bool) -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        labels = batch.y[batch.mapping][mask]
        loss = F.cross_entropy(out[mask], labels, reduction="none")
        ((1 - (-loss).exp()).square() * loss * 3 / data.train_mask.sum()).sum().backward()  # focal loss

    def objective(model: nn.Module, data: Any) -> Tensor:
        out = model(data.x, data.edge_index)[data.train_mask]
        return F.cross_entropy(out, data.y[data.train_mask])

    audit = judge(step, objective=objective if given else None)
    assert audit.outcome.value == "REFUTED"
    assert any("no objective was given" in note for note in audit.notes) != given
    assert not any("probabilities" in note for note in audit.notes)


PENALTIES: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "squares": (
        lambda model: 0.01 * sum(value.square().sum() for value in model.parameters()),
        "0.02 times the parameters (all)",
    ),
    "squares of one layer": (
        lambda model: 0.01 * model.conv1.lin_l.weight.square().sum(),
        "0.02 times the parameters (conv1.lin_l.weight)",
    ),
    "sizes of weights": (
        lambda model: 0.01 * sum(value.abs().sum() for name, value in model.named_parameters() if "bias" not in name),
        "0.01 times the signs of the parameters (conv1.lin_l.weight, conv1.lin_r.weight, conv2.lin_l.weight, "
        "conv2.lin_r.weight)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_on_parameters_is_named_with_its_size(name: str) -> None:
    penalty, words = PENALTIES[name]

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        (loss_of(model, batch, data) + penalty(model)).backward()

    def objective(model: nn.Module, data: Any) -> Any:
        out = model(data.x, data.edge_index)[data.train_mask]
        return F.cross_entropy(out, data.y[data.train_mask]) + penalty(model)

    audit = judge(step)
    assert (audit.outcome.value, explained(audit)) == ("REFUTED", ["penalty"])
    assert f"the mean has {words} beside the gradient" in audit.causes[0].words
    assert judge(step, objective=objective).outcome.value == "EXACT"
    # Beside another cause, which is not blamed on the penalty.
    audit = judge(step, batches=khop(labelled(), 1))
    assert explained(audit) == ["missing-neighbours", "penalty"]
    assert any(words in cause.words for cause in audit.causes)


@pytest.mark.parametrize("reduction", slow_but({"sum"}, ["sum", "mean"]))
def test_class_weights_are_named_with_their_sizes(reduction: str) -> None:
    data = labelled()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    own = weight[data.y[data.train_mask]].sum()

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        loss = F.cross_entropy(out[mask], batch.y[batch.mapping][mask], weight=weight.to(out), reduction=reduction)
        (loss if reduction == "mean" else loss * 3 / data.train_mask.sum()).backward()

    def objective(model: nn.Module, data: Any) -> Any:
        out, mask = model(data.x, data.edge_index), data.train_mask
        loss = F.cross_entropy(out[mask], data.y[mask], weight=weight.to(out), reduction="sum")
        return loss / mask.sum()

    audit = judge(step)
    assert audit.outcome.value == "REFUTED"
    assert explained(audit) == (["class-weights"] if reduction == "sum" else ["batch-mean", "class-weights"])
    words = next(cause.words for cause in audit.causes if cause.id == "class-weights")
    scale = 1.0 if reduction == "sum" else data.train_mask.sum() / own
    wanted = ", ".join(f"class {label} counts {scale * value:.4g} times" for label, value in enumerate(weight))
    assert wanted in words
    if reduction == "sum":
        assert judge(step, objective=objective).outcome.value == "EXACT"


@pytest.mark.parametrize("name", slow_but({"class-weights"}, ["class-weights", "factor", "penalty"]))
def test_two_changes_of_the_objective_are_told_apart(name: str) -> None:
    """A penalty on squares beside weights of classes, a factor or another penalty: their biases are not orthogonal."""
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0] if name == "class-weights" else [1.0] * 4, dtype=torch.float64)
    times, sizes = 3.0 if name == "factor" else 1.0, 0.02 if name == "penalty" else 0.0
    listed = ", ".join(f"class {label} counts {value:.4g} times" for label, value in enumerate(weight))
    words = {
        "class-weights": listed,
        "factor": "without the other causes the mean is 3 times the gradient",
        "penalty": "0.02 times the signs of the parameters (all)",
    }

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        loss = F.cross_entropy(out[mask], batch.y[batch.mapping][mask], weight=weight.to(out), reduction="sum")
        penalty = sum(0.01 * value.square().sum() + sizes * value.abs().sum() for value in model.parameters())
        (times * loss * 3 / data.train_mask.sum() + penalty).backward()

    audit = judge(step)
    assert (audit.outcome.value, explained(audit)) == ("REFUTED", sorted(["penalty", name])), str(audit)
    assert audit.explanation.complete
    told = " ".join(cause.words for cause in audit.causes)
    assert "0.02 times the parameters (all)" in told
    assert words[name] in told


@pytest.mark.slow
def test_weights_of_single_nodes_are_no_weights_of_classes() -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        losses = F.cross_entropy(out[mask], batch.y[batch.mapping][mask], reduction="none")
        ((losses * (1.0 + batch.n_id[batch.mapping][mask])).sum() * 3 / data.train_mask.sum()).backward()

    audit = judge(step)
    assert audit.outcome.value == "REFUTED"
    assert "class-weights" not in {cause.id for cause in audit.causes}


@pytest.mark.slow
@pytest.mark.parametrize("coefficient", [0.0, 0.05])
def test_a_penalty_is_named_from_draws_where_it_is_seen(coefficient: float) -> None:
    data = labelled()

    def batches() -> list[Data]:
        part = torch.randperm(34)[:12]
        nodes, _, rows, _ = k_hop_subgraph(part, 2, data.edge_index, num_nodes=34)
        batch: Any = data.subgraph(nodes)
        batch.n_id, batch.mapping = nodes, rows
        return [batch]

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        loss = F.cross_entropy(out[mask], batch.y[batch.mapping][mask], reduction="sum")
        penalty = coefficient * sum(value.square().sum() for value in model.parameters())
        ((1 + 3 * (coefficient == 0)) * loss * 34 / 12 / data.train_mask.sum() + penalty).backward()

    audit = judge(step, batches=batches, draws=256)
    assert audit.outcome.value == "REFUTED"
    assert explained(audit) == (["penalty"] if coefficient else ["factor"])


@pytest.mark.slow
def test_a_single_number_is_no_sign_of_a_penalty() -> None:
    """Any bias of a single number is a multiple of it."""

    class Scaled(Net):
        def __init__(self, data: Data) -> None:
            super().__init__(data)
            self.scale = nn.Parameter(torch.tensor(0.7))

        def forward(self, feats: Tensor, ei: Tensor, times: float = 1.0) -> Tensor:
            scale = times * self.scale - (times - 1.0) * self.scale.detach()
            return scale * super().forward(feats, ei)

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index, 3.0)[batch.mapping], batch.train_mask[batch.mapping]
        loss = F.cross_entropy(out[mask], batch.y[batch.mapping][mask], reduction="sum")
        (loss * 3 / data.train_mask.sum()).backward()

    data = labelled()
    audit = lv.audit(Scaled(data), data, khop(data), step)
    assert [item.name for item in audit.parameters if item.wrong] == ["scale"]
    assert (audit.outcome.value, audit.causes) == ("REFUTED", ()), str(audit)


def test_outputs_that_are_probabilities_are_said() -> None:
    class Soft(Net):
        def forward(self, feats: Tensor, ei: Tensor) -> Tensor:
            return super().forward(feats, ei).softmax(1)

    data = labelled()

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        loss = F.nll_loss(out[mask].log(), batch.y[batch.mapping][mask], reduction="sum")
        (loss * 3 / data.train_mask.sum()).backward()

    audit = lv.audit(Soft(data), data, khop(data), step)
    assert any("if they are probabilities, they were taken for logits" in note for note in audit.notes)
    assert not audit.explanation.complete


# Means over classes with weights, and over targets that are not ignored.

WEIGHT = torch.tensor([1.0, 3.0, 0.2, 1.0, 2.0, 0.5], dtype=torch.float64)


def class_weights(data: Data) -> Tensor:
    return WEIGHT[: int(data.y.max()) + 1]


CRITERIA: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "function": lambda out, y, weight: F.cross_entropy(out, y, weight=weight),
    "module": lambda out, y, weight: nn.CrossEntropyLoss(weight)(out, y),
    "by position": lambda out, y, weight: F.nll_loss(out.log_softmax(1), y, weight),
}


@pytest.mark.parametrize("criterion", slow_but({"function"}, CRITERIA))
def test_a_mean_over_weighted_classes_is_a_batch_mean(criterion: str) -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        CRITERIA[criterion](out[mask], batch.y[batch.mapping][mask], class_weights(data)).backward()

    def objective(model: nn.Module, data: Any) -> Tensor:
        out, mask = model(data.x, data.edge_index), data.train_mask
        return F.cross_entropy(out[mask], data.y[mask], weight=class_weights(data))

    audit = judge(step, objective=objective)
    assert (audit.outcome.value, explained(audit)) == ("REFUTED", ["batch-mean"])


@pytest.mark.parametrize(("reduction", "outcome"), [("sum", "EXACT"), ("mean", "REFUTED")])
@pytest.mark.parametrize("ignored", [-100, 7])
def test_targets_that_are_ignored_do_not_count(reduction: str, outcome: str, ignored: int) -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        own = torch.isin(torch.arange(batch.num_nodes), batch.mapping) & batch.train_mask
        target = torch.where(own, batch.y, ignored)
        out = model(batch.x, batch.edge_index)
        loss = F.cross_entropy(out, target, ignore_index=ignored, reduction=reduction)
        (loss * 3 / data.train_mask.sum() if reduction == "sum" else loss).backward()

    batches = khop(labelled())
    for batch in batches:
        batch.n_id = None  # rows are found by their features; no count but the loss's own one gives the divisor
    audit = judge(step, batches=batches)
    assert audit.outcome.value == outcome
    assert outcome == "EXACT" or explained(audit) == ["batch-mean"]


# Autocast, which does nothing to double precision.


def test_autocast_is_said_where_it_has_no_effect() -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch, data)
        loss.backward()

    double = judge(step)
    assert double.outcome.value == "EXACT"
    assert any("autocast (torch.bfloat16)" in note and "dtype=torch.float32" in note for note in double.notes)
    single = judge(step, dtype=torch.float32)
    assert single.outcome.value != "EXACT"
    assert single.bias > 1e-4
    assert not any("leaves double precision" in note for note in single.notes)


@pytest.mark.parametrize("enabled", [None, False])
def test_without_autocast_nothing_is_said(enabled: bool | None) -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        if enabled is None:
            loss_of(model, batch, data).backward()
            return
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss_of(model, batch, data).backward()

    assert not any("autocast" in note for note in judge(step).notes)


# Batches that do not say which nodes they hold.


@pytest.mark.parametrize("hops", [0, 2])
def test_it_is_said_where_nodes_are_not_known(hops: int) -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        x, edge_index, y, mask = batch
        out = model(x, edge_index)
        (F.cross_entropy(out[mask], y[mask], reduction="sum") * 3 / data.train_mask.sum()).backward()

    batches, data = [], labelled()
    for batch in khop(data, hops):
        own = torch.isin(torch.arange(batch.num_nodes), batch.mapping) & batch.train_mask
        batches.append((batch.x, batch.edge_index, torch.where(own, batch.y, batch.y.flip(0)), own))
    audit = judge(step, batches=batches)
    said = any("which nodes a batch holds is not known (tuple" in note for note in audit.notes)
    assert said == (audit.outcome.value == "REFUTED") == (hops == 0)


@pytest.mark.slow
def test_it_is_said_where_a_node_has_several_rows() -> None:
    """One subgraph for each root, next to each other, as ShaDow has them."""

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out = model(batch.x, batch.edge_index)[batch.mapping]
        (F.cross_entropy(out, batch.y[batch.mapping], reduction="sum") * 3 / data.train_mask.sum()).backward()

    data, listed = labelled(), []
    for roots in data.train_mask.nonzero().flatten().chunk(3):
        nodes = torch.cat([torch.tensor([0, 1, 2])[torch.tensor([0, 1, 2]) != root] for root in roots])
        batch: Any = Data(x=data.x[torch.cat([roots, nodes])], y=data.y[torch.cat([roots, nodes])])
        batch.edge_index, batch.n_id = torch.arange(len(batch.x)).repeat(2, 1), torch.cat([roots, nodes])
        batch.mapping = torch.arange(len(roots))
        listed.append(batch)
    audit = judge(step, batches=listed)
    assert audit.outcome is lv.Outcome.REFUTED
    assert not audit.explanation.complete
    assert any("several rows for one node (Data with" in note for note in audit.notes)


@pytest.mark.slow
def test_it_is_said_where_the_data_are_of_another_kind() -> None:
    data: Any = HeteroData()
    data["node"].x, data["node"].y = labelled().x, labelled().y

    def objective(model: nn.Module, data: Any) -> Tensor:
        return F.cross_entropy(model(data["node"].x), data["node"].y)

    def step(model: nn.Module, batch: Tensor, data: Any) -> None:
        out = model(data["node"].x[batch])
        ((out - F.one_hot(data["node"].y[batch], out.shape[1])) ** 2).sum().backward()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(data["node"].x.shape[1], int(data["node"].y.max()) + 1)
    listed = list(torch.arange(len(data["node"].x)).chunk(3))
    audit = lv.audit(model, data, listed, step, objective=objective)
    assert audit.outcome is lv.Outcome.REFUTED
    assert not audit.explanation.complete
    assert any("Data only, and the data are HeteroData" in note for note in audit.notes)


@pytest.mark.slow
def test_it_is_not_said_where_they_are_known() -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> None:
        (loss_of(model, batch, data) + sum(0.01 * value.sum() for value in model.parameters())).backward()

    audit = judge(step)
    assert not audit.explanation.complete
    assert not any("which nodes" in note for note in audit.notes)


# Gradients that are returned.


def test_gradients_may_be_returned_by_parameter() -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> dict[Any, Tensor]:
        parameters = list(model.parameters())
        found = torch.autograd.grad(loss_of(model, batch, data), parameters)
        return dict(zip(reversed(parameters), reversed(found), strict=True))

    assert judge(step).outcome.value == "EXACT"


@pytest.mark.parametrize("kind", ["list", "tuple"])
def test_too_few_gradients_are_named(kind: str) -> None:
    def step(model: nn.Module, batch: Any, data: Data) -> Any:
        found = torch.autograd.grad(loss_of(model, batch, data), list(model.parameters()))[1:]
        return list(found) if kind == "list" else found

    with pytest.raises(
        ContractError, match=rf"for any of 3 batches; it returned a {kind} of 5, which are no gradients"
    ):
        judge(step)


# Memory that starts late.


@pytest.mark.parametrize("calls", slow_but({60}, [20, 40, 60]))
def test_memory_that_starts_between_repetitions_is_found_at_the_end(calls: int) -> None:
    number = 0

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        nonlocal number
        number += 1
        (loss_of(model, batch, data) * (1.5 if number > calls else 1.2)).backward()

    with pytest.raises(ContractError, match=r"first batch gives other gradients of conv1.*remembers earlier calls"):
        judge(step)


CHANCES = (0.5, 0.3, 0.2)


def drawn_unequally(data: Data) -> list[tuple[Data, float]]:
    return list(zip(khop(data), CHANCES, strict=True))


def test_batches_drawn_unequally_and_not_weighted_are_named() -> None:
    def unweighted(model: nn.Module, batch: Any, data: Data) -> None:
        loss_of(model, batch, data).backward()

    audit = judge(unweighted, batches=drawn_unequally(labelled()))
    assert audit.outcome is lv.Outcome.REFUTED
    assert [cause.id for cause in audit.causes if cause.explains] == ["unequal-probabilities"]
    assert audit.explanation.complete


@pytest.mark.parametrize(
    ("power", "words"), [(-2, "are divided by the probability twice"), (1, "are multiplied by the probability")]
)
@pytest.mark.parametrize("scale", slow_but({1.0}, [1.0, 7.0]))
def test_wrong_weights_of_batches_drawn_unequally_are_named(power: int, words: str, scale: float) -> None:
    data = labelled()
    batches = drawn_unequally(data)
    # With this, and right powers of the probabilities, the mean would be the gradient.
    size = scale * sum(p**-power for p in CHANCES) / 3

    def weighted(model: nn.Module, batch: Any) -> None:
        chance = next(p for one, p in batches if one.num_nodes == batch.num_nodes)
        (loss_of(model, batch, data) * chance**power * size).backward()

    audit = judge(weighted, batches=batches)
    assert explained(audit) == (["unequal-probabilities"] if scale == 1.0 else ["factor", "unequal-probabilities"])
    assert any(words in cause.words for cause in audit.causes)


@pytest.mark.slow
def test_batches_drawn_unequally_and_averaged_have_both_causes() -> None:
    def mean(model: nn.Module, batch: Any) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        F.cross_entropy(out[mask], batch.y[batch.mapping][mask]).backward()

    audit = judge(mean, batches=drawn_unequally(labelled()))
    assert {cause.id for cause in audit.causes if cause.explains} == {"unequal-probabilities", "batch-mean"}
    assert audit.explanation.complete


def test_batches_drawn_unequally_and_weighted_are_unbiased() -> None:
    data = labelled()
    batches = drawn_unequally(data)

    def weighted(model: nn.Module, batch: Any) -> None:
        chance = next(p for one, p in batches if one.num_nodes == batch.num_nodes)
        (loss_of(model, batch, data) / (3 * chance)).backward()

    assert len({batch.num_nodes for batch, _ in batches}) == 3
    assert judge(weighted, batches=batches).outcome is lv.Outcome.EXACT


def test_probabilities_are_those_of_batches_as_they_are_drawn() -> None:
    def every_row(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index), batch.train_mask
        (F.cross_entropy(out[mask], batch.y[mask], reduction="sum") * 3 / data.train_mask.sum()).backward()

    audit = judge(every_row, batches=drawn_unequally(labelled()))
    assert {cause.id for cause in audit.causes if cause.explains} == {"halo-rows-in-loss", "unequal-probabilities"}
    assert audit.explanation.complete


@pytest.mark.slow
def test_a_known_defect_that_looks_unlike_the_bias_is_not_named() -> None:
    def clamped(model: Any, batch: Any, data: Data) -> None:
        h = model.conv1(batch.x, batch.edge_index).relu()
        h.register_hook(lambda gradient: gradient.clamp(-0.001, 0.001))
        out, mask = model.conv2(h, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        loss = F.cross_entropy(out[mask], batch.y[batch.mapping][mask], reduction="sum")
        (loss * 3 / data.train_mask.sum()).backward()

    audit = judge(clamped)
    assert audit.outcome is lv.Outcome.REFUTED
    assert not [cause.id for cause in audit.causes if cause.explains]
    assert not audit.explanation.complete


def test_weights_of_classes_are_found_where_labels_are_a_column() -> None:
    data = labelled()
    data.y = data.y[:, None]
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        targets = batch.y[batch.mapping][mask].squeeze(1)
        loss = F.cross_entropy(out[mask], targets, weight=weight.to(out), reduction="sum")
        (loss * 3 / data.train_mask.sum()).backward()

    audit = lv.audit(Net(data), data, khop(data), step)
    assert (audit.outcome, explained(audit)) == (lv.Outcome.REFUTED, ["class-weights"])
    assert "class 0 counts 1 times, class 1 counts 2 times, class 2 counts 0.5 times" in audit.causes[0].words


@pytest.mark.slow
def test_weights_of_two_classes_are_not_any_bias_of_a_few_parameters() -> None:
    """Two numbers make up every bias of a model of one feature and two classes."""
    data = labelled()
    data.x, data.y = data.x.sum(1, keepdim=True) + torch.arange(34.0)[:, None] / 34, (data.y > 0).long()

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, mask = model(batch.x, batch.edge_index).roll(1, 0)[batch.mapping], batch.train_mask[batch.mapping]
        loss = F.cross_entropy(out[mask], batch.y[batch.mapping][mask], reduction="sum")
        (loss * 3 / data.train_mask.sum()).backward()

    audit = lv.audit(seeded(lambda: SGConv(1, 2)), data, khop(data), step)
    assert audit.outcome is lv.Outcome.REFUTED
    assert not audit.explanation.complete
    assert "class-weights" not in {cause.id for cause in audit.causes}


@pytest.mark.parametrize("masked", slow_but({True}, [False, True]))
def test_a_mean_over_all_rows_of_a_batch_is_a_node_mean(masked: bool) -> None:
    data, batches = few_hops()

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out, own = model(batch.x, batch.edge_index), batch.train_mask.clone()
        own[~torch.isin(torch.arange(batch.num_nodes), batch.mapping)] = False
        if masked:
            loss = (F.cross_entropy(out, batch.y, reduction="none") * own).mean()
        else:
            loss = F.cross_entropy(out[own], batch.y[own], reduction="sum") / batch.num_nodes
        (loss * sum(item.num_nodes for item in batches) / data.train_mask.sum()).backward()

    audit = lv.audit(Net(data), data, batches, step)
    assert (audit.outcome, explained(audit)) == (lv.Outcome.REFUTED, ["node-mean"])
    assert "rows" in audit.causes[0].words


class Weighted(Net):
    """Edges count by what is given of them: one weight each, or features."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Any = None, edge_attr: Any = None) -> Tensor:
        def sent(h: Tensor) -> Tensor:
            own = h[edge_index[0]]
            own = own if edge_weight is None else own * edge_weight[:, None]
            own = own if edge_attr is None else own * edge_attr.sum(1, keepdim=True)
            return torch.zeros_like(h).index_add(0, edge_index[1], own)

        return self.conv2.lin_l(sent(self.conv1.lin_l(sent(x)).relu()))


@pytest.mark.parametrize(
    ("fields", "mean"), crossed([("edge_weight",), ("edge_attr",), ("edge_weight", "edge_attr")], [False, True])
)
def test_weights_of_edges_that_the_step_does_not_give_to_its_model_are_named(
    fields: tuple[str, ...], mean: bool
) -> None:
    data = labelled()
    data.edge_weight = torch.linspace(0.5, 1.5, data.num_edges)
    data.edge_attr = torch.linspace(-1.0, 1.0, 2 * data.num_edges).reshape(-1, 2).flip(0)

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        given = {key: batch[key] for key in ("edge_weight", "edge_attr") if key not in fields}
        out, mask = model(batch.x, batch.edge_index, **given)[batch.mapping], batch.train_mask[batch.mapping]
        loss = F.cross_entropy(out[mask], batch.y[batch.mapping][mask], reduction="mean" if mean else "sum")
        (loss if mean else loss * 3 / data.train_mask.sum()).backward()

    model = Weighted(data)
    model.conv1.lin_r, model.conv2.lin_r = nn.Identity(), nn.Identity()
    audit = lv.audit(model, data, khop(data), step)
    assert audit.outcome is lv.Outcome.REFUTED
    assert explained(audit) == [*(["batch-mean"] if mean else []), "dropped-edge-weights"]
    words = next(cause.words for cause in audit.causes if cause.id == "dropped-edge-weights")
    assert f"gets the data's {' and '.join(fields)}, the step's does not" in words


@pytest.mark.parametrize("single", [False, True])
def test_rounding_of_what_the_data_bring_is_said(single: bool) -> None:
    """Weights of edges that the data have in single precision, and the step makes for itself in double precision."""
    data = labelled()
    weight = 1.0 / (1.0 + torch.arange(data.num_edges, dtype=torch.float64))
    data.edge_weight, data.edge_attr = weight.float() if single else weight, 1.0 + torch.arange(data.num_edges)[:, None]

    class One(Weighted):
        def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
            return super().forward(x, edge_index, edge_weight)

    def step(model: nn.Module, batch: Any, data: Data) -> None:
        out = model(batch.x, batch.edge_index, 1.0 / batch.edge_attr[:, 0].to(batch.x))
        mask = batch.train_mask[batch.mapping]
        loss = F.cross_entropy(out[batch.mapping][mask], batch.y[batch.mapping][mask], reduction="sum")
        (loss * 3 / data.train_mask.sum()).backward()

    model = One(data)
    model.conv1.lin_r, model.conv2.lin_r = nn.Identity(), nn.Identity()
    audit = lv.audit(model, data, khop(data), step)
    assert audit.outcome is (lv.Outcome.REFUTED if single else lv.Outcome.EXACT)
    assert any("may be rounding" in note for note in audit.notes) is single
    assert not any("no objective was given" in note for note in audit.notes)
