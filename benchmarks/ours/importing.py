"""Times an import in a process that has imported nothing.

python3 -m benchmarks.ours.importing jaxtransfer
python3 -m benchmarks.ours.importing jax flax.linen optax
"""

from __future__ import annotations

import importlib
import json
import sys
import time


def main() -> None:
    """Import what the arguments name."""
    begun = time.perf_counter()
    for asked in sys.argv[1:]:
        module, _, name = asked.partition(":")
        found = importlib.import_module(module)
        if name:
            getattr(found, name)
    print(json.dumps({"seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
