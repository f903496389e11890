"""Commands that list what is available: ``list``, ``explain`` and ``doctor``."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from lmc_verify import __version__, datasets
from lmc_verify.cases.suite_files import suite_names, suite_title
from lmc_verify.claims.registry import CLAIMS, find_claim, require_claim
from lmc_verify.cli.completion import names
from lmc_verify.cli.listing.texts import claim_text, first_line, kept
from lmc_verify.cli.options import DOCUMENTATION, DataRootOption, JsonOption, out_console, print_json, shown
from lmc_verify.cli.print_verdicts import print_table
from lmc_verify.errors import InvalidInputError, PluginError
from lmc_verify.estimators.registry import CATALOGUE, ESTIMATORS
from lmc_verify.models.registry import MODELS
from lmc_verify.plugins import Registry
from lmc_verify.provenance import environment, version_of

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
    Kind.datasets: lambda: datasets.dataset_registry(),
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
            [name, *_estimator_row(name)] for name in _usable(ESTIMATORS)
        ]
    if kind is Kind.models:
        return ["name", "description"], [[name, _model_text(name)] for name in _usable(MODELS)]
    if kind is Kind.claims:
        texts = [_claim_text(name) for name in _usable(CLAIMS)]
        return ["id", "tier", "title"], [[text["id"], text["tier"], text["title"]] for text in texts]
    if kind is Kind.controls:
        return ["name", "role", "description"], [
            [name, text["role"], text["description"]] for name, text in kept()["controls"].items()
        ]
    if kind is Kind.suites:
        return ["name", "title"], [[name, suite_title(file)] for name, file in suite_names().items()]
    infos = [entry.info for entry in datasets.dataset_registry().usable().values()]
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


def _usable(registry: Registry[Any]) -> Iterator[str]:
    """Yield the names that can be used; only plug-ins are imported to find that out."""
    for name in registry:
        try:
            if not registry.is_own(name):
                _ = registry[name]
        except PluginError:
            continue
        yield name


def _claim_text(name: str) -> dict[str, Any]:
    text = kept()["claims"].get(name) if CLAIMS.is_own(name) else None
    return claim_text(find_claim(name)) if text is None else text


def _model_text(name: str) -> str:
    text = kept()["models"].get(name) if MODELS.is_own(name) else None
    return first_line(MODELS[name]) if text is None else str(text["description"])


def _estimator_row(name: str) -> list[str]:
    """Return family, claims, cost, memory and source; of a plug-in, its claims and its own description."""
    info = CATALOGUE.get(name) if ESTIMATORS.is_own(name) else None
    if info is not None:
        return [info.family, ", ".join(info.claims), info.cost, info.memory, info.source]
    from lmc_verify.estimators.properties import declared_claims

    item = ESTIMATORS[name]
    try:
        claims = ", ".join(declared_claims(item))
    except InvalidInputError:  # a class may give its instances their claims by a property
        claims = ""
    return ["plug-in", claims, "", "", first_line(item)]


def explain(
    claim: Annotated[str, typer.Argument(help="Claim id, such as theorem-1/unbiased.", autocompletion=names.claims)],
    page: Annotated[
        bool, typer.Option("--page", help="Print the claim's whole page of the documentation, as Markdown.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Explain a claim: statement, source, theory, assumptions, and how it is checked."""
    require_claim(claim)
    name = claim.replace("/", "-") if CLAIMS.is_own(claim) else None
    if page:
        if as_json:
            raise InvalidInputError("--page prints Markdown, and --json one JSON document; choose one")
        typer.echo(shown(_page(claim, name)), nl=False)
        return
    address = None if name is None else f"{DOCUMENTATION}claims/{name}.html"
    text = _claim_text(claim)
    if as_json:
        print_json({**text, "page": address})
        return
    console = out_console()
    console.print(f"[bold]{text['id']}[/]: {text['title']}", highlight=False)
    for label, key in (
        ("Statement", "statement"),
        ("Source", "source"),
        ("Tier", "tier"),
        ("Why", "theory"),
        ("Check", "check"),
    ):
        console.print(f"\n{label}", style="bold")
        console.print(text[key], markup=False, highlight=False)
    console.print("\nAssumptions", style="bold")
    for assumption in text["assumptions"]:
        required = " (required)" if assumption["required"] else ""
        console.print(f"- {assumption['id']}{required}: {assumption['statement']}", markup=False, highlight=False)
    if address is not None:
        typer.echo(f"\nProof sketch, power and limits: lmc-verify explain {claim} --page, or {address}")


def _page(claim: str, name: str | None) -> str:
    """Return the text of a claim's page.

    Raises:
        InvalidInputError: the claim is a plug-in's.
    """
    if name is None:
        raise InvalidInputError(f"the claim {claim!r} comes from a plug-in and has no page here; leave --page out")
    package = Path(__file__).parents[2]
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
    packages = ("torch", "torch-geometric", "numpy", "scipy", "pymetis", "hypothesis", "matplotlib")
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
        return version_of(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
