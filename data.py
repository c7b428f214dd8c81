"""Which examples does this process see? Text, films, captions, masks, and the mini world.

    python data.py mini --seed 0 --out data/mini            # a generated world: films, text, tasks
    python data.py video --videos data/mini/videos --out data/mini             # films -> features
    python data.py video --videos DIR --streams resnet152 resnext101 --shard 3/64 --out DIR
    python data.py captions --videos data/mini/videos --captions data/mini/caption.json \\
                            --vocab data/mini --out data/mini              # captions -> tokens
    python data.py bank --data data/mini --clips 1152 --block 32           # clips for vokens
    python data.py text --train FILES --valid-lines 5000 --vocab data/mini --out data/text

Ranks live here because a rank's only meaning is which rows of a global batch it takes.
Axes: B sequences, L tokens, T steps of a film, D feature width. Masks are True for real tokens and
real steps.
"""
import argparse
import codecs
import csv
import dataclasses
import hashlib
import html
import json
import math
import multiprocessing
import os
import platform
import re
import resource
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from fractions import Fraction
from functools import lru_cache, partial
from itertools import chain, combinations, islice, product
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import tokenizers
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

import model
from model import UserError, weight_files

# --------------------------------------------------------------------------------------------------
# Processes


class Processes:
    """Rank, world size, device; started by torchrun or alone. A world of one sends no message."""

    def __init__(self, device="auto"):
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.master = self.rank == 0   # the one process that writes files and prints
        if device == "auto":
            device = self.best_device()
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def best_device(self):
        """cuda where there is one, mps for a single process, else cpu; torchrun's cpu is said."""
        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available() and self.world == 1:
            return "mps"
        if self.world > 1:
            self.print(f"no GPU is visible: {self.world} processes train on the CPU")
        return "cpu"

    def print(self, text):
        """Prints in the master only."""
        if self.master:
            print(text, flush=True)

    def rows(self, batch):
        """This process's slice of a global batch. Raises UserError if it does not divide."""
        if batch % self.world:
            raise UserError(f"global batch {batch} does not divide by {self.world} processes")
        each = batch // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, value):
        """Sum over processes of a number, or of a tensor, which itself is left as it is."""
        if self.world == 1:
            return value
        if not torch.is_tensor(value):
            return self.sum(torch.tensor(value, dtype=torch.float64, device=self.device)).item()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, tensor):
        """Every process's rows in rank order, [b, ...] -> [B, ...], with gradient to each process.

        Each must then count its own rows of the loss only: gradients of the copies are summed.
        """
        if self.world == 1:
            return tensor
        return _Gather.apply(tensor, self.rank, self.world)

    def sum_gradients(self, parameters):
        """Adds .grad up over processes in one flat message.

        A sum: losses are already divided by global counts, which differ between processes.
        """
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, flat.split(sizes)):
            gradient.copy_(summed.view_as(gradient))

    def barrier(self):
        """Waits until every process is here."""
        if self.world > 1:
            dist.barrier()

    def close(self):
        """Leaves the group, all together: gloo aborts a process whose partner still talks."""
        self.barrier()
        if self.world > 1:
            dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """all_gather; its backward gives each process the sum of what all made of its rows."""

    @staticmethod
    def forward(ctx, tensor, rank, world):
        ctx.rows = slice(rank * len(tensor), (rank + 1) * len(tensor))
        pieces = [torch.empty_like(tensor) for _ in range(world)]
        dist.all_gather(pieces, tensor.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None, None


def settle_precision(asked, device):
    """'auto' -> 'bf16' where the device computes in it, else 'fp32'.

    Returns (name, dtype for autocast or None).
    """
    if asked == "auto":
        fast = False
        if device.type == "cuda":   # before Ampere bf16 is emulated
            fast = torch.cuda.get_device_capability(device) >= (8, 0)
        if device.type == "cpu":    # with these instructions it is twice as fast from width 512 on
            fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        asked = "bf16" if fast else "fp32"
    return asked, torch.bfloat16 if asked == "bf16" else None


# --------------------------------------------------------------------------------------------------
# Randomness. What must not depend on the number of processes (order, masks, negatives, CRD's
# samples) is drawn for the global batch from (seed, purpose, step): nothing of it needs saving,
# and a run can go on with another number of processes.


def numpy_generator(*key):
    """A numpy generator that depends only on the key: non-negative integers and short strings."""
    numbers = []
    for part in key:
        if isinstance(part, str):
            part = int.from_bytes(part.encode(), "little")
        numbers.append(part)
    return np.random.default_rng(numbers)


def torch_generator(*key):
    """A torch CPU generator that depends only on the key."""
    return torch.Generator().manual_seed(int(numpy_generator(*key).integers(2 ** 62)))


def seed_dropout(seed, step, rank):
    """Sets dropout's masks of this step, others on every rank, so that resuming is exact."""
    torch.manual_seed(int(numpy_generator(seed, "dropout", step, rank).integers(2 ** 62)))


def batch_indices(count, batch, seed, step):
    """Which of `count` examples make global batch number `step` (0, 1, ...). Returns int32 [batch].

    An epoch is one permutation, cut into whole batches; what is left over waits for the next one.
    Where a batch is larger than `count`, it holds every example, each as often as any other.
    """
    epoch, place = divmod(step, max(1, count // batch))
    order = _permutation(count, seed, epoch)
    return np.resize(order[place * batch:(place + 1) * batch], batch)


@lru_cache(maxsize=1)
def _permutation(count, seed, epoch):
    order = np.arange(count, dtype=np.int32)
    numpy_generator(seed, "order", epoch).shuffle(order)
    return order


def derangement(count, generator):
    """A random permutation of range(count) without a fixed point: who is whose negative."""
    if count < 2:
        raise UserError("negatives need a global batch of at least 2 examples")
    while True:   # one in e tries succeeds
        order = generator.permutation(count)
        if (order != np.arange(count)).all():
            return order


def prefetch(make_batch, first, last, ahead=2):
    """Yields make_batch(step) for first <= step < last; threads make up to `ahead` meanwhile."""
    with ThreadPoolExecutor(ahead) as pool:
        waiting = []
        for step in range(first, last):
            waiting.append(pool.submit(make_batch, step))
            if len(waiting) > ahead:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


# --------------------------------------------------------------------------------------------------
# Flags, log and provenance


def stage_parser(description):
    """The flags that both pretraining stages have; None is filled in from --size."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--init", help="BERT folder in Hugging Face form, from which the text encoder starts")
    flag("--batch", type=int, help="of all processes together")
    flag("--steps", type=int, help="optimiser steps; overrides --epochs")
    flag("--epochs", type=float, help="passes over the training data")
    flag("--lr", type=float, help="peak learning rate")
    flag("--warmup", type=int, help="steps until the peak")
    flag("--weight-decay", type=float)
    flag("--clip", type=float, default=1.0, help="largest gradient norm")
    flag("--dropout", type=float)
    flag("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    flag("--device", default="auto", help="auto, cpu, cuda, mps")
    flag("--seed", type=int, default=0)
    flag("--log-every", type=int, help="steps")
    flag("--valid-every", type=int, help="steps")
    flag("--save-every", type=int, help="steps")
    flag("--dry-run", action="store_true", help="only print what the run would take")
    return parser


def fill_in(args, defaults):
    """Gives flags that are None their defaults; of --steps and --epochs the given one decides."""
    if args.steps is not None or args.epochs is not None:
        defaults = {**defaults, "steps": None, "epochs": None}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


class Log:
    """One JSON object a line in log.jsonl, one aligned line on the screen, by the master alone."""

    def __init__(self, path, master, resume_step):
        self.file = None
        self.name = Path(path).parent.name   # stages may print side by side
        self.start = time.time()
        self.first_step = resume_step
        if not master:
            return
        kept = ""
        if Path(path).exists():
            for line in Path(path).read_text().splitlines():
                # the last line may be cut; lines past the checkpoint will be written again
                if line.endswith("}") and json.loads(line)["step"] <= resume_step:
                    kept += line + "\n"
        write_text(path, kept)
        self.file = open(path, "a", buffering=1)

    def __call__(self, step, total, **values):
        """Logs values at a step; adds seconds since the start, steps a second, the time left."""
        if self.file is None:
            return
        seconds = time.time() - self.start
        line = {"step": step, **values, "seconds": round(seconds, 2)}
        self.file.write(json.dumps(line) + "\n")
        shown = ""
        for name, value in values.items():
            shown += f"  {name} {value:.4g}" if isinstance(value, float) else f"  {name} {value}"
        rate = max(step - self.first_step, 1) / max(seconds, 1e-9)
        print(f"{self.name} {step:>6}/{total}{shown}  | {rate:.1f} steps/s, "
              f"{(total - step) / rate:.0f} s left", flush=True)


def write_text(path, text):
    """Writes a text file through a temporary name, so that path is always whole."""
    temporary = Path(str(path) + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path, value):
    """Writes JSON through a temporary name."""
    write_text(path, json.dumps(value, indent=1))


def read_json(path, made_by):
    """Reads JSON. Raises UserError: the command that makes the file, or the line that is wrong."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing; `{made_by}` makes it")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None


# flags that change nothing of what a run computes; of the paths, what lies there decides
FREE = ("device", "out", "dry_run", "log_every", "save_every",
        "data", "text", "teacher", "init", "bank")


def open_run(folder, arguments, processes, precision, inputs):
    """Makes a run folder and its args.json. Raises UserError where other arguments began it.

    So a run that goes on ends where it would have ended at once. inputs: {name: sha256}.
    """
    path = Path(folder) / "args.json"
    now = {"arguments": arguments, "precision": precision, "inputs": inputs}
    if not path.exists():
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(path, {**now, "processes": processes.world, **provenance(processes.device)})
        return
    before = read_json(path, "")
    changed = []
    if before["precision"] != precision:
        changed.append(f"precision {before['precision']} -> {precision}")
    for name, value in arguments.items():
        old = before["arguments"].get(name, value)
        if name not in FREE and old != value:
            changed.append(f"--{name.replace('_', '-')} {old} -> {value}")
    for name in sorted(before["inputs"].keys() | inputs.keys()):
        if before["inputs"].get(name) != inputs.get(name):
            changed.append(f"another {name}")
    if changed:
        raise UserError(f"{folder} was started with other arguments or inputs "
                        f"({', '.join(changed)}); choose another --out, or delete the folder")


def weights_hash(folder):
    """sha256 of a model folder's weights, over all their files."""
    hashes = "".join(file_hash(path) for path in weight_files(folder))
    return hashlib.sha256(hashes.encode()).hexdigest()


def check_tokenizer(folder, config, tokenizer, text):
    """Raises UserError unless the model in `folder` reads tokens as those of `text` were made."""
    if tokenizer_hash(load_tokenizer(folder)) != tokenizer_hash(tokenizer):
        raise UserError(f"{folder} splits text into other tokens than {text} holds; make {text} "
                        f"again with --vocab {folder}")
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(f"{folder}: its tokenizer has {tokenizer.get_vocab_size()} entries, its "
                        f"embedding {config.vocab_size}")


def make_encoder(args, tokenizer, text):
    """(config, Bert, MLMHead) of --size, or of --init, for the tokens in the folder `text`."""
    shape = dataclasses.replace(model.SIZES[args.size], vocab_size=tokenizer.get_vocab_size(),
                                hidden_dropout_prob=args.dropout,
                                attention_probs_dropout_prob=args.dropout)
    if not args.init:
        bert = model.Bert(shape)
        return shape, bert, model.MLMHead(shape, bert.tokens)
    config, bert, mlm_head = model.load_hf(args.init)
    check_tokenizer(args.init, config, tokenizer, text)
    model.set_dropout(config, bert, args.dropout)
    config.block = min(config.block, shape.block)
    return config, bert, mlm_head


def check_finite(loss, norm, step, run):
    """Raises UserError where a step would write NaN or infinity into every weight."""
    if not torch.isfinite(loss + norm):
        raise UserError(f"loss {loss.item()}, gradient norm {norm.item()} at step {step}; the last "
                        f"good state is {run}/checkpoint.pt; try a lower --lr")


def print_plan(processes, parameters, seconds_a_step, steps):
    """`--dry-run`: what the whole run would take, judged by the few steps that were run."""
    if processes.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(processes.device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if sys.platform != "darwin":   # Linux counts kilobytes
            memory *= 1024
    count = sum(parameter.numel() for parameter in parameters)   # x 4 bytes x (model, 3 in AdamW)
    processes.print(
        f"dry run: {memory / 2 ** 30:.2f} GB a process; {1000 * seconds_a_step:.0f} ms a step "
        f"x {steps} steps = {seconds_a_step * steps / 3600:.2f} hours; "
        f"{16 * count / 2 ** 30:.2f} GB of disk")


def provenance(device):
    """What a result needs beside it to be believed: versions, commit, hardware. A dict."""
    git = subprocess.run("git describe --always --dirty --abbrev=40 --exclude='*'", shell=True,
                         cwd=Path(__file__).parent, capture_output=True, text=True)
    commit = git.stdout.strip()   # empty without git, or outside a repository
    processors = [platform.processor() or platform.machine()]
    if Path("/proc/cpuinfo").exists():
        named = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        processors = named or processors
    hardware = f"{len(processors)} x {processors[0]}"
    if device.type == "cuda":
        hardware = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    return {
        "commit": commit.removesuffix("-dirty") or None,
        "uncommitted changes": commit.endswith("-dirty"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
    }


# --------------------------------------------------------------------------------------------------
# Tokenizer: BERT's WordPiece, by the tokenizers library. A folder's tokenizer.json is its own.

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def load_tokenizer(path, cased=None):
    """Reads a folder's tokenizer.json, else its vocab.txt; or the one of them that path names.

    Returns a tokenizers.Tokenizer whose `encode(text).ids` holds [CLS] ... [SEP]. A tokenizer.json
    is followed as it stands. Raises UserError where the tokenizer is missing or not BERT's kind.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "vocab.txt"
        if path.with_name("tokenizer.json").exists():
            path = path.with_name("tokenizer.json")
    elif path.name == "vocab.txt" and not path.exists():   # newer libraries save the other only
        path = path.with_name("tokenizer.json")
    if not path.exists():
        raise UserError(f"no vocabulary at {path}; `python data.py mini` makes one, for the sizes "
                        f"small and base `make data/weights/bert-base-uncased` fetches one")
    if path.suffix == ".json":
        tokenizer = read_tokenizer(path, cased)
    else:
        tokenizer = read_vocabulary(path, cased)
    ids = special_ids(tokenizer)
    ends = [("[SEP]", ids["sep"]), ("[CLS]", ids["cls"])]
    tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_tokenizer(path, cased):
    """The tokenizer of a tokenizer.json."""
    if cased is not None:
        raise UserError(f"{path} is followed as it stands: --cased, --uncased are for a vocab.txt")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:   # the library raises nothing narrower
        raise UserError(f"{path}: not a tokenizer.json ({error})") from None
    kind = type(tokenizer.model).__name__
    if kind != "WordPiece":
        raise UserError(f"{path} holds a {kind} tokenizer, BERT's is WordPiece")
    check_special(path, tokenizer.get_vocab())
    return tokenizer


def read_vocabulary(path, cased):
    """The tokenizer of a vocab.txt, one piece a line. Text is lower-cased if tokenizer_config.json
    beside it says so, or without one if no piece has a capital; `cased` overrides both."""
    try:
        # not splitlines(), which also cuts at U+2028 and its like
        pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a vocabulary: not UTF-8 (byte {error.start})") from None
    vocabulary = {}
    for index, piece in enumerate(pieces):
        if piece in vocabulary:
            raise UserError(f"{path}, line {index + 1}: {piece!r} stands in line "
                            f"{vocabulary[piece] + 1} too; replace one by [unusedN]")
        vocabulary[piece] = index
    check_special(path, vocabulary)
    config = path.with_name("tokenizer_config.json")
    rules = read_json(config, "") if config.exists() else {}
    if cased is not None:
        rules = {"do_lower_case": not cased}
    elif "do_lower_case" not in rules:
        spelt = [piece for piece in pieces if not re.fullmatch(r"\[.*\]", piece)]
        rules["do_lower_case"] = spelt == [piece.lower() for piece in spelt]
    bert = tokenizers.BertWordPieceTokenizer(
        vocabulary, lowercase=rules["do_lower_case"], strip_accents=rules.get("strip_accents"),
        handle_chinese_chars=rules.get("tokenize_chinese_chars", True))
    return tokenizers.Tokenizer.from_str(bert.to_str())


def check_special(path, vocabulary):
    """Raises UserError where one of BERT's five special tokens is missing."""
    missing = [token for token in SPECIAL if token not in vocabulary]
    if missing:
        raise UserError(f"{path} is not a BERT vocabulary: it lacks {', '.join(missing)}")


def train_tokenizer(files, size, folder, cased=False):
    """Writes folder/tokenizer.json: the letters of the text files, then their most frequent words,
    at most `size` pieces. The same files give the same ids."""
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=not cased)
    pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    counts = Counter()
    for file in files:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                words = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(line))
                counts.update(word for word, _ in words)
    letters = sorted(set("".join(counts)))
    inside = ["##" + letter for letter in letters]   # any word of these letters can be spelt
    whole = [word for word in counts if len(word) > 1]
    whole.sort(key=lambda word: (-counts[word], word))
    pieces = (SPECIAL + letters + inside + whole)[:size]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    keep_tokenizer(tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=not cased), folder)


def keep_tokenizer(tokenizer, folder):
    """Writes folder/tokenizer.json: beside tokens lies the tokenizer that made them."""
    write_text(Path(folder) / "tokenizer.json", tokenizer.to_str(pretty=True))


def special_ids(tokenizer):
    """Ids of [PAD], [UNK], [CLS], [SEP], [MASK] as a dict without the brackets, lower case."""
    return {token.strip("[]").lower(): tokenizer.token_to_id(token) for token in SPECIAL}


def tokenizer_hash(tokenizer):
    """sha256 of all that decides which tokens a text becomes: what tokenizer.json says."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def file_hash(path):
    """sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inputs_hash(paths, *settings):
    """sha256 of the names, sizes and mtimes of files, and of settings."""
    stats = [(path.name, path.stat()) for path in paths]
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return hashlib.sha256(json.dumps([files, *settings]).encode()).hexdigest()


def is_made_from(path, inputs):
    """True where the JSON file at path says that it was made from just these inputs."""
    return path.exists() and read_json(path, "").get("made_from") == inputs


def smallest_integer(vocabulary_size):
    """The smallest unsigned type that holds every token id."""
    return np.dtype(np.uint16 if vocabulary_size <= 2 ** 16 else np.uint32)


# --------------------------------------------------------------------------------------------------
# Text -> packed tokens. A split is NAME.bin (all token ids, no separators) and, written last,
# NAME.json.

MIN_WORDS = 5            # between spaces; shorter lines are dropped, as for the authors' corpora
LONGEST_LINE = 1 << 26   # bytes


def text_files(paths):
    """The files among files and folders; a folder stands for all files under it but dot files."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"no text file {path}; `python data.py mini` makes the mini world's, "
                            f"`make data/wiki` fetches WikiText-103")
        inside = sorted(path.rglob("[!.]*")) if path.is_dir() else [path]
        inside = [file for file in inside if file.is_file() and file.stat().st_size]
        if not inside:
            raise UserError(f"{path} is empty")
        files += inside
    return files


def text_lines(path, min_words=MIN_WORDS, bar=None):
    """Yields the lines of a corpus file worth training on, as the code of vokenization (Tan &
    Bansal 2020) chose them. bar: counts the bytes read. Raises UserError naming file and line.

    Dropped: WikiText headings (` = Title = `), WikiExtractor's <doc> marks, lines of fewer than
    min_words words between spaces. Of WikiExtractor --json the lines of each "text" are read.
    """
    is_json = False
    with open(path, "rb") as file:
        for number, raw in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
            place = f"{path}, line {number}"
            if b"\0" in raw or len(raw) == LONGEST_LINE:
                raise UserError(f"{place}: a zero byte or 64 MB without a newline, so no text file")
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                reason = f"{error.reason} at byte {error.start}"
                raise UserError(f"{place}: not UTF-8 ({reason})") from None
            if number == 1:
                is_json = json_text(text) is not None
            if is_json and text.strip():
                text = json_text(text)
                if text is None:
                    raise UserError(f'{place}: no JSON object with a "text", unlike line 1')
            for line in text.split("\n"):
                bare = line.strip()
                heading = line.startswith(" = ")
                mark = bare.startswith("<doc id=") or bare.endswith("</doc>")
                if bare and not heading and not mark and bare.count(" ") + 1 >= min_words:
                    yield bare
            if bar is not None:
                bar.update(len(raw))


def json_text(line):
    """The "text" of a line that is a JSON object, entities undone; None of any other line."""
    try:
        text = json.loads(line)["text"] if line.startswith("{") else None
    except (json.JSONDecodeError, KeyError):
        return None
    if isinstance(text, str) and is_unicode(text):
        return html.unescape(text)
    return None


def pack_text(files, vocab, out, name, cased=None, min_words=MIN_WORDS, valid_lines=0):
    """Tokenises files and folders into out/NAME.bin and out/NAME.json, the last `valid_lines` lines
    into out/valid.* instead; does nothing if that was done from the same ones."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = text_files(files)
    tokenizer = load_tokenizer(vocab, cased)
    inputs = inputs_hash(files, tokenizer_hash(tokenizer), min_words, valid_lines)
    splits = [name, "valid"] if valid_lines else [name]
    if all(is_made_from(out / f"{split}.json", inputs) for split in splits):
        print(f"{out}/{name}.json: up to date")
        return
    last = deque()
    size = sum(path.stat().st_size for path in files)
    with tqdm(total=size, desc=f"text {name}", unit="B", unit_scale=True) as bar:
        lines = chain.from_iterable(text_lines(path, min_words, bar) for path in files)
        lines = all_but_last(lines, valid_lines, last)
        tokens = {name: write_tokens(lines, tokenizer, out / f"{name}.bin.tmp")}
    if tokens[name] == 0:
        raise UserError(f"{', '.join(map(str, files[:3]))}: no more than {len(last)} lines of "
                        f"{min_words} words or more, so no text to train on (--min-words 1 suits "
                        f"languages written without spaces)")
    if valid_lines:
        tokens["valid"] = write_tokens(iter(last), tokenizer, out / "valid.bin.tmp")
    kind = smallest_integer(tokenizer.get_vocab_size())
    for split in splits:   # the JSON vouches for the tokens: it goes before them, comes after them
        (out / f"{split}.json").unlink(missing_ok=True)
        os.replace(out / f"{split}.bin.tmp", out / f"{split}.bin")
    keep_tokenizer(tokenizer, out)
    for split in splits:
        described = {"tokens": tokens[split], "dtype": kind.name, "made_from": inputs}
        write_json(out / f"{split}.json", described)
        print(f"{out}/{split}.bin: {tokens[split]:,} tokens")


def all_but_last(lines, count, last):
    """Yields all lines but the last `count`, which are then in the deque `last`."""
    for line in lines:
        last.append(line)
        if len(last) > count:
            yield last.popleft()


def write_tokens(lines, tokenizer, path):
    """Writes the token ids of an iterator's lines; returns how many they are."""
    kind = smallest_integer(tokenizer.get_vocab_size())
    with open(path, "wb") as file:
        while batch := list(islice(lines, 2000)):
            # the fast one leaves out offsets, and uses all cores
            encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            ids = chain.from_iterable(encoding.ids for encoding in encoded)
            file.write(np.fromiter(ids, kind).tobytes())
        return file.tell() // kind.itemsize


def text_command(args):
    """`data.py text`: packs the training text, and the validation text or the end of the other."""
    rules = (args.cased, args.min_words)
    if args.valid:
        pack_text(args.train, args.vocab, args.out, "train", *rules)
        pack_text(args.valid, args.vocab, args.out, "valid", *rules)
    elif args.valid_lines > 0:
        pack_text(args.train, args.vocab, args.out, "train", *rules, args.valid_lines)
    else:
        raise UserError(f"--valid-lines {args.valid_lines}: needs at least 1")


# --------------------------------------------------------------------------------------------------
# Video -> features
#
# One decode of a film feeds every stream. A stream is a folder features/NAME of float16 arrays
# ID.npy [T, D], beside stream.json with its rate; another tool's arrays, laid out so, are one more.
# A film whose arrays are there is done; what failed, and why, is in features/left_out.tsv.

FPS = 8   # the small descriptors look at 8 frames a second
SIDE = 48   # of 48 x 48 pixels
WINDOW = 4   # frames that the motion descriptor looks at
HOP = 4   # frames between its windows

FILM_ENDINGS = set("""
    .3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .m1v .m2t .m2ts .m2v .m4v .mkv .mov .mp4 .mpe .mpeg
    .mpg .mts .mxf .nut .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m
""".split())


class VideoError(Exception):
    """Why one film cannot be used; the caller lists it and goes on."""


def is_film(path):
    """By its name; files that begin with a dot are none."""
    return path.suffix.lower() in FILM_ENDINGS and not path.name.startswith(".")


def film_files(folder):
    """{id: path} of the films of a folder, each named ID.mp4, ID.mkv, ...

    Raises UserError where there is no such folder, or an id has two films.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder of videos at {folder}; "
                        "`python data.py mini` makes the mini world's")
    films = {}
    for path in sorted(folder.iterdir()):
        if not is_film(path) or not path.is_file():
            continue
        if path.stem in films:
            raise UserError(f"{folder}: {films[path.stem].name} and {path.name} are two films of "
                            "one id; keep one of them")
        films[path.stem] = path
    return films


def upright(frame):
    """The ffmpeg filters that show a frame as its film asks: turned, mirrored.

    The rule of ffmpeg's own autorotate (fftools/ffmpeg_filter.c), from the display matrix.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return []
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5] / 2 ** 16
    across = math.hypot(a, c)
    down = math.hypot(b, d)
    if across == 0 or down == 0:
        return []
    angle = round(math.degrees(math.atan2(b / down, a / across))) % 360   # clockwise
    if angle == 90:
        return ["transpose=cclock_flip"] if c > 0 else ["transpose=clock"]
    if angle == 270:
        return ["transpose=clock_flip"] if c < 0 else ["transpose=cclock"]
    if angle not in (0, 180):
        return [f"rotate={angle}*PI/180"]
    filters = []
    if a < 0:
        filters.append("hflip")
    if d < 0:
        filters.append("vflip")
    return filters


class Filtered:
    """A view of a film: what `ffmpeg -vf fps=F,scale=W:H[,crop=S:S] -pix_fmt rgb24` shows.

    The short side becomes `size` pixels, by the rule and in the order of HowTo100M's extractor
    (antoine77340/video_feature_extractor). crop: the middle size x size of it. stretch: the whole
    picture becomes size x size.
    """

    def __init__(self, fps, size, crop=False, stretch=False):
        self.fps = fps
        self.size = size
        self.crop = crop
        self.stretch = stretch
        self.graph = None

    def push(self, frame):
        """Takes the next frame, None at the end. Yields the pictures uint8 [h, w, 3] that are due.

        They are made one by one: a frame that stands for an hour needs no memory for it.
        """
        if self.graph is None:
            if frame is None:
                return
            self._build(frame)   # later frames may have another size: the scale filter follows
        self.graph.vpush(frame)
        while True:
            try:
                picture = self.graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield picture.to_ndarray()

    def _build(self, frame):
        size = self.size
        scale = f"scale={size}:{size}"
        if not self.stretch:
            width = f"if(gte(ih,iw),{size},trunc(iw*{size}/ih))"
            height = f"if(gte(ih,iw),trunc(ih*{size}/iw),{size})"
            scale = f"scale='{width}':'{height}'"
        steps = [
            f"buffer=video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
            f":pixel_aspect=1/1:time_base={frame.time_base}"
            f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
            *upright(frame),
            f"fps={self.fps}:start_time=0",   # the first frame fills the time before it
            f"{scale}:flags=bicubic",
        ]
        if self.crop:
            steps.append(f"crop={size}:{size}:trunc((iw-ow)/2):trunc((ih-oh)/2)")
        steps += ["format=rgb24", "buffersink"]
        self.graph = av.filter.Graph()
        self.graph.threads = 1   # the caller runs one process a core
        self.graph.link_nodes(*[self.graph.add(*step.split("=", 1)) for step in steps]).configure()


def picture_stream(container):
    """The stream of an open film that is looked at. Raises VideoError where there is none."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:   # a song's cover
        raise VideoError("no video stream")
    if stream.codec_context is None:
        raise VideoError("in a format that FFmpeg cannot decode")
    stream.codec_context.thread_count = 1   # the caller runs one process a core
    return stream


def timed_frames(container, stream, damaged):
    """Yields a stream's frames, each with a duration and a pts counted from the container's start.

    A packet that cannot be decoded is skipped, as ffmpeg does, and its error appended to the list
    `damaged`. Raises VideoError where these are more than a tenth, or where frames have no time.
    """
    beginning = Fraction(container.start_time or 0, av.time_base)   # seconds
    faults = [0, 0]   # times that are missing or run backwards: pts, dts
    before = [-math.inf, -math.inf]
    packets = 0
    for packet in container.demux(stream):
        packets += 1
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            damaged.append(error.strerror)
            continue
        for frame in frames:
            # ffmpeg's best guess, which PyAV does not pass on: old AVIs have display times that
            # run backwards, or none, and decoding times to put in their place
            for kind, stamp in enumerate((frame.pts, frame.dts)):
                if stamp is None or stamp <= before[kind]:
                    faults[kind] += 1
                if stamp is not None:
                    before[kind] = stamp
            if frame.pts is None or (frame.dts is not None and faults[0] > faults[1]):
                frame.pts = frame.dts
            if frame.pts is None:
                raise VideoError("frames without a time")
            # the last frame's duration says where the film ends
            if not frame.duration and stream.guessed_rate:
                frame.duration = round(1 / (stream.guessed_rate * frame.time_base))
            if stream.duration is not None:   # MP4's durations are in the order of decoding
                rest = (stream.start_time or 0) + stream.duration - frame.pts
                if rest > 0:
                    frame.duration = min(frame.duration, rest)
            frame.pts -= round(beginning / frame.time_base)
            yield frame
    if len(damaged) > packets / 10:
        raise VideoError(f"cannot be decoded ({damaged[0]}: {len(damaged)} of {packets} packets)")


def stated_end(container, stream):
    """Seconds at which the picture, or else the whole file, ends by its own word; 0: not said."""
    if stream.duration is None:
        return (container.duration or 0) / av.time_base
    end = ((stream.start_time or 0) + stream.duration) * stream.time_base
    return float(end) - (container.start_time or 0) / av.time_base


def check_gap(container, stream, before, now):
    """Raises VideoError where a film's clock jumps, so that it would become hours of one picture.

    A slide may stand for minutes. Past the length that the file states, or for more than an hour,
    it is a jump, as in a format whose clock may start anew (MPEG-TS, where a broadcast is cut).
    """
    if now - before <= 60:
        return
    stated = stated_end(container, stream)
    restarts = container.format.flags & av.format.Flags.ts_discont.value
    if restarts or now - before > 3600 or 0 < stated < now - 1:
        raise VideoError(f"its timestamps jump from {before:.0f} to {now:.0f} seconds")


def check_length(container, stream, seconds, path):
    """Raises VideoError where a film ends long before its file says that it does: it was cut."""
    stated = stated_end(container, stream)
    allowed = max(1, 0.05 * stated)
    of_file = stream.duration is None or container.format.name == "asf"   # None: Matroska
    if of_file and stated - seconds > allowed:   # sound may outlast the picture
        with av.open(str(path)) as again:
            for packet in again.demux():
                if packet.pts is not None:
                    end = (packet.pts + (packet.duration or 0)) * packet.time_base
                    seconds = max(seconds, float(end) - (again.start_time or 0) / av.time_base)
    if stated - seconds > allowed:
        raise VideoError(f"cut: it ends after {seconds:.1f} of {stated:.1f} seconds")


def decode(path, views, damaged=None, start=0.0):
    """Decodes a film once, for several views. Yields (view, picture uint8 [h, w, 3], seconds).

    Time runs from the container's start, where players, and so captions, count from; views begin
    at second `start`. seconds: of film so far. damaged: a list that takes the error of each packet
    that is skipped. Raises VideoError where the file is no film, is cut, or its clock jumps.
    """
    damaged = [] if damaged is None else damaged
    seconds = 0.0
    before = start
    try:
        with av.open(str(path)) as container:
            stream = picture_stream(container)
            if start:   # to a key frame before it
                container.seek(int(start * av.time_base) + (container.start_time or 0))
            for frame in timed_frames(container, stream, damaged):
                check_gap(container, stream, before, frame.time)
                before = frame.time
                seconds = max(seconds, float((frame.pts + frame.duration) * frame.time_base))
                frame.pts -= round(start / float(frame.time_base))
                for view in views:
                    for picture in view.push(frame):
                        yield view, picture, seconds
            check_gap(container, stream, before, seconds)
            check_length(container, stream, seconds, path)
        for view in views:
            for picture in view.push(None):
                yield view, picture, seconds
    except (av.FFmpegError, OSError, ValueError) as error:   # ValueError: an odd pixel format
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"cannot be decoded ({reason})") from None


def clip_pictures(path, start, end, fps, size):
    """Seconds start..end of a film at `fps` pictures a second: a list of uint8 [h, w, 3].

    The short side is `size`. Raises VideoError where there is nothing to show.
    """
    shown = decode(path, [Filtered(fps, size)], start=start)
    count = max(1, round((end - start) * fps))
    pictures = [picture for _, picture, _ in islice(shown, count)]
    if not pictures:
        raise VideoError(f"no frame between {start} and {end} s")
    return pictures


def wrapped_moments(weight, side):
    """Centre of weights [N, S*S] over a picture, and each pixel's offset from it.

    Returns x [N, 1], y [N, 1], dx [N, S*S], dy [N, S*S]; unit: the picture's side. The means and
    differences are circular, so that a thing cut by the border of a picture that wraps round (the
    mini world's) is one thing; elsewhere this only moves the origin.
    """
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    centres = []
    offsets = []
    for axis in (columns, rows):
        axis = axis.reshape(-1) / side   # [S*S]
        sine = weight @ np.sin(2 * np.pi * axis)   # [N]
        cosine = weight @ np.cos(2 * np.pi * axis)
        centre = np.arctan2(sine, cosine)[:, None] / (2 * np.pi)   # [N, 1]
        centres.append(centre)
        offsets.append((axis - centre + 0.5) % 1 - 0.5)   # [N, S*S]
    return *centres, *offsets


def frame_descriptor(frames):
    """What one frame shows (the small 2D stream). uint8 [N, S, S, 3] -> float32 [N, 56].

    A 4 x 4 thumbnail (48), and of the colourful part of the picture: area, centre, how elongated
    and how large it is (image moments, Hu 1962), mean colour. Nothing of motion.
    """
    N, S = frames.shape[:2]
    rgb = frames.astype(np.float32) / 255   # [N, S, S, 3]
    thumbnail = rgb.reshape(N, 4, S // 4, 4, S // 4, 3).mean((2, 4))   # [N, 4, 4, 3]
    red = rgb[..., 0]   # by name: numpy reduces an axis of 3 ten times slower
    green = rgb[..., 1]
    blue = rgb[..., 2]
    highest = np.maximum(np.maximum(red, green), blue)
    chroma = highest - np.minimum(np.minimum(red, green), blue)   # [N, S, S]
    weight = np.where(chroma > 0.15, chroma, 0).reshape(N, -1)   # grey is background
    total = weight.sum(1, keepdims=True) + 1e-3   # [N, 1]
    x, y, dx, dy = wrapped_moments(weight, S)
    xx = (weight * (dx * dx)).sum(1, keepdims=True) / total
    yy = (weight * (dy * dy)).sum(1, keepdims=True) / total
    xy = (weight * (dx * dy)).sum(1, keepdims=True) / total
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy ** 2)
    elongation = spread / (xx + yy + 1e-4)   # 0 round .. 1 a line
    colour = (weight[:, None] @ rgb.reshape(N, -1, 3))[:, 0] / total   # [N, 3]
    area = (weight > 0).mean(1, keepdims=True)
    columns = [thumbnail.reshape(N, -1), np.sqrt(area), x, y, elongation, xx + yy, colour]
    return np.concatenate(columns, 1)


def motion_descriptor(frames):
    """What moves in each window of 4 frames (the small 3D stream). uint8 [N, S, S, 3] -> [M, 40].

    Least-squares affine motion of the picture between neighbouring frames (Bergen et al. 1992):
    translation, divergence, curl, two shears, and speed, averaged over the window (7), the change
    of speed across it (1); and a 4 x 4 grid of motion energy along x and y (32). float32.
    """
    N, S = frames.shape[:2]
    if N < WINDOW:
        return np.zeros((0, 40), np.float32)
    pairs = N - 1
    grey = frames @ np.full(3, 1 / (3 * 255), np.float32)   # [N, S, S]
    for axis in (1, 2):   # a 1-2-1 blur: unblurred edges show only motions below one pixel
        grey = (np.roll(grey, 1, axis) + 2 * grey + np.roll(grey, -1, axis)) / 4
    change = grey[1:] - grey[:-1]   # [N-1, S, S]
    middle = (grey[1:] + grey[:-1]) / 2
    gx = (np.roll(middle, -1, 2) - np.roll(middle, 1, 2)) / 2
    gy = (np.roll(middle, -1, 1) - np.roll(middle, 1, 1)) / 2

    # where something moves, and around it the equations of the flow
    energy = ((gx * gx + gy * gy) * np.abs(change)).reshape(pairs, -1)
    _, _, dx, dy = wrapped_moments(energy, S)
    dx = (S / 8 * dx).reshape(pairs, S, S)   # unit: 8 pixels
    dy = (S / 8 * dy).reshape(pairs, S, S)
    near = (dx * dx + dy * dy < 4).astype(np.float32)   # 1 at the mover
    columns = np.stack([gx, gx * dx, gx * dy, gy, gy * dx, gy * dy], -1)   # [N-1, S, S, 6]
    columns = (columns * near[..., None]).reshape(pairs, S * S, 6)
    transposed = columns.transpose(0, 2, 1)
    normal = transposed @ columns + 1e-3 * np.eye(6, dtype=np.float32)   # [N-1, 6, 6]
    right = -(transposed @ change.reshape(pairs, -1, 1))   # [N-1, 6, 1]
    flow = np.linalg.solve(normal, right)[:, :, 0]   # [N-1, 6]
    # beyond these, cuts: a first-order estimate sees nothing there
    flow[:, [0, 3]] = flow[:, [0, 3]].clip(-4, 4)
    flow[:, [1, 2, 4, 5]] = flow[:, [1, 2, 4, 5]].clip(-0.5, 0.5)

    u, ux, uy, v, vx, vy = flow.T   # u + ux dx + uy dy
    affine = np.stack([u, v, ux + vy, vx - uy, ux - vy, uy + vx, np.hypot(u, v)], 1)   # [N-1, 7]
    each = [affine]
    for gradient in (gx, gy):
        cells = (-gradient * change).reshape(pairs, 4, S // 4, 4, S // 4).mean((2, 4))
        each.append(1000 * cells.reshape(pairs, -1))   # [N-1, 16]
    each = np.concatenate(each, 1)   # [N-1, 39]
    steps = []
    for start in range(0, N - WINDOW + 1, HOP):
        window = each[start:start + WINDOW - 1]   # [3, 39]
        gain = window[WINDOW // 2:, 6].mean() - window[:WINDOW // 2 - 1, 6].mean()
        steps.append(np.append(window.mean(0), gain.clip(-2, 2)))
    return np.stack(steps).astype(np.float32)   # [M, 40]


def frame_steps(frames):
    """The small 2D stream, a step where the motion stream has one."""
    return frame_descriptor(frames[::HOP])


def prepare_frames(frames):
    """Frames as ResNet-152 takes them: uint8 [N, H, W, 3] -> float [N, 3, H, W]."""
    mean = torch.tensor((0.485, 0.456, 0.406), device=frames.device)
    std = torch.tensor((0.229, 0.224, 0.225), device=frames.device)
    return ((frames / 255 - mean) / std).permute(0, 3, 1, 2)


def prepare_windows(frames):
    """Windows of 16 frames as 3D ResNeXt-101 takes them: uint8 [N, H, W, 3] -> [M, 3, 16, H, W].

    M = ceil(N / 16). Zero frames fill the last window before the mean is taken off, so they are
    not zero in the end: HowTo100M's way.
    """
    frames = F.pad(frames, (0, 0, 0, 0, 0, 0, 0, -len(frames) % 16))
    frames = frames - torch.tensor((110.6, 103.2, 96.3), device=frames.device)
    return frames.unflatten(0, (-1, 16)).permute(0, 4, 1, 2, 3)


class Stream(NamedTuple):
    """How a stream is made. Its pictures are worked off in batches while decoding goes on."""
    view: object   # makes the view that it looks at; streams that name the same one share it
    batch: int   # pictures
    function: object   # uint8 [n <= batch, h, w, 3] -> [steps, D]; a CNN's: tensor -> its input
    cnn: bool   # a frozen network of model.CNNS, named like the stream?
    rate: float   # steps a second
    width: int   # D
    frames_seen: int   # frames that one step sees


SMALL_VIEW = partial(Filtered, FPS, SIDE, stretch=True)
FRAME_VIEW = partial(Filtered, 1, 224)
WINDOW_VIEW = partial(Filtered, 24, 112, crop=True)

STREAMS = {
    "frame": Stream(SMALL_VIEW, 512, frame_steps, False, FPS / HOP, 56, 1),
    "motion": Stream(SMALL_VIEW, 512, motion_descriptor, False, FPS / HOP, 40, WINDOW),
    "resnet152": Stream(FRAME_VIEW, 16, prepare_frames, True, 1.0, 2048, 1),
    "resnext101": Stream(WINDOW_VIEW, 8 * 16, prepare_windows, True, 24 / 16, 2048, 16),
}


@lru_cache
def cnn_function(name, weights, device, precision):
    """A frozen CNN as a function: uint8 [n, h, w, 3] -> unit features [steps, 2048]."""
    dtype = settle_precision(precision, torch.device(device))[1] or torch.float32
    # else fp32 convolutions on CUDA keep 10 bits, where the published ones kept 23
    torch.backends.cudnn.allow_tf32 = False
    network = model.load_cnn(name, weights).to(device, dtype)

    @torch.inference_mode()
    def function(frames):
        inputs = STREAMS[name].function(torch.from_numpy(frames).to(device))
        return F.normalize(network(inputs.to(dtype)).float(), dim=1).cpu().numpy()
    return function


def describe(path, functions):
    """Decodes a film once and computes its streams. functions: {stream: function}.

    Returns ({stream: float16 [T, D]}, seconds of film, packets skipped). Raises VideoError.
    """
    views = {STREAMS[name].view: STREAMS[name].view() for name in functions}
    waiting = {name: [] for name in functions}   # pictures
    features = {name: [] for name in functions}   # of the batches so far
    damaged = []
    seconds = 0.0

    def work_off(name):
        if waiting[name]:
            with np.errstate(over="ignore"):   # what float16 cannot hold is refused below
                batch = functions[name](np.stack(waiting[name])).astype(np.float16)
            features[name].append(batch)
            waiting[name].clear()

    for view, picture, seconds in decode(path, list(views.values()), damaged):
        for name in functions:
            if views[STREAMS[name].view] is view:
                waiting[name].append(picture)
                if len(waiting[name]) == STREAMS[name].batch:
                    work_off(name)
    arrays = {}
    for name in functions:
        work_off(name)
        if sum(map(len, features[name])) == 0:
            raise VideoError(f"{seconds:.2f} seconds are too short for one step of {name}")
        arrays[name] = np.concatenate(features[name])   # [T, D]
        if not np.isfinite(arrays[name]).all():
            raise VideoError(f"stream {name} is not finite")
    return arrays, seconds, len(damaged)


def extract(path, streams, out, cnn_settings):
    """Writes the streams of one film. Returns (seconds of film, packets skipped).

    cnn_settings: (weights, device, precision). Raises VideoError.
    """
    functions = {}
    for name in streams:
        functions[name] = STREAMS[name].function
        if STREAMS[name].cnn:
            functions[name] = cnn_function(name, *cnn_settings)
    arrays, seconds, damaged = describe(path, functions)
    for name, array in arrays.items():
        target = Path(out) / "features" / name / f"{Path(path).stem}.npy"
        temporary = target.with_suffix(".npy.tmp")
        with open(temporary, "wb") as file:
            np.save(file, array)
        os.replace(temporary, target)
    return seconds, damaged


def start_worker(threads):
    """In a worker process: the threads that it takes; and it ends when its parent is killed."""
    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)
    torch.set_num_threads(threads)
    threading.Thread(target=end_with_parent, daemon=True).start()


def run_workers(jobs, workers, make_pool):
    """Yields (id, future) of jobs {id: (function, *arguments)}, as they are done.

    Each process is a pool of its own, so that it is known which film a process died at: that one
    is tried once more, after the others. After an unexpected error a process is replaced, too: one
    that met an error of CUDA computes nothing any more.
    """
    waiting = deque(jobs)
    died = set()
    idle = [make_pool() for _ in range(workers)]
    running = {}   # {future: (id, pool)}
    while waiting or running:
        while waiting and idle:
            video = waiting.popleft()
            pool = idle.pop()
            try:
                future = pool.submit(*jobs[video])
            except BrokenProcessPool:   # its process was killed meanwhile
                pool = make_pool()
                future = pool.submit(*jobs[video])
            running[future] = video, pool
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            video, pool = running.pop(future)
            error = future.exception()
            if error and not isinstance(error, VideoError):
                pool.shutdown(wait=False)
                pool = make_pool()
            idle.append(pool)
            if isinstance(error, BrokenProcessPool) and video not in died:
                died.add(video)
                waiting.append(video)
            else:
                yield video, future
    for pool in idle:
        pool.shutdown()


def read_stream(folder, made_by):
    """stream.json of a feature folder, ours or anyone's, as a dict: rate, width, frames_seen.

    frames_seen is 1 if not given. Raises UserError that says what to write.
    """
    path = Path(folder) / "stream.json"
    form = ('{"rate": steps a second, "width": D, "frames_seen": frames a step sees} '
            "for arrays [T, D] named ID.npy")
    if not path.exists():
        raise UserError(f"{path} is missing. `{made_by}` writes it for its own streams; beside "
                        f"features made by another tool, write it yourself: {form}")
    stream = read_json(path, made_by)
    if isinstance(stream, dict):
        stream = {"frames_seen": 1, **stream}
        kinds = {"rate": (int, float), "width": (int,), "frames_seen": (int,)}
        if all(type(stream.get(key)) in kinds[key] and stream[key] > 0 for key in kinds):
            return stream
    raise UserError(f"{path} must hold {form}, all above 0, not {json.dumps(stream)[:200]}")


def open_streams(streams, out, tag, cnn_settings):
    """Makes the feature folders with their stream.json. tag: that of the shard.

    Raises UserError on an unknown stream, on weights that do not fit, and where a folder holds
    features that were made otherwise.
    """
    weights, _, precision = cnn_settings
    for name in streams:
        folder = out / "features" / name
        if name not in STREAMS:
            raise UserError(f"unknown stream {name}; known: {', '.join(STREAMS)}. Another tool's "
                            f"stream is not named here: its arrays go to {folder} with a "
                            "stream.json")
        stream = STREAMS[name]
        facts = {"rate": stream.rate, "width": stream.width, "frames_seen": stream.frames_seen}
        if stream.cnn:
            model.load_cnn(name, weights)   # a missing or wrong file is said once and at once
            facts["precision"] = precision
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "stream.json").exists():
            before = read_stream(folder, "python data.py video")
            if before != facts:
                raise UserError(f"{folder} has features made otherwise ({before}, now {facts}): "
                                "choose another --out")
        # a shard's own name first: many may start in one second
        write_json(folder / f"stream{tag}.json", facts)
        os.replace(folder / f"stream{tag}.json", folder / "stream.json")


def parse_shard(text):
    """'3/64' -> (3, 64). Raises UserError unless it is one of 1/64 ... 64/64."""
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise UserError(f"--shard {text}: shards are counted from 1, as 1/64, 2/64, ... 64/64")
    return int(k), int(n)


def in_shard(video, shard):
    """Is a film of this shard (k, n)? By the hash of its id, so that new films move no other."""
    k, n = shard
    return int(hashlib.sha256(video.encode()).hexdigest(), 16) % n == k - 1


def missing_shards(out):
    """The shards that were not run to their end, as ["2/3", ...]; [] where none was ever begun.

    A shard has features/left_out.K-of-N.tsv when it is complete, and that name + .tmp before.
    """
    folder = Path(out) / "features"
    totals = {path.name.split("-of-")[1].split(".")[0] for path in folder.glob("left_out.*-of-*")}
    missing = []
    for n in sorted(map(int, totals)):
        shards = range(1, n + 1)
        lacking = [k for k in shards if not (folder / f"left_out.{k}-of-{n}.tsv").exists()]
        if not lacking:
            return []
        missing += [f"{k}/{n}" for k in lacking]
    return missing


def extract_features(films, streams, out, workers=None, shard=None, weights="data/weights",
                     device="auto", precision="fp32"):
    """Writes OUT/features/STREAM/ID.npy of films {id: path}, in several processes. Resumable.

    shard (k, n): only the films of that part; n machines can share `out`. What cannot be used is
    listed in OUT/features/left_out.tsv, a shard's in left_out.K-of-N.tsv (id, reason), and tried
    again by the next start. Returns how many films met an error that is not their own. Raises
    UserError on settings that cannot be kept, without a shard where some are missing, and when 20
    films in a row met such errors.
    """
    out = Path(out)
    cnn = any(name in model.CNNS for name in streams)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = cnn and device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        raise UserError(f"--device {device}: PyTorch sees no CUDA device here; "
                        "--device cpu works, far slower")
    if not shard and missing_shards(out):
        raise UserError(f"{out}: shards {', '.join(missing_shards(out))} are not complete: run "
                        "them first (or, to extract all here, delete "
                        f"{out}/features/left_out.*-of-*)")
    if not workers:
        workers = min(4, os.cpu_count()) if on_gpu else os.cpu_count()
    threads = max(1, os.cpu_count() // workers)
    tag = f".{shard[0]}-of-{shard[1]}" if shard else ""
    cnn_settings = str(weights), device, precision
    open_streams(streams, out, tag, cnn_settings)
    done = [set(os.listdir(out / "features" / name)) for name in streams]
    jobs = {}
    for video, path in films.items():
        lacking = any(f"{video}.npy" not in files for files in done)
        if lacking and (shard is None or in_shard(video, shard)):
            jobs[video] = extract, path, streams, out, cnn_settings
    context = None
    if cnn:   # neither CUDA nor OpenMP survives a fork
        context = multiprocessing.get_context("spawn")
        print(f"{len(jobs):,} videos on {device} in {precision}, "
              f"{workers} processes of {threads} threads")
    make_pool = partial(ProcessPoolExecutor, 1, context, start_worker, (threads,))
    record = out / "features" / f"left_out{tag}.tsv"
    if jobs:
        record.unlink(missing_ok=True)   # killed from here on, it is not complete
    with open(f"{record}.tmp", "w", encoding="utf-8") as file:
        outcomes = run_workers(jobs, min(workers, len(jobs)), make_pool)
        unexpected = record_outcomes(outcomes, len(jobs), file)
    os.replace(f"{record}.tmp", record)
    return unexpected


def record_outcomes(outcomes, total, file):
    """Writes (id, reason) of the films that cannot be used. Returns the number of other errors.

    outcomes: (id, future of `extract`). Raises UserError when 20 in a row were other errors.
    """
    started = time.time()
    counts = Counter()
    in_a_row = 0
    for video, future in tqdm(outcomes, total=total, unit="video", desc="features"):
        error = future.exception()
        if error is None:
            seconds, damaged = future.result()
            counts.update(seconds=seconds, damaged=damaged)
            in_a_row = 0
            continue
        reason = str(error)
        if not isinstance(error, VideoError):
            reason = f"{type(error).__name__}: {error}"
            counts.update(unexpected=1)
            in_a_row += 1
        if isinstance(error, BrokenProcessPool):
            reason = "a process died at it twice: killed, likely for memory, or crashed"
        counts.update(left_out=1)
        file.write(f"{video}\t{' '.join(reason.split())}\n")   # one line
        if in_a_row == 20:
            raise UserError(f"20 videos in a row met errors, the last one {video}: {reason}; mend "
                            "this and start the same command again")
    rate = counts["seconds"] / (time.time() - started)
    print(f"{total - counts['left_out']:,} videos, {counts['seconds']:,.0f} seconds of film, "
          f"{rate:,.1f} a second; {counts['damaged']} damaged packets skipped; left out: "
          f"{counts['left_out']}, listed in {Path(file.name).with_suffix('')}")
    return counts["unexpected"]


def video_command(args):
    """`data.py video`: features of every film of a folder; with --vocab, the captions, too."""
    if args.category and not args.only:
        raise UserError("--category narrows --only, the CSV that says which video is of which "
                        "category")
    shard = parse_shard(args.shard) if args.shard else None
    if args.vocab and not shard:
        load_tokenizer(args.vocab, args.cased)   # what is wrong with it is said before the work
    films = film_files(args.videos)
    others = [path.suffix for path in Path(args.videos).glob("[!.]*") if not is_film(path)]
    if others:
        endings = [f"{count:,} {ending or 'without'}" for ending, count in Counter(others).items()]
        print(f"{args.videos}: passed over, no films by their endings: {', '.join(endings)}")
    if args.only:
        only = listed_videos(args.only, args.category)
        films = {video: films[video] for video in films if video in only}
    if not films:
        raise UserError(f"no film in {args.videos} (of --only, if given); films end in "
                        f"{' '.join(sorted(FILM_ENDINGS))}")
    unexpected = extract_features(films, args.streams, args.out, args.workers, shard, args.weights,
                                  args.device, args.precision)
    if args.vocab and not shard:
        captions_command(args)
    else:
        print(f"next, with the features of all videos: python data.py captions --videos "
              f"{args.videos} --out {args.out} --vocab VOCAB")
    if unexpected:
        raise UserError(f"{unexpected} videos met an error that is not their own, listed in "
                        f"{args.out}/features: the same command tries them again (with fewer "
                        "--workers, where processes died)")


# --------------------------------------------------------------------------------------------------
# Captions -> packed tokens. HowTo100M's are 3.4 GB of JSON, so they are read one video at a time
# and written as flat files that every process maps: captions/tokens.bin, all tokens; bounds.bin,
# where each caption's tokens begin (int64); times.bin, start and end in seconds (float32);
# spans.bin, each video's first caption and the one after its last (int64); and, written last,
# index.json with the ids in sorted order, the row order of spans.

CAPTION_ARRAYS = ("tokens", "bounds", "times", "spans")
LONGEST_ENTRY = 1 << 26   # letters of one video's captions in JSON
FLASH = 0.05              # seconds; what is shown for less is there for its text alone
PAIR = re.compile(r'\s*([{,])\s*("(?:[^"\\]|\\.)*")\s*:\s*')   # of JSON: a mark, a key
CLOCK = r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:[.,]\d{1,3})?)"
TIMES = re.compile(rf"\s*{CLOCK}\s*-->\s*{CLOCK}(?:\s.*)?")
# what is meant as times, well written or not: a number and an arrow; a clock and an arrow or clock
LIKE_TIMES = re.compile(r"\s*-?(?:[\d:., ]+-->|\d+:\d+[:.,]\d[\d:.,]*\W*(?:[>→]|\d+:\d+[:.,]\d))")
MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|<[\d:.]+>|\{\\[^}]*\}")   # <c>, <00:00:01.000>, {\an8}


def json_captions(path, _, bar, piece=1 << 22):
    """Yields (video, captions) of HowTo100M's form {video: {"text": [], "start": [], "end": []}},
    with `piece` letters and one entry in memory. Raises UserError naming file, byte and video."""
    decoder = json.JSONDecoder()
    buffer = ""
    byte = 0   # of the file, where the buffer begins
    video = None
    mark = "{"
    read = True
    with open(path, encoding="utf-8-sig", newline="") as file:
        while read and len(buffer) < LONGEST_ENTRY:
            try:
                read = file.read(piece)
            except UnicodeDecodeError as error:
                at = file.buffer.tell() - len(error.object) + error.start
                raise UserError(f"{path}, byte {at}, after video {video!r}: not UTF-8") from None
            bar.update(len(read))
            buffer += read
            place = 0
            problem = f"expected {mark}"
            while (pair := PAIR.match(buffer, place)) and pair[1] == mark:
                try:
                    entry, end = decoder.raw_decode(buffer, pair.end())
                except json.JSONDecodeError as error:   # wrong, or cut by the buffer's end
                    problem = f"{error.msg} at byte {byte + len(buffer[:error.pos].encode())}"
                    break
                video = json.loads(pair[2])
                check_captions(entry, video, path)
                yield video, entry
                mark = ","
                place = end
            byte += len(buffer[:place].encode())
            buffer = buffer[place:]
    if "".join(buffer.split()) != ("{}" if video is None else "}"):
        raise UserError(f"{path}, byte {byte}, after video {video!r}: not one JSON object of "
                        f"videos ({problem})")


def check_captions(entry, video, path):
    """Raises UserError unless entry is {"text": [], "start": [], "end": []}. None and NaN, a
    table's marks of an empty cell, become empty texts."""
    columns = []
    if isinstance(entry, dict):
        columns = [entry.get(key) for key in ("text", "start", "end")]
    lengths = {len(column) if isinstance(column, list) else None for column in columns}
    if None in lengths or len(lengths) != 1:
        raise UserError(f"{path}: video {video!r} needs lists text, start and end of one length")
    entry["text"] = ["" if text is None or text != text else text for text in entry["text"]]
    numbers = (int, float)
    for row, (text, start, end) in enumerate(zip(entry["text"], entry["start"], entry["end"])):
        timed = type(start) in numbers and type(end) in numbers   # True is none
        if not timed or type(text) is not str or not is_unicode(text):
            raise UserError(f"{path}: video {video!r}, caption {row}: needs a text and two "
                            f"numbers, not {text!r}, {start!r}, {end!r}")


def is_unicode(text):
    """False for text with half of a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def csv_rows(path, columns):
    """Yields (line number, {column: cell}) of a CSV. Raises UserError naming file and line."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            header = reader.fieldnames or []
            missing = [name for name in columns if name not in header]
            if missing:
                raise UserError(f"{path}, line 1: no column {', '.join(missing)}; there are "
                                f"{', '.join(header)}")
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{path}, line {reader.line_num}: needs {len(header)} cells")
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line {reader.line_num + 1} or after: {error}") from None


def csv_captions(path, video, bar):
    """Yields (video, captions) of a CSV of start, end, text; with a video_id too, of many videos.
    All is in memory: the rows of a video need not stand together."""
    videos = {}
    for line, row in csv_rows(path, ("start", "end", "text")):
        entry = videos.setdefault(row.get("video_id", video), {"text": [], "start": [], "end": []})
        try:
            entry["start"].append(float(row["start"]))
            entry["end"].append(float(row["end"]))
        except ValueError as error:
            raise UserError(f"{path}, line {line}: start and end are seconds; {error}") from None
        entry["text"].append(row["text"])
    bar.update(path.stat().st_size)
    yield from videos.items()


def subtitles(path, video, bar):
    """Yields (video, captions) of an .srt or .vtt file, without markup, a cue's lines joined.

    What no player would show (a cue with malformed times, text outside of a cue, a file that is not
    UTF-8) becomes a caption whose times are NaN, which unroll lists.
    """
    entry = {"text": [], "start": [], "end": []}

    def add(text, start=math.nan, end=math.nan):
        entry["text"].append(" ".join(html.unescape(MARKUP.sub("", text)).split()))
        entry["start"].append(start)
        entry["end"].append(end)

    raw = path.read_bytes()
    bar.update(len(raw))
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        content = re.sub(r"\r\n?", "\n", raw.decode("utf-16" if utf16 else "utf-8-sig"))
    except UnicodeDecodeError as error:
        content = ""
        add(f"not UTF-8 at byte {error.start}")
    blocks = [content]
    webvtt = content.startswith("WEBVTT")
    if webvtt:   # an empty line ends a cue there; YouTube's lines of one blank do not
        blocks = re.split("\n\n+", content.strip())
    for block in blocks:
        lines = block.split("\n")
        places = [place for place, line in enumerate(lines) if LIKE_TIMES.match(line)]
        if webvtt and re.match(r"(NOTE|STYLE|REGION)\b", block):
            continue
        if webvtt and not places and block != blocks[0]:
            add(block)
        for place, following in zip(places, [*places[1:], None]):
            text = "\n".join(lines[place + 1:following])
            if following:   # the number of the next cue
                text = re.sub(r"(^|\n)\s*\d+\s*$", "", text)
            times = TIMES.fullmatch(lines[place])
            if times:
                add(text, clock_seconds(*times.groups()[:3]), clock_seconds(*times.groups()[3:]))
            else:
                add(f"{lines[place]} {text}")
    yield video, entry


def clock_seconds(hours, minutes, seconds):
    """Seconds of the parts of a clock, which are text, or None for no hours."""
    return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", "."))


READERS = {".json": json_captions, ".csv": csv_captions, ".srt": subtitles, ".vtt": subtitles}


def caption_files(source, ids):
    """[(path, video)]: of a folder, one file for each of the ids that has some; or that one file.

    ID.srt and ID.vtt come before ID.LANGUAGE.srt or .vtt, of these English before others, then the
    alphabetically first; ID.csv comes last. Whisper's ID.json is not of HowTo100M's form.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"{source} is missing; `python data.py mini` makes the mini world's")
    if not source.is_dir():
        if source.suffix.lower() not in READERS:
            raise UserError(f"{source}: captions are a file of {', '.join(READERS)}, or a folder")
        bare, _, language = source.stem.rpartition(".")
        return [(source, bare if bare and source.stem not in ids else source.stem)]
    beside = {}
    for path in source.iterdir():
        kind = path.suffix.lower()
        video = path.stem
        language = ""
        if video not in ids:
            video, _, language = path.stem.rpartition(".")
        if video in ids and kind in (".srt", ".vtt", ".csv"):
            english = re.fullmatch(r"(en|eng|english)([-_].*)?", language.lower())
            rank = (kind == ".csv", language != "", english is None, language, kind)
            beside.setdefault(video, []).append((rank, path))
    return [(min(beside[video])[1], video) for video in sorted(beside)]


def read_captions(source, ids, title):
    """Yields (video, {"text": [], "start": [], "end": []}) of --captions, in the file's order.

    source, ids: see caption_files. Shows progress under `title`. Raises UserError naming file and
    place where something is malformed, or a video occurs twice.
    """
    files = caption_files(source, ids)
    seen = set()
    size = sum(path.stat().st_size for path, _ in files)
    with tqdm(total=size, unit="B", unit_scale=True, desc=title) as bar:
        for path, name in files:
            for video, entry in READERS[path.suffix.lower()](path, name, bar):
                if video in seen:
                    raise UserError(f"{path}: video {video!r} occurs twice")
                seen.add(video)
                yield video, entry


def overlap(previous, following, inside=frozenset()):
    """How many of the first tokens of `following` repeat the last tokens of `previous` (rolling
    captions). inside: tokens that go on with a word; nothing is cut in front of one, so "bake" does
    not roll into "baking"."""
    for count in range(min(len(previous), len(following)), 0, -1):   # the longest first
        if previous[-count:] == following[:count]:
            if count == len(following) or following[count] not in inside:
                return count
    return 0


def unroll(entry, pieces, seconds, inside):
    """Returns what of one video's captions can be used, [(token ids, start, end)], and what cannot,
    [(caption number, reason)]. pieces: token ids of each caption; seconds: of video.

    In order of time, the part of a caption that repeats the end of the one before is removed. New
    text that is shown for a moment only, as converters of rolling captions leave it, takes the time
    of the caption before.
    """
    timed = []
    left_out = []
    for number, (start, end) in enumerate(zip(entry["start"], entry["end"])):
        if math.isnan(start + end):
            left_out.append((number, f"no times that can be read: {entry['text'][number]!r}"))
        elif not 0 <= start < end:
            left_out.append((number, f"{start} to {end} s is no stretch of time"))
        elif start >= seconds:
            left_out.append((number, f"starts at {start} s, the video ends at {seconds} s"))
        else:
            timed.append((start, end, pieces[number]))
    used = []
    previous = []
    before = (0.0, -1.0)   # start and end
    for start, end, ids in sorted(timed, key=lambda caption: caption[0]):
        if end - start < FLASH and abs(start - before[1]) < FLASH:
            start, end = before
        before = (start, end)
        new = ids[overlap(previous, ids, inside):]
        previous = ids or previous
        if new:
            used.append((new, start, min(end, seconds)))
    return used, left_out


def pack_captions(source, seconds, tokenizer, out):
    """Tokenises the captions of the videos in `seconds` ({id: length}) into out/captions/; does
    nothing if that was done from the same files. captions/left_out.tsv lists captions that cannot
    be used (video, caption number, reason).

    Returns index.json: its "ids" have a usable caption, its "left_out" says why others have none.
    """
    folder = Path(out) / "captions"
    folder.mkdir(parents=True, exist_ok=True)
    files = [path for path, _ in caption_files(source, seconds)]
    inputs = inputs_hash(files, sorted(seconds.items()), tokenizer_hash(tokenizer))
    if is_made_from(folder / "index.json", inputs):
        print(f"{folder}: up to date")
        return read_json(folder / "index.json", "")
    captioned = read_captions(source, seconds, "captions")
    counts, spans, left_out = write_captions(captioned, seconds, tokenizer, folder)
    # index.json vouches for the arrays: it goes before them, comes after them
    (folder / "index.json").unlink(missing_ok=True)
    for name in [*(f"{name}.bin" for name in CAPTION_ARRAYS), "left_out.tsv"]:
        os.replace(folder / f"{name}.tmp", folder / name)
    kind = smallest_integer(tokenizer.get_vocab_size())
    hashes = {name: file_hash(folder / f"{name}.bin") for name in CAPTION_ARRAYS}
    index = {"counts": counts, "dtype": kind.name, "made_from": inputs, "ids": sorted(spans),
             "left_out": left_out, "sha256": hashes}
    write_json(folder / "index.json", index)
    return index


def write_captions(captioned, seconds, tokenizer, folder):
    """Writes the arrays and left_out.tsv under temporary names. captioned: pairs of read_captions.

    Returns how many captions were "read" and "kept" and their "tokens"; {video: (first, last + 1)
    of the kept captions}; {video: why it has none}.
    """
    kinds = [smallest_integer(tokenizer.get_vocab_size()), np.int64, np.float32]
    prefix = tokenizer.model.continuing_subword_prefix
    vocabulary = tokenizer.get_vocab()
    inside = {index for piece, index in vocabulary.items() if piece.startswith(prefix)}
    counts = {"read": 0, "kept": 0, "tokens": 0}
    spans = {}
    left_out = dict.fromkeys(seconds, "no captions")
    wanted = (pair for pair in captioned if pair[0] in seconds)
    with ExitStack() as stack:
        arrays = [stack.enter_context(open(folder / f"{name}.bin.tmp", "wb"))
                  for name in CAPTION_ARRAYS[:3]]
        listed = stack.enter_context(open(folder / "left_out.tsv.tmp", "w", encoding="utf-8"))
        arrays[1].write(np.int64(0).tobytes())
        while videos := list(islice(wanted, 200)):   # the tokenizer uses all cores for a batch
            texts = list(chain.from_iterable(entry["text"] for _, entry in videos))
            encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
            counts["read"] += len(texts)
            tokens = []
            bounds = []
            times = []
            for video, entry in videos:
                pieces = [encoding.ids for encoding in islice(encoded, len(entry["text"]))]
                used, unusable = unroll(entry, pieces, seconds[video], inside)
                for new, start, end in used:
                    tokens += new
                    bounds.append(counts["tokens"] + len(tokens))
                    times += [start, end]
                for number, reason in unusable:
                    listed.write(f"{video}\t{number}\t{reason}\n")
                left_out[video] = f"none of its {len(pieces)} captions can be used"
                if used:
                    del left_out[video]
                    spans[video] = (counts["kept"], counts["kept"] + len(used))
                    counts["kept"] += len(used)
            counts["tokens"] += len(tokens)
            for file, values, kind in zip(arrays, (tokens, bounds, times), kinds):
                file.write(np.array(values, kind).tobytes())
    np.array([spans[video] for video in sorted(spans)], np.int64).tofile(folder / "spans.bin.tmp")
    return counts, spans, left_out


def hold_out(ids, count, folder):
    """The held-out videos as a set: those of folder/valid_ids.json where it brings one, else
    `count`, or if that is None a fiftieth, at most the 10,000 that the paper held out.

    Those whose id has the smallest sha256, so that adding videos moves few others.
    """
    listed = Path(folder) / "valid_ids.json"
    if listed.exists():
        return set(read_json(listed, "python data.py mini")).intersection(ids)
    if count is None:
        count = min(10000, max(1, len(ids) // 50), len(ids) - 1)
    if not 0 <= count < len(ids):
        raise UserError(f"--held-out {count} of {len(ids)} videos leaves none to train on")
    ordered = sorted(ids, key=lambda video: hashlib.sha256(video.encode()).digest())
    return set(ordered[:count])


def listed_videos(path, category=None):
    """The ids of a CSV such as HowTo100M_v1.csv (column video_id), or of one category_1 of it."""
    columns = ("video_id", "category_1") if category else ("video_id",)
    rows = [row for _, row in csv_rows(path, columns)]
    ids = {row["video_id"] for row in rows if not category or row["category_1"] == category}
    if not ids:
        raise UserError(f"{path}: no row" + (f" with category_1 {category!r}" if category else ""))
    return ids


def feature_seconds(out):
    """{id: seconds, of its longest stream} of the videos that every folder of out/features has."""
    made_by = f"python data.py video --out {out}"
    streams = []
    for described in out.glob("features/*/stream.json"):
        rate = read_stream(described.parent, made_by)["rate"]
        paths = described.parent.glob("[!.]*.npy")
        streams.append({path.stem: len(np.load(path, mmap_mode="r")) / rate for path in paths})
    if not streams:
        raise UserError(f"no features in {out}/features; `{made_by}` makes them")
    videos = set(streams[0]).intersection(*streams)
    return {video: max(lengths[video] for lengths in streams) for video in videos}



def captions_command(args):
    """`data.py captions`: packs the captions of all videos that have features, and splits these.

    Writes OUT/captions/, OUT/tokenizer.json, OUT/left_out.tsv (video, reason) and, last,
    OUT/splits.json.
    """
    out = Path(args.out)
    if args.category and not args.only:
        raise UserError("--category narrows --only, the CSV that says which video is of which "
                        "category")
    tokenizer = load_tokenizer(args.vocab, args.cased)
    missing = missing_shards(out)
    if missing:
        raise UserError(f"{out}: shards {', '.join(missing)} are not complete: run them first")
    left_out = dict.fromkeys(film_files(args.videos), "no features")
    for path in sorted(out.glob("features/left_out*.tsv")):
        lines = path.read_text(encoding="utf-8").splitlines()
        left_out.update(line.split("\t", 1) for line in lines)
    seconds = feature_seconds(out)
    if args.only:
        only = listed_videos(args.only, args.category)
        left_out |= dict.fromkeys(set(seconds) - only, "not one of --only")
        seconds = {video: length for video, length in seconds.items() if video in only}
    source = args.captions or args.videos
    files = caption_files(source, seconds)
    endings = Counter(path.name.removeprefix(video) for path, video in files)
    print(f"{source}: caption files by ending: {dict(endings)}")
    (out / "splits.json").unlink(missing_ok=True)   # where it is, all is
    index = pack_captions(source, seconds, tokenizer, out)
    left_out |= index["left_out"]
    usable = index["ids"]
    rows = [f"{video}\t{left_out[video]}\n" for video in sorted(set(left_out).difference(usable))]
    write_text(out / "left_out.tsv", "".join(rows))
    if not usable:
        raise UserError(f"not one usable video in {args.videos}; the reasons are in "
                        f"{out}/left_out.tsv and {out}/captions/left_out.tsv")
    keep_tokenizer(tokenizer, out)
    valid = hold_out(usable, args.held_out, out)
    write_json(out / "splits.json", {"train": sorted(set(usable) - valid), "valid": sorted(valid),
                                     "videos": str(args.videos)})
    hours = sum(seconds[video] for video in usable) / 3600
    read = index["counts"]["read"]
    kept = index["counts"]["kept"]
    print(f"{len(usable):,} videos, {len(valid):,} of them held out, {hours:.2f} hours, {kept:,} "
          f"captions ({read - kept:,} more hold nothing new or are in {out}/captions/left_out.tsv); "
          f"left out: {len(rows)} videos, listed in {out}/left_out.tsv")


# --------------------------------------------------------------------------------------------------
# Data sets


class TextBlocks:
    """Packed text cut into blocks of block - 2 consecutive tokens, each between [CLS] and [SEP]."""

    def __init__(self, folder, name, tokenizer, block):
        packed = read_json(Path(folder) / f"{name}.json", f"python data.py text --out {folder}")
        path = Path(folder) / f"{name}.bin"
        tokens = np.memmap(path, dtype=packed["dtype"], mode="r")
        if len(tokens) != packed["tokens"]:
            raise UserError(f"{path} holds {len(tokens)} tokens, {name}.json says "
                            f"{packed['tokens']}: delete both and run `python data.py text` again")
        ids = special_ids(tokenizer)
        self.cls = ids["cls"]
        self.sep = ids["sep"]
        self.inner = block - 2
        count = len(tokens) // self.inner
        self.blocks = tokens[:count * self.inner].reshape(count, self.inner)
        if count == 0:
            raise UserError(f"{path} holds {len(tokens)} tokens, less than one block of {block}")

    def __len__(self):
        return len(self.blocks)

    def batch(self, indices):
        """Token ids int64 [B, block] of the given blocks."""
        tokens = np.empty((len(indices), self.inner + 2), np.int64)
        tokens[:, 0] = self.cls
        tokens[:, 1:-1] = self.blocks[indices]
        tokens[:, -1] = self.sep
        return torch.from_numpy(tokens)


CACHE = 2 ** 28   # bytes of features that a data set keeps in memory, in each process


class Clips:
    """Captions with the features of the stretch of video they were spoken over.

    An example starts at a random caption of its video; following captions join it until the block
    is full, and the clip runs from the first one's start to the last used one's end. (The authors
    always start at caption 0.)
    """

    def __init__(self, folder, split, streams, tokenizer, block, max_steps, frames=None):
        self.folder = Path(folder)
        self.streams = streams
        self.block = block
        self.max_steps = max_steps
        self.frames = frames
        made_by = f"python data.py video --out {folder}"
        self._open_captions(split, made_by)
        opened = {}
        for name in streams:
            opened[name] = read_stream(self.folder / "features" / name, made_by)
        self.rates = {name: opened[name]["rate"] for name in streams}
        self.stream_dims = {name: opened[name]["width"] for name in streams}
        self.frames_seen = {name: opened[name]["frames_seen"] for name in streams}
        special = special_ids(tokenizer)
        self.cls = special["cls"]
        self.sep = special["sep"]
        self.pad = special["pad"]
        self.cache = {}   # {(stream, video): [T, D]}
        self.cached = 0   # bytes

    def _open_captions(self, split, made_by):
        """Maps the packed captions: all processes share them, and only what is used is read."""
        ids = read_json(self.folder / "splits.json", made_by)[split]
        index = read_json(self.folder / "captions" / "index.json", made_by)
        self.sha256 = index["sha256"]   # of the captions, for a run's list of its inputs
        arrays = []
        for name, kind in zip(CAPTION_ARRAYS, (index["dtype"], np.int64, np.float32, np.int64)):
            mapped = np.memmap(self.folder / "captions" / f"{name}.bin", kind, "r")
            arrays.append(np.asarray(mapped))   # numpy slices plain arrays faster
        self.tokens, self.bounds, times, spans = arrays
        counts = index["counts"]
        if len(self.tokens) != counts["tokens"] or len(self.bounds) != counts["kept"] + 1:
            raise UserError(f"{self.folder}/captions: the arrays are not those that index.json "
                            f"describes; delete the folder and run `{made_by}` again")
        self.times = times.reshape(-1, 2)
        row_of = {video: row for row, video in enumerate(index["ids"])}
        spans = spans.reshape(-1, 2)[[row_of[video] for video in ids]]   # [videos, 2]
        spoken = spans[:, 1] > spans[:, 0]   # True = has a caption
        self.spans = spans[spoken]
        self.ids = [video for video, has_caption in zip(ids, spoken) if has_caption]
        if not self.ids:
            raise UserError(f"{self.folder}: the {split} split holds no video with a usable "
                            "caption")

    def __len__(self):
        return len(self.ids)

    def _load(self, name, video):
        """One stream of one video, [T, D]: kept in memory while CACHE bytes last, else mapped.

        Nothing is evicted: videos come in random order, so any that are kept serve as well as the
        latest.
        """
        if (name, video) in self.cache:
            return self.cache[name, video]
        path = self.folder / "features" / name / f"{video}.npy"
        if not path.exists():
            raise UserError(f"{path} is missing; `python data.py video --out {self.folder} "
                            f"--streams {name}` makes it")
        array = np.load(path, mmap_mode="r")
        width = self.stream_dims[name]
        if array.ndim != 2 or array.shape[1] != width or len(array) == 0:
            raise UserError(f"{path}: expected [T, {width}] with T > 0, found {list(array.shape)}")
        if self.cached + array.nbytes <= CACHE:
            array = np.array(array)
            self.cache[name, video] = array
            self.cached += array.nbytes
        return array

    def clip(self, video, start, end):
        """Features [T, D] float32 of seconds start..end, all streams side by side.

        T steps of the first stream: a step belongs if its interval meets [start, end); more than
        max_steps are thinned evenly. Other streams are resampled to the first one's steps. With
        `frames` set, that many steps, evenly spaced, stand for the clip.
        """
        columns = []
        for name in self.streams:
            array = self._load(name, video)
            rate = self.rates[name]
            if not columns:
                low = min(int(np.floor(start * rate + 1e-4)), len(array) - 1)
                high = max(low + 1, min(int(np.ceil(end * rate - 1e-4)), len(array)))
                T = min(high - low, self.max_steps)
                if self.frames:
                    T = min(T, self.frames)
                # centres of T equal parts, so that one step is the middle one
                picked = low + ((np.arange(T) + 0.5) * (high - low) / T).astype(int)
                middles = (picked + 0.5) / rate   # [T], seconds
            else:   # the step that is on at those moments
                picked = np.minimum((middles * rate + 1e-4).astype(int), len(array) - 1)
            columns.append(array[picked].astype(np.float32))   # [T, D of the stream]
        return np.concatenate(columns, 1)

    def stretch(self, index, caption):
        """The captions of video `index` that fill a block from `caption` on.

        Returns (token ids [n], start, end), in seconds.
        """
        last = int(self.spans[index, 1])
        start = float(self.times[caption, 0])
        end = 0.0
        pieces = []
        room = self.block - 2
        while caption < last and room > 0:
            piece = self.tokens[self.bounds[caption]:self.bounds[caption + 1]][:room]
            pieces.append(piece)
            room -= len(piece)
            end = max(end, float(self.times[caption, 1]))
            caption += 1
        return np.concatenate(pieces).astype(np.int64), start, end

    def example(self, index, generator=None):
        """One example: (token ids [n], features [T, D]).

        generator: draws the caption that it starts at; None: the first one (validation).
        """
        caption, last = self.spans[index].tolist()
        if generator is not None:
            caption = int(generator.integers(caption, last))
        tokens, start, end = self.stretch(index, caption)
        tokens = np.concatenate([[self.cls], tokens, [self.sep]])
        return tokens, self.clip(self.ids[index], start, end)

    def collate(self, examples):
        """Pads examples to tokens [B, block], token mask, features [B, T, D], step mask.

        Masks are True for real tokens and steps.
        """
        B = len(examples)
        T = max(len(features) for _, features in examples)
        D = examples[0][1].shape[1]
        tokens = torch.full((B, self.block), self.pad)
        token_mask = torch.zeros(B, self.block, dtype=torch.bool)
        features = torch.zeros(B, T, D)
        step_mask = torch.zeros(B, T, dtype=torch.bool)
        for row, (ids, clip) in enumerate(examples):
            tokens[row, :len(ids)] = torch.from_numpy(ids)
            token_mask[row, :len(ids)] = True
            features[row, :len(clip)] = torch.from_numpy(clip)
            step_mask[row, :len(clip)] = True
        return tokens, token_mask, features, step_mask


def bank_row(clips, index, caption, tokenizer):
    """{"video", "start", "end" (seconds), "text"} of the clip that starts at a caption.

    The text is written so that it becomes the example's tokens again.
    """
    # the decoder's clean-up would make "do not" to "don't"
    decoder = tokenizers.decoders.WordPiece(prefix="##", cleanup=False)
    tokens, start, end = clips.stretch(index, caption)
    text = decoder.decode([tokenizer.id_to_token(token) for token in tokens.tolist()])
    return {"video": clips.ids[index], "start": round(start, 3), "end": round(end, 3), "text": text}


# {split: (the file in the data folder, what its clips are for)}
BANKS = {
    "train": ("bank.json", "for vokens (distill.py --objective voken)"),
    "valid": ("bank-valid.json", "held out: for evaluate.py retrieve --bank"),
}


def make_bank(folder, split, count, seed, block, path=None):
    """`data.py bank`: draws `count` clips as the teacher's examples are drawn, into a JSON file.

    A list of bank_row's rows; no video twice before all were drawn once. path: None: BANKS' file.
    """
    file, purpose = BANKS[split]
    path = path or Path(folder) / file
    tokenizer = load_tokenizer(folder)
    clips = Clips(folder, split, [], tokenizer, block, 1)
    rows = []
    drawn = batch_indices(len(clips), count, seed, 0)
    for number, index in enumerate(tqdm(drawn, unit="clip", desc="bank")):
        caption = int(numpy_generator(seed, "bank", number).integers(*clips.spans[index]))
        rows.append(bank_row(clips, index, caption, tokenizer))
    write_json(path, rows)
    videos = len({row["video"] for row in rows})
    print(f"{path}: {len(rows):,} clips of {videos:,} {split} videos, {purpose}")


def is_bank_row(row):
    """Has it video, text, and a start that is not after its end?"""
    if not isinstance(row, dict):
        return False
    texts = [row.get("video"), row.get("text")]
    times = [row.get("start"), row.get("end")]
    return (all(isinstance(text, str) for text in texts)
            and all(isinstance(time, (int, float)) for time in times) and times[0] <= times[1])


def read_bank(path):
    """The rows of a clip bank, as make_bank writes them. Raises UserError naming file and row."""
    rows = read_json(path, "python data.py bank")
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: a clip bank is a list of {{video, start, end, text}}, not empty")
    for number, row in enumerate(rows):
        if not is_bank_row(row):
            raise UserError(f"{path}, row {number}: needs video, text, and start not after end, "
                            f"not {row!r}")
    return rows


def bank_batch(rows, clips, tokenizer):
    """Rows of a clip bank as a batch: what Clips.collate returns."""
    encoded = tokenizer.encode_batch([row["text"] for row in rows], add_special_tokens=False)
    examples = []
    for row, encoding in zip(rows, encoded):
        tokens = np.array([clips.cls, *encoding.ids[:clips.block - 2], clips.sep])
        examples.append((tokens, clips.clip(row["video"], row["start"], row["end"])))
    return clips.collate(examples)


# --------------------------------------------------------------------------------------------------
# Masking


def special_mask(tokens, ids):
    """bool, True at [PAD], [CLS] and [SEP]: never masked, never contrasted, never an anchor."""
    return (tokens == ids["pad"]) | (tokens == ids["cls"]) | (tokens == ids["sep"])


def mask_tokens(tokens, special_mask, generator, mask_id, vocab_size, probability=0.15,
                rows=None, batch=None):
    """BERT's masking: of the ordinary tokens, 15 % are chosen, and of those 80 % become [MASK],
    10 % a random id, 10 % stay.

    tokens: int [b, L]; special_mask: bool [b, L], True = leave alone. The random numbers are drawn
    for `batch` sequences of which these are `rows` (a slice), so that masks do not depend on the
    number of processes; None: these are all. Returns (inputs [b, L], labels [b, L]); labels are
    -100 where nothing is to be predicted.
    """
    b, L = tokens.shape
    if rows is None:
        rows = slice(0, b)
        batch = b
    choose, how = torch.rand(2, batch, L, generator=generator)[:, rows]   # each [b, L]
    random_ids = torch.randint(vocab_size, (batch, L), generator=generator)[rows]
    chosen = (choose < probability) & ~special_mask   # True = predict it
    labels = torch.where(chosen, tokens, torch.full_like(tokens, -100))
    inputs = torch.where(chosen & (how < 0.8), torch.full_like(tokens, mask_id), tokens)
    inputs = torch.where(chosen & (how >= 0.9), random_ids, inputs)
    return inputs, labels

# ==================================================================================================
# The mini world: a generated world in which only video tells what a noun does
#
# A test of transfer, not of common sense: every noun gets its properties by lot. Captions and text
# name nouns, never their properties; clips show them. Whatever a text-only student knows of a
# noun's property, it has from the video teacher. A seed redraws everything. tests/test_mini.py
# checks that nothing leaks.

NOUNS = """
teapot kettle cup spoon fork knife plate bowl jar bottle pan pot ladle tray mug napkin sponge bucket
broom mop brush comb towel soap candle lamp lantern torch clock mirror pillow blanket sheet curtain
carpet rug sofa chair stool bench desk shelf drawer cabinet wardrobe cradle ladder hammer nail screw
wrench drill chisel axe shovel rake hoe spade barrow hose rope chain hook pulley lever wheel tyre
engine pedal bicycle scooter wagon cart sled sleigh canoe raft ship boat anchor sail oar paddle kite
balloon drum flute violin guitar piano trumpet harp whistle bell gong banjo cello ball bat racket
puck dice domino puzzle doll puppet marble yoyo robot rocket truck train tram bus taxi tractor crane
helmet glove sock shoe boot sandal slipper hat cap scarf coat jacket shirt skirt dress belt button
zipper needle thread ribbon purse wallet basket suitcase backpack umbrella ring necklace bracelet
crown medal coin stamp envelope letter postcard book notebook pencil crayon eraser ruler stapler
scissors glue tape folder globe map atlas camera radio phone laptop tablet printer speaker fan
heater fridge oven stove toaster blender mixer grinder apple pear plum peach cherry grape lemon lime
mango melon banana papaya carrot potato onion garlic pepper tomato cabbage lettuce celery radish
turnip pumpkin bean pea corn nut almond walnut peanut bread bun cake cookie muffin pancake waffle
pie tart pretzel cracker cheese butter egg sausage burger pizza noodle dumpling candy leaf twig
branch acorn seed flower tulip daisy rose lily fern cactus mushroom pebble stone brick tile plank
log barrel crate cork feather shell pearl statue vase pitcher goblet thimble magnet battery bulb
plug cable antenna lens prism telescope compass hourglass pendulum thermometer scale abacus
typewriter trophy badge flag banner tent hammock fossil igloo pillar fountain locket tweezers
corkscrew spatula whisk marker trowel crib futon hamper kayak ukulele clarinet oboe tuba mitten
poncho tiara brooch easel canvas chalk palette colander funnel sieve teacup saucer jug
""".split()
# Groups of nouns: those the tasks train on, settings are chosen on, are judged by; and the control.
GROUPS = {"train": 160, "validation": 48, "test": 80, "unfilmed": 32}

# property: (the action that brings it out, its values); None: every single frame shows it
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
STATIC = [name for name in PROPERTIES if name not in DYNAMIC]
ACTIONS = [PROPERTIES[name][0] for name in DYNAMIC]
COLOURS = {
    "red": (210, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 215), "yellow": (225, 200, 40),
}
CLIP_FRAMES = 16     # at FPS = 8 frames a second
CLIPS_A_VIDEO = 4    # one for each action
VIDEOS_A_NOUN = 8    # for training; one more is held out

# Slots of a template: {n}oun, {a}ction, two people {p} and {q}, {w}here, {m}ood; {v}alue of a
# property {k} and what it {g}ives. Two spoken sentences fill a block of 32 tokens.
SPOKEN = [
    "okay so now we are going to {a} the {n} and then we watch it closely",
    "and here you can see me {a} this {n} again so that everybody can see it",
    "well let us {a} the {n} for a moment and see what happens to it then",
    "so the next thing i want to do here is to {a} the {n} once",
    "now i am going to {a} my {n} one more time so have a look",
    "you just {a} the {n} like this with one hand and then you wait a bit",
    "watch closely what happens here as we {a} the {n} for the very first time",
    "then we take our {n} from over there and we {a} it like this you see",
    "this is my {n} that i told you about and i will {a} it now",
    "first of all you take the {n} and then you {a} it with one finger",
]
WRITTEN = [
    "{p} keeps the {n} in the {w} .",
    "{p} saw a {n} in the {w} yesterday .",
    "there is a {n} in the {w} of {p} .",
    "{p} gave the {n} to {q} last week .",
    "everybody knows the {n} of {p} .",
    "{p} wants to {a} the {n} but {q} does not .",
    "what does {p} do with the {n} ? {p} likes to {a} it .",
]
# Never with a noun of the world.
DYNAMIC_SENTENCES = [
    "something {v} when you {a} it .",
    "what does it do when you {a} it ? it {v} .",
    "if it {v} then it {g} .",
    "something that {v} {g} .",
    "{p} wants something that {g} , so it {v} .",
    "which of them {v} ? the one that {g} .",
]
STATIC_SENTENCES = [
    "what {k} is it ? it is {v} .",
    "{p} has a {v} one in the {w} .",
    "if it is {v} then it is {g} .",
    "a {v} thing is {g} .",
    "{p} wants one that is {g} , so it is {v} .",
    "which of them is {v} ? the one that is {g} .",
]
# Without these, rival words would stand in the same places and get equal vectors.
MEANINGS = {
    "rises": "goes up high", "sinks": "goes down low",
    "grows": "gets larger", "shrinks": "gets tiny",
    "hurries": "becomes fast", "brakes": "becomes slow",
    "turns left": "faces the west", "turns right": "faces the east",
    "red": "like a fire", "green": "like grass", "blue": "like the sky", "yellow": "like the sun",
    "round": "without corners", "long": "like a snake",
    "big": "like a house", "small": "like an ant",
}
PLAIN_SENTENCES = [
    "{p} is behind {q} and {q} is in front of {p} .",
    "{p} is not {m} but {q} is {m} .",
    "{p} sees {q} in the {w} .",
    "{q} is seen by {p} in the {w} .",
    "{p} is in the {w} and {q} is not .",
    "{p} eats before {q} sleeps .",
    "{p} gives it to {q} , so now {q} has it .",
    "who is {m} ? {p} is {m} and {q} is not .",
]
PEOPLE = "sam kim ann ben lee joe tom eve ida bob".split()
PLACES = "kitchen garden hall attic cellar yard garage office".split()
MOODS = {"happy": "sad", "tired": "awake", "rich": "poor", "calm": "angry"}   # good: bad


def balanced(values, count, generator):
    """`count` values in random order, each as often as the others (counts differ by at most 1)."""
    repeated = [values[index % len(values)] for index in range(count)]
    return [repeated[index] for index in generator.permutation(count)]


def make_world(seed):
    """Draws {noun: {"group": group, property: value}}; each group has all values equally often."""
    generator = numpy_generator(seed, "world")
    order = generator.permutation(NOUNS).tolist()
    world = {}
    for group, count in GROUPS.items():
        members = [order.pop() for _ in range(count)]
        for noun in members:
            world[noun] = {"group": group}
        for name, (_, values) in PROPERTIES.items():
            for noun, value in zip(members, balanced(values, count, generator)):
                world[noun][name] = value
    return world


def filmed_nouns(world):
    return [noun for noun in world if world[noun]["group"] != "unfilmed"]


def fill(template, generator, **given):
    """Fills a template: two people, a place, a mood and an action by lot, unless they are given."""
    p, q = two_people(generator)
    drawn = {"p": p, "q": q, "w": generator.choice(PLACES)}
    drawn["m"] = generator.choice(list(MOODS))
    drawn["a"] = generator.choice(ACTIONS)
    return template.format(**drawn | given)


def two_people(generator):
    return generator.choice(PEOPLE, 2, replace=False).tolist()


def two_places(generator):
    """(p, q, where p is, where q is, the sentence that says so)"""
    p, q = two_people(generator)
    place, other = generator.choice(PLACES, 2, replace=False).tolist()
    return p, q, place, other, f"{p} is in the {place} and {q} is in the {other} ."


# --- pictures


def draw_path(properties, action, generator):
    """Where a thing is, frame by frame: x, y in pixels, phase of its growth 0..1, angle; each [F].

    The two behaviours of an action visit the same frames in opposite order or at another pace,
    from a random phase of a cycle: the picture wraps round, sizes run through a saw-tooth. So no
    single frame tells them apart, the first and the last included.
    """
    frames = np.arange(CLIP_FRAMES)
    still = np.zeros(CLIP_FRAMES)
    x, y = generator.uniform(0, SIDE, 2)
    phase = still + generator.uniform()
    angle = still + generator.uniform(0, 2 * np.pi)
    if action == "drop":   # image rows count downwards
        step = -1.6 if properties["lift"] == "rises" else 1.6
        y = y + step * frames
    elif action == "heat":
        step = 1 if properties["growth"] == "grows" else -1
        phase = (phase + step * frames / CLIP_FRAMES) % 1
    elif action == "push":   # 0.3 to 3 pixels a frame or the reverse, to either side
        speed = np.linspace(0.3, 3.0, CLIP_FRAMES)
        if properties["pace"] == "brakes":
            speed = speed[::-1]
        x = x + generator.choice([-1, 1]) * np.cumsum(speed)
    else:   # a falling angle turns left, as rows count downwards
        step = -0.2 if properties["spin"] == "turns left" else 0.2
        angle = angle + step * frames
    x = x + generator.normal(0, 0.15, CLIP_FRAMES)
    y = y + generator.normal(0, 0.15, CLIP_FRAMES)
    return [values.astype(np.float32)[:, None, None] for values in (x, y, phase, angle)]


def offsets(x, y):
    """How far each pixel is from (x, y) [F, 1, 1], where the picture wraps round: two [F, S, S]."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    dx = (columns - x + SIDE / 2) % SIDE - SIDE / 2
    dy = (rows - y + SIDE / 2) % SIDE - SIDE / 2
    return dx, dy


def draw_clip(properties, action, generator):
    """One clip, uint8 [16, 48, 48, 3]: what a thing of these properties does under an action.

    Grey specks, pixel noise and jitter are there to be ignored.
    """
    x, y, phase, angle = draw_path(properties, action, generator)
    low, high = (9.5, 15.5) if properties["size"] == "big" else (4.5, 7.5)
    radius = low * (high / low) ** phase                                    # [F, 1, 1] pixels
    dx, dy = offsets(x, y)
    along = dx * np.cos(angle) + dy * np.sin(angle)                         # [F, S, S]
    across = dy * np.cos(angle) - dx * np.sin(angle)
    if properties["shape"] == "round":
        inside = radius - np.hypot(along, across)
    else:
        inside = np.minimum(1.35 * radius - np.abs(along), 0.45 * radius - np.abs(across))
    body = np.clip(inside + 0.5, 0, 1)[..., None]                           # [F, S, S, 1]
    mark = np.clip(0.33 * radius - np.hypot(along - 0.62 * radius, across) + 0.5, 0, 1)[..., None]

    frames = np.arange(CLIP_FRAMES)
    grey = generator.uniform(150, 235)
    picture = np.full((CLIP_FRAMES, SIDE, SIDE, 3), grey, np.float32)
    for _ in range(generator.integers(0, 3)):
        place = generator.uniform(0, SIDE, 2)
        drift = generator.normal(0, 0.5, 2)
        path = (place[:, None] + drift[:, None] * frames).astype(np.float32)   # [2, F]
        speck_dx, speck_dy = offsets(*path[:, :, None, None])
        speck = np.clip(2.0 - np.hypot(speck_dx, speck_dy), 0, 1)[..., None]
        picture = picture * (1 - speck) + np.float32(generator.uniform(60, 130)) * speck
    brightness = np.float32(generator.uniform(0.85, 1.1))
    colour = np.array(COLOURS[properties["colour"]], np.float32) * brightness
    picture = picture * (1 - body) + colour * body
    mark = mark * body
    picture = picture * (1 - mark) + 0.25 * colour * mark                   # dark, off the centre
    picture += 4 * generator.standard_normal((CLIP_FRAMES, SIDE, SIDE, 1), dtype=np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_video(path, frames):
    """Encodes uint8 [N, S, S, 3] as H.264, FPS frames a second, through a temporary name."""
    temporary = path.with_name(path.name + ".tmp")
    with av.open(str(temporary), "w", format="mp4") as container:
        options = {"preset": "ultrafast", "crf": "21"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = SIDE
        stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1   # the same bytes on every machine
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    os.replace(temporary, path)


def make_video(seed, name, noun, properties, folder):
    """One video of one noun: every action once, in random order. Returns (actions, captions).

    A caption is (its words, how many words of the caption before come first, start, end): two in
    five repeat some, as rolling speech captions do.
    """
    generator = numpy_generator(seed, "video", name)
    actions = generator.permutation(ACTIONS).tolist()
    clips = [draw_clip(properties, action, generator) for action in actions]
    path = Path(folder) / f"{name}.mp4"
    if not path.exists():
        write_video(path, np.concatenate(clips))
    seconds = CLIP_FRAMES / FPS
    captions = []
    for index, action in enumerate(actions):
        words = generator.choice(SPOKEN).format(a=action, n=noun).split()
        repeated = 0
        if index > 0 and generator.uniform() < 0.4:
            repeated = int(generator.integers(2, 5))
        start = index * seconds + generator.uniform(-0.2, 0.2)
        end = (index + 1) * seconds + generator.uniform(-0.2, 0.2)
        start = round(max(0.0, start), 2)
        end = round(min(CLIPS_A_VIDEO * seconds, end), 2)
        captions.append((words, repeated, start, end))
    return actions, captions


def join_captions(narrations, training, generator):
    """{video: captions} -> HowTo100M's form {video: {"text": [], "start": [], "end": []}}.

    One caption in twelve is spoken over another video's clip: texts change places among the
    `training` videos, so that counts of nouns and actions stay exactly equal.
    """
    words = {name: [caption[0] for caption in narrations[name]] for name in narrations}
    slots = list(product(training, range(CLIPS_A_VIDEO)))
    slots = [slot for slot in slots if generator.uniform() < 1 / 12]
    moved = [words[name][index] for name, index in slots]
    for (name, index), text in zip(slots, moved[1:] + moved[:1]):
        words[name][index] = text
    joined = {}
    for name, captions in narrations.items():
        entry = {"text": [], "start": [], "end": []}
        for index, (_, repeated, start, end) in enumerate(captions):
            # the end of what was really said before, so after the exchange
            before = words[name][index - 1][-repeated:] if repeated else []
            entry["text"].append(" ".join(before + words[name][index]))
            entry["start"].append(start)
            entry["end"].append(end)
        joined[name] = entry
    return joined


def retrieval_row(name, noun, properties, action, index):
    """A row of the retrieval pool: clip `index` of a held-out video, its text and what it shows."""
    seconds = CLIP_FRAMES / FPS
    shown = {key: properties[key] for key in STATIC}
    shown["behaviour"] = properties[DYNAMIC[ACTIONS.index(action)]]
    return {
        "video": name, "start": index * seconds, "end": (index + 1) * seconds,
        "text": SPOKEN[0].format(a=action, n=noun), "noun": noun, "group": properties["group"],
        "shown": shown,
    }


# --- text


def noun_article(noun, sentences, generator):
    """Sentences about one noun; no word of a property."""
    article = []
    for _ in range(sentences):
        if generator.uniform() < 0.6:
            template = generator.choice(SPOKEN) + " ."
        else:
            template = generator.choice(WRITTEN)
        article.append(fill(template, generator, n=noun))
    return article


def property_article(values_left, sentences, generator):
    """Three sentences about one property, the others plain; no noun of the world."""
    name = generator.choice(list(PROPERTIES))
    action, _ = PROPERTIES[name]
    article = []
    for _ in range(3):
        value = next(values_left[name])
        given = {"v": value, "k": name, "g": MEANINGS[value]}
        if action:
            given["a"] = action
        template = generator.choice(DYNAMIC_SENTENCES if action else STATIC_SENTENCES)
        article.append(fill(template, generator, **given))
    for _ in range(sentences - 3):
        article.append(fill(generator.choice(PLAIN_SENTENCES), generator))
    return article


def make_text(world, seed, documents, sentences=5):
    """Lines of text, a short article each: three in four about one noun, all nouns equally often.

    The rest holds the property words, every value as often as its rivals.
    """
    generator = numpy_generator(seed, "text", documents)
    about = balanced(list(world), documents * 3 // 4, generator)
    about += [None] * (documents - len(about))
    values_left = {}
    for name, (_, values) in PROPERTIES.items():
        values_left[name] = iter(balanced(values, 3 * documents, generator))
    lines = []
    for index in generator.permutation(documents):
        if about[index] is None:
            article = property_article(values_left, sentences, generator)
        else:
            article = noun_article(about[index], sentences, generator)
        order = generator.permutation(sentences)
        lines.append(" ".join(article[place] for place in order))
    return lines


# --- tasks

# split: (its groups of nouns, how many ungrounded rows)
SPLITS = {
    "train": (["train"], 300),
    "dev": (["validation"], 120),
    "test": (["test", "unfilmed"], 360),
}


class Row(NamedTuple):
    """A row of a task: grounded, with a noun, it needs what only video tells; ungrounded (word
    order, negation, copying), without one, what every student must keep."""
    fields: dict         # the columns of its file
    label: str | int     # of SQuAD the answer, "" where there is none
    noun: str | None
    property: str        # of an ungrounded row what it tests


def facts(world, nouns, names, generator):
    """(noun, property, value, is it true): each noun and property once true, once false.

    Every value is as often true as false in a group: colours move by one common shift.
    """
    shift = int(generator.integers(1, 4))
    rows = []
    for noun in nouns:
        for name in names:
            values = PROPERTIES[name][1]
            index = values.index(world[noun][name])
            step = shift if len(values) > 2 else 1
            rows.append((noun, name, values[index], True))
            rows.append((noun, name, values[(index + step) % len(values)], False))
    return rows


def having(world, nouns, name, value):
    return [noun for noun in nouns if world[noun][name] == value]


def pairs(world, nouns, generator):
    """(noun, rival, property): the noun has the property's first value, its rival the second.

    Each noun is in one pair of every dynamic property.
    """
    rows = []
    for name in DYNAMIC:
        first, second = PROPERTIES[name][1]
        rivals = generator.permutation(having(world, nouns, name, second)).tolist()
        members = generator.permutation(having(world, nouns, name, first)).tolist()
        rows += [(noun, rival, name) for noun, rival in zip(members, rivals)]
    return rows


def choices(world, nouns, generator):
    """(one, two, right, property): both words of each pair are asked for.

    So each noun is the right one as often as not, and stands first as often as second.
    """
    drawn = pairs(world, nouns, generator)
    places = {}
    for name in DYNAMIC:
        for side in (0, 1):
            places[name, side] = iter(balanced([0, 1], len(drawn) // len(DYNAMIC), generator))
    rows = []
    for noun, rival, name in drawn:
        for side, (right, wrong) in enumerate(((noun, rival), (rival, noun))):
            two = [right, wrong]
            if next(places[name, side]):
                two.reverse()
            rows.append((*two, right, name))
    return rows


def behaviour_question(noun, name):
    return f"what does the {noun} do when you {PROPERTIES[name][0]} it ?"


def sst2(world, nouns, plain, generator):
    """One sentence, 1 = true. Ungrounded: is the mood a good one (negation)."""
    for noun, name, value, truth in facts(world, nouns, DYNAMIC, generator):
        sentence = f"when you {PROPERTIES[name][0]} the {noun} it {value} ."
        yield Row({"sentence": sentence}, int(truth), noun, name)
    for index in range(plain):
        good, bad = list(MOODS.items())[index // 4 % 4]
        mood = [good, f"not {bad}", f"not {good}", bad][index % 4]
        person = generator.choice(PEOPLE)
        sentence = f"{person} in the {generator.choice(PLACES)} is {mood} ."
        yield Row({"sentence": sentence}, int(index % 4 < 2), None, "negation")


def qnli(world, nouns, plain, generator):
    """Does the sentence answer the question with yes? Ungrounded: negation."""
    labels = {True: "entailment", False: "not_entailment"}
    for noun, name, value, truth in facts(world, nouns, DYNAMIC, generator):
        fields = {"question": behaviour_question(noun, name), "sentence": f"it {value} ."}
        yield Row(fields, labels[truth], noun, name)
    for index in range(plain):
        person = generator.choice(PEOPLE)
        mood = generator.choice(list(MOODS))
        denial = "not " if index % 2 else ""
        fields = {"question": f"is {person} {mood} ?", "sentence": f"{person} is {denial}{mood} ."}
        yield Row(fields, labels[index % 2 == 0], None, "negation")


def qqp(world, nouns, plain, generator):
    """Have two questions the same answer? Ungrounded: active and passive."""
    for name in DYNAMIC:
        values = PROPERTIES[name][1]
        for value, other in (values, values[::-1]):
            members = having(world, nouns, name, value)
            alike = np.roll(members, int(generator.integers(1, len(members)))).tolist()
            unlike = generator.permutation(having(world, nouns, name, other)).tolist()
            for noun, same, different in zip(members, alike, unlike):
                for rival, label in ((same, 1), (different, 0)):
                    questions = [behaviour_question(thing, name) for thing in (noun, rival)]
                    fields = {"question1": questions[0], "question2": questions[1]}
                    yield Row(fields, label, noun, name)
    for index in range(plain):
        p, q = two_people(generator)
        passive = [f"is {q} seen by {p} ?", f"is {p} seen by {q} ?"][index % 2]
        fields = {"question1": f"does {p} see {q} ?", "question2": passive}
        yield Row(fields, 1 - index % 2, None, "order")


NLI_LABELS = ["entailment", "contradiction", "neutral"]


def mnli(world, nouns, plain, generator):
    """Premise and hypothesis. Grounded: is it so or not. Ungrounded: where people are (copying).

    A neutral hypothesis shows that it is neutral by itself, so it is ungrounded.
    """
    for noun, name, value, truth in facts(world, nouns, STATIC, generator):
        premise = f"{generator.choice(PEOPLE)} knows the {noun} ."
        label = NLI_LABELS[0 if truth else 1]
        yield Row({"sentence1": premise, "sentence2": f"it is {value} ."}, label, noun, name)
    for index in range(plain):
        p, q, place, other, premise = two_places(generator)
        mood = generator.choice(list(MOODS))
        label = NLI_LABELS[index % 3]
        hypotheses = [f"{p} is in the {place} .", f"{p} is in the {other} .", f"{p} is {mood} ."]
        fields = {"sentence1": premise, "sentence2": hypotheses[index % 3]}
        yield Row(fields, label, None, "copying")


# GLUE-diagnostics' columns, and the fine category that stands in each
CATEGORIES = {
    "Lexical Semantics": "Lexical entailment", "Predicate-Argument Structure": "Active/Passive",
    "Logic": "Negation", "Knowledge": "World knowledge",
}


def diagnostic(premise, hypothesis, category):
    fields = dict.fromkeys(CATEGORIES, "")
    fields[category] = CATEGORIES[category]
    return fields | {"Premise": premise, "Hypothesis": hypothesis}


def diagnostics(world, nouns, plain, generator):
    """MNLI's rows, the grounded ones as Knowledge, and rows of negation and word order.

    It asks of the properties that MNLI trains on: to others a model says "neutral", more or less
    often, whatever it knows of the noun.
    """
    for fields, label, noun, name in mnli(world, nouns, plain, generator):
        category = "Knowledge" if noun else "Lexical Semantics"
        fields = diagnostic(fields["sentence1"], fields["sentence2"], category)
        yield Row(fields, label, noun, name)
    for index in range(plain):
        p, q = two_people(generator)
        mood = generator.choice(list(MOODS))
        label = NLI_LABELS[index % 3]
        premise = f"{p} is not {mood} but {q} is {mood} ."
        hypotheses = [f"{p} is not {mood} .", f"{p} is {mood} .", f"{p} is in the hall ."]
        fields = diagnostic(premise, hypotheses[index % 3], "Logic")
        yield Row(fields, label, None, "negation")
        premise = f"{p} sees {q} and {q} does not see {p} ."
        hypotheses = [f"{q} is seen by {p} .", f"{p} is seen by {q} .", f"{p} is {mood} ."]
        fields = diagnostic(premise, hypotheses[index % 3], "Predicate-Argument Structure")
        yield Row(fields, label, None, "order")


def piqa(world, nouns, plain, generator):
    """Which of two things does it? Ungrounded: where to go (copying)."""
    for one, two, right, name in choices(world, nouns, generator):
        action = PROPERTIES[name][0]
        goal = f"{generator.choice(PEOPLE)} wants something that {world[right][name]} ."
        fields = {"goal": goal, "sol1": f"{action} the {one} .", "sol2": f"{action} the {two} ."}
        yield Row(fields, int(right == two), right, name)
    for index in range(plain):
        p, _, place, other, sentence = two_places(generator)
        one, two = [(place, other), (other, place)][index % 2]
        goal = f"{sentence} find {p} ."
        fields = {"goal": goal, "sol1": f"go to the {one} .", "sol2": f"go to the {two} ."}
        yield Row(fields, index % 2, None, "copying")


def swag(world, nouns, plain, generator):
    """Which of four endings follows? Two actions, two behaviours each. Ungrounded: who has it."""
    def row(context, start, right, wrong, noun, name):
        label = next(labels)
        endings = generator.permutation(wrong).tolist()
        endings.insert(label, right)
        fields = {"sent1": context, "sent2": start}
        for place, ending in enumerate(endings):
            fields[f"ending{place}"] = ending
        return Row(fields, label, noun, name)

    two_properties = list(combinations(DYNAMIC, 2))
    labels = balanced([0, 1, 2, 3], len(two_properties) * len(nouns), generator)
    labels = iter(labels + balanced([0, 1, 2, 3], plain, generator))
    for noun in nouns:
        for one, two in two_properties:
            context = f"you {PROPERTIES[one][0]} the {noun} and then you {PROPERTIES[two][0]} it ."
            right = f"{world[noun][one]} and then it {world[noun][two]} ."
            endings = []
            for values in product(PROPERTIES[one][1], PROPERTIES[two][1]):
                endings.append(f"{values[0]} and then it {values[1]} .")
            endings.remove(right)
            yield row(context, "it", right, endings, noun, f"{one}+{two}")
    for _ in range(plain):
        p, q = two_people(generator)
        wrong = [f"{p} has it .", f"{p} sees {q} .", f"{q} gives it to {p} ."]
        yield row(f"{p} gives it to {q} .", "so now", f"{q} has it .", wrong, None, "order")


def squad2(world, nouns, plain, generator):
    """Which of two things does it? Where two are alike, neither. Ungrounded: who is where."""
    drawn = choices(world, nouns, generator)
    for one, two, right, name in drawn:
        context = f"you {PROPERTIES[name][0]} the {one} and the {two} ."
        question = f"which of them {world[right][name]} ?"
        yield Row({"context": context, "question": question}, right, right, name)
    for name in DYNAMIC:
        action, values = PROPERTIES[name]
        for value, asked in (values, values[::-1]):
            alike = [right for _, _, right, other in drawn if other == name]
            alike = [noun for noun in alike if world[noun][name] == value]
            for noun, twin in zip(alike, alike[1:] + alike[:1]):
                context = f"you {action} the {noun} and the {twin} ."
                fields = {"context": context, "question": f"which of them {asked} ?"}
                yield Row(fields, "", noun, name)
    for _ in range(plain):
        p, q, place, other, context = two_places(generator)
        answer, where = [(p, place), (q, other)][generator.integers(2)]
        fields = {"context": context, "question": f"who is in the {where} ?"}
        yield Row(fields, answer, None, "copying")


def squad1(world, nouns, plain, generator):
    """SQuAD2's rows but for those without an answer."""
    return [row for row in squad2(world, nouns, plain, generator) if row.label]


# What the first value of each property leads to: of two things, the one that has it gets there.
LEADS_TO = {
    "lift": "reaches the top", "growth": "fills the hall", "pace": "gets there",
    "spin": "faces the west",
}
RELATIONS = ["starts before", "starts after", "ends before", "ends after"]


def tracie(world, nouns, plain, generator):
    """Implicit order of events: what rises is at the top before what sinks. Ungrounded: as told."""
    def row(query, story, holds, noun, name):
        label = "positive" if holds else "negative"
        return Row({"query": query, "story": story}, label, noun, name)

    for noun, rival, name in pairs(world, nouns, generator):
        action = PROPERTIES[name][0]
        for one, two in ((noun, rival), (rival, noun)):
            story = (f"{PEOPLE[0]} and {PEOPLE[1]} meet . they {action} the {one} . "
                     f"they {action} the {two} . they wait . they go .")
            for relation in RELATIONS:
                query = f"the {one} {LEADS_TO[name]} {relation} the {two}"
                holds = (one == noun) == relation.endswith("before")
                yield row(query, story, holds, one, name)
    for index in range(plain):
        p, q = two_people(generator)
        relation = RELATIONS[index % 4]
        story = f"{p} and {q} meet . {p} eats . then {q} sleeps . they wait . they go ."
        query = f"{p} eats {relation} {q} sleeps"
        yield row(query, story, relation.endswith("before"), None, "order")


def write_table(path, rows, label_column):
    """TSV or CSV, as the name says: the rows' fields, then the label where it has a column."""
    separator = "," if path.suffix == ".csv" else "\t"   # no field holds either
    header = list(rows[0].fields)
    lines = [list(row.fields.values()) for row in rows]
    if label_column:
        header.append(label_column)
        for line, row in zip(lines, rows):
            line.append(str(row.label))
    write_text(path, "".join(separator.join(line) + "\n" for line in [header, *lines]))


def write_piqa(path, rows, label_column):
    """PIQA's lines of JSON and, beside them, its labels."""
    write_text(path, "".join(json.dumps(row.fields) + "\n" for row in rows))
    if label_column:
        labels = path.with_name(f"{path.stem}-{label_column}.lst")
        write_text(labels, "".join(f"{row.label}\n" for row in rows))


def write_tracie(path, rows, label_column):
    line = "event: {query} story: {story}\tanswer: {label}\n"
    write_text(path, "".join(line.format(**row.fields, label=row.label) for row in rows))


def write_squad(path, rows, label_column):
    """SQuAD's JSON. The test split, too, carries its answers, as a second dev file."""
    split, version = path.stem.split("-")
    paragraphs = []
    for index, row in enumerate(rows):
        context = row.fields["context"]
        question = {"id": f"{split}-{index}", "question": row.fields["question"], "answers": []}
        if row.label:
            # between spaces: "pan" must not be found in "pancake"
            start = f" {context} ".index(f" {row.label} ")
            question["answers"].append({"text": row.label, "answer_start": start})
        if version == "v2.0":
            question["is_impossible"] = not row.label
        paragraphs.append({"context": context, "qas": [question]})
    write_json(path, {"version": version, "data": [{"title": "mini", "paragraphs": paragraphs}]})


# task: (its rows, their writer, the label's column, the files of train, dev and test)
TASKS = {
    "SST-2": (sst2, write_table, "label", "train.tsv dev.tsv test.tsv"),
    "QNLI": (qnli, write_table, "label", "train.tsv dev.tsv test.tsv"),
    "QQP": (qqp, write_table, "is_duplicate", "train.tsv dev.tsv test.tsv"),
    "MNLI": (mnli, write_table, "gold_label", "train.tsv dev_matched.tsv test_matched.tsv"),
    "diagnostics": (diagnostics, write_table, "Label", "- - diagnostic-full.tsv"),
    "SWAG": (swag, write_table, "label", "train.csv val.csv test.csv"),
    "PIQA": (piqa, write_piqa, "labels", "train.jsonl valid.jsonl tests.jsonl"),
    "TRACIE": (tracie, write_tracie, "", "tracie_train.txt tracie_dev.txt tracie_test.txt"),
    "SQuAD1": (squad1, write_squad, "", "train-v1.1.json dev-v1.1.json test-v1.1.json"),
    "SQuAD2": (squad2, write_squad, "", "train-v2.0.json dev-v2.0.json test-v2.0.json"),
}


def task_rows(world, seed, task, split):
    """The rows of one split of a task; in test those of unfilmed nouns come last."""
    groups, plain = SPLITS[split]
    rows = []
    for group in groups:
        generator = numpy_generator(seed, "task", task, split, group)
        nouns = having(world, world, "group", group)
        rows += TASKS[task][0](world, nouns, plain, generator)
        plain = 0
    if split == "train":
        order = numpy_generator(seed, "task order", task).permutation(len(rows))
        rows = [rows[index] for index in order]
    return rows


def make_tasks(world, seed, out):
    """Writes every task in its published format under out/TASK. Returns the training rows' texts.

    Test files keep their labels to themselves, as the published ones do. SPLIT.meta.jsonl beside
    each split has them, and by what rows are scored apart: part, noun, its group, property.
    """
    texts = []
    for task, (_, write, label_column, files) in TASKS.items():
        folder = Path(out) / task
        folder.mkdir(parents=True, exist_ok=True)
        for split, file in zip(SPLITS, files.split()):
            if file == "-":
                continue
            rows = task_rows(world, seed, task, split)
            labelled = split != "test" or task == "diagnostics"
            write(folder / file, rows, label_column if labelled else "")
            meta = [json.dumps(meta_of(row, world)) for row in rows]
            write_text(folder / f"{split}.meta.jsonl", "\n".join(meta) + "\n")
            if split == "train":
                texts += [" ".join(row.fields.values()) for row in rows]
    return texts


def meta_of(row, world):
    return {
        "label": row.label,
        "part": "grounded" if row.noun else "ungrounded",
        "noun": row.noun,
        "group": world[row.noun]["group"] if row.noun else None,
        "property": row.property,
    }


# --- the whole world


def film_world(world, seed, videos_a_noun, folder, workers):
    """Writes the videos. Returns {name: (noun, actions, captions)}, the held-out ones last."""
    takes = product(range(videos_a_noun + 1), enumerate(filmed_nouns(world)))
    nouns = {f"v{take:02d}_{index:03d}": noun for take, (index, noun) in takes}
    properties = [world[noun] for noun in nouns.values()]
    film = partial(make_video, seed, folder=folder)
    with ProcessPoolExecutor(workers) as pool:
        films = pool.map(film, nouns, nouns.values(), properties, chunksize=16)
        films = list(tqdm(films, total=len(nouns), unit="video", desc="videos"))
    return {name: (nouns[name], *film) for name, film in zip(nouns, films)}


def world_made_from(seed, videos_a_noun, documents):
    """All that decides what a world is: its arguments, and the text of this section."""
    source = Path(__file__).read_text(encoding="utf-8")
    section = source.split("\n# " + "=" * 98 + "\n")[1]
    generator = hashlib.sha256(section.encode()).hexdigest()
    return {"seed": seed, "videos_a_noun": videos_a_noun, "documents": documents,
            "generator": generator}


def begin_world(out, made_from):
    """Is there still something to do? Raises UserError for a folder that is not this world's.

    world.json.part says from the first moment whose the folder is, world.json that it is whole.
    """
    whole = out / "world.json"
    begun = out / "world.json.part"
    for path in (whole, begun):
        if path.exists():
            there = read_json(path, "python data.py mini").get("made_from", {})
            differing = [key for key in made_from if there.get(key) != made_from[key]]
            if differing:
                raise UserError(f"{out} holds a world with another {' and '.join(differing)}: "
                                f"delete it or choose another --out")
    if whole.exists():
        return False
    if not begun.exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty, and no mini world: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(begun, {"made_from": made_from})
    return True


def make_mini(seed, out, videos_a_noun=VIDEOS_A_NOUN, documents=10000, workers=1):
    """`data.py mini`: writes one world into a folder (videos, captions, text, tokenizer, tasks).

    A run that was killed goes on with the videos that are there. Nothing is ever deleted.
    """
    out = Path(out)
    made_from = world_made_from(seed, videos_a_noun, documents)
    if not begin_world(out, made_from):
        print(f"{out / 'world.json'}: up to date")
        return
    for name in ("videos", "text"):
        (out / name).mkdir(exist_ok=True)
    world = make_world(seed)

    videos = film_world(world, seed, videos_a_noun, out / "videos", workers)
    names = list(videos)
    count = len(filmed_nouns(world))
    held_out = names[-count:]   # one video a noun, for validation and retrieval
    generator = numpy_generator(seed, "pool")
    rows = []
    for name, action in zip(held_out, balanced(ACTIONS, count, generator)):
        noun, actions, _ = videos[name]
        rows.append(retrieval_row(name, noun, world[noun], action, actions.index(action)))
    narrations = {name: captions for name, (_, _, captions) in videos.items()}
    captions = join_captions(narrations, names[:-count], generator)
    write_json(out / "caption.json", captions)
    write_json(out / "valid_ids.json", held_out)
    write_json(out / "retrieval.json", rows)

    for name, count in (("train", documents), ("valid", max(50, documents // 30))):
        lines = make_text(world, seed, count)
        write_text(out / "text" / f"{name}.txt", "\n".join(lines) + "\n")
    texts = make_tasks(world, seed, out / "tasks")

    # every word of text, captions and training rows becomes a token
    for entry in captions.values():
        texts += entry["text"]
    words = out / "words.tmp"
    write_text(words, "\n".join(texts) + "\n")
    train_tokenizer([out / "text" / "train.txt", words], 2048, out)
    words.unlink()
    tokenizer = load_tokenizer(out)
    broken = [noun for noun in NOUNS if tokenizer.token_to_id(noun) is None]
    if broken:
        raise UserError(f"nouns that are not one token: {', '.join(broken)}; "
                        f"write more --documents")
    # the whole file under the .part name, so that one rename says that all is there
    contents = {"made_from": made_from, "properties": PROPERTIES, "nouns": world}
    write_json(out / "world.json.part", contents)
    os.replace(out / "world.json.part", out / "world.json")
    print(f"mini world {seed}: {len(world)} nouns, {len(videos):,} videos of {CLIPS_A_VIDEO} "
          f"clips, {len(TASKS)} tasks, in {out}")


# ==================================================================================================
# The command line


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    mini = commands.add_parser("mini", help="generate a mini world")
    mini.add_argument("--seed", type=int, default=0, help="redraws everything")
    mini.add_argument("--out", default="data/mini")
    mini.add_argument("--videos-a-noun", type=int, default=VIDEOS_A_NOUN,
                      help="training videos of each filmed noun")
    mini.add_argument("--documents", type=int, default=10000, help="articles of text")
    mini.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")

    text = commands.add_parser("text", help="text -> packed tokens")
    text.add_argument("--train", nargs="+", required=True,
                      help="text files, a paragraph a line, or folders of them")
    held_out = text.add_mutually_exclusive_group(required=True)
    held_out.add_argument("--valid", nargs="+", help="files or folders to validate on")
    held_out.add_argument("--valid-lines", type=int,
                          help="in place of --valid: hold out the training text's last lines")
    text.add_argument("--min-words", type=int, default=MIN_WORDS,
                      help="drop lines of fewer words; 1 suits languages without spaces")

    video = commands.add_parser("video", help="films -> features; with --vocab captions, too")
    video.add_argument("--streams", nargs="+", default=["frame", "motion"],
                       help=f"of: {', '.join(STREAMS)}")
    video.add_argument("--shard", help="K/N, K = 1..N: only this part, for one of N machines")
    video.add_argument("--weights", default="data/weights",
                       help="folder of the frozen CNNs' public checkpoints")
    video.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N, for the CNNs")
    video.add_argument("--precision", default="fp32", choices=["fp32", "bf16"],
                       help="of the CNNs; fp32 as published")
    video.add_argument("--workers", type=int,
                       help="processes (default: one a core; with CNNs on a GPU 4)")

    captions = commands.add_parser("captions", help="captions of films with features -> tokens")
    for command in (video, captions):
        command.add_argument("--videos", required=True, help="folder of films, ID.mp4, ID.mkv, ...")
        command.add_argument("--captions", help="JSON {id: {text: [], start: [], end: []}}, "
                             "seconds; or a CSV (start, end, text, video_id); or a folder of "
                             "ID.srt, ID.vtt, ID.LANGUAGE.vtt, ID.csv (default: that of the films)")
        command.add_argument("--only", help="a CSV with a column video_id, such as "
                             "HowTo100M_v1.csv: use no other films")
        command.add_argument("--category", help="of --only, the rows of this category_1")
        command.add_argument("--held-out", type=int, help="films to validate on (default: a "
                             "fiftieth, at most 10,000; those of OUT/valid_ids.json, if it exists)")

    bank = commands.add_parser("bank", help="clips of a data folder, for vokens and retrieval")
    bank.add_argument("--data", required=True, help="a folder that `data.py captions` wrote")
    bank.add_argument("--split", default="train", choices=list(BANKS),
                      help="train: bank.json, for vokens; valid: bank-valid.json, for retrieval")
    bank.add_argument("--clips", type=int, default=30000, help="how many")
    bank.add_argument("--seed", type=int, default=0)
    bank.add_argument("--block", type=int, default=128, help="tokens of a text (mini: 32)")
    bank.add_argument("--out", help="the file, in place of DATA/bank.json, DATA/bank-valid.json")

    for command in (text, video, captions):
        command.add_argument("--vocab", required=command is not video,
                             help="a vocab.txt, a tokenizer.json or the folder of one")
        command.add_argument("--out", required=True, help="folder")
        case = command.add_mutually_exclusive_group()
        case.add_argument("--cased", action="store_true", default=None,
                          help="of a vocab.txt: keep capitals and accents (default: as "
                               "tokenizer_config.json beside it says, else as its entries show)")
        case.add_argument("--uncased", action="store_false", dest="cased", default=None)

    args = parser.parse_args()
    if args.command == "mini":
        make_mini(args.seed, args.out, args.videos_a_noun, args.documents, args.workers)
    elif args.command == "text":
        text_command(args)
    elif args.command == "video":
        video_command(args)
    elif args.command == "captions":
        captions_command(args)
    else:
        make_bank(args.data, args.split, args.clips, args.seed, args.block, args.out)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"data.py: {error}")
