"""Put the table and figure of a finished run into README.md: no number in it is typed.

    .venv/bin/python scripts/update_readme.py runs/embedded_full/results

Copies forest.png, table.md and table.csv to configs/experiment/embedded_results and replaces the text between the
markers `<!-- table -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "configs" / "experiment" / "embedded_results"


def main(results: Path) -> None:
    """Copy the results and rewrite the block."""
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    for name in ("forest.png", "table.md", "table.csv"):
        shutil.copy(results / name, PUBLISHED / name)
    figure = f"![Differences to SFT with intervals]({(PUBLISHED / 'forest.png').relative_to(ROOT)})"
    block = f"<!-- table -->\n{(results / 'table.md').read_text().strip()}\n\n{figure}\n<!-- end of table -->"
    readme = ROOT / "README.md"
    text, count = re.subn(r"<!-- table -->.*<!-- end of table -->", lambda _: block, readme.read_text(), flags=re.S)
    if count != 1:
        sys.exit("README.md has no block between <!-- table --> and <!-- end of table -->.")
    readme.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
