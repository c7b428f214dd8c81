"""The frozen CNNs, output and stages, against independent networks of the same weights.

    python -m pytest tests/test_cnn.py
"""
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import model


def run(cnn, x):
    """(output, outputs of layer1, layer2, layer3) of a network with these names."""
    stages = []
    hooks = []
    for layer in (cnn.layer1, cnn.layer2, cnn.layer3):
        hooks.append(layer.register_forward_hook(lambda _, __, out: stages.append(out)))
    with torch.no_grad():
        out = cnn(x)
    for hook in hooks:
        hook.remove()
    return out, *stages


def difference(ours, theirs):
    """max |a - b| / max |b|, the largest over output and stages, none of which is constant."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert b.std() > 1e-2 * b.abs().max() and torch.isfinite(b).all()
        worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst


def pictures(*shape):
    """Smooth pictures of noise: what a CNN sees has structure."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn((1, *shape[:-2], shape[-2] // 8, shape[-1] // 8), generator=generator)
    fine = F.interpolate(coarse.flatten(0, -3)[None], shape[-2:], mode="bilinear")
    return fine[0].unflatten(0, shape[:-2])


def test_resnet152_equals_torchvision(torchvision, cnn_weights):
    theirs = torchvision.models.resnet152()
    theirs.load_state_dict(torch.load(cnn_weights / "resnet152-394f9c45.pth", weights_only=True))
    theirs.fc = torch.nn.Identity()   # its pooling is the mean over positions
    x = pictures(2, 3, 104, 136)
    ours = model.load_cnn("resnet152", cnn_weights)
    assert ours(x).shape == (2, 2048)
    assert difference(run(ours, x), run(theirs.eval(), x)) <= 1e-4


def resnext_by_hand(state, x):
    """(features, three stages) of 3D ResNeXt-101 from its weights alone, as it was published."""
    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = [state[f"{name}.{key}"].view(1, -1, 1, 1, 1) for key in keys]
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = norm(F.conv3d(x, state["conv1.weight"], stride=(1, 2, 2), padding=3), "bn1").relu()
    x = F.max_pool3d(x, 3, 2, 1)
    stages = []
    for stage, (blocks, middle) in enumerate(((3, 128), (4, 256), (23, 512), (3, 1024)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            assert state[f"{name}.conv2.weight"].shape == (middle, middle // 32, 3, 3, 3)
            assert state[f"{name}.conv3.weight"].shape == (2 * middle, middle, 1, 1, 1)
            y = norm(F.conv3d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
            y = F.conv3d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1, groups=32)
            y = norm(y, f"{name}.bn2").relu()
            y = norm(F.conv3d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = F.conv3d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{name}.downsample.1")
            x = (x + y).relu()
        stages.append(x)
    return F.avg_pool3d(x, (1, 4, 4), stride=1).flatten(1), *stages[:3]


def test_resnext101_equals_its_description(cnn_weights):
    state = torch.load(cnn_weights / "resnext101.pth", weights_only=True)
    assert len(state) == 104 * (1 + 5) + 2   # convolutions with their norms, class scores
    assert state["conv1.weight"].shape == (64, 3, 7, 7, 7)
    assert state["fc.weight"].shape == (400, 2048)
    x = 40 * pictures(1, 3, 16, 112, 112)
    with torch.no_grad():
        ours = run(model.load_cnn("resnext101", cnn_weights), x)
        assert difference(ours, resnext_by_hand(state, x)) <= 1e-4


def test_files_without_batch_counts_load(cnn_weights, tmp_path):
    """Files saved by the first versions of PyTorch lack BatchNorm's num_batches_tracked."""
    state = torch.load(cnn_weights / "resnext101.pth", weights_only=True)
    less = {key: value for key, value in state.items() if "num_batches" not in key}
    torch.save(less, tmp_path / "resnext101.pth")
    loaded = model.load_cnn("resnext101", tmp_path)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])


def test_wrong_weights_are_refused(cnn_weights, tmp_path):
    with pytest.raises(model.UserError, match="394f9c45.pth cannot be .*make data/weights/resnet1"):
        model.load_cnn("resnet152", tmp_path)
    path = tmp_path / "resnext101.pth"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(model.UserError, match="be read: .*`make data/weights/resnext101`"):
        model.load_cnn("resnext101", tmp_path)
    with torch.device("meta"):
        names = list(model.resnext101_3d().state_dict())
    release = {f"module.{name}": torch.zeros(1) for name in names}   # kenshohara's own
    shapes = {name: torch.zeros(1) for name in names}
    for content in (release, shapes, {}):
        torch.save(content, path)
        with pytest.raises(model.UserError, match="is not the published resnext101: .*CNN"):
            model.load_cnn("resnext101", tmp_path)


# --- many films, one network

def call_together(function, films):
    """Calls it with each film's pictures in a thread of its own, all waiting at once: futures."""
    inside = inspect.getclosurevars(function).nonlocals
    gate = threading.Event()
    inside["thread"].submit(gate.wait)   # it is busy
    with ThreadPoolExecutor(len(films)) as threads:
        futures = [threads.submit(function, pictures) for pictures in films]
        while sum(len(films) for films, _ in inside["waiting"].values()) < len(films):
            time.sleep(0.01)
        gate.set()
    return futures


class Means(torch.nn.Module):
    """Stands for a CNN: the mean colours of one frame of each input. Notes how many it got."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def forward(self, x):
        self.counts.append(len(x))
        means = x.flatten(2).mean(2)
        if (means > 100).any():
            raise RuntimeError("CUDA error")
        return means


def test_films_that_wait_go_in_together(monkeypatch):
    network = Means()
    monkeypatch.setattr(model, "load_cnn", lambda name, folder: network)
    function = data.cnn_function("resnext101", "", "cpu", "fp32")
    generator = np.random.default_rng(0)
    films = []
    for count in (128, 5, 16, 128, 33, 1, 128, 128, 128, 128, 128, 128):
        films.append(generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))
    films += [pictures[:, :, :6] for pictures in films[:3]]   # of another size
    alone = [function(pictures) for pictures in films]
    network.counts.clear()
    for wanted, future in zip(alone, call_together(function, films), strict=True):
        assert np.array_equal(future.result(), wanted)
    assert data.TOGETHER == 64   # windows: 8 films of 8, then 1 + 1 + 3 + 1; of the other size 10
    assert network.counts == [64, 6, 10]


def test_an_error_reaches_those_who_asked(monkeypatch):
    monkeypatch.setattr(model, "load_cnn", lambda name, folder: Means())
    function = data.cnn_function("resnext101", "", "cpu", "fp32")
    good = np.zeros((16, 8, 8, 3), np.uint8)
    bad = good + np.uint8(255)
    small = good[:, :4]
    futures = call_together(function, [good, bad, small])
    for future in futures[:2]:
        with pytest.raises(RuntimeError, match="CUDA error"):
            future.result()
    assert np.array_equal(futures[2].result(), function(small))   # another size: not with them


@pytest.mark.parametrize("name, count, side", [("resnet152", 2, 64), ("resnext101", 17, 112)])
def test_features_do_not_depend_on_other_films(cnn_weights, name, count, side):
    function = data.cnn_function(name, cnn_weights, "cpu", "fp32")
    films = []
    for seed in range(2):
        shape = (count - seed, side, side, 3)
        films.append(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    alone = [function(pictures) for pictures in films]
    assert np.abs(alone[0][0] - alone[1][0]).max() > 1e-3
    for wanted, future in zip(alone, call_together(function, films), strict=True):
        assert np.abs(future.result() - wanted).max() < 1e-5
