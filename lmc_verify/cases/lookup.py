"""Names in settings to what is registered under them: data sets, estimators and their plug-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lmc_verify.cases.settings import DatasetSettings, EstimatorSettings, ModelSettings
from lmc_verify.datasets import dataset_info, dataset_registry
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.estimators import ESTIMATORS, make_estimator
from lmc_verify.models import MODELS
from lmc_verify.plugins import plugin_versions

if TYPE_CHECKING:
    from lmc_verify.estimators import Estimator

__all__ = ["build_estimator", "check_dataset", "check_names", "plugins_of"]


class Named(Protocol):
    """Settings that name a data set, a model and an estimator: of a case, or of a training run."""

    @property
    def dataset(self) -> DatasetSettings:
        """The data set."""

    @property
    def model(self) -> ModelSettings:
        """The model."""

    @property
    def estimator(self) -> EstimatorSettings:
        """The estimator."""


def plugins_of(settings: Named) -> dict[str, str]:
    """Return the fingerprints of the plug-ins that a case or a training run is built from, by kind and name.

    Raises:
        PluginError: one of them cannot be used.
    """
    return plugin_versions(
        (dataset_registry(), settings.dataset.name),
        (MODELS, settings.model.name),
        (ESTIMATORS, settings.estimator.name),
    )


def check_names(settings: Named) -> None:
    """Refuse an unknown data set, model or estimator before what is behind the names is imported.

    Raises:
        UnknownNameError: the message has the nearest known names.
        InvalidInputError: the data set does not have an option.
    """
    check_dataset(settings.dataset)
    if settings.model.name not in MODELS:
        raise UnknownNameError("model", settings.model.name, MODELS)
    if settings.estimator.name not in ESTIMATORS:
        raise UnknownNameError("estimator", settings.estimator.name, ESTIMATORS)


def check_dataset(settings: DatasetSettings) -> None:
    """Refuse an unknown data set, or an option that it does not have, before anything is loaded.

    Raises:
        InvalidInputError: the message names it, with the known ones.
    """
    known = [name for name, _ in dataset_info(settings.name).options]
    for option in settings.settings:
        if option not in known:
            from lmc_verify.datasets.generated import unknown_option

            raise unknown_option(settings.name, option, known)


def build_estimator(settings: EstimatorSettings) -> Estimator:
    """Build an estimator from settings.

    Raises:
        InvalidInputError: an unknown name or setting, or a value of another type.
    """
    try:
        return make_estimator(settings.name, **settings.settings)
    except InvalidInputError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the settings of estimator {settings.describe()} do not fit: {error}") from error
