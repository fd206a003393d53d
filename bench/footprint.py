"""What Drivetrain weighs and how fast its commands answer.

    python bench/footprint.py

Sizes are of the files that each distribution installed, compiled caches left out; torch and what only torch needs are
told apart. Times are the best of several runs of a new process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata

REQUIREMENT = re.compile(r"^[A-Za-z0-9._-]+")


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(roots: Iterable[str], *, without: str | None = None) -> set[str]:
    """Installed distributions that `roots` need, not following `without`."""
    found: set[str] = set()
    queue = [normalized(root) for root in roots]
    while queue:
        name = queue.pop()
        if name in found or name == without:
            continue
        try:
            requires = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for requirement in requires:
            wanted = REQUIREMENT.match(requirement)
            if wanted is not None and "extra ==" not in requirement:
                queue.append(normalized(wanted.group()))
    return found


def size_bytes(name: str) -> int:
    """Bytes of a distribution's installed files."""
    files = metadata.distribution(name).files or []
    paths = (file.locate() for file in files if "__pycache__" not in str(file))
    return sum(path.stat().st_size for path in paths if path.is_file())  # pyright: ignore[reportAttributeAccessIssue]


def own_bytes() -> int:
    """Bytes of Drivetrain's own packages, also when installed for development."""
    import pathlib

    import drivetrain
    import drivetrain_cpu
    import drivetrain_plugins
    import drivetrain_server

    total = 0
    for package in (drivetrain, drivetrain_cpu, drivetrain_plugins, drivetrain_server):
        for file in pathlib.Path(str(package.__file__)).parent.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                total += file.stat().st_size
    return total


def best_s(arguments: list[str], repeats: int = 7) -> float:
    """Fastest of several runs of a command."""
    times: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(arguments, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    needed = closure(["drivetrain"], without="torch") - {"drivetrain"}
    sizes = {name: size_bytes(name) for name in sorted(needed)}
    own = own_bytes()
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:8]
    print(json.dumps({"own_mb": round(own / 1e6, 2), "dependencies_mb": round(sum(sizes.values()) / 1e6, 1)}))
    print(json.dumps({"largest_mb": {name: round(size / 1e6, 1) for name, size in largest}}))
    command = [
        sys.executable,
        "-c",
        "import sys; from drivetrain_server.cli import main; sys.argv[0] = 'drivetrain'; main()",
    ]
    for flag in ("--version", "--help"):
        print(json.dumps({f"drivetrain {flag}, s": round(best_s([*command, flag]), 3)}))
    print(json.dumps({"import drivetrain, s": round(best_s([sys.executable, "-c", "import drivetrain"]), 3)}))


if __name__ == "__main__":
    main()
