"""Makes the virtual environment that the Makefile's targets run in.

    python .ci/environment.py VENV [pip arguments ...]

Run with the interpreter to build on. Where that interpreter already has torch and ray, new enough,
the environment is laid over its site-packages and they are used as they are: they are large, and
often built for the machine. Everything else comes as pinned in constraints.txt.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys
import sysconfig
import venv

PROJECT = pathlib.Path(__file__).resolve().parent.parent
NEEDED = {"torch": (2, 6), "ray": (2, 60)}
# Compiled against each other in the environment that is built upon: what is there stays.
KEPT = ("torch", "ray", "numpy", "pandas", "pyarrow", "scipy")


def version_of(distribution: str) -> tuple[int, int] | None:
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None


def can_build_on_this() -> bool:
    return all((version_of(name) or (0, 0)) >= version for name, version in NEEDED.items())


def site_packages() -> list[str]:
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]


def main(target: str, pip_arguments: list[str]) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        raise SystemExit(
            f"{sys.executable} cannot make virtual environments: install its venv package "
            "(Debian: apt-get install python3-venv) or name another: make PYTHON=…"
        )
    root = pathlib.Path(target).resolve()
    constraints = root / "constraints.txt"  # also the sign that the environment is ours
    if root.exists() and any(root.iterdir()) and not constraints.exists():
        raise SystemExit(
            f"{root} was not made by this Makefile and is left alone; name another: make VENV=… "
            "(to build on an environment of your own: make PYTHON=/its/bin/python)"
        )
    pins = (PROJECT / "constraints.txt").read_text().splitlines()
    below = site_packages() if can_build_on_this() else []
    if below:
        print(f"building on the torch and ray of {sys.executable}", flush=True)
        here = {name for name in KEPT if version_of(name)}
        pins = [pin for pin in pins if pin.split("==")[0] not in here]

    venv.create(root, clear=True, symlinks=True, with_pip=True)
    constraints.write_text("".join(f"{pin}\n" for pin in pins))
    if below:
        site = pathlib.Path(sysconfig.get_path("purelib", "venv", vars={"base": str(root)}))
        (site / "environment_below.pth").write_text("".join(f"{path}\n" for path in below))
    pip = [str(root / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    wanted = ["--constraint", str(constraints), "--editable", f"{PROJECT}[dev]"]
    subprocess.run([*pip, *pip_arguments, *wanted], check=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
