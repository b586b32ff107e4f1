"""The commands of a guide as one script: `python -m tests.guide docs/own_data.md | bash -e`."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    print("\n".join(blocks(Path(sys.argv[1]), "bash")))
