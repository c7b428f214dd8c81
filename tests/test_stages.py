"""The pretraining stages as commands: resuming, several processes, what trains and what does not.

    python -m pytest -q tests/test_stages.py      # REAL_DATA=folder adds the run on real files
"""
import dataclasses
import json
import math
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import data
import distill
import evaluate
import finetune
import model
import teacher

ROOT = Path(__file__).resolve().parent.parent
COMMON = ["--batch", "16", "--steps", "5", "--precision", "fp32", "--dropout", "0",
          "--log-every", "1"]
TEACHER = [*COMMON, "--lr", "1e-3"]
STUDENT = [*COMMON, "--crd-queue", "64", "--crd-tokens", "4"]
OBJECTIVES = distill.OBJECTIVES[1:]
FORK = multiprocessing.get_context("fork")   # which need not import torch again


def logged(run, *names):
    """{step: [values]} of the log lines that hold all the names."""
    rows = {}
    for line in (Path(run) / "log.jsonl").read_text().splitlines():
        values = json.loads(line)
        if set(names) <= values.keys():
            rows[values["step"]] = [values[name] for name in names]
    return rows


def process_of_many(main, command, rank, count, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    main(command)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_in_processes(count, main, command):
    """Runs a stage in `count` processes, as torchrun does."""
    port = free_port()
    started = []
    for rank in range(count):
        started.append(FORK.Process(target=process_of_many,
                                    args=(main, command, rank, count, port)))
        started[-1].start()
    for process in started:
        process.join(240)
        assert process.exitcode == 0


def weights(run):
    return torch.load(Path(run) / "model" / "pytorch_model.bin", weights_only=True)


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def change(path, **values):
    """Changes keys of a JSON file."""
    data.write_json(path, {**data.read_json(path, ""), **values})


@pytest.fixture(scope="module")
def taught(mini, tmp_path_factory):
    """A teacher of five steps."""
    run = tmp_path_factory.mktemp("taught") / "teacher"
    teacher.main(["--data", str(mini), "--out", str(run), *TEACHER])
    return run


@pytest.fixture(scope="module")
def bank(mini, tmp_path_factory):
    """A bank of 70 clips: more than a batch of the encoder, fewer than two."""
    path = tmp_path_factory.mktemp("bank") / "bank.json"
    data.make_bank(mini, "train", 70, 0, 32, path)
    return path


@pytest.fixture(scope="module")
def student(taught, bank):
    """Flags of a student of all objectives at once, their weights found as warm-up ends."""
    return ["--teacher", str(taught), *STUDENT, "--objective", *OBJECTIVES, "--bank", str(bank),
            "--voken-labels", "shuffled", "--gradient-ratio", "2", "--warmup", "3"]


@pytest.fixture(scope="module")
def distilled(student, tmp_path_factory):
    """The student of five steps."""
    run = tmp_path_factory.mktemp("distilled") / "student"
    distill.main([*student, "--out", str(run)])
    return run


# --- processes and resuming


def check_equal(one, more, losses, others):
    """The logs of two runs: equal losses, gradient norms and weights at each step."""
    expected = logged(one, *losses, *others)
    ours = logged(more, *losses, *others)
    assert sorted(ours) == sorted(expected) == [1, 2, 3, 4, 5]
    for step in expected:
        for name, value, wanted in zip(losses + others, ours[step], expected[step]):
            tolerance = {"rel": 1e-4}
            if name in losses:   # CRD is a sum over 64 negatives
                tolerance = {"abs": 1e-5 * max(1, wanted)}
            assert value == pytest.approx(wanted, **tolerance), f"{name} at step {step}"


@pytest.mark.parametrize("loss, count", [("nce", 4), ("hinge", 2), ("hinge-all", 2)])
def test_teacher_of_several_processes_equals_one(mini, tmp_path, loss, count):
    command = ["--data", str(mini), *TEACHER, "--contrastive", loss, "--out"]
    run_in_processes(count, teacher.main, [*command, str(tmp_path / "more")])
    teacher.main([*command, str(tmp_path / "one")])
    check_equal(tmp_path / "one", tmp_path / "more", ["contrastive", "mlm"], ["grad_norm"])


def test_distillation_of_several_processes_equals_one(student, distilled, tmp_path):
    losses = ["mlm", *OBJECTIVES]
    others = ["grad_norm", *[f"{name}_grad" for name in losses]]
    others += [f"{name}_weight" for name in OBJECTIVES]
    run_in_processes(4, distill.main, [*student, "--out", str(tmp_path / "4")])
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
                    "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "distill.py", *student,
                    "--out", str(tmp_path / "2")], cwd=ROOT, check=True, timeout=240)
    for count in ("2", "4"):
        check_equal(distilled, tmp_path / count, losses, others)


@pytest.mark.parametrize("count, parts", [(1, 2), (1, 4), (2, 2)])
def test_a_batch_in_parts_equals_the_whole(taught, bank, tmp_path, count, parts):
    objectives = ["nst", "crd", "regression", "soft-label", "voken"]
    command = ["--teacher", str(taught), *STUDENT, "--objective", *objectives, "--bank", str(bank)]
    more = [*command, "--accumulate", str(parts), "--out", str(tmp_path / "more")]
    run_in_processes(count, distill.main, more)
    distill.main([*command, "--out", str(tmp_path / "one")])
    names = ["mlm", *objectives, "grad_norm"]
    expected = logged(tmp_path / "one", *names)
    for step, values in logged(tmp_path / "more", *names).items():
        assert values == pytest.approx(expected[step], rel=2e-6 if step == 1 else 2e-5, abs=1e-7)
    for name, tensor in weights(tmp_path / "one").items():
        assert (weights(tmp_path / "more")[name] - tensor).abs().max() < 1e-5


def test_what_needs_the_whole_batch_says_so(taught):
    for flags in (["--objective", "ntxent"], ["--gradient-ratio", "1"], ["--graphs"]):
        with pytest.raises(model.UserError, match="whole.*leave"):
            distill.parse_args(["--teacher", str(taught), "--accumulate", "2", *flags])
    with pytest.raises(model.UserError, match="--graphs is for compiled steps"):
        distill.parse_args(["--teacher", str(taught), "--graphs"])
    with pytest.raises(model.UserError, match="16 does not divide by 1 processes x 3 parts"):
        distill.main(["--teacher", str(taught), *STUDENT, "--accumulate", "3"])


@pytest.mark.parametrize("stage", [teacher, distill])
def test_weights_do_not_depend_on_workers(stage, mini, student, tmp_path):
    command = ["--data", str(mini), *TEACHER] if stage is teacher else student
    for workers in ("0", "1", "3"):
        stage.main([*command, "--workers", workers, "--out", str(tmp_path / workers)])
        assert same(weights(tmp_path / "0"), weights(tmp_path / workers))


@pytest.mark.parametrize("stage", [teacher, distill])
def test_a_step_is_one_graph(stage, mini, taught, tmp_path, monkeypatch):
    """What --compile takes is captured whole, and computes the same; test_gpu.py compiles it."""
    command = ["--data", str(mini), *TEACHER]
    names = ["contrastive", "mlm", "grad_norm"]
    if stage is distill:
        command = ["--teacher", str(taught), *STUDENT]
        names = ["nst", "crd", "mlm", "grad_norm"]
    command += ["--log-every", "4"]   # between these, steps are compiled
    stage.main([*command, "--out", str(tmp_path / "off")])
    steps_a_clip = []   # of each batch, the teacher's

    def captured(function, *rest):
        whole = torch.compile(function, backend="aot_eager", fullgraph=True)

        def call(*given):
            if function is teacher.forward:
                steps_a_clip.append(given[1]["features"].shape[1])
            return whole(*given)
        return call

    monkeypatch.setattr(model, "compiled", captured)
    stage.main([*command, "--out", str(tmp_path / "on")])
    assert not any(count % 8 for count in steps_a_clip)   # one alignment, so compiled once
    assert len(steps_a_clip) == (5 if stage is teacher else 0)
    expected = logged(tmp_path / "off", *names)
    for step, values in logged(tmp_path / "on", *names).items():
        assert values == pytest.approx(expected[step], rel=1e-3)
    assert len(expected) == 2


class Reads(TorchDispatchMode):
    """Collects what would wait for a GPU: values or shapes that Python asks for, numbers that it
    sends."""
    names = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "lift_fresh"}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_"):
            picked = [each for each in args[1] if each is not None]
            if any(each.dtype == torch.bool for each in picked):   # as many as are True
                self.seen.append(name)
        if name in self.names:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", [teacher, distill, finetune])
def test_a_step_that_is_not_logged_reads_nothing_back(stage, mini, taught, student, tmp_path,
                                                      monkeypatch):
    reads = Reads()
    reads.seen = []
    steps = []
    lr_at = model.lr_at

    def watched(step, *rest):   # the first call of every step, once a parameter group
        if step in steps:
            return lr_at(step, *rest)
        steps.append(step)
        if step % 4 == 1:   # steps 0, 4 and 8 are logged, of finetune.py 3 and 7
            reads.__enter__()
        if step % 4 == 3:
            reads.__exit__(None, None, None)
        return lr_at(step, *rest)

    monkeypatch.setattr(model, "lr_at", watched)
    monkeypatch.setattr(model, "shapes_are_free", lambda device: False)   # as on a GPU
    command = {
        teacher: ["--data", str(mini), *TEACHER, "--contrastive", "hinge", "--steps", "9"],
        distill: [*student, "--warmup", "0", "--steps", "9"],
        finetune: ["--model", str(taught), "--data", f"{mini}/tasks", "--task", "QNLI", "--batch",
                   "32", "--train-limit", "128", "--epochs", "2", "--warmup", "0"],
    }[stage]
    stage.main([*command, "--log-every", "4", "--out", str(tmp_path)])
    assert steps == list(range(len(steps))) and len(steps) >= 8
    # finetune.py makes its batches, from numpy, in the loop itself
    assert set(reads.seen) == ({"lift_fresh"} if stage is finetune else set())
    with reads:
        assert torch.ones(3)[torch.tensor([True, False, True])].sum().item() == 2
    assert set(reads.seen) == {"lift_fresh", "index", "_local_scalar_dense"}


def test_where_compiling_fails_it_is_said_once(monkeypatch):
    def broken(function, mode):
        def call(*given):
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nand more")
        return call

    said = []
    monkeypatch.setattr(torch, "compile", broken)
    double = model.compiled(lambda x: 2 * x, "on", torch.device("cpu"), said.append)
    assert [double(1), double(2)] == [2, 4]
    assert said == ["compiling failed, so it goes on without: no compiler"]
    assert model.compiled(len, "auto", torch.device("cpu"), said.append) is len


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def begin(stage, command, run):
    """Starts a stage in another process and waits for its first checkpoint."""
    process = FORK.Process(target=stage.main, args=([*command, "--out", str(run)],))
    process.start()
    while not (run / "checkpoint.pt").exists():
        assert process.is_alive()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("stage, number, code", [
    (teacher, signal.SIGTERM, 143), (distill, signal.SIGINT, 130)])
def test_a_signal_is_a_checkpoint_and_an_exit_code(stage, number, code, mini, student, tmp_path,
                                                   capfd):
    command = ["--data", str(mini), *TEACHER] if stage is teacher else student
    command = [*command, "--steps", "20", "--save-every", "3"]
    run = tmp_path / "stopped"
    process = begin(stage, command, run)
    time.sleep(0.3)
    for child in children_of(process.pid):   # some clusters send it to every process
        os.kill(child, number)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    step = model.load_checkpoint(run / "checkpoint.pt")["step"]
    said = capfd.readouterr()
    assert f"step {step}: stopped by {number.name}; the same command goes on" in said.out
    assert "Traceback" not in said.err
    assert 3 <= step < 20
    stage.main([*command, "--out", str(run)])
    stage.main([*command, "--out", str(tmp_path / "straight")])
    assert same(weights(tmp_path / "straight"), weights(run))


def test_a_signal_to_one_process_stops_all_at_the_same_step(mini, tmp_path, capfd):
    command = ["--data", str(mini), *TEACHER, "--steps", "200", "--save-every", "5", "--out",
               str(tmp_path / "run")]
    port = free_port()
    started = []
    for rank in range(2):
        started.append(FORK.Process(target=process_of_many,
                                    args=(teacher.main, command, rank, 2, port)))
        started[-1].start()
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        time.sleep(0.01)
    os.kill(started[1].pid, signal.SIGTERM)
    for process in started:
        process.join(60)
        assert process.exitcode == 143
    assert capfd.readouterr().out.count("stopped by SIGTERM") == 1


def test_one_folder_one_run(mini, tmp_path):
    command = ["--data", str(mini), *TEACHER, "--steps", "5000", "--save-every", "1"]
    run = tmp_path / "run"
    process = begin(teacher, command, run)
    with pytest.raises(model.UserError, match=f"is being written by process {process.pid} on "):
        teacher.main([*command, "--out", str(run)])
    process.kill()
    process.join()
    # where it was killed between two renames, the one before is there alone
    state = model.load_checkpoint(run / "checkpoint.pt", run / "checkpoint-before.pt")
    step = state["step"]
    command[-3] = str(step + 1)
    change(run / "args.json", arguments={
        **data.read_json(run / "args.json", "")["arguments"], "steps": step + 1})
    teacher.main([*command, "--out", str(run)])   # a dead process holds nothing


@pytest.mark.parametrize("kind", ["complete", "killed before the last save", "another --lr"])
def test_machines_that_share_no_folder_are_told(mini, taught, tmp_path, capfd, kind):
    """Two machines, one of which lacks the checkpoint, or has other flags."""
    commands = []
    for rank in range(2):
        commands.append(["--data", str(mini), *TEACHER, "--out", str(tmp_path / str(rank))])
    what = "step, weights"
    if kind == "another --lr":
        commands[1] += ["--lr", "1e-4"]
        what = "lr"
    else:
        shutil.copytree(taught, tmp_path / "0")
    if kind == "killed before the last save":
        (tmp_path / "0" / "model" / "video_encoder.pt").unlink()
    port = free_port()
    started = []
    for rank in range(2):
        started.append(FORK.Process(target=process_of_many, args=(
            teacher.main, commands[rank], rank, 2, port)))
        started[-1].start()
    for process in started:
        process.join(60)
        assert process.exitcode == 1
    assert re.search(f"process 1 starts from another {what} than process 0: all "
                     "machines need the same", capfd.readouterr().err)


@pytest.mark.parametrize("stage", [teacher, distill])
def test_killed_stage_goes_on_to_equal_weights(stage, mini, student, tmp_path):
    command = ["--data", str(mini), *TEACHER, "--shuffle-pairs"]
    if stage is distill:
        command = [*student, "--warmup", "9"]   # killed while measuring
    command += ["--steps", "20", "--dropout", "0.1", "--save-every", "5", "--log-every", "5"]
    killed = tmp_path / "killed"
    process = begin(stage, command, killed)
    process.kill()
    process.join()
    assert 0 < model.load_checkpoint(killed / "checkpoint.pt")["step"] < 20
    assert not (killed / "model").exists()
    stage.main([*command, "--out", str(killed)])
    stage.main([*command, "--out", str(tmp_path / "straight")])
    assert same(weights(tmp_path / "straight"), weights(killed))
    assert logged(killed, "mlm") == logged(tmp_path / "straight", "mlm")
    assert list(logged(killed, "mlm")) == [1, 6, 11, 16, 20]


def test_only_errors_for_users_become_a_sentence(tmp_path, monkeypatch):
    """A reader's own mistake keeps its traceback, even where it is a ValueError."""
    monkeypatch.chdir(tmp_path)

    def run(stage, *flags):
        monkeypatch.setattr(sys, "argv", [stage, *flags])
        runpy.run_path(str(ROOT / stage), run_name="__main__")

    def mistake(*given):
        raise ValueError("my own mistake")

    with pytest.raises(SystemExit, match="^teacher.py: no features in data/mini"):
        run("teacher.py")
    with pytest.raises(SystemExit, match="^distill.py: runs/teacher/args.json is missing"):
        run("distill.py")
    monkeypatch.setattr(data, "settle_precision", mistake)
    with pytest.raises(ValueError, match="my own mistake"):
        run("teacher.py")
    with pytest.raises(ValueError, match="my own mistake"):
        run("distill.py", "--text", "nowhere", "--size", "mini")


# --- one folder, one run


def test_finished_stage_returns_and_changed_flags_are_refused(taught, mini, capsys):
    command = ["--data", str(mini), "--out", str(taught), *TEACHER]
    before = (taught / "model" / "pytorch_model.bin").stat().st_mtime_ns
    teacher.main(command)
    assert "complete after 5 steps, nothing to do" in capsys.readouterr().out
    assert (taught / "model" / "pytorch_model.bin").stat().st_mtime_ns == before
    teacher.main([*command, "--valid-every", "3"])   # looks, and changes nothing
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(model.UserError, match="--lr 0.001 -> 0.5"):
        teacher.main([*command, "--lr", "0.5"])


def test_paths_do_not_decide_what_lies_there_does(mini, taught, tmp_path, monkeypatch, capsys):
    """The same data under other names is the same run; a teacher made anew is another one."""
    monkeypatch.chdir(mini.parent)
    run = tmp_path / "teacher"
    shutil.copytree(taught, run)
    for name in (f"{mini.name}/", f"./{mini.name}"):
        teacher.main(["--data", name, "--out", str(run), *TEACHER])
        assert "nothing to do" in capsys.readouterr().out
    one_step = [*STUDENT, "--steps", "1", "--out"]
    command = ["--teacher", str(run), *one_step, str(tmp_path / "student")]
    two_stage = ["--init", str(run / "model"), "--objective", "none", "--text",
                 str(mini / "text"), "--size", "mini", *one_step, str(tmp_path / "two-stage")]
    distill.main(command)
    distill.main(two_stage)
    capsys.readouterr()
    distill.main([*command, "--text", f"./{mini.name}/text", "--teacher", str(taught)])
    distill.main([*two_stage, "--init", str(taught / "model")])
    assert capsys.readouterr().out.count("nothing to do") == 2
    state = weights(run)
    state["bert.embeddings.LayerNorm.bias"] += 1
    torch.save(state, run / "model" / "pytorch_model.bin")
    with pytest.raises(model.UserError, match=r"inputs \(another teacher\)"):
        distill.main(command)
    with pytest.raises(model.UserError, match=r"inputs \(another init\)"):
        distill.main(two_stage)


def test_dry_run_measures_and_writes_nothing(mini, taught, tmp_path, capsys):
    steps = ["--steps", "1000", "--dry-run"]
    teacher.main(["--data", str(mini), "--out", str(tmp_path / "t"), *TEACHER, *steps])
    distill.main(["--teacher", str(taught), "--out", str(tmp_path / "s"), *STUDENT, *steps])
    said = capsys.readouterr().out
    assert len(re.findall(r"ms a step \(\d+ of them waiting for data\) x 1000 steps", said)) == 2
    assert not list(tmp_path.iterdir())


def test_of_steps_and_epochs_the_given_one_decides(taught):
    assert teacher.parse_args([]).steps == 600
    assert teacher.parse_args(["--epochs", "3"]).steps is None
    assert teacher.parse_args(["--size", "base", "--steps", "7"]).epochs is None
    flags = ["--teacher", str(taught), "--size", "base", "--epochs", "2"]
    assert distill.parse_args(flags).steps is None


# --- what trains


def test_every_parameter_of_the_teacher_moves(taught):
    """The authors' video branch was never in their optimiser, and nothing would have noticed."""
    state = model.load_checkpoint(taught / "checkpoint.pt")
    torch.manual_seed(0)
    config = model.load_hf(taught / "model")[0]
    trained, _ = model.load_video_encoder(taught / "model" / "video_encoder.pt")
    torch.manual_seed(0)
    bert = model.Bert(config)
    head = model.MLMHead(config, bert.tokens)
    video = model.VideoEncoder(trained.config, trained.stream_dims)
    for name, module in (("bert", bert), ("mlm_head", head), ("video_encoder", video)):
        start = dict(module.named_parameters())
        assert len(start) > 4
        for key, value in start.items():
            moved = not torch.equal(value, state["networks"][f"{name}.{key}"])
            assert moved, f"{name} {key} never moved"


def test_the_exercises_change_is_what_that_test_notices(mini, tmp_path):
    """README's exercise 8: the stage still runs, and the video encoder stays where it was."""
    readme = Path(teacher.__file__).with_name("README.md").read_text(encoding="utf-8")
    new, old = re.search(r"In teacher.py write `(.*?)` for `(.*?)`", readme).groups()
    source = Path(teacher.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1
    changed = types.ModuleType("changed")
    exec(source.replace(old, new), changed.__dict__)
    changed.main(["--data", str(mini), "--out", str(tmp_path / "run"), *TEACHER])
    with pytest.raises(AssertionError, match="video_encoder .* never moved"):
        test_every_parameter_of_the_teacher_moves(tmp_path / "run")


def test_distillation_moves_student_and_heads_and_not_the_teacher(taught, student, tmp_path):
    before = weights(taught)
    run = tmp_path / "run"
    distill.main([*student, "--steps", "1", "--out", str(run)])
    assert same(before, weights(taught))
    heads = model.load_checkpoint(run / "model" / "distill_heads.pt")["weights"]
    assert heads["crd.student_constant"] != 0 and not heads["crd.student_queue"].isnan().any()
    assert {key.split(".")[0] for key in heads} == {
        "crd", "nst_head", "crd_head", "ntxent_head", "regression_head", "voken_head"}
    state = model.load_checkpoint(run / "checkpoint.pt")
    buffers = [key for key in heads if not key.endswith((".weight", ".bias"))]
    count = sum(len(group["params"]) for group in state["optimizer"]["param_groups"])
    assert count == len(state["networks"]) - len(buffers) == len(state["optimizer"]["state"])
    for entry in state["optimizer"]["state"].values():
        assert float(entry["exp_avg"].abs().sum()) > 0


def test_gradient_ratio_sets_the_weights_as_warmup_ends(student, tmp_path, monkeypatch):
    """Each objective's gradient is 2 times MLM's: at step 0, and over the end of warm-up."""
    monkeypatch.setattr(distill, "MEASURED", 2)
    run = tmp_path / "run"
    distill.main([*student, "--out", str(run)])
    norms = logged(run, "mlm_grad", *[f"{name}_grad" for name in OBJECTIVES])
    set_to = logged(run, *[f"{name}_weight" for name in OBJECTIVES])
    for step, measured in {1: [1], 2: [2], 3: [2, 3], 4: [2, 3], 5: [2, 3]}.items():
        mlm, *rest = torch.tensor([norms[each] for each in measured]).sum(0).tolist()
        assert set_to[step] == pytest.approx([2 * mlm / pull for pull in rest], rel=1e-5)
    assert set_to[1] != set_to[2] != set_to[3]
    with pytest.raises(model.UserError, match="takes the place of the weights"):
        distill.main([*student, "--nst-weight", "3"])
    with pytest.raises(model.UserError, match="is above 0"):
        distill.main([*student, "--gradient-ratio", "0"])


def test_weights_weigh(mini, taught, tmp_path):
    """At weight 0, or a ratio of next to nothing, the student is the text-only one."""
    def mlm(name, *flags):
        run = tmp_path / name
        distill.main(["--teacher", str(taught), "--out", str(run), *STUDENT, "--objective", *flags])
        return [row[0] for row in logged(run, "mlm").values()]

    # which needs no teacher, and has the same blocks, masks and initial weights
    alone = mlm("none", "none", "--teacher", "nowhere", "--data", str(mini), "--size", "mini")
    assert mlm("zero", "regression", "--regression-weight", "0") == alone
    hardly = mlm("hardly", "regression", "--gradient-ratio", "1e-9")
    assert hardly == pytest.approx(alone, abs=1e-5)
    for name, flags in (("plain", []), ("ratio", ["--gradient-ratio", "1"])):
        values = mlm(name, "regression", *flags)
        assert values[0] == alone[0] and abs(values[4] - alone[4]) > 1e-3


def test_two_stage_starts_from_the_teacher(taught, tmp_path):
    """The teacher's encoder goes on with text alone: at rate 0 it comes out as it went in."""
    command = ["--init", str(taught / "model"), "--objective", "none", "--teacher", str(taught),
               *STUDENT, "--steps", "1"]
    distill.main([*command, "--lr", "0", "--out", str(tmp_path / "kept")])
    distill.main([*command, "--lr", "1e-3", "--out", str(tmp_path / "moved")])
    assert same(weights(taught), weights(tmp_path / "kept"))
    assert not same(weights(taught), weights(tmp_path / "moved"))


# --- kinds of teachers


def test_images_and_captions_only_are_flags(mini, student, tmp_path):
    image = ["--data", str(mini), *TEACHER, "--steps", "1", "--frames", "1"]
    teacher.main([*image, "--streams", "frame", "--out", str(tmp_path / "image")])
    encoder, settings = model.load_video_encoder(tmp_path / "image" / "model" / "video_encoder.pt")
    assert settings["streams"] == list(encoder.stream_dims) == ["frame"]
    assert settings["frames"] == 1
    with pytest.raises(model.UserError, match="one step of motion sees several frames"):
        teacher.main([*image, "--out", str(tmp_path / "bad")])
    captions = tmp_path / "captions"
    teacher.main(["--data", str(mini), "--out", str(captions), *TEACHER, "--contrastive", "none"])
    assert all(values == [0.0] for values in logged(captions, "contrastive").values())
    # both teach: one through every objective, the other through all that ask for no clip
    student = [*student, "--steps", "1", "--teacher"]
    distill.main([*student, str(tmp_path / "image"), "--out", str(tmp_path / "a")])
    with pytest.raises(model.UserError, match="a text-only teacher"):
        distill.main([*student, str(captions), "--out", str(tmp_path / "b")])
    clipless = [name for name in OBJECTIVES if name != "voken"]
    distill.main([*student, str(captions), "--objective", *clipless, "--out", str(tmp_path / "c")])
    assert not (tmp_path / "c" / "model" / "video_encoder.pt").exists()   # it was never trained


def test_shuffled_pairs(mini, taught, tmp_path):
    """Each text meets one other video's clip, always the same; its own text is as before."""
    clips = data.Clips(mini, "train", ["frame", "motion"], data.load_tokenizer(mini), 32, 48)
    flags = teacher.parse_args(["--shuffle-pairs"])
    other = teacher.partners(flags, clips, "train")
    assert sorted(other) == list(range(len(clips)))
    assert (other != range(len(clips))).all()
    assert (other == teacher.partners(flags, clips, "train")).all()
    half = teacher.partners(teacher.parse_args(["--shuffle-pairs", "0.5"]), clips, "train")
    moved = half != np.arange(len(clips))
    assert 0.35 < moved.mean() < 0.65 and (half[moved] == other[moved]).all()
    with pytest.raises(model.UserError, match="takes a share, 0 to 1"):
        teacher.parse_args(["--shuffle-pairs", "20"])
    flags.seed = 1
    assert (other != teacher.partners(flags, clips, "train")).any()
    tokens, features = teacher.pair(clips, 3, other[3])
    assert (tokens == clips.example(3)[0]).all()
    assert (features == clips.example(int(other[3]))[1]).all()
    run = tmp_path / "shuffled"
    teacher.main(["--data", str(mini), "--out", str(run), *TEACHER, "--shuffle-pairs"])
    ours = logged(run, "mlm", "contrastive")[1]
    expected = logged(taught, "mlm", "contrastive")[1]
    assert ours[0] == expected[0] and ours[1] != expected[1]   # the same texts, other clips


@pytest.mark.parametrize("stage", [teacher, distill])
def test_other_shapes(stage, mini, student, tmp_path, taught):
    command = ["--data", str(mini), *TEACHER] if stage is teacher else student
    command = [*command, "--layers", "1", "--width", "192", "--out"]
    stage.main([*command, str(tmp_path / "run")])
    config, bert, _ = model.load_hf(tmp_path / "run" / "model")
    assert (len(bert.layers), config.hidden_size, config.num_attention_heads) == (1, 192, 3)
    assert config.intermediate_size == 4 * 192
    with pytest.raises(model.UserError, match="--width 100 is no multiple of 64"):
        stage.main([*command, str(tmp_path / "other"), "--width", "100"])
    with pytest.raises(model.UserError, match="those of --init's model"):
        stage.main([*command, str(tmp_path / "other"), "--init", str(taught / "model")])


def test_the_teacher_reads_masked_or_clean_text(student, tmp_path, monkeypatch):
    seen = []
    losses_of = distill.losses_of

    def watched(args, networks, frozen, part, *rest):
        def read(tokens):
            seen.append((part["inputs"], part["tokens"], tokens))
            return frozen["teacher"](tokens)
        return losses_of(args, networks, {**frozen, "teacher": read}, part, *rest)

    monkeypatch.setattr(distill, "losses_of", watched)
    for given in ("masked", "clean"):
        seen.clear()
        distill.main([*student, "--objective", "nst", "crd", "--teacher-reads", given, "--out",
                      str(tmp_path / given)])
        for inputs, tokens, read in seen:
            assert torch.equal(read, tokens if given == "clean" else inputs)
            assert not torch.equal(tokens, inputs)
        assert len(seen) >= 5


def test_the_first_videos_alone(mini, tmp_path, monkeypatch, capsys):
    seen = set()
    real_example = data.Clips.example

    def example(clips, index, generator=None):
        seen.add(clips.ids[index])
        return real_example(clips, index, generator)
    monkeypatch.setattr(data.Clips, "example", example)
    tokenizer = data.load_tokenizer(mini)
    videos = {split: data.Clips(mini, split, [], tokenizer, 32, 48).ids
              for split in ("train", "valid")}
    command = ["--data", str(mini), *TEACHER, "--batch", "16", "--workers", "0"]
    teacher.main([*command, "--train-limit", "20", "--out", str(tmp_path / "run")])
    assert seen & set(videos["train"]) == set(videos["train"][:20])
    assert seen - set(videos["train"]) == set(videos["valid"][:256])   # validation is as ever
    assert "; 20 videos; " in capsys.readouterr().out


def test_fewer_videos_than_a_batch_is_said(mini, tmp_path, capsys):
    videos = len(data.Clips(mini, "train", [], data.load_tokenizer(mini), 32, 48))
    command = ["--data", str(mini), *TEACHER, "--dry-run"]
    teacher.main([*command, "--batch", str(videos + 5)])
    printed = capsys.readouterr().out
    assert f"only {videos} videos, so 5 of a batch's {videos + 5} clips are repeats" in printed
    teacher.main([*command, "--batch", str(videos - 1)])
    assert "repeats" not in capsys.readouterr().out


# --- students and what they are made of


def test_student_narrower_than_its_teacher(student, tmp_path, monkeypatch):
    narrow = dataclasses.replace(model.SIZES["mini"], hidden_size=48, intermediate_size=96)
    monkeypatch.setitem(model.SIZES, "mini", narrow)
    student = [*student, "--steps", "1", "--out", str(tmp_path / "student")]
    distill.main(student)
    folder = tmp_path / "student" / "model"
    saved = model.load_checkpoint(folder / "distill_heads.pt")
    assert model.load_hf(folder)[0].hidden_size == 48 and saved["shape"]["teacher_width"] == 128
    widths = {"nst": 48, "crd": 48, "ntxent": 128, "regression": 128, "voken": 70}
    for name, width in widths.items():
        assert len(saved["weights"][f"{name}_head.decoder.bias"]) == width
    bare = [*student, "--head", "none", "--out", str(tmp_path / "bare"), "--objective"]
    for name in ("ntxent", "regression"):
        with pytest.raises(model.UserError, match=f"{name} needs a student as wide as its teacher"):
            distill.main([*bare, name])
    distill.main([*bare, "nst", "crd", "soft-label", "voken"])
    heads = model.load_checkpoint(tmp_path / "bare" / "model" / "distill_heads.pt")["weights"]
    assert {key.split(".")[0] for key in heads} == {"crd", "voken_head"}


def resize_embedding(folder, size):
    """Gives a model folder's embedding `size` rows; more than words, as is done for speed."""
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    for key, value in state.items():
        if "word_embeddings" in key or "decoder" in key or key == "cls.predictions.bias":
            more = torch.randn(max(0, size - len(value)), *value.shape[1:])
            state[key] = torch.cat([value, more])[:size]
    torch.save(state, folder / "pytorch_model.bin")
    change(folder / "config.json", vocab_size=size)


def test_an_embedding_with_more_rows_than_words(mini, taught, student, tmp_path, monkeypatch):
    words = data.load_tokenizer(mini).get_vocab_size()
    start = tmp_path / "start"
    shutil.copytree(taught / "model", start)
    resize_embedding(start, words + 40)
    drawn = set()
    original = data.mask_tokens

    def mask_tokens(*rest, **more):
        drawn.add(rest[4])
        return original(*rest, **more)

    monkeypatch.setattr(data, "mask_tokens", mask_tokens)
    run = tmp_path / "teacher"
    teacher.main(["--data", str(mini), "--out", str(run), *TEACHER, "--steps", "1",
                  "--init", str(start)])
    assert model.load_hf(run / "model")[0].vocab_size == words + 40
    student = [*student, "--steps", "1", "--teacher", str(run)]
    distill.main([*student, "--out", str(tmp_path / "a")])
    distill.main([*student, "--init", str(start), "--out", str(tmp_path / "b")])
    assert model.load_hf(tmp_path / "a" / "model")[0].vocab_size == words
    assert drawn == {words}   # no masked token is replaced by one that no text has
    resize_embedding(start, words - 1)
    with pytest.raises(model.UserError, match="tokenizer has .* entries, its embedding"):
        teacher.main(["--data", str(mini), "--init", str(start), "--out", str(tmp_path / "c")])


def test_tokens_are_those_of_the_model_it_starts_from(mini, taught, tmp_path):
    """The same pieces read with and without capitals are not the same tokens."""
    shutil.copytree(taught, tmp_path / "cased")
    folder = tmp_path / "cased" / "model"
    rules = json.loads((folder / "tokenizer.json").read_text())["normalizer"]
    change(folder / "tokenizer.json", normalizer={**rules, "lowercase": False})
    change(folder / "tokenizer_config.json", do_lower_case=False, strip_accents=False)
    out = ["--size", "mini", "--out", str(tmp_path / "run")]
    text = ["--text", str(mini / "text"), *out]
    for main, flags in (
            (distill.main, ["--teacher", str(tmp_path / "cased"), *text]),
            (distill.main, ["--init", str(folder), "--objective", "none", *text]),
            (teacher.main, ["--init", str(folder), "--data", str(mini), *out])):
        with pytest.raises(model.UserError, match="cased/model splits text into other tokens"):
            main(flags)


def test_vokens_are_of_unmasked_blocks_and_the_banks_clips(mini, taught, bank, tmp_path,
                                                           monkeypatch):
    parts = []
    losses_of = distill.losses_of
    monkeypatch.setattr(distill, "losses_of",
                        lambda *rest: parts.append(rest[3]) or losses_of(*rest))
    given = []
    voken_labels = distill.voken_labels
    monkeypatch.setattr(distill, "voken_labels",
                        lambda *rest: given.append(rest) or voken_labels(*rest))
    distill.main(["--teacher", str(taught), "--out", str(tmp_path / "run"), *STUDENT,
                  "--steps", "1", "--objective", "voken", "--bank", str(bank)])
    _, vectors, clips, _ = given[0]
    tokens = parts[0]["tokens"]
    tokenizer = data.load_tokenizer(mini)
    assert not (tokens == data.special_ids(tokenizer)["mask"]).any()
    _, bert, _ = model.load_hf(taught / "model")
    encoder, _ = model.load_video_encoder(taught / "model" / "video_encoder.pt")
    bert.eval()
    encoder.eval()
    rows = data.read_bank(bank)
    films = data.Clips(mini, "train", ["frame", "motion"], tokenizer, 32, 48)
    assert len(clips) == len(rows) == 70
    with torch.no_grad():
        expected = F.normalize(bert(tokens), dim=-1)
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
        for row in (0, 66, 69):
            clip = films.clip(rows[row]["video"], rows[row]["start"], rows[row]["end"])
            clip = torch.from_numpy(clip)[None]
            alone = encoder(clip, torch.ones(clip.shape[:2], dtype=torch.bool))
            expected = F.normalize(alone, dim=-1)[0]
            torch.testing.assert_close(clips[row], expected, rtol=0, atol=1e-5)


def test_classes_of_vokens_are_clips(taught, bank, tmp_path):
    run = tmp_path / "run"
    distill.main(["--teacher", str(taught), "--out", str(run), *STUDENT, "--objective", "voken",
                  "--bank", str(bank), "--steps", "1"])
    saved = model.load_checkpoint(run / "model" / "distill_heads.pt")
    assert len(saved["weights"]["voken_head.decoder.bias"]) == 70
    # nothing learnt yet
    assert logged(run, "voken")[1] == pytest.approx([math.log(70)], abs=0.1)


@pytest.mark.parametrize("objective, how", [
    ("crd", "mean of e_s(token) against e_t(v)"), ("regression", "mean of head(h) against v"),
    ("nst", "not defined"), ("none", "not defined")])
def test_a_students_folder_is_enough_for_its_retrieval(taught, tmp_path, objective, how):
    """The teacher and args.json are gone. (test_evaluate.py computes the maps by hand.)"""
    gone = tmp_path / "teacher"
    shutil.copytree(taught, gone)
    run = tmp_path / "run"
    distill.main(["--teacher", str(gone), "--out", str(run), *STUDENT, "--objective", objective,
                  "--steps", "1"])
    shutil.rmtree(gone)
    (run / "args.json").unlink()
    given, text_map, video_map = distill.retrieval_maps(run / "model")
    assert given == how
    assert (text_map is None) == (video_map is None) == (how == "not defined")
    copied = run / "model" / "video_encoder.pt"
    assert copied.exists() == (objective != "none")
    if objective != "none":
        ours, settings = model.load_video_encoder(copied)
        teachers, _ = model.load_video_encoder(taught / "model" / "video_encoder.pt")
        assert settings["trained"] and same(ours.state_dict(), teachers.state_dict())


def test_a_teacher_is_its_own_map(taught):
    how, text_map, video_map = distill.retrieval_maps(taught / "model")
    hidden = torch.randn(2, 3, 128)
    assert how == "mean of h against v"
    assert torch.equal(text_map(hidden), hidden) and torch.equal(video_map(hidden), hidden)


# --- what is said when something is wrong


def test_bad_input_says_what_to_do(mini, taught, tmp_path, capsys):
    with pytest.raises(SystemExit):
        teacher.main(["--data", str(mini), "--size", "huge"])
    with pytest.raises(SystemExit):
        distill.main(["--teacher", str(taught), "--objective", "magic"])
    printed = capsys.readouterr().err
    assert "invalid choice: 'huge' (choose from" in printed
    assert "invalid choice: 'magic' (choose from" in printed
    run = ["--out", str(tmp_path / "run"), *STUDENT]
    with pytest.raises(model.UserError, match="python data.py video"):
        teacher.main(["--data", str(tmp_path), "--out", str(tmp_path / "run")])
    with pytest.raises(model.UserError, match="nobody/args.json is missing; `make teacher`"):
        distill.main(["--teacher", "nobody", *run])
    with pytest.raises(model.UserError, match="no.json is missing; `python data.py bank"):
        distill.main(["--teacher", str(taught), *run, "--objective", "voken", "--bank", "no.json"])
    other = ["--objective", "voken", "--bank", f"{mini}/caption.json"]
    with pytest.raises(model.UserError, match="caption.json is no clip bank; `python data.py bank"):
        distill.main(["--teacher", str(taught), *run, *other])
    shorter = tmp_path / "shorter"   # a teacher that never saw such long texts
    shutil.copytree(taught, shorter)
    change(shorter / "model" / "config.json", block=16)
    with pytest.raises(model.UserError, match="never saw a text longer than 16"):
        distill.main(["--teacher", str(shorter), *run])
    (tmp_path / "numbers.json").write_text("[1, 2]")
    with pytest.raises(model.UserError, match="numbers.json is no clip bank"):
        distill.main(["--teacher", str(taught), *run, *other[:3], str(tmp_path / "numbers.json")])
    assert not (tmp_path / "run").exists()   # what cannot begin leaves no folder


def test_a_loss_that_is_not_finite_stops_the_run(mini, tmp_path):
    with pytest.raises(model.UserError, match=r"mlm .*norm .* step \d+; .*checkpoint.pt"):
        teacher.main(["--data", str(mini), "--out", str(tmp_path / "run"), *TEACHER,
                      "--steps", "20", "--lr", "1e30", "--warmup", "0"])


@pytest.mark.parametrize("stage", [teacher, distill])
@pytest.mark.parametrize("flags", [["--steps", "1"], ["--steps", "9", "--save-every", "1"]])
def test_weights_that_are_not_finite_are_never_saved(stage, flags, mini, taught, tmp_path):
    """The last step's are in no loss yet."""
    command = ["--data", str(mini), *TEACHER]
    if stage is distill:
        command = ["--teacher", str(taught), *STUDENT]
    with pytest.raises(model.UserError, match="weight_norm (nan|inf) at step 0; .*checkpoint.pt"):
        stage.main([*command, *flags, "--out", str(tmp_path), "--lr", "1e30", "--warmup", "0"])
    assert not list(tmp_path.glob("checkpoint*")) and not (tmp_path / "model").exists()


@pytest.mark.parametrize("stage, flags", [
    (teacher, ["--batch", "0"]), (teacher, ["--steps", "-5"]), (teacher, ["--log-every", "0"]),
    (teacher, ["--frames", "0"]), (distill, ["--accumulate", "0"]), (distill, ["--crd-queue", "0"]),
    (finetune, ["--accumulate", "0"]), (finetune, ["--log-every", "0"]),
    (teacher, ["--workers", "-1"])])
def test_counts_are_positive_and_workers_no_less_than_none(stage, flags, capsys):
    with pytest.raises(SystemExit):
        stage.parse_args(flags)
    kind = "count" if flags[0] == "--workers" else "positive"
    assert f"argument {flags[0]}: invalid {kind} value: '{flags[1]}'" in capsys.readouterr().err
    assert teacher.parse_args(["--workers", "0"]).workers == 0


@pytest.mark.parametrize("stage, flags", [
    (teacher, ["--clip", "0"]), (teacher, ["--temperature", "-1"]), (teacher, ["--margin", "0"]),
    (teacher, ["--epochs", "0"]), (distill, ["--crd-temperature", "0"]),
    (distill, ["--clip", "nan"]), (finetune, ["--epochs", "-1"]), (finetune, ["--clip", "inf"])])
def test_temperatures_clip_and_epochs_are_above_zero(stage, flags, capsys):
    with pytest.raises(SystemExit):
        stage.parse_args(flags)
    assert f"argument {flags[0]}: invalid above_zero value: '{flags[1]}'" in capsys.readouterr().err


def test_norms_are_from_before_clipping(mini, tmp_path):
    run = tmp_path / "run"
    teacher.main(["--data", str(mini), "--out", str(run), *TEACHER, "--steps", "1", "--clip",
                  "0.001", "--streams", "motion", "frame", "motion"])
    video, whole = logged(run, "video_grad_norm", "grad_norm")[1]
    assert 0.01 < video < whole
    assert data.read_json(run / "args.json", "")["arguments"]["streams"] == ["motion", "frame"]


def test_collapse_is_said(mini, tmp_path, capsys):
    teacher.main(["--data", str(mini), "--out", str(tmp_path / "run"), *TEACHER, "--batch", "4",
                  "--steps", "210", "--contrastive", "hinge", "--margin", "0.5", "--lr", "0",
                  "--log-every", "209", "--mlm-weight", "0"])
    # at rate 0 nothing is learnt: random encoders give nearly equal vectors, so two margins
    assert "collapsed as if every input had the same vector" in capsys.readouterr().out


# --- other people's files


def test_real_files_end_to_end(real_data, tmp_path, capsys, monkeypatch):
    """Ten real clips and real text through every stage, as a newcomer would run them."""
    vocab = real_data / "vocab" / "bert-base-uncased-vocab.txt"
    own = tmp_path / "own"
    student = tmp_path / "student"

    def run(stage, *flags):
        monkeypatch.setattr(sys, "argv", [stage.__file__, *map(str, flags)])
        stage.main()

    run(data, "video", "--videos", real_data / "video", "--captions",
        real_data / "video" / "caption.json", "--vocab", vocab, "--out", own)
    splits = json.loads((own / "splits.json").read_text())
    assert len(splits["train"]) + len(splits["valid"]) == 10
    run(teacher, "--data", own, "--out", tmp_path / "teacher", "--steps", "50", "--batch", "8",
        "--log-every", "1", "--lr", "5e-4", "--warmup", "5")
    for name in ("contrastive", "mlm"):
        values = [row[0] for row in logged(tmp_path / "teacher", name).values()]
        assert sum(values[-10:]) < sum(values[:10])
    run(data, "text", "--train", real_data / "corpus" / "wiki.valid.raw",
        "--valid", real_data / "corpus" / "wiki_00", "--vocab", vocab, "--out", tmp_path / "text")
    run(distill, "--teacher", tmp_path / "teacher", "--text", tmp_path / "text",
        "--out", student, "--steps", "20", "--batch", "16", "--log-every", "1", "--warmup", "5")
    for name in ("mlm", "crd"):
        values = logged(student, name)
        assert len(values) == 20 and values[20] < values[1]
    (tmp_path / "PIQA").symlink_to(real_data / "piqa")
    for task, flags in (("RTE", ["--data", real_data / "glue"]),
                        ("PIQA", ["--data", tmp_path, "--split-dev"])):
        run(finetune, "--model", student, "--task", task, *flags, "--epochs", "1",
            "--train-limit", "256", "--batch", "32")
    run(evaluate, "table", student)
    printed = capsys.readouterr().out
    assert "RTE" in printed and "PIQA" in printed
