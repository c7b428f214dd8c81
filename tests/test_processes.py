"""Processes, random numbers that do not depend on their number, the log and the run folder.

    python -m pytest tests/test_processes.py
"""
import argparse
import errno
import json
import multiprocessing
import os
import platform
import re
import resource
import signal
import socket
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import model

# --- randomness


def draw_by_numpy(*key):
    return data.numpy_generator(*key).random(4)


def draw_by_torch(*key):
    return torch.rand(4, generator=data.torch_generator(*key))


def draw_dropout(*key):
    data.seed_dropout(*key)
    return torch.rand(4)


@pytest.mark.parametrize("draw, keys", [
    (draw_by_numpy, [(0, "mask", 1), (0, "mask", 2), (1, "mask", 1), (0, "order", 1)]),
    (draw_by_torch, [(0, "mask", 1), (0, "mask", 2), (1, "mask", 1), (0, "order", 1)]),
    (draw_dropout, [(0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0)]),   # seed, step, rank
])
def test_random_numbers_depend_on_the_key_alone(draw, keys):
    first = [draw(*key).tolist() for key in keys]
    assert first == [draw(*key).tolist() for key in keys]
    assert len({str(values) for values in first}) == 4


@pytest.mark.parametrize("count, batch", [(10, 5), (10, 4), (7, 3), (9, 8), (300, 256)])
def test_no_example_twice_in_a_batch_or_an_epoch(count, batch):
    epochs = []
    for epoch in range(6):
        first = epoch * (count // batch)
        steps = range(first, first + count // batch)
        rows = np.concatenate([data.batch_indices(count, batch, 1, step) for step in steps])
        assert len(rows) == count // batch * batch
        assert len(set(rows.tolist())) == len(rows) and set(rows.tolist()) <= set(range(count))
        epochs.append(tuple(rows.tolist()))
    assert len(set(epochs)) == 6   # reshuffled
    assert set(sum(epochs, ())) == set(range(count))   # what one epoch leaves over comes later
    assert epochs[0] != tuple(data.batch_indices(count, batch, 2, 0).tolist())
    # resuming at a step, in any order, gives the same batch
    assert data.batch_indices(count, batch, 1, 0).tolist() == list(epochs[0][:batch])


@pytest.mark.parametrize("count, batch", [(5, 8), (3, 10), (1, 4)])
def test_a_batch_larger_than_the_data_repeats_as_little_as_it_can(count, batch):
    seen = set()
    for step in range(20):
        rows = data.batch_indices(count, batch, 0, step)
        times = np.bincount(rows, minlength=count)
        assert len(rows) == batch
        assert times.min() == batch // count and times.max() == -(-batch // count)
        seen.add(tuple(rows.tolist()))
    assert len(seen) > 1 or count == 1


def test_one_permutation_of_four_bytes_an_example_is_kept():
    data._permutation.cache_clear()
    for step in range(30):
        assert data.batch_indices(1000, 100, 0, step).dtype == np.int32
    assert data._permutation.cache_info().currsize == 1
    assert data._permutation(1000, 0, 2).nbytes == 4000


def test_derangement():
    seen = set()
    for trial in range(300):
        order = data.derangement(4, data.numpy_generator(trial))
        assert sorted(order) == [0, 1, 2, 3] and (order != np.arange(4)).all()
        seen.add(tuple(order.tolist()))
    assert len(seen) == 9   # all derangements of four do occur
    with pytest.raises(model.UserError, match="at least 2"):
        data.derangement(1, data.numpy_generator(0))


class Numbers:
    """Batches that say which process made them."""

    def __getitem__(self, key):
        step, indices = key
        if step == 9:
            raise model.UserError("video 9 is missing")
        return [{"step": torch.tensor(step), "rows": torch.from_numpy(indices),
                 "pid": torch.tensor(os.getpid())}]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_do_not_depend_on_workers(workers):
    args = argparse.Namespace(workers=workers, batch=6, seed=2)
    feed = data.Feed(Numbers(), 40, args, slice(2, 5), 4, data.Processes("cpu"))
    for step in range(4, 9):
        part, = next(feed)
        assert part["step"] == step
        assert part["rows"].tolist() == data.batch_indices(40, 6, 2, step)[2:5].tolist()
        assert (part["pid"] == os.getpid()) == (workers == 0)
    assert feed.waited > 0
    with pytest.raises(model.UserError, match="^video 9 is missing$"):   # no traceback
        next(feed)


def one_batch(batches):
    args = argparse.Namespace(workers=1, batch=6, seed=2)
    return next(data.Feed(batches, 40, args, slice(0, 6), 4, data.Processes("cpu")))


def test_workers_are_forked_whatever_the_default_is():
    """They share what is mapped: nothing is sent to them, so it need not be something to send."""
    class Local(Numbers):
        pass
    multiprocessing.set_start_method("spawn", force=True)
    try:
        part, = one_batch(Local())
    finally:
        multiprocessing.set_start_method(None, force=True)
    assert part["pid"] != os.getpid()


class Killed(Numbers):
    def __getitem__(self, key):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_stage():
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        one_batch(Killed())


def test_no_room_for_batches_is_said(monkeypatch):
    """What fails in torch's own thread of a worker would be waited for for ever."""
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory: No space left on device")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(model.UserError, match="no room .* No space left .* larger /dev/shm"):
        one_batch(Numbers())


def test_a_worker_has_time_to_serve_after_a_signal_to_all(tmp_path):
    """It outlives a SIGTERM that its parent has, too; five seconds, if nobody ends it."""
    def serve():
        data.outlast_signals(0)
        (tmp_path / "ready").touch()
        signal.pause()   # returns at SIGTERM
        (tmp_path / "served").touch()
        signal.pause()

    worker = multiprocessing.get_context("fork").Process(target=serve)
    worker.start()
    while not (tmp_path / "ready").exists():
        assert worker.is_alive()
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == -signal.SIGALRM and (tmp_path / "served").exists()


def test_signals_are_noted_but_those_that_were_ignored():
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)   # if these tests run under nohup
    before = [signal.getsignal(number) for number in signals]
    for number in signals:
        processes = data.Processes("cpu")
        processes.note_signals()
        os.kill(os.getpid(), number)
        assert processes.noted(0) == number
        assert signal.getsignal(number) == signal.SIG_DFL   # a second one ends it
        processes.close()
        assert [signal.getsignal(each) for each in signals] == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)   # nohup
    processes.note_signals()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    processes.close()
    signal.signal(signal.SIGHUP, before[2])


def test_numbers_and_weights_that_are_not_finite():
    processes = data.Processes("cpu")
    tracker = data.Tracker(["mlm"], processes.device)
    tracker.add(7, torch.tensor([2.0]), torch.tensor(3.0))
    assert tracker.read(processes, "stop") == {"mlm": 2.0, "grad_norm": 3.0}
    kept = [torch.tensor([3.0, 4.0])]
    assert tracker.read(processes, "stop", kept)["weight_norm"] == 5.0
    for number in (torch.nan, torch.inf, 1e30):   # whose square is beyond fp32
        with pytest.raises(model.UserError, match="weight_norm (nan|inf) at step 7; stop"):
            tracker.read(processes, "stop", [*kept, torch.tensor([number])])
    tracker.add(8, torch.tensor([torch.nan]), torch.tensor(3.0))
    tracker.add(9, torch.tensor([2.0]), torch.tensor(3.0))
    with pytest.raises(model.UserError, match="mlm nan, grad_norm 3.0 at step 8; stop"):
        tracker.read(processes, "stop")


# --- the disk


@pytest.fixture
def small_files():
    """No file may be larger than 100,000 bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, small_files, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    before = tmp_path / "checkpoint-before.pt"
    model.save_checkpoint(path, before, step=1)
    with pytest.raises(OSError, match="File too large"):
        model.save_checkpoint(path, before, step=2, weights=torch.zeros(100000))
    assert model.load_checkpoint(path, before)["step"] == 1


def test_what_users_can_mend_is_one_sentence(monkeypatch):
    def main():
        raise model.UserError("--lr is too high")

    monkeypatch.setattr(sys, "argv", ["some/stage.py"])
    with pytest.raises(SystemExit, match="^stage.py: --lr is too high$"):
        model.command(main)


def test_a_missing_file_may_be_the_codes_mistake():
    with pytest.raises(FileNotFoundError):
        model.command(lambda: open("nowhere"))


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def lockf(*given):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(data.fcntl, "lockf", lockf)
    data.lock(tmp_path)
    assert "cannot be locked (Function not implemented): only one run" in capsys.readouterr().out
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {platform.node()}"


# --- log and run folder


def test_log_resumes_at_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    log = data.Log(path, True, 0)
    for step in (10, 20, 30):
        log(step, 100, loss=step / 7, note="x")
    log.file.close()
    path.write_text(re.sub(r'"seconds": [\d.]+', '"seconds": 500', path.read_text()))
    with open(path, "a") as file:
        file.write('x{"step": 35}\n3\n{"step": 40, "loss": 1.')   # damaged; killed while writing
    log = data.Log(path, True, 20)              # the checkpoint is of step 20: 30 will come again
    log(30, 100, loss=0.5)
    log.file.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(10, 10 / 7), (20, 20 / 7), (30, 0.5)]
    assert rows[0]["note"] == "x"
    assert 500 <= rows[2]["seconds"] < 600   # those of all starts
    data.Log(tmp_path / "other.jsonl", False, 0)(1, 2, loss=1.0)
    assert not (tmp_path / "other.jsonl").exists()   # only the master writes


def test_bad_json_names_file_and_line(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(model.UserError, match="a.json is missing; `make it` makes it"):
        data.read_json(path, "make it")
    path.write_text('{"a": 1,\n oops}')
    with pytest.raises(model.UserError, match="a.json, line 2: not valid JSON"):
        data.read_json(path, "")
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(model.UserError, match=r"a.json: not UTF-8 \(byte 7\)"):
        data.read_json(path, "")
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert data.read_json(path, "") == data.read_json(path, "", "a") == {"a": 1}
    with pytest.raises(model.UserError, match="a.json lacks b, c; `make it` makes it anew"):
        data.read_json(path, "make it", "b", "a", "c")
    path.write_text("[1]")
    with pytest.raises(model.UserError, match="a.json lacks a$"):
        data.read_json(path, "", "a")


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("notes")
    for folder in ("run", "run/teacher"):
        with pytest.raises(model.UserError, match=f"{folder} is a file, or lies in one"):
            data.lock(tmp_path / folder)
    assert (tmp_path / "run").read_text() == "notes"


ARGUMENTS = {"seed": 0, "lr": 1e-3, "device": "auto", "data": "data/mini", "log_every": 5}
INPUTS = {"captions": "a1", "tokenizer": "b2"}


def start(folder, arguments={}, precision="fp32", inputs=INPUTS):
    data.open_run(folder, {**ARGUMENTS, **arguments}, data.Processes("cpu"), precision, inputs)


def test_a_run_folder_keeps_arguments_and_inputs(tmp_path):
    start(tmp_path / "run")
    written = json.loads((tmp_path / "run" / "args.json").read_text())
    assert written["arguments"] == ARGUMENTS and written["inputs"] == INPUTS
    assert written["precision"] == "fp32" and written["torch"] == torch.__version__


def test_paths_and_what_changes_no_number_may_change(tmp_path):
    for changes in ({}, {"device": "cpu"}, {"log_every": 1}, {"data": "./data/mini/"}):
        start(tmp_path / "run", changes)


@pytest.mark.parametrize("changes, message", [
    ({"arguments": {"lr": 2e-3}}, r"\(--lr 0.001 -> 0.002\); choose another --out"),
    ({"precision": "bf16"}, r"\(precision fp32 -> bf16\)"),
    ({"inputs": {**INPUTS, "captions": "a2"}}, r"\(another captions\)"),
    ({"inputs": {"tokenizer": "b3"}}, r"\(another captions, another tokenizer\)"),
])
def test_what_changed_is_named(tmp_path, changes, message):
    start(tmp_path / "run")
    with pytest.raises(model.UserError, match=message):
        start(tmp_path / "run", **changes)


def test_a_run_without_git_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = data.provenance(torch.device("cpu"))
    assert facts["commit"] is None and not facts["uncommitted changes"]
    assert facts["torch"] == torch.__version__


# --- devices and processes


def test_precision():
    cpu = torch.device("cpu")
    assert data.settle_precision("fp32", cpu) == ("fp32", None)
    assert data.settle_precision("bf16", cpu) == ("bf16", torch.bfloat16)
    assert data.settle_precision("auto", cpu)[0] in ("fp32", "bf16")


@pytest.mark.parametrize("capability, precision", [
    ((7, 0), "fp32"), ((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_bf16_is_not_emulated(monkeypatch, capability, precision):
    """V100, T4 and RTX 2080 Ti are below 8.0, though PyTorch says that they support bf16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert data.settle_precision("auto", torch.device("cuda:0"))[0] == precision


@pytest.mark.parametrize("rank, said", [("0", "4 processes train on the CPU"), ("1", "")])
def test_torchrun_without_a_gpu_is_said_once(monkeypatch, capsys, rank, said):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(data.dist, "init_process_group", lambda backend: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data.Processes("cpu")
    assert capsys.readouterr().out == ""   # who asks for it knows
    assert data.Processes("auto").device.type == "cpu"
    printed = capsys.readouterr().out
    assert said in printed and (said or not printed)
    for name, message in (("gpu", "auto, cpu, cuda, cuda:N or mps"), ("cuda", "has none")):
        with pytest.raises(model.UserError, match=f"--device {name}: .*{message}"):
            data.usable_device(name)


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused(monkeypatch, asked):
    started = []
    monkeypatch.setattr(data.dist, "init_process_group", started.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", started.append)
    monkeypatch.setenv("WORLD_SIZE", "6")   # of two machines
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(model.UserError, match="this machine: 3, GPUs visible: 2;"):
        data.Processes(asked)
    assert not started
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert data.Processes(asked).device == torch.device("cuda:1")
    assert started == [torch.device("cuda:1"), "nccl"]


def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(model.UserError, match="GPUs visible: 0; .*--device cpu"):
        data.Processes("cuda")   # conftest.py hides one that is there


def test_rows_cover_the_batch():
    processes = data.Processes("cpu")
    assert processes.master and processes.rows(6) == slice(0, 6) and processes.sum(2.5) == 2.5
    processes.world = 3
    taken = []
    for rank in range(3):
        processes.rank = rank
        taken += range(12)[processes.rows(12)]
    assert taken == list(range(12))
    with pytest.raises(model.UserError, match="global batch 10 does not divide by 3 processes"):
        processes.rows(10)


B = 6   # of the two-process check
H = 4


def loss_of(processes):
    """Every row meets every other, through gather; each process counts its own rows."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(H, H, generator=generator).requires_grad_()
    inputs = torch.randn(B, H, generator=generator)
    targets = torch.randint(B, (B,), generator=generator)
    rows = processes.rows(B)
    other = torch.randn(H, H, generator=generator).requires_grad_()
    everyone = processes.gather(torch.tanh(inputs[rows] @ weight @ other))   # [B, H]
    scores = everyone[rows] @ everyone.T
    unused = torch.zeros(3, requires_grad=True)   # without a gradient it must not disturb
    head = torch.zeros(3, requires_grad=True)
    for members, steps in (([other, weight, head], 1), ([other, weight], 2)):   # earlier runs
        gradients = data.GradientSum(members, processes.world, message=H * H + 3)
        gradients.on = True
        for _ in range(steps):
            other.grad = weight.grad = head.grad = None
            (inputs @ other @ weight.sum(1) + sum(each.sum() for each in members)).sum().backward()
            gradients.finish()
        gradients.close()
    other.grad = weight.grad = None
    gradients = data.GradientSum([unused, other, weight], processes.world, message=20)
    loss = F.cross_entropy(scores, targets[rows], reduction="sum") / B
    (loss / 4).backward(retain_graph=True)   # of the first part of a batch: is not sent
    gradients.on = True
    (loss * 3 / 4).backward()
    gradients.finish()
    return {"loss": processes.sum(loss).detach(), "everyone": everyone.detach(),
            "gradient": weight.grad, "other gradient": other.grad}


def worker(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    processes = data.Processes("cpu")
    state = loss_of(processes)
    assert processes.rows(B) == slice(3 * rank, 3 * rank + 3)
    assert processes.master == (rank == 0) and processes.sum(torch.tensor(rank + 1)) == 3
    assert processes.from_all(rank) == [0, 1]
    network = torch.nn.Linear(2, 2)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.zeros_(network.bias)
    processes.check_equal("runs/a", {"lr": 1, "out": rank}, network)   # paths may differ
    network.bias.data += rank
    for name, facts in (("lr", {"lr": rank}), ("weights", {})):
        with pytest.raises(model.UserError, match=f"process 1 starts from another {name}"):
            processes.check_equal("runs/a", facts, network)
    torch.save(state, f"{folder}/{rank}.pt")
    processes.close()


def test_two_processes_equal_one(tmp_path):
    """Loss and gradients through gather and GradientSum: 2 gloo processes against one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, args=(port, str(tmp_path)), nprocs=2)
    expected = loss_of(data.Processes("cpu"))
    assert expected["gradient"].abs().max() > 0.01
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in expected.items():   # `everyone` in rank order
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
