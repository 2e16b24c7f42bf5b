"""A server's processes without a server: `python -m tests.support.process_tree FILE [hang]`.

A parent and a spawned child that share memory and a semaphore as vLLM's do, by Python's multiprocessing. Their names
go into FILE. With `hang` neither minds SIGTERM, like an engine that hangs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from steerdec.server.launch.processes import end_with_launcher


def child(names: Path, lock: Any, hang: bool) -> None:
    if hang:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    memory = SharedMemory(create=True, size=4096)
    with names.open("a") as file:
        file.write(f"{memory.name}\n{os.getpid()}\nready\n")
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.1)


def main() -> None:
    end_with_launcher()
    names, hang = Path(sys.argv[1]), "hang" in sys.argv
    context = multiprocessing.get_context("spawn")
    lock, memory = context.Lock(), SharedMemory(create=True, size=4096)
    names.write_text(f"{memory.name}\nsem.{lock._semlock.name[1:]}\n{os.getpid()}\n")  # type: ignore[attr-defined]
    signal.signal(signal.SIGTERM, signal.SIG_IGN if hang else lambda *_: sys.exit(0))
    engine = context.Process(target=child, args=(names, lock, hang), daemon=True)
    engine.start()
    engine.join()  # a server whose engine is gone has failed
    sys.exit(3)


if __name__ == "__main__":
    main()
