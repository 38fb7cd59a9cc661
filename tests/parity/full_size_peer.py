"""The other side of `test_full_size.py`: networks of other libraries, in their environment.

    python tests/parity/full_size_peer.py            lists the cases
    python tests/parity/full_size_peer.py NAME OUT   writes one as an `.npz` file

Each module of `full_size/` has a dict `CASES` from a name to a function that builds a network with
random weights and gives `(architecture, source, options, state, image, logits)`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

Case = Callable[[], tuple[str, str, dict[str, Any], dict[str, Any], Any, Any]]


def load_cases() -> dict[str, Case]:
    """All cases of the modules in `full_size/`, by name; none needs a library before it is made."""
    found: dict[str, Case] = {}
    for path in sorted((HERE / "full_size").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"full_size_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found |= module.CASES
    return found


def main() -> None:
    """List the cases, or write one."""
    cases = load_cases()
    if len(sys.argv) == 1:
        print("\n".join(cases))
        return
    name, out = sys.argv[1:]
    architecture, source, options, state, image, logits = cases[name]()
    about = {"architecture": architecture, "source": source, "options": options}
    arrays = {f"state|{key}": np.asarray(value) for key, value in state.items()}
    np.savez(
        out,
        about=np.array(json.dumps(about)),
        image=np.asarray(image),
        logits=np.asarray(logits),
        **arrays,
    )


if __name__ == "__main__":
    main()
