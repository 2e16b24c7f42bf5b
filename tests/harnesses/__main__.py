"""Every recipe of docs/harnesses.md with the tool it is for: `make harnesses`. `python -m tests.harnesses NAME ...`

The tools stand in an environment of their own, build/harnesses, and the npm client in build/harnesses-npm. All recipes
run against one real server with the small model, through a recorder. One line per recipe; exit status 1 if one failed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.harnesses.recipes import RECIPES
from tests.harnesses.recorder import recording
from tests.harnesses.running import run
from tests.support.serving import serving


def main() -> int:
    failed = 0
    with (
        tempfile.TemporaryDirectory(prefix="steerdec-harnesses-") as name,
        serving(Path(name) / "server.log", "--dtype", "float32") as server,
        recording(server) as recorder,
    ):
        for recipe in sys.argv[1:] or RECIPES:
            folder = Path(name) / recipe
            folder.mkdir()
            try:
                line = "passed, " + run(RECIPES[recipe], folder, recorder, server)
            except Exception as e:  # whatever went wrong, the other recipes go on
                line, failed = f"FAILED, {type(e).__name__}: {e}", failed + 1
            print(f"{recipe}: {line}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
