"""Which examples does this process see? Text, captions, video features, masks, and the mini world.

    python data.py mini  --seed 0 --out data/mini                       # a generated world: videos, captions, text, tasks
    python data.py video --videos data/mini/videos --captions data/mini/caption.json --vocab data/mini/vocab.txt \\
                         --streams frame motion --out data/mini          # video -> features, captions -> tokens
    python data.py text  --train data/mini/text/train.txt --valid data/mini/text/valid.txt \\
                         --vocab data/mini/vocab.txt --out data/mini/text    # text -> packed tokens
    python data.py text  wikitext-103-raw --vocab vocab.txt --out data/wiki  # fetched first; bare: what there is
    python data.py tasks CoLA SQuAD1 --out data/glue                         # published task files; bare: what there is
    python data.py weights resnet152 bert-base-uncased --out data/weights

Sections: processes, randomness, log; tokenizer; text -> packed tokens; downloads; captions -> packed tokens; video ->
features; datasets; masking; the mini world (its own rule, last). Ranks live here because a rank's only meaning in this
project is which rows of a global batch it takes.
Axes: B sequences, L tokens, T video steps, D feature width. Masks are True for real tokens and real steps.
"""
import argparse
import hashlib
import http.client
import json
import os
import platform
import resource
import shutil
import stat
import subprocess
import sys
import time
import urllib.request
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, islice, repeat
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import av
import numpy as np
import tokenizers
import torch
import torch.distributed as dist
from tqdm import tqdm

# ---------------------------------------------------------------------------------------------------------------------
# Processes


class Processes:
    """Rank, world size, device; started by torchrun or alone. Collectives are no-ops in a world of one."""

    def __init__(self, device="auto"):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device == "auto":
            device = ("cuda" if torch.cuda.is_available() else
                      "mps" if torch.backends.mps.is_available() and self.world == 1 else "cpu")
        self.device = torch.device(f"cuda:{local}" if device == "cuda" else device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.master = self.rank == 0   # the one process that writes files and prints

    def rows(self, batch):
        """The rows of a global batch that this process takes, as a slice. Raises ValueError if they do not divide."""
        if batch % self.world:
            raise ValueError(f"global batch {batch} does not divide by {self.world} processes")
        each = batch // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, value):
        """Sum over processes of a number or a tensor (a tensor is summed in place)."""
        if self.world == 1:   # before any float64 tensor: MPS has none
            return value if torch.is_tensor(value) else float(value)
        tensor = value if torch.is_tensor(value) else torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor if torch.is_tensor(value) else tensor.item()

    def gather(self, tensor):
        """Concatenates every process's rows in rank order: [b, ...] -> [B, ...], with gradient to every process.

        Each process must then count its own rows of the loss only: the gradients of the copies are summed back here.
        """
        return tensor if self.world == 1 else _Gather.apply(tensor, self.rank, self.world)

    def sum_gradients(self, parameters):
        """Adds up .grad over processes in one flat message. Losses are already divided by global counts, so: a sum.

        Rejected: DistributedDataParallel, which would average means of unequal counts and hide this one line.
        """
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(summed.view_as(gradient))

    def barrier(self):
        """Waits until every process is here."""
        if self.world > 1:
            dist.barrier()

    def close(self):
        """Leaves the process group."""
        if self.world > 1:
            dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """all_gather whose backward returns to each process the sum of what every process made of its rows."""

    @staticmethod
    def forward(ctx, tensor, rank, world):
        ctx.rank, ctx.rows = rank, len(tensor)
        pieces = [torch.empty_like(tensor) for _ in range(world)]
        dist.all_gather(pieces, tensor.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.rank * ctx.rows:(ctx.rank + 1) * ctx.rows], None, None


def settle_precision(asked, device):
    """'auto' -> 'bf16' where the device computes in it, else 'fp32'. Returns (name, autocast dtype or None)."""
    if asked == "auto":
        if device.type == "cuda":
            asked = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
        elif device.type == "cpu":   # with the instructions it is twice as fast from width 512 on; without, far slower
            asked = "bf16" if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() else "fp32"
        else:
            asked = "fp32"
    if asked not in ("bf16", "fp32"):
        raise ValueError(f"unknown precision {asked!r}; known: auto, bf16, fp32")
    return asked, (torch.bfloat16 if asked == "bf16" else None)


# ---------------------------------------------------------------------------------------------------------------------
# Randomness. Whatever must not depend on the number of processes (order, masks, negatives, CRD's samples) is drawn for
# the global batch from (seed, purpose, step), so none of it needs saving, and a run can go on with other processes.


def numpy_generator(*key):
    """A numpy generator that depends on nothing but the key: non-negative integers and short strings."""
    return np.random.default_rng([int.from_bytes(k.encode(), "little") if isinstance(k, str) else k for k in key])


def torch_generator(*key):
    """A torch CPU generator that depends on nothing but the key."""
    return torch.Generator().manual_seed(int(numpy_generator(*key).integers(2 ** 62)))


def seed_dropout(seed, step, rank):
    """Dropout's masks for this step, different on every rank; called at the top of each step so that resuming is exact."""
    torch.manual_seed(int(numpy_generator(seed, "dropout", step, rank).integers(2 ** 62)))


def batch_indices(count, batch, seed, step):
    """Indices of global batch number `step` (0, 1, ...) of an endlessly reshuffled data set of `count` examples.

    Each epoch is one permutation from (seed, epoch); a batch may straddle two. Nothing to save: step is the cursor.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = positions // count
    return np.concatenate([_permutation(count, seed, int(epoch))[positions[epochs == epoch] % count]
                           for epoch in np.unique(epochs)])


@lru_cache(maxsize=2)
def _permutation(count, seed, epoch):
    return numpy_generator(seed, "order", epoch).permutation(count)


def derangement(count, generator):
    """A random permutation of range(count) without a fixed point: who is whose negative. count >= 2."""
    if count < 2:
        raise ValueError("negatives need a global batch of at least 2 examples")
    while True:   # one in e tries succeeds
        order = generator.permutation(count)
        if not (order == np.arange(count)).any():
            return order


def prefetch(make_batch, first, last, ahead=2):
    """Yields make_batch(step) for step in [first, last), up to `ahead` of them being made in threads meanwhile."""
    with ThreadPoolExecutor(ahead) as pool:
        waiting = []
        for step in range(first, last):
            waiting.append(pool.submit(make_batch, step))
            if len(waiting) > ahead:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


# ---------------------------------------------------------------------------------------------------------------------
# Log and provenance


class Log:
    """One JSON object a line in log.jsonl, one aligned line on the screen. Only the master process writes."""

    def __init__(self, path, master, resume_step):
        self.file, self.name = None, Path(path).parent.name   # the run's name, for stages that print side by side
        self.start, self.first_step = time.time(), resume_step
        if master:
            kept = []
            if Path(path).exists():   # lines past the checkpoint will be written again; a cut last line is dropped
                for line in Path(path).read_text().splitlines():
                    if line.endswith("}") and json.loads(line).get("step", 0) <= resume_step:
                        kept.append(line + "\n")
            write_text(path, "".join(kept))
            self.file = open(path, "a", buffering=1)

    def __call__(self, step, total, **values):
        """Logs numbers at a step; adds seconds since the start, steps per second and the time left."""
        if self.file is None:
            return
        seconds = time.time() - self.start
        rate = (step - self.first_step) / seconds if seconds > 0 else 0.0
        left = (total - step) / rate if rate > 0 else float("nan")
        self.file.write(json.dumps({"step": step, **values, "seconds": round(seconds, 2)}) + "\n")
        shown = "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                          for name, value in values.items())
        print(f"{self.name} {step:>6}/{total}  {shown}  | {rate:.1f} steps/s, {left:.0f} s left", flush=True)


def write_text(path, text):
    """Writes a text file through a temporary name, so that path is always whole."""
    temporary = Path(str(path) + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path, value):
    """Writes JSON through a temporary name."""
    write_text(path, json.dumps(value, indent=1))


def read_json(path, made_by):
    """Reads JSON. Raises FileNotFoundError naming the command that makes the file, ValueError naming file and line."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; `{made_by}` makes it")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None


def open_run(folder, arguments, processes, precision):
    """Makes a run folder and its args.json; on a later start, refuses to go on with other arguments.

    Going on means ending where a run without interruption would have ended, so a changed flag needs another folder.
    Raises ValueError that lists the flags that differ.
    """
    if not processes.master:
        return
    path = Path(folder) / "args.json"
    if path.exists():
        recorded = read_json(path, "")
        before = {**recorded["arguments"], "settled_precision": recorded["precision"]}
        free = ("device", "out", "dry_run", "log_every", "save_every")
        changed = [f"--{key.replace('_', '-')} {before[key]} -> {value}"
                   for key, value in {**arguments, "settled_precision": precision}.items()
                   if key in before and key not in free and before[key] != value]
        if changed:
            raise ValueError(f"{folder} was started with other arguments or inputs ({', '.join(changed)}); "
                             f"choose another --out, or delete the folder to start again")
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(path, {"arguments": arguments, "precision": precision, "processes": processes.world,
                      **provenance(processes.device)})


def print_plan(processes, modules, seconds_a_step, steps):
    """`--dry-run`: what the whole run would take, from a few steps really run. Prints; only the master process."""
    if not processes.master:
        return
    parameters = sum(parameter.numel() for module in modules for parameter in module.parameters())
    if processes.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(processes.device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = peak if sys.platform == "darwin" else 1024 * peak   # Linux counts kilobytes
    print(f"dry run: {parameters / 1e6:.1f} M trained parameters; {memory / 2 ** 30:.2f} GB a process; "
          f"{1000 * seconds_a_step:.0f} ms a step x {steps} steps = {seconds_a_step * steps / 3600:.2f} hours; "
          f"{16 * parameters / 2 ** 30:.2f} GB of disk (checkpoint with AdamW's two moments, and the model)")


def provenance(device):
    """What a result needs beside it to be believed: versions, commit, hardware."""
    def git(*words):
        answer = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else None
    hardware = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        hardware = f"{len(names)} x {names[0]}" if names else hardware
    if device.type == "cuda":
        hardware = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    return {"commit": git("rev-parse", "HEAD"), "uncommitted changes": bool(git("status", "--porcelain", "-uno")),
            "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "tokenizers": tokenizers.__version__, "hardware": hardware, "threads": torch.get_num_threads()}


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer: BERT's WordPiece, cased or uncased, by the tokenizers library

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _bert_tokenizer(wordpiece, **normalizer):
    tokenizer = tokenizers.Tokenizer(wordpiece)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##")
    return tokenizer


def normalizer_of(folder, words):
    """How text must be normalised for the vocabulary `words` found in folder: arguments of BertNormalizer.

    As tokenizer_config.json says, else tokenizer.json; where neither does, text is lower-cased unless the vocabulary
    has an entry with a capital besides its [bracketed] ones, which lower-cased text could never meet. strip_accents
    None means as lowercase, BERT's own rule; some German and Turkish models lower-case but keep the accents.
    """
    path = Path(folder) / "tokenizer_config.json"
    config = read_json(path, "") if path.exists() else {}
    if "do_lower_case" in config:
        return {"lowercase": config["do_lower_case"], "strip_accents": config.get("strip_accents"),
                "handle_chinese_chars": config.get("tokenize_chinese_chars", True)}
    path = Path(folder) / "tokenizer.json"
    stated = (read_json(path, "") if path.exists() else {}).get("normalizer") or {}
    if stated.get("type") == "BertNormalizer":
        return {key: stated[key] for key in ("lowercase", "strip_accents", "handle_chinese_chars")}
    return {"lowercase": all(word == word.lower() or word[:1] + word[-1:] == "[]" for word in words)}


def load_tokenizer(path, cased=None):
    """Reads vocab.txt (or a folder that holds one) into a tokenizers.Tokenizer that adds no special tokens by default.

    `encode(text).ids` then holds [CLS] ... [SEP]; pass add_special_tokens=False for the bare pieces. cased: True or
    False overrides normalizer_of. Raises FileNotFoundError naming what makes the file, ValueError if one of BERT's five
    special tokens is not in it.
    """
    path = _vocab_file(path)
    if not path.exists():
        raise FileNotFoundError(f"no vocabulary at {path}; `python data.py mini` trains one, and for the sizes small "
                                f"and base `python data.py weights bert-base-uncased` fetches one")
    try:   # not splitlines(): it also cuts at U+2028 and its like, which stand in real vocabularies
        words = [word.rstrip("\r") for word in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a vocabulary: not UTF-8 (byte {error.start})") from None
    missing = [token for token in SPECIAL if token not in words]
    if missing:
        raise ValueError(f"{path} is not a BERT vocabulary: it lacks {', '.join(missing)}")
    vocabulary = {word: index for index, word in enumerate(words)}
    normalizer = normalizer_of(path.parent, words) if cased is None else {"lowercase": not cased}
    tokenizer = _bert_tokenizer(tokenizers.models.WordPiece(
        vocabulary, unk_token="[UNK]", max_input_chars_per_word=100), **normalizer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")])
    return tokenizer


def train_tokenizer(files, size, path, cased=False):
    """Trains a WordPiece vocabulary of at most `size` entries on text files and writes it to path (vocab.txt)."""
    # Rejected: tokenizers' WordPieceTrainer, which gives other pieces and ids at every call (its maps are not ordered).
    tokenizer, counts = _bert_tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"), lowercase=not cased), {}
    for file in files:
        for line in open(file, encoding="utf-8"):
            line = tokenizer.normalizer.normalize_str(line)
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(line):
                counts[word] = counts.get(word, 0) + 1
    letters = sorted(set("".join(counts)))
    pieces = letters + ["##" + letter for letter in letters]   # any word of these letters can be spelt
    whole = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    write_text(path, "".join(word + "\n" for word in (SPECIAL + pieces + whole)[:size]))


def special_ids(tokenizer):
    """Ids of [PAD], [UNK], [CLS], [SEP], [MASK] as a dict without the brackets, lower case."""
    return {token.strip("[]").lower(): tokenizer.token_to_id(token) for token in SPECIAL}


def _vocab_file(path):
    return Path(path) / "vocab.txt" if Path(path).is_dir() else Path(path)


def keep_vocab(vocab, folder, cased=None):
    """Copies the vocabulary that a folder's tokens were made with into the folder, where the stages look for it.

    How it was normalised goes along, in tokenizer_config.json (transformers' names). Returns the copy's path.
    """
    vocab, kept = _vocab_file(vocab), Path(folder) / "vocab.txt"
    normalizer = load_tokenizer(vocab, cased).normalizer
    if vocab.resolve() != kept.resolve():
        shutil.copyfile(vocab, kept.with_suffix(".tmp"))
        os.replace(kept.with_suffix(".tmp"), kept)
    write_json(kept.with_name("tokenizer_config.json"), {
        "tokenizer_class": "BertTokenizer", "do_lower_case": normalizer.lowercase,
        "strip_accents": normalizer.strip_accents, "tokenize_chinese_chars": normalizer.handle_chinese_chars})
    return kept


def file_hash(path):
    """sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def smallest_integer(vocabulary_size):
    """The smallest unsigned type that holds every token id."""
    return np.uint16 if vocabulary_size <= 2 ** 16 else np.uint32


# ---------------------------------------------------------------------------------------------------------------------
# Text -> packed tokens. A split is NAME.bin (all token ids, no separators) and, written last, NAME.json.

MIN_WORDS = 5            # between spaces; shorter lines are dropped, as for the authors' corpora
LONGEST_LINE = 1 << 26   # bytes; what has no newline in 64 MB is not text
PIECE = 1 << 20          # bytes of text a process tokenises at a time: what bounds memory


def text_files(paths):
    """Paths of the corpus files among files and folders; a folder stands for all files under it, sorted by path, as in
    WikiExtractor's AA/wiki_00, AA/wiki_01, ..., AB/wiki_00. Raises FileNotFoundError; ValueError for an empty one."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no text file {path}; `python data.py mini` makes the mini world's, `python "
                                    f"data.py text` lists what can be fetched")
        found = [path] if not path.is_dir() else sorted(
            file for file in path.rglob("*") if file.is_file() and file.name[0] != "." and file.stat().st_size)
        if not found or not found[0].stat().st_size:
            raise ValueError(f"{path} is empty")
        files += found
    return files


def text_lines(path, start=0, stop=None, min_words=MIN_WORDS):
    """Yields the lines of a corpus file worth training on, as the code of vokenization (Tan & Bansal 2020) chose them.

    Dropped: WikiText headings (` = Title = `), WikiExtractor's <doc> marks, lines of fewer than 5 words between spaces.
    start, stop: only the lines that begin in these bytes; start must begin a line. Raises ValueError naming file and
    line where the text is not UTF-8 or not text.
    """
    return (line for _, line in _placed_lines(path, start, stop, min_words))


def _placed_lines(path, start, stop, min_words):
    place, stop = start, os.path.getsize(path) if stop is None else stop
    with open(path, "rb") as file:
        file.seek(start)
        while place < stop and (raw := file.readline(LONGEST_LINE)):
            try:
                if len(raw) == LONGEST_LINE or b"\0" in raw:
                    raise ValueError("holds a zero byte" if b"\0" in raw else "over 64 MB without a newline")
                line = raw.decode("utf-8-sig" if place == 0 else "utf-8")
            except ValueError as error:   # only now are the lines before it counted
                reason = (f"not UTF-8 ({error.reason} at byte {error.start})" if isinstance(error, UnicodeDecodeError)
                          else f"{error}, so this is not a text file")
                raise ValueError(f"{path}, line {_newlines(path, place) + 1}: {reason}") from None
            text = line.strip()
            if not (line.startswith(" = ") or text.startswith("<doc id=") or text.endswith("</doc>")
                    or not text or text.count(" ") + 1 < min_words):
                yield place, text
            place += len(raw)


def _newlines(path, stop):
    with open(path, "rb") as file:
        return sum(file.read(min(1 << 20, stop - at)).count(b"\n") for at in range(0, stop, 1 << 20))


def hold_out(files, lines, min_words=MIN_WORDS):
    """Splits a corpus into (train, valid), lists of (path, start, stop): valid is the last `lines` lines that pass
    text_lines, as the authors held out the end of English Wikipedia. Reads backwards, and no more than it needs."""
    ranges = [(path, 0, path.stat().st_size) for path in files]
    train, valid, wanted = [piece for group in _cut(ranges) for piece in group], [], lines
    while train and wanted:
        path, start, stop = train.pop()
        places = [place for place, _ in _placed_lines(path, start, stop, min_words)][-wanted:]
        wanted -= len(places)
        middle = places[0] if places and not wanted else start
        train += [(path, start, middle)] * (middle > start)
        valid.insert(0, (path, middle, stop))
    if wanted or not train:
        raise ValueError(f"--valid-lines {lines}: the corpus has {lines - wanted} usable lines; at least one more is "
                         f"needed to train on")
    return train, valid


def _cut(ranges):
    """Groups [(path, start, stop)] into lists of about PIECE bytes, cutting files at newlines only."""
    group, room = [], PIECE
    for path, start, stop in ranges:
        with open(path, "rb") as file:
            while start < stop:
                end = stop
                if stop - start > room:
                    file.seek(start + room - 1)
                    file.readline(LONGEST_LINE)
                    end = min(file.tell(), stop)
                group.append((path, start, end))
                room, start = room - (end - start), end
                if room <= 0:
                    yield group
                    group, room = [], PIECE
    if group:
        yield group


def pack_text(files, vocab, out, name, workers=1, cased=None, min_words=MIN_WORDS):
    """Tokenises files, folders or parts of files (path, start, stop) into out/NAME.bin and out/NAME.json; does nothing
    if that was done from the same ones. The bytes are the same for any number of processes, and memory for any corpus.

    Raises FileNotFoundError, and ValueError where a file is not text or no line is worth training on.
    """
    out, vocab = Path(out), _vocab_file(vocab)
    out.mkdir(parents=True, exist_ok=True)
    ranges = []
    for part in files:
        ranges += [part] if isinstance(part, tuple) else [(path, 0, path.stat().st_size) for path in text_files([part])]
    tokenizer = load_tokenizer(vocab, cased)
    rule = tokenizer.normalizer
    listing = [[path.name, path.stat().st_size, path.stat().st_mtime_ns, start, stop] for path, start, stop in ranges]
    source = {"files": len({path for path, *_ in ranges}), "bytes": sum(stop - start for _, start, stop in ranges),
              "listing_sha256": hashlib.sha256(json.dumps(listing).encode()).hexdigest(), "min_words": min_words,
              "vocab_sha256": file_hash(vocab), "lowercase": rule.lowercase, "strip_accents": rule.strip_accents,
              "handle_chinese_chars": rule.handle_chinese_chars}
    described, temporary = out / f"{name}.json", out / f"{name}.bin.tmp"
    if (described.exists() and (out / f"{name}.bin").exists() and
            read_json(described, "python data.py text")["source"] == source):
        print(f"{described}: up to date")
        return
    kind, total, progress = np.dtype(smallest_integer(tokenizer.get_vocab_size())), 0, {"unit": "B", "unit_scale": True}
    with open(temporary, "wb") as file, tqdm(total=source["bytes"], desc=f"text {name}", **progress) as bar:
        for size, tokens in _in_order(tokenizer, list(_cut(ranges)), kind, min_words, workers):
            file.write(tokens)
            total += len(tokens) // kind.itemsize
            bar.update(size)
    if total == 0:
        raise ValueError(f"{', '.join(str(path) for path, *_ in ranges[:3])}: not one line of {min_words} words or "
                         f"more, so no text to train on (--min-words 1 suits languages written without spaces)")
    described.unlink(missing_ok=True)   # it vouches for the tokens, so it goes before them and comes after
    os.replace(temporary, out / f"{name}.bin")
    keep_vocab(vocab, out, cased)
    write_json(described, {"tokens": total, "dtype": kind.name, "source": source})
    print(f"{out / name}.bin: {total:,} tokens, {'uncased' if rule.lowercase else 'cased'}")


def _in_order(tokenizer, groups, kind, min_words, workers):
    """Yields (bytes of text, token bytes) a group, in the groups' order. What comes back is a few MB a group; rejected:
    a part file a process, which a killed run leaves behind and which are written twice."""
    jobs = groups, repeat(kind), repeat(min_words)
    workers = min(workers, len(groups))
    if workers <= 1:   # in this process, on the tokenizers library's own threads
        _start_tokens(tokenizer)
        yield from map(_tokens, *jobs)
        return
    with ProcessPoolExecutor(workers, initializer=_start_tokens, initargs=(tokenizer, "false")) as pool:
        yield from pool.map(_tokens, *jobs)


def _start_tokens(tokenizer, threads=None):
    _tokens.tokenizer = tokenizer
    if threads:   # a process is one core; and after a fork the library's own threads would wait for ever
        os.environ["TOKENIZERS_PARALLELISM"] = threads


def _tokens(group, kind, min_words):
    lines = (line for path, start, stop in group for line in text_lines(path, start, stop, min_words))
    packed = []
    while batch := list(islice(lines, 1000)):
        # encode_batch_fast leaves out the offsets, which nobody needs here
        ids = [encoding.ids for encoding in _tokens.tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        packed.append(np.fromiter(chain.from_iterable(ids), dtype=kind).tobytes())
    return sum(stop - start for _, start, stop in group), b"".join(packed)


# ---------------------------------------------------------------------------------------------------------------------
# Downloads: published files, which get their name only once they are verified. What is not ours to fetch says where to
# ask. Archives stay in OUT/downloads, so that a later call can see without a request whether all is whole; delete them
# when you like.


class DownloadError(Exception):
    """A file that could not be had. The message says what to do."""


class Remote(NamedTuple):
    """One published file."""
    url: str
    size: int | None      # bytes
    sha256: str | None    # all 64 digits, or the leading ones; None: nobody published it
    keep: str | dict      # place under --out; for a zip {member, or the end of its path: place}


class Source(NamedTuple):
    """A data set or a set of weights."""
    files: list           # of Remote
    sums: str             # where the checksums come from
    terms: str            # licence, as far as known
    ask: str = ""         # what cannot be fetched here, and where to ask for it


def _files(base, folder, *named):
    return [Remote(base + name, size, sha256, f"{folder}/{name}") for name, size, sha256 in named]


def _zip(url, size, sha256, *members):
    return Remote(url, size, sha256, dict(zip(members, members)))


def _glue(task, zipped, size, sha256, terms="not stated", splits=("train", "dev", "test")):
    return Source([_zip(GLUE + zipped, size, sha256, *[f"{task}/{split}.tsv" for split in splits])], GLUE_SUMS, terms)


def _wikitext(name, size, sha256):
    members = [f"{name}/wiki.{split}.raw" for split in ("train", "valid", "test")]
    return Source([_zip(f"{WIKITEXT}{name}-v1.zip", size, sha256, *members)], "datasets", "CC BY-SA 3.0, GFDL")


# Names of libraries stand for the checksum files they carry: datasets' dataset_infos.json, tensorflow_datasets'
# url_checksums. Row counts of what was fetched are finetune.py's, which says where a split has others.
GLUE, GLUE_SUMS = "https://dl.fbaipublicfiles.com/glue/data/", "datasets, tensorflow_datasets"
PARAPHRASE = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
SWAG = "https://raw.githubusercontent.com/rowanz/swagaf/master/data/"
PHYSICAL = "https://storage.googleapis.com/ai2-mosaic/public/physicaliqa/physicaliqa-train-dev.zip"
# The commit whose files the sums were taken from, rather than a branch, which may move. Nobody here could follow the
# link: if it is dead, the sums still tell whether a copy from elsewhere is the one.
TRACIE = "https://raw.githubusercontent.com/allenai/tracie/e495da6af7cc2f70b04f740cff03f0d01c659d88/data/"
WIKITEXT = "https://s3.amazonaws.com/research.metamind.io/wikitext/"
HOWTO100M = "https://www.rocq.inria.fr/cluster-willow/amiech/howto100m/"

DOWNLOADS = {"tasks": {
    "CoLA": _glue("CoLA", "CoLA.zip", 376971, "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
                  "excerpts of published works, no licence stated"),
    "SST-2": _glue("SST-2", "SST-2.zip", 7439277, "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),
    "MRPC": Source(_files(
        PARAPHRASE, "MRPC",
        ("msr_paraphrase_train.txt", 1047044, "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89"),
        ("msr_paraphrase_test.txt", 441275, "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784"))
        + _files(GLUE, "MRPC", (
            "mrpc_dev_ids.tsv", 6222, "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7")),
        GLUE_SUMS, "Microsoft's own, for research"),
    "STS-B": _glue("STS-B", "STS-B.zip", 802872, "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85",
                   "mixed, by source"),
    "QQP": _glue("QQP", "QQP-clean.zip", 41696084, "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0",
                 "Quora's own, non-commercial"),
    "MNLI": _glue("MNLI", "MNLI.zip", 312783507, "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
                  "mixed, by source", ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")),
    "QNLI": _glue("QNLI", "QNLIv2.zip", 10627589, "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5",
                  "CC BY-SA 4.0, as SQuAD"),
    "RTE": _glue("RTE", "RTE.zip", 697150, "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),
    "WNLI": _glue("WNLI", "WNLI.zip", 28999, "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"),
    "AX": Source(_files(
        GLUE, "AX", ("AX.tsv", 222257, "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd")),
        GLUE_SUMS, "not stated"),
    "diagnostics": Source([Remote("https://www.dropbox.com/s/ju7d95ifb072q9f/diagnostic-full.tsv?dl=1", None, None,
                                  "diagnostics/diagnostic-full.tsv")], "", "not stated"),
    "SQuAD1": Source(_files(
        SQUAD, "SQuAD1",
        ("train-v1.1.json", 30288272, "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955"),
        ("dev-v1.1.json", 4854279, "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9")),
        "datasets", "CC BY-SA 4.0"),
    "SQuAD2": Source(_files(
        SQUAD, "SQuAD2",
        ("train-v2.0.json", 42123633, "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002"),
        ("dev-v2.0.json", 4370528, "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8")),
        "datasets", "CC BY-SA 4.0"),
    "SWAG": Source(_files(
        SWAG, "SWAG", ("train.csv", 28243333, "5748b51126ac255c5a6f26e1ba473b51116d6c822aeb25e63ecba282c9d0e610"),
        ("val.csv", 7893588, "c0497b2cd7f3e6b7df995524b1853f62285d60d110d659b19545ca80b2903234"),
        ("test.csv", 7817885, "a689a1a4e892a65ca625c1f0fcf77bcce004b59ad1caeb134ca5ec080a711cb6")),
        "datasets", "not stated with the data"),
    "PIQA": Source([Remote(   # its dev split is what the authors of PIQA, and finetune.py, call valid
        PHYSICAL, 1824009, "54d32a04f59a7e354396f321723c8d7ec35cc6b08506563d8d1ffcc15ce98ddd",
        {f"physicaliqa-train-dev/{ours.replace('valid', 'dev')}": f"PIQA/{ours}" for ours in
         ("train.jsonl", "train-labels.lst", "valid.jsonl", "valid-labels.lst")})] + _files(
        "https://yonatanbisk.com/piqa/data/", "PIQA",
        ("tests.jsonl", 814616, "402f1e2e61347db773e6e5e0a6b24f97396b59f6fd046dcdcbc12f483ac8553b")),
        "datasets", "AFL 3.0"),
    "TRACIE": Source(_files(   # one test file serves both splits; finetune.py looks for it in iid
        TRACIE + "iid/", "TRACIE/iid",
        ("tracie_train.txt", 399919, "7f8774abf836655bcf83ddd453eb08cba53dfa47b2eba960515d8757cc89d3ec")) + _files(
        TRACIE + "uniform-prior/", "TRACIE/iid",
        ("tracie_test.txt", 1454424, "63b3c217028a21e05b9d0eabb223671a23532e326f4550765cf6e015bb5d9070")) + _files(
        TRACIE + "uniform-prior/", "TRACIE/uniform-prior",
        ("tracie_train_uniform_prior.txt", 292492, "412f62edbdf1a3b02d9e6960372deb772b120a75d4de57a6fddc81736801ca8e")),
        "the repository's files, hashed by us", "not stated in the repository's README"),
}, "text": {
    "wikitext-103-raw": _wikitext("wikitext-103-raw", 191984949,
                                  "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794"),
    "wikitext-2-raw": _wikitext("wikitext-2-raw", 4721645,
                                "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"),
    "english-wikipedia": Source([], "", "CC BY-SA 4.0", """about 20 GB, and replaced twice a month, so no checksum:
    wget -c https://dumps.wikimedia.org/enwiki/latest/enwiki-latest-pages-articles.xml.bz2
    git clone https://github.com/attardi/wikiextractor
    git -C wikiextractor checkout e4abb4cb    # the authors' version
    python wikiextractor/WikiExtractor.py enwiki-latest-pages-articles.xml.bz2 --processes 8 -o enwiki
    python data.py text --train enwiki --valid-lines 5000 --vocab vocab.txt --out data/enwiki"""),
    "howto100m-captions": Source(
        [_zip(HOWTO100M + "raw_caption.zip", None, None, "raw_caption.json")], "", "not stated",
        "the videos (12 TB) are given on request only, by the form at\n"
        "    https://www.di.ens.fr/willow/research/howto100m/"),
}, "weights": {
    "resnet152": Source(_files(
        "https://download.pytorch.org/models/", ".", ("resnet152-394f9c45.pth", None, "394f9c45")),
        "its name, as is that host's rule", "BSD 3-Clause, torchvision"),
    "resnext101": Source(_files(HOWTO100M + "models/", ".", ("resnext101.pth", None, None)), "", "not stated"),
    "bert-base-uncased": Source(_files(
        "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/", "bert-base-uncased",
        ("vocab.txt", 231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3")),
        "several projects' pins", "Apache 2.0"),
    "vidlankd": Source([], "", "not stated", "the authors' models lie on Google Drive, linked from the README of\n    "
                       "https://github.com/zinengtang/VidLanKD; take them with a browser"),
}}

TRIES = 5                  # in a row without a new byte
PAUSE = 1.0                # seconds before the second try; doubles with each
UNPACKED_AT_MOST = 100     # times the archive's size; text shrinks about fourfold, a zip bomb a thousandfold


def fetch(remote, path, mirror=None):
    """Downloads one file to path: resumed where it was cut, verified by size and sha256, then renamed.

    A good file that is there costs no request, a wrong one is set aside as NAME.wrong. mirror: another base URL.
    Raises DownloadError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = remote.url.partition("?")[0].rpartition("/")[2]
    url = f"{mirror.rstrip('/')}/{name}" if mirror else remote.url
    part, aside = path.with_name(path.name + ".part"), path.with_name(path.name + ".wrong")
    advice = (f"Try again later, or from another server (--mirror URL, which must have URL/{name}), or put the file at "
              f"{path} yourself: it is checked in the same way")
    if path.exists():
        wrong = _wrong(remote, path, path)
        if not wrong:
            return _vouch(remote, path)
        print(f"{path}: {wrong}; kept as {aside.name}, fetched again", flush=True)
        os.replace(path, aside)
    tries = 0
    while True:
        had = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, remote.size)
            break
        except (OSError, http.client.HTTPException) as error:
            code = getattr(error, "code", None)
            if code == 416:   # nothing comes after what we have, so it is of another file
                part.unlink(missing_ok=True)
            elif code and code not in (408, 429, 500, 502, 503, 504):
                raise DownloadError(f"{url}: the server says {code} {error.reason}. {advice}") from None
            tries = 1 if part.exists() and part.stat().st_size > had else tries + 1
            if tries == TRIES:
                raise DownloadError(f"{url}: {error}, {TRIES} times. What has come is kept. {advice}") from None
            print(f"{url}: {error}; trying again", flush=True)
            time.sleep(PAUSE * 2 ** (tries - 1))
    wrong = _wrong(remote, part, path)
    _note(part).unlink()
    if wrong:
        os.replace(part, aside)
        raise DownloadError(f"{url}: {wrong}; kept as {aside}. The publisher may have changed the file. {advice}")
    os.replace(part, path)
    return _vouch(remote, path)


def _note(part):
    return part.with_name(part.name + ".json")   # of which file it is the beginning


def _receive(url, part, size):
    """One request. Goes on after what part holds; starts again if the server cannot, or if its file is not the one that
    part is the beginning of. Raises OSError or HTTPException where another try may help, else DownloadError."""
    before = read_json(_note(part), "") if part.exists() and _note(part).exists() else {}
    have = part.stat().st_size if before.get("url") == url else 0
    if have and have == before["size"]:   # killed between the last byte and the check
        return
    headers = {"User-Agent": "vidlankd-data", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        if answer.status != 206:
            have = 0
        length = answer.headers["Content-Length"]
        described = {"url": url, "tag": answer.headers["ETag"] or answer.headers["Last-Modified"],
                     "size": None if length is None else have + int(length)}
        if have and described != before:
            part.unlink()
            raise ConnectionError("the file on the server has changed")
        total = described["size"]
        if None not in (size, total) and total != size:
            raise DownloadError(f"{url}: {total:,} bytes, expected {size:,}. The publisher may have changed the file; "
                                f"name another server by --mirror URL")
        need_space(part.parent, (total or size or 0) - have, url)
        write_json(_note(part), described)
        with open(part, "ab" if have else "wb", buffering=0) as file, \
                tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar:
            while piece := answer.read(1 << 18):
                _write(file, piece, part)
                bar.update(len(piece))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"cut after {part.stat().st_size:,} of {total:,} bytes")


def _write(file, piece, path):
    try:
        left = memoryview(piece)
        while left:   # a nearly full disk takes a part
            left = left[file.write(left):]
    except OSError as error:
        raise DownloadError(f"{path}: {error.strerror}. What has come is kept: make room and start again, and it goes "
                            f"on from there") from None


def need_space(folder, needed, what):
    """Raises DownloadError unless the disk of folder has room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(f"{what} needs {needed:,} bytes in {folder}, where {free:,} are free; make room, or name "
                            f"another disk by --out")


def _wrong(remote, path, final):
    """What is wrong with a file, or None. Where no sha256 is known, what came first counts (NAME.sha256 beside it)."""
    record = final.with_name(final.name + ".sha256")
    expected = remote.sha256 or (record.read_text().split()[0] if record.exists() else "")
    size, found = path.stat().st_size, file_hash(path)
    if remote.size not in (None, size):
        return f"{size:,} bytes, expected {remote.size:,}"
    if not found.startswith(expected):
        return f"sha256 {found}, expected {expected}{'...' if len(expected) < 64 else ''}"
    with open(path, "rb") as file:
        if not remote.sha256 and file.read(100).lstrip().lower().startswith((b"<!doctype", b"<html")):
            return "a web page instead of the file"
    return None


def _vouch(remote, path):
    """Writes NAME.sha256 beside a file whose sha256 nobody published, and says so. Returns path."""
    record = path.with_name(path.name + ".sha256")
    if len(remote.sha256 or "") < 64 and not record.exists():
        digest = file_hash(path)
        write_text(record, f"{digest}  {path.name}\n")   # the form that sha256sum -c reads
        known = (f"of which the first {len(remote.sha256)} digits are published, and agree" if remote.sha256 else
                 "but none is published to compare it with, so only a later change can be noticed")
        print(f"{path}: sha256 {digest}, {known}; kept in {record.name}")
    return path


def unpack(archive, members, out):
    """Unpacks members of a zip, {end of their path: place under out}, all or none. Returns the places.

    Passes over what is there whole (by size and CRC). Raises DownloadError for a damaged zip and for one with a member
    that no honest data set has: a path that leaves the folder, a link, contents beyond all proportion.
    """
    archive, places = Path(archive), [Path(out) / place for place in members.values()]
    temporary = archive.with_name(archive.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)   # of a killed run
    try:
        with zipfile.ZipFile(archive) as zipped:
            wanted = [_member(zipped, end, archive) for end in members]
            todo = [(info, place) for info, place in zip(wanted, places) if not _is_whole(info, place)]
            needed = sum(info.file_size for info, _ in todo)
            need_space(archive.parent, needed, f"unpacking {archive}")
            temporary.mkdir()
            with tqdm(total=needed, unit="B", unit_scale=True, desc=f"unpack {archive.name}", disable=not todo) as bar:
                for number, (info, _) in enumerate(todo):
                    with zipped.open(info) as source, open(temporary / str(number), "wb", 0) as target:
                        while piece := source.read(1 << 20):
                            _write(target, piece, target.name)
                            bar.update(len(piece))
        for number, (_, place) in enumerate(todo):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / str(number), place)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{archive} is damaged ({error}); delete it and start again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return places


def _member(zipped, end, archive):
    """The one member whose path ends so, after a look at all of them."""
    for info in zipped.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
            raise DownloadError(f"{archive}: member {info.filename!r} would lie outside its folder; not unpacked")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DownloadError(f"{archive}: member {info.filename!r} is a link or a device; not unpacked")
    total, most = sum(info.file_size for info in zipped.infolist()), UNPACKED_AT_MOST * archive.stat().st_size
    if total > most:
        raise DownloadError(f"{archive}: would grow to {total:,} bytes, over {UNPACKED_AT_MOST} times its size; "
                            f"not unpacked")
    found = [info for info in zipped.infolist()
             if f"/{info.filename}".endswith(f"/{end}") and "__MACOSX" not in info.filename]
    if len(found) != 1:
        raise DownloadError(f"{archive}: {len(found)} members {end}, expected one; it holds "
                            f"{', '.join(sorted(zipped.namelist())[:20])}")
    return found[0]


def _is_whole(info, place):
    if not place.is_file() or place.stat().st_size != info.file_size:
        return False
    crc = 0
    with open(place, "rb") as file:
        while piece := file.read(1 << 20):
            crc = zlib.crc32(piece, crc)
    return crc == info.CRC


def download(command, names, out, mirror=None):
    """Fetches and unpacks the named data sets of DOWNLOADS[command] under out. One that fails does not stop the others.

    Returns the places of their files. Raises DownloadError with all that failed, ValueError for an unknown name.
    """
    known = {name.lower(): name for name in DOWNLOADS[command]}
    names = list(known) if "all" in names else [name.lower() for name in names]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(known.values())}")
    out, places, failed = Path(out), [], []
    for name in (known[name] for name in names):
        source = DOWNLOADS[command][name]
        if source.ask:
            print(f"{name}: {source.ask}")
        try:
            for remote in source.files:
                if isinstance(remote.keep, str):
                    places.append(fetch(remote, out / remote.keep, mirror))
                else:
                    archive = fetch(remote, out / "downloads" / remote.url.rpartition("/")[2], mirror)
                    places += unpack(archive, remote.keep, out)
        except DownloadError as error:
            failed.append(f"{name}: {error}")
        else:
            if source.files:
                print(f"{name}: whole, in {out}")
    if failed:
        raise DownloadError("\n".join(failed))
    return places


def list_downloads(command):
    """Prints what can be fetched: name, files, size, checksums, terms."""
    print(f"python data.py {command} NAME ... --out FOLDER [--mirror URL]      (terms: as far as known)\n")
    for name, source in DOWNLOADS[command].items():
        if source.files:
            sizes = [remote.size for remote in source.files]
            size = "size unknown" if None in sizes else f"{sum(sizes):,} bytes"
            known = min(len(remote.sha256 or "") for remote in source.files)
            sums = {0: "no sha256", 64: f"sha256 from {source.sums}"}.get(
                known, f"first {known} digits of sha256 from {source.sums}")
            print(f"{name:<20}{len(sizes)} file{'s' if len(sizes) > 1 else ''}, {size}; {sums}; terms: {source.terms}")
        if source.ask:
            print(f"{'' if source.files else name:<20}{source.ask}")


# ---------------------------------------------------------------------------------------------------------------------
# Captions -> packed tokens. captions.npz holds, for every caption that can be used, its tokens and its times.


def check_captions(captions, path):
    """Raises ValueError naming the video and what is wrong, unless captions has HowTo100M's form."""
    if not isinstance(captions, dict):
        raise ValueError(f"{path}: captions must be one object, {{video id: {{text: [], start: [], end: []}}}}")
    for video, entry in captions.items():
        if not isinstance(entry, dict) or not {"text", "start", "end"} <= set(entry):
            raise ValueError(f"{path}: video {video!r} needs the keys text, start and end")
        lengths = [len(entry[key]) if isinstance(entry[key], list) else None for key in ("text", "start", "end")]
        if None in lengths or len(set(lengths)) != 1:
            raise ValueError(f"{path}: video {video!r}: text, start and end must be lists of one length, not {lengths}")
        for number, (text, start, end) in enumerate(zip(entry["text"], entry["start"], entry["end"])):
            numbers = isinstance(start, (int, float)) and isinstance(end, (int, float))
            if not isinstance(text, str) or not numbers or not 0 <= start < end:
                raise ValueError(f"{path}: video {video!r}, caption {number}: needs a text and 0 <= start < end, "
                                 f"not {text!r}, {start!r}, {end!r}")


def overlap(previous, following):
    """How many of the first tokens of `following` repeat the last tokens of `previous` (rolling speech captions)."""
    for length in range(min(len(previous), len(following)), 0, -1):
        if previous[-length:] == following[:length]:
            return length
    return 0


def pack_captions(captions, durations, tokenizer, out):
    """Tokenises the captions of the videos in `durations` ({id: seconds}) into out/captions.npz.

    The part of a caption that repeats the end of the one before is removed, on tokens; a caption that starts after its
    video ends, or that holds nothing new, is left out. Returns the number of captions kept and of those left out.
    """
    tokens, bounds, times, first, left_out = [], [0], [], [0], 0
    ids = sorted(durations)
    for video in ids:
        entry = captions[video]
        encoded = tokenizer.encode_batch([text.strip() for text in entry["text"]], add_special_tokens=False)
        previous = []
        for encoding, start, end in zip(encoded, entry["start"], entry["end"]):
            new = encoding.ids[overlap(previous, encoding.ids):]
            previous = encoding.ids
            if not new or start >= durations[video]:
                left_out += 1
                continue
            tokens.extend(new)
            bounds.append(len(tokens))
            times.append((start, min(end, durations[video])))
        first.append(len(times))
    temporary = Path(out) / "captions.tmp.npz"
    np.savez(temporary, ids=np.array(ids), tokens=np.array(tokens, dtype=smallest_integer(tokenizer.get_vocab_size())),
             bounds=np.array(bounds), times=np.array(times, dtype=np.float32).reshape(-1, 2), first=np.array(first))
    os.replace(temporary, Path(out) / "captions.npz")
    return len(times), left_out


# ---------------------------------------------------------------------------------------------------------------------
# Video -> features. One decode of a file feeds every stream; a stream is a folder features/NAME of [T, D] float16
# arrays, one a video, beside stream.json with its rate. Any other extractor's arrays laid out so are one more stream.

FPS, SIDE = 8, 48            # the small descriptors look at 8 frames a second of 48 x 48 pixels
WINDOW, HOP = 4, 4           # the motion descriptor's window and step, in frames


class VideoError(Exception):
    """Why one video cannot be used; the caller lists it and goes on."""


def decode(path, fps=FPS, side=SIDE):
    """Decodes a video at `fps` frames a second, scaled to side x side. Returns uint8 [N, side, side, 3], RGB.

    Frame k is the one on display at time k / fps after the first. Raises VideoError with the reason.
    """
    frames, last = [], None
    scaler = av.video.reformatter.VideoReformatter()   # one for all frames; frame.reformat would set one up for each
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1   # the caller runs one process a core
            start = None
            for frame in container.decode(stream):
                if frame.time is None:
                    raise VideoError("frames without a time")
                start = frame.time if start is None else start
                if last is not None and frame.time - start - len(frames) / fps > 60:
                    raise VideoError("its timestamps jump by more than a minute")
                # 1e-4 s of tolerance: container times are rounded, and 0.12499 s means 0.125 s
                while last is not None and len(frames) / fps < frame.time - start - 1e-4:
                    frames.append(last)
                last = scaler.reformat(frame, side, side, format="rgb24").to_ndarray()
            duration = 0.0 if start is None else frame.time - start + (frame.duration or 0) * float(frame.time_base or 0)
            while last is not None and len(frames) / fps < max(duration, 1 / fps) - 1e-4:
                frames.append(last)
    except (av.FFmpegError, OSError, ValueError) as error:   # ValueError: a pixel format PyAV cannot convert
        raise VideoError(f"cannot be decoded ({getattr(error, 'strerror', None) or error})") from None
    if len(frames) < WINDOW:
        raise VideoError(f"{len(frames)} frames at {fps} a second, shorter than one window of {WINDOW}")
    return np.stack(frames)


def wrapped_moments(weight, side):
    """Centre of weights [N, S*S] over a picture, and each pixel's offset from it: x [N, 1], y [N, 1], dx, dy [N, S*S].

    Unit: the picture's side. Circular means and differences, so that a thing cut by the border of a picture that wraps
    round (the mini world's) is one thing; elsewhere it only moves the origin.
    """
    rows, columns = [axis.reshape(-1) / side for axis in np.mgrid[:side, :side].astype(np.float32)]
    out = []
    for axis in (columns, rows):
        angle = np.arctan2(weight @ np.sin(2 * np.pi * axis), weight @ np.cos(2 * np.pi * axis))[:, None]
        out.append((angle / (2 * np.pi), (axis - angle / (2 * np.pi) + 0.5) % 1 - 0.5))
    (x, dx), (y, dy) = out
    return x, y, dx, dy


def frame_descriptor(frames):
    """What one frame shows (the small 2D stream). frames: uint8 [N, S, S, 3] -> float32 [N, 56].

    A 4 x 4 thumbnail (48), and of the colourful part of the picture: area, centre, mean colour, and how elongated it
    is (image moments, Hu 1962): appearance and place, nothing of motion.
    """
    N, S = frames.shape[:2]
    rgb = frames.astype(np.float32) / 255                                                    # [N, S, S, 3]
    thumbnail = rgb.reshape(N, 4, S // 4, 4, S // 4, 3).mean((2, 4)).reshape(N, -1)          # [N, 48]
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]   # by name: numpy reduces an axis of 3 ten times slower
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)   # [N, S, S]
    weight = np.where(chroma > 0.15, chroma, 0).reshape(N, -1)                               # grey is background
    total = weight.sum(1, keepdims=True) + 1e-3
    centre_x, centre_y, dx, dy = wrapped_moments(weight, S)
    xx, yy, xy = [(weight * product).sum(1, keepdims=True) / total for product in (dx * dx, dy * dy, dx * dy)]
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy ** 2)
    elongation = spread / (xx + yy + 1e-4)                                                   # 0 round .. 1 a line
    colour = (weight[:, None] @ rgb.reshape(N, -1, 3))[:, 0] / total                         # [N, 3]
    area = (weight > 0).mean(1, keepdims=True)
    return np.concatenate([thumbnail, np.sqrt(area), centre_x, centre_y, elongation, xx + yy, colour], 1)


def motion_descriptor(frames):
    """What moves in each window of 4 frames (the small 3D stream). uint8 [N, S, S, 3] -> float32 [M, 40].

    Least-squares affine motion of the picture between neighbouring frames (Bergen et al. 1992): translation,
    divergence, curl, two shears, and speed, averaged over the window (7), the change of speed across it (1); and a
    4 x 4 grid of motion energy along x and y (32). Order and speed of frames, little of their content.
    """
    N, S = frames.shape[:2]
    grey = frames @ np.full(3, 1 / (3 * 255), np.float32)                                    # [N, S, S]
    for axis in (1, 2):   # a 1-2-1 blur: gradients of unblurred pixel edges see only motions below one pixel
        grey = (np.roll(grey, 1, axis) + 2 * grey + np.roll(grey, -1, axis)) / 4
    change = grey[1:] - grey[:-1]                                                            # [N-1, S, S]
    middle = (grey[1:] + grey[:-1]) / 2
    gx = (np.roll(middle, -1, 2) - np.roll(middle, 1, 2)) / 2
    gy = (np.roll(middle, -1, 1) - np.roll(middle, 1, 1)) / 2
    pairs = N - 1
    energy = ((gx * gx + gy * gy) * np.abs(change)).reshape(pairs, -1)                       # where something moves
    x, y, dx, dy = wrapped_moments(energy, S)
    dx, dy = [(S / 8 * d).reshape(pairs, S, S) for d in (dx, dy)]                            # unit: 8 pixels
    near = (dx * dx + dy * dy < 4).astype(np.float32)                                        # the mover, not the rest
    columns = np.stack([gx, gx * dx, gx * dy, gy, gy * dx, gy * dy], -1) * near[..., None]   # [N-1, S, S, 6]
    columns = columns.reshape(pairs, S * S, 6)
    normal = columns.transpose(0, 2, 1) @ columns + 1e-3 * np.eye(6, dtype=np.float32)       # [N-1, 6, 6]
    right = -(columns.transpose(0, 2, 1) @ change.reshape(pairs, -1, 1))
    flow = np.linalg.solve(normal, right)[:, :, 0]                                           # [N-1, 6]
    flow[:, [0, 3]] = flow[:, [0, 3]].clip(-4, 4)        # beyond this, cuts: a first-order estimate sees nothing there
    flow[:, [1, 2, 4, 5]] = flow[:, [1, 2, 4, 5]].clip(-0.5, 0.5)
    u, ux, uy, v, vx, vy = flow.T                                                            # flow = u + ux dx + uy dy, ...
    affine = np.stack([u, v, ux + vy, vx - uy, ux - vy, uy + vx, np.hypot(u, v)], 1)         # [N-1, 7]
    cells = [(-g * change).reshape(pairs, 4, S // 4, 4, S // 4).mean((2, 4)).reshape(pairs, -1) for g in (gx, gy)]
    each = np.concatenate([affine, 1000 * cells[0], 1000 * cells[1]], 1)                     # [N-1, 39]
    out = []
    for start in range(0, N - WINDOW + 1, HOP):
        window = each[start:start + WINDOW - 1]
        gain = window[WINDOW // 2:, 6].mean() - window[:WINDOW // 2 - 1, 6].mean()
        out.append(np.append(window.mean(0), gain.clip(-2, 2)))
    return np.stack(out).astype(np.float32)                                                  # [M, 40]


STREAMS = {   # name -> (function, steps a second, frames that one step sees)
    "frame": (lambda frames: frame_descriptor(frames[::HOP]), FPS / HOP, 1),
    "motion": (motion_descriptor, FPS / HOP, WINDOW),
}


def extract(path, out, streams):
    """Decodes one video once and writes each stream's features. Returns (id, seconds of video, None or the reason)."""
    video = Path(path).stem
    targets = {name: Path(out) / "features" / name / f"{video}.npy" for name in streams}
    try:
        frames = decode(path)
    except VideoError as reason:
        return video, 0.0, str(reason)
    for name, target in targets.items():
        features = STREAMS[name][0](frames).astype(np.float16)
        if not np.isfinite(features).all():
            return video, 0.0, f"stream {name} is not finite"
        temporary = target.with_suffix(".tmp.npy")
        np.save(temporary, features)
        os.replace(temporary, target)
    return video, len(frames) / FPS, None


def make_features(videos, captions_path, vocab, streams, out, workers, valid_ids=None):
    """`data.py video`: features of every captioned video in a folder, and their captions packed. Resumable.

    Writes features/STREAM/ID.npy, features/STREAM/stream.json, captions.npz, splits.json (train and valid ids) and
    left_out.tsv (video, reason). Raises FileNotFoundError / ValueError on missing or malformed inputs.
    """
    videos, out = Path(videos), Path(out)
    unknown = [name for name in streams if name not in STREAMS]
    if unknown:
        raise ValueError(f"unknown stream {', '.join(unknown)}; known: {', '.join(STREAMS)}")
    if not videos.is_dir():
        raise FileNotFoundError(f"no folder of videos at {videos}; `python data.py mini` makes the mini world's")
    captions = read_json(captions_path, "python data.py mini")
    check_captions(captions, captions_path)
    tokenizer = load_tokenizer(vocab)
    by_id = {}
    for path in sorted(videos.iterdir()):
        if path.is_file() and path.suffix != ".json":
            by_id.setdefault(path.stem, []).append(path)
    double = [paths for video, paths in by_id.items() if len(paths) > 1 and video in captions]
    if double:
        raise ValueError(f"{videos}: {len(double)} video ids have several files, the first "
                         f"{', '.join(path.name for path in double[0])}; keep one each")
    files = {video: paths[0] for video, paths in by_id.items()}
    left_out = {video: "captions, but no video file" for video in captions if video not in files}
    left_out |= {video: "a video file, but no captions" for video in files if video not in captions}
    wanted = [video for video in files if video in captions]
    for name in streams:
        (out / "features" / name).mkdir(parents=True, exist_ok=True)
        function, rate, span = STREAMS[name]
        width = function(np.zeros((WINDOW, SIDE, SIDE, 3), np.uint8)).shape[1]
        write_json(out / "features" / name / "stream.json", {"rate": rate, "width": width, "frames_seen": span})

    record = out / "durations.json"   # of finished videos; a killed run does again only what is not in it
    durations = read_json(record, "python data.py video") if record.exists() else {}
    complete = {video for video in durations
                if all((out / "features" / name / f"{video}.npy").exists() for name in streams)}
    todo = [video for video in wanted if video not in complete]
    with ProcessPoolExecutor(workers) as pool, tqdm(total=len(todo), unit="video", desc="features") as bar:
        jobs = pool.map(extract, [files[v] for v in todo], [out] * len(todo), [streams] * len(todo), chunksize=8)
        for number, (video, seconds, reason) in enumerate(jobs, 1):
            bar.update()
            if reason:
                left_out[video] = reason
                durations.pop(video, None)   # it may have been usable once
            else:
                durations[video] = seconds
            if number % 500 == 0:
                write_json(record, durations)
    usable = {video: durations[video] for video in wanted if video in durations}
    write_json(record, durations)
    write_text(out / "left_out.tsv", "".join(f"{v}\t{reason}\n" for v, reason in sorted(left_out.items())))
    if not usable:
        raise ValueError(f"not one usable video in {videos}; the reasons are in {out / 'left_out.tsv'}")
    (out / "splits.json").unlink(missing_ok=True)   # written last: where it is, all is
    kept, dropped = pack_captions(captions, usable, tokenizer, out)
    keep_vocab(vocab, out)
    if valid_ids is None and (out / "valid_ids.json").exists():
        valid_ids = read_json(out / "valid_ids.json", "python data.py mini")
    if valid_ids is None:   # one in 50, at least one, spread by hash so that adding videos moves no other
        ranked = sorted(usable, key=lambda video: hashlib.sha256(video.encode()).hexdigest())
        valid_ids = ranked[:max(1, len(ranked) // 50)] if len(ranked) > 1 else []
    valid = [video for video in sorted(usable) if video in set(valid_ids)]
    write_json(out / "splits.json", {"train": [v for v in sorted(usable) if v not in set(valid)], "valid": valid})
    print(f"{len(usable):,} videos, {sum(usable.values()) / 3600:.2f} hours, {kept:,} captions ({dropped:,} captions held "
          f"nothing new or lay past the end); left out: {len(left_out)} videos, listed in {out / 'left_out.tsv'}")


# ---------------------------------------------------------------------------------------------------------------------
# Data sets


class TextBlocks:
    """Packed text cut into blocks of block - 2 consecutive tokens, each between [CLS] and [SEP]; no padding."""

    def __init__(self, folder, name, tokenizer, block):
        described = read_json(Path(folder) / f"{name}.json", f"python data.py text --out {folder}")
        self.tokens = np.memmap(Path(folder) / f"{name}.bin", dtype=described["dtype"], mode="r")
        if len(self.tokens) != described["tokens"]:
            raise ValueError(f"{folder}/{name}.bin holds {len(self.tokens)} tokens, {name}.json says "
                             f"{described['tokens']}: delete both and run `python data.py text` again")
        ids = special_ids(tokenizer)
        self.cls, self.sep, self.inner = ids["cls"], ids["sep"], block - 2
        if len(self) == 0:
            raise ValueError(f"{folder}/{name}.bin holds {len(self.tokens)} tokens, less than one block of {block}")

    def __len__(self):
        return len(self.tokens) // self.inner

    def batch(self, indices):
        """Token ids int64 [B, block] of the given blocks."""
        out = np.empty((len(indices), self.inner + 2), np.int64)
        out[:, 0], out[:, -1] = self.cls, self.sep
        for row, index in enumerate(indices):
            out[row, 1:-1] = self.tokens[index * self.inner:(index + 1) * self.inner]
        return torch.from_numpy(out)


class Clips:
    """Captions with the features of the stretch of video they were spoken over.

    An example starts at a random caption of its video; following captions join it until the block is full, and the clip
    runs from the first one's start to the last used one's end. (The authors always start at caption 0.)
    """

    def __init__(self, folder, split, streams, tokenizer, block, max_steps, frames=None):
        self.folder, self.streams, self.block, self.max_steps, self.frames = Path(folder), streams, block, max_steps, frames
        made_by = f"python data.py video --out {folder}"
        ids = read_json(self.folder / "splits.json", made_by)[split]   # written last, so captions.npz is there
        with np.load(self.folder / "captions.npz") as packed:
            self.tokens, self.bounds, self.times = packed["tokens"], packed["bounds"], packed["times"]
            row_of = {video: row for row, video in enumerate(packed["ids"].tolist())}
            first = packed["first"]
        self.spans = {video: (int(first[row_of[video]]), int(first[row_of[video] + 1])) for video in ids}
        self.ids = [video for video in ids if self.spans[video][1] > self.spans[video][0]]
        if not self.ids:
            raise ValueError(f"{folder}: the {split} split holds no video with a usable caption")
        described = {}
        for name in streams:
            if not (self.folder / "features" / name).is_dir():
                raise FileNotFoundError(f"no stream {name!r} in {self.folder / 'features'}; `{made_by} --streams {name}` "
                                        f"makes it")
            described[name] = read_json(self.folder / "features" / name / "stream.json", made_by)
        self.rates = {name: described[name]["rate"] for name in streams}
        self.stream_dims = {name: described[name]["width"] for name in streams}
        self.frames_seen = {name: described[name].get("frames_seen", 1) for name in streams}
        ids = special_ids(tokenizer)
        self.cls, self.sep, self.pad = ids["cls"], ids["sep"], ids["pad"]
        self._load = lru_cache(maxsize=8192)(self._read)   # the mini world fits; at scale it is the page cache that helps

    def __len__(self):
        return len(self.ids)

    def _read(self, name, video):
        path = self.folder / "features" / name / f"{video}.npy"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; `python data.py video --out {self.folder} --streams {name}` "
                                    f"makes it")
        array = np.load(path)
        if array.ndim != 2 or array.shape[1] != self.stream_dims[name] or len(array) == 0:
            raise ValueError(f"{path}: expected [T, {self.stream_dims[name]}] with T > 0, found {list(array.shape)}")
        return array

    def clip(self, video, start, end):
        """Features [T, D] float32 of seconds start..end, all streams side by side at the first stream's rate.

        A step belongs if its interval meets [start, end). Other streams are resampled to the first one's steps; more
        than max_steps are thinned evenly. With `frames` set, that many steps, evenly spaced, stand for the clip.
        """
        columns, T = [], None
        for name in self.streams:
            array, rate = self._load(name, video), self.rates[name]
            if T is None:
                low = min(int(np.floor(start * rate + 1e-4)), len(array) - 1)
                high = max(low + 1, min(int(np.ceil(end * rate - 1e-4)), len(array)))
                T = min(high - low, self.max_steps)
                if self.frames:
                    T = min(T, self.frames)
                # centres of T equal parts, so that one step is the middle one
                picked = low + ((np.arange(T) + 0.5) * (high - low) / T).astype(int)
                middles = (picked + 0.5) / rate                                              # seconds
            else:   # the step that is on at those moments
                picked = np.minimum((middles * rate + 1e-4).astype(int), len(array) - 1)
            columns.append(array[picked].astype(np.float32))
        return np.concatenate(columns, 1)

    def example(self, index, generator=None):
        """One example: (token ids [n], features [T, D]). generator None: starts at the first caption (validation)."""
        video = self.ids[index]
        low, high = self.spans[video]
        caption = low if generator is None else int(generator.integers(low, high))
        start, end, pieces, room = float(self.times[caption, 0]), 0.0, [], self.block - 2
        while caption < high and room > 0:
            piece = self.tokens[self.bounds[caption]:self.bounds[caption + 1]][:room]
            pieces.append(piece)
            room -= len(piece)
            end = max(end, float(self.times[caption, 1]))
            caption += 1
        tokens = np.concatenate([[self.cls], *pieces, [self.sep]]).astype(np.int64)
        return tokens, self.clip(video, start, end)

    def collate(self, examples):
        """Pads examples to tokens [B, block], token mask, features [B, T, D], step mask (True = real)."""
        B, T = len(examples), max(len(features) for _, features in examples)
        tokens = torch.full((B, self.block), self.pad)
        token_mask, step_mask = torch.zeros(B, self.block, dtype=torch.bool), torch.zeros(B, T, dtype=torch.bool)
        features = torch.zeros(B, T, examples[0][1].shape[1])
        for row, (ids, clip) in enumerate(examples):
            tokens[row, :len(ids)] = torch.from_numpy(ids)
            token_mask[row, :len(ids)] = True
            features[row, :len(clip)] = torch.from_numpy(clip)
            step_mask[row, :len(clip)] = True
        return tokens, token_mask, features, step_mask


# ---------------------------------------------------------------------------------------------------------------------
# Masking


def special_mask(tokens, ids):
    """bool, True at [PAD], [CLS] and [SEP]: never masked, never contrasted, never an anchor."""
    return (tokens == ids["pad"]) | (tokens == ids["cls"]) | (tokens == ids["sep"])


def mask_tokens(tokens, special_mask, generator, mask_id, vocab_size, probability=0.15, rows=None, batch=None):
    """BERT's masking: of the ordinary tokens, 15 % are chosen; 80 % of those become [MASK], 10 % a random id, 10 % stay.

    tokens: int [b, L]; special_mask: bool [b, L], True = leave alone. The random numbers are drawn for `batch` sequences
    of which these are `rows` (a slice), so that masks do not depend on the number of processes; None: these are all.
    Returns (inputs [b, L], labels [b, L]) with labels -100 where nothing is to be predicted.
    """
    b, L = tokens.shape
    rows, batch = (slice(0, b), b) if rows is None else (rows, batch)
    choose, how = torch.rand(2, batch, L, generator=generator)[:, rows]                     # each [b, L]
    random_ids = torch.randint(vocab_size, (batch, L), generator=generator)[rows]
    chosen = (choose < probability) & ~special_mask                                         # True = to be predicted
    labels = torch.where(chosen, tokens, torch.full_like(tokens, -100))
    inputs = torch.where(chosen & (how < 0.8), torch.full_like(tokens, mask_id), tokens)
    inputs = torch.where(chosen & (how >= 0.9), random_ids, inputs)
    return inputs, labels

# =====================================================================================================================
# The mini world: a generated world in which only video tells what a noun does
#
# A test of transfer, not of common sense: every noun gets its properties by lot. Captions and text name nouns, never
# their properties; clips show them. Whatever a text-only student knows of a property of a noun, it has from the video
# teacher. One seed redraws everything. tests/test_mini.py holds the checks that nothing leaks.

NOUNS = """
teapot kettle cup spoon fork knife plate bowl jar bottle pan pot ladle tray mug napkin sponge bucket broom mop brush comb
towel soap candle lamp lantern torch clock mirror pillow blanket sheet curtain carpet rug sofa chair stool bench desk
shelf drawer cabinet wardrobe cradle ladder hammer nail screw wrench drill chisel axe shovel rake hoe spade
barrow hose rope chain hook pulley lever wheel tyre engine pedal bicycle scooter wagon cart sled sleigh canoe raft ship
boat anchor sail oar paddle kite balloon drum flute violin guitar piano trumpet harp whistle bell gong banjo cello
ball bat racket puck dice domino puzzle doll puppet marble yoyo robot rocket truck train tram bus taxi tractor crane
helmet glove sock shoe boot sandal slipper hat cap scarf coat jacket shirt skirt dress belt button zipper needle thread
ribbon purse wallet basket suitcase backpack umbrella ring necklace bracelet crown medal coin stamp envelope
letter postcard book notebook pencil crayon eraser ruler stapler scissors glue tape folder globe map atlas
camera radio phone laptop tablet printer speaker fan heater fridge oven stove toaster blender mixer grinder
apple pear plum peach cherry grape lemon lime mango melon banana papaya carrot potato onion garlic pepper tomato
cabbage lettuce celery radish turnip pumpkin bean pea corn nut almond walnut peanut bread bun cake cookie muffin
pancake waffle pie tart pretzel cracker cheese butter egg sausage burger pizza noodle dumpling candy
leaf twig branch acorn seed flower tulip daisy rose lily fern cactus mushroom pebble stone brick tile plank log barrel crate
cork feather shell pearl statue vase pitcher goblet thimble magnet battery bulb plug cable antenna
lens prism telescope compass hourglass pendulum thermometer scale abacus typewriter
trophy badge flag banner tent hammock fossil igloo pillar fountain locket tweezers corkscrew spatula whisk
marker trowel crib futon hamper kayak ukulele clarinet oboe tuba mitten poncho tiara brooch easel canvas chalk palette
colander funnel sieve teacup saucer jug flask thermos lunchbox
""".split()
NOUNS = list(dict.fromkeys(NOUNS))[:320]
GROUPS = {"train": 160, "validation": 48, "test": 80, "unfilmed": 32}   # of task nouns; all but the last are filmed

# property -> (the action that brings it out; None = visible in every frame, its values as verb phrases or adjectives)
PROPERTIES = {
    "lift": ("drop", ("rises", "sinks")),
    "growth": ("heat", ("grows", "shrinks")),
    "pace": ("push", ("hurries", "brakes")),
    "spin": ("tap", ("turns left", "turns right")),
    "colour": (None, ("red", "green", "blue", "yellow")),
    "shape": (None, ("round", "long")),
    "size": (None, ("big", "small")),
}
DYNAMIC = [name for name, (action, _) in PROPERTIES.items() if action]
ACTIONS = [action for action, _ in PROPERTIES.values() if action]
COLOURS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 215), "yellow": (225, 200, 40)}
CLIP_FRAMES, CLIPS_A_VIDEO, VIDEOS_A_NOUN = 16, 4, 8   # 8 frames a second; a ninth video a noun is held out

SPOKEN = [   # {a}ction and {n}oun; two of them fill a block of 32; the text corpus uses them too
    "okay so now we are going to {a} the {n} and then we watch it closely",
    "and here you can see me {a} this {n} again so that everybody can see it",
    "well let us {a} the {n} for a moment and see what happens to it then",
    "so the next thing i want to do here is to {a} the {n} once",
    "now i am going to {a} my {n} one more time so have a look",
    "you just {a} the {n} like this with one hand and then you wait a bit",
    "watch closely what happens here as we {a} the {n} for the very first time",
    "then we take our {n} from over there and we {a} it like this you see",
    "this is my {n} that i told you about and i will {a} it now",
    "first of all you take the {n} and then you {a} it with one finger"]
WRITTEN = [
    "{p} keeps the {n} in the {w} .", "{p} saw a {n} in the {w} yesterday .", "there is a {n} in the {w} of {p} .",
    "{p} gave the {n} to {q} last week .", "everybody knows the {n} of {p} .",
    "{p} wants to {a} the {n} but {q} does not .", "what does {p} do with the {n} ? {p} likes to {a} it ."]
PROPERTY_SENTENCES = [   # {b}ehaviour or {v}alue of a property {k}, and what the word {g} means; never a noun of the world
    "something {b} when you {a} it .", "what does it do when you {a} it ? it {b} .", "if it {b} then it {g} .",
    "something that {b} {g} .", "{p} wants something that {g} , so it {b} .", "which of them {b} ? the one that {g} .",
    "what {k} is it ? it is {v} .", "{p} has a {v} one in the {w} .", "if it is {v} then it is {g} .",
    "a {v} thing is {g} .", "{p} wants one that is {g} , so it is {v} .", "which of them is {v} ? the one that is {g} ."]
MEANINGS = {   # so that a text-only model can tell rivals apart: words used in the same places get the same vectors
    "rises": "goes up high", "sinks": "goes down low", "grows": "gets larger", "shrinks": "gets tiny",
    "hurries": "becomes fast", "brakes": "becomes slow", "turns left": "faces the west", "turns right": "faces the east",
    "red": "like a fire", "green": "like grass", "blue": "like the sky", "yellow": "like the sun",
    "round": "without corners", "long": "like a snake", "big": "like a house", "small": "like an ant"}
PLAIN_SENTENCES = [
    "{p} is behind {q} and {q} is in front of {p} .", "{p} is not {m} but {q} is {m} .", "{p} sees {q} in the {w} .",
    "{q} is seen by {p} in the {w} .", "{p} is in the {w} and {q} is not .", "{p} eats before {q} sleeps .",
    "{p} gives it to {q} , so now {q} has it .", "who is {m} ? {p} is {m} and {q} is not ."]
PEOPLE = "sam kim ann ben lee joe tom eve ida bob".split()
PLACES = "kitchen garden hall attic cellar yard garage office".split()
MOODS = {"happy": "sad", "tired": "awake", "rich": "poor", "calm": "angry"}


def balanced(values, count, generator):
    """`count` values in random order, each as often as the others (counts differ by at most one)."""
    drawn = [values[index % len(values)] for index in range(count)]
    return [drawn[index] for index in generator.permutation(count)]


def make_world(seed):
    """Draws the world: {noun: {"group": ..., property: value}}, every property exactly balanced in every group."""
    generator = numpy_generator(seed, "world")
    order, world = generator.permutation(NOUNS).tolist(), {}
    for group, count in GROUPS.items():
        members = [order.pop() for _ in range(count)]
        drawn = {name: balanced(values, count, generator) for name, (_, values) in PROPERTIES.items()}
        for index, noun in enumerate(members):
            world[noun] = {"group": group, **{name: drawn[name][index] for name in PROPERTIES}}
    return world


def fill(template, generator, **given):
    """Fills a template's free slots: two different people, a place, a mood, an action."""
    p, q = generator.choice(PEOPLE, 2, replace=False)
    slots = {"p": p, "q": q, "w": generator.choice(PLACES), "m": generator.choice(list(MOODS)),
             "a": generator.choice(ACTIONS)}
    return template.format(**{**slots, **given})


def draw_clip(properties, action, generator):
    """Renders one clip, uint8 [16, 48, 48, 3]: what a noun of these properties does under an action.

    The two behaviours of an action visit the same frames in opposite order or at another pace, from a random phase of a
    cycle (the picture wraps round, sizes run through a saw-tooth), so that no single frame, first and last included,
    tells them apart. Grey specks, pixel noise and jitter are there to be ignored.
    """
    F, S = CLIP_FRAMES, SIDE
    t = np.arange(F)
    behaviour = {PROPERTIES[name][0]: properties[name] for name in DYNAMIC}[action]
    x, y = np.full(F, generator.uniform(0, S)), np.full(F, generator.uniform(0, S))
    phase, angle = np.full(F, generator.uniform()), np.full(F, generator.uniform(0, 2 * np.pi))
    if action == "drop":      # image rows count downwards
        y = y + (-1.6 if behaviour == "rises" else 1.6) * t
    elif action == "heat":
        phase = (phase + (1 if behaviour == "grows" else -1) * t / F) % 1
    elif action == "tap":     # rows count downwards, so a falling angle turns left (anticlockwise)
        angle = angle + (-0.2 if behaviour == "turns left" else 0.2) * t
    else:                     # from 0.3 to 3 pixels a frame or the reverse, to either side
        speed = np.linspace(0.3, 3.0, F)
        speed = speed if behaviour == "hurries" else speed[::-1]
        x = x + generator.choice([-1, 1]) * np.cumsum(speed)
    x, y, phase, angle = [values.astype(np.float32) for values in (
        x + generator.normal(0, 0.15, F), y + generator.normal(0, 0.15, F), phase, angle)]
    low, high = (9.5, 15.5) if properties["size"] == "big" else (4.5, 7.5)
    radius = (low * (high / low) ** phase)[:, None, None]                                    # pixels

    rows, columns = np.mgrid[:S, :S].astype(np.float32)
    dx = (columns - x[:, None, None] + S / 2) % S - S / 2                                    # [F, S, S], wrapped
    dy = (rows - y[:, None, None] + S / 2) % S - S / 2
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    if properties["shape"] == "round":
        inside = radius - np.hypot(along, across)
    else:
        inside = np.minimum(1.35 * radius - np.abs(along), 0.45 * radius - np.abs(across))
    body = np.clip(inside + 0.5, 0, 1)[..., None]                                            # [F, S, S, 1]
    mark = np.clip(0.33 * radius - np.hypot(along - 0.62 * radius, across) + 0.5, 0, 1)[..., None]
    picture = np.full((F, S, S, 3), generator.uniform(150, 235), np.float32)
    for _ in range(generator.integers(0, 3)):
        place, drift = generator.uniform(0, S, 2), generator.normal(0, 0.5, 2)
        path_x, path_y = [(place[k] + drift[k] * t).astype(np.float32)[:, None, None] for k in (0, 1)]
        speck_x, speck_y = (columns - path_x + S / 2) % S - S / 2, (rows - path_y + S / 2) % S - S / 2
        speck = np.clip(2.0 - np.hypot(speck_x, speck_y), 0, 1)[..., None]
        picture = picture * (1 - speck) + np.float32(generator.uniform(60, 130)) * speck
    colour = np.array(COLOURS[properties["colour"]], np.float32) * np.float32(generator.uniform(0.85, 1.1))
    picture = picture * (1 - body) + colour * body
    mark = mark * body
    picture = picture * (1 - mark) + 0.25 * colour * mark                                    # a dark mark off centre
    picture += 4 * generator.standard_normal((F, S, S, 1), dtype=np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_video(path, frames):
    """Encodes uint8 [N, S, S, 3] as H.264, 8 frames a second, through a temporary name."""
    temporary = Path(str(path) + ".tmp")
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "21"})
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    os.replace(temporary, path)


def make_video(seed, name, noun, properties, folder):
    """One video of one noun: every action once, in random order, with its narration. Returns (captions, actions).

    A caption is (words, how many words of the one before it repeats, start, end): two in five repeat some, as rolling
    speech captions do.
    """
    generator = numpy_generator(seed, "video", name)
    actions = generator.permutation(ACTIONS).tolist()
    path = Path(folder) / f"{name}.mp4"
    frames = [draw_clip(properties, action, generator) for action in actions]
    if not path.exists():
        write_video(path, np.concatenate(frames))
    seconds, captions, before = CLIP_FRAMES / FPS, [], []
    for index, action in enumerate(actions):
        words = generator.choice(SPOKEN).format(a=action, n=noun).split()
        rolled = before[-int(generator.integers(2, 5)):] if before and generator.uniform() < 0.4 else []
        start = max(0.0, index * seconds + generator.uniform(-0.2, 0.2))
        end = min(CLIPS_A_VIDEO * seconds, (index + 1) * seconds + generator.uniform(-0.2, 0.2))
        captions.append((" ".join(words), len(rolled), round(start, 2), round(end, 2)))
        before = words
    return captions, actions


def make_text(world, seed, documents, sentences=5):
    """Lines of text, a line a short article: three in four about one noun (all nouns equally often), the rest without.

    Articles are about one thing, as encyclopaedias' are; property words occur, every value as often as its rivals, in
    articles without a noun of the world only.
    """
    generator = numpy_generator(seed, "text", documents)
    subjects = balanced(list(world), documents * 3 // 4, generator)
    subjects += [None] * (documents - len(subjects))
    words = {name: iter(balanced(values, 3 * documents, generator)) for name, (_, values) in PROPERTIES.items()}
    lines = []
    for subject in [subjects[index] for index in generator.permutation(documents)]:
        article = []
        if subject is None:
            name = generator.choice(list(PROPERTIES))
            action, _ = PROPERTIES[name]
            fitting = [s for s in PROPERTY_SENTENCES if ("{b}" in s) == (action is not None)]
            for _ in range(3):
                value = next(words[name])
                article.append(fill(generator.choice(fitting), generator, b=value, v=value, k=name, g=MEANINGS[value],
                                    **({"a": action} if action else {})))
            article += [fill(generator.choice(PLAIN_SENTENCES), generator) for _ in range(sentences - 3)]
        else:
            for _ in range(sentences):
                template = generator.choice(SPOKEN) + " ." if generator.uniform() < 0.6 else generator.choice(WRITTEN)
                article.append(fill(template, generator, n=subject))
        lines.append(" ".join(article[index] for index in generator.permutation(sentences)))
    return lines


# --- tasks: each row is (fields, label, part, noun, property); part is "grounded" (needs what only video told) or
# "ungrounded" (word order, negation, copying: what any student must keep)


def facts(world, nouns, names, generator):
    """(noun, property, action, value, is it true): each noun and property of `names` once true, once false.

    Balanced: every value is asked as often truly as falsely in every group (colours rotate by one common shift).
    """
    shift, out = int(generator.integers(1, 4)), []
    for noun in nouns:
        for name in names:
            action, values = PROPERTIES[name]
            true = world[noun][name]
            index = values.index(true)
            false = values[(index + (shift if len(values) > 2 else 1)) % len(values)]
            out += [(noun, name, action, true, True), (noun, name, action, false, False)]
    return out


def pairs(world, nouns, generator):
    """(noun, rival, property, action, noun's value): pairs that differ in a dynamic property; each noun once a property."""
    out = []
    for name in DYNAMIC:
        action, (a, b) = PROPERTIES[name]
        sides = [[noun for noun in nouns if world[noun][name] == value] for value in (a, b)]
        rivals = generator.permutation(sides[1]).tolist()
        out += [(noun, rival, name, action, a) for noun, rival in zip(generator.permutation(sides[0]).tolist(), rivals)]
    return out


def is_a(name, action, value):
    """The statement of a property, after 'it': 'grows', 'is red'."""
    return value if action else f"is {value}"


def asked(noun, name, action):
    """The open question about a property."""
    return f"what does the {noun} do when you {action} it ?" if action else f"what {name} is the {noun} ?"


def two_people(generator):
    return generator.choice(PEOPLE, 2, replace=False).tolist()


def sst2(world, nouns, plain, generator):
    """One sentence, 1 = true (grounded), or the mood in it is the good one (negation)."""
    for noun, name, action, value, truth in facts(world, nouns, DYNAMIC, generator):
        yield {"sentence": f"when you {action} the {noun} it {value} ."}, int(truth), "grounded", noun, name
    for index in range(plain):
        good, bad = list(MOODS.items())[index // 4 % 4]
        mood, negated = ((good, False), (bad, True), (good, True), (bad, False))[index % 4]
        person = generator.choice(PEOPLE)
        yield ({"sentence": f"{person} in the {generator.choice(PLACES)} is {'not ' * negated}{mood} ."},
               int((mood == good) != negated), "ungrounded", None, "negation")


def qnli(world, nouns, plain, generator):
    """Does the sentence answer the question with yes? Ungrounded: negation."""
    for noun, name, action, value, truth in facts(world, nouns, DYNAMIC, generator):
        yield ({"question": asked(noun, name, action), "sentence": f"it {value} ."},
               "entailment" if truth else "not_entailment", "grounded", noun, name)
    for index in range(plain):
        p, mood, truth = generator.choice(PEOPLE), generator.choice(list(MOODS)), index % 2 == 0
        yield ({"question": f"is {p} {mood} ?", "sentence": f"{p} is {'' if truth else 'not '}{mood} ."},
               "entailment" if truth else "not_entailment", "ungrounded", None, "negation")


def qqp(world, nouns, plain, generator):
    """Have two questions the same answer? Ungrounded: active and passive."""
    for name in DYNAMIC:
        action, values = PROPERTIES[name]
        sides = {value: [noun for noun in nouns if world[noun][name] == value] for value in values}
        for value in values:
            other = values[1 - values.index(value)]
            same, different = np.roll(sides[value], int(generator.integers(1, len(sides[value])))), sides[other]
            for noun, like, unlike in zip(sides[value], same.tolist(), generator.permutation(different).tolist()):
                for rival, label in ((like, 1), (unlike, 0)):
                    yield ({"question1": asked(noun, name, action), "question2": asked(rival, name, action)},
                           label, "grounded", noun, name)
    for index in range(plain):
        p, q = two_people(generator)
        yield ({"question1": f"does {p} see {q} ?",
                "question2": f"is {q} seen by {p} ?" if index % 2 == 0 else f"is {p} seen by {q} ?"},
               int(index % 2 == 0), "ungrounded", None, "order")


def mnli(world, nouns, plain, generator, names=("colour", "shape", "size")):
    """Premise and hypothesis. Grounded: is it so or not; everything neutral, which a hypothesis shows by itself, is
    ungrounded, as is where people are (copying)."""
    for noun, name, action, value, truth in facts(world, nouns, names, generator):
        person = generator.choice(PEOPLE)
        premise = f"{person} wants to {action} the {noun} ." if action else f"{person} knows the {noun} ."
        yield ({"sentence1": premise, "sentence2": f"it {is_a(name, action, value)} ."},
               "entailment" if truth else "contradiction", "grounded", noun, name)
    for index in range(plain):
        p, q = two_people(generator)
        place, other = generator.choice(PLACES, 2, replace=False)
        hypothesis, label = ((f"{p} is in the {place} .", "entailment"), (f"{p} is in the {other} .", "contradiction"),
                             (f"{p} is {generator.choice(list(MOODS))} .", "neutral"))[index % 3]
        yield ({"sentence1": f"{p} is in the {place} and {q} is in the {other} .", "sentence2": hypothesis},
               label, "ungrounded", None, "copying")


def piqa(world, nouns, plain, generator):
    """Which of two things does it? Both words are asked of each pair, so that each noun is right as often as wrong."""
    made = pairs(world, nouns, generator)
    first = {name: [iter(balanced([0, 1], len(made) // len(DYNAMIC), generator)) for _ in range(2)] for name in DYNAMIC}
    for noun, rival, name, action, value in made:
        for which, (right, wrong) in enumerate(((noun, rival), (rival, noun))):
            label = next(first[name][which])
            choices = [f"{action} the {right} .", f"{action} the {wrong} ."][::-1 if label else 1]
            yield ({"goal": f"{generator.choice(PEOPLE)} wants something that {world[right][name]} .",
                    "sol1": choices[0], "sol2": choices[1]}, label, "grounded", right, name)
    for index in range(plain):
        p, q = two_people(generator)
        place, other = generator.choice(PLACES, 2, replace=False)
        label = index % 2
        choices = [f"go to the {place} .", f"go to the {other} ."][::-1 if label else 1]
        yield ({"goal": f"{p} is in the {place} and {q} is in the {other} . find {p} .", "sol1": choices[0],
                "sol2": choices[1]}, label, "ungrounded", None, "copying")


def swag(world, nouns, plain, generator):
    """Which of four endings follows? Two actions, two behaviours each; ungrounded: who has it now."""
    positions = iter(balanced([0, 1, 2, 3], 6 * len(nouns), generator) + balanced([0, 1, 2, 3], plain, generator))
    for noun in nouns:
        for i, one in enumerate(DYNAMIC):
            for two in DYNAMIC[i + 1:]:
                (a, values), (b, others) = PROPERTIES[one], PROPERTIES[two]
                right = f"{world[noun][one]} and then it {world[noun][two]} ."
                wrong = [f"{v} and then it {w} ." for v in values for w in others]
                wrong.remove(right)
                label = next(positions)
                endings = generator.permutation(wrong).tolist()
                endings.insert(label, right)
                yield ({"sent1": f"you {a} the {noun} and then you {b} it .", "sent2": "it", "endings": endings},
                       label, "grounded", noun, f"{one}+{two}")
    for index in range(plain):
        p, q = two_people(generator)
        label = next(positions)
        endings = generator.permutation([f"{p} has it .", f"{p} sees {q} .", f"{q} gives it to {p} ."]).tolist()
        endings.insert(label, f"{q} has it .")
        yield {"sent1": f"{p} gives it to {q} .", "sent2": "so now", "endings": endings}, label, "ungrounded", None, "order"


def squad(world, nouns, plain, generator, impossible=False):
    """Which of two things does it? The answer is a noun of the context. v2.0 adds questions that neither answers."""
    made, alike = pairs(world, nouns, generator), {name: [] for name in DYNAMIC}
    order = {name: [iter(balanced([1, -1], len(made) // len(DYNAMIC), generator)) for _ in range(2)] for name in DYNAMIC}
    for noun, rival, name, action, value in made:
        for which, (right, wrong) in enumerate(((noun, rival), (rival, noun))):
            first, second = [right, wrong][::next(order[name][which])]
            yield ({"context": f"you {action} the {first} and the {second} .",
                    "question": f"which of them {world[right][name]} ?", "answer": right}, right, "grounded", right, name)
        both = {value: noun, PROPERTIES[name][1][1]: rival}
        alike[name].append(both)
    for name, rows in alike.items() if impossible else ():   # two nouns alike, asked about the other word: no answer
        action, (a, b) = PROPERTIES[name]
        for asked_word, shown in ((b, a), (a, b)):
            members = [row[shown] for row in rows]
            for noun, twin in zip(members, members[1:] + members[:1]):
                yield ({"context": f"you {action} the {noun} and the {twin} .", "question": f"which of them {asked_word} ?",
                        "answer": None}, "", "grounded", noun, name)
    for _ in range(plain):
        p, q = two_people(generator)
        place, other = generator.choice(PLACES, 2, replace=False)
        answer, where = ((p, place), (q, other))[int(generator.integers(2))]
        yield ({"context": f"{p} is in the {place} and {q} is in the {other} .", "question": f"who is in the {where} ?",
                "answer": answer}, answer, "ungrounded", None, "copying")


def squad2(world, nouns, plain, generator):
    """SQuAD v2.0 form of `squad`."""
    yield from squad(world, nouns, plain, generator, impossible=True)


FIRST = {"lift": "reaches the top", "growth": "fills the hall", "pace": "gets there", "spin": "faces the west"}


def tracie(world, nouns, plain, generator):
    """Implicit order of events: of two things, the one whose behaviour leads to an event comes to it first (what rises
    reaches the top before what sinks). Ungrounded: the order told."""
    for noun, rival, name, action, value in pairs(world, nouns, generator):   # noun has the first value: rises, grows, ...
        for one, two in ((noun, rival), (rival, noun)):
            story = f"{PEOPLE[0]} and {PEOPLE[1]} meet . they {action} the {one} . they {action} the {two} . they wait . they go ."
            for relation in ("starts before", "starts after", "ends before", "ends after"):
                holds = (one == noun) == relation.endswith("before")
                yield ({"query": f"the {one} {FIRST[name]} {relation} the {two}", "story": story},
                       "positive" if holds else "negative", "grounded", one, name)
    for index in range(plain):
        p, q = two_people(generator)
        story = f"{p} and {q} meet . {p} eats . then {q} sleeps . they wait . they go ."
        relation, holds = (("starts before", True), ("starts after", False), ("ends before", True), ("ends after", False))[index % 4]
        yield ({"query": f"{p} eats {relation} {q} sleeps", "story": story}, "positive" if holds else "negative",
               "ungrounded", None, "order")


def diagnostics(world, nouns, plain, generator):
    """MNLI's form with GLUE-diagnostics' category columns: Knowledge is what is grounded."""
    for fields, label, part, noun, name in mnli(world, nouns, plain, generator, tuple(PROPERTIES)):
        yield ({**fields, "category": "Knowledge" if part == "grounded" else "Lexical Semantics",
                "tag": "World knowledge" if part == "grounded" else "Lexical entailment"}, label, part, noun, name)
    for index in range(plain):
        p, q = two_people(generator)
        mood = generator.choice(list(MOODS))
        hypothesis, label = ((f"{p} is not {mood} .", "entailment"), (f"{p} is {mood} .", "contradiction"),
                             (f"{p} is in the hall .", "neutral"))[index % 3]
        yield ({"sentence1": f"{p} is not {mood} but {q} is {mood} .", "sentence2": hypothesis, "category": "Logic",
                "tag": "Negation"}, label, "ungrounded", None, "negation")
        hypothesis, label = ((f"{q} is seen by {p} .", "entailment"), (f"{p} is seen by {q} .", "contradiction"),
                             (f"{p} is {mood} .", "neutral"))[index % 3]
        yield ({"sentence1": f"{p} sees {q} and {q} does not see {p} .", "sentence2": hypothesis,
                "category": "Predicate-Argument Structure", "tag": "Active/Passive"}, label, "ungrounded", None, "order")


def tsv(path, header, rows):
    write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in ([header] if header else []) + rows))


def write_pair_tsv(first, second, name="{split}.tsv"):
    """Writer of GLUE's index, text, text, label files (QNLI, RTE); the test file has no label column."""
    def write(folder, split, rows):
        header = ["index", first, second] + ["label"] * (split != "test")
        tsv(folder / name.format(split=split), header, [[i, f[first], f[second]] + [label] * (split != "test")
                                                        for i, (f, label, *_) in enumerate(rows)])
    return write


def write_sst2(folder, split, rows):
    if split == "test":
        tsv(folder / "test.tsv", ["index", "sentence"], [[i, f["sentence"]] for i, (f, *_) in enumerate(rows)])
    else:
        tsv(folder / f"{split}.tsv", ["sentence", "label"], [[f["sentence"], label] for f, label, *_ in rows])


def write_qqp(folder, split, rows):
    if split == "test":
        tsv(folder / "test.tsv", ["id", "question1", "question2"],
            [[i, f["question1"], f["question2"]] for i, (f, *_) in enumerate(rows)])
    else:
        tsv(folder / f"{split}.tsv", ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
            [[i, 2 * i, 2 * i + 1, f["question1"], f["question2"], label] for i, (f, label, *_) in enumerate(rows)])


def write_mnli(folder, split, rows):
    blank = ["n/a"] * 4
    header = ["index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse",
              "sentence1_parse", "sentence2_parse", "sentence1", "sentence2"]
    header += {"train": ["label1", "gold_label"], "dev": [f"label{k}" for k in range(1, 6)] + ["gold_label"], "test": []}[split]
    times = {"train": 2, "dev": 6, "test": 0}[split]
    tsv(folder / f"{split if split == 'train' else split + '_matched'}.tsv", header,
        [[i, i, f"{i}e", "mini", *blank, f["sentence1"], f["sentence2"], *[label] * times]
         for i, (f, label, *_) in enumerate(rows)])


def write_diagnostics(folder, split, rows):
    kinds = ["Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge"]
    if split == "test":
        tsv(folder / "diagnostic-full.tsv", kinds + ["Domain", "Premise", "Hypothesis", "Label"],
            [[f["tag"] if kind == f["category"] else "" for kind in kinds] +
             ["mini", f["sentence1"], f["sentence2"], label] for f, label, *_ in rows])


def write_piqa(folder, split, rows):
    name = {"train": "train", "dev": "valid", "test": "tests"}[split]
    write_text(folder / f"{name}.jsonl", "".join(json.dumps(f) + "\n" for f, *_ in rows))
    if split != "test":
        write_text(folder / f"{name}-labels.lst", "".join(f"{label}\n" for _, label, *_ in rows))


def write_swag(folder, split, rows):
    header = ["", "video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source"]
    header += [f"ending{k}" for k in range(4)] + ["label"] * (split != "test")
    lines = [[i, f"mini_{i}", i, f"{f['sent1']} {f['sent2']}", f["sent1"], f["sent2"], "gold", *f["endings"]] +
             [label] * (split != "test") for i, (f, label, *_) in enumerate(rows)]   # no field holds a comma or a quote
    write_text(folder / f"{'val' if split == 'dev' else split}.csv",
               "".join(",".join(map(str, line)) + "\n" for line in [header] + lines))


def write_squad(version):
    """Writer of SQuAD JSON; the test split, too, carries its answers, as a second dev file."""
    def write(folder, split, rows):
        paragraphs = []
        for i, (f, *_) in enumerate(rows):
            # between spaces: "pan" must not be found in "pancake"
            answers = [] if f["answer"] is None else [
                {"text": f["answer"], "answer_start": f" {f['context']} ".index(f" {f['answer']} ")}]
            question = {"id": f"{split}-{i}", "question": f["question"], "answers": answers}
            paragraphs.append({"context": f["context"],
                               "qas": [question | ({"is_impossible": not answers} if version == "v2.0" else {})]})
        write_json(folder / f"{split}-{version}.json",
                   {"version": version, "data": [{"title": "mini", "paragraphs": paragraphs}]})
    return write


def write_tracie(folder, split, rows):
    write_text(folder / f"tracie_{split}.txt", "".join(
        f"event: {f['query']} story: {f['story']}\tanswer: {label}\n" for f, label, *_ in rows))


TASKS = {   # task -> (rows, writer)
    "SST-2": (sst2, write_sst2), "QNLI": (qnli, write_pair_tsv("question", "sentence")), "QQP": (qqp, write_qqp),
    "MNLI": (mnli, write_mnli), "diagnostics": (diagnostics, write_diagnostics), "PIQA": (piqa, write_piqa),
    "SWAG": (swag, write_swag), "SQuAD1": (squad, write_squad("v1.1")), "SQuAD2": (squad2, write_squad("v2.0")),
    "TRACIE": (tracie, write_tracie),
}


def make_tasks(world, seed, out):
    """Writes every task in its original format under out/TASK, and beside each split NAME.meta.jsonl.

    train.meta.jsonl etc. hold for each row its label, part, noun, the noun's group and property, for scoring by part;
    a reader of the original format never needs them. test holds task-test nouns, then unfilmed ones.
    """
    members = {group: [noun for noun in world if world[noun]["group"] == group] for group in GROUPS}
    for task, (make_rows, write) in TASKS.items():
        folder = Path(out) / task
        folder.mkdir(parents=True, exist_ok=True)
        for split, groups, plain in (("train", ["train"], 300), ("dev", ["validation"], 120), ("test", ["test", "unfilmed"], 360)):
            rows = []
            for group in groups:
                generator = numpy_generator(seed, "task", task, split, group)
                rows += make_rows(world, members[group], plain if group == groups[0] else 0, generator)
            if split == "train":
                rows = [rows[index] for index in numpy_generator(seed, "task order", task).permutation(len(rows))]
            write(folder, split, rows)
            write_text(folder / f"{split}.meta.jsonl", "".join(json.dumps(
                {"label": label, "part": part, "noun": noun, "group": noun and world[noun]["group"], "property": name})
                + "\n" for _, label, part, noun, name in rows))


def make_mini(seed, out, videos_a_noun, documents, workers):
    """`data.py mini`: writes one whole mini world into a folder (videos, captions, text, vocabulary, tasks).

    world.json is written last; a folder that has it, with the same arguments, is left as it is.
    """
    out = Path(out)
    arguments = {"seed": seed, "videos_a_noun": videos_a_noun, "documents": documents}
    done = out / "world.json"
    if done.exists():
        if read_json(done, "python data.py mini")["arguments"] != arguments:
            raise ValueError(f"{out} holds a world made with other arguments "
                             f"({read_json(done, '')['arguments']}); choose another --out or delete it")
        print(f"{done}: up to date")
        return
    (out / "videos").mkdir(parents=True, exist_ok=True)
    (out / "text").mkdir(exist_ok=True)
    world = make_world(seed)
    filmed = [noun for noun in world if world[noun]["group"] != "unfilmed"]

    names, jobs = [], []
    for take in range(videos_a_noun + 1):   # the last take of each noun is held out, for validation and retrieval
        for index, noun in enumerate(filmed):
            names.append((f"v{take:02d}_{index:03d}", noun, take == videos_a_noun))
            jobs.append((seed, names[-1][0], noun, world[noun], out / "videos"))
    with ProcessPoolExecutor(workers) as pool:
        made = list(tqdm(pool.map(make_video, *zip(*jobs), chunksize=16), total=len(jobs), unit="video", desc="videos"))
    captions, pool_rows = {}, []
    generator = numpy_generator(seed, "pool")
    pool_actions = iter(balanced(ACTIONS, len(filmed), generator))
    for (name, noun, held_out), (spoken, actions) in zip(names, made):
        captions[name] = dict(zip(("text", "rolled", "start", "end"), map(list, zip(*spoken))))
        if held_out:
            action = next(pool_actions)
            index = actions.index(action)
            shown = {key: world[noun][key] for key in ("colour", "shape", "size")}
            shown["behaviour"] = next(world[noun][key] for key in DYNAMIC if PROPERTIES[key][0] == action)
            pool_rows.append({"video": name, "start": index * CLIP_FRAMES / FPS, "end": (index + 1) * CLIP_FRAMES / FPS,
                              "text": SPOKEN[0].format(a=action, n=noun), "noun": noun,
                              "group": world[noun]["group"], "shown": shown})
    # One caption in twelve is spoken over another video's clip: texts of the same action change places among
    # training videos, so that the counts of nouns and actions stay exactly equal.
    slots = [(name, index) for (name, _, held_out), (_, actions) in zip(names, made) if not held_out
             for index in range(len(actions)) if generator.uniform() < 1 / 12]
    texts = [captions[name]["text"][index] for name, index in slots]
    for (name, index), text in zip(slots, texts[1:] + texts[:1]):
        captions[name]["text"][index] = text
    for entry in captions.values():   # rolled last: a repeated tail must be the tail of what really came before
        words, rolled = [text.split() for text in entry["text"]], entry.pop("rolled")
        entry["text"] = [" ".join((words[k - 1][-rolled[k]:] if rolled[k] else []) + words[k]) for k in range(len(words))]
    write_json(out / "caption.json", captions)
    write_json(out / "valid_ids.json", [name for name, _, held_out in names if held_out])
    write_json(out / "retrieval.json", pool_rows)

    write_text(out / "text" / "train.txt", "\n".join(make_text(world, seed, documents)) + "\n")
    write_text(out / "text" / "valid.txt", "\n".join(make_text(world, seed, max(50, documents // 30))) + "\n")
    make_tasks(world, seed, out / "tasks")
    # Every word a token: the vocabulary is trained on the text, the captions and all words of the tasks' training files.
    words = out / "words.txt"
    task_texts = [path.read_text() for path in sorted((out / "tasks").glob("*/*")) if path.name.split(".")[0] in
                  ("train", "train-v1", "tracie_train", "train_matched") and not path.name.endswith(".meta.jsonl")]
    write_text(words, "\n".join([" ".join(entry["text"]) for entry in captions.values()] + task_texts))
    train_tokenizer([out / "text" / "train.txt", words], 2048, out / "vocab.txt")
    words.unlink()
    pieces = load_tokenizer(out / "vocab.txt")
    broken = [noun for noun in NOUNS if len(pieces.encode(noun, add_special_tokens=False).ids) != 1]
    if broken:
        raise ValueError(f"nouns that are not one token: {', '.join(broken)}; write more --documents")
    write_json(done, {"arguments": arguments, "properties": PROPERTIES, "nouns": world})
    print(f"mini world {seed}: {len(world)} nouns, {len(names):,} videos of {CLIPS_A_VIDEO} clips, "
          f"{len(TASKS)} tasks, in {out}")


# ---------------------------------------------------------------------------------------------------------------------


def text_command(args):
    """`data.py text`: fetches the named corpora, then packs them and the given files; without either, lists corpora."""
    if not args.names and not args.train:
        return list_downloads("text")
    if not args.out or args.train and not args.vocab:
        raise ValueError("--out FOLDER is needed, and --vocab vocab.txt to pack")
    files = download("text", args.names, args.out, args.mirror)
    train, valid = ([path for path in files if f".{split}." in path.name] + given
                    for split, given in (("train", args.train), ("valid", args.valid)))
    if not train or not args.vocab:
        return print(f"fetched: {', '.join(map(str, files))}; add --vocab vocab.txt to pack a corpus")
    if bool(valid) == bool(args.valid_lines):
        raise ValueError("one of --valid FILES and --valid-lines N is needed")
    if args.valid_lines:
        train, valid = hold_out(text_files(train), args.valid_lines, args.min_words)
    for name, part in (("train", train), ("valid", valid)):
        pack_text(part, args.vocab, args.out, name, args.workers, args.cased, args.min_words)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    mini = commands.add_parser("mini", help="generate a mini world")
    mini.add_argument("--seed", type=int, default=0, help="redraws everything")
    mini.add_argument("--out", default="data/mini")
    mini.add_argument("--videos-a-noun", type=int, default=VIDEOS_A_NOUN, help="training videos of each filmed noun")
    mini.add_argument("--documents", type=int, default=10000, help="articles of text")
    video = commands.add_parser("video", help="videos -> features, captions -> tokens")
    video.add_argument("--videos", required=True, help="folder of video files, named ID.anything")
    video.add_argument("--captions", required=True, help="JSON {id: {text: [], start: [], end: []}}, seconds")
    video.add_argument("--vocab", required=True, help="vocab.txt")
    video.add_argument("--streams", nargs="+", default=["frame", "motion"], help=f"of: {', '.join(STREAMS)}")
    video.add_argument("--out", required=True)
    text = commands.add_parser("text", help="text -> packed tokens; without arguments: list what can be fetched")
    text.add_argument("names", nargs="*", help="corpora to fetch, then to pack with the files")
    text.add_argument("--train", nargs="+", default=[], help="text files, a paragraph a line, or folders of them")
    text.add_argument("--valid", nargs="+", default=[])
    text.add_argument("--valid-lines", type=int, help="in place of --valid: hold out the training text's last lines")
    text.add_argument("--min-words", type=int, default=MIN_WORDS, help="drop lines of fewer words between spaces; 1 "
                      "suits languages written without spaces")
    text.add_argument("--vocab", help="vocab.txt")
    text.add_argument("--out")
    for command in (mini, video, text):
        command.add_argument("--workers", type=int, default=os.cpu_count())
    for command in (video, text):
        case = command.add_mutually_exclusive_group()
        case.add_argument("--cased", action="store_true", default=None, help="keep capitals and accents; by default as "
                          "tokenizer_config.json beside the vocabulary says, else as its entries show")
        case.add_argument("--uncased", action="store_false", dest="cased", default=None)
    tasks = commands.add_parser("tasks", help="fetch task files; without names: list them")
    tasks.add_argument("--out", default="data/glue")
    weights = commands.add_parser("weights", help="fetch networks and a vocabulary; without names: list them")
    weights.add_argument("--out", default="data/weights")
    for command in (tasks, weights):
        command.add_argument("names", nargs="*", help="of the list, or `all`")
    for command in (text, tasks, weights):
        command.add_argument("--mirror", help="fetch URL/FILE NAME instead of from the publisher")
    args = parser.parse_args()
    try:
        if args.command == "mini":
            make_mini(args.seed, args.out, args.videos_a_noun, args.documents, args.workers)
        elif args.command == "video":
            if args.cased is not None:   # it is the copy in the data folder that counts from here on
                Path(args.out).mkdir(parents=True, exist_ok=True)
                args.vocab = keep_vocab(args.vocab, args.out, args.cased)
            make_features(args.videos, args.captions, args.vocab, args.streams, args.out, args.workers)
        elif args.command == "text":
            text_command(args)
        elif args.names:
            download(args.command, args.names, args.out, args.mirror)
        else:
            list_downloads(args.command)
    except (OSError, ValueError, DownloadError) as error:
        sys.exit(f"data.py {args.command}: {error}")


if __name__ == "__main__":
    main()
