"""Names that commands take, as typer asks for them: what has been typed of a word in, words and their meanings out.

Registries are asked for names, which imports neither the package's objects nor those of plug-ins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import typer

from lmc_verify.cases.verdict import Outcome
from lmc_verify.cli.completion.kept import KeptKey, kept_keys
from lmc_verify.cli.completion.words import KEY

__all__ = [
    "claims",
    "commands",
    "controls",
    "datasets",
    "estimators",
    "guarantees",
    "histories",
    "outcomes",
    "settings",
    "settings_prefixes",
    "suites",
]

_Words = list[tuple[str, str]]


def claims(incomplete: str) -> _Words:
    """Return ids of claims, with their titles."""
    from lmc_verify.claims.registry import CLAIMS
    from lmc_verify.cli.listing.texts import kept

    texts = kept()["claims"]
    return _beginning(incomplete, ((name, str(texts.get(name, {}).get("title", ""))) for name in CLAIMS))


def estimators(incomplete: str) -> _Words:
    """Return names of estimators, with their families."""
    from lmc_verify.estimators.registry import CATALOGUE, ESTIMATORS

    known = ((name, CATALOGUE[name].family if name in CATALOGUE else "plug-in") for name in ESTIMATORS)
    return _beginning(incomplete, known)


def datasets(incomplete: str) -> _Words:
    """Return names of data sets."""
    from lmc_verify.datasets import dataset_registry

    return _beginning(incomplete, ((name, "") for name in dataset_registry()))


def models(incomplete: str) -> _Words:
    """Return names of models."""
    from lmc_verify.models.registry import MODELS

    return _beginning(incomplete, ((name, "") for name in MODELS))


_NAMED = {"estimator.name": estimators, "dataset.name": datasets, "model.name": models}
"""Keys whose values are names of a registry."""


def controls(incomplete: str) -> _Words:
    """Return names of controls, with what they are."""
    from lmc_verify.cli.listing.texts import kept

    return _beginning(incomplete, ((name, str(text["role"])) for name, text in kept()["controls"].items()))


def suites(incomplete: str) -> _Words:
    """Return names of the package's suites; where none begins like this, the shell offers files."""
    from lmc_verify.cases.suite_files import suite_names

    return _beginning(incomplete, ((name, "") for name in suite_names()))


def outcomes(incomplete: str) -> _Words:
    """Return outcomes of verdicts, in small letters where the beginning is."""
    names = (item.value for item in Outcome)
    return _beginning(incomplete, ((name.lower() if incomplete.islower() else name, "") for name in names))


def guarantees(incomplete: str) -> _Words:
    """Return guarantees that a verdict can be asked for."""
    return _beginning(incomplete, ((name, "") for name in kept_keys()["sampling.guarantee"].values))


def histories(incomplete: str) -> _Words:
    """Return what histories can hold; ``sweeps:`` wants a number."""
    return _beginning(incomplete, (("exact", ""), ("zero", ""), ("sweeps:", "sweeps over all batches")))


def commands(incomplete: str) -> _Words:
    """Return the commands that take ``--set``."""
    return _beginning(incomplete, ((name, "") for key in kept_keys().values() for name in key.commands))


def settings_prefixes(incomplete: str) -> _Words:
    """Return beginnings of keys, ``model.``, and keys once one of them is typed."""
    keys = kept_keys()
    groups = {f"{key.partition('.')[0]}." if "." in key else key: "" for key in keys}
    shown = groups.items() if "." not in incomplete else ((key, item.meaning) for key, item in keys.items())
    return _beginning(incomplete, shown)


def settings(context: typer.Context, incomplete: str) -> _Words:
    """Return keys of ``--set`` that the command takes; of one key, ``KEY=VALUE`` with its values or its default."""
    own = {key: item for key, item in kept_keys().items() if context.info_name in item.commands}
    if KEY in os.environ:  # bash has taken the key off
        return _beginning(incomplete, ((value, "") for value in _values(own, os.environ[KEY], incomplete)))
    key, assigned, beginning = incomplete.partition("=")
    near = [key] if assigned else [name for name in own if name.startswith(incomplete)]
    words = [] if assigned else [(f"{name}=", own[name].meaning) for name in near]
    if len(near) == 1:  # with two words to choose from, a shell goes up to the "=" and adds no blank
        words += [(f"{near[0]}={value}", "") for value in _values(own, near[0], beginning)]
    return _beginning(incomplete, words)


def _values(own: dict[str, KeptKey], key: str, beginning: str) -> Iterable[str]:
    """Yield values of a key."""
    if key in own and key in _NAMED:
        return (name for name, _ in _NAMED[key](beginning))
    return own[key].values if key in own else ()


def _beginning(incomplete: str, words: Iterable[tuple[str, str]]) -> _Words:
    return list(_once(item for item in words if item[0].startswith(incomplete)))


def _once(words: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    seen = set()
    for word in words:
        if word[0] not in seen:
            seen.add(word[0])
            yield word
