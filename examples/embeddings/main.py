"""Embeddings of every paragraph of real documents: a file for each document, as many vectors as it has paragraphs.

python main.py                                            200 modules of Python's standard library, below runs/embeddings
python main.py --root /data/texts --suffix .txt --documents 1000000 --actors 32 --dest s3://bucket/e --staging /mnt/shared/e
"""  # noqa: E501

from __future__ import annotations

import argparse
import ast
import hashlib
import math
import re
import sysconfig
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray.data
import torch

import ray_sink
from ray_sink import SaveFormat, Sink

DIMENSIONS, VOCABULARY, FITTED_ON = 64, 4000, 400


def paragraphs(path: str) -> list[str]:
    """A document's text: what a Python file says in its docstrings, all of any other file."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    if path.endswith(".py"):
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = (ast.get_docstring(node) for node in ast.walk(ast.parse(text)) if isinstance(node, nodes))
        text = "\n\n".join(said for said in found if said)
    return [part for part in re.split(r"\n\s*\n", text) if len(part.split()) >= 5]


@dataclass(frozen=True)
class Space:
    """Latent semantic analysis (Deerwester et al., 1990): tf-idf of a text's words, in the space of most variance.

    Attributes:
        column: place of each word.
        idf: weight of each word.
        axes: (words, DIMENSIONS), float32.
    """

    column: dict[str, int]
    idf: torch.Tensor
    axes: torch.Tensor

    @classmethod
    def fitted(cls, texts: list[str]) -> Space:
        """The space of some texts. Fitted elsewhere it would be another one, by rounding: keep it like a checkpoint."""
        seen = Counter(word for text in texts for word in set(_words(text)))
        common = sorted(word for word, _ in seen.most_common(VOCABULARY))
        idf = torch.tensor([math.log(len(texts) / seen[word]) for word in common])
        raw = cls({word: place for place, word in enumerate(common)}, idf, torch.empty(0))
        torch.manual_seed(0)
        _, _, axes = torch.svd_lowrank(raw.weights(texts), q=min(DIMENSIONS, len(texts), len(common)), niter=4)
        return replace(raw, axes=axes.contiguous())

    @property
    def fingerprint(self) -> str:
        """A hash: vectors of different spaces must not be mixed in one run."""
        return hashlib.sha256(self.axes.numpy().tobytes()).hexdigest()[:16]

    def embed(self, texts: list[str]) -> torch.Tensor:
        """One vector of length 1 for each text: (texts, DIMENSIONS), float32."""
        return torch.nn.functional.normalize(self.weights(texts) @ self.axes)

    def weights(self, texts: list[str]) -> torch.Tensor:
        """Tf-idf of the words of each text: (texts, words)."""
        counts = torch.zeros(len(texts), len(self.column))
        for row, text in enumerate(texts):
            for word in _words(text):
                if word in self.column:
                    counts[row, self.column[word]] += 1
        return torch.nn.functional.normalize(counts.log1p() * self.idf)


class Embedder:
    """What Ray Data runs. Any model may be in its place: the sink asks only that it returns tensors.

    Here they are of another length for each document.
    """

    def __init__(self, space: Space) -> None:
        self.space = space

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        vectors = [self.space.embed(paragraphs(path)) for path in batch["path"]]
        return {"name": batch["name"], "vectors": vectors, "paragraphs": [len(vector) for vector in vectors]}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]{3,}", text.lower())


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
    parser.add_argument("--space", type=Path, default=Path("runs/embeddings.pt"), help="the fitted model (%(default)s)")
    parser.add_argument("--query", default="compress a file and write it to disk", help="what to look for at the end")
    given = parser.parse_args()

    found = documents(given.root, given.suffix, given.documents)
    if not given.space.exists():
        given.space.parent.mkdir(parents=True, exist_ok=True)
        texts = [part for row in found[:FITTED_ON] for part in paragraphs(row["path"])]
        torch.save(asdict(Space.fitted(texts)), given.space)
    space = Space(**torch.load(given.space))
    given.staging.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Sink(
        given.dest,
        staging=given.staging.resolve(),
        fingerprint=space.fingerprint,
        save_format=SaveFormat.SAFETENSORS,
    ) as sink:
        receipts = sink.run(
            ray.data.from_items(found),
            Embedder,
            key="name",
            columns="vectors",
            fn_constructor_args=(space,),
            batch_size=16,
            compute=ray.data.ActorPoolStrategy(size=given.actors),
        )
        done = receipts.count()
    manifest = ray_sink.open(given.dest)
    print(f"{done} of {len(found)} documents embedded in {time.monotonic() - began:.1f} s, {len(manifest)} are there")

    query = space.embed([given.query])[0]
    ranked = sorted(((_best(manifest.load(row["name"]), query), row) for row in found), key=lambda hit: -hit[0][0])
    print(f"Nearest to {given.query!r}:")
    for (likeness, place), row in ranked[:3]:
        print(f"  {likeness:.2f}  {row['name']}: {' '.join(paragraphs(row['path'])[place].split())[:70]}")


def _best(vectors: Any, query: torch.Tensor) -> tuple[float, int]:
    likeness = vectors @ query
    return float(likeness.max()), int(likeness.argmax())


if __name__ == "__main__":
    main()
