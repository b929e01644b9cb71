"""Embeddings of every paragraph of real documents: a file for each document, as many vectors as it has paragraphs.

python main.py                                            200 modules of Python's standard library, below runs/embeddings
python main.py --root /data/texts --suffix .txt --documents 1000000 --actors 32 --dest s3://bucket/e --staging /mnt/shared/e
"""  # noqa: E501

from __future__ import annotations

import argparse
import ast
import re
import sysconfig
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray.data
import torch
import wordllama
from wordllama import WordLlama

import ray_sink
from ray_sink import SaveFormat, Sink


def paragraphs(path: str) -> list[str]:
    """A document's text: what a Python file says in its docstrings, all of any other file."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    if path.endswith(".py"):
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = (ast.get_docstring(node) for node in ast.walk(ast.parse(text)) if isinstance(node, nodes))
        text = "\n\n".join(said for said in found if said)
    return [part for part in re.split(r"\n\s*\n", text) if len(part.split()) >= 5]


def model() -> Any:
    """A sentence embedding that was distilled from a language model. Its wheel carries it, and nothing is downloaded.

    Returns:
        What turns texts into float32 arrays (texts, 256). https://github.com/dleemiller/WordLlama
    """
    return WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)


class Embedder:
    """What Ray Data runs. Any model may be in its place: the sink asks only that it returns tensors.

    Here they are of another length for each document.
    """

    def __init__(self) -> None:
        self.model = model()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        vectors = [self.model.embed(paragraphs(path), norm=True) for path in batch["path"]]
        return {"name": batch["name"], "vectors": vectors, "paragraphs": [len(vector) for vector in vectors]}


def documents(root: Path, suffix: str, count: int) -> list[dict[str, str]]:
    """The first files below a folder that have something to say, with the names that their outputs get."""
    found: list[dict[str, str]] = []
    for path in sorted(root.rglob(f"*{suffix}")):
        if len(found) == count:
            break
        if not {"test", "tests", "site-packages", "lib2to3"} & set(path.parts) and paragraphs(str(path)):
            found.append({"name": str(path.relative_to(root).with_suffix("")), "path": str(path)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(sysconfig.get_path("stdlib")), help="a folder of documents")
    parser.add_argument("--suffix", default=".py", help="which files are documents (%(default)s)")
    parser.add_argument("--documents", type=int, default=200, help="at most so many (%(default)s)")
    parser.add_argument("--actors", type=int, default=1, help="actors with a model each (%(default)s)")
    parser.add_argument("--dest", default="runs/embeddings", help="any fsspec URL or folder (%(default)s)")
    parser.add_argument("--staging", type=Path, default=Path("runs/embeddings-staging"), help="a folder that all see")
    parser.add_argument("--query", default="compress a file and write it to disk", help="what to look for at the end")
    given = parser.parse_args()

    found = documents(given.root, given.suffix, given.documents)
    given.staging.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Sink(
        given.dest,
        staging=given.staging.resolve(),
        fingerprint=f"wordllama {version('wordllama')}",
        save_format=SaveFormat.SAFETENSORS,
    ) as sink:
        receipts = sink.run(
            ray.data.from_items(found),
            Embedder,
            key="name",
            columns="vectors",
            batch_size=16,
            compute=ray.data.ActorPoolStrategy(size=given.actors),
        )
        done = receipts.count()
    manifest = ray_sink.open(given.dest)
    print(f"{done} of {len(found)} documents embedded in {time.monotonic() - began:.1f} s, {len(manifest)} are there")

    query = torch.from_numpy(model().embed([given.query], norm=True))[0]
    ranked = sorted(((_best(manifest.load(row["name"]), query), row) for row in found), key=lambda hit: -hit[0][0])
    print(f"Nearest to {given.query!r}:")
    for (likeness, place), row in ranked[:3]:
        print(f"  {likeness:.2f}  {row['name']}: {' '.join(paragraphs(row['path'])[place].split())[:70]}")


def _best(vectors: Any, query: torch.Tensor) -> tuple[float, int]:
    likeness = vectors @ query
    return float(likeness.max()), int(likeness.argmax())


if __name__ == "__main__":
    main()
