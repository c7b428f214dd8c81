"""Fixtures that the tests share. Not a test file: `python -m pytest tests` runs them all.

The tests need no network. Those that use real files look in the folder REAL_DATA names.
"""
import importlib
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")   # before torch starts its threads: sums repeat
# tests choose the CPU, also where there is a GPU, which test_gpu.py sees when it is asked for
if not any("test_gpu.py" in argument for argument in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# a shell's background jobs ignore Ctrl-C, and with them the stages that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
import torch

import data
import model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini(tmp_path_factory):
    """A small mini world with features, captions and packed text, made once: the folder.

    One training video a noun; 3,000 documents are the fewest that surely name every noun.
    """
    folder = tmp_path_factory.mktemp("mini")
    workers = min(2, os.cpu_count())
    streams = ["frame", "motion"]
    data.make_mini(0, folder, 1, 3000, workers)
    data.extract_features(data.film_files(folder / "videos"), streams, folder, workers)
    data.captions_command(SimpleNamespace(
        videos=folder / "videos", captions=folder / "caption.json", vocab=folder, out=folder,
        held_out=None))
    for split in ("train", "valid"):
        data.pack_text([folder / "text" / f"{split}.txt"], folder, folder / "text", split)
    return folder


TINY_TEXT = [
    "the cat sat on the mat and the dog ran",
    "a dog and a cat ran to the red mat today",
    "we see the big red dog sit on the small cat",
    "now the cat is on the mat and it sat there",
]


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory):
    """Path of a tokenizer.json of about a hundred word pieces, trained here."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text.txt").write_text("\n".join(TINY_TEXT * 5) + "\n")
    data.train_tokenizer([folder / "text.txt"], 120, folder)
    return folder / "tokenizer.json"


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_vocab):
    return data.load_tokenizer(tiny_vocab)


def python_half_of_torchvision():
    """Imports torchvision; one built for another torch, too, whose operators are of no use here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.library, "register_fake", lambda *_, **__: lambda function: function)
        return importlib.import_module("torchvision")


@pytest.fixture(scope="session")
def torchvision():
    """Our oracle for ResNet-152."""
    try:
        return python_half_of_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")


@pytest.fixture(scope="session")
def transformers():
    """Our oracle for BERT, which imports torchvision where there is one."""
    with suppress(ImportError):
        python_half_of_torchvision()
    return pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def cnn_weights(tmp_path_factory):
    """A folder with both frozen CNNs' files in the published layout, weights drawn at random.

    Their BatchNorm statistics are those of five passes over pictures: with the initial ones the
    activations of a hundred random layers grow or vanish, and a comparison says nothing.
    """
    folder = tmp_path_factory.mktemp("weights")
    windows = []
    for index, properties in enumerate(list(data.make_world(0).values())[:5]):
        clip = data.draw_clip(properties, "drop", data.numpy_generator(index))
        window = torch.from_numpy(clip).permute(3, 0, 1, 2).float()[None]       # [1, 3, 16, h, w]
        windows.append(torch.nn.functional.interpolate(window, (16, 112, 112)))
    for name, (make, file) in model.CNNS.items():
        torch.manual_seed(0)
        cnn = make()
        for module in cnn.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None   # the plain average of all passes
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.1)
        with torch.no_grad():
            for window in windows:
                if name == "resnext101":
                    cnn(window - 105)
                else:
                    cnn(window[0, :, ::4].transpose(0, 1) / 60 - 2)             # [4, 3, h, w]
        torch.save(cnn.state_dict(), folder / file)
    return folder


@pytest.fixture(scope="session")
def real_data():
    """The folder of real files."""
    if "REAL_DATA" not in os.environ:
        pytest.skip("REAL_DATA is not set: it names a folder of real files, which these tests read")
    return Path(os.environ["REAL_DATA"])
