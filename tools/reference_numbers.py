"""Make the pinned reference numbers of the controls again: ``python tools/reference_numbers.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "lmc_verify" / "controls" / "reference" / "numbers.json"


def text() -> str:
    """Return the content of the file."""
    sys.path.insert(0, str(ROOT / "properties"))
    from common.numbers import document

    return json.dumps(document(), separators=(",", ":")).replace('},"', '},\n"') + "\n"


def main() -> None:
    """Write the file."""
    FILE.write_text(text(), encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
