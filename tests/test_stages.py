"""The stages as commands: resuming, two processes, what trains and what does not, real files from end to end.

    python -m pytest -q tests/test_stages.py            # REAL_DATA=folder adds the run on real files
"""
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import data
import distill
import evaluate
import finetune
import model
import teacher

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TEACHER = ["--batch", "16", "--steps", "5", "--precision", "fp32", "--dropout", "0", "--log-every", "1", "--lr", "1e-3"]
STUDENT = ["--batch", "16", "--steps", "5", "--precision", "fp32", "--dropout", "0", "--log-every", "1",
           "--crd-queue", "64", "--crd-tokens", "4"]
OBJECTIVES = distill.OBJECTIVES[1:]


def logged(run, *names):
    """{step: [values]} of the log lines that hold all the names."""
    lines = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    return {line["step"]: [line[name] for name in names] for line in lines if all(name in line for name in names)}


def torchrun(*command):
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d",
                    "--rdzv-endpoint=localhost:0", *command], cwd=ROOT, env=ENVIRONMENT, check=True, timeout=240)


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


def every_objective(bank):
    """Flags of a student of all objectives at once, their weights found at the end of warm-up."""
    return [*STUDENT, "--objective", *OBJECTIVES, "--bank", str(bank), "--voken-labels", "shuffled",
            "--gradient-ratio", "2", "--warmup", "3"]


@pytest.mark.parametrize("loss", [["nce"], ["hinge"], ["hinge-all"]])
def test_teacher_of_two_processes_equals_one(mini, tmp_path, loss):
    command = ["--data", str(mini), *TEACHER, "--contrastive", *loss]
    teacher.main([*command, "--out", str(tmp_path / "one")])
    torchrun("teacher.py", *command, "--out", str(tmp_path / "two"))
    one, two = [logged(tmp_path / name, "contrastive", "mlm", "grad_norm") for name in ("one", "two")]
    assert sorted(one) == sorted(two) == [1, 2, 3, 4, 5]
    for step in one:
        assert two[step][:2] == pytest.approx(one[step][:2], abs=1e-5)
        assert two[step][2] == pytest.approx(one[step][2], rel=1e-4)


def test_distillation_of_two_processes_equals_one(taught, bank, tmp_path):
    command = ["--teacher", str(taught), *every_objective(bank)]
    distill.main([*command, "--out", str(tmp_path / "one")])
    torchrun("distill.py", *command, "--out", str(tmp_path / "two"))
    losses = ("mlm", *OBJECTIVES)
    others = ["grad_norm", *[f"{name}_grad" for name in losses], *[f"{name}_weight" for name in OBJECTIVES]]
    one, two = [logged(tmp_path / name, *losses, *others) for name in ("one", "two")]
    assert sorted(one) == sorted(two) == [1, 2, 3, 4, 5]
    for step in one:
        for name, ours, theirs in zip([*losses, *others], two[step], one[step]):
            # CRD is a sum over 64 negatives
            near = dict(abs=1e-5 * max(1, theirs)) if name in losses else dict(rel=1e-4)
            assert ours == pytest.approx(theirs, **near), f"{name} at step {step}"


def test_gradient_ratio_sets_the_weights_at_the_end_of_warmup(taught, bank, tmp_path, monkeypatch):
    """Each objective's gradient in the encoder is 2 times MLM's: at step 0, and as a mean over the end of warm-up."""
    monkeypatch.setattr(distill, "MEASURED", 2)
    distill.main(["--teacher", str(taught), *every_objective(bank), "--steps", "6", "--out", str(tmp_path / "run")])
    norms = logged(tmp_path / "run", "mlm_grad", *[f"{name}_grad" for name in OBJECTIVES])
    weights = logged(tmp_path / "run", *[f"{name}_weight" for name in OBJECTIVES])
    for logged_at, measured_at in {1: [1], 2: [2], 3: [2, 3], 4: [2, 3], 6: [2, 3]}.items():
        sums = [sum(values) for values in zip(*[norms[step] for step in measured_at])]
        assert weights[logged_at] == pytest.approx([2 * sums[0] / each for each in sums[1:]], rel=1e-6)
    assert weights[1] != weights[2] != weights[3]
    with pytest.raises(ValueError, match="takes the place of the weights"):
        distill.main(["--teacher", str(taught), *every_objective(bank), "--nst-weight", "3"])


def weights(run):
    return torch.load(Path(run) / "model" / "pytorch_model.bin", weights_only=True)


@pytest.mark.parametrize("stage", ["teacher", "distill"])
def test_killed_stage_goes_on_to_equal_weights(stage, mini, taught, bank, tmp_path):
    command = (["--data", str(mini), *TEACHER, "--shuffle-pairs"] if stage == "teacher" else
               ["--teacher", str(taught), *every_objective(bank), "--warmup", "9"])   # killed while measuring
    command = [*command, "--steps", "30", "--dropout", "0.1", "--save-every", "5"]
    main = teacher.main if stage == "teacher" else distill.main
    main([*command, "--out", str(tmp_path / "straight")])
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, f"{stage}.py", *command, "--out", str(killed)], cwd=ROOT, env=ENVIRONMENT)
    deadline = time.time() + 120
    while not (killed / "checkpoint.pt").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model").exists(), "it finished before it could be killed: give it more steps"
    assert 0 < torch.load(killed / "checkpoint.pt", weights_only=True)["step"] < 30
    main([*command, "--out", str(killed)])
    straight, resumed = weights(tmp_path / "straight"), weights(killed)
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    name = "mlm"
    assert logged(killed, name) == logged(tmp_path / "straight", name) and len(logged(killed, name)) == 30


def test_finished_stage_returns_and_changed_flags_are_refused(taught, mini, capsys):
    before = (taught / "model" / "pytorch_model.bin").stat().st_mtime_ns
    teacher.main(["--data", str(mini), "--out", str(taught), *TEACHER])
    assert "complete after 5 steps, nothing to do" in capsys.readouterr().out
    assert (taught / "model" / "pytorch_model.bin").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="--lr 0.001 -> 0.5"):
        teacher.main(["--data", str(mini), "--out", str(taught), *TEACHER, "--lr", "0.5"])


def test_every_parameter_of_the_teacher_moves(mini, taught):
    """The authors' video branch was never in their optimiser, and nothing would have noticed."""
    torch.manual_seed(0)
    config = model.load_hf(taught / "model")[0]
    bert = model.Bert(config)
    start = {"bert." + key: value for key, value in bert.state_dict().items()}
    head = model.MLMHead(config, bert.tokens)
    start |= {"head." + key: value for key, value in head.state_dict().items()}
    trained, _ = model.load_video_encoder(taught / "model" / "video_encoder.pt")
    video = model.VideoEncoder(trained.config, trained.stream_dims)
    start |= {"video." + key: value for key, value in video.named_parameters()}
    state = torch.load(taught / "checkpoint.pt", weights_only=True)
    end = {"bert." + key: value for key, value in state["bert"].items()}
    end |= {"head." + key: value for key, value in state["mlm_head"].items()}
    end |= {"video." + key: value for key, value in state["video_encoder"].items() if not key.startswith("feature_")}
    assert start.keys() == end.keys() and sum(key.startswith("video.") for key in end) > 20
    still = [key for key in start if torch.equal(start[key], end[key])]
    assert not still, f"started from the same seed, these never moved: {still}"


@pytest.mark.parametrize("head", ["mlp", "none"])
def test_distillation_moves_student_and_heads_and_not_the_teacher(taught, bank, tmp_path, head):
    before = weights(taught)
    distill.main(["--teacher", str(taught), "--out", str(tmp_path / "student"), *every_objective(bank), "--head", head])
    assert all(torch.equal(value, weights(taught)[key]) for key, value in before.items())
    heads = torch.load(tmp_path / "student" / "model" / "distill_heads.pt", weights_only=True)["weights"]
    assert bool(heads["crd.started"]) and int(heads["crd.position"]) == 5 * 16 * 4 % 64
    moved = {key.split(".")[0] for key in heads}
    assert moved == {"crd", "voken_head"} | ({"nst_head", "crd_head", "ntxent_head", "regression_head"} if head == "mlp"
                                             else set())
    state = torch.load(tmp_path / "student" / "checkpoint.pt", weights_only=True)
    count = sum(len(group["params"]) for group in state["optimizer"]["param_groups"])
    named = len(state["student"]) + len(state["mlm_head"]) + sum(1 for key in heads if "queue" not in key and
                                                                 key.split(".")[-1] in ("weight", "bias"))
    assert count == named == len(state["optimizer"]["state"])
    assert all(float(entry["exp_avg"].abs().sum()) > 0 for entry in state["optimizer"]["state"].values())


def test_objective_none_needs_no_teacher_and_same_data_order(mini, taught, tmp_path):
    for name, extra in (("text-only", ["--objective", "none", "--teacher", "nowhere", "--text", str(mini / "text"),
                                       "--size", "mini"]), ("nst", ["--objective", "nst", "--teacher", str(taught)])):
        distill.main([*extra, "--out", str(tmp_path / name), *STUDENT])
    # the first step's MLM loss sees the same blocks, masks and initial weights in both arms
    assert logged(tmp_path / "text-only", "mlm")[1] == logged(tmp_path / "nst", "mlm")[1]
    assert logged(tmp_path / "text-only", "mlm")[5] != logged(tmp_path / "nst", "mlm")[5]


def test_weights_weigh(mini, taught, tmp_path):
    """At weight 0, or a ratio of next to nothing, the student is the text-only one; otherwise it is not."""
    def mlm(name, *flags):
        distill.main(["--teacher", str(taught), "--out", str(tmp_path / name), *STUDENT, *flags])
        return logged(tmp_path / name, "mlm")[5][0]
    baseline = mlm("none", "--objective", "none")
    assert mlm("zero", "--objective", "regression", "--regression-weight", "0") == baseline
    assert mlm("hardly", "--objective", "regression", "--gradient-ratio", "1e-9") == pytest.approx(baseline, abs=1e-5)
    assert abs(mlm("plain", "--objective", "regression") - baseline) > 1e-3
    assert abs(mlm("ratio", "--objective", "regression", "--gradient-ratio", "1") - baseline) > 1e-3


def test_images_and_captions_only_are_flags(mini, bank, tmp_path):
    teacher.main(["--data", str(mini), "--out", str(tmp_path / "image"), *TEACHER, "--frames", "1", "--streams", "frame"])
    _, settings = model.load_video_encoder(tmp_path / "image" / "model" / "video_encoder.pt")
    assert settings["streams"] == ["frame"] and settings["frames"] == 1
    with pytest.raises(ValueError, match="one step of motion sees several frames"):
        teacher.main(["--data", str(mini), "--out", str(tmp_path / "bad"), *TEACHER, "--frames", "1"])
    teacher.main(["--data", str(mini), "--out", str(tmp_path / "captions"), *TEACHER, "--contrastive", "none"])
    assert all(values == [0.0] for values in logged(tmp_path / "captions", "contrastive").values())
    # both teach: one through every objective, the other through all that ask for no clip
    distill.main(["--teacher", str(tmp_path / "image"), "--out", str(tmp_path / "a"), *every_objective(bank)])
    student = ["--teacher", str(tmp_path / "captions"), *every_objective(bank)]
    with pytest.raises(ValueError, match="a text-only teacher"):
        distill.main([*student, "--out", str(tmp_path / "b")])
    clipless = [name for name in OBJECTIVES if name != "voken"]
    distill.main([*student, "--objective", *clipless, "--out", str(tmp_path / "c")])


@pytest.mark.parametrize("streams", [["frame"], ["motion"]])
def test_one_stream_is_a_flag(mini, taught, tmp_path, streams):
    teacher.main(["--data", str(mini), "--out", str(tmp_path / "one"), *TEACHER, "--streams", *streams])
    encoder, settings = model.load_video_encoder(tmp_path / "one" / "model" / "video_encoder.pt")
    assert settings["streams"] == list(encoder.stream_dims) == streams
    both, _ = model.load_video_encoder(taught / "model" / "video_encoder.pt")
    assert len(encoder.feature_mean) == both.stream_dims[streams[0]] < len(both.feature_mean)


def test_shuffled_pairs(mini, taught, tmp_path):
    """The control: each text meets one other video's clip, always the same one; its own text is as before."""
    clips = data.Clips(mini, "train", ["frame", "motion"], data.load_tokenizer(mini), 32, 48)
    args = teacher.parse_args(["--shuffle-pairs"])
    other = teacher.partners(args, clips, "train")
    assert sorted(other) == list(range(len(clips))) and not any(other[index] == index for index in range(len(clips)))
    assert (other == teacher.partners(args, clips, "train")).all()
    assert (other != teacher.partners(teacher.parse_args(["--shuffle-pairs", "--seed", "1"]), clips, "train")).any()
    tokens, features = teacher.pair(clips, 3, other[3])
    assert (tokens == clips.example(3)[0]).all() and (features == clips.example(int(other[3]))[1]).all()
    plain = teacher.partners(teacher.parse_args([]), clips, "train")
    start = lambda: data.numpy_generator(1)
    assert all((ours == theirs).all() for ours, theirs in zip(teacher.pair(clips, 3, plain[3], start()),
                                                               clips.example(3, start())))
    teacher.main(["--data", str(mini), "--out", str(tmp_path / "shuffled"), *TEACHER, "--shuffle-pairs"])
    ours, theirs = [logged(run, "mlm", "contrastive")[1] for run in (tmp_path / "shuffled", taught)]
    assert ours[0] == theirs[0] and ours[1] != theirs[1]   # the same texts and masks, other clips


def test_student_narrower_than_its_teacher(taught, bank, tmp_path, monkeypatch):
    narrow = dataclasses.replace(model.SIZES["mini"], hidden_size=48, intermediate_size=96, num_hidden_layers=1)
    monkeypatch.setitem(model.SIZES, "mini", narrow)
    command = ["--teacher", str(taught), *every_objective(bank)]
    distill.main([*command, "--out", str(tmp_path / "student")])
    config, _, _ = model.load_hf(tmp_path / "student" / "model")
    heads = torch.load(tmp_path / "student" / "model" / "distill_heads.pt", weights_only=True)
    assert config.hidden_size == 48 and heads["teacher_width"] == 128
    widths = {name: len(heads["weights"][f"{name}_head.decoder.bias"])
              for name in ("nst", "crd", "ntxent", "regression", "voken")}
    assert widths == {"nst": 48, "crd": 48, "ntxent": 128, "regression": 128, "voken": 70}
    bare = [*command, "--head", "none"]
    distill.main([*bare, "--objective", "nst", "crd", "soft-label", "--out", str(tmp_path / "bare")])
    for name in ("ntxent", "regression"):
        with pytest.raises(ValueError, match=f"{name} needs a student as wide as its teacher, not 48 against 128"):
            distill.main([*bare, "--objective", name, "--out", str(tmp_path / name)])


def test_two_stage_starts_from_the_teacher(mini, taught, tmp_path):
    """The teacher's own encoder goes on with text alone: at rate 0 it comes out as it went in."""
    command = ["--init", str(taught / "model"), "--objective", "none", "--teacher", str(taught), *STUDENT]
    distill.main([*command, "--lr", "0", "--out", str(tmp_path / "kept")])
    before, after = weights(taught), weights(tmp_path / "kept")
    assert all(torch.equal(before[key], after[key]) for key in before)
    distill.main([*command, "--lr", "1e-3", "--out", str(tmp_path / "moved")])
    assert any(not torch.equal(before[key], value) for key, value in weights(tmp_path / "moved").items())


def test_two_stage_knows_what_it_started_from(mini, taught, tmp_path):
    shutil.copytree(taught / "model", tmp_path / "start")
    flags = ["--init", str(tmp_path / "start"), "--objective", "none", "--text", str(mini / "text"), "--size", "mini",
             "--out", str(tmp_path / "run"), *STUDENT, "--steps", "1"]
    distill.main(flags)
    distill.main(flags)   # complete
    weights = torch.load(tmp_path / "start" / "pytorch_model.bin", weights_only=True)
    torch.save({key: value + 0.01 if value.is_floating_point() else value for key, value in weights.items()},
               tmp_path / "start" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="other arguments or inputs"):
        distill.main(flags)


def test_tokens_are_those_of_the_model_it_starts_from(mini, taught, tmp_path):
    """Compared is how text is split, not the bytes of vocab.txt: a teacher's last newline or line ends do not matter,
    the same pieces read with and without capitals do."""
    for name, change in (("same", {}), ("cased", {"do_lower_case": False, "strip_accents": False})):
        shutil.copytree(taught, tmp_path / name)
        folder = tmp_path / name / "model"
        words = (folder / "vocab.txt").read_text(encoding="utf-8")
        (folder / "vocab.txt").write_bytes(words.rstrip("\n").replace("\n", "\r\n").encode())
        path = folder / "tokenizer_config.json"
        data.write_json(path, {**json.loads(path.read_text()), **change})
    text = ["--text", str(mini / "text"), "--size", "mini", *STUDENT, "--steps", "1", "--out"]
    distill.main(["--teacher", str(tmp_path / "same"), *text, str(tmp_path / "run")])
    with pytest.raises(ValueError, match="different vocabularies, or one is cased"):
        distill.main(["--teacher", str(tmp_path / "cased"), *text, str(tmp_path / "run-2")])
    start = ["--init", str(tmp_path / "cased" / "model")]
    with pytest.raises(ValueError, match="splits text into other tokens"):
        distill.main([*start, "--objective", "none", *text, str(tmp_path / "run-3")])
    with pytest.raises(ValueError, match="splits text into other tokens than the captions"):
        teacher.main([*start, "--data", str(mini), "--size", "mini", "--steps", "1", "--out", str(tmp_path / "run-4")])


def test_vokens_are_of_unmasked_blocks_and_of_the_banks_clips(mini, taught, bank, tmp_path, monkeypatch):
    given, original = [], distill.voken_labels
    monkeypatch.setattr(distill, "voken_labels", lambda *args: given.append(args) or original(*args))
    distill.main(["--teacher", str(taught), "--out", str(tmp_path / "run"), *STUDENT, "--steps", "1", "--objective",
                  "voken", "--bank", str(bank)])
    (_, tokens, vectors, clips, *_), = given
    tokenizer = data.load_tokenizer(mini)
    assert not (tokens == data.special_ids(tokenizer)["mask"]).any()
    _, bert, _ = model.load_hf(taught / "model")
    encoder, _ = model.load_video_encoder(taught / "model" / "video_encoder.pt")
    unit = lambda x: torch.nn.functional.normalize(x, dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(vectors, unit(bert.eval()(tokens)), rtol=0, atol=1e-5)
        rows, features = data.read_bank(bank), data.Clips(mini, "train", ["frame", "motion"], tokenizer, 32, 48)
        for row in (0, 66, 69):
            clip = torch.from_numpy(features.clip(rows[row]["video"], rows[row]["start"], rows[row]["end"]))[None]
            alone = unit(encoder.eval()(clip, torch.ones(clip.shape[:2], dtype=torch.bool)))[0]
            torch.testing.assert_close(clips[row], alone, rtol=0, atol=1e-5)
    assert len(clips) == len(rows) == 70


@pytest.mark.parametrize("labels", distill.VOKEN_LABELS)
def test_voken_label_arms(taught, bank, tmp_path, labels):
    distill.main(["--teacher", str(taught), "--out", str(tmp_path / "run"), *STUDENT, "--objective", "voken", "--bank",
                  str(bank), "--voken-labels", labels])
    saved = torch.load(tmp_path / "run" / "model" / "distill_heads.pt", weights_only=True)
    classes = model.load_hf(taught / "model")[0].vocab_size if labels == "token" else 70
    assert len(saved["weights"]["voken_head.decoder.bias"]) == classes
    assert logged(tmp_path / "run", "voken")[1] == pytest.approx([math.log(classes)], abs=0.1)   # nothing learnt yet


def test_bad_input_says_what_to_do(mini, taught, tmp_path):
    with pytest.raises(ValueError, match="unknown size 'huge'; known: mini, small, base"):
        teacher.main(["--data", str(mini), "--size", "huge"])
    with pytest.raises(FileNotFoundError, match="python data.py video"):
        teacher.main(["--data", str(tmp_path), "--out", str(tmp_path / "run")])
    with pytest.raises(FileNotFoundError, match="make teacher"):
        distill.main(["--teacher", str(tmp_path / "nobody")])
    with pytest.raises(FileNotFoundError, match="python data.py bank"):
        distill.main(["--teacher", str(taught), "--out", str(tmp_path / "r"), *STUDENT, "--objective", "voken", "--bank",
                      "no.json"])
    with pytest.raises(ValueError, match="unknown objective magic; known: none, nst, crd"):
        distill.main(["--teacher", str(taught), "--objective", "magic"])
    with pytest.raises(FileNotFoundError, match="make teacher distill"):
        finetune.main(["--model", str(tmp_path / "nobody"), "--task", "RTE"])
    # a teacher that never saw such long texts
    shorter = tmp_path / "shorter"
    (shorter / "model").mkdir(parents=True)
    for path in (taught / "model").iterdir():
        (shorter / "model" / path.name).write_bytes(path.read_bytes())
    config = json.loads((shorter / "model" / "config.json").read_text())
    (shorter / "model" / "config.json").write_text(json.dumps({**config, "block": 16}))
    (shorter / "args.json").write_bytes((taught / "args.json").read_bytes())
    with pytest.raises(ValueError, match="never saw a text longer than 16"):
        distill.main(["--teacher", str(shorter), "--out", str(tmp_path / "student"), *STUDENT])


def test_a_loss_that_is_not_finite_stops_the_run(mini, tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step \d+ .*checkpoint.pt"):
        teacher.main(["--data", str(mini), "--out", str(tmp_path / "run"), *TEACHER, "--steps", "20", "--lr", "1e30",
                      "--warmup", "0"])


def test_collapse_is_said(mini, tmp_path, capsys):
    teacher.main(["--data", str(mini), "--out", str(tmp_path / "run"), *TEACHER, "--batch", "4", "--steps", "210",
                  "--contrastive", "hinge", "--margin", "0.5", "--lr", "0", "--log-every", "209", "--mlm-weight", "0"])
    # at rate 0 nothing is learnt; random encoders give nearly equal vectors, so the loss sits at two margins
    assert "the contrastive loss sits at 1.000" in capsys.readouterr().out


def test_retrieval_and_probe_commands(mini, taught, capsys):
    evaluate.main(["retrieve", str(taught), "--data", str(mini)])
    written = json.loads((taught / "retrieval.json").read_text())
    assert len(written["ranks"]) == 288 and written["chance R@1"] == pytest.approx(1 / 288)
    assert len(written["examples"]) == 12 and written["data"] == str(mini)
    for row in written["examples"]:   # what the report shows agrees with the ranks
        assert row["rank"] == written["ranks"][row["index"]] and (row["top"].index(row["own"]) + 1 == row["rank"]
                                                                 if row["rank"] <= 3 else row["own"] not in row["top"])
    data.make_bank(mini, "train", 300, 0, 32, mini / "bank.json")   # more than a batch of the pool, fewer than two
    evaluate.main(["retrieve", str(taught), "--data", str(mini), "--bank", str(mini / "bank.json")])
    written = json.loads((taught / "retrieval.json").read_text())
    assert len(written["ranks"]) == 300 and "R@1 same sight" not in written
    assert "R@1, new nouns" not in written   # a bank's rows name no group
    evaluate.main(["probe", str(taught), "--data", str(mini)])
    assert set(json.loads((taught / "probe.json").read_text())) == set(data.PROPERTIES)
    assert "lift" in capsys.readouterr().out


@pytest.mark.parametrize("objective, head", [("crd", "mlp"), ("crd", "none"), ("regression", "mlp"), ("regression", "none"),
                                             ("nst", "mlp")])
def test_students_search_as_their_objective_says(mini, taught, tmp_path, objective, head):
    """Scores of retrieve against sums over tokens, one text and one clip at a time, from the saved weights."""
    run = tmp_path / "run"
    distill.main(["--teacher", str(taught), "--text", str(mini / "text"), "--out", str(run), *STUDENT, "--objective",
                  objective, "--head", head, "--size", "mini"])
    metrics, ranks, how = evaluate.retrieve(run, mini)
    assert 0 <= metrics["ridge map, R@1, new nouns"] <= 1
    if objective == "nst":
        assert how == "not defined" and ranks == [] and "R@1" not in metrics
        return
    kept = torch.load(run / "model" / "distill_heads.pt", weights_only=True)["weights"]
    config, bert, _ = model.load_hf(run / "model")
    encoder, settings = model.load_video_encoder(taught / "model" / "video_encoder.pt")
    tokenizer, pool = data.load_tokenizer(taught / "model"), data.read_bank(mini / "retrieval.json")
    clips = data.Clips(mini, "valid", settings["streams"], tokenizer, config.block, settings["max_steps_clip"])
    mapped = model.DistillHead(config, config.hidden_size) if head == "mlp" else torch.nn.Identity()
    if head == "mlp":
        mapped.load_state_dict({key.split(".", 1)[1]: value for key, value in kept.items() if key.startswith(f"{objective}_head.")})

    def linear(name, x):
        return kept[f"crd.{name}_embed.weight"] @ x + kept[f"crd.{name}_embed.bias"] if objective == "crd" else x
    texts, videos = [], []
    with torch.no_grad():
        for row in pool[:40]:
            ids = tokenizer.encode(row["text"]).ids
            each = [linear("student", vector) for vector in mapped(bert.eval()(torch.tensor([ids])))[0, 1:-1]]
            texts.append(sum(vector / vector.norm() for vector in each))
            features = torch.from_numpy(clips.clip(row["video"], row["start"], row["end"]))[None]
            video = encoder.eval()(features, torch.ones(1, features.shape[1], dtype=torch.bool))[0]
            videos.append(linear("teacher", video / video.norm()))
    scores = [[float(text @ video / text.norm() / video.norm()) for video in videos] for text in texts]
    (tmp_path / "bank.json").write_text(json.dumps(pool[:40]))
    _, ranks, _ = evaluate.retrieve(run, mini, tmp_path / "bank.json")
    for index in range(40):
        own = scores[index][index]
        assert sum(s > own + 1e-5 for s in scores[index]) + 1 <= ranks[index] <= sum(s >= own - 1e-5 for s in scores[index])


def test_real_files_end_to_end(real_data, tmp_path, capsys):
    """Ten real clips and real text through every stage, as a newcomer with own files would run them."""
    vocab = real_data / "vocab" / "bert-base-uncased-vocab.txt"
    def run(*command):
        subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=ENVIRONMENT, check=True, timeout=400)
    run("data.py", "video", "--videos", real_data / "video", "--captions", real_data / "video" / "caption.json", "--vocab",
        vocab, "--out", tmp_path / "own")
    splits = json.loads((tmp_path / "own" / "splits.json").read_text())
    assert len(splits["train"]) + len(splits["valid"]) == 10
    run("teacher.py", "--data", tmp_path / "own", "--out", tmp_path / "teacher", "--steps", "50", "--batch", "8",
        "--log-every", "1", "--lr", "5e-4", "--warmup", "5")
    losses = logged(tmp_path / "teacher", "contrastive", "mlm")
    for which in (0, 1):
        first, last = [sum(losses[step][which] for step in steps) / 10 for steps in (range(1, 11), range(41, 51))]
        assert last < first
    run("data.py", "text", "--train", real_data / "corpus" / "wiki.valid.raw", "--valid", real_data / "corpus" / "wiki_00",
        "--vocab", vocab, "--out", tmp_path / "text")
    run("distill.py", "--teacher", tmp_path / "teacher", "--text", tmp_path / "text", "--out", tmp_path / "student",
        "--steps", "20", "--batch", "16", "--log-every", "1", "--warmup", "5")
    losses = logged(tmp_path / "student", "mlm", "nst", "crd")
    assert len(losses) == 20 and losses[20][0] < losses[1][0] and losses[20][2] < losses[1][2]
    run("finetune.py", "--model", tmp_path / "student", "--data", real_data / "glue", "--task", "RTE", "--epochs", "1",
        "--train-limit", "256", "--batch", "32")
    run("finetune.py", "--model", tmp_path / "student", "--data", real_data, "--task", "PIQA", "--split-dev", "--epochs",
        "1", "--train-limit", "256", "--batch", "32")
    evaluate.main(["table", str(tmp_path / "student")])
    printed = capsys.readouterr().out
    assert "RTE" in printed and "PIQA" in printed and "not run" not in printed
    print(printed)


def test_dry_run_measures_and_writes_nothing(mini, taught, tmp_path, capsys):
    teacher.main(["--data", str(mini), "--out", str(tmp_path / "t"), *TEACHER, "--steps", "1000", "--dry-run"])
    distill.main(["--teacher", str(taught), "--out", str(tmp_path / "s"), *STUDENT, "--steps", "1000", "--dry-run"])
    printed = capsys.readouterr().out
    assert printed.count("ms a step x 1000 steps") == 2 and not list(tmp_path.iterdir())


def test_of_steps_and_epochs_the_given_one_decides(taught):
    assert teacher.parse_args(["--epochs", "3"]).steps is None and teacher.parse_args([]).steps == 600
    assert teacher.parse_args(["--size", "base", "--steps", "7"]).epochs is None
    assert distill.parse_args(["--teacher", str(taught), "--size", "base", "--epochs", "2"]).steps is None


def test_changed_inputs_are_refused(mini, taught, tmp_path):
    """A teacher made anew under the same name must not leave its old student standing as complete."""
    other = tmp_path / "teacher"
    shutil.copytree(taught, other)
    command = ["--teacher", str(other), "--out", str(tmp_path / "student"), *STUDENT]
    distill.main(command)
    state = weights(other)
    state["bert.embeddings.LayerNorm.bias"] += 1
    torch.save(state, other / "model" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="other arguments or inputs"):
        distill.main(command)


def test_two_files_of_one_video_are_refused(mini, tmp_path):
    (tmp_path / "videos").mkdir()
    for suffix in ("mp4", "webm"):
        (tmp_path / "videos" / f"a.{suffix}").write_bytes(b"")
    (tmp_path / "captions.json").write_text(json.dumps({"a": {"text": ["x"], "start": [0], "end": [1]}}))
    with pytest.raises(ValueError, match="a.mp4, a.webm; keep one each"):
        data.make_features(tmp_path / "videos", tmp_path / "captions.json", mini / "vocab.txt", ["frame"], tmp_path, 1)
