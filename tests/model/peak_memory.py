"""Run in a process of its own: load a folder, print its weight bytes and how far anonymous memory rose."""

import sys
import threading
import time


def anonymous() -> int:
    """Bytes that belong to no file (a mapped checkpoint does not count: the kernel may drop its pages)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


if __name__ == "__main__":
    import torch  # noqa: F401

    import labcore
    from labcore.model import loading  # noqa: F401  (imports are not what is measured)

    base = peak = anonymous()
    done = threading.Event()

    def watch() -> None:
        global peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    model = labcore.load(sys.argv[1], device="cpu", dtype="float32")
    done.set()
    watcher.join()
    print(model.weight_bytes, max(peak, anonymous()) - base)
