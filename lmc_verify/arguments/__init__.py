"""What arguments must be, by the annotations of whoever takes them."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.arguments.annotations import require
    from lmc_verify.arguments.checks import require_fields, require_options, typed
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["require", "require_fields", "require_options", "typed"]
