"""Which examples does this process see? Text, captions, video features, masks, and the mini world.

    python data.py mini  --seed 0 --out data/mini                       # a generated world: videos, text, tasks
    python data.py video --videos data/mini/videos --captions data/mini/caption.json --vocab data/mini/vocab.txt \\
                         --streams frame motion --out data/mini          # video -> features, captions -> tokens
    python data.py video --videos DIR --captions FILE --streams resnet152 resnext101 --shard 3/64 --out DIR
    python data.py bank  --data data/mini --split train --clips 2000 --block 32     # clips for retrieval and vokens
    python data.py text  --train data/mini/text/train.txt --valid data/mini/text/valid.txt \\
                         --vocab data/mini/vocab.txt --out data/mini/text    # text -> packed tokens
    python data.py text  wikitext-103-raw --vocab vocab.txt --out data/wiki  # fetched first; bare: what there is
    python data.py tasks CoLA SQuAD1 --out data/tasks                        # published task files; bare: what there is
    python data.py weights resnet152 bert-base-uncased --out data/weights

Sections: processes, randomness, log; tokenizer; text -> packed tokens; downloads; captions -> packed tokens; video ->
features; datasets; masking; the mini world (its own rule, last). Ranks live here because a rank's only meaning in this
project is which rows of a global batch it takes.
Axes: B sequences, L tokens, T video steps, D feature width. Masks are True for real tokens and real steps.
"""
import argparse
import codecs
import csv
import hashlib
import html
import http.client
import json
import math
import multiprocessing
import os
import platform
import re
import resource
import shutil
import stat
import subprocess
import sys
import time
import urllib.request
import zipfile
import zlib
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from fractions import Fraction
from functools import lru_cache, partial
from itertools import chain, islice, repeat
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import av
import numpy as np
import tokenizers
import torch
import torch.distributed as dist
import torch.nn.functional as F
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
        tensor = value
        if not torch.is_tensor(value):
            tensor = torch.tensor(float(value), dtype=torch.float64, device=self.device)
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
        """Leaves the process group, all together: gloo can abort a process whose partner still talks as it goes."""
        if self.world > 1:
            dist.barrier()
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
    """Dropout's masks for this step, others on every rank; called at the top of each step, so that resuming is exact."""
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
            # lines past the checkpoint will be written again; a cut last line is dropped
            lines = Path(path).read_text().splitlines() if Path(path).exists() else []
            write_text(path, "".join(line + "\n" for line in lines
                                     if line.endswith("}") and json.loads(line)["step"] <= resume_step))
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
    def git(*words):   # None: no git, or no repository
        try:
            answer = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True)
        except FileNotFoundError:
            return None
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
    """Reads vocab.txt, or of a folder its vocab.txt, else its tokenizer.json, into a tokenizers.Tokenizer.

    `encode(text).ids` then holds [CLS] ... [SEP]; pass add_special_tokens=False for the bare pieces. cased: True or
    False overrides normalizer_of. Raises FileNotFoundError naming what makes the file, ValueError if one of BERT's five
    special tokens is not in it or an entry stands twice.
    """
    path = _vocab_file(path)
    if path.exists():
        try:   # not splitlines(): it also cuts at U+2028 and its like, which stand in real vocabularies
            words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a vocabulary: not UTF-8 (byte {error.start})") from None
        vocabulary = {word: index for index, word in enumerate(words)}
        if len(vocabulary) < len(words):   # a model's own vocab.txt would leave one out and number the rest anew
            twice = next(index for index, word in enumerate(words) if vocabulary[word] != index)
            raise ValueError(f"{path}, line {twice + 1}: {words[twice]!r} stands again in line "
                             f"{vocabulary[words[twice]] + 1}; replace one by [unusedN], N of your choice")
    elif (whole := path.with_name("tokenizer.json")).exists():   # all that transformers 5 saves
        found = read_json(whole, "").get("model", {})
        if found.get("type") != "WordPiece":
            raise ValueError(f"{whole} holds a {found.get('type')} tokenizer, BERT's is WordPiece")
        vocabulary = found["vocab"]
    else:
        raise FileNotFoundError(f"no vocabulary at {path}; `python data.py mini` trains one, and for the sizes small "
                                f"and base `python data.py weights bert-base-uncased` fetches one")
    missing = [token for token in SPECIAL if token not in vocabulary]
    if missing:
        raise ValueError(f"{path} is not a BERT vocabulary: it lacks {', '.join(missing)}")
    normalizer = normalizer_of(path.parent, vocabulary) if cased is None else {"lowercase": not cased}
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
    tokenizer, counts = _bert_tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"), lowercase=not cased), Counter()
    for file in files:
        for line in open(file, encoding="utf-8"):
            line = tokenizer.normalizer.normalize_str(line)
            counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(line))
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
    tokenizer, vocab, kept = load_tokenizer(vocab, cased), _vocab_file(vocab), Path(folder) / "vocab.txt"
    normalizer, pieces = tokenizer.normalizer, tokenizer.get_vocab()
    if not vocab.exists():   # a folder with tokenizer.json alone
        write_text(kept, "".join(piece + "\n" for piece in sorted(pieces, key=pieces.get)))
    elif vocab.resolve() != kept.resolve():
        shutil.copyfile(vocab, kept.with_suffix(".tmp"))
        os.replace(kept.with_suffix(".tmp"), kept)
    write_json(kept.with_name("tokenizer_config.json"), {
        "tokenizer_class": "BertTokenizer", "do_lower_case": normalizer.lowercase,
        "strip_accents": normalizer.strip_accents, "tokenize_chinese_chars": normalizer.handle_chinese_chars})
    return kept


def file_hash(path):
    """sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_hash(tokenizer):
    """sha256 of all that decides which tokens a text becomes: pieces and how text is normalised."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


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


def last_lines(files, lines, min_words=MIN_WORDS):
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
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    ranges = []
    for part in files:
        ranges += [part] if isinstance(part, tuple) else [(path, 0, path.stat().st_size) for path in text_files([part])]
    tokenizer = load_tokenizer(vocab, cased)
    listing = [[path.name, path.stat().st_size, path.stat().st_mtime_ns, start, stop] for path, start, stop in ranges]
    source = {"files": len({path for path, *_ in ranges}), "bytes": sum(stop - start for _, start, stop in ranges),
              "listing_sha256": hashlib.sha256(json.dumps(listing).encode()).hexdigest(), "min_words": min_words,
              "tokenizer_sha256": tokenizer_hash(tokenizer)}
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
    print(f"{out / name}.bin: {total:,} tokens, {'uncased' if tokenizer.normalizer.lowercase else 'cased'}")


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
        raise DownloadError(f"{path}: {error.strerror}; make room and start again") from None


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
# Captions -> packed tokens. HowTo100M's are 3.4 GB of JSON, 1.2 M videos and 136 M captions, so they are read one video
# at a time, and written as flat files that every process maps instead of reading: captions/tokens.bin, all tokens;
# bounds.bin, where each caption's tokens begin (int64: 2^31 tokens are near); times.bin, start and end in seconds
# (float32: 4 ms at ten hours); spans.bin, each video's first caption and the one after its last; and, written last,
# index.json with the ids in sorted order, the row order of spans.

CAPTION_ARRAYS = ("tokens", "bounds", "times", "spans")
BLANKS = re.compile(r"[ \t\n\r]*")   # JSON's
BESIDE = (".srt", ".vtt", ".en.srt", ".en.vtt", ".csv")   # endings of a caption file beside a video; the first is taken
TIMING = re.compile(r"\s*{0}\s*-->\s*{0}(\s.*)?".format(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d[.,]\d{1,3})"))
MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|<[\d:.]+>|\{\\[^}]*\}")   # <c>, </i>, <00:00:01.000>, {\an8}; not "a < b"


def json_entries(path, bar, piece=1 << 22):
    """Yields (key, value) of a file that is one JSON object, holding one entry and `piece` bytes of it at a time.

    bar: counts the bytes read. Raises ValueError naming file, line, byte and key where it is not JSON or not UTF-8.
    """
    decoder, ended, mark, key = codecs.getincrementaldecoder("utf-8")(), False, "{", None
    text, at, line, byte = "", 0, 1, 0   # the buffer, the place in it, and of its beginning the file's line and byte
    with open(path, "rb") as file:
        while mark != "}":
            try:
                key, value, mark, at = _json_pair(text, at, mark)
            except json.JSONDecodeError as error:
                # Cut off by the buffer's end, or wrong? What the end cuts fails there, or is a string without its end.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(text) - 16
                if ended or not cut:
                    here = re.match(r'[{\s]*"([^"]*)"\s*:', text[at:at + 1000])
                    raise ValueError(f"{path}, line {line + text.count(chr(10), 0, error.pos)}, byte "
                                     f"{byte + len(text[:error.pos].encode())}, "
                                     + (f"in video {here[1]!r}" if here else f"after video {key!r}") +
                                     f": not one JSON object of videos ({error.msg})") from None
                line, byte = line + text.count("\n", 0, at), byte + len(text[:at].encode())
                raw, begun = file.read(piece), len(decoder.getstate()[0])
                ended = not raw
                bar.update(len(raw))
                try:
                    text, at = text[at:] + decoder.decode(raw, ended), 0
                except UnicodeDecodeError as error:
                    place = file.tell() - len(raw) - begun + error.start
                    raise ValueError(f"{path}, byte {place}, after video {key!r}: not UTF-8 ({error.reason})") from None
                continue
            if key is not None:
                yield key, value
        if text[at:].strip() or file.read(1 << 20).strip():
            raise ValueError(f"{path}, after video {key!r}: more follows the }} that ends the object")


def _json_pair(text, at, mark):
    """`"key": value` at text[at:], and the , or } that ends it -> (key, value, that mark, the place after it)."""
    def expect(marks, at):
        at = BLANKS.match(text, at).end()
        if at == len(text) or text[at] not in marks:
            raise json.JSONDecodeError(f"expected {' or '.join(marks)}", text, at)
        return text[at], at + 1

    scan = json.JSONDecoder().raw_decode
    if mark == "{":   # the first pair; a byte order mark may stand before it
        _, at = expect("{", at + text.startswith("\ufeff", at))
        if text.startswith("}", BLANKS.match(text, at).end()):
            return None, None, *expect("}", at)
    expect('"', at)
    key, at = scan(text, BLANKS.match(text, at).end())
    _, at = expect(":", at)
    value, at = scan(text, BLANKS.match(text, at).end())
    return key, value, *expect(",}", at)


def is_unicode(text):
    """False for text with half of a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_captions(entry, video, path):
    """Raises ValueError naming file, video and caption, unless entry is {"text": [], "start": [], "end": []}, seconds.

    Whether the times make sense is not asked here: pack_captions lists and leaves out a caption whose do not. None and
    NaN, a table's mark of an empty cell, become empty texts.
    """
    if not isinstance(entry, dict) or not {"text", "start", "end"} <= set(entry):
        raise ValueError(f"{path}: video {video!r} needs the keys text, start and end")
    lengths = [len(entry[key]) if isinstance(entry[key], list) else None for key in ("text", "start", "end")]
    if None in lengths or len(set(lengths)) != 1:
        raise ValueError(f"{path}: video {video!r}: text, start and end must be lists of one length, not {lengths}")
    kinds = [set(map(type, entry[key])) for key in ("text", "start", "end")]
    if kinds[0] <= {str} and kinds[1] | kinds[2] <= {int, float} and is_unicode("".join(entry["text"])):
        return
    entry["text"] = ["" if text is None or text != text else text for text in entry["text"]]
    for number, (text, start, end) in enumerate(zip(entry["text"], entry["start"], entry["end"])):
        if type(text) is not str or not is_unicode(text) or not {type(start), type(end)} <= {int, float}:
            raise ValueError(f"{path}: video {video!r}, caption {number}: needs a text and two numbers, "
                             f"not {text!r}, {start!r}, {end!r}")


def csv_rows(path, columns):
    """Yields (line number, {column: cell}) of a CSV with a header. Raises ValueError naming file and line."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in columns if name not in (reader.fieldnames or [])]
            if missing:
                raise ValueError(f"{path}, line 1: no column {', '.join(missing)}; found "
                                 f"{', '.join(reader.fieldnames or [])}")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"{path}, line {reader.line_num}: needs {len(reader.fieldnames)} cells")
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}: {error}") from None   # the row's first line
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {reader.line_num + 1} or soon after: not UTF-8 ({error.reason})") from None


def csv_captions(path, video):
    """{video id: captions} of a CSV of start, end, text; with a video_id too, of many videos, else of `video`.

    Held in memory at once, since a table's videos need not stand together.
    """
    found = {}
    for line, row in csv_rows(path, ("start", "end", "text")):
        entry = found.setdefault(row.get("video_id", video), {"text": [], "start": [], "end": []})
        try:
            entry["start"].append(float(row["start"])), entry["end"].append(float(row["end"]))
        except ValueError:
            raise ValueError(f"{path}, line {line}: start and end must be seconds, not {row['start']!r}, "
                             f"{row['end']!r}") from None
        entry["text"].append(row["text"])
    return found


def subtitles(path):
    """The captions of an .srt or .vtt file, without markup, a cue's lines joined. Raises ValueError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")   # read_text has made \r\n and \r to \n
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, byte {error.start}: not UTF-8 ({error.reason})") from None
    webvtt = path.suffix.lower() == ".vtt"
    if webvtt and not lines[0].startswith("WEBVTT"):
        raise ValueError(f"{path}, line 1: not WebVTT, which begins with WEBVTT")
    entry, spoken = {"text": [], "start": [], "end": []}, None   # None: between cues, where numbers, NOTE, STYLE stand
    for number, line in enumerate([*lines, ""], 1):
        if "-->" in line or not (line if webvtt else line.strip()):   # YouTube's cues hold lines of one blank
            if spoken is not None:
                entry["text"].append(" ".join(html.unescape(MARKUP.sub("", " ".join(spoken))).split()))
            spoken = None
        if "-->" in line:
            timing = TIMING.fullmatch(line)
            if not timing:
                raise ValueError(f"{path}, line {number}: malformed times {line!r}")
            for key, (hours, minutes, seconds) in zip(("start", "end"), (timing.groups()[:3], timing.groups()[3:6])):
                entry[key].append(3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", ".")))
            spoken = []
        elif spoken is not None:
            spoken.append(line)
    return entry


def caption_files(source, ids):
    """[(path, video id)]: of a folder, the caption files of `ids`; of one file, that (JSON holds ids of its own)."""
    source = Path(source)
    if source.is_dir():
        names = {path.name for path in source.iterdir()}
        beside = {video: [video + end for end in BESIDE if video + end in names] for video in sorted(ids)}
        return [(source / found[0], video) for video, found in beside.items() if found]
    if not source.exists():
        raise FileNotFoundError(f"{source} is missing; `python data.py mini` makes the mini world's captions")
    if source.suffix.lower() not in (".json", ".csv", ".srt", ".vtt"):
        raise ValueError(f"{source}: captions are a .json, .csv, .srt or .vtt file, or a folder of them")
    return [(source, source.stem.removesuffix(".en"))]


def read_captions(source, ids, title):
    """Yields (video id, {"text": [], "start": [], "end": []}) of --captions, one video at a time, in the file's order.

    source: HowTo100M's JSON, a CSV, or a folder of ID.srt, ID.vtt, ID.csv for the ids. Shows progress under `title`.
    Raises ValueError naming file and place; also where a video occurs twice.
    """
    files, seen = caption_files(source, ids), set()
    with tqdm(total=sum(path.stat().st_size for path, _ in files), unit="B", unit_scale=True, desc=title) as bar:
        for path, name in files:
            kind = path.suffix.lower()
            for video, entry in (json_entries(path, bar) if kind == ".json" else csv_captions(path, name).items()
                                 if kind == ".csv" else [(name, subtitles(path))]):
                check_captions(entry, video, path)
                if video in seen:
                    raise ValueError(f"{path}: video {video!r} occurs twice")
                seen.add(video)
                yield video, entry
            bar.update(0 if kind == ".json" else path.stat().st_size)


def overlap(previous, following, inside=frozenset()):
    """How many of the first tokens of `following` repeat the last tokens of `previous` (rolling speech captions).

    inside: tokens that go on with a word; nothing is cut in front of one, so "bake" does not roll into "baking".
    """
    for count in range(min(len(previous), len(following)), 0, -1):   # the longest first
        if (previous[-count] == following[0] and previous[-count:] == following[:count]
                and not (count < len(following) and following[count] in inside)):
            return count
    return 0


def unroll(entry, pieces, seconds, inside):
    """What of one video's captions can be used: -> ([(token ids, start, end)], [(caption number, why it cannot)]).

    pieces: token ids of each caption; seconds: of video. In order of time; the part of a caption that repeats the end
    of the one before is removed, and a caption without anything new, or without a text, is passed over.
    """
    used, left_out, previous = [], [], []
    timed = [number for number, (start, end) in enumerate(zip(entry["start"], entry["end"])) if 0 <= start < end]
    if len(timed) < len(pieces):
        left_out = [(number, f"{entry['start'][number]} to {entry['end'][number]} s is no stretch of time")
                    for number in sorted(set(range(len(pieces))) - set(timed))]
    for number in sorted(timed, key=entry["start"].__getitem__):
        start, end, ids = entry["start"][number], entry["end"][number], pieces[number]
        if start >= seconds:
            left_out.append((number, f"starts at {start} s, the video ends at {seconds} s"))
        elif ids:
            new, previous = ids[overlap(previous, ids, inside):], ids
            if new:
                used.append((new, start, min(end, seconds)))
    return used, left_out


def pack_captions(source, durations, vocab, out, cased=None):
    """Tokenises the captions of the videos in `durations` ({id: seconds}) into out/captions/ (see the section's head).

    Does nothing if that was done from the same files. Captions whose times make no sense are listed in
    captions/left_out.tsv (video, caption number, reason). Returns how many captions were "read", how many "kept".
    """
    folder, ids = Path(out) / "captions", sorted(durations)
    files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path, _ in caption_files(source, ids)]
    made_from = {name: hashlib.sha256(json.dumps(value).encode()).hexdigest() for name, value in
                 (("captions", files), ("videos", [[video, durations[video]] for video in ids]))}
    tokenizer = load_tokenizer(vocab, cased)
    made_from["tokenizer"] = tokenizer_hash(tokenizer)
    if (folder / "index.json").exists() and all((folder / f"{name}.bin").exists() for name in CAPTION_ARRAYS):
        index = read_json(folder / "index.json", "python data.py video")
        if index["made_from"] == made_from:
            print(f"{folder}: up to date")
            return index["counts"]
    folder.mkdir(exist_ok=True)
    kind = smallest_integer(tokenizer.get_vocab_size())
    inside = frozenset(index for piece, index in tokenizer.get_vocab().items() if piece.startswith("##"))
    counts, spans = {"read": 0, "kept": 0, "tokens": 0}, {}
    with ExitStack() as stack:
        arrays = [stack.enter_context(open(folder / f"{name}.bin.tmp", "wb")) for name in CAPTION_ARRAYS[:3]]
        listed = stack.enter_context(open(folder / "left_out.tsv", "w", encoding="utf-8"))
        arrays[1].write(np.int64(0).tobytes())
        usable = (pair for pair in read_captions(source, ids, "captions") if pair[0] in durations)
        while videos := list(islice(usable, 200)):   # the tokenizer spreads a large batch over all cores
            texts = [text for _, entry in videos for text in entry["text"]]
            encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
            tokens, bounds, times = [], [], []
            for video, entry in videos:
                used, left_out = unroll(entry, [next(encoded).ids for _ in entry["text"]], durations[video], inside)
                spans[video] = counts["kept"] + len(times), counts["kept"] + len(times) + len(used)
                for new, start, end in used:
                    tokens.extend(new), bounds.append(counts["tokens"] + len(tokens)), times.append((start, end))
                listed.writelines(f"{video}\t{number}\t{reason}\n" for number, reason in left_out)
            for file, values, of in zip(arrays, (tokens, bounds, times), (kind, np.int64, np.float32)):
                file.write(np.array(values, of).tobytes())
            for key, more in (("read", texts), ("kept", times), ("tokens", tokens)):
                counts[key] += len(more)
    if not counts["kept"]:
        raise ValueError(f"{source}: not one caption that can be used; those with wrong times are in {listed.name}")
    np.array([spans[video] for video in sorted(spans)], np.int64).tofile(folder / "spans.bin.tmp")
    (folder / "index.json").unlink(missing_ok=True)   # it vouches for the arrays: goes before them and comes after
    for name in CAPTION_ARRAYS:
        os.replace(folder / f"{name}.bin.tmp", folder / f"{name}.bin")
    write_json(folder / "index.json", {
        "counts": counts, "dtype": np.dtype(kind).name, "made_from": made_from, "ids": sorted(spans),
        "sha256": {name: file_hash(folder / f"{name}.bin") for name in CAPTION_ARRAYS}})
    return counts


def hold_out(ids, count, folder):
    """The held-out videos as a set: those of folder/valid_ids.json where it brings one, else `count` of them.

    Those whose id has the smallest sha256, so that adding videos moves few others. count None: 10,000 or a fiftieth,
    whichever is fewer (the paper held out 10,000). Raises ValueError if none would be left to train on.
    """
    if (Path(folder) / "valid_ids.json").exists():
        return set(read_json(Path(folder) / "valid_ids.json", "python data.py mini")).intersection(ids)
    if count is None:
        count = min(10000, max(1, len(ids) // 50)) if len(ids) > 1 else 0
    if not 0 <= count < len(ids):
        raise ValueError(f"--held-out {count} of {len(ids)} videos leaves none to train on")
    return set(sorted(ids, key=lambda video: hashlib.sha256(video.encode()).digest())[:count])


def listed_videos(path, category=None):
    """The ids in a CSV such as HowTo100M_v1.csv (column video_id); with a category, of rows whose category_1 it is."""
    rows = csv_rows(path, ("video_id", "category_1") if category else ("video_id",))
    ids = {row["video_id"] for _, row in rows if not category or row["category_1"] == category}
    if not ids:
        raise ValueError(f"{path}: no row" + (f" with category_1 {category!r}" if category else ""))
    return ids


# ---------------------------------------------------------------------------------------------------------------------
# Video -> features. One decode of a file feeds every stream; a stream is a folder features/NAME of [T, D] float16
# arrays, one a video, beside stream.json with its rate. Any other extractor's arrays laid out so are one more stream.

FPS, SIDE = 8, 48            # the small descriptors look at 8 frames a second of 48 x 48 pixels
WINDOW, HOP = 4, 4           # the motion descriptor's window and step, in frames


# what else lies in folders of videos: captions, and the thumbnails and notes that downloaders leave
NO_FILM = ".json", ".csv", ".srt", ".vtt", ".jpg", ".png", ".webp", ".description", ".txt", ".part", ".ytdl"


class VideoError(Exception):
    """Why one video cannot be used; the caller lists it and goes on."""


class OnDisplay:
    """A view of a video: picture k is the frame on display at time k / FPS, SIDE x SIDE; the first serves before it."""

    def __init__(self):
        self.count, self.frame, self.picture = 0, None, None
        self.scaler = av.video.reformatter.VideoReformatter()   # one for all; frame.reformat would set one up for each

    def push(self, frame, time):
        """Takes the frame that is on display from `time` on; returns the pictures [SIDE, SIDE, 3] due before it."""
        pictures = self.close(time)
        self.frame, self.picture = frame, None
        return pictures

    def close(self, time):
        """The pictures due before `time`, the end of the video."""
        pictures = []
        # 1e-4 s of tolerance: container times are rounded, and 0.12499 s means 0.125 s
        while self.frame is not None and self.count / FPS < time - 1e-4:
            if self.picture is None:
                self.picture = self.scaler.reformat(self.frame, SIDE, SIDE, format="rgb24").to_ndarray()
            pictures.append(self.picture)
            self.count += 1
        return pictures


class Filtered:
    """A view of a video: what `ffmpeg -vf fps=F,scale=W:H[,crop=S:S] -pix_fmt rgb24` shows, by ffmpeg's own filters.

    The short side becomes `size` pixels, by the rule and in the order of HowTo100M's extractor (antoine77340's
    video_feature_extractor); crop: the middle size x size of it. Rejected: choosing and scaling frames by hand, which
    agrees with the features that others have made only until the first odd frame rate.
    """

    def __init__(self, fps, size, crop):
        self.fps, self.size, self.crop, self.graph = fps, size, crop, None

    def _build(self, frame):
        # A phone's portrait video is stored lying. Like the ffmpeg command we turn it; unlike that extractor, which
        # would squeeze it, we scale by the sides as turned.
        angle, size = round(frame.rotation) % 360, self.size
        turn = {90: ["transpose=cclock"], 180: ["hflip", "vflip"], 270: ["transpose=clock"]}.get(angle, [])
        h, w = (frame.width, frame.height) if angle in (90, 270) else (frame.height, frame.width)
        height, width = (int(h * size / w), size) if h >= w else (size, int(w * size / h))
        crop = [f"crop={size}:{size}:{(width - size) // 2}:{(height - size) // 2}"] if self.crop else []
        source = (f"buffer=video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:pixel_aspect=1/1:"
                  f"time_base={frame.time_base}:colorspace={int(frame.colorspace)}:range={int(frame.color_range)}")
        # start_time: as with the command, the first frame fills the time before it
        steps = [source, *turn, f"fps={self.fps}:start_time=0", f"scale={width}:{height}:flags=bicubic", *crop,
                 "format=rgb24", "buffersink"]
        self.graph = av.filter.Graph()
        self.graph.threads = 1   # the caller runs one process a core
        self.graph.link_nodes(*[self.graph.add(*step.split("=", 1)) for step in steps]).configure()

    def push(self, frame, time):
        """Takes the next decoded frame; returns the pictures [H, W, 3] that are due."""
        if self.graph is None:
            self._build(frame)   # later frames may have another size or format: the scale filter follows
        self.graph.vpush(frame)
        return self._pull()

    def close(self, time):
        """The pictures that are due at the end of the video."""
        if self.graph is None:
            return []
        self.graph.vpush(None)
        return self._pull()

    def _pull(self):
        pictures = []
        while True:
            try:
                pictures.append(self.graph.vpull().to_ndarray())
            except (av.BlockingIOError, av.EOFError):
                return pictures


def timed_frames(container, stream):
    """Decodes a stream; every frame has a pts, counted from the container's start, and a duration."""
    beginning = Fraction(container.start_time or 0, av.time_base)   # seconds
    faults, before = [0, 0], [-math.inf, -math.inf]
    for frame in container.decode(stream):
        # ffmpeg's best guess, which PyAV does not pass on: old AVIs have display times that run backwards, or none, and
        # decoding times to put in their place
        for index, stamp in enumerate((frame.pts, frame.dts)):
            faults[index] += stamp is None or stamp <= before[index]
            before[index] = before[index] if stamp is None else stamp
        if frame.pts is None or (frame.dts is not None and faults[0] > faults[1]):
            frame.pts = frame.dts
        if frame.pts is None:
            raise VideoError("frames without a time")
        frame.pts -= round(beginning / frame.time_base)
        if not frame.duration and stream.guessed_rate:   # the last frame's says when the video ends
            frame.duration = round(1 / (stream.guessed_rate * frame.time_base))
        yield frame


def decode(path, views):
    """Decodes a video once, for several views. Yields (view, its new pictures uint8 [h, w, 3], seconds so far).

    Time runs from the container's start, where players, and so captions, count from. Raises VideoError with the reason
    where the file is no video, or ends long before it says it does.
    """
    seconds = 0.0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:   # a song's cover
                raise VideoError("no video stream")
            if stream.codec_context is None:
                raise VideoError("in a format that FFmpeg cannot decode")
            stream.codec_context.thread_count = 1   # the caller runs one process a core
            for frame in timed_frames(container, stream):
                if frame.time - seconds > 60:
                    raise VideoError("its timestamps jump by more than a minute")
                for view in views:
                    yield view, view.push(frame, frame.time), seconds
                seconds = max(seconds, float((frame.pts + frame.duration) * frame.time_base))
            # Matroska states the length of the whole file alone, and its sound may outlast the picture: a looser bound
            stated = stream.duration is not None
            declared = float(stream.duration * stream.time_base) if stated else (container.duration or 0) / av.time_base
            if declared - seconds > (max(1, 0.05 * declared) if stated else max(5, 0.2 * declared)):
                raise VideoError(f"cut: it ends after {seconds:.1f} of {declared:.1f} seconds")
        for view in views:
            yield view, view.close(seconds), seconds
    except (av.FFmpegError, OSError, ValueError) as error:   # ValueError: a pixel format PyAV cannot convert
        raise VideoError(f"cannot be decoded ({getattr(error, 'strerror', None) or error})") from None


def film_files(folder):
    """{id: path} of the films in a folder."""
    films = {}
    for path in sorted(Path(folder).glob("*")):
        if path.is_file() and path.name[0] != "." and path.suffix.lower() not in NO_FILM:
            films[path.stem] = path
    return films


def clip_pictures(path, start, end, fps, size):
    """Seconds start..end of a film as pictures uint8 [h, w, 3], short side `size`. Raises VideoError."""
    view = Filtered(fps, size, False)
    pictures = []
    for _, shown, _ in decode(path, [view]):
        pictures += shown
    pictures = pictures[round(start * fps):round(end * fps)]
    if not pictures:
        raise VideoError(f"no frame between {start} and {end} s")
    return pictures


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
    if N < WINDOW:
        return np.zeros((0, 40), np.float32)
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
    u, ux, uy, v, vx, vy = flow.T                                                # flow = u + ux dx + uy dy, ...
    affine = np.stack([u, v, ux + vy, vx - uy, ux - vy, uy + vx, np.hypot(u, v)], 1)         # [N-1, 7]
    cells = [(-g * change).reshape(pairs, 4, S // 4, 4, S // 4).mean((2, 4)).reshape(pairs, -1) for g in (gx, gy)]
    each = np.concatenate([affine, 1000 * cells[0], 1000 * cells[1]], 1)                     # [N-1, 39]
    out = []
    for start in range(0, N - WINDOW + 1, HOP):
        window = each[start:start + WINDOW - 1]
        gain = window[WINDOW // 2:, 6].mean() - window[:WINDOW // 2 - 1, 6].mean()
        out.append(np.append(window.mean(0), gain.clip(-2, 2)))
    return np.stack(out).astype(np.float32)                                                  # [M, 40]


def prepare_frames(frames):
    """Frames as ResNet-152 takes them: uint8 [N, H, W, 3] -> float [N, 3, H, W], in 0..1, less mean, over deviation."""
    mean = torch.tensor((0.485, 0.456, 0.406), device=frames.device)
    std = torch.tensor((0.229, 0.224, 0.225), device=frames.device)
    return ((frames / 255 - mean) / std).permute(0, 3, 1, 2)


def prepare_windows(frames):
    """Windows of 16 frames as 3D ResNeXt-101 takes them: uint8 [N, H, W, 3] -> float [ceil(N / 16), 3, 16, H, W].

    Zero frames fill the last window before the mean is taken off, so they are not zero in the end: HowTo100M's way.
    """
    frames = F.pad(frames, (0, 0, 0, 0, 0, 0, 0, -len(frames) % 16))
    frames = frames - torch.tensor((110.6, 103.2, 96.3), device=frames.device)
    return frames.unflatten(0, (-1, 16)).permute(0, 4, 1, 2, 3)


class Stream(NamedTuple):
    """How a stream is made. Its pictures come in batches while decoding goes on, so an hour of video needs no more
    memory than a minute."""
    view: object        # makes the view that it looks at; streams that name the same one share it
    batch: int          # pictures
    function: object    # uint8 [n <= batch, h, w, 3] -> features [steps, D]; for a CNN, on tensors -> its input
    cnn: bool           # a frozen network of model.CNNS, named like the stream?
    rate: float         # steps a second
    width: int          # D
    frames_seen: int    # frames that one step sees


STREAMS = {
    "frame": Stream(OnDisplay, 512, lambda frames: frame_descriptor(frames[::HOP]), False, FPS / HOP, 56, 1),
    "motion": Stream(OnDisplay, 512, motion_descriptor, False, FPS / HOP, 40, WINDOW),
    "resnet152": Stream(partial(Filtered, 1, 224, False), 16, prepare_frames, True, 1.0, 2048, 1),
    "resnext101": Stream(partial(Filtered, 24, 112, True), 8 * 16, prepare_windows, True, 24 / 16, 2048, 16),
}


@lru_cache
def cnn_function(name, weights, device, precision):
    """A frozen CNN as a function: uint8 [n, h, w, 3] -> unit features [steps, 2048]. Loaded once a process."""
    from model import load_cnn   # here only: no other command needs a network
    dtype = settle_precision(precision, torch.device(device))[1] or torch.float32
    torch.backends.cudnn.allow_tf32 = False   # else fp32 convolutions on CUDA keep 10 bits, where the published kept 23
    network = load_cnn(name, weights).to(device, dtype)

    @torch.inference_mode()
    def function(frames):
        inputs = STREAMS[name].function(torch.from_numpy(frames).to(device))
        return F.normalize(network(inputs.to(dtype)).float(), dim=1).cpu().numpy()
    return function


def describe(path, functions):
    """Decodes one video once and computes its streams. functions: {stream: function}.

    Returns ({stream: float16 [T, D]}, seconds of video). Raises VideoError with the reason where a stream has no step.
    """
    views = {STREAMS[name].view: STREAMS[name].view() for name in functions}
    waiting, features = [{name: [] for name in functions} for _ in range(2)]

    def work(name):
        if waiting[name]:
            with np.errstate(over="ignore"):   # what float16 cannot hold becomes infinite, and is refused below
                features[name].append(functions[name](np.stack(waiting[name])).astype(np.float16))
            waiting[name] = []

    for view, pictures, seconds in decode(path, list(views.values())):
        for name in functions:
            if views[STREAMS[name].view] is view:
                for picture in pictures:
                    waiting[name].append(picture)
                    if len(waiting[name]) == STREAMS[name].batch:
                        work(name)
    for name in functions:
        work(name)
        features[name] = np.concatenate(features[name] or [np.zeros((0, 1), np.float16)])
        if len(features[name]) == 0:
            raise VideoError(f"{seconds:.2f} seconds are too short for one step of {name}")
        if not np.isfinite(features[name]).all():
            raise VideoError(f"stream {name} is not finite")
    return features, round(seconds, 3)


def extract(path, out, streams, cnn_settings):
    """Writes each stream's features of one video. Returns (id, seconds of video, None or the reason why not)."""
    video = Path(path).stem
    functions = {name: cnn_function(name, *cnn_settings) if STREAMS[name].cnn else STREAMS[name].function
                 for name in streams}
    try:
        features, seconds = describe(path, functions)
    except VideoError as reason:
        return video, 0.0, " ".join(str(reason).split())   # one line of left_out.tsv
    for name in streams:
        target = Path(out) / "features" / name / f"{video}.npy"
        np.save(target.with_suffix(".tmp.npy"), features[name])
        os.replace(target.with_suffix(".tmp.npy"), target)
    return video, seconds, None


def read_stream(folder, made_by):
    """stream.json of a feature folder, ours or anyone's, as a dict: rate, width, frames_seen (1 if not given).

    Raises FileNotFoundError / ValueError that say what to write where it is missing or malformed.
    """
    path = Path(folder) / "stream.json"
    form = '{"rate": steps a second, "width": D, "frames_seen": frames a step sees} for arrays [T, D] named ID.npy'
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. `{made_by}` writes it for its own streams; beside features made "
                                f"by another tool, write it yourself: {form}")
    found = read_json(path, made_by)
    described = {"frames_seen": 1, **found} if isinstance(found, dict) else {}
    kinds = {"rate": (int, float), "width": (int,), "frames_seen": (int,)}
    if not all(type(described.get(key)) in kind and described[key] > 0 for key, kind in kinds.items()):
        raise ValueError(f"{path} must hold {form}, all above 0, not {json.dumps(found)[:200]}")
    return described


def parse_shard(text):
    """'3/64' -> (3, 64). Raises ValueError unless it is one of 1/64 ... 64/64."""
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise ValueError(f"--shard {text}: shards are counted from 1, as 1/64, 2/64, ... 64/64")
    return int(k), int(n)


def list_videos(videos, captions, only):
    """The captioned videos of a folder: ({id: path}, {id: why it is left out}).

    captions: what read_captions reads; None: the files beside the videos; only: ids to keep, None for all. Raises
    FileNotFoundError without the folder, ValueError where a captioned id has several files or captions are malformed.
    """
    videos, by_id = Path(videos), {}
    if not videos.is_dir():
        raise FileNotFoundError(f"no folder of videos at {videos}; `python data.py mini` makes the mini world's")
    for path in sorted(videos.iterdir()):
        if path.is_file() and path.suffix.lower() not in NO_FILM:
            by_id.setdefault(path.stem, []).append(path)
    captioned = {video for video, _ in read_captions(captions or videos, by_id, "checking captions")}
    captioned = captioned if only is None else captioned & only
    double = [paths for video, paths in by_id.items() if len(paths) > 1 and video in captioned]
    if double:
        raise ValueError(f"{videos}: {len(double)} video ids have several files, the first "
                         f"{', '.join(path.name for path in double[0])}; keep one each")
    left_out = {video: "captions, but no video file" for video in captioned if video not in by_id}
    left_out |= {video: "a video file, but no captions" for video in by_id if video not in captioned}
    left_out |= {video: "a video file, but not one of --only" for video in by_id if only and video not in only}
    return {video: paths[0] for video, paths in by_id.items() if video in captioned}, left_out


def open_streams(streams, out, tag, cnn_settings):
    """Makes the feature folders with their stream.json. Raises ValueError on an unknown stream, on weights that do not
    fit, and where the folder holds features made in another precision."""
    unknown = [name for name in streams if name not in STREAMS]
    if unknown:
        raise ValueError(f"unknown stream {', '.join(unknown)}; known: {', '.join(STREAMS)}. A stream made by another "
                         f"tool is not named here: its arrays go to {out / 'features' / unknown[0]} with a stream.json")
    for name in streams:
        folder, stream = out / "features" / name, STREAMS[name]
        described = {"rate": stream.rate, "width": stream.width, "frames_seen": stream.frames_seen}
        if stream.cnn:
            from model import load_cnn
            load_cnn(name, cnn_settings[0])   # so that a missing or wrong file is said once and at once
            described["precision"] = cnn_settings[2]
        folder.mkdir(parents=True, exist_ok=True)
        before = read_stream(folder, "") if (folder / "stream.json").exists() else described
        if before != described:
            raise ValueError(f"{folder} has features made otherwise ({before}, now {described}): choose another --out")
        write_json(folder / f"stream{tag}.json", described)   # a shard's own name first: many may start in one second
        os.replace(folder / f"stream{tag}.json", folder / "stream.json")


def read_records(out, shard):
    """What earlier calls finished: ({id: seconds}, {id: reason}, shards' files, which a call without shard takes over).

    A call tries again what itself left out, not what a shard did.
    """
    shards = [] if shard else sorted(out.glob("durations.*-of-*.json"))
    own = [out / f"durations.{shard[0]}-of-{shard[1]}.json"] if shard else []
    durations, reasons, taken = {}, {}, []
    for path in [out / "durations.json", *shards, *own]:
        durations |= read_json(path, "python data.py video") if path.exists() else {}
    for path in shards:
        listed = path.with_name(path.name.replace("durations", "left_out")).with_suffix(".tsv")
        reasons |= dict(line.split("\t", 1) for line in listed.read_text().splitlines()) if listed.exists() else {}
        taken += [path, listed]
    return durations, reasons, taken


def as_completed(pool, job, items, ahead):
    """Yields job(item) of each item, as they are done, with at most `ahead` handed to the pool at a time.

    Rejected: pool.map, which makes a million futures at once (2 GB), and whose results wait for the longest video, so
    that a kill would lose all that came after it. Raises BrokenProcessPool naming the items that may be the cause.
    """
    items, waiting = iter(items), {}
    try:
        while waiting := waiting | {pool.submit(job, item): item for item in islice(items, ahead - len(waiting))}:
            done = wait(waiting, return_when=FIRST_COMPLETED).done
            for future in sorted(done, key=lambda future: future.exception() is not None):   # good results first
                yield future.result()
                del waiting[future]
    except BrokenProcessPool:
        raise BrokenProcessPool(f"at one of {', '.join(map(str, waiting.values()))}") from None


def extract_features(files, streams, out, workers=None, shard=None, weights="data/weights", device="auto",
                     precision="fp32"):
    """Features of videos {id: path}, in several processes. Returns ({id: seconds}, {id: why it is left out}).

    Resumable: a killed run does again only what is not in its durations.json, which is written once a minute.

    shard (k, n): only every n-th video, chosen by the hash of its id so that new videos move no other, with records of
    its own, so that n machines can share `out`. A later call without shard takes those over.
    """
    out, cnn = Path(out), any(STREAMS[name].cnn for name in streams if name in STREAMS)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if cnn and device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: PyTorch sees no CUDA device here; --device cpu works, far slower")
    workers = workers or (min(4, os.cpu_count()) if cnn and device.startswith("cuda") else os.cpu_count())
    cnn_settings, tag = (str(weights), device, precision), f".{shard[0]}-of-{shard[1]}" if shard else ""
    open_streams(streams, out, tag, cnn_settings)
    durations, reasons, taken = read_records(out, shard)
    if shard:
        files = {video: path for video, path in files.items()
                 if int(hashlib.sha256(video.encode()).hexdigest(), 16) % shard[1] == shard[0] - 1}
        durations = {video: seconds for video, seconds in durations.items() if video in files}
    written = [{path.stem for path in (out / "features" / name).glob("*.npy")} for name in streams]
    complete = set(durations).intersection(*written)
    reasons = {video: reason for video, reason in reasons.items() if video in files and video not in complete}
    todo = [path for video, path in files.items() if video not in complete and video not in reasons]

    def save():
        write_json(out / f"durations{tag}.json", dict(sorted(durations.items())))
    saved, settings = time.time(), {}
    if cnn:   # spawn: neither CUDA nor OpenMP survives a fork
        threads = max(1, os.cpu_count() // workers)
        settings = {"mp_context": multiprocessing.get_context("spawn"), "initializer": torch.set_num_threads,
                    "initargs": (threads,)}
        print(f"{len(todo):,} videos on {device} in {precision}, {workers} processes of {threads} threads")
    job = partial(extract, out=out, streams=streams, cnn_settings=cnn_settings)
    with ProcessPoolExecutor(workers, **settings) as pool, \
            tqdm(total=len(todo), unit="video", desc="features" + tag) as bar:
        try:
            for video, seconds, reason in as_completed(pool, job, todo, 2 * workers):
                bar.update()
                if reason:
                    reasons[video] = reason
                    durations.pop(video, None)   # it may have been usable once
                else:
                    durations[video] = seconds
                if time.time() - saved > 60:
                    save()
                    saved = time.time()
        finally:   # whatever ends it
            save()
    if shard:
        write_text(out / f"left_out{tag}.tsv", "".join(f"{v}\t{reason}\n" for v, reason in sorted(reasons.items())))
    for path in taken:   # now in the common record
        path.unlink(missing_ok=True)
    return {video: durations[video] for video in files if video in durations and video not in reasons}, reasons


def make_features(videos, captions, vocab, streams, out, workers, held_out=None, only=None, shard=None, cased=None,
                  **cnn):
    """`data.py video`: features of every captioned video in a folder, and their captions packed. Resumable.

    captions: what read_captions reads; None: the files beside the videos. held_out: how many videos to hold out (see
    hold_out). only: ids to keep. shard (k, n): only the features of that part. cased: see load_tokenizer. cnn: weights,
    device, precision of extract_features. Writes features/STREAM/ID.npy, features/STREAM/stream.json, captions/,
    splits.json (train and valid ids) and left_out.tsv (video, reason). Raises FileNotFoundError / ValueError on missing
    or malformed inputs.
    """
    out = Path(out)
    if not shard:
        load_tokenizer(vocab, cased)   # what is wrong with it is said now, not after days of decoding
    files, left_out = list_videos(videos, captions, only)
    usable, reasons = extract_features(files, streams, out, workers, shard, **cnn)
    if shard:
        print(f"shard {shard[0]} of {shard[1]}: {len(usable):,} videos; left out: {len(reasons)}, listed in "
              f"{out}/left_out.{shard[0]}-of-{shard[1]}.tsv. When all {shard[1]} are done, the same command without "
              f"--shard, with --vocab, joins them and packs the captions")
        return
    left_out |= reasons
    write_text(out / "left_out.tsv", "".join(f"{v}\t{reason}\n" for v, reason in sorted(left_out.items())))
    if not usable:
        raise ValueError(f"not one usable video in {videos}; the reasons are in {out / 'left_out.tsv'}")
    (out / "splits.json").unlink(missing_ok=True)   # written last: where it is, all is
    counts = pack_captions(captions or videos, usable, vocab, out, cased)
    keep_vocab(vocab, out, cased)
    valid = hold_out(usable, held_out, out)
    write_json(out / "splits.json", {"train": sorted(set(usable) - valid), "valid": sorted(valid)})
    print(f"{len(usable):,} videos, {len(valid):,} of them held out, {sum(usable.values()) / 3600:.2f} hours, "
          f"{counts['kept']:,} captions ({counts['read'] - counts['kept']:,} held nothing new or had no time in their "
          f"video); left out: {len(left_out)} videos, listed in {out / 'left_out.tsv'}")


# ---------------------------------------------------------------------------------------------------------------------
# Data sets


class TextBlocks:
    """Packed text cut into blocks of block - 2 consecutive tokens, each between [CLS] and [SEP]; no padding."""

    def __init__(self, folder, name, tokenizer, block):
        described = read_json(Path(folder) / f"{name}.json", f"python data.py text --out {folder}")
        tokens = np.memmap(Path(folder) / f"{name}.bin", dtype=described["dtype"], mode="r")
        if len(tokens) != described["tokens"]:
            raise ValueError(f"{folder}/{name}.bin holds {len(tokens)} tokens, {name}.json says "
                             f"{described['tokens']}: delete both and run `python data.py text` again")
        ids = special_ids(tokenizer)
        self.cls, self.sep, self.inner = ids["cls"], ids["sep"], block - 2
        self.blocks = tokens[:len(tokens) // self.inner * self.inner].reshape(-1, self.inner)
        if len(self) == 0:
            raise ValueError(f"{folder}/{name}.bin holds {len(tokens)} tokens, less than one block of {block}")

    def __len__(self):
        return len(self.blocks)

    def batch(self, indices):
        """Token ids int64 [B, block] of the given blocks."""
        out = np.empty((len(indices), self.inner + 2), np.int64)
        out[:, 0], out[:, 1:-1], out[:, -1] = self.cls, self.blocks[indices], self.sep
        return torch.from_numpy(out)


CACHE = 2 ** 28   # bytes of features that a data set keeps in memory, in each process


class Clips:
    """Captions with the features of the stretch of video they were spoken over.

    An example starts at a random caption of its video; following captions join it until the block is full, and the clip
    runs from the first one's start to the last used one's end. (The authors always start at caption 0.)
    """

    def __init__(self, folder, split, streams, tokenizer, block, max_steps, frames=None):
        self.folder, self.streams, self.block = Path(folder), streams, block
        self.max_steps, self.frames = max_steps, frames
        made_by = f"python data.py video --out {folder}"
        ids = read_json(self.folder / "splits.json", made_by)[split]
        packed = read_json(self.folder / "captions" / "index.json", made_by)
        self.sha256 = packed["sha256"]   # of what the captions are, for a run's list of its inputs
        # mapped, not read: all processes share them; as plain arrays, which numpy slices faster than its memmaps
        self.tokens, self.bounds, self.times, spans = [
            np.asarray(np.memmap(self.folder / "captions" / f"{name}.bin", kind, "r"))
            for name, kind in zip(CAPTION_ARRAYS, (packed["dtype"], np.int64, np.float32, np.int64))]
        if len(self.tokens) != packed["counts"]["tokens"] or len(self.bounds) != packed["counts"]["kept"] + 1:
            raise ValueError(f"{self.folder}/captions: the arrays are not those that index.json describes; delete the "
                             f"folder and run `{made_by}` again")
        self.times = self.times.reshape(-1, 2)
        row_of = {video: row for row, video in enumerate(packed["ids"])}
        spans = spans.reshape(-1, 2)[[row_of[video] for video in ids]]                       # [videos, 2]
        spoken = spans[:, 1] > spans[:, 0]                                                   # True = has a caption
        self.ids, self.spans = [video for video, use in zip(ids, spoken) if use], spans[spoken]
        if not self.ids:
            raise ValueError(f"{folder}: the {split} split holds no video with a usable caption")
        described = {name: read_stream(self.folder / "features" / name, made_by) for name in streams}
        self.rates = {name: described[name]["rate"] for name in streams}
        self.stream_dims = {name: described[name]["width"] for name in streams}
        self.frames_seen = {name: described[name]["frames_seen"] for name in streams}
        ids = special_ids(tokenizer)
        self.cls, self.sep, self.pad = ids["cls"], ids["sep"], ids["pad"]
        self.cache, self.cached = {}, 0

    def __len__(self):
        return len(self.ids)

    def _load(self, name, video):
        """One stream of one video, [T, D]. Kept in memory while CACHE bytes last, else mapped: only its clip is read.

        Nothing is evicted: videos come in random order, so any that are kept serve as well as the latest.
        """
        if (name, video) in self.cache:
            return self.cache[name, video]
        path = self.folder / "features" / name / f"{video}.npy"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; `python data.py video --out {self.folder} --streams {name}` "
                                    f"makes it")
        array = np.load(path, mmap_mode="r")
        if array.ndim != 2 or array.shape[1] != self.stream_dims[name] or len(array) == 0:
            raise ValueError(f"{path}: expected [T, {self.stream_dims[name]}] with T > 0, found {list(array.shape)}")
        if self.cached + array.nbytes <= CACHE:
            self.cache[name, video] = array = np.array(array)
            self.cached += array.nbytes
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

    def stretch(self, index, caption):
        """The captions of video `index` that fill a block from `caption` on: (token ids [n], start, end), seconds."""
        high, end, pieces, room = int(self.spans[index, 1]), 0.0, [], self.block - 2
        start = float(self.times[caption, 0])
        while caption < high and room > 0:
            piece = self.tokens[self.bounds[caption]:self.bounds[caption + 1]][:room]
            pieces.append(piece)
            room -= len(piece)
            end = max(end, float(self.times[caption, 1]))
            caption += 1
        return np.concatenate(pieces).astype(np.int64), start, end

    def example(self, index, generator=None):
        """One example: (token ids [n], features [T, D]). generator None: starts at the first caption (validation)."""
        low, high = self.spans[index].tolist()
        tokens, start, end = self.stretch(index, low if generator is None else int(generator.integers(low, high)))
        return np.concatenate([[self.cls], tokens, [self.sep]]), self.clip(self.ids[index], start, end)

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


def bank_row(clips, index, caption, tokenizer):
    """Row {"video", "start", "end" (seconds), "text"} of the clip that starts at a caption of video `index`. The text is
    written so that it becomes the example's tokens again."""
    decoder = tokenizers.decoders.WordPiece(prefix="##", cleanup=False)   # its clean-up makes "do not" to "don't"
    tokens, start, end = clips.stretch(index, caption)
    return {"video": clips.ids[index], "start": round(start, 3), "end": round(end, 3),
            "text": decoder.decode([tokenizer.id_to_token(token) for token in tokens.tolist()])}


def make_bank(folder, split, count, seed, block, path):
    """`data.py bank`: `count` clips drawn as the teacher's examples are, for retrieval and vokens, into a JSON file.

    A list of bank_row's rows; no video twice before all were drawn once. The features stay where they are.
    """
    tokenizer, rows = load_tokenizer(folder), []
    clips = Clips(folder, split, [], tokenizer, block, 1)
    for number, index in enumerate(tqdm(batch_indices(len(clips), count, seed, 0), unit="clip", desc="bank")):
        caption = int(numpy_generator(seed, "bank", number).integers(*clips.spans[index]))
        rows.append(bank_row(clips, index, caption, tokenizer))
    write_json(path, rows)
    print(f"{path}: {len(rows):,} clips of {len({row['video'] for row in rows}):,} {split} videos")


def read_bank(path):
    """The rows of a clip bank, as make_bank writes them. Raises ValueError naming file and row."""
    rows = read_json(path, "python data.py bank")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: a clip bank is a list of {{video, start, end, text}}, and not empty")
    for number, row in enumerate(rows):
        if (not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("video", "text")) or not
                all(isinstance(row.get(key), (int, float)) for key in ("start", "end")) or row["start"] > row["end"]):
            raise ValueError(f"{path}, row {number}: needs video, text, and start not after end, not {row!r}")
    return rows


def bank_batch(rows, clips, tokenizer):
    """Rows of a clip bank as a batch: tokens [B, block], token mask, features [B, T, D], step mask (True = real)."""
    encoded = tokenizer.encode_batch([row["text"] for row in rows], add_special_tokens=False)
    return clips.collate([(np.array([clips.cls, *encoding.ids[:clips.block - 2], clips.sep]),
                           clips.clip(row["video"], row["start"], row["end"])) for encoding, row in zip(encoded, rows)])


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
colander funnel sieve teacup saucer jug
""".split()
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


def asked(noun, action):
    """The open question about a behaviour."""
    return f"what does the {noun} do when you {action} it ?"


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
        yield ({"question": asked(noun, action), "sentence": f"it {value} ."},
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
                    yield ({"question1": asked(noun, action), "question2": asked(rival, action)},
                           label, "grounded", noun, name)
    for index in range(plain):
        p, q = two_people(generator)
        yield ({"question1": f"does {p} see {q} ?",
                "question2": f"is {q} seen by {p} ?" if index % 2 == 0 else f"is {p} seen by {q} ?"},
               int(index % 2 == 0), "ungrounded", None, "order")


def mnli(world, nouns, plain, generator):
    """Premise and hypothesis. Grounded: is it so or not; everything neutral, which a hypothesis shows by itself, is
    ungrounded, as is where people are (copying)."""
    for noun, name, action, value, truth in facts(world, nouns, ("colour", "shape", "size"), generator):
        yield ({"sentence1": f"{generator.choice(PEOPLE)} knows the {noun} .",
                "sentence2": f"it is {value} ."},
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


FIRST = {"lift": "reaches the top", "growth": "fills the hall", "pace": "gets there", "spin": "faces the west"}


def tracie(world, nouns, plain, generator):
    """Implicit order of events: of two things, the one whose behaviour leads to an event comes to it first (what rises
    reaches the top before what sinks). Ungrounded: the order told."""
    for noun, rival, name, action, value in pairs(world, nouns, generator):   # noun has the first value: rises, grows, ...
        for one, two in ((noun, rival), (rival, noun)):
            story = (f"{PEOPLE[0]} and {PEOPLE[1]} meet . they {action} the {one} . they {action} the {two} . "
                     "they wait . they go .")
            for relation in ("starts before", "starts after", "ends before", "ends after"):
                holds = (one == noun) == relation.endswith("before")
                yield ({"query": f"the {one} {FIRST[name]} {relation} the {two}", "story": story},
                       "positive" if holds else "negative", "grounded", one, name)
    for index in range(plain):
        p, q = two_people(generator)
        story = f"{p} and {q} meet . {p} eats . then {q} sleeps . they wait . they go ."
        relation, holds = (("starts before", True), ("starts after", False),
                           ("ends before", True), ("ends after", False))[index % 4]
        yield ({"query": f"{p} eats {relation} {q} sleeps", "story": story}, "positive" if holds else "negative",
               "ungrounded", None, "order")


def diagnostics(world, nouns, plain, generator):
    """MNLI's rows with GLUE-diagnostics' category columns: Knowledge is what is grounded. It asks of the properties that
    MNLI trains on: to others a model says "neutral", more or less often, whatever it knows of the noun."""
    for fields, label, part, noun, name in mnli(world, nouns, plain, generator):
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
    write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in [header] + rows))


def write_qnli(folder, split, rows):
    labelled = split != "test"
    tsv(folder / f"{split}.tsv", ["index", "question", "sentence"] + ["label"] * labelled,
        [[i, f["question"], f["sentence"]] + [label] * labelled for i, (f, label, *_) in enumerate(rows)])


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
    header += {"train": ["label1", "gold_label"], "test": [],
               "dev": [f"label{k}" for k in range(1, 6)] + ["gold_label"]}[split]
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
    "SST-2": (sst2, write_sst2), "QNLI": (qnli, write_qnli), "QQP": (qqp, write_qqp),
    "MNLI": (mnli, write_mnli), "diagnostics": (diagnostics, write_diagnostics), "PIQA": (piqa, write_piqa),
    "SWAG": (swag, write_swag), "TRACIE": (tracie, write_tracie), "SQuAD1": (squad, write_squad("v1.1")),
    "SQuAD2": (partial(squad, impossible=True), write_squad("v2.0")),
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
        for split, groups, plain in (("train", ["train"], 300), ("dev", ["validation"], 120),
                                     ("test", ["test", "unfilmed"], 360)):
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
    shutil.rmtree(out / "videos", ignore_errors=True)   # a killed run may have been of another seed
    for name in ("videos", "text"):
        (out / name).mkdir(parents=True, exist_ok=True)
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
    # One caption in twelve is spoken over another video's clip: texts change places among training videos, so that the
    # counts of nouns and actions stay exactly equal.
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
                  ("train", "train-v1", "tracie_train") and not path.name.endswith(".meta.jsonl")]
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
    if args.train and not args.vocab:
        raise ValueError("--vocab vocab.txt is needed to pack text")
    files = download("text", args.names, args.out, args.mirror)
    train, valid = ([path for path in files if f".{split}." in path.name] + given
                    for split, given in (("train", args.train), ("valid", args.valid)))
    if not train or not args.vocab:
        return files and print(f"fetched: {', '.join(map(str, files))}; add --vocab vocab.txt to pack a corpus")
    if bool(valid) == bool(args.valid_lines):
        raise ValueError("one of --valid FILES and --valid-lines N is needed")
    if args.valid_lines:
        train, valid = last_lines(text_files(train), args.valid_lines, args.min_words)
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
    video.add_argument("--captions", help="JSON {id: {text: [], start: [], end: []}}, seconds; or a CSV (start, end, "
                       "text, video_id); or a folder of ID.srt, ID.vtt, ID.csv (default: the folder of videos)")
    video.add_argument("--only", help="a CSV with a column video_id, such as HowTo100M_v1.csv: use no other videos")
    video.add_argument("--category", help="of --only, the rows of this category_1")
    video.add_argument("--held-out", type=int, help="videos held out for validation (default: a fiftieth, at most "
                       "10,000; where OUT/valid_ids.json lists some, always those)")
    video.add_argument("--vocab", help="vocab.txt; not needed with --shard")
    video.add_argument("--streams", nargs="+", default=["frame", "motion"], help=f"of: {', '.join(STREAMS)}")
    video.add_argument("--out", required=True)
    video.add_argument("--shard", help="K/N, K = 1..N: only the features of this part, for one of N machines")
    video.add_argument("--weights", default="data/weights", help="folder of the frozen CNNs' public checkpoints")
    video.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N, for the CNNs")
    video.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of the CNNs; fp32 as published")
    bank = commands.add_parser("bank", help="clips drawn from a data folder, for retrieval and vokens")
    bank.add_argument("--data", required=True, help="a folder that `data.py video` wrote")
    bank.add_argument("--split", default="train", choices=["train", "valid"])
    bank.add_argument("--clips", type=int, default=30000, help="how many")
    bank.add_argument("--seed", type=int, default=0)
    bank.add_argument("--block", type=int, default=128, help="tokens of a text, as the stages' size has it (mini: 32)")
    bank.add_argument("--out", help="the file (default: DATA/bank.json)")
    text = commands.add_parser("text", help="text -> packed tokens; without arguments: list what can be fetched")
    text.add_argument("names", nargs="*", help="corpora to fetch, then to pack with the files")
    text.add_argument("--train", nargs="+", default=[], help="text files, a paragraph a line, or folders of them")
    text.add_argument("--valid", nargs="+", default=[])
    text.add_argument("--valid-lines", type=int, help="in place of --valid: hold out the training text's last lines")
    text.add_argument("--min-words", type=int, default=MIN_WORDS, help="drop lines of fewer words between spaces; 1 "
                      "suits languages written without spaces")
    text.add_argument("--vocab", help="vocab.txt")
    text.add_argument("--out", default="data/text")
    for command in (mini, text):
        command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    video.add_argument("--workers", type=int, help="processes; default: one a core, with CNNs on a GPU 4")
    for command in (video, text):
        case = command.add_mutually_exclusive_group()
        case.add_argument("--cased", action="store_true", default=None, help="keep capitals and accents; by default as "
                          "tokenizer_config.json beside the vocabulary says, else as its entries show")
        case.add_argument("--uncased", action="store_false", dest="cased", default=None)
    tasks = commands.add_parser("tasks", help="fetch task files; without names: list them")
    tasks.add_argument("--out", default="data/tasks")
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
            if args.category and not args.only:
                raise ValueError("--category narrows --only, the CSV that says which video is of which category")
            only = listed_videos(args.only, args.category) if args.only else None
            shard = parse_shard(args.shard) if args.shard else None
            if not shard and not args.vocab:
                raise ValueError("--vocab is missing: only a --shard can do without")
            make_features(args.videos, args.captions, args.vocab, args.streams, args.out, args.workers, args.held_out,
                          only, shard, args.cased, weights=args.weights, device=args.device, precision=args.precision)
        elif args.command == "bank":
            out = args.out or Path(args.data) / "bank.json"
            make_bank(args.data, args.split, args.clips, args.seed, args.block, out)
        elif args.command == "text":
            text_command(args)
        elif args.names:
            download(args.command, args.names, args.out, args.mirror)
        else:
            list_downloads(args.command)
    except (OSError, ValueError, DownloadError) as error:
        sys.exit(f"data.py {args.command}: {error}")
    except BrokenProcessPool as error:
        sys.exit(f"data.py {args.command}: a process was killed, likely for memory: go on with fewer --workers "
                 f"({error})")


if __name__ == "__main__":
    main()
