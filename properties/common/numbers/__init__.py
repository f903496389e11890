"""The slow, dense program that makes the package's pinned reference numbers.

It shares no code with the package: operators are dense matrices written entry by entry, samples and batches are listed,
statistics are written from their formulas. Only the vector-Jacobian products of single dense layers are autograd's,
and, as wholes, shaDow's gradient and the fixed point's.
``python tools/reference_numbers.py`` writes what `document` returns into the package.
"""

from common.numbers.document import document

__all__ = ["document"]
