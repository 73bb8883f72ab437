"""What ``import lightning_hnd`` costs beside importing torch and lightning: fresh processes, in turn.

python benchmarks/import_cost.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

BARE = "import torch, lightning.pytorch"
PROGRAM = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def seconds(statement: str) -> float:
    """How long a fresh process takes for it."""
    command = [sys.executable, "-c", PROGRAM.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    seconds("import lightning_hnd")  # reads the files from disk
    pairs = [(seconds(BARE), seconds(f"{BARE}, lightning_hnd")) for _ in range(args.repeats)]
    bare, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"torch and lightning {bare:.2f} s, with lightning_hnd {ours:.2f} s, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
