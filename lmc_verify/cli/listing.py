"""Commands that list what is available: ``list``, ``explain`` and ``doctor``."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from lmc_verify import __version__
from lmc_verify.claims import CLAIMS, find_claim
from lmc_verify.cli.options import DOCUMENTATION, DataRootOption, JsonOption, out_console, print_json, shown
from lmc_verify.cli.print_verdicts import print_table
from lmc_verify.controls import CONTROLS
from lmc_verify.datasets import dataset_registry
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import ESTIMATORS, EstimatorInfo
from lmc_verify.estimators.properties import declared_claims
from lmc_verify.estimators.registry import CATALOGUE
from lmc_verify.models import MODELS
from lmc_verify.plugins import Registry
from lmc_verify.provenance import environment
from lmc_verify.runs import load_suite, suite_names

__all__ = ["Kind", "doctor", "explain", "list_names"]


class Kind(str, Enum):
    """What can be listed."""

    estimators = "estimators"
    claims = "claims"
    models = "models"
    datasets = "datasets"
    controls = "controls"
    suites = "suites"


_REGISTRIES: dict[Kind, Callable[[], Registry[Any]]] = {
    Kind.estimators: lambda: ESTIMATORS,
    Kind.models: lambda: MODELS,
    Kind.claims: lambda: CLAIMS,
    Kind.datasets: dataset_registry,
}


def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: JsonOption = False,
) -> None:
    """List estimators, claims, models, data sets, controls or suites; plug-ins that cannot be used come last."""
    columns, rows = _listing(kind)
    broken = _REGISTRIES[kind]().broken() if kind in _REGISTRIES else {}
    rows += [[name, *[""] * (len(columns) - 2), message] for name, message in broken.items()]
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table(columns, rows, out_console())


def _listing(kind: Kind) -> tuple[list[str], list[list[str]]]:
    if kind is Kind.estimators:
        return ["name", "family", "claims", "cost per step", "memory", "source"], [
            [name, *_estimator_row(CATALOGUE.get(name), item)] for name, item in ESTIMATORS.usable().items()
        ]
    if kind is Kind.models:
        return ["name", "description"], [[name, _first_line(item)] for name, item in MODELS.usable().items()]
    if kind is Kind.claims:
        return ["id", "tier", "title"], [[item.id, item.tier, item.title] for item in CLAIMS.usable().values()]
    if kind is Kind.controls:
        return ["name", "role", "description"], [[c.name, c.role, c.description] for c in CONTROLS.values()]
    if kind is Kind.suites:
        return ["name", "title"], [[name, load_suite(file).title] for name, file in suite_names().items()]
    infos = [entry.info for entry in dataset_registry().usable().values()]
    return ["name", "family", "task", "nodes", "edges", "files", "description"], [
        [
            info.name,
            info.family,
            info.task,
            "" if info.num_nodes is None else f"{info.num_nodes:,}",
            "" if info.num_edges is None else f"{info.num_edges:,}",
            "needed" if info.needs_files else "none",
            info.description,
        ]
        for info in infos
    ]


def _estimator_row(info: EstimatorInfo | None, item: Any) -> list[str]:
    """Return family, claims, cost, memory and source; of a plug-in, its claims and its own description."""
    if info is None:
        try:
            claims = ", ".join(declared_claims(item))
        except InvalidInputError:  # a class may give its instances their claims by a property
            claims = ""
        return ["plug-in", claims, "", "", _first_line(item)]
    return [info.family, ", ".join(info.claims), info.cost, info.memory, info.source]


def _first_line(item: Any) -> str:
    return (item.__doc__ or "").strip().partition("\n")[0]


def explain(
    claim: Annotated[str, typer.Argument(help="Claim id, such as theorem-1/unbiased.")],
    page: Annotated[
        bool, typer.Option("--page", help="Print the claim's whole page of the documentation, as Markdown.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Explain a claim: statement, source, theory, assumptions, and how it is checked."""
    item = find_claim(claim)
    name = None if CLAIMS.plugin(claim) is not None else claim.replace("/", "-")
    if page:
        if as_json:
            raise InvalidInputError("--page prints Markdown, and --json one JSON document; choose one")
        typer.echo(shown(_page(claim, name)), nl=False)
        return
    address = None if name is None else f"{DOCUMENTATION}claims/{name}.html"
    how = (item.check.__doc__ or "").strip()
    if as_json:
        print_json(
            {
                "id": item.id,
                "title": item.title,
                "statement": item.statement,
                "source": item.source,
                "tier": item.tier,
                "theory": item.theory,
                "assumptions": [
                    {"id": a.id, "statement": a.statement, "required": a in item.required} for a in item.assumptions
                ],
                "check": how,
                "page": address,
            }
        )
        return
    console = out_console()
    console.print(f"[bold]{item.id}[/]: {item.title}", highlight=False)
    for label, text in (
        ("Statement", item.statement),
        ("Source", item.source),
        ("Tier", item.tier),
        ("Why", item.theory),
        ("Check", how),
    ):
        console.print(f"\n{label}", style="bold")
        console.print(text, markup=False, highlight=False)
    console.print("\nAssumptions", style="bold")
    for assumption in item.assumptions:
        required = " (required)" if assumption in item.required else ""
        console.print(f"- {assumption.id}{required}: {assumption.statement}", markup=False, highlight=False)
    if address is not None:
        typer.echo(f"\nProof sketch, power and limits: lmc-verify explain {claim} --page, or {address}")


def _page(claim: str, name: str | None) -> str:
    """Return the text of a claim's page.

    Raises:
        InvalidInputError: the claim is a plug-in's.
    """
    if name is None:
        raise InvalidInputError(f"the claim {claim!r} comes from a plug-in and has no page here; leave --page out")
    package = Path(__file__).parent.parent
    folders = (package / "claims" / "pages", package.parent / "docs" / "claims")  # in a wheel; in a checkout
    file = next(folder / f"{name}.md" for folder in folders if folder.is_dir())
    return file.read_text(encoding="utf-8")


def _plugins_found() -> str:
    """Return which plug-ins are installed, and why those that cannot be used cannot."""
    found = []
    for kind, registry in _REGISTRIES.items():
        broken = registry().broken()
        names = [name for name in registry() if registry().plugin(name) is not None and name not in broken]
        found += [f"{kind.value}: {', '.join(names)}"] if names else []
        found += broken.values()
    return "; ".join(found) or "none"


def doctor(data_root: DataRootOption = None, as_json: JsonOption = False) -> None:
    """Report versions, devices, and which data sets can be loaded from the data root."""
    import torch

    root = data_root or (Path(os.environ["LMC_VERIFY_DATA_ROOT"]) if os.environ.get("LMC_VERIFY_DATA_ROOT") else None)
    packages = ("torch", "torch-geometric", "numpy", "scikit-learn", "pymetis", "hypothesis", "joblib")
    found: dict[str, Any] = {
        "lmc-verify": __version__,
        **{name: _version_of(name) for name in packages},
        **{key: value for key, value in environment().items() if key in ("python", "platform", "threads", "code")},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "not available",
        "plug-ins": _plugins_found(),
        "documentation": DOCUMENTATION,
        "data root": "not set" if root is None else f"{root} ({'found' if root.is_dir() else 'missing'})",
    }
    if as_json:
        print_json(found)
    else:
        print_table(["item", "value"], [[key, str(value)] for key, value in found.items()], out_console())


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
