"""Plain models into layered ones: a module as it is usually written, cut at its convolutions.

`inputs` calls the module, `prepare` replaces parts of a copy, `trace` lists its steps, `convolutions` reads the calls
of its convolutions, `plan` cuts at them, `row_wise` checks what lies between, and `build` puts the layers together.
"""

from lmc_verify.models.plain.build import PlainModel, build
from lmc_verify.models.plain.inputs import Call, call_of

__all__ = ["Call", "PlainModel", "build", "call_of"]
