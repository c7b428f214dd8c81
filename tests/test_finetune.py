"""Metrics against scikit-learn and scipy, token ids and batches, fine-tuning runs.

    python -m pytest tests/test_finetune.py
"""
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import data
import finetune
import model

ROOT = Path(__file__).resolve().parent.parent

# --------------------------------------------------------------------------------------------------
# Metrics


def draws():
    """(labels, predictions) of classes: random ones, and every way to be degenerate."""
    generator = np.random.default_rng(7)
    for draw in range(140):
        size = int(generator.integers(1, 40))
        classes = int(generator.integers(1, 6))
        labels, predictions = generator.integers(classes, size=(2, size))
        kinds = ["random", "one label", "one answer", "both", "strangers", "right", "wrong"]
        kind = kinds[draw % 7]
        if kind in ("one label", "both"):
            labels = np.full(size, labels[0])
        if kind in ("one answer", "both"):
            predictions = np.full(size, predictions[0])
        if kind == "strangers":   # classes that no row has
            predictions = predictions + classes
        if kind == "right":
            predictions = labels
        if kind == "wrong":
            predictions = (labels + 1) % max(classes, 2)
        yield labels, predictions


@pytest.mark.filterwarnings("ignore")
def test_classification_metrics_match_scikit_learn():
    oracle = pytest.importorskip("sklearn.metrics")
    for labels, predictions in draws():
        assert finetune.accuracy(labels, predictions) == pytest.approx(
            oracle.accuracy_score(labels, predictions))
        assert finetune.matthews(labels, predictions) == pytest.approx(
            oracle.matthews_corrcoef(labels, predictions), abs=1e-12)
        assert finetune.f1(labels, predictions) == pytest.approx(
            oracle.f1_score(labels == 1, predictions == 1, zero_division=0))


@pytest.mark.filterwarnings("ignore")
def test_correlations_match_numpy_and_scipy():
    """None where one side is constant or there is one row; ties share their rank."""
    generator = np.random.default_rng(8)
    for draw in range(400):
        size = int(generator.integers(1, 40))
        scale = 10.0 ** generator.integers(-3, 4, size=(2, 1))
        x, y = generator.normal(size=(2, size)) * scale
        if draw % 6 == 1:
            x = np.round(x)
        if draw % 6 == 2:
            x = np.full(size, x[0])
        if draw % 6 == 3:
            y = np.full(size, y[0], np.float32)
        if draw % 6 == 4:
            y = x + 1e-3 * y
        if draw % 6 == 5:
            y = np.round(y)
        constant = size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
        if constant:
            assert finetune.pearson(x, y) is None and finetune.spearman(x, y) is None
            continue
        assert finetune.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
        ranks = np.corrcoef(scipy.stats.rankdata(x), scipy.stats.rankdata(y))
        assert finetune.spearman(x, y) == pytest.approx(ranks[0, 1], abs=1e-9)


def test_score_gives_every_metric_and_chance():
    labels = np.array([0, 0, 0, 1])
    # accuracy 3/4, F1 2 x 1 / (1 + 2) = 2/3; always 0: accuracy 3/4, F1 0, mean 3/8
    out = finetune.score("QQP", labels, np.array([0, 0, 1, 1]))
    assert out == {"accuracy": 0.75, "f1": pytest.approx(2 / 3), "n": 4, "chance": 0.375}
    assert finetune.single_number("QQP", out) == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert finetune.score("CoLA", labels, labels)["chance"] == 0
    stuck = finetune.score("STS-B", np.array([1.0, 2.0, 3.0]), np.full(3, 2.5))
    assert stuck == {"pearson": None, "spearman": None, "n": 3, "chance": None}
    assert finetune.single_number("STS-B", stuck) is None
    squad = finetune.score("SQuAD2", [["cat"], []], ["the cat", ""])
    assert squad == {"f1": 1, "exact": 1, "n": 2, "chance": 0.5}
    assert finetune.single_number("SQuAD2", {"f1": 0.5, "exact": 0.25}) == 0.5


def test_parts_are_scored_apart():
    def row(part, group, name):
        return {"part": part, "group": group, "property": name}
    meta = [row("grounded", "test", "lift"), row("grounded", "test", "pace"),
            row("grounded", "unfilmed", "lift"), row("grounded", "unfilmed", "lift"),
            row("ungrounded", None, "order")]
    out = finetune.score_parts([1, 0, 1, 0, 1], [1, 1, 0, 0, 1], meta)
    half = {"accuracy": 0.5, "n": 2, "chance": 0.5}
    right = {"accuracy": 1.0, "n": 1, "chance": 1.0}
    assert out == {   # unfilmed rows are in no property
        "grounded": half, "unfilmed": half, "ungrounded": right,
        "grounded_by_property": {"lift": right, "pace": {"accuracy": 0, "n": 1, "chance": 1}}}


# --------------------------------------------------------------------------------------------------
# Token ids and batches


@pytest.mark.parametrize("max_length", [5, 8, 11, 30])
def test_token_ids_match_transformers(run, tiny_tokenizer, transformers, max_length):
    oracle = transformers.BertTokenizerFast.from_pretrained(run / "model")
    texts = [("the cat sat on the mat", "a dog ran"), ("The Cat!", "the dog"),
             ("now", "we see the big red dog sit on the small cat"), ("a b c d e", "f g h i j")]
    examples = [finetune.Example([pair], "0", "0", "") for pair in texts]
    rows = finetune.Rows(examples, None, tiny_tokenizer, max_length)
    tokens, mask, segments = rows.batch(range(len(texts)))
    expected = oracle([first for first, _ in texts], [second for _, second in texts],
                      truncation="longest_first", max_length=max_length, padding=True,
                      return_tensors="pt")
    assert torch.equal(tokens, expected["input_ids"])
    assert torch.equal(segments, expected["token_type_ids"])
    assert torch.equal(mask, expected["attention_mask"].bool())


@pytest.mark.parametrize("rows, batch", [(1, 4), (7, 3), (64, 8), (1000, 16), (1001, 16)])
def test_length_sorted_batches_cover_each_row_once(rows, batch):
    lengths = np.random.default_rng(0).integers(3, 60, rows)
    batches = finetune.length_sorted_batches(lengths, batch, 0, 0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    # equal parts: no batch above the size asked for, and no short last one
    sizes = [len(chosen) for chosen in batches]
    assert max(sizes) <= batch and min(sizes) >= max(sizes) / 2
    assert len(batches) < 2 + rows / (0.9 * batch) + rows / (50 * batch)
    again = finetune.length_sorted_batches(lengths, batch, 0, 0)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again))
    if rows >= 64:
        other = finetune.length_sorted_batches(lengths, batch, 0, 1)
        assert not all(np.array_equal(a, b) for a, b in zip(batches, other))
        padded = sum(len(chosen) * lengths[chosen].max() for chosen in batches)
        unsorted = sum(batch * max(lengths[i:i + batch]) for i in range(0, rows, batch))
        assert padded < 0.9 * unsorted


# --------------------------------------------------------------------------------------------------
# Runs on tasks that can be learnt: is the word after "the" one of the first four?

WORDS = ["cat", "dog", "mat", "red", "big", "sat", "ran", "see"]


def save_model(folder, tokenizer, seed=0):
    torch.manual_seed(seed)
    config = model.BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32,
                              num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                              max_position_embeddings=32, initializer_range=0.1)
    bert = model.Bert(config)
    model.save_hf(folder, config, bert, model.MLMHead(config, bert.tokens), tokenizer)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def rte(count, labels):
    """Lines of RTE, whose first sentence decides."""
    generator = np.random.default_rng(count)
    lines = ["index\tsentence1\tsentence2\tlabel" if labels else "index\tsentence1\tsentence2"]
    for index in range(count):
        word = generator.choice(WORDS[:4] if index % 2 else WORDS[4:])
        text = " ".join(["the"] * int(generator.integers(1, 6)))
        line = f"{index}\t{text} {word}\ta {generator.choice(WORDS)}"
        if labels:
            line += ["\tentailment", "\tnot_entailment"][index % 2]
        lines.append(line)
    return "\n".join(lines) + "\n"


def squad(count):
    """SQuAD v2.0 whose contexts need one to three windows of 24; every third has no answer."""
    paragraphs = []
    for i in range(count):
        question = {"id": str(i), "question": "we see ?", "answers": [], "is_impossible": True}
        if i % 3:
            question["answers"] = [{"text": "cat", "answer_start": 4}]
            question["is_impossible"] = False
        context = " ".join(["the", "cat", *WORDS[i % 8:], *WORDS] + ["now"] * (i % 20))
        paragraphs.append({"context": context, "qas": [question]})
    return {"data": [{"paragraphs": paragraphs}]}


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_tokenizer):
    """A run folder with a tiny random model, and beside it tasks/."""
    folder = tmp_path_factory.mktemp("fine") / "run"
    save_model(folder / "model", tiny_tokenizer)
    tasks = folder.parent / "tasks"
    for split, count in (("train", 160), ("dev", 40), ("test", 12)):
        write(tasks / "RTE" / f"{split}.tsv", rte(count, split != "test"))
    scores = [f"the {WORDS[i % 8]}\ta cat\t{5 * (i % 8 < 4)}\n" for i in range(96)]
    pairs = []
    labels = []
    for i in range(128):
        choices = [f"a {WORDS[i % 4]}", f"a {WORDS[4 + i // 4 % 4]}"]   # the first is right
        labels.append(i // 16 % 2)
        if labels[-1]:
            choices.reverse()
        pairs.append(json.dumps({"goal": "we see", "sol1": choices[0], "sol2": choices[1]}))
    for split, name in (("train", "train"), ("dev", "valid")):
        write(tasks / "STS-B" / f"{split}.tsv", "sentence1\tsentence2\tscore\n" + "".join(scores))
        write(tasks / "PIQA" / f"{name}.jsonl", "\n".join(pairs))
        write(tasks / "PIQA" / f"{name}-labels.lst", "\n".join(map(str, labels)))
        write(tasks / "SQuAD2" / f"{split}-v2.0.json", json.dumps(squad(30)))
    return folder


def start(run, *flags, out=None):
    """finetune.py; returns {file name: path} of the last task's seed 0."""
    flags = ["--model", run, "--data", run.parent / "tasks", "--device", "cpu", "--batch", 16,
             "--lr", "3e-3", "--epochs", 8, "--precision", "fp32", "--out", out or run, *flags]
    finetune.main([str(flag) for flag in flags])


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_run_learns_and_writes_every_file(run, capsys):
    start(run, "--task", "RTE", "--seed", 0, 1)
    folder = run / "finetune/RTE/seed-0"
    metrics = metrics_of(folder)
    assert metrics["dev"]["accuracy"] >= 0.95
    assert metrics["dev"]["n"] == 40 and metrics["dev"]["chance"] == 0.5
    assert metrics["train_rows"] == 160 and metrics["steps"] == 80 and metrics["seconds"] > 0
    assert not metrics["majority"] and "test" not in metrics
    assert {path.name for path in folder.iterdir()} == {
        "args.json", "lock", "log.jsonl", "metrics.json", "predictions-dev.tsv",
        "predictions-test.tsv", "RTE.tsv"}
    lines = (folder / "predictions-dev.tsv").read_text().splitlines()
    header, *rows = [line.split("\t") for line in lines]
    assert header == ["row", "prediction", "label", "p(entailment)", "p(not_entailment)"]
    right = [answer == label for _, answer, label, *_ in rows]
    assert np.mean(right) == pytest.approx(metrics["dev"]["accuracy"]) and len(rows) == 40
    for _, answer, _, p, q in rows:
        assert float(p) + float(q) == pytest.approx(1, abs=1e-5)
        assert (float(p) > 0.5) == (answer == "entailment")
    args = json.loads((folder / "args.json").read_text())
    assert args["arguments"]["lr"] == 3e-3 and args["arguments"]["seed"] == 0
    assert args["settled precision"] == "fp32" and "torch" in args
    assert json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"] == 80
    assert "RTE seed 1: dev " in capsys.readouterr().out

    # a rerun changes nothing and says so; other flags make it again
    before = (folder / "metrics.json").stat().st_mtime_ns
    start(run, "--task", "RTE", "--seed", 0, 1)
    assert capsys.readouterr().out.count("complete, nothing to do") == 2
    assert (folder / "metrics.json").stat().st_mtime_ns == before
    start(run, "--task", "RTE", "--max-length", 20)
    assert "max_length changed" in capsys.readouterr().out
    args = json.loads((folder / "args.json").read_text())
    assert args["arguments"]["max_length"] == 20
    assert (folder / "metrics.json").stat().st_mtime_ns > before


def test_other_weights_and_other_files_make_a_run_again(run, tmp_path, tiny_tokenizer, capsys):
    own = tmp_path / "run"
    save_model(own / "model", tiny_tokenizer)
    path = tmp_path / "tasks/RTE/train.tsv"
    text = rte(16, True)
    write(path, text)
    start(own, "--task", "RTE")
    assert "dev.tsv is missing" in capsys.readouterr().out
    write(path.with_name(".DS_Store.bin"), "a file manager's")
    start(own, "--task", "RTE")
    assert "complete, nothing to do" in capsys.readouterr().out
    # of a run that was moved, of another way to write the folder, and in other parts of a batch,
    # nothing is made again
    own = own.rename(tmp_path / "moved")
    start(own, "--task", "RTE", "--data", f"{tmp_path}/tasks/", "--accumulate", 4)
    assert "complete, nothing to do" in capsys.readouterr().out
    save_model(own / "model", tiny_tokenizer, seed=1)
    start(own, "--task", "RTE")
    assert "model_sha256 changed" in capsys.readouterr().out
    write(path, text.replace("cat", "mat"))
    start(own, "--task", "RTE")
    assert "data_sha256 changed" in capsys.readouterr().out


def test_same_seed_same_run_and_seeds_differ(run, tmp_path):
    start(run, "--task", "RTE", "--train-limit", 48, "--seed", 0, 1, out=tmp_path / "together")
    start(run, "--task", "RTE", "--train-limit", 48, "--seed", 1, out=tmp_path / "alone")

    def predictions(place):
        return (tmp_path / place / "predictions-dev.tsv").read_bytes()
    # what ran before leaves no trace
    alone = predictions("alone/finetune/RTE/seed-1")
    assert predictions("together/finetune/RTE/seed-1") == alone
    assert predictions("together/finetune/RTE/seed-0") != alone


def test_an_unfinished_seed_begun_anew_ends_the_same(run, tmp_path, monkeypatch):
    flags = ("--task", "RTE", "--train-limit", 48)
    start(run, *flags, out=tmp_path / "whole")
    real = finetune.predict
    monkeypatch.setattr(finetune, "predict", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit):
        start(run, *flags, out=tmp_path / "killed")
    folder = tmp_path / "killed/finetune/RTE/seed-0"
    assert (folder / "log.jsonl").exists() and not (folder / "metrics.json").exists()
    monkeypatch.setattr(finetune, "predict", real)
    for name in ("predictions-test-mismatched.tsv", "AX.tsv", "RTE-mine.tsv"):
        (folder / name).touch()
    start(run, *flags, out=tmp_path / "killed")
    assert (folder / "RTE-mine.tsv").exists()   # ours alone go, which would look new
    assert not (folder / "AX.tsv").exists()
    assert not (folder / "predictions-test-mismatched.tsv").exists()
    for name in ("predictions-dev.tsv", "RTE.tsv"):
        whole = tmp_path / "whole/finetune/RTE/seed-0" / name
        assert (folder / name).read_bytes() == whole.read_bytes()


def on_two_machines(runs, outs, *flags):
    """One process a machine, each with its own --model and --out. Returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def machine(rank):
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        start(runs[rank], *flags, out=outs[rank])

    fork = multiprocessing.get_context("fork")
    machines = [fork.Process(target=machine, args=(rank,)) for rank in range(2)]
    for process in machines:
        process.start()
    for process in machines:
        process.join(120)
    return [process.exitcode for process in machines]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_machines_that_share_no_folder_take_the_same_seed(run, tmp_path, capfd):
    """One of them holds no results; nor may it hold another model."""
    flags = ("--task", "RTE", "--train-limit", 48, "--dropout", 0, "--log-every", 1, "--seed", 0)
    start(run, *flags, 1, out=tmp_path / "alone")
    start(run, *flags, out=tmp_path / "first")
    outs = [tmp_path / "first", tmp_path / "second"]
    assert on_two_machines([run, run], outs, *flags, 1) == [0, 0]
    place = Path("finetune", "RTE", "seed-1")
    assert losses(outs[0] / place) == pytest.approx(losses(tmp_path / "alone" / place), rel=1e-4)
    assert not outs[1].exists()
    shutil.copytree(run.parent, tmp_path / "other")
    other = tmp_path / "other" / run.name
    state = torch.load(other / "model" / "pytorch_model.bin", weights_only=True)
    state["bert.embeddings.LayerNorm.bias"] += 1
    torch.save(state, other / "model" / "pytorch_model.bin")
    assert on_two_machines([run, other], outs, *flags, 2) == [1, 1]
    assert "process 1 starts from" in (said := capfd.readouterr().err) and "another model_sha256" in said


def test_regression_and_split_dev(run, tmp_path):
    start(run, "--task", "STS-B", "--epochs", 12, out=tmp_path)
    metrics = metrics_of(tmp_path / "finetune/STS-B/seed-0")
    assert metrics["dev"]["pearson"] > 0.9 and metrics["dev"]["chance"] is None
    start(run, "--task", "STS-B", "--split-dev", out=tmp_path / "half")
    metrics = metrics_of(tmp_path / "half/finetune/STS-B/seed-0")
    assert metrics["train_rows"] == 48 and metrics["dev"]["n"] == 48 and metrics["split_dev"]


def test_choice_learns_and_ignores_the_order_of_candidates(run, tmp_path, tiny_tokenizer):
    start(run, "--task", "PIQA", out=tmp_path)
    metrics = metrics_of(tmp_path / "finetune/PIQA/seed-0")
    assert metrics["dev"]["accuracy"] > 0.9 and not metrics["majority"]
    assert (tmp_path / "finetune/PIQA/seed-0/predictions-dev.tsv").exists()

    examples, targets, _ = finetune.read_split("PIQA", run.parent / "tasks/PIQA", "dev")
    swapped = [example._replace(texts=example.texts[::-1]) for example in examples]
    config, bert, _ = model.load_hf(run / "model")
    torch.manual_seed(0)
    head = model.SequenceHead(config, 1)
    processes = data.Processes("cpu")
    scores = []
    for texts in (examples, swapped):
        rows = finetune.Rows(texts, targets, tiny_tokenizer, 32)
        scores.append(finetune.predict("choice", bert, head, rows, 16, processes, None))
    np.testing.assert_allclose(scores[0], scores[1][:, ::-1], atol=1e-5)
    assert np.ptp(scores[0][:, 0] - scores[0][:, 1]) > 1e-3   # they do depend on the candidate
    loss = finetune.loss_of("choice", torch.tensor(scores[0]), torch.tensor(targets))
    other = finetune.loss_of("choice", torch.tensor(scores[1]), torch.tensor(1 - targets))
    torch.testing.assert_close(loss, other)


def test_meta_parts_reach_metrics(run, tmp_path):
    folder = tmp_path / "tasks/RTE"
    for split in ("train", "dev", "test"):
        write(folder / f"{split}.tsv", (run.parent / f"tasks/RTE/{split}.tsv").read_text())
    rows = []
    for i in range(12):
        rows.append({"label": ["entailment", "not_entailment"][i % 2], "property": "lift",
                     "part": "ungrounded" if i < 4 else "grounded",
                     "group": "unfilmed" if i >= 8 else "test"})
    write(folder / "test.meta.jsonl", "\n".join(map(json.dumps, rows)))
    start(run, "--data", tmp_path / "tasks", "--task", "RTE", out=tmp_path)
    done = tmp_path / "finetune/RTE/seed-0"
    metrics = metrics_of(done)
    assert metrics["test"]["accuracy"] >= 0.9 and metrics["test"]["n"] == 12
    parts = metrics["parts"]["test"]
    assert [parts[part]["n"] for part in finetune.PARTS] == [4, 4, 4]
    assert parts["grounded_by_property"]["lift"]["n"] == 4
    assert not (done / "RTE.tsv").exists()   # labels are known: nothing to submit


@pytest.mark.parametrize("task, scores", [("RTE", [0.0, 1.0]), ("STS-B", 2.5)])
def test_majority_is_flagged(run, tmp_path, capsys, monkeypatch, task, scores):
    def predict(kind, bert, head, rows, *_):
        return np.array([scores] * len(rows))
    monkeypatch.setattr(finetune, "predict", predict)
    start(run, "--task", task, "--train-limit", 16, out=tmp_path)
    out = capsys.readouterr().out
    assert metrics_of(tmp_path / f"finetune/{task}/seed-0")["majority"] and "! one answer" in out
    assert ("dev not defined" in out) == (task == "STS-B")


def test_first_loss_equals_transformers(run, tiny_tokenizer, transformers):
    """Same weights, pooler and classifier included, dropout 0: the same loss and gradients."""
    theirs = transformers.BertForSequenceClassification.from_pretrained(run / "model", num_labels=2)
    config, bert, _ = model.load_hf(run / "model")
    torch.manual_seed(0)
    head = model.SequenceHead(config, 2)
    theirs.bert.pooler.dense.load_state_dict(head.pooler.state_dict())
    theirs.classifier.load_state_dict(head.classifier.state_dict())
    model.set_dropout(config, bert, 0.0)
    model.set_dropout(config, head, 0.0)
    theirs.eval()
    bert.train()   # shows that set_dropout reaches every dropout
    head.train()
    examples, targets, _ = finetune.read_split("RTE", run.parent / "tasks/RTE", "train")
    rows = finetune.Rows(examples, targets, tiny_tokenizer, 32)
    chosen = finetune.length_sorted_batches(rows.lengths, 16, 0, 0)[0]
    tokens, mask, segments = rows.batch(chosen)
    labels = torch.from_numpy(targets[chosen])
    expected = theirs(input_ids=tokens, attention_mask=mask.long(), token_type_ids=segments,
                      labels=labels).loss
    scores = finetune.scores_of("classification", bert, head, (tokens, mask, segments), 1)
    loss = finetune.loss_of("classification", scores, labels) / 16
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()
    expected.backward()
    pairs = [(head.pooler, theirs.bert.pooler.dense),
             (bert.tokens, theirs.bert.embeddings.word_embeddings)]
    for ours, other in pairs:
        torch.testing.assert_close(ours.weight.grad, other.weight.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("head", ["plain", "whitened"])
def test_every_parameter_moves(run, tmp_path, monkeypatch, head):
    modules = []
    real_optimizer = model.optimizer_for
    before = {}

    def optimizer_for(trained, *settings):
        for module in trained:
            for name, value in module.named_parameters():
                before[len(modules), name] = value.detach().clone()
            modules.append(module)
        return real_optimizer(trained, *settings)
    monkeypatch.setattr(model, "optimizer_for", optimizer_for)
    start(run, "--task", "RTE", "--train-limit", 32, "--head", head, out=tmp_path)
    for index, module in enumerate(modules):
        for name, value in module.named_parameters():
            assert not torch.equal(before.pop((index, name)), value), name
    assert not before and len(modules) == 2


@pytest.mark.parametrize("kind, candidates", [("classification", 1), ("choice", 2)])
def test_a_whitened_head_starts_from_the_rows_as_the_encoder_has_them(run, tiny_tokenizer, kind,
                                                                      candidates):
    name = "RTE" if kind == "classification" else "PIQA"
    examples, targets, _ = finetune.read_split(name, run.parent / "tasks" / name, "train")
    rows = finetune.Rows(examples, targets, tiny_tokenizer, 32)
    config, bert, _ = model.load_hf(run / "model")
    states = finetune.first_states(bert, rows, torch.device("cpu"))
    assert states.shape == (candidates * len(rows), config.hidden_size)
    head = finetune.make_head(kind, 2, config, states)
    own = bert(*rows.batch([3]))[:, :1]   # of one row, with all its tokens
    assert torch.allclose(own[:, 0], states[3 * candidates:4 * candidates], atol=1e-5)
    # the head sees all rows around 0, and in no direction more than in another
    seen = (states - head.mean) @ head.whitening
    assert torch.allclose(seen.mean(0), torch.zeros(config.hidden_size), atol=1e-4)
    spread = torch.linalg.eigvalsh(torch.cov(seen.T))
    assert 0.9 < spread.max() < 1.05
    assert head(own).shape == (candidates, 2 if kind == "classification" else 1)


def test_the_heads_rate_is_a_multiple_of_the_encoders(run, tmp_path, monkeypatch):
    rates = []
    real_step = torch.optim.AdamW.step

    def step(optimizer, *given):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return real_step(optimizer, *given)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    start(run, "--task", "RTE", "--head-rate", 7, "--train-limit", 32, out=tmp_path)
    steps = len(rates)
    for number, (encoder, same, head, too) in enumerate(rates):
        warmup = int(0.1 * steps)
        expected = model.lr_at(number - (number < warmup), 3e-3, warmup, steps)
        assert encoder == same == pytest.approx(expected) and head == too == 7 * encoder
    assert max(rates)[0] == pytest.approx(3e-3)


@pytest.mark.parametrize("lr, epochs, message", [
    ("1e38", 6, "at step [1-9][0-9]*; RTE seed 0: .* lower --lr"),
    ("1e30", 0.01, "weight_norm (nan|inf) at step 0; RTE seed 0: try")])   # in no loss any more
def test_what_is_not_finite_stops_with_the_step(run, tmp_path, lr, epochs, message):
    with pytest.raises(model.UserError, match=message):
        start(run, "--task", "RTE", "--lr", lr, "--epochs", epochs, "--warmup", 0, out=tmp_path)
    assert not (tmp_path / "finetune/RTE/seed-0/metrics.json").exists()


@pytest.mark.parametrize("flags, message", [
    (["--model", "nowhere"], "no model in nowhere: .*make teacher distill"),
    (["--task", "WNLI"], "WNLI/train.tsv is missing; `make data/tasks"),
    (["--data", "nowhere"], "no task folder with a train file under nowhere"),
    (["--task", "RTE", "--max-length", "3"], "max-length 3 leaves no room")])
def test_mistakes_are_answered_in_words(run, flags, message):
    with pytest.raises(model.UserError, match=message):
        start(run, *flags)


def test_nothing_is_trained_on_diagnostics(run):
    with pytest.raises(SystemExit):
        start(run, "--task", "diagnostics")


def test_missing_files_are_named(run, tmp_path):
    write(tmp_path / "RTE/dev.tsv", rte(16, True))
    with pytest.raises(model.UserError, match="train.tsv is missing; .*--split-dev trains on"):
        start(run, "--data", tmp_path, "--task", "RTE", out=tmp_path)
    start(run, "--data", tmp_path, "--split-dev", out=tmp_path)
    assert metrics_of(tmp_path / "finetune/RTE/seed-0")["dev"]["n"] == 8
    (tmp_path / "RTE/dev.tsv").rename(tmp_path / "RTE/train.tsv")
    with pytest.raises(model.UserError, match="dev.tsv is missing"):
        start(run, "--data", tmp_path, "--task", "RTE", "--split-dev", out=tmp_path)


@pytest.mark.parametrize("recorded, flags, size, lr", [
    ("mini", [], "mini", "0.0001"), ("base", [], "base", "0.0001"),
    ("mini", ["--size", "small"], "small", "0.0001"), (None, [], "base", "0.0001")])
def test_recipe_follows_the_run(run, tmp_path, tiny_tokenizer, capsys, monkeypatch, recorded, flags,
                                size, lr):
    """A narrow BERT that is not ours gets the paper's recipe, and which one it is is said."""
    save_model(tmp_path / "run/model", tiny_tokenizer)
    if recorded:
        data.write_json(tmp_path / "run/args.json", {"arguments": {"size": recorded}})
    recipes = []

    def no_run(settings, *_):
        recipes.append(settings)
        return {"task": "RTE", "seed": 0, "majority": False, "parts": {}, "seconds": 0}
    monkeypatch.setattr(finetune, "finetune", no_run)
    finetune.main(["--model", str(tmp_path / "run"), "--data", str(run.parent / "tasks"),
                   "--task", "RTE", "--epochs", "1", "--device", "cpu", *flags])
    assert f"RTE: recipe of size {size}: lr {lr}, 1 epochs, batch " in capsys.readouterr().out
    assert recipes[0]["size"] == size and recipes[0]["lr"] == float(lr)


def test_a_folder_named_model_belongs_to_its_run(run, tmp_path, tiny_tokenizer):
    save_model(tmp_path / "run/model", tiny_tokenizer)
    data.write_json(tmp_path / "run/args.json", {"arguments": {"size": "mini"}})
    place = (tmp_path / "run/model", tmp_path / "run", "mini")
    assert finetune.locate_model(tmp_path / "run") == place
    assert finetune.locate_model(tmp_path / "run/model") == place
    (tmp_path / "run/args.json").unlink()
    assert finetune.locate_model(tmp_path / "run") == (*place[:2], None)
    (tmp_path / "run/model").rename(tmp_path / "bert")
    assert finetune.locate_model(tmp_path / "bert") == (tmp_path / "bert", Path("runs/bert"), None)


def test_settings_follow_size_and_task():
    args = finetune.parse_args(["--epochs", "2"])
    base = model.SIZES["base"]
    mini = finetune.settings_for(args, "SWAG", "mini", model.SIZES["mini"])
    assert (mini["lr"], mini["head_rate"], mini["head"]) == (1e-4, 10, "whitened")
    assert finetune.settings_for(args, "SQuAD1", "mini", model.SIZES["mini"])["lr"] == 1e-3
    swag = finetune.settings_for(args, "SWAG", "base", base)
    assert (swag["lr"], swag["max_length"], swag["epochs"], swag["size"]) == (5e-5, 80, 2, "base")
    assert finetune.settings_for(args, "RTE", "small", base)["max_length"] == 126


def test_a_vocabulary_larger_than_the_model_is_refused(run, tmp_path):
    config, bert, head = model.load_hf(run / "model")
    tokenizer = data.load_tokenizer(run / "model")
    model.save_hf(tmp_path / "run/model", config, bert, head, tokenizer)
    tokenizer.add_tokens(["covid19"])
    tokenizer.save(str(tmp_path / "run/model/tokenizer.json"))
    with open(tmp_path / "run/model/vocab.txt", "a") as file:
        file.write("covid19\n")
    words = tokenizer.get_vocab_size()
    with pytest.raises(model.UserError, match=f"has {words} entries, the model {words - 1}"):
        start(run, "--model", tmp_path / "run", "--task", "RTE", out=tmp_path)


@pytest.mark.parametrize("parts", [1, 4])
def test_two_processes_equal_one(run, tmp_path, parts):
    """torchrun with two processes and an odd batch: the same predictions up to rounding.

    In 4 parts a process's 2 or 3 or 4 rows leave some parts without one.
    """
    # 29 rows in batches of at most 7 are 6, 6, 6, 6, 5: shares differ in one batch
    flags = ["--model", run, "--data", run.parent / "tasks", "--task", "RTE", "SQuAD2",
             "--max-length", 24, "--stride", 6, "--device", "cpu", "--size", "mini", "--batch", 7,
             "--epochs", 1, "--train-limit", 29, "--log-every", 1, "--warmup", 0.1,
             "--precision", "fp32", "--out"]
    flags = [str(flag) for flag in flags]
    finetune.main([*flags, str(tmp_path / "one")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
         str(ROOT / "finetune.py"), "--accumulate", str(parts), *flags, str(tmp_path / "two")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("RTE seed 0: dev") == 1   # one process talks
    odds = []
    probabilities = []
    logs = []
    for place in ("one", "two"):
        folder = tmp_path / place / "finetune/RTE/seed-0"
        rows = (folder / "predictions-dev.tsv").read_text().splitlines()[1:]
        probabilities.append(np.array([float(row.split("\t")[3]) for row in rows]))
        squad = tmp_path / place / "finetune/SQuAD2/seed-0"
        odds.append(json.loads((squad / "null_odds-dev.json").read_text()))
        lines = (folder / "log.jsonl").read_text() + (squad / "log.jsonl").read_text()
        logs.append([json.loads(line) for line in lines.splitlines()])
    assert np.ptp(probabilities[0]) > 1e-3
    np.testing.assert_allclose(*probabilities, atol=1e-4)
    assert np.ptp(list(odds[0].values())) > 0.01
    assert odds[0] == pytest.approx(odds[1], abs=1e-3)
    # Adam and clipping hide a wrong scale of the loss from the predictions; the log does not
    assert len(logs[0]) == len(logs[1]) > 10
    for one, two in zip(*logs):
        for key in ("loss", "grad_norm"):
            assert one[key] == pytest.approx(two[key], rel=1e-3)
