"""Write what the command line says of claims, models, controls and settings without importing them.

Run it where one of them has changed.
"""

from __future__ import annotations

import json

from lmc_verify.cli.completion import kept
from lmc_verify.cli.listing import texts
from lmc_verify.cli.settings.keys import for_completion


def main() -> None:
    """Write the texts, and the keys that shells complete."""
    for file, content in ((texts.FILE, texts.present()), (kept.FILE, for_completion())):
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
