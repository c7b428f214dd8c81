"""The frozen CNNs, output and stages, against independent networks of the same weights.

    python -m pytest tests/test_cnn.py
"""
import pytest
import torch
import torch.nn.functional as F

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
