"""What an estimator is worth, as numbers: errors of its gradients, draws to a decision, steps and seconds to a target.

Smaller is better in all of them. Everything but the seconds follows from fixed seeds: on one machine the numbers
repeat, and a change of theirs is a change of the code.
"""

from __future__ import annotations

import functools
import math

import lmc_verify as lv
from lmc_verify.objective.problem import gradient_norm, gradient_sum
from lmc_verify.seeds import generator

from .common import (
    DEVICES,
    PER_BATCH,
    SEED,
    Benchmark,
    Reached,
    load_graph,
    make_estimator,
    make_partition,
    make_problem,
    metis,
    require_dataset,
    train_to_target,
)

FLOAT64 = ("float64",)  # the reference precision: what is measured is the estimator, not rounding
SMALL = ("digits", "cora")

WARM_UP_STEPS, WARM_UP_STEP_SIZE = 60, 0.02
ERROR_BATCHES = 40
BIAS_CLUSTERS = 10

TARGETS = {"digits": 0.9, "cora": 0.7, "karate": 0.3}
"""Validation accuracies that full-batch training passes early; fixed, so that steps to them can be compared.

The generated graph is left out: five steps learn it."""


@functools.cache
def warmed_up(dataset: str, device: str, dtype: str, estimator: str, parts: int | None = None) -> lv.TrainingRun:
    """Return a run after a fixed number of steps, so that histories and parameters are what training makes of them."""
    partition = make_partition(dataset) if parts is None else metis(dataset, parts)
    run = lv.TrainingRun(
        make_problem(dataset, device, dtype),
        make_estimator(estimator),
        lv.Clusters(partition, min(PER_BATCH, partition.num_parts)),
        step_size=WARM_UP_STEP_SIZE,
        generator=generator(SEED, "warm-up"),
    )
    for _ in range(WARM_UP_STEPS):
        run.step()
    return run


class GradientError(Benchmark):
    params = (("lmc", "gas"), ("digits", "dcsbm-20k", "cora"), DEVICES, FLOAT64)
    param_names = ("estimator", *Benchmark.param_names)
    unit = "gradient norms"

    def setup(self, estimator: str, *place: str) -> None:
        super().setup(*place)
        self.place = place

    def track_relative_error(self, estimator: str, *_: str) -> float:
        """Mean distance of an estimate from the exact gradient, over its norm; the variance of batches is in it."""
        run = warmed_up(*self.place, estimator)
        exact = lv.exact_pass(run.problem).gradient
        batches = [run.draw() for _ in range(ERROR_BATCHES)]
        errors = [
            gradient_norm(gradient_sum(run.estimator.estimate(run.problem, run.state, batch).gradient, exact, -1.0))
            for batch in batches
        ]
        return math.fsum(errors) / len(errors) / gradient_norm(exact)

    def track_relative_bias(self, estimator: str, *_: str) -> float:
        """Distance of the mean over all batches, 2 of 10 clusters, from the exact gradient, over its norm."""
        run = warmed_up(*self.place, estimator, min(BIAS_CLUSTERS, load_graph(self.place[0]).num_nodes // 4))
        batches = list(run.design.enumerate())
        bias, exact = lv.conditional_bias(run.problem, run.estimator, run.state, batches)
        return gradient_norm(bias) / gradient_norm(exact.gradient)


DECISIONS = {
    "refute gas": ("gas", {}, lv.Outcome.REFUTED),
    "support lmc": ("lmc", {"beta": 0.001, "score": "linear"}, lv.Outcome.SUPPORTED),
}
"""LMC with a small beta, as one of zero has a difference from Backward SGD that is proven to be rounding at once."""


class DrawsToDecision:
    params = (tuple(DECISIONS), (*SMALL, "dcsbm-20k"))
    param_names = ("decision", "dataset")
    unit = "draws"
    timeout = 1200

    def setup(self, decision: str, dataset: str) -> None:
        require_dataset(dataset)
        graph = load_graph(dataset).double()
        model = lv.GCN(graph.num_features, 16, graph.num_outputs, num_layers=3, seed=SEED).double()
        self.problem = lv.Problem(graph, model)
        partition = make_partition(dataset)
        self.design = lv.Clusters(partition, max(1, partition.num_parts // 10))

    def track_draws(self, decision: str, dataset: str) -> int:
        """Batches that the anytime-valid test of `theorem-1/unbiased-sampled` looks at, at an error level of 1e-6."""
        name, settings, expected = DECISIONS[decision]
        verdict = lv.check_claim(
            "theorem-1/unbiased-sampled",
            self.problem,
            self.design,
            lv.make_estimator(name, **settings),
            seed=SEED,
            sampling=lv.SamplingSettings(alpha=1e-6, delta=0.1, draws=20_000),
        )
        if verdict.outcome is not expected or verdict.draws is None:
            raise RuntimeError(f"{decision}: the verdict is {verdict.outcome.value}, {verdict.summary}")
        return verdict.draws


class TimeToTarget(Benchmark):
    params = (("full-batch", "lmc", "gas"), SMALL, DEVICES, ("float32",))
    param_names = ("estimator", *Benchmark.param_names)

    def setup(self, estimator: str, *place: str) -> None:
        super().setup(*place)
        self.place = place

    def track_steps(self, estimator: str, *_: str) -> int:
        """Steps of plain stochastic gradient descent to the data set's target accuracy on the validation nodes."""
        return self.reached(estimator).steps

    def track_seconds(self, estimator: str, *_: str) -> float:
        """Seconds of training to the target; evaluations on the whole graph are not timed."""
        return self.reached(estimator).seconds

    def reached(self, estimator: str) -> Reached:
        """Train to the target."""
        dataset = self.place[0]
        partition = make_partition(dataset)
        return train_to_target(
            self.problem,
            make_estimator(estimator),
            lv.Clusters(partition, max(1, partition.num_parts // 4)),
            TARGETS[dataset],
            step_size=0.1,
            most_steps=1000,
        )


TimeToTarget.track_steps.unit = "steps"  # type: ignore[attr-defined]  # asv reads the unit off the function
TimeToTarget.track_seconds.unit = "seconds"  # type: ignore[attr-defined]  # asv reads the unit off the function
