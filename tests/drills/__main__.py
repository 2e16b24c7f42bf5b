"""All drills, and a table of them: `make drills`, about ten minutes on two cores. `python -m tests.drills NAME ...`

Exit status 1 if a promise was broken.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.drills import clients, leaks, processes, runs
from tests.drills.promises import PROMISES
from tests.support.serving import serving

IN_A_FOLDER: dict[str, Callable[[Path], str]] = {
    "disk full": runs.disk_full,
    "endpoint hangs": runs.endpoint_hung,
    "clock jumps": runs.clock_jumps,
    "engine killed": functools.partial(processes.killed, who=processes.engine),
    "API process killed": functools.partial(processes.killed, who=processes.api_server),
    "launcher killed": functools.partial(processes.killed, who=processes.itself),
    "starts and stops": leaks.starts_and_stops,
}
AT_A_SERVER: dict[str, Callable[[str], str]] = {
    "slow clients": clients.slow_clients,
    "10,000 idle connections": clients.idle_connections,
}


def seen(drill: Callable[[], str]) -> tuple[str, bool]:
    try:
        return drill(), True
    except Exception as e:  # whatever went wrong, the other drills go on
        return f"{type(e).__name__}: {e}"[:400], False


def main() -> int:
    wanted = sys.argv[1:] or list(PROMISES)
    results: dict[str, tuple[str, bool]] = {}
    with tempfile.TemporaryDirectory(prefix="steerdec-drills-") as name:
        for i, drill in enumerate(wanted):
            if drill in IN_A_FOLDER:
                folder = Path(name) / str(i)
                folder.mkdir()
                results[drill] = seen(functools.partial(IN_A_FOLDER[drill], folder))
                print(f"{drill}: {results[drill][0]}", file=sys.stderr, flush=True)
        if at_server := [drill for drill in wanted if drill in AT_A_SERVER]:
            with serving(Path(name) / "server.log", "--dtype", "float32") as url:
                for drill in at_server:
                    results[drill] = seen(functools.partial(AT_A_SERVER[drill], url))
                    print(f"{drill}: {results[drill][0]}", file=sys.stderr, flush=True)
    table = Table("drill", "promised", "seen", "ok")
    for drill in wanted:
        line, held = results[drill]
        table.add_row(drill, PROMISES[drill], line, "yes" if held else "NO")
    Console(width=180).print(table)
    return 0 if all(held for _, held in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
