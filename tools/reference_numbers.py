"""Make the pinned reference numbers again: ``python tools/reference_numbers.py`` (``--check`` only compares)."""

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


def main() -> int:
    """Write the file; with ``--check`` exit with 1 where it differs."""
    made = text()
    if "--check" in sys.argv[1:]:
        same = FILE.read_text(encoding="utf-8") == made
        print(f"{FILE.name}: {'up to date' if same else 'differs; run python tools/reference_numbers.py'}")
        return 0 if same else 1
    FILE.write_text(made, encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
