"""What needs a GPU: each stage there against the CPU, compiled, without waits, by NCCL.

    python -m pytest -q tests/test_gpu.py      # by itself: all other tests hide the GPU

In fp32, TF32 off, except where it is said.
"""
import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn as nn

import data
import distill
import evaluate
import finetune
import model
import teacher

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU is visible: `python -m pytest "
                                "tests/test_gpu.py`, by itself, on a machine that has one")

COMMON = ["--precision", "fp32", "--dropout", "0", "--batch", "16"]
STAGE = [*COMMON, "--steps", "4", "--log-every", "1", "--compile", "off"]
OBJECTIVES = ["--objective", *distill.OBJECTIVES[1:], "--voken-labels", "random"]
CASES = {   # name: (stage, its flags)
    "nce": (teacher, [*STAGE, "--contrastive", "nce"]),
    "hinge": (teacher, [*STAGE, "--contrastive", "hinge"]),
    "nst+crd": (distill, STAGE),
    "all": (distill, [*STAGE, *OBJECTIVES]),   # by lot, as the nearest clip may be a near tie
    "classification": (finetune, [*COMMON, "--task", "QNLI", "--head", "plain", "--train-limit",
                                  "64", "--epochs", "1", "--warmup", "0.5", "--log-every", "1"]),
    "span": (finetune, [*COMMON, "--task", "SQuAD2", "--train-limit", "64", "--epochs", "1",
                        "--warmup", "0.5", "--log-every", "1"]),
}


def run(stage, command, out):
    """Runs a stage in fp32. Returns ({name: value} of each log line, gradients [P] of each step,
    before they are clipped)."""
    gradients = []
    clip = nn.utils.clip_grad_norm_

    def watched(parameters, largest):
        each = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
        gradients.append(torch.cat(each).cpu())
        return clip(parameters, largest)

    torch.set_float32_matmul_precision("highest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", watched)
        patch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
        stage.main([*command, "--out", str(out)])
    (path,) = Path(out).rglob("log.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "grad_norm" in line], gradients


def check(ours, expected, tolerance):
    """Losses and gradients of two runs, step by step: no further apart than a share of them."""
    for line, wanted in zip(ours[0], expected[0], strict=True):
        assert line.keys() == wanted.keys()
        for name in wanted.keys() - {"seconds", "waited"}:
            assert line[name] == pytest.approx(wanted[name], rel=tolerance, abs=1e-6), name
    assert len(ours[1]) >= 4
    for gradient, wanted in zip(ours[1], expected[1], strict=True):
        assert (gradient - wanted).norm() < tolerance * wanted.norm()


@pytest.fixture(scope="module")
def taught(mini, tmp_path_factory):
    """A teacher of 30 steps, on the CPU: its clips have vectors that differ."""
    folder = tmp_path_factory.mktemp("taught") / "teacher"
    teacher.main(["--data", str(mini), "--out", str(folder), "--steps", "30", "--warmup", "10",
                  "--batch", "64", "--device", "cpu"])
    data.make_bank(mini, "train", 70, 0, 32, folder / "bank.json")
    return folder


@pytest.fixture(scope="module")
def command(mini, taught):
    """{stage: the flags that say what it reads}"""
    return {teacher: ["--data", str(mini)],
            distill: ["--teacher", str(taught), "--bank", f"{taught}/bank.json",
                      "--crd-queue", "64", "--crd-tokens", "4"],
            finetune: ["--model", str(taught), "--data", f"{mini}/tasks"]}


# --- the same numbers


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_cpu(case, command, tmp_path):
    stage, flags = CASES[case]
    flags = [*command[stage], *flags, "--device"]
    check(run(stage, [*flags, DEVICE], tmp_path / "gpu"),
          run(stage, [*flags, "cpu"], tmp_path / "cpu"), 1e-3)


def test_a_whitened_head_is_that_of_the_cpu():
    """But for its axes, where two have the same variance."""
    torch.manual_seed(0)
    states = torch.randn(300, 128) @ torch.randn(128, 128)
    config = model.SIZES["mini"]
    ours, wanted = [model.WhitenedHead(config, 2, states.to(device)).whitening.cpu()
                    for device in (DEVICE, "cpu")]
    difference = ours @ ours.T - wanted @ wanted.T
    assert difference.norm() < 1e-3 * (wanted @ wanted.T).norm()
    strong = slice(-16, None)   # of the most variance, far apart
    assert (ours[:, strong] - wanted[:, strong]).norm() < 1e-2 * wanted[:, strong].norm()


@pytest.mark.parametrize("case", ["nst+crd", "classification", "span"])
def test_a_batch_in_parts_equals_the_whole(case, command, tmp_path):
    stage, flags = CASES[case]
    flags = [*command[stage], *flags, "--device", DEVICE, "--accumulate"]
    whole = run(stage, [*flags, "1"], tmp_path / "whole")
    if stage is distill:   # each objective's pull is measured on a whole batch only
        whole = [{name: line[name] for name in line if not name.endswith("_grad")}
                 for line in whole[0]], whole[1]
    check(run(stage, [*flags, "2"], tmp_path / "parts"), whole, 1e-3)


@pytest.mark.parametrize("case, more", [
    ("nce", []), ("hinge", []), ("nst+crd", []), ("nst+crd", ["--graphs"]), ("all", []),
    ("all", ["--graphs"])])
def test_compiled_equals_eager(case, more, command, tmp_path, capsys):
    """The steps between two log lines; distill.py's others are never compiled."""
    stage, flags = CASES[case]
    flags = [*command[stage], *flags, "--device", DEVICE, "--steps", "13", "--log-every", "6"]
    eager = run(stage, flags, tmp_path / "eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = run(stage, [*flags, *more, "--compile", "on"], tmp_path / "compiled")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    assert "compiling failed" not in capsys.readouterr().out
    check(compiled, eager, 1e-3)


@pytest.mark.parametrize("stage", [teacher, distill])
def test_stopped_and_started_again_it_ends_with_the_same_weights(stage, command, tmp_path,
                                                                monkeypatch):
    """Within rounding, as sums of a GPU have no fixed order. With dropout, compiled."""
    flags = [*command[stage], "--precision", "fp32", "--dropout", "0.1", "--batch", "16", "--steps",
             "12", "--warmup", "0", "--lr", "1e-4", "--compile", "on", "--device", DEVICE]
    next_batch = data.Feed.__next__
    asked = []

    def stop_at_the_seventh(feed):
        asked.append(feed)
        if len(asked) == 7:
            signal.raise_signal(signal.SIGTERM)
        return next_batch(feed)

    weights = {}
    for name in ("straight", "again", "stopped"):
        if name == "stopped":
            monkeypatch.setattr(data.Feed, "__next__", stop_at_the_seventh)
            with pytest.raises(SystemExit, match="143"):
                stage.main([*flags, "--out", str(tmp_path / name)])
            assert model.load_checkpoint(tmp_path / name / "checkpoint.pt")["step"] == 7
        stage.main([*flags, "--out", str(tmp_path / name)])
        state = model.load_checkpoint(tmp_path / name / "checkpoint.pt")["networks"]
        weights[name] = torch.cat([tensor.flatten() for tensor in state.values()])
    for name in ("again", "stopped"):   # AdamW makes much of the roundings of tiny gradients
        apart = (weights[name] - weights["straight"]).square().mean().sqrt()
        assert apart < 12 * 1e-4 / 200, name   # of 12 steps


# --- no waits


@pytest.mark.parametrize("stage, flags", [
    (teacher, ["--compile", "auto"]), (teacher, ["--compile", "off"]),
    (distill, ["--compile", "auto"]), (distill, ["--compile", "off"]),
    (distill, ["--compile", "auto", "--graphs"]),
    (finetune, [])])
def test_a_step_that_is_not_logged_does_not_wait_for_the_gpu(stage, flags, command, tmp_path,
                                                            monkeypatch):
    """In the default precision, with dropout. Steps 4, 8 and 12 are logged; finetune.py's 3, 7."""
    lr_at = model.lr_at
    watched = []

    def watch(step, *rest):   # the first call of every step
        mode = "error" if step > 4 and step % 4 in (1, 2) else "default"
        torch.cuda.set_sync_debug_mode(mode)
        watched.append(mode)
        return lr_at(step, *rest)

    monkeypatch.setattr(model, "lr_at", watch)
    more = {teacher: ["--steps", "13", "--contrastive", "hinge",
                      "--frames", "8"],   # one shape: compiled once
            distill: ["--steps", "13", *OBJECTIVES, "--voken-labels", "nearest"],
            finetune: ["--task", "QNLI", "--train-limit", "192", "--epochs", "1"]}[stage]
    stage.main([*command[stage], *flags, *more, "--batch", "16", "--log-every", "4", "--warmup",
                "0", "--dropout", "0.1", "--device", DEVICE, "--out", str(tmp_path)])
    assert watched.count("error") >= 4
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError):
            torch.ones(3, device=DEVICE).sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_come_through_pinned_memory(taught):
    """Else their copies are waited for, though no mode of torch says so."""
    args = distill.parse_args(["--teacher", str(taught), "--batch", "16"])
    tokenizer = data.load_tokenizer(args.text)
    blocks = data.TextBlocks(args.text, "train", tokenizer, 32)
    feed = data.Feed(distill.Batches(args, blocks, tokenizer, slice(0, 16)), len(blocks), args,
                     slice(0, 16), 0, data.Processes(DEVICE))
    (part,) = next(feed.batches)
    assert len(part) >= 6
    for tensor in part.values():
        assert tensor.is_pinned() and tensor.is_contiguous()
    assert next(feed)[0]["inputs"].device.type == DEVICE


# --- processes


def torchrun(count, *command):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc_per_node={count}", *command], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}, timeout=240)


def test_one_process_of_torchrun(command, tmp_path):
    stage, flags = CASES["nce"]
    flags = [*command[stage], *flags, "--device", DEVICE, "--out"]
    done = torchrun(1, "teacher.py", *flags, str(tmp_path / "torchrun"))
    assert done.returncode == 0, done.stderr[-2000:]
    stage.main([*flags, str(tmp_path / "alone")])
    ours, expected = [(tmp_path / name / "log.jsonl").read_text().splitlines()
                      for name in ("torchrun", "alone")]
    for line, wanted in zip(ours, expected, strict=True):
        line = json.loads(line)
        for name, value in json.loads(wanted).items():
            if name not in ("seconds", "waited"):
                assert line[name] == pytest.approx(value, rel=1e-3), name


def test_messages_by_nccl():
    done = torchrun(1, "tests/test_gpu.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("the messages of one process change nothing\n")


def group_of_one():
    """Started by torchrun: every kind of message, in a group of one process."""
    dist.init_process_group({"cuda": "nccl", "cpu": "gloo"}[DEVICE])
    processes = data.Processes(DEVICE)   # of one process, which would send nothing
    processes.world = 2
    torch.manual_seed(0)
    inputs, mask = torch.randn(2, 64, 300, device=DEVICE)
    weight = torch.randn(300, 300, device=DEVICE).requires_grad_()
    bias = torch.randn(300, device=DEVICE).requires_grad_()
    expected = torch.autograd.grad((inputs @ weight + bias).tanh().mean(), [weight, bias])
    gradients = data.GradientSum([weight, bias], world=2, message=1000)
    gradients.on = True
    data._Gather.apply(inputs @ weight + bias, 0, 1).tanh().mean().backward()
    assert len(gradients.sent) == 2   # during backward
    gradients.finish()
    for parameter, wanted in zip((weight, bias), expected):
        torch.testing.assert_close(parameter.grad, wanted)
    assert torch.equal(data._Gather.apply(mask > 0, 0, 1), mask > 0)
    assert processes.sum((mask > 0).sum()) == (mask > 0).sum()
    assert processes.noted(10) == 0
    processes.close()
    print("the messages of one process change nothing")


def test_more_processes_than_gpus_are_refused(command, tmp_path):
    count = torch.cuda.device_count() + 1
    done = torchrun(count, "teacher.py", *command[teacher], "--device", "cuda", "--out",
                    str(tmp_path / "run"))
    assert done.returncode != 0
    assert f"teacher.py: processes on this machine: {count}, GPUs visible" in done.stderr
    assert not (tmp_path / "run").exists()


# --- features, retrieval, probes


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 2e-2)])
def test_a_cnn_gives_the_features_of_the_cpu(precision, tolerance, monkeypatch):
    torch.manual_seed(0)
    cnn = model.CNN(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, stem_stride=2, blocks=(1, 1, 1, 1),
                    middle=64, groups=1, classes=10).eval().requires_grad_(False)
    monkeypatch.setattr(model, "load_cnn", lambda *given: copy.deepcopy(cnn))
    frames = np.random.default_rng(0).integers(0, 256, (9, 2, 2, 3), np.uint8)
    frames = frames.repeat(112, 1).repeat(112, 2)                       # [9, 224, 224, 3]
    ours = data.cnn_function("resnet152", "small", DEVICE, precision)(frames)
    wanted = data.cnn_function("resnet152", "small", "cpu", "fp32")(frames)
    assert ours.shape == wanted.shape == (9, 2048)
    assert np.abs(ours - wanted).max() < tolerance * np.abs(wanted).max()
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1 * np.abs(wanted).max()   # frames differ


def test_films_give_the_features_of_the_cpu(mini, cnn_weights, tmp_path):
    """Both networks, in the processes that `data.py video` starts."""
    films = dict(list(data.film_files(mini / "videos").items())[:3])
    for device in (DEVICE, "cpu"):
        failed = data.extract_features(films, list(model.CNNS), tmp_path / device, workers=2,
                                       weights=cnn_weights, device=device, precision="fp32")
        assert failed == 0
    for name in model.CNNS:
        for film in films:
            ours, wanted = [np.load(tmp_path / device / "features" / name / f"{film}.npy")
                            for device in (DEVICE, "cpu")]
            assert ours.shape == wanted.shape
            assert np.abs(ours - wanted).max() < 5e-3 * np.abs(wanted).max()


def test_retrieval_and_probes_are_those_of_the_cpu(taught, mini):
    found = {}
    torch.set_float32_matmul_precision("highest")   # as a command of its own has it
    for device in (DEVICE, "cpu"):
        for what in ("retrieve", "probe"):
            evaluate.main([what, str(taught), "--data", str(mini), "--device", device])
        found[device] = [data.read_json(taught / f"{name}.json", "") for name in
                         ("retrieval", "probe")]
    (ours, probed), (wanted, expected) = found[DEVICE], found["cpu"]
    moved = np.abs(np.subtract(ours["ranks"], wanted["ranks"]))   # near ties may change places
    assert len(moved) > 50 and moved.max() <= 2 and (moved == 0).mean() > 0.9
    assert len(set(wanted["ranks"])) > 10
    for name in expected:
        assert probed[name] == pytest.approx(expected[name], abs=0.05)


if __name__ == "__main__":
    group_of_one()
