"""Write what ``lmc-verify list`` and ``explain`` say of claims, models and controls: run it where one has changed."""

from __future__ import annotations

import json

from lmc_verify.cli.listing.texts import FILE, present


def main() -> None:
    """Write the texts."""
    FILE.write_text(json.dumps(present(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
