"""Fixtures that the tests share. Not a test file: `python -m pytest tests` runs them all.

The tests need no network. Those that use real files look in the folder named by the environment variable REAL_DATA.
"""
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")   # before torch starts its threads; one thread also makes sums repeatable
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
import torch

import data

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini(tmp_path_factory):
    """A small mini world with features and packed text, made once: the folder. One training video a noun.

    3,000 documents are the fewest with which every noun surely becomes one token.
    """
    folder = tmp_path_factory.mktemp("mini")
    workers, vocab = min(2, os.cpu_count()), folder / "vocab.txt"
    data.make_mini(0, folder, 1, 3000, workers)
    data.make_features(folder / "videos", folder / "caption.json", vocab, ["frame", "motion"], folder, workers)
    for split in ("train", "valid"):
        data.pack_text([folder / "text" / f"{split}.txt"], vocab, folder / "text", split)
    return folder


TINY_TEXT = ["the cat sat on the mat and the dog ran", "a dog and a cat ran to the red mat today",
             "we see the big red dog sit on the small cat", "now the cat is on the mat and it sat there"]


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory):
    """Path of a vocab.txt of about a hundred word pieces, trained here."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text.txt").write_text("\n".join(TINY_TEXT * 5) + "\n")
    data.train_tokenizer([folder / "text.txt"], 120, folder / "vocab.txt")
    return folder / "vocab.txt"


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_vocab):
    return data.load_tokenizer(tiny_vocab)


@pytest.fixture(scope="session")
def transformers():
    """The transformers package, our oracle. A torchvision made for another torch would stop its import: hidden then."""
    try:
        import torchvision   # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None
    return pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def real_data():
    """The folder of real files."""
    if "REAL_DATA" not in os.environ:
        pytest.skip("REAL_DATA is not set: it names a folder of real files, which these tests read")
    return Path(os.environ["REAL_DATA"])
