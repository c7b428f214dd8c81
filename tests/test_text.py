"""Vocabularies, line filters and packed text: each against transformers, a slow loop or a known answer.

    python -m pytest tests/test_text.py
    REAL_DATA=/folder/of/real/files python -m pytest tests/test_text.py      # also the real corpus and vocabulary
"""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import model

# --- tokenizer

TRICKY = ["Crème brûlée, naïve café!", "東京へ行く 2024", "a" * 99 + " " + "b" * 100 + " " + "c" * 101, "", "   \t\n ",
          "don't e-mail", "x\u0000y\ufffdz\u200b", "ﬁne ½ №5", "😀 emoji", "Ünïcödé ÀÉ", "under_score #hash @at $5.00",
          "[MASK] and [SEP] inside", "İstanbul", "한국어", "ελληνικά Σίσυφος", "unaffable tokenization",
          "soft\u00adhyphen",
          "\u3000wide space", "e\u0301 combined"]


def test_tokenizer_equals_transformers(transformers, real_data):
    vocab = real_data / "vocab" / "bert-base-uncased-vocab.txt"
    ours, theirs = data.load_tokenizer(vocab), transformers.BertTokenizerFast(vocab=str(vocab), do_lower_case=True)
    assert ours.get_vocab_size() == len(theirs) == 30522
    assert data.special_ids(ours) == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    for text in TRICKY:
        assert ours.encode(text).ids == theirs(text)["input_ids"], repr(text)
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False)["input_ids"]
    words = [text for text in TRICKY if text.strip()]   # transformers takes an empty second text for none
    for first, second in zip(words, words[1:]):
        pair, reference = ours.encode(first, second), theirs(first, second)
        assert pair.ids == reference["input_ids"] and pair.type_ids == reference["token_type_ids"]
    assert ours.encode("hello").ids == [101, 7592, 102]   # a known number, should both sides be wrong


def test_tokenizer_training_is_repeatable(tmp_path, tiny_vocab, tiny_tokenizer):
    words = tiny_vocab.read_text().splitlines()
    assert words[:5] == data.SPECIAL and len(words) == len(set(words)) <= 120
    data.train_tokenizer([tiny_vocab.parent / "text.txt"], 120, tmp_path / "vocab.txt")
    assert (tmp_path / "vocab.txt").read_bytes() == tiny_vocab.read_bytes()
    assert tiny_tokenizer.encode("the cat").tokens == ["[CLS]", "the", "cat", "[SEP]"]
    (tmp_path / "bad.txt").write_text("[PAD]\n[UNK]\nhello\n")
    with pytest.raises(ValueError, match=r"lacks \[CLS\], \[SEP\], \[MASK\]"):
        data.load_tokenizer(tmp_path / "bad.txt")
    with pytest.raises(FileNotFoundError, match="no vocabulary at"):
        data.load_tokenizer(tmp_path / "none.txt")


# Article 1 of the Universal Declaration of Human Rights, and what else case and accents can do.
ARTICLE = """
All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.
Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.
Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. IĞDIR, İSTANBUL, ırmak, İĞNE.
人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.
Все люди рождаются свободными и равными в своем достоинстве и правах. Ёлка, йод.
すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.
यह घोषणा सभी मनुष्यों के लिए है और सभी देशों में लागू होती है
STRASSE, Straße, Größe, ÄRGER, Ångström, ŒUVRE, Dvořák 😀 👩‍👩‍👧 🇹🇷 naïve é İ
""".strip().split("\n")


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory):
    """{"cased": path, "uncased": path}: two vocabularies of one multilingual text, each alone in its folder."""
    folder = tmp_path_factory.mktemp("vocabularies")
    (folder / "text.txt").write_text("\n".join(ARTICLE[:8]) + "\n", encoding="utf-8")   # the rest meets unknown letters
    for name in ("cased", "uncased"):
        (folder / name).mkdir()
        data.train_tokenizer([folder / "text.txt"], 600, folder / name / "vocab.txt", cased=name == "cased")
    return {name: folder / name / "vocab.txt" for name in ("cased", "uncased")}


@pytest.mark.parametrize("name", ["cased", "uncased"])
def test_any_vocabulary_equals_transformers(transformers, vocabularies, name):
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy
    vocab, lower = vocabularies[name], name == "uncased"
    ours = data.load_tokenizer(vocab)
    assert ours.normalizer.lowercase == lower   # found from the entries alone
    fast = transformers.BertTokenizerFast(vocab=str(vocab), do_lower_case=lower)
    slow = BertTokenizerLegacy(str(vocab), do_lower_case=lower)   # Google's own Python, not the same library
    for text in ARTICLE + TRICKY:
        assert ours.encode(text).ids == fast(text)["input_ids"], text
        if "[MASK]" not in text and "\u200b" not in text and "\u00ad" not in text:
            assert ours.encode(text, add_special_tokens=False).tokens == slow.tokenize(text), text
    tokens = ours.encode("Würde Rechten", add_special_tokens=False).tokens
    assert tokens == (["wurde", "rechten"] if lower else ["Würde", "Rechten"])


def test_how_a_vocabulary_is_normalised(transformers, vocabularies, tmp_path):
    """tokenizer_config.json before tokenizer.json before the entries; a flag before all; and it goes along."""
    def lowercase(folder, **how):
        return data.load_tokenizer(folder, **how).normalizer.lowercase
    shutil.copy(vocabularies["cased"], tmp_path / "vocab.txt")
    assert not lowercase(tmp_path) and lowercase(tmp_path, cased=False)
    transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), do_lower_case=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("do_lower_case", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert (tmp_path / "tokenizer.json").exists() and lowercase(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not lowercase(tmp_path)

    # a German uncased model keeps its umlauts: strip_accents is a choice of its own
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "strip_accents": false}')
    assert data.load_tokenizer(tmp_path).normalizer.normalize_str("WÜRDE") == "würde"
    (tmp_path / "kept").mkdir()
    kept = data.keep_vocab(tmp_path / "vocab.txt", tmp_path / "kept")
    assert kept.read_bytes() == (tmp_path / "vocab.txt").read_bytes()
    assert data.load_tokenizer(kept).normalizer.normalize_str("WÜRDE") == "würde"
    data.keep_vocab(tmp_path / "vocab.txt", tmp_path / "kept", cased=True)
    assert data.load_tokenizer(tmp_path / "kept").normalizer.normalize_str("WÜRDE") == "WÜRDE"
    # what transformers 5 saves has no vocab.txt
    transformers.BertTokenizerFast(vocab=str(vocabularies["uncased"])).save_pretrained(tmp_path / "five")
    (tmp_path / "five" / "vocab.txt").unlink(missing_ok=True)
    same = data.tokenizer_hash(data.load_tokenizer(vocabularies["uncased"], cased=False))
    assert data.tokenizer_hash(data.load_tokenizer(tmp_path / "five")) == same
    (tmp_path / "kept five").mkdir()
    kept = data.keep_vocab(tmp_path / "five", tmp_path / "kept five")
    assert kept.read_text() == vocabularies["uncased"].read_text()
    assert data.tokenizer_hash(data.load_tokenizer(kept)) == same
    specials = [*data.SPECIAL, "[unused1]", "[A B]", "haus"]
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "vocab.txt").write_text("\n".join(specials) + "\n")
    assert lowercase(tmp_path / "plain")   # bracketed entries say nothing


@pytest.mark.parametrize("name", ["cased", "uncased"])
def test_a_saved_model_tokenises_as_its_data_did(transformers, vocabularies, tmp_path, name):
    text = _write(tmp_path / "text.txt", ARTICLE)
    data.pack_text([text], vocabularies[name], tmp_path / "text", "train", min_words=1)
    tokenizer = data.load_tokenizer(tmp_path / "text")
    config = model.BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=8, num_hidden_layers=1,
                              num_attention_heads=1, intermediate_size=8, max_position_embeddings=16)
    bert = model.Bert(config)
    model.save_hf(tmp_path / "model", config, bert, model.MLMHead(config, bert.tokens), tokenizer)
    (tmp_path / "model" / "tokenizer.json").unlink()   # what remains: vocab.txt and tokenizer_config.json
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    again = data.load_tokenizer(tmp_path / "model")
    for text in ARTICLE:
        assert tokenizer.encode(text).ids == theirs(text)["input_ids"] == again.encode(text).ids
    packed = np.fromfile(tmp_path / "text" / "train.bin", np.uint16).tolist()
    assert packed == [i for text in ARTICLE for i in theirs(text, add_special_tokens=False)["input_ids"]]


# --- text

def test_text_lines(tmp_path):
    path = tmp_path / "text.txt"
    good = ["this line has five words", "  spaces at both ends are cut  ", "= is the sign we use for it"]
    lines = [" = A Title = ", " = = A longer section title = = ", '<doc id="1" url="x" title="one two three four">',
             "</doc>", "", "only four words here", *good]
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    assert list(data.text_lines(path)) == [line.strip() for line in good]
    path.write_bytes(b"a first line of five words\n\nand a bad \xff\xfe byte in it\n")
    with pytest.raises(ValueError, match="text.txt, line 3: not UTF-8"):
        list(data.text_lines(path))


@pytest.mark.parametrize("name", ["wiki.valid.raw", "wiki_00"])
def test_real_text(real_data, name):
    kept = list(data.text_lines(real_data / "corpus" / name))
    raw = [line.strip() for line in (real_data / "corpus" / name).read_text(encoding="utf-8").split("\n")]
    assert len(kept) > 100 and set(kept) <= set(raw)
    assert not any(line.startswith("<doc") or len(line.split()) < 5 for line in kept)
    assert not any(line.startswith("= ") and line.endswith(" =") for line in kept)
    dropped = [line for line in raw if line and line not in set(kept)]
    assert all(line.startswith(("<doc", "</doc", "= ")) or len(line.split()) < 5 for line in dropped)


def test_pack_text_equals_direct_tokenisation(tmp_path, tiny_vocab, tiny_tokenizer, capsys, monkeypatch):
    lines = [f"the cat number {k} sat on a mat of size {k * k}" for k in range(4500)]   # more than two chunks of 2,000
    (tmp_path / "a.txt").write_text("\n".join(lines[:3000]) + "\n")
    (tmp_path / "b.txt").write_text("\n".join(lines[3000:]))   # no newline at the end
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    data.pack_text(files, tiny_vocab, tmp_path, "train")
    packed = np.fromfile(tmp_path / "train.bin", np.uint16)
    direct = [i for line in lines for i in tiny_tokenizer.encode(line, add_special_tokens=False).ids]
    assert packed.tolist() == direct
    described = json.loads((tmp_path / "train.json").read_text())
    assert described["tokens"] == len(direct) and described["dtype"] == "uint16"

    blocks = data.TextBlocks(tmp_path, "train", tiny_tokenizer, block=10)
    assert len(blocks) == len(direct) // 8
    some = blocks.batch(np.array([0, len(blocks) - 1, 3]))
    ids = data.special_ids(tiny_tokenizer)
    assert some.dtype == torch.int64 and some.shape == (3, 10)
    assert (some[:, 0] == ids["cls"]).all() and (some[:, -1] == ids["sep"]).all()
    last = 8 * (len(blocks) - 1)
    assert some[2, 1:-1].tolist() == direct[24:32] and some[1, 1:-1].tolist() == direct[last:last + 8]

    # Done from the same files: nothing is read again, wherever the folder lies now. Another text: made anew.
    with monkeypatch.context() as patched:
        patched.setattr(data, "_tokens", lambda *job: pytest.fail("tokenised again"))
        data.pack_text(files, tiny_vocab, tmp_path, "train")
        shutil.copytree(tmp_path, tmp_path / "moved")
        data.pack_text(files, tiny_vocab, tmp_path / "moved", "train")
    assert capsys.readouterr().out.count("up to date") == 2
    files[1].write_text("the dog ran to the mat\n")
    data.pack_text(files, tiny_vocab, tmp_path, "train")
    assert len(np.fromfile(tmp_path / "train.bin", np.uint16)) < len(direct)

    whole = (tmp_path / "train.bin").read_bytes()
    (tmp_path / "train.bin").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=rf"holds {len(whole) // 2 - 10} tokens, train.json says {len(whole) // 2}"):
        data.TextBlocks(tmp_path, "train", tiny_tokenizer, block=10)
    files[0].write_text("too short\n")
    with pytest.raises(ValueError, match="not one line of 5 words"):
        data.pack_text(files[:1], tiny_vocab, tmp_path, "empty")
    with pytest.raises(FileNotFoundError, match="no text file"):
        data.pack_text([tmp_path / "none.txt"], tiny_vocab, tmp_path, "none")


def test_smallest_integer():
    assert data.smallest_integer(2 ** 16) == np.uint16 and data.smallest_integer(2 ** 16 + 1) == np.uint32


def _write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_line_filters_are_vokenization_s(tmp_path):
    """Against its rule written out: WikiText headings, marks of WikiExtractor, single words, fewer than 5 words."""
    lines = [" = Title = ", " = = A section of many words = = ", "= not a heading but a line",
             " plain text as WikiText has it ", "a  b  c", "a b c d", "a b c d e", "word", "", "   ", "\t",
             '<doc id="12" url="u" title="a b c d e">', "</doc>", "the last line of an article </doc>",
             "<document> is no mark of it , so stays", "one two three\tfour five six",
             "non\u00a0breaking\u00a0spaces\u00a0join\u00a0words", "five words and a CR here\r"]
    def kept(line):
        if line.startswith(" = ") or line.startswith("<doc id=") or line.strip().endswith("</doc>"):
            return False
        return len(line.strip().split(" ")) >= 5
    path = _write(tmp_path / "text.txt", lines)
    assert list(data.text_lines(path)) == [line.strip() for line in lines if kept(line)]
    assert len(list(data.text_lines(path))) == 7
    assert list(data.text_lines(path, min_words=1))[-2:] == ["non\u00a0breaking\u00a0spaces\u00a0join\u00a0words",
                                                             "five words and a CR here"]
    assert "word" in data.text_lines(path, min_words=1) and "" not in data.text_lines(path, min_words=1)


# --- several processes, corpora in many files

@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A corpus as WikiExtractor leaves it: AA/wiki_00 ... BB/wiki_01, made in another order than the sorted one."""
    folder, number = tmp_path_factory.mktemp("corpus") / "extracted", 0
    for place in ("BB/wiki_00", "AA/wiki_10", "AA/wiki_02", "AB/wiki_00", "BB/wiki_01"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for _ in range(300):
            number += 1
            lines += [f'<doc id="{number}" url="u" title="t t t t t">', "Title", "",
                      f"Article {number} of {place} says that the cat sat on the mat . {ARTICLE[number % 10]}",
                      "</doc>"]
        _write(folder / place, lines)
    (folder / "AB" / "wiki_01").touch()   # opened, nothing to write
    (folder / ".DS_Store").write_bytes(b"\0\1")
    return folder


@pytest.fixture(scope="session")
def direct(transformers, tree, vocabularies):
    """The tree's token ids, by a loop over transformers' tokenizer."""
    theirs, ids = transformers.BertTokenizerFast(vocab=str(vocabularies["cased"]), do_lower_case=False), []
    for path in sorted(tree.rglob("wiki_*")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if not line.startswith("<doc id=") and not line.endswith("</doc>") and len(line.strip().split(" ")) >= 5:
                ids += theirs(line, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_bytes_do_not_depend_on_the_number_of_processes(tree, direct, vocabularies, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(data, "PIECE", 20_000)   # bytes; so that there are many pieces, some within a file, some across
    ranges = [(path, 0, path.stat().st_size) for path in data.text_files([tree])]
    groups = list(data._cut(ranges))
    assert len(groups) > 10 and any(len(group) > 1 for group in groups)
    assert [path.relative_to(tree).as_posix() for path, *_ in ranges] == [
        "AA/wiki_02", "AA/wiki_10", "AB/wiki_00", "BB/wiki_00", "BB/wiki_01"]
    data.load_tokenizer(vocabularies["cased"]).encode_batch(ARTICLE * 10)   # its threads run before we fork
    data.pack_text([tree], vocabularies["cased"], tmp_path, "train", workers)
    assert np.fromfile(tmp_path / "train.bin", np.uint16).tolist() == direct
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokenizer_config.json", "train.bin", "train.json", "vocab.txt"]


@pytest.mark.parametrize("size", [1, 7, 100, 4096, 10 ** 6])
def test_cutting_loses_no_line(tree, monkeypatch, size):
    monkeypatch.setattr(data, "PIECE", size)
    files = data.text_files([tree])[:2]
    pieces = [piece for group in data._cut([(path, 0, path.stat().st_size) for path in files]) for piece in group]
    lines = [line for path, start, stop in pieces for line in data.text_lines(path, start, stop)]
    assert lines == [line for path in files for line in data.text_lines(path)]


@pytest.mark.parametrize("lines", [1, 299, 300, 301, 1499])
def test_last_lines_are_held_out(tree, monkeypatch, lines):
    monkeypatch.setattr(data, "PIECE", 5000)
    files = data.text_files([tree])
    everything = [line for path in files for line in data.text_lines(path)]
    train, valid = ([line for piece in part for line in data.text_lines(*piece)]
                    for part in data.last_lines(files, lines))
    assert len(everything) == 1500 and train + valid == everything and len(valid) == lines


@pytest.mark.parametrize("lines", [10, 11])
def test_last_lines_leave_lines_to_train_on(tmp_path, lines):
    path = _write(tmp_path / "text.txt", ["a line of five words"] * 10)
    with pytest.raises(ValueError, match=f"--valid-lines {lines}: the corpus has 10 usable lines; at least one more is"):
        data.last_lines([path], lines)


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_bytes_in_a_process_name_file_and_line(tmp_path, tiny_vocab, monkeypatch, workers):
    monkeypatch.setattr(data, "PIECE", 5000)
    good = b"a line of five words here\n"
    (tmp_path / "a.txt").write_bytes(good * 1000)
    (tmp_path / "b.txt").write_bytes(good * 700 + b"\n" + b"and then a bad \xff byte\n" + good * 1000 + b"\xfe\n")
    with pytest.raises(ValueError, match=r"b.txt, line 702: not UTF-8 \(invalid start byte at byte 15\)"):
        data.pack_text([tmp_path / "a.txt", tmp_path / "b.txt"], tiny_vocab, tmp_path / "out", "train", workers)
    assert not (tmp_path / "out" / "train.json").exists() and not (tmp_path / "out" / "train.bin").exists()


def test_what_is_not_text_is_refused(tmp_path, tiny_vocab, monkeypatch):
    def message(content, name="file.txt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as caught:
            data.pack_text([tmp_path / name], tiny_vocab, tmp_path / "out", "train")
        assert not list(tmp_path.glob("out/train.[bj]*[no]"))
        return str(caught.value)
    assert message(b"") == f"{tmp_path}/file.txt is empty"
    assert "line 2: holds a zero byte, so this is not" in message(b"one good line of words\n\0\0\1 x y z w\n")
    assert "line 1: holds a zero byte" in message("five words in another coding".encode("utf-16"))
    assert "line 1: not UTF-8" in message("fünf Wörter in anderer Kodierung".encode("latin-1"))
    assert "line 1: not UTF-8" in message(b"BZh91AY&SY\x93\x9b\xff\x01 a b c d")
    assert "not one line of 5 words or more" in message(b"too short\n\n\n")
    monkeypatch.setattr(data, "LONGEST_LINE", 1000)
    assert "line 3: over 64 MB without a newline" in message(b"a b c d e\n" * 2 + b"word " * 300)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing is empty"):
        data.text_files([tmp_path / "nothing"])
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match="vocab.txt is not a vocabulary: not UTF-8"):
        data.load_tokenizer(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("\n".join([*data.SPECIAL, "a", "b", "a", ""]))
    with pytest.raises(ValueError, match="vocab.txt, line 6: 'a' stands again in line 8"):
        data.load_tokenizer(tmp_path / "vocab.txt")


def test_an_interrupted_run_counts_for_nothing(tree, direct, vocabularies, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PIECE", 20_000)
    data.pack_text([sorted(tree.rglob("wiki_*"))[0]], vocabularies["cased"], tmp_path, "train")
    before = {name: (tmp_path / name).read_bytes() for name in ("train.bin", "train.json")}
    whole, calls = data.text_lines, []
    def interrupted(*piece):
        calls.append(piece)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(*piece)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(data, "text_lines", interrupted)
        data.pack_text([tree], vocabularies["cased"], tmp_path, "train")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before   # the older tokens, still whole
    data.pack_text([tree], vocabularies["cased"], tmp_path, "train")
    assert np.fromfile(tmp_path / "train.bin", np.uint16).tolist() == direct


# --- as a command

def test_text_command(tree, direct, vocabularies, tmp_path, monkeypatch, capsys):
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["data.py", "text", *map(str, words)])
        try:
            data.main()
        except SystemExit as stopped:
            return str(stopped.code)
        return capsys.readouterr().out
    own = ["--train", tree, "--valid-lines", 200, "--vocab", vocabularies["cased"], "--out", tmp_path]
    assert command(*own).count("tokens, cased") == 2
    train, valid = (np.fromfile(tmp_path / f"{name}.bin", np.uint16).tolist() for name in ("train", "valid"))
    assert train + valid == direct
    assert command(*own).count("up to date") == 2
    assert command(*own, "--uncased").count("tokens, uncased") == 2
    assert data.load_tokenizer(tmp_path).normalizer.normalize_str("A") == "a"
    assert command().startswith("python data.py text NAME")
    for words, message in ((["--train", tree], "--vocab vocab.txt is needed"),
                           (own[:2] + own[4:], "one of --valid FILES"),
                           ([*own, "--valid", tree], "one of --valid FILES"),
                           (["nonsense", "--out", tmp_path], "unknown: nonsense; there are wikitext-103-raw")):
        assert message in command(*words)


def test_text_without_spaces(vocabularies, tmp_path):
    (tmp_path / "zh.txt").write_text(ARTICLE[3] + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="--min-words 1 suits languages written without spaces"):
        data.pack_text([tmp_path / "zh.txt"], vocabularies["cased"], tmp_path, "train")
    data.pack_text([tmp_path / "zh.txt"], vocabularies["cased"], tmp_path, "train", min_words=1)
    assert json.loads((tmp_path / "train.json").read_text())["tokens"] == len(ARTICLE[3])


PEAK = """
import resource, sys
import data
data.PIECE = 1 << 18
data.pack_text([sys.argv[1]], sys.argv[2], sys.argv[3], "train", int(sys.argv[4]))
own = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)   # ru_maxrss of SELF would be our parent's
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_corpus(tiny_vocab, tmp_path, workers):
    """16 times the text, peak memory of the process and of its children. All text at once would be 12 MB more, and as
    Python's integers 100 MB."""
    peaks = []
    for name, repeats in (("small", 16), ("large", 256)):
        path = tmp_path / f"{name}.txt"
        path.write_text("".join(f"the cat {k} sat on the mat and the dog ran to it\n" for k in range(1000)) * repeats)
        ran = subprocess.run([sys.executable, "-c", PEAK, path, tiny_vocab, tmp_path / name, str(workers)], text=True,
                             capture_output=True, cwd=Path(data.__file__).parent, timeout=300)
        assert ran.returncode == 0, ran.stderr
        peaks.append([int(kilobytes) / 1024 for kilobytes in ran.stdout.split("peak")[1].split()])
    grown = np.array(peaks[1]) - np.array(peaks[0])
    assert (grown < 8).all(), f"MB, (process, children): {peaks}"
