"""Counterexamples: the smallest graph, batches and parameters on which a claim is refuted, kept as files that replay.

Example:
    >>> import lmc_verify as lv
    >>> from lmc_verify.counterexamples import find_counterexample
    >>> search = find_counterexample("theorem-1/unbiased", lv.GAS())
    >>> search.counterexample.instance.graph.num_nodes
    2
"""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.counterexamples.drawing import draw_counterexample, save_drawing
    from lmc_verify.counterexamples.example import Counterexample, load_counterexample, save_counterexample
    from lmc_verify.counterexamples.instance import Instance, ModelPlan
    from lmc_verify.counterexamples.search import Search, SearchSpace, check_search, find_counterexample
    from lmc_verify.counterexamples.storage import FORMAT_VERSION
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "FORMAT_VERSION",
    "Counterexample",
    "Instance",
    "ModelPlan",
    "Search",
    "SearchSpace",
    "check_search",
    "draw_counterexample",
    "find_counterexample",
    "load_counterexample",
    "save_counterexample",
    "save_drawing",
]
