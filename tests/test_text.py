"""Tokenizers and packed text, against transformers, a slow loop or a known answer.

    python -m pytest tests/test_text.py
    REAL_DATA=/folder/of/real/files python -m pytest tests/test_text.py      # also the real files
"""
import json
import re
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tqdm import tqdm

import data
from model import UserError

# --- tokenizer

TRICKY = [
    "Crème brûlée, naïve café!", "東京へ行く 2024", f"{'a' * 99} {'b' * 100} {'c' * 101}", "",
    "   \t\n ", "don't e-mail", "x\u0000y\ufffdz\u200b", "ﬁne ½ №5", "😀 emoji", "Ünïcödé ÀÉ",
    "under_score #hash @at $5.00", "[MASK] and [SEP] inside", "İstanbul", "한국어",
    "ελληνικά Σίσυφος", "unaffable tokenization", "soft\u00adhyphen", "\u3000wide space",
    "e\u0301 combined"]

# Article 1 of the Universal Declaration of Human Rights, and what else case and accents can do.
ARTICLE = """
All human beings are born free and equal in dignity and rights, endowed with reason and conscience.
Alle Menschen sind frei und gleich an Würde und Rechten geboren, mit Vernunft und Gewissen begabt.
Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. IĞDIR, İSTANBUL, ırmak, İĞNE.
人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.
Все люди рождаются свободными и равными в своем достоинстве и правах. Ёлка, йод.
すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.
यह घोषणा सभी मनुष्यों के लिए है और सभी देशों में लागू होती है
STRASSE, Straße, Größe, ÄRGER, Ångström, ŒUVRE, Dvořák 😀 👩‍👩‍👧 🇹🇷 naïve é İ
""".strip().split("\n")


def test_berts_own_vocabulary(transformers, real_data):
    vocab = real_data / "vocab" / "bert-base-uncased-vocab.txt"
    ours = data.load_tokenizer(vocab)
    theirs = transformers.BertTokenizerFast(vocab=str(vocab), do_lower_case=True)
    assert ours.get_vocab_size() == len(theirs) == 30522
    ids = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    assert data.special_ids(ours) == ids
    for text in TRICKY:
        assert ours.encode(text).ids == theirs(text)["input_ids"], repr(text)
    assert ours.encode("hello").ids == [101, 7592, 102]   # a known number


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory):
    """{"cased": path, "uncased": path}: vocab.txt of one text in eight languages."""
    paths = {}
    for name in ("cased", "uncased"):
        normalizer = tokenizers.normalizers.BertNormalizer(lowercase=name == "uncased")
        text = normalizer.normalize_str(" ".join(ARTICLE[:8]))   # the others bring unknown letters
        letters = sorted(set(text) - {" "})
        words = sorted(set(re.findall(r"\w\w+", text)))
        pieces = data.SPECIAL + letters + ["##" + letter for letter in letters] + words
        paths[name] = tmp_path_factory.mktemp(name) / "vocab.txt"
        paths[name].write_text("".join(piece + "\n" for piece in pieces), encoding="utf-8")
    return paths


@pytest.mark.parametrize("name", ["cased", "uncased"])
def test_any_vocabulary_equals_transformers(transformers, vocabularies, name):
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy
    vocab = vocabularies[name]
    lower = name == "uncased"
    ours = data.load_tokenizer(vocab)
    fast = transformers.BertTokenizerFast(vocab=str(vocab), do_lower_case=lower)
    slow = BertTokenizerLegacy(str(vocab), do_lower_case=lower)   # Google's own Python
    for text in ARTICLE + TRICKY:
        assert ours.encode(text).ids == fast(text)["input_ids"], text
        pair = ours.encode(ARTICLE[0], text or "-")   # transformers: an empty text is none
        assert pair.ids == fast(ARTICLE[0], text or "-")["input_ids"]
        assert pair.type_ids == fast(ARTICLE[0], text or "-")["token_type_ids"]
        if "[MASK]" not in text and "\u200b" not in text and "\u00ad" not in text:
            assert ours.encode(text, add_special_tokens=False).tokens == slow.tokenize(text), text


def normalised(text, folder):
    return data.load_tokenizer(folder).normalizer.normalize_str(text)


def test_how_a_vocab_txt_is_normalised(vocabularies, tmp_path):
    """tokenizer_config.json before the entries; and it goes along."""
    vocab = tmp_path / "vocab.txt"
    shutil.copy(vocabularies["cased"], vocab)
    assert normalised("WÜRDE", tmp_path) == "WÜRDE"
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"do_lower_case": true}')
    assert normalised("WÜRDE", vocab) == "wurde"
    config.write_text('{"do_lower_case": true, "strip_accents": false}')   # as some German models
    assert normalised("WÜRDE", vocab) == "würde"
    (tmp_path / "kept").mkdir()
    data.keep_tokenizer(data.load_tokenizer(vocab), tmp_path / "kept")
    assert normalised("WÜRDE", tmp_path / "kept") == "würde"
    config.unlink()
    vocab.write_text("\n".join([*data.SPECIAL, "[unused1]", "[A B]", "haus"]) + "\n")
    assert normalised("WÜRDE", tmp_path) == "wurde"   # bracketed entries say nothing


@pytest.mark.parametrize("change", ["added tokens", "whitespace", "normalizer"])
def test_tokenizer_json_is_followed_as_it_stands(transformers, vocabularies, tmp_path, change):
    backend = data.load_tokenizer(vocabularies["uncased"])
    plain = data.tokenizer_hash(backend)
    if change == "added tokens":
        backend.add_tokens(["[SUBJ]", "covid19"])
    elif change == "whitespace":
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    else:
        backend.normalizer = tokenizers.normalizers.NFC()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("another\n")   # tokenizer.json goes first
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = data.load_tokenizer(tmp_path)
    for text in ["[SUBJ] has covid19", "Frei, gleich!! naïve", *ARTICLE]:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert data.tokenizer_hash(ours) != plain


def test_tokenizer_json_is_found_and_cuts_nothing(vocabularies, tmp_path):
    tokenizer = data.load_tokenizer(vocabularies["uncased"])
    wanted = tokenizer.encode(ARTICLE[0]).ids
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=100)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A")
    data.keep_tokenizer(tokenizer, tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert data.load_tokenizer(path).encode(ARTICLE[0]).ids == wanted
    same = data.tokenizer_hash(data.load_tokenizer(vocabularies["uncased"]))
    assert data.tokenizer_hash(data.load_tokenizer(tmp_path)) == same


BPE = tokenizers.Tokenizer(tokenizers.models.BPE()).to_str()
TWICE = "\n".join([*data.SPECIAL, "a", "b", "a", ""])


@pytest.mark.parametrize("name, content, message", [
    ("other.txt", "", "no vocabulary at .*vocab.txt; `python data.py mini`"),
    ("vocab.txt", "[PAD]\n[UNK]\nhello\n", r"it lacks \[CLS\], \[SEP\], \[MASK\]"),
    ("vocab.txt", TWICE, "vocab.txt: 'a' stands in two lines"),
    ("vocab.txt", "caf\xe9", r"vocab.txt: not UTF-8 \(byte 3\)"),
    ("tokenizer.json", BPE[:40], "tokenizer.json cannot be read as a tokenizer"),
    ("tokenizer.json", BPE, "tokenizer.json holds a BPE tokenizer, BERT's is WordPiece")])
def test_tokenizers_that_are_not_berts_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        data.load_tokenizer(tmp_path)


@pytest.mark.parametrize("name, content", [
    ("added_tokens.json", '{"[SUBJ]": 12}'),
    ("tokenizer_config.json", '{"do_lower_case": false, "word_tokenizer_type": "mecab"}')])
def test_a_vocab_txt_that_is_not_the_whole_tokenizer_is_refused(tmp_path, name, content):
    write(tmp_path / "vocab.txt", [*data.SPECIAL, "a"])
    data.load_tokenizer(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="vocab.txt is not all that its tokenizer needs"):
        data.load_tokenizer(tmp_path)


def test_tokenizer_training(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the Mat\nthe dog and the cat ran\n")
    data.train_tokenizer([text], 40, tmp_path)
    tokenizer = data.load_tokenizer(tmp_path)
    vocabulary = tokenizer.get_vocab()
    letters = sorted(set("thecatsatonthematdogandran"))
    inside = ["##" + letter for letter in letters]
    words = ["the", "cat", "and", "dog", "mat", "on", "ran", "sat"]
    wanted = (data.SPECIAL + letters + inside + words)[:40]
    assert sorted(vocabulary, key=vocabulary.get) == wanted
    assert tokenizer.encode("the cat").tokens == ["[CLS]", "the", "cat", "[SEP]"]


# --- lines

def kept_lines(path, min_words=5):
    return list(data.text_lines(path, min_words, tqdm(disable=True)))


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_line_filters_are_vokenization_s(tmp_path):
    """Headings, marks of WikiExtractor and lines of fewer than 5 words between spaces go."""
    kept = [
        "= not a heading but a line", " plain text as WikiText has it ", "a  b  c", "a b c d e",
        "<document> is no mark of it , so stays", "non\u00a0breaking space is no space here",
        "five words and a CR here\r"]
    dropped = [
        "\ufeff = Title = ", " = = A section of many words = = ", "a b c d", "word", "", "   ",
        '<doc id="12" url="u" title="a b c d e">', "</doc>", "the last line of an article </doc>",
        "one two three\tfour five"]
    path = write(tmp_path / "text.txt", dropped + kept)
    assert kept_lines(path) == [line.strip() for line in kept]
    every = kept_lines(path, min_words=1)
    assert "word" in every and "" not in every


@pytest.mark.parametrize("name", ["wiki.valid.raw", "wiki_00"])
def test_real_text(real_data, name):
    kept = set(kept_lines(real_data / "corpus" / name))
    raw = (real_data / "corpus" / name).read_text(encoding="utf-8").split("\n")
    raw = {line.strip() for line in raw} - {""}
    assert len(kept) > 100 and kept <= raw
    for line in raw:
        short = len(line.split()) < 5
        assert (line in kept) != (line.startswith(("<doc", "</doc", "= ")) or short)


def test_json_is_refused(tmp_path):
    """As WikiExtractor --json writes it, an object a line; lists; text that only begins alike."""
    row = '{"id": "1", "text": "a line of five words"}'
    for lines in ([row, row], ["", row], ["[" + row + "]"], ["{", row[1:-1], "}"]):
        with pytest.raises(UserError, match="wiki_00 is JSON, not text"):
            kept_lines(write(tmp_path / "wiki_00", lines))
    plain = ['{ begins a line of plain text', '{"a": JSON looks like this }']
    assert kept_lines(write(tmp_path / "plain", plain)) == plain


def test_entities_are_undone_between_wikiextractors_marks_alone(tmp_path):
    line = "Bread &amp; butter is 5 &lt; 6"
    marked = ['<doc id="1" url="u" title="t">', line, "</doc>"]
    assert kept_lines(write(tmp_path / "a", marked)) == ["Bread & butter is 5 < 6"]
    assert kept_lines(write(tmp_path / "a", [line])) == [line]


@pytest.mark.parametrize("content, message", [
    (b"", "no more than 0 lines of 5 words"), (b"too short\n\n\n", "no more than 0 lines of 5"),
    ("five words in another coding".encode("utf-16"), "line 1: not UTF-8"),
    ("fünf Wörter in anderer Kodierung".encode("latin-1"), "line 1: not UTF-8"),
    (b"five words here are fine\n" * 700 + b"but then a bad \xff byte\n",
     "line 701: not UTF-8 .*position 15")])
def test_what_is_not_text_is_refused(tmp_path, tiny_vocab, content, message):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        data.pack_text([path], tiny_vocab, tmp_path / "out", "train")
    assert not (tmp_path / "out" / "train.json").exists()
    assert not (tmp_path / "out" / "train.bin").exists()


def test_no_text_file(tmp_path):
    with pytest.raises(UserError, match="no text file in .*none"):
        data.text_files([tmp_path / "none"])


def test_a_dot_hides_also_from_the_folder_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".git/config", ".secret.txt", "a.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("five words of text here\n")
    assert data.text_files(["."]) == [Path("a.txt")]


def test_another_vocabulary_leaves_no_split_of_the_first(tmp_path, tiny_vocab):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat\n")
    out = tmp_path / "out"
    for name in ("train", "valid"):
        data.pack_text([text], tiny_vocab, out, name)
    data.pack_text([text], tiny_vocab, out, "train")
    assert (out / "valid.json").exists()
    other = tmp_path / "vocab.txt"
    write(other, [*data.SPECIAL, "the", "cat"])
    data.pack_text([text], other, out, "train")
    assert (out / "train.json").exists() and not (out / "valid.json").exists()


# --- packing

@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A corpus as WikiExtractor leaves it: AA/wiki_02 ... BB/wiki_01, made in another order."""
    folder = tmp_path_factory.mktemp("corpus") / "extracted"
    number = 0
    for place in ("BB/wiki_00", "AA/wiki_10", "AA/wiki_02", "AB/wiki_00", "BB/wiki_01"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for _ in range(300):
            number += 1
            text = f"Article {number} of {place} says {ARTICLE[number % 10]}"
            lines += [f'<doc id="{number}" title="t t t t t">', "Title", "", text, "</doc>"]
        write(folder / place, lines)
    (folder / "AB" / "wiki_01").touch()   # opened, nothing to write
    (folder / "._wiki_00").write_bytes(b"\0\1")
    (folder / ".git").mkdir()
    (folder / ".git" / "index").write_bytes(b"\0\1")
    return folder


@pytest.fixture(scope="session")
def direct(transformers, tree, vocabularies):
    """The token ids of each of the tree's lines, by a loop over transformers' tokenizer."""
    vocab = str(vocabularies["cased"])
    theirs = transformers.BertTokenizerFast(vocab=vocab, do_lower_case=False)
    ids = []
    for path in sorted(tree.rglob("wiki_*")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.startswith("Article"):
                ids.append(theirs(line, add_special_tokens=False)["input_ids"])
    return ids


def packed(folder, name):
    described = json.loads((folder / f"{name}.json").read_text())
    tokens = np.fromfile(folder / f"{name}.bin", described["dtype"])
    assert len(tokens) == described["tokens"]
    return tokens.tolist()


@pytest.mark.parametrize("lines", [0, 301])
def test_packed_text_equals_a_slow_loop(tree, direct, vocabularies, tmp_path, lines):
    """The last `lines` lines are held out, as the authors held out the end of Wikipedia."""
    data.pack_text([tree], vocabularies["cased"], tmp_path, "train", valid_lines=lines)
    assert packed(tmp_path, "train") == sum(direct[:1500 - lines], [])
    names = {"lock", "tokenizer.json", "train.bin", "train.json"}
    if lines:
        assert packed(tmp_path, "valid") == sum(direct[1500 - lines:], [])
        names |= {"valid.bin", "valid.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_an_interrupted_run_counts_for_nothing(tree, direct, vocabularies, tmp_path, monkeypatch):
    data.pack_text([tree / "AA"], vocabularies["cased"], tmp_path, "train")
    before = packed(tmp_path, "train")

    def interrupted(*_):
        yield "a line of five words"
        raise KeyboardInterrupt
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(data, "text_lines", interrupted)
        data.pack_text([tree], vocabularies["cased"], tmp_path, "train")
    assert packed(tmp_path, "train") == before   # the older tokens, still whole
    data.pack_text([tree], vocabularies["cased"], tmp_path, "train")
    assert packed(tmp_path, "train") == sum(direct, [])


def test_text_command(tree, direct, vocabularies, tmp_path, monkeypatch, capsys):
    def run(*words):
        own = ["--train", tree, "--vocab", vocabularies["cased"], "--out", tmp_path]
        monkeypatch.setattr(sys, "argv", ["data.py", "text", *map(str, own + list(words))])
        data.main()
    run("--valid-lines", 200)
    assert packed(tmp_path, "train") == sum(direct[:1300], [])
    run("--valid", tree / "BB", "--min-words", 1)
    assert len(packed(tmp_path, "valid")) < len(packed(tmp_path, "train"))
    with pytest.raises(UserError, match="no more than 1500 lines of 5 words"):
        run("--valid-lines", 1500)
    for words in ([], ["--valid", tree, "--valid-lines", 3]):
        with pytest.raises(SystemExit):
            run(*words)


def test_text_without_spaces(vocabularies, tmp_path):
    path = write(tmp_path / "zh.txt", [ARTICLE[3]])
    with pytest.raises(UserError, match="--min-words 1 suits languages written without spaces"):
        data.pack_text([path], vocabularies["cased"], tmp_path, "train")
    data.pack_text([path], vocabularies["cased"], tmp_path, "train", min_words=1)
    assert len(packed(tmp_path, "train")) == len(ARTICLE[3])


def test_memory_does_not_grow_with_the_corpus(vocabularies, tmp_path):
    """Of text whose 0.6 million tokens would be 5 MB and more as Python's integers."""
    path = write(tmp_path / "text.txt", ["the cat sat on the mat and the dog ran to it"] * 20_000)
    tracemalloc.start()
    data.pack_text([path], vocabularies["cased"], tmp_path, "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(packed(tmp_path, "train")) > 6e5 and peak < 4e6
