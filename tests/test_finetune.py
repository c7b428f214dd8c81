"""Readers, featurisation and fine-tuning runs.

    python -m pytest tests/test_finetune.py
    REAL_DATA=/path/to/real/files python -m pytest tests/test_finetune.py     # also the published task files
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
import finetune
import model

ROOT = Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------------------------------------------------------------
# Readers


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path.parent


def read(name, folder, split):
    return finetune.TASKS[name].read(folder, split)


RTE = "index\tsentence1\tsentence2\tlabel\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
STSB = "index\tsentence1\tsentence2\tscore\n"
SWAG = "sent1,sent2,ending0,ending1,ending2,ending3,label\n"
PIQA = '{"goal": "g", "sol1": "a", "sol2": "b"}\n'


@pytest.mark.parametrize("name, split, file, text, texts, label", [
    ("CoLA", "train", "train.tsv", 'gj04\t0\t*\tHe "said so.\n', [('He "said so.', None)], "0"),
    ("CoLA", "test", "test.tsv", "index\tsentence\n7\tHello.\n", [("Hello.", None)], None),
    ("SST-2", "dev", "dev.tsv", "sentence\tlabel\nfine \t1\n", [("fine ", None)], "1"),
    ("SST-2", "test", "test.tsv", "index\tsentence\n7\tfine\n", [("fine", None)], None),
    ("STS-B", "dev", "dev.tsv", "index\tgenre\tsentence1\tsentence2\tscore\n7\tg\ta\tb\t2.5\n", [("a", "b")], "2.5"),
    ("QQP", "train", "train.tsv", QQP + "7\t1\t2\ta\tb\t1\n", [("a", "b")], "1"),
    # columns found by name: here in another order
    ("QNLI", "dev", "dev.tsv", "label\tsentence\tquestion\tindex\nnot_entailment\ts\tq\t7\n", [("q", "s")],
     "not_entailment"),
    ("MNLI", "dev-mismatched", "dev_mismatched.tsv",
     "index\tsentence1\tsentence2\tlabel1\tgold_label\n7\ta\tb\tneutral\tentailment\n", [("a", "b")], "entailment"),
    ("PIQA", "test", "tests.jsonl", '{"goal": "g", "sol1": "a", "sol2": "b"}\n', [("g", "a"), ("g", "b")], None),
    ("SWAG", "dev", "val.csv",
     ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"
     '7,v,1,p,"One, two.",He,gold,"says ""hi"".",b,c,d,2\n',
     [("One, two.", 'He says "hi".'), ("One, two.", "He b"), ("One, two.", "He c"), ("One, two.", "He d")], "2"),
    ("TRACIE", "train", "tracie_train.txt", "event: he eats starts after story: A. B.\tanswer: negative\n",
     [("he eats starts after", "A. B.")], "negative"),
])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_formats(tmp_path, name, split, file, text, texts, label, bom):
    example, = read(name, write(tmp_path / name / file, bom + text.encode()), split)
    assert (example.texts, example.label) == (texts, label)
    if "\n7" in text and name != "SST-2" and name != "CoLA":
        assert example.row == "7"
    assert str(tmp_path) in example.where


def test_mrpc_dev_rows_come_from_the_id_file(tmp_path):
    head = b"\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    write(tmp_path / "msr_paraphrase_train.txt", head + b"1\t10\t11\ta\tb\n0\t12\t13\tc\td\n1\t11\t10\te\tf\n")
    write(tmp_path / "msr_paraphrase_test.txt", head + b"1\t20\t21\tx\ty\n")
    write(tmp_path / "mrpc_dev_ids.tsv", "10\t11\n")
    assert [example.texts[0] for example in read("MRPC", tmp_path, "dev")] == [("a", "b")]
    assert [example.texts[0] for example in read("MRPC", tmp_path, "train")] == [("c", "d"), ("e", "f")]
    assert [example.label for example in read("MRPC", tmp_path, "test")] == ["1"]
    write(tmp_path / "train.tsv", head + b"0\t30\t31\tp\tq\n")
    assert [example.texts[0] for example in read("MRPC", tmp_path, "train")] == [("p", "q")]


def test_qqp_short_rows_are_skipped_and_counted(tmp_path, capsys):
    folder = write(tmp_path / "train.tsv", QQP + "1\t1\t2\ta\tb\t1\n2\t3\tcut off\n3\t4\t5\tc\td\t0\n")
    assert [example.row for example in read("QQP", folder, "train")] == ["1", "3"]
    assert "1 rows with fewer than 6 columns skipped" in capsys.readouterr().out


def test_lines_end_at_newlines_only(tmp_path):
    folder = write(tmp_path / "dev.tsv", "sentence\tlabel\r\none\u2028two\x0bthree\x85\t1\r\n")
    assert read("SST-2", folder, "dev")[0].texts == [("one\u2028two\x0bthree\x85", None)]


@pytest.mark.parametrize("name, file, text, message", [
    ("RTE", "train.tsv", RTE + "0\ta\tb\tentailment\n1\ta\tentailment\n", r"line 3: 3 columns, expected 4"),
    ("RTE", "train.tsv", RTE + "0\ta\tb\tmaybe\n", r"line 2: label 'maybe', expected entailment, not_"),
    ("RTE", "train.tsv", b"index\tsentence1\tsentence2\tlabel\n0\ta\t\xff\tentailment\n", r"line 2: not UTF-8"),
    ("RTE", "train.tsv", "index\tpremise\tsentence2\tlabel\n0\ta\tb\tentailment\n", r"line 1: no column sentence1"),
    ("RTE", "train.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n", r"line 1: no column label"),
    ("CoLA", "train.tsv", "gj04\t1\t\tfine\ngj04\t1\tfine\n",
     r"line 2: 3 columns, expected 4: source, label, star, sentence"),
    ("STS-B", "train.tsv", STSB + "0\ta\tb\t5.2\n", r"line 2: label '5.2', expected 0.0 to 5.0"),
    ("STS-B", "train.tsv", STSB + "0\ta\tb\tnan\n", r"line 2: label 'nan'"),
    ("QQP", "train.tsv", QQP + "1\t1\t2\ta\tb\t1\tx\n", r"line 2: 7 columns, expected 6"),
    ("PIQA", "train.jsonl", PIQA + '{"goal": \n', r"train.jsonl, line 2: expected a JSON object"),
    ("PIQA", "train.jsonl", '{"goal": "g", "sol1": "a"}\n', r"train.jsonl, line 1: expected .*sol2"),
    ("SWAG", "train.csv", "a,b\n", r"line 1: expected columns sent1"),
    ("SWAG", "train.csv", SWAG + "1,2,3\n", r"line 2: 3 columns, expected 7"),
    ("SWAG", "train.csv", SWAG + "a,b,c,d,e,f,4\n", r"line 2: label '4', expected 0, 1, 2, 3"),
    ("TRACIE", "tracie_train.txt", "event: a story: b\tanswer: positive\nevent: a\tanswer: positive\n",
     r"line 2: expected 'event"),
    ("TRACIE", "tracie_train.txt", "event: a story: b\tanswer: yes\n",
     r"line 1: label 'yes', expected negative, positive"),
])
def test_malformed_rows_name_file_and_line(tmp_path, name, file, text, message):
    folder = write(tmp_path / file, text)
    with pytest.raises(ValueError, match=message) as error:
        finetune.read_split(name, folder, "train")
    assert str(tmp_path / file) in str(error.value)


def test_piqa_label_count_and_labels_are_checked(tmp_path):
    write(tmp_path / "valid.jsonl", PIQA * 3)
    write(tmp_path / "valid-labels.lst", "0\n1\n")
    with pytest.raises(ValueError, match="valid-labels.lst has 2 lines, expected the 3 of"):
        read("PIQA", tmp_path, "dev")
    write(tmp_path / "valid-labels.lst", "0\n2\n1\n")
    with pytest.raises(ValueError, match="valid-labels.lst, line 2: label '2', expected 0, 1"):
        finetune.read_split("PIQA", tmp_path, "dev")


def test_meta_gives_hidden_labels_and_must_agree(tmp_path):
    meta = '{"label": "not_entailment", "part": "grounded", "group": "test", "property": "lift"}\n'
    write(tmp_path / "test.tsv", "index\tquestion\tsentence\n0\tq\ts\n")
    assert finetune.read_split("QNLI", tmp_path, "test")[1] is None
    write(tmp_path / "test.meta.jsonl", meta)
    examples, targets, rows = finetune.read_split("QNLI", tmp_path, "test")
    assert targets.tolist() == [1] and rows[0]["property"] == "lift"
    write(tmp_path / "test.meta.jsonl", meta * 2)
    with pytest.raises(ValueError, match="has 2 rows, expected 1"):
        finetune.read_split("QNLI", tmp_path, "test")
    write(tmp_path / "dev.tsv", "index\tquestion\tsentence\tlabel\n0\tq\ts\tentailment\n")
    write(tmp_path / "dev.meta.jsonl", meta)
    with pytest.raises(ValueError, match="dev.meta.jsonl, line 1: label 'not_entailment', expected 'entailment'"):
        finetune.read_split("QNLI", tmp_path, "dev")


@pytest.mark.parametrize("place, name, counts", [
    ("glue/CoLA", "CoLA", {"train": 8551, "dev": 1043, "test": 1063}),
    ("glue/RTE", "RTE", {"train": 2490, "dev": 277, "test": 3000}),
    ("glue/STS-B", "STS-B", {"train": 5749, "dev": 1500, "test": 1379}),
    ("glue/WNLI", "WNLI", {"train": 635, "dev": 71, "test": 146}),
    ("glue/QNLI", "QNLI", {"dev": 5463}), ("piqa", "PIQA", {"dev": 1838, "test": 3084}), ("swag", "SWAG", {"dev": 11}),
    ("glue/QQP", "QQP", {"train": 9, "dev": 9, "test": 9}),
    ("glue/MNLI", "MNLI", {"train": 1, "dev": 1, "dev-mismatched": 1, "test": 1}),
    ("tracie/iid", "TRACIE-iid", {"train": 1174, "test": 4248}),
    ("tracie/uniform-prior", "TRACIE-uniform-prior", {"train": 860, "test": 4248})])
def test_published_files(real_data, place, name, counts):
    labelled = ("train", "dev", "dev-mismatched") + ("test",) * name.startswith("TRACIE")
    for split, count in counts.items():
        examples, targets, _ = finetune.read_split(name, real_data / place, split)
        assert len(examples) == count
        assert (targets is not None) == (split in labelled)
        assert all(text.strip() for example in examples for pair in example.texts for text in pair if text is not None)
        if split == "test" and name == "TRACIE-iid":
            assert targets.sum() == 2124
        if split == "train" and name == "TRACIE-uniform-prior":
            assert targets.sum() == 430
    folder = finetune.task_folder(real_data / "glue" if place.startswith("glue") else real_data, name)
    assert folder.resolve() == (real_data / place).resolve() or os.path.samefile(folder, real_data / place)


# ---------------------------------------------------------------------------------------------------------------------
# Featurisation and batches


@pytest.mark.parametrize("max_length", [5, 8, 11, 30])
def test_token_ids_match_transformers(tiny_vocab, tiny_tokenizer, transformers, max_length):
    oracle = transformers.BertTokenizerFast.from_pretrained(tiny_vocab.parent)
    texts = [("the cat sat on the mat", "a dog ran"), ("now", "we see the big red dog sit on the small cat"),
             ("The Cat!", "the dog"), ("a b c d e", "f g h i j")]
    examples = [finetune.Example([pair], "0", "0", "") for pair in texts]
    rows = finetune.Rows(examples, None, tiny_tokenizer, max_length)
    tokens, mask, segments = rows.batch(range(len(texts)))
    out = oracle([a for a, _ in texts], [b for _, b in texts], truncation="longest_first", max_length=max_length,
                 padding=True, return_tensors="pt")
    assert torch.equal(tokens, out["input_ids"]) and torch.equal(segments, out["token_type_ids"])
    assert torch.equal(mask, out["attention_mask"].bool())


@pytest.mark.parametrize("rows, batch", [(1, 4), (7, 3), (64, 8), (1000, 16), (1001, 16)])
def test_length_sorted_batches_cover_each_row_once(rows, batch):
    lengths = np.random.default_rng(0).integers(3, 60, rows)
    batches = finetune.length_sorted_batches(lengths, batch, 0, 0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    # equal parts: no batch above the size asked for, and no short last one
    assert max(map(len, batches)) <= batch and len(batches) < 2 + rows / (0.9 * batch) + rows / (50 * batch)
    assert min(map(len, batches)) >= max(map(len, batches)) / 2
    again, other = [finetune.length_sorted_batches(lengths, batch, 0, epoch) for epoch in (0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(batches, again))
    if rows >= 64:
        assert not all(np.array_equal(a, b) for a, b in zip(batches, other))
        padded = sum(len(b) * lengths[b].max() for b in batches)
        unsorted = sum(batch * max(lengths[i:i + batch]) for i in range(0, rows, batch))
        assert padded < 0.9 * unsorted


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning runs, on a task that can be learnt: is the first sentence's word among the second's?

WORDS = ["cat", "dog", "mat", "red", "big", "sat", "ran", "see"]


def save_model(folder, tokenizer, seed=0, dropout=0.1):
    torch.manual_seed(seed)
    config = model.BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
                              num_attention_heads=2, intermediate_size=64, max_position_embeddings=32,
                              initializer_range=0.1,
                              hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    bert = model.Bert(config)
    model.save_hf(folder, config, bert, model.MLMHead(config, bert.tokens), tokenizer)
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_tokenizer):
    """A run folder with a tiny random model, and beside it tasks/."""
    folder = tmp_path_factory.mktemp("fine") / "run"
    save_model(folder / "model", tiny_tokenizer)
    tasks, generator = folder.parent / "tasks", np.random.default_rng(0)

    def rte(count, labelled):
        lines = ["index\tsentence1\tsentence2" + "\tlabel" * labelled]
        for index in range(count):
            label, word = index % 2, generator.choice(WORDS[:4] if index % 2 else WORDS[4:])
            text = " ".join(["the"] * int(generator.integers(1, 6)) + [word])
            lines.append(f"{index}\t{text}\ta {generator.choice(WORDS)}" +
                         ["\tentailment", "\tnot_entailment"][label] * labelled)
        return "\n".join(lines) + "\n"
    for split, count in (("train", 160), ("dev", 40), ("test", 12)):
        write(tasks / "RTE" / f"{split}.tsv", rte(count, split != "test"))
    score = "index\tsentence1\tsentence2\tscore\n" + "".join(
        f"{i}\tthe {WORDS[i % 8]}\ta cat\t{5 * (i % 8 < 4)}\n" for i in range(96))
    for split in ("train", "dev"):
        write(tasks / "STS-B" / f"{split}.tsv", score)
        name = "valid" if split == "dev" else split
        pairs = [(WORDS[i % 4], WORDS[4 + i // 4 % 4], i // 16 % 2) for i in range(128)]   # (right, wrong, label)
        write(tasks / "PIQA" / f"{name}.jsonl", "".join(json.dumps(
            {"goal": "we see", "sol1": f"a {b if label else a}", "sol2": f"a {a if label else b}"}) + "\n"
            for a, b, label in pairs))
        write(tasks / "PIQA" / f"{name}-labels.lst", "".join(f"{label}\n" for _, _, label in pairs))
    return folder


def start(run, *flags, out=None):
    finetune.main(["--model", str(run), "--data", str(run.parent / "tasks"), "--device", "cpu", "--batch", "16",
                   "--lr", "3e-3", "--epochs", "6", "--precision", "fp32", *(["--out", str(out)] if out else []), *map(str, flags)])


def test_run_learns_and_writes_every_file(run, capsys):
    start(run, "--task", "RTE", "--seed", 0, 1)
    first = run / "finetune" / "RTE" / "seed-0"
    metrics = json.loads((first / "metrics.json").read_text())
    assert metrics["dev"]["accuracy"] >= 0.95 and metrics["dev"]["n"] == 40 and metrics["dev"]["chance"] == 0.5
    assert metrics["train_rows"] == 160 and metrics["steps"] == 60 and metrics["seconds"] > 0
    assert not metrics["majority"] and "test" not in metrics
    assert {path.name for path in first.iterdir()} == {"args.json", "log.jsonl", "metrics.json", "predictions-dev.tsv",
                                                       "predictions-test.tsv", "RTE.tsv"}
    lines = [line.split("\t") for line in (first / "predictions-dev.tsv").read_text().splitlines()]
    assert lines[0] == ["row", "prediction", "label", "p(entailment)", "p(not_entailment)"] and len(lines) == 41
    assert np.mean([guess == label for _, guess, label, *_ in lines[1:]]) == pytest.approx(metrics["dev"]["accuracy"])
    for _, guess, _, p, q in lines[1:]:
        assert float(p) + float(q) == pytest.approx(1, abs=1e-5) and (float(p) > 0.5) == (guess == "entailment")
    submission = (first / "RTE.tsv").read_text().splitlines()
    assert submission[0] == "index\tprediction" and len(submission) == 13 and submission[1].startswith("0\t")
    args = json.loads((first / "args.json").read_text())
    assert args["arguments"]["lr"] == 3e-3 and args["arguments"]["seed"] == 0
    assert args["settled precision"] == "fp32" and "torch" in args
    assert json.loads((first / "log.jsonl").read_text().splitlines()[-1])["step"] == 60
    assert "RTE seed 1: dev accuracy" in capsys.readouterr().out

    # a rerun changes nothing and says so; other flags, other weights and other data make it again
    before = (first / "metrics.json").stat().st_mtime_ns
    start(run, "--task", "RTE", "--seed", 0, 1)
    assert capsys.readouterr().out.count("complete, nothing to do") == 2
    assert (first / "metrics.json").stat().st_mtime_ns == before
    start(run, "--task", "RTE", "--seed", 0, "--max-length", 20)
    assert "max_length changed" in capsys.readouterr().out
    assert json.loads((first / "args.json").read_text())["arguments"]["max_length"] == 20
    assert (first / "metrics.json").stat().st_mtime_ns > before


def test_other_weights_and_other_files_make_a_run_again(run, tmp_path, tiny_tokenizer, capsys):
    folder = save_model(tmp_path / "run" / "model", tiny_tokenizer).parent
    write(tmp_path / "tasks" / "RTE" / "train.tsv", (run.parent / "tasks/RTE/train.tsv").read_bytes())
    flags = ("--task", "RTE", "--train-limit", 16)
    start(folder, *flags)
    assert "no dev split" in capsys.readouterr().out
    write(tmp_path / "tasks" / "RTE" / ".DS_Store.bin", b"a file manager's")
    start(folder, *flags)
    assert "complete, nothing to do" in capsys.readouterr().out
    save_model(folder / "model", tiny_tokenizer, seed=1)
    start(folder, *flags)
    assert "model_sha256 changed" in capsys.readouterr().out
    text = (tmp_path / "tasks/RTE/train.tsv").read_text()
    write(tmp_path / "tasks" / "RTE" / "train.tsv", text.replace("cat", "mat"))
    start(folder, *flags)
    assert "data_sha256 changed" in capsys.readouterr().out


def test_same_seed_same_run_and_seeds_differ(run, tmp_path):
    def predictions(out, *flags):
        start(run, "--task", "RTE", "--train-limit", 48, *flags, out=tmp_path / out)
        return {path.parent.name: path.read_bytes()
                for path in (tmp_path / out).glob("finetune/RTE/*/predictions-dev.tsv")}
    together, alone = predictions("a", "--seed", 0, 1), predictions("b", "--seed", 1)
    assert together["seed-1"] == alone["seed-1"]   # what ran before leaves no trace
    assert together["seed-0"] != together["seed-1"]


def test_regression_and_split_dev(run, tmp_path):
    start(run, "--task", "STS-B", "--epochs", 12, out=tmp_path)
    metrics = json.loads((tmp_path / "finetune/STS-B/seed-0/metrics.json").read_text())
    assert metrics["dev"]["pearson"] > 0.9 and metrics["dev"]["chance"] is None
    start(run, "--task", "STS-B", "--split-dev", out=tmp_path / "half")
    metrics = json.loads((tmp_path / "half/finetune/STS-B/seed-0/metrics.json").read_text())
    assert metrics["train_rows"] == 48 and metrics["dev"]["n"] == 48 and metrics["split_dev"]


def test_choice_learns_and_ignores_the_order_of_candidates(run, tmp_path, tiny_tokenizer):
    start(run, "--task", "PIQA", out=tmp_path)
    metrics = json.loads((tmp_path / "finetune/PIQA/seed-0/metrics.json").read_text())
    assert metrics["dev"]["accuracy"] > 0.9 and not metrics["majority"]

    examples, targets, _ = finetune.read_split("PIQA", run.parent / "tasks/PIQA", "dev")
    swapped = [example._replace(texts=example.texts[::-1]) for example in examples]
    config, bert, _ = model.load_hf(run / "model")
    torch.manual_seed(0)
    head, processes = model.SequenceHead(config, 1), data.Processes("cpu")
    both = [finetune.Rows(rows, targets, tiny_tokenizer, 32) for rows in (examples, swapped)]
    scores, other = [finetune.predict("choice", bert, head, rows, 16, processes, None) for rows in both]
    np.testing.assert_allclose(scores, other[:, ::-1], atol=1e-5)
    assert np.ptp(scores[:, 0] - scores[:, 1]) > 1e-3   # the scores do depend on the candidate
    losses = [float(finetune.loss_of("choice", torch.from_numpy(s.copy()), torch.from_numpy(t)))
              for s, t in ((scores, targets), (other, 1 - targets))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_meta_parts_reach_metrics(run, tmp_path):
    folder = tmp_path / "tasks" / "RTE"
    for split in ("train", "dev", "test"):
        write(folder / f"{split}.tsv", (run.parent / f"tasks/RTE/{split}.tsv").read_bytes())
    rows = [{"label": ("entailment", "not_entailment")[i % 2], "part": "ungrounded" if i < 4 else "grounded",
             "noun": "cat", "group": "unfilmed" if i >= 8 else "test", "property": "lift"} for i in range(12)]
    write(folder / "test.meta.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    start(run, "--data", tmp_path / "tasks", "--task", "RTE", out=tmp_path)
    done = tmp_path / "finetune/RTE/seed-0"
    metrics = json.loads((done / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] >= 0.9 and metrics["test"]["n"] == 12
    assert [metrics["parts"]["test"][part]["n"] for part in evaluate.PARTS] == [4, 4, 4]
    assert metrics["parts"]["test"]["grounded_by_property"]["lift"]["n"] == 4
    assert not (done / "RTE.tsv").exists()   # labels are known: nothing to submit


@pytest.mark.parametrize("task, scores", [("RTE", [0.0, 1.0]), ("STS-B", 2.5)])
def test_majority_is_flagged(run, tmp_path, capsys, monkeypatch, task, scores):
    monkeypatch.setattr(finetune, "predict", lambda kind, bert, head, rows, *_: np.array([scores] * len(rows)))
    start(run, "--task", task, "--train-limit", 16, out=tmp_path)
    out = capsys.readouterr().out
    assert json.loads((tmp_path / "finetune" / task / "seed-0" / "metrics.json").read_text())["majority"]
    assert "! one answer" in out and ("pearson not defined spearman not defined" in out) == (task == "STS-B")


def test_first_loss_equals_transformers(run, tiny_tokenizer, transformers):
    """Same weights, pooler and classifier included, dropout 0: the same loss, the same gradients."""
    theirs = transformers.BertForSequenceClassification.from_pretrained(run / "model", num_labels=2)
    config, bert, _ = model.load_hf(run / "model")
    torch.manual_seed(0)
    head = model.SequenceHead(config, 2)
    for ours, other in ((head.pooler, theirs.bert.pooler.dense), (head.classifier, theirs.classifier)):
        other.load_state_dict(ours.state_dict())
    model.set_dropout(config, bert, 0.0), model.set_dropout(config, head, 0.0)
    theirs.eval(), bert.train(), head.train()   # train: shows that set_dropout reaches every dropout
    examples, targets, _ = finetune.read_split("RTE", run.parent / "tasks/RTE", "train")
    rows = finetune.Rows(examples, targets, tiny_tokenizer, 32)
    chosen = finetune.length_sorted_batches(rows.lengths, 16, 0, 0)[0]
    tokens, mask, segments = rows.batch(chosen)
    labels = torch.from_numpy(targets[chosen])
    expected = theirs(input_ids=tokens, attention_mask=mask.long(), token_type_ids=segments, labels=labels).loss
    scores = finetune.scores_of("classification", bert, head, (tokens, mask, segments), 1)
    loss = finetune.loss_of("classification", scores, labels) / 16
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward(), expected.backward()
    for ours, other in ((head.pooler, theirs.bert.pooler.dense), (bert.tokens, theirs.bert.embeddings.word_embeddings)):
        torch.testing.assert_close(ours.weight.grad, other.weight.grad, atol=1e-6, rtol=1e-4)


def test_every_parameter_of_the_encoder_moves(run, tmp_path, monkeypatch):
    kept = {}
    real = finetune.evaluate.score

    def spy(*arguments):   # called once training is over
        frame = sys._getframe(1)
        kept.update({name: (frame.f_locals["encoder"][name], value.clone())
                     for name, value in frame.f_locals["bert"].state_dict().items()})
        return real(*arguments)
    monkeypatch.setattr(finetune.evaluate, "score", spy)
    start(run, "--task", "RTE", "--train-limit", 32, out=tmp_path)
    assert kept and [name for name, (before, after) in kept.items() if torch.equal(before, after)] == []


def test_non_finite_loss_stops_with_the_step(run, tmp_path):
    with pytest.raises(FloatingPointError, match="at step [1-9][0-9]* of RTE seed 0"):
        start(run, "--task", "RTE", "--lr", "1e38", "--warmup", 0, out=tmp_path)
    assert not (tmp_path / "finetune/RTE/seed-0/metrics.json").exists()


@pytest.mark.parametrize("flags, message", [
    (["--model", "nowhere"], "make teacher distill"), (["--task", "GLUE"], "unknown task GLUE; known: CoLA"),
    (["--task", "WNLI"], "no folder WNLI"), (["--data", "nowhere"], "no task folder under nowhere"),
    (["--task", "RTE", "--max-length", "3"], "max length 3")])
def test_mistakes_are_answered_in_words(run, flags, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        start(run, *flags)


def test_defaults_follow_size_and_task():
    args = finetune.parse_args(["--epochs", "2"])
    mini, base = model.SIZES["mini"], model.SIZES["base"]
    assert finetune.settings_for(args, "SWAG", mini)["lr"] == 1e-3
    swag = finetune.settings_for(args, "SWAG", base)
    assert (swag["lr"], swag["max_length"], swag["epochs"], swag["size"]) == (5e-5, 80, 2, "base")
    assert finetune.settings_for(args, "RTE", base)["max_length"] == 126
    assert set(finetune.TASKS) == set(evaluate.METRICS)


def test_two_processes_equal_one(run, tmp_path):
    """torchrun with two processes and an odd batch: the same predictions up to rounding, dropout 0."""
    # 29 rows in batches of at most 7 are 6, 6, 6, 6, 5: the processes' shares differ in one batch
    flags = ["--model", str(run), "--data", str(run.parent / "tasks"), "--task", "RTE", "--device", "cpu",
             "--batch", "7", "--dropout", "0", "--lr", "1e-3", "--epochs", "1", "--train-limit", "29",
             "--log-every", "1", "--precision", "fp32"]
    finetune.main([*flags, "--out", str(tmp_path / "one")])
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
                           str(ROOT / "finetune.py"), *flags, "--out", str(tmp_path / "two")],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folders = [tmp_path / which / "finetune/RTE/seed-0" for which in ("one", "two")]
    one, two = [np.array([[float(p) for p in line.split("\t")[3:]]
                          for line in (folder / "predictions-dev.tsv").read_text().splitlines()[1:]])
                for folder in folders]
    assert np.ptp(one[:, 0]) > 1e-3
    np.testing.assert_allclose(one, two, atol=1e-4)
    # Adam and clipping hide a wrong scale of the loss from the predictions; the log does not
    one, two = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in folders]
    assert len(one) == len(two) == 5
    for ours, theirs in zip(one, two):
        assert (ours["loss"], ours["grad_norm"]) == pytest.approx((theirs["loss"], theirs["grad_norm"]), rel=1e-3)
