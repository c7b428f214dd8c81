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
import csv
import dataclasses
import fcntl
import hashlib
import html
import json
import math
import multiprocessing
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from fractions import Fraction
from functools import lru_cache, partial
from itertools import chain, combinations, cycle, islice, product
from multiprocessing.managers import BaseManager
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
    """Rank, world size, device; started by torchrun or alone. A world of one sends no message.

    Raises UserError where a machine has fewer GPUs than processes.
    """

    def __init__(self, device="auto"):
        self.signal = 0   # the number of one that was noted
        self.handlers = {}   # what was done at each signal before
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))   # processes of this machine
        self.master = self.rank == 0   # the one process that writes files and prints
        if device == "auto":
            device = self.best_device()
        if device == "cuda":
            gpus = torch.cuda.device_count()
            if self.here > gpus:   # NCCL takes one process a GPU, and its own error says less
                raise UserError(f"processes on this machine: {self.here}, GPUs visible: {gpus}; "
                                f"start one a GPU (torchrun's --nproc_per_node), or use the CPU "
                                f"(--device cpu)")
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.device = usable_device(device)
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

    def rows(self, batch, parts=1):
        """This process's slice of a global batch, worked off in so many parts. Raises UserError
        where processes x parts do not divide it."""
        if batch % (self.world * parts):
            raise UserError(f"global batch {batch} does not divide by {self.world} processes x "
                            f"{parts} parts")
        each = batch // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, value):
        """Sum over processes of a tensor, which itself is left as it is."""
        if self.world == 1:
            return value
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

    def check_equal(self, place, facts, networks=None):
        """Raises UserError unless all processes have the same facts, a dict, and weights.

        Machines that share no folder would otherwise train apart, unseen. place: what they lack.
        """
        if self.world == 1:
            return
        facts = {name: value for name, value in facts.items() if name not in PATHS}
        if networks:
            digest = hashlib.sha256()
            for tensor in networks.state_dict().values():
                digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
            facts["weights"] = digest.hexdigest()
        first, *others = self.from_all(facts)
        for rank, other in enumerate(others, 1):
            names = [name for name in first if other.get(name) != first[name]]
            if names:
                raise UserError(f"process {rank} starts from another {', '.join(names)} than "
                                f"process 0: all machines need the same flags, inputs and "
                                f"{place}, shared or copied")

    def from_all(self, value):
        """[each process's value of any kind], in rank order."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def note_signals(self):
        """From now on SIGTERM (a cluster wants its machine back), SIGINT (Ctrl-C) and SIGHUP (the
        terminal is gone) are noted.

        Alone, a second one ends the process at once; torchrun repeats what it gets.
        """
        def note(number, frame):
            self.signal = number
            if self.world == 1:
                signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:   # as nohup has it
                self.handlers[number] = signal.signal(number, note)

    def noted(self, step):
        """The signal that a process was sent, the same number in all of them; 0: none yet."""
        if self.world == 1:
            return self.signal
        if self.device.type == "cuda" and step % 10:   # asking waits for the GPU
            return 0
        number = torch.tensor(self.signal, device=self.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def close(self):
        """Leaves the group, all together: gloo aborts a process whose partner still talks."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()
        while LOCKS:
            LOCKS.pop().close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def stop(self, number, text):
        """Ends after a noted signal, as shells expect: exit code 128 + its number."""
        self.print(f"{text}: stopped by {signal.Signals(number).name}; the same command goes on")
        self.close()
        sys.exit(128 + number)


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


def usable_device(name):
    """The torch.device of a --device. Raises UserError where torch knows none of that name, or this
    machine has no such GPU."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: auto, cpu, cuda, cuda:N or mps") from None
    absent = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if absent or device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: this machine has none; use --device cpu")
    return device


class GradientSum:
    """Adds up the .grad of parameters over processes, in flat messages sent during backward.

    A sum: losses are already divided by global counts, which differ between processes.
    """

    def __init__(self, parameters, world, message=2 ** 23):
        """message: the most numbers of one, where a parameter has no more (32 MB)."""
        self.groups = [[]]   # of parameters, a message each; gradients come about from the last
        self.on = False      # else a backward pass sends nothing
        self.hooks = []
        if world == 1:
            return
        for parameter in reversed(list(parameters)):
            size = sum(each.numel() for each in self.groups[-1])
            if self.groups[-1] and size + parameter.numel() > message:
                self.groups.append([])
            self.groups[-1].append(parameter)
            arrived = partial(self._arrived, len(self.groups) - 1)
            self.hooks.append(parameter.register_post_accumulate_grad_hook(arrived))
        self._reset()

    def _reset(self):
        self.waiting = [len(group) for group in self.groups]
        self.sent = []   # (gradients, flat, message under way), in the order of groups

    def _arrived(self, group, parameter):
        if self.on:
            self.waiting[group] -= 1
            self._send(self.waiting)

    def _send(self, waiting):
        """Sends the next groups as far as nothing of them is waited for, in the same order."""
        while len(self.sent) < len(self.groups) and waiting[len(self.sent)] == 0:
            parameters = self.groups[len(self.sent)]
            gradients = [each.grad for each in parameters if each.grad is not None]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self.sent.append((gradients, flat, dist.all_reduce(flat, async_op=True)))

    def finish(self):
        """After backward: waits, and puts the sums in place."""
        if self.groups == [[]]:
            return
        self._send([0] * len(self.groups))   # of parameters without a gradient, too
        for gradients, flat, message in self.sent:
            message.wait()
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, total in zip(gradients, flat.split(sizes)):
                gradient.copy_(total.view_as(gradient))
        self._reset()

    def close(self):
        """Lets go of the parameters, so that another sum over them can follow."""
        for hook in self.hooks:
            hook.remove()


def settle_precision(asked, device):
    """(name, dtype for autocast or None); "auto": bf16 where the device computes in it, else fp32.
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
    Where a batch is larger than `count`, none is in it more than once more than another.
    """
    epoch, place = divmod(step, max(1, count // batch))
    order = _permutation(count, seed, epoch)
    return np.resize(order[place * batch:(place + 1) * batch], batch)


@lru_cache(maxsize=1)
def _permutation(count, seed, epoch):
    return numpy_generator(seed, "order", epoch).permutation(np.arange(count, dtype=np.int32))


def derangement(count, generator):
    """A random permutation of range(count) without a fixed point: who is whose negative."""
    if count < 2:
        raise UserError("negatives need a global batch of at least 2 examples")
    while True:   # one in e tries succeeds
        order = generator.permutation(count)
        if (order != np.arange(count)).all():
            return order


class Feed:
    """Iterates over batches[step, indices], moved to the device, of steps first, first + 1, ...

    batches: gives a list of {name: tensor}, the parts of this process's rows of a global batch;
    indices: which of `count` examples these rows are. Worker processes make them meanwhile; their
    number changes no result.
    """

    def __init__(self, batches, count, args, rows, first, processes):
        self.device = processes.device
        self.waited = 0.0   # seconds that steps stood still for data
        self.workers = args.workers
        if self.workers is None:
            cores = os.cpu_count() // processes.here
            self.workers = max(1, min(8, cores)) if self.device.type == "cuda" else 1
        self.ahead = 3 + 2 * self.workers   # steps until none of the batches was made beforehand

        def steps():
            step = first
            while True:
                yield step, batch_indices(count, args.batch, args.seed, step)[rows]
                step += 1
        # forked workers share the mapped files; Python 3.14's default would send each a copy
        start = "fork" if self.workers and sys.platform == "linux" else None
        self.batches = iter(torch.utils.data.DataLoader(
            Told(batches), sampler=steps(), batch_size=None, num_workers=self.workers,
            multiprocessing_context=start,
            pin_memory=self.device.type == "cuda", worker_init_fn=outlast_signals))
        # torch's handler would raise a worker's death anywhere, in the middle of a save, too
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def __next__(self):
        began = time.perf_counter()
        parts = next(self.batches)
        self.waited += time.perf_counter() - began
        if isinstance(parts, UserError):
            raise UserError(str(parts))   # a new one: a frame that holds its error frees nothing
        for part in parts:
            for name in part:
                part[name] = part[name].to(self.device, non_blocking=True)
        return parts


class Told:
    """Batches whose errors for users come as values: a worker would wrap them in its traceback.

    A worker puts its tensors into shared memory here: where there is no room, torch's own thread
    would lose the batch, and the stage would wait for it for ever.
    """

    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, key):
        try:
            parts = self.batches[key]
            if torch.utils.data.get_worker_info():
                for part in parts:
                    for tensor in part.values():
                        tensor.share_memory_()
            return parts
        except UserError as error:
            return error
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            return UserError(f"no room to hand batches over ({error}): use fewer --workers, or a "
                             f"larger /dev/shm (docker: --shm-size)")


def moved(tensors, device):
    """Tensors of the CPU on a device; a GPU's copies are waited for by the GPU alone."""
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def outlast_signals(worker):
    """Terminals, torchrun and clusters signal all processes at once: the one that a worker serves
    has time to save. Workers end with it, or five seconds later."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.alarm(5))


# --------------------------------------------------------------------------------------------------
# Flags, log and provenance


def positive(text):
    """The type of flags that count something."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def count(text):
    """The type of flags that may be 0."""
    return int(text) and positive(text)


def above_zero(text):
    """The type of temperatures and the like, which may have a fraction."""
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def stage_parser(description):
    """The flags that both pretraining stages have; None is filled in from --size."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--init", help="BERT folder in Hugging Face form, from which the text encoder starts")
    flag("--layers", type=positive, help="of the encoders (default: --size's)")
    flag("--width", type=positive, help="hidden size, a multiple of 64 (default: --size's)")
    flag("--batch", type=positive, help="of all processes together")
    flag("--steps", type=positive, help="optimiser steps; overrides --epochs")
    flag("--epochs", type=above_zero, help="passes over the training data")
    flag("--lr", type=float, help="peak learning rate")
    flag("--warmup", type=count, help="steps until the peak")
    flag("--weight-decay", type=float)
    flag("--clip", type=above_zero, default=1.0, help="largest gradient norm")
    flag("--dropout", type=float)
    flag("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    flag("--device", default="auto", help="auto, cpu, cuda, mps")
    flag("--compile", choices=["auto", "on", "off"], help="auto: on a GPU")
    flag("--workers", type=count, help="processes that make batches (default: one; on a GPU up to "
         "8)")
    flag("--seed", type=count, default=0)
    flag("--log-every", type=positive, help="steps")
    flag("--valid-every", type=positive, help="steps")
    flag("--save-every", type=positive, help="steps")
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
        # what is past the checkpoint will be written again
        kept = [line for line in log_lines(path) if line["step"] <= resume_step]
        self.before = kept[-1]["seconds"] if kept else 0.0   # of earlier starts, to their last save
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(path, "a", buffering=1)

    def __call__(self, step, total, **values):
        """Logs values at a step; adds seconds of all starts, steps a second, the time left."""
        if self.file is None:
            return
        seconds = time.time() - self.start
        line = {"step": step, **values, "seconds": round(self.before + seconds, 2)}
        self.file.write(json.dumps(line) + "\n")
        shown = ""
        for name, value in values.items():
            shown += f"  {name} {value:.4g}" if isinstance(value, float) else f"  {name} {value}"
        rate = max(step - self.first_step, 1) / max(seconds, 1e-9)
        print(f"{self.name} {step:>6}/{total}{shown}  | {rate:.1f} steps/s, "
              f"{(total - step) / rate:.0f} s left", flush=True)


def log_lines(path):
    """The lines of a log.jsonl as dicts, none if there is none. A cut or damaged line is left out.
    """
    lines = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                lines.append(dict(**json.loads(line)))
    return lines


def write_text(path, text):
    """Writes a text file through a temporary name, so that path is always whole."""
    temporary = Path(str(path) + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path, value):
    """Writes JSON through a temporary name."""
    write_text(path, json.dumps(value, indent=1))


def read_json(path, made_by, *keys):
    """Reads JSON, an object that has these keys. Raises UserError: the command that makes the file,
    the line that is wrong, or the keys that it lacks."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing; `{made_by}` makes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    lacking = [key for key in keys if not isinstance(content, dict) or key not in content]
    if lacking:
        again = f"; `{made_by}` makes it anew" if made_by else ""
        raise UserError(f"{path} lacks {', '.join(lacking)}{again}")
    return content


# flags that may differ between machines; of the paths, what lies there decides
PATHS = ("device", "out", "data", "text", "teacher", "init", "bank", "model")
# flags that change nothing of what a run computes, but the draw of dropout in compiled steps
FREE = (*PATHS, "dry_run", "log_every", "valid_every", "save_every", "compile", "graphs", "workers")


LOCKS = []   # open files: the folders of this process; closing them, or any end, gives them back


def lock(folder, name="lock"):
    """Takes a folder for this process. Raises UserError where another one has it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder} is a file, or lies in one: choose another folder") from None
    file = open(folder / name, "a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise UserError(f"{folder} is being written by {file.read()}: wait for it, or end it (a "
                        f"killed torchrun may leave its processes running)") from None
    except OSError as error:   # a network's disk may know no locks
        print(f"{folder} cannot be locked ({error.strerror}): only one run may write it at a time")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    LOCKS.append(file)


def open_run(folder, arguments, processes, precision, inputs):
    """Takes a run folder and makes its args.json. Raises UserError where other arguments began it.

    So a run that goes on ends where it would have ended at once. inputs: {name: sha256}.
    """
    path = Path(folder) / "args.json"
    now = {"arguments": arguments, "precision": precision, "inputs": inputs}
    lock(folder)
    if not path.exists():
        write_json(path, {**now, "processes": processes.world, **provenance(processes.device)})
        return
    before = read_json(path, "", "arguments", "precision")
    changed = []
    if before["precision"] != precision:
        changed.append(f"precision {before['precision']} -> {precision}")
    for name, value in arguments.items():
        old = before["arguments"].get(name, value)
        if name not in FREE and old != value:
            changed.append(f"--{name.replace('_', '-')} {old} -> {value}")
    known = before.get("inputs", {})   # releases before v0.2 kept none
    for name in sorted(known.keys() | inputs.keys()):
        if known.get(name) != inputs.get(name):
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
        raise UserError(f"{folder} splits text into other tokens than {text} holds; run data.py "
                        f"again for {text}, with --vocab {folder}")
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(f"{folder}: its tokenizer has {tokenizer.get_vocab_size()} entries, its "
                        f"embedding {config.vocab_size}")


def check_world(model_folder, folder):
    """Raises UserError where a run of ours is asked about a mini world that it was not trained in:
    it would answer by lot. Each world's text makes a tokenizer of its own."""
    ours = (Path(model_folder).parent / "args.json").exists()
    if not ours or not (Path(model_folder) / "config.json").exists():   # the latter: unfinished
        return
    if (Path(folder) / "world.json").exists() and (tokenizer_hash(load_tokenizer(model_folder))
                                                   != tokenizer_hash(load_tokenizer(folder))):
        raise UserError(f"{model_folder} reads other tokens than the world of {folder}, so it was "
                        f"hardly trained there: name its own by --data")


def make_encoder(args, tokenizer, text):
    """(config, Bert, MLMHead) of --size, --layers and --width, or of --init, for the tokens in the
    folder `text`. Raises UserError at a width that heads of 64 do not fill."""
    shape = dataclasses.replace(model.SIZES[args.size], vocab_size=tokenizer.get_vocab_size(),
                                hidden_dropout_prob=args.dropout,
                                attention_probs_dropout_prob=args.dropout)
    if args.init and (args.layers or args.width):
        raise UserError("--layers and --width are those of --init's model: leave them out")
    if args.layers:
        shape = dataclasses.replace(shape, num_hidden_layers=args.layers)
    if args.width:
        if args.width % 64:
            raise UserError(f"--width {args.width} is no multiple of 64, the width of a head")
        shape = dataclasses.replace(shape, hidden_size=args.width,
                                    num_attention_heads=args.width // 64,
                                    intermediate_size=4 * args.width)
    if not args.init:
        bert = model.Bert(shape)
        return shape, bert, model.MLMHead(shape, bert.tokens)
    config, bert, mlm_head = model.load_hf(args.init)
    check_tokenizer(args.init, config, tokenizer, text)
    model.set_dropout(config, bert, args.dropout)
    config.block = min(config.block, shape.block)
    return config, bert, mlm_head


class Tracker:
    """Numbers of each step, kept on the device, so that a step waits for nothing to be read.

    After a step that had a NaN or an infinity, that step's numbers stay.
    """

    def __init__(self, names, device):
        self.names = [*names, "grad_norm"]
        self.numbers = torch.zeros(len(self.names) + 1, device=device)

    def add(self, step, losses, norm):
        """Takes a step's losses, [names] of this process, and the norm of its whole gradient."""
        numbers = torch.cat([losses, norm[None], torch.full_like(norm[None], step)])
        self.numbers = torch.where(self.numbers.isfinite().all(), numbers, self.numbers)

    def read(self, processes, advice, parameters=()):
        """{name: number of the last step}, losses added up over processes.

        parameters: what is to be kept after that step; its norm becomes one more number. Raises
        UserError where a number is not finite, with advice.
        """
        losses = processes.sum(self.numbers[:-2])
        *values, step = torch.cat([losses, self.numbers[-2:]]).tolist()   # one wait
        values = dict(zip(self.names, values))
        if parameters:
            values["weight_norm"] = float(torch.nn.utils.get_total_norm(parameters))
        if not all(map(math.isfinite, values.values())):
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            raise UserError(f"{shown} at step {step:.0f}; {advice}")
        return values


DRY_STEPS = 10   # steps that --dry-run times


def print_plan(processes, parameters, seconds_a_step, waited_a_step, steps):
    """`--dry-run`: what the whole run would take, judged by the few steps that were run.

    seconds_a_step: all of a step; waited_a_step: the part of it that it stood still for data.
    """
    if processes.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(processes.device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if sys.platform != "darwin":   # Linux counts kilobytes
            memory *= 1024
    # 12 bytes a parameter in a checkpoint (its value, AdamW's two moments): three lie there while
    # one is written, two beside a model of 4 at the end
    count = sum(parameter.numel() for parameter in parameters)
    processes.print(
        f"dry run: {memory / 2 ** 30:.2f} GB a process; {1000 * seconds_a_step:.0f} ms a step "
        f"({1000 * waited_a_step:.0f} of them waiting for data) x {steps} steps = "
        f"{seconds_a_step * steps / 3600:.2f} hours; "
        f"{36 * count / 2 ** 30:.2f} GB of disk")


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


def load_tokenizer(path):
    """Reads a tokenizer.json or a vocab.txt; of a folder the first of them that is there.

    Returns a tokenizers.Tokenizer whose `encode(text).ids` holds [CLS] ... [SEP]. Raises UserError
    where the tokenizer is missing or not BERT's kind.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
        if not path.exists():
            path = path.with_name("vocab.txt")
    if not path.exists():
        raise UserError(f"no vocabulary at {path}; `python data.py mini` makes one, `make "
                        "data/weights/bert-base-uncased` fetches BERT's")
    if path.suffix == ".json":
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:   # the library has no class of its own
            raise UserError(f"{path} cannot be read as a tokenizer ({error})") from None
        kind = type(tokenizer.model).__name__
        if kind != "WordPiece":
            raise UserError(f"{path} holds a {kind} tokenizer, BERT's is WordPiece")
        check_special(path, tokenizer.get_vocab())
    else:
        tokenizer = read_vocabulary(path)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_vocabulary(path):
    """The tokenizer of a vocab.txt. Lower-cases if tokenizer_config.json beside it says so, else
    if no piece has a capital."""
    # not splitlines(), which also cuts at U+2028 and its like
    try:
        pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    check_special(path, vocabulary)
    if len(vocabulary) < len(pieces):
        twice = Counter(pieces).most_common(1)[0][0]
        raise UserError(f"{path}: {twice!r} stands in two lines; replace one by [unusedN]")
    config = path.with_name("tokenizer_config.json")
    rules = read_json(config, "") if config.exists() else {}
    # tokens beside the vocabulary; Japanese words, found by MeCab
    if path.with_name("added_tokens.json").exists() or "word_tokenizer_type" in rules:
        raise UserError(f"{path} is not all that its tokenizer needs (see added_tokens.json, "
                        f"tokenizer_config.json); a whole one would be a tokenizer.json")
    spelt = [piece for piece in pieces if not piece.startswith("[")]   # not [CLS], [unused1]
    lower = spelt == [piece.lower() for piece in spelt]
    bert = tokenizers.BertWordPieceTokenizer(
        vocabulary, lowercase=rules.get("do_lower_case", lower),
        strip_accents=rules.get("strip_accents"),
        handle_chinese_chars=rules.get("tokenize_chinese_chars", True))
    return tokenizers.Tokenizer.from_str(bert.to_str())


def check_special(path, vocabulary):
    """Raises UserError where one of BERT's five special tokens is missing."""
    missing = [token for token in SPECIAL if token not in vocabulary]
    if missing:
        raise UserError(f"{path} is not a BERT vocabulary: it lacks {', '.join(missing)}")


def train_tokenizer(files, size, folder):
    """Writes folder/tokenizer.json of at most `size` pieces: the text files' letters, then their
    most frequent words."""
    normalizer = tokenizers.normalizers.BertNormalizer()
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
    keep_tokenizer(tokenizers.BertWordPieceTokenizer(vocabulary), folder)


def keep_tokenizer(tokenizer, folder):
    """Writes folder/tokenizer.json: beside tokens lies the tokenizer that made them."""
    write_text(Path(folder) / "tokenizer.json", tokenizer.to_str(pretty=True))


def special_ids(tokenizer):
    """{"pad": id, "unk": id, "cls": id, "sep": id, "mask": id}"""
    return {token.strip("[]").lower(): tokenizer.token_to_id(token) for token in SPECIAL}


def tokenizer_hash(tokenizer):
    """sha256 of all that decides which tokens a text becomes."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def file_hash(path):
    """sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mapped(path, made_by, kind=None, shape=None):
    """A .npy file's array, or that of a kind and shape in a file of nothing else, mapped. Raises
    UserError where it is absent, empty or cut."""
    try:
        if kind is None:
            return np.load(path, mmap_mode="r")
        return np.memmap(path, kind, "r", shape=shape)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); `{made_by}` makes it, once a damaged "
                        f"one is deleted") from None


# --------------------------------------------------------------------------------------------------
# Text -> packed tokens. A split is NAME.bin (all token ids, no separators) and, written last,
# NAME.json.

MIN_WORDS = 5   # between spaces; shorter lines are dropped, as for the authors' corpora


def text_files(paths):
    """Files, and all files under folders but dot files and what dot folders hold."""
    files = []
    for path in map(Path, paths):
        inside = []
        for file in [path, *sorted(path.rglob("*"))]:
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden:
                inside.append(file)
        if not inside:
            raise UserError(f"no text file in {path}; `make data/wiki` fetches WikiText-103")
        files += inside
    return files


def text_lines(path, min_words, bar):
    """Yields a file's lines worth training on, as vokenization's code (Tan & Bansal 2020) chose
    them. bar: counts the bytes read.

    Dropped: WikiText headings (` = Title = `), WikiExtractor's <doc> marks, lines of fewer than
    min_words words between spaces. WikiExtractor's entities are undone.
    """
    is_wiki = None   # is it WikiExtractor's? The first line that is not blank tells
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            bar.update(len(raw))
            try:
                line = raw.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8 ({error})") from None
            if is_wiki is None and line.strip():
                if re.match(r'\s*[\[{]\s*(["{]|$)', line):   # [ or {, then " or the end
                    raise UserError(f"{path} is JSON, not text (WikiExtractor: leave out --json)")
                is_wiki = line.startswith("<doc id=")
            if is_wiki:
                line = html.unescape(line)
            bare = line.strip()
            heading = line.startswith(" = ")
            mark = bare.startswith("<doc id=") or bare.endswith("</doc>")
            if bare and not heading and not mark and bare.count(" ") + 1 >= min_words:
                yield bare


def pack_text(files, vocab, out, name, min_words=MIN_WORDS, valid_lines=0):
    """Tokenises files and folders into out/NAME.bin and out/NAME.json, the last `valid_lines` lines
    into out/valid.* instead."""
    out = Path(out)
    files = text_files(files)
    tokenizer = load_tokenizer(vocab)
    lock(out)
    last = deque()
    size = sum(path.stat().st_size for path in files)
    with tqdm(total=size, desc=f"text {name}", unit="B", unit_scale=True) as bar:
        lines = chain.from_iterable(text_lines(path, min_words, bar) for path in files)
        lines = all_but_last(lines, valid_lines, last)
        written = {name: write_tokens(lines, tokenizer, out / f"{name}.bin.tmp")}
    if written[name]["tokens"] == 0:
        raise UserError(f"{files[0]} ...: no more than {len(last)} lines of {min_words} words or "
                        f"more (--min-words 1 suits languages written without spaces)")
    if valid_lines:
        written["valid"] = write_tokens(iter(last), tokenizer, out / "valid.bin.tmp")
    kept = out / "tokenizer.json"
    same = kept.exists() and kept.read_text(encoding="utf-8") == tokenizer.to_str(pretty=True)
    # the JSON vouches for tokens and tokenizer: it goes first, comes last
    for split in written if same else ("train", "valid"):
        (out / f"{split}.json").unlink(missing_ok=True)
    keep_tokenizer(tokenizer, out)
    for split, described in written.items():
        os.replace(out / f"{split}.bin.tmp", out / f"{split}.bin")
        write_json(out / f"{split}.json", described)
        print(f"{out}/{split}.bin: {described['tokens']:,} tokens")


def all_but_last(lines, count, last):
    """Yields all lines but the last `count`, which are then in the deque `last`."""
    for line in lines:
        last.append(line)
        if len(last) > count:
            yield last.popleft()


def write_tokens(lines, tokenizer, path):
    """Writes the token ids of an iterator's lines. Returns {"tokens": how many, "dtype"}."""
    kind = np.min_scalar_type(tokenizer.get_vocab_size() - 1)   # holds every id
    with open(path, "wb") as file:
        while batch := list(islice(lines, 2000)):
            # the fast one leaves out offsets, and uses all cores
            encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            ids = chain.from_iterable(encoding.ids for encoding in encoded)
            file.write(np.fromiter(ids, kind).tobytes())
        return {"tokens": file.tell() // kind.itemsize, "dtype": kind.name}


# --------------------------------------------------------------------------------------------------
# Video -> features
#
# One decode of a film feeds every stream. A stream is a folder features/NAME of float16 arrays
# ID.npy [T, D] beside stream.json with its rate: ours, or another tool's. A film whose arrays are
# there is done.

FPS = 8   # frames a second that the small streams see
SIDE = 48   # their sides
WINDOW = 4   # frames of a step of motion
HOP = 4   # frames from step to step
TOGETHER = 64   # frames or windows that a CNN takes at once, of one film or many

FILM_ENDINGS = set("""
    .3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .m1v .m2t .m2ts .m2v .m4v .mkv .mov .mp4 .mpe .mpeg
    .mpg .mts .mxf .nut .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m
""".split())


class VideoError(Exception):
    """Why one film cannot be used; the caller lists it and goes on."""


def is_film(path):
    return path.suffix.lower() in FILM_ENDINGS and not path.name.startswith(".")


def film_files(folder):
    """{id: path} of the films ID.mp4, ID.mkv, ... of a folder. Raises UserError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder of videos at {folder}")
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
    """The ffmpeg filters that turn and mirror a frame as its film's display matrix asks."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return []
    # a pixel (x, y) is shown at (a x + c y, b x + d y)
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    filters = []
    if abs(b) > abs(a):
        filters.append("transpose=cclock_flip")   # x and y change places
        a, d = c, b
    if a < 0:
        filters.append("hflip")
    if d < 0:
        filters.append("vflip")
    return filters


class View(NamedTuple):
    """What `ffmpeg -vf fps=F,scale=W:H[,crop=S:S] -pix_fmt rgb24` shows of a film.

    The short side becomes `size` pixels, as in HowTo100M's extractor
    (antoine77340/video_feature_extractor).
    """
    fps: int
    size: int
    crop: bool = False   # its middle, size x size
    stretch: bool = False   # the whole picture, size x size


def view_graph(view, frame):
    """A view's graph of ffmpeg filters, for a film that begins with this frame."""
    size = view.size
    scale = f"scale={size}:{size}"
    if not view.stretch:
        width = f"if(gte(ih,iw),{size},trunc(iw*{size}/ih))"
        height = f"if(gte(ih,iw),trunc(ih*{size}/iw),{size})"
        scale = f"scale='{width}':'{height}'"   # follows frames that change their size
    steps = [
        f"buffer=video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
        f":pixel_aspect=1/1:time_base={frame.time_base}"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
        *upright(frame),
        f"fps={view.fps}:start_time=0",   # the first frame fills the time before it
        f"{scale}:flags=bicubic",
    ]
    if view.crop:
        steps.append(f"crop={size}:{size}:trunc((iw-ow)/2):trunc((ih-oh)/2)")
    steps += ["format=rgb24", "buffersink"]
    graph = av.filter.Graph()
    graph.threads = 1   # the caller runs one process a core
    graph.link_nodes(*[graph.add(*step.split("=", 1)) for step in steps]).configure()
    return graph


def filtered(graph, frame):
    """Gives a graph the next frame, None at the end. Yields the pictures uint8 [h, w, 3] due."""
    graph.vpush(frame)
    with suppress(av.BlockingIOError, av.EOFError):
        while True:
            yield graph.vpull().to_ndarray()


def timed_frames(container, stream, damaged):
    """Yields a stream's frames, each with a duration and a pts counted from the container's start.

    A packet that cannot be decoded is skipped, as ffmpeg does, and its error goes to `damaged`.
    Raises VideoError where more than a tenth are, frames have no time, or the file was cut.
    """
    beginning = Fraction(container.start_time or 0, av.time_base)   # seconds
    before = -math.inf
    ordered = True
    packets = 0
    end = 0   # seconds: sound or subtitles may outlast the picture
    for packet in container.demux():
        if packet.pts is not None:
            last = (packet.pts + (packet.duration or 0)) * packet.time_base
            end = max(end, last - beginning)
        if packet.stream is not stream:
            continue
        packets += 1
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            damaged.append(error.strerror)
            continue
        for frame in frames:
            # in old AVIs display times run backwards or are missing: as ffmpeg, decoding times then
            if frame.pts is None or frame.pts <= before:
                ordered = False
            else:
                before = frame.pts
            if not ordered and frame.dts is not None:
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
    stated = (container.duration or 0) / av.time_base
    if container.format.name.startswith("matroska"):   # whose durations count from 0
        stated -= float(beginning)
    if stated - end > max(1, 0.05 * stated):
        raise VideoError(f"cut: it ends after {float(end):.1f} of {stated:.1f} seconds")


def decode(path, views, damaged=None, start=0.0):
    """Decodes a film once, for several views. Yields (view, picture uint8 [h, w, 3], seconds).

    Time runs from the container's start, as in captions; views begin at second `start`. seconds:
    of film so far. damaged: takes the error of each packet that is skipped. Raises VideoError.
    """
    seconds = start
    graphs = {}   # view: its filters
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            cover = av.stream.Disposition.attached_pic   # of a song
            if stream is None or stream.disposition & cover:
                raise VideoError("no video stream")
            if stream.codec_context is None:
                raise VideoError("in a format that FFmpeg cannot decode")
            stream.codec_context.thread_count = 1   # the caller runs one process a core
            # slides stand for minutes; but a broadcast's clock may start anew
            restarts = container.format.flags & av.format.Flags.ts_discont.value
            if start and not restarts:   # to a key frame before it; a broadcast's may lie after it
                container.seek(int(start * av.time_base) + (container.start_time or 0))
            longest = 60 if restarts else 3600
            for frame in timed_frames(container, stream, [] if damaged is None else damaged):
                end = float((frame.pts + frame.duration) * frame.time_base)
                if end - seconds > longest:
                    raise VideoError(f"its timestamps jump from {seconds:.0f} to {end:.0f} seconds")
                seconds = max(seconds, end)
                frame.pts -= round(start / float(frame.time_base))
                for view in views:
                    if view not in graphs:
                        graphs[view] = view_graph(view, frame)
                    for picture in filtered(graphs[view], frame):
                        yield view, picture, seconds
        for view in graphs:
            for picture in filtered(graphs[view], None):
                yield view, picture, seconds
    except (av.FFmpegError, OSError, ValueError) as error:   # ValueError: an odd pixel format
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"cannot be decoded ({reason})") from None


def clip_pictures(path, start, end, fps, size):
    """Seconds start..end of a film: uint8 pictures [h, w, 3], `fps` a second, short side `size`.

    Raises VideoError where there is nothing to show.
    """
    shown = decode(path, [View(fps, size)], start=start)
    count = max(1, round((end - start) * fps))
    pictures = [picture for _, picture, _ in islice(shown, count)]
    if not pictures:
        raise VideoError(f"no frame between {start} and {end} s")
    return pictures


def wrapped_moments(weight, side):
    """Centre of weights [N, S*S] over a picture, and each column's and row's offset from it.

    Returns x [N, 1], y [N, 1], dx [N, 1, S], dy [N, S, 1]; unit: the picture's side. All circular:
    the mini world's pictures wrap round; elsewhere this only moves the origin.
    """
    rows, columns = np.mgrid[:side, :side].astype(np.float32) / side   # [S, S] each
    centres = []
    for axis in (columns.reshape(-1), rows.reshape(-1)):   # [S*S]
        sine = weight @ np.sin(2 * np.pi * axis)   # [N]
        cosine = weight @ np.cos(2 * np.pi * axis)
        centres.append(np.arctan2(sine, cosine)[:, None] / (2 * np.pi))   # [N, 1]
    x, y = centres
    dx = (columns[None, :1] - x[:, None] + 0.5) % 1 - 0.5   # [N, 1, S]
    dy = (rows[None, :, :1] - y[:, None] + 0.5) % 1 - 0.5   # [N, S, 1]
    return x, y, dx, dy


def frame_descriptor(frames):
    """What every 4th frame shows (the small 2D stream). uint8 [F, S, S, 3] -> float32 [N, 56].

    A 4 x 4 thumbnail (48), and of the colourful part of the picture: area, centre, elongation,
    spread (image moments, Hu 1962), mean colour.
    """
    frames = frames[::HOP]   # at the steps of the motion stream
    N, S = frames.shape[:2]
    rgb = frames.astype(np.float32) / 255   # [N, S, S, 3]
    thumbnail = rgb.reshape(N, 4, S // 4, 4, S // 4, 3).mean((2, 4))   # [N, 4, 4, 3]
    red, green, blue = rgb.transpose(3, 0, 1, 2)   # an axis of 3 is reduced ten times slower
    highest = np.maximum(np.maximum(red, green), blue)
    chroma = highest - np.minimum(np.minimum(red, green), blue)   # [N, S, S]
    weight = np.where(chroma > 0.15, chroma, 0)   # grey is background
    x, y, dx, dy = wrapped_moments(weight.reshape(N, -1), S)
    total = weight.reshape(N, -1).sum(1, keepdims=True) + 1e-3   # [N, 1]
    xx, yy, xy = [(weight * part).reshape(N, -1).sum(1, keepdims=True) / total
                  for part in (dx * dx, dy * dy, dx * dy)]   # [N, 1] each
    weight = weight.reshape(N, -1)   # [N, S*S]
    spread = np.sqrt((xx - yy) ** 2 + 4 * xy ** 2)
    elongation = spread / (xx + yy + 1e-4)   # 0 round .. 1 a line
    colour = (weight[:, None] @ rgb.reshape(N, -1, 3))[:, 0] / total   # [N, 3]
    area = (weight > 0).mean(1, keepdims=True)
    columns = [thumbnail.reshape(N, -1), np.sqrt(area), x, y, elongation, xx + yy, colour]
    return np.concatenate(columns, 1)


def motion_descriptor(frames):
    """What moves in each window of 4 frames (the small 3D stream). uint8 [N, S, S, 3] -> [M, 40].

    Least-squares affine motion between neighbouring frames (Bergen et al. 1992): translation,
    divergence, curl, two shears, speed, averaged over the window (7), the change of speed across
    it (1); a 4 x 4 grid of motion energy along x and y (32). float32.
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
    dx = S / 8 * dx   # [N-1, 1, S], unit: 8 pixels
    dy = S / 8 * dy   # [N-1, S, 1]
    near = (dx * dx + dy * dy < 4).astype(np.float32)   # [N-1, S, S], 1 at the mover
    nx = gx * near
    ny = gy * near
    columns = np.stack([nx, nx * dx, nx * dy, ny, ny * dx, ny * dy], -1)   # [N-1, S, S, 6]
    columns = columns.reshape(pairs, S * S, 6)
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
        gain = window[-1, 6] - window[0, 6]
        steps.append(np.append(window.mean(0), gain.clip(-2, 2)))
    return np.stack(steps).astype(np.float32)   # [M, 40]


def prepare_frames(frames):
    """Frames as ResNet-152 takes them: uint8 [N, H, W, 3] -> float [N, 3, H, W]."""
    mean = torch.tensor((0.485, 0.456, 0.406), device=frames.device)
    std = torch.tensor((0.229, 0.224, 0.225), device=frames.device)
    return ((frames / 255 - mean) / std).permute(0, 3, 1, 2)


def prepare_windows(frames):
    """Windows of 16 frames as 3D ResNeXt-101 takes them: uint8 [N, H, W, 3] -> [M, 3, 16, H, W].

    The last window is filled with zeros before the mean is taken off, as in HowTo100M's extractor.
    """
    frames = F.pad(frames, (0, 0, 0, 0, 0, 0, 0, -len(frames) % 16))
    frames = frames - torch.tensor((110.6, 103.2, 96.3), device=frames.device)
    return frames.unflatten(0, (-1, 16)).permute(0, 4, 1, 2, 3)


class Stream(NamedTuple):
    """How a stream is made."""
    view: View
    batch: int   # pictures that are worked off together
    function: object   # uint8 [n <= batch, h, w, 3] -> [steps, D]; a CNN's: tensor -> its input
    rate: float   # steps a second
    width: int   # D
    frames_seen: int   # frames that one step sees


SMALL_VIEW = View(FPS, SIDE, stretch=True)

# those of model.CNNS are frozen networks
STREAMS = {
    "frame": Stream(SMALL_VIEW, 512, frame_descriptor, FPS / HOP, 56, 1),
    "motion": Stream(SMALL_VIEW, 512, motion_descriptor, FPS / HOP, 40, WINDOW),
    "resnet152": Stream(View(1, 224), 16, prepare_frames, 1.0, 2048, 1),
    "resnext101": Stream(View(24, 112, crop=True), 8 * 16, prepare_windows, 24 / 16, 2048, 16),
}


def cnn_function(name, weights, device, precision):
    """A frozen CNN as a function: uint8 [n, h, w, 3] of a film -> unit features [steps, 2048].

    Threads call it, one a film; what waits while it is busy goes in together.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # else fp32 convolutions on CUDA keep 10 bits, where the published ones kept 23
    torch.backends.cudnn.allow_tf32 = False
    network = model.load_cnn(name, weights).to(device, dtype)
    thread = ThreadPoolExecutor(1)
    lock = threading.Lock()
    waiting = {}   # (h, w, 3): pictures of that shape, film by film; the future of their features

    def function(pictures):
        shape = pictures.shape[1:]
        with lock:
            if shape not in waiting:
                waiting[shape] = [], thread.submit(run, shape)
            films, features = waiting[shape]
            films.append(pictures)
            place = len(films) - 1
        return features.result()[place]

    @torch.inference_mode()
    def run(shape):
        with lock:
            films, _ = waiting.pop(shape)
        inputs = []
        for pictures in films:
            pictures = torch.from_numpy(pictures).to(device)
            inputs.append(STREAMS[name].function(pictures).to(dtype))   # [steps, 3, ...]
        outputs = [network(part) for part in torch.cat(inputs).split(TOGETHER)]
        features = F.normalize(torch.cat(outputs).float(), dim=1).cpu()   # [all steps, 2048]
        return [part.numpy() for part in features.split([len(steps) for steps in inputs])]
    return function


class Networks(BaseManager):
    """A process that runs the CNNs on one device, for all processes that decode."""


Networks.register("cnn_function", cnn_function, exposed=["__call__"])


def start_worker():
    """In a worker process: it ends with its parent, however that ends, and not on Ctrl-C."""
    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def start_networks(cnns, weights, device, precision):
    """Begins a process for the CNNs of a device. Returns it, and {name: function that it runs}."""
    process = Networks(ctx=multiprocessing.get_context("spawn"))   # CUDA does not survive a fork
    process.start(start_worker)
    functions = {name: process.cnn_function(name, weights, device, precision) for name in cnns}
    try_out(functions)
    return process, functions


def try_out(functions):
    """Raises an error unless the CNNs compute."""
    for function in functions.values():
        function(np.zeros((1, 112, 112, 3), np.uint8))


def describe(path, functions):
    """Decodes a film once and computes its streams. functions: {stream: function}.

    Returns ({stream: float16 [T, D]}, seconds of film, packets skipped). Raises VideoError.
    """
    views = {STREAMS[name].view for name in functions}
    waiting = {name: [] for name in functions}   # pictures of the next batch
    features = {name: [] for name in functions}   # of the batches so far
    damaged = []
    seconds = 0.0

    def work_off(name):
        if waiting[name]:
            with np.errstate(over="ignore"):   # what float16 cannot hold is refused below
                batch = functions[name](np.stack(waiting[name])).astype(np.float16)
            features[name].append(batch)
            waiting[name].clear()

    for view, picture, seconds in decode(path, views, damaged):
        for name in functions:
            if STREAMS[name].view == view:
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


def extract(path, streams, out, cnns):
    """Writes the streams of one film. Returns (seconds of film, packets skipped).

    cnns: {stream: function} of the CNNs among them. Raises VideoError.
    """
    functions = {name: STREAMS[name].function for name in streams} | cnns
    arrays, seconds, damaged = describe(path, functions)
    for name, array in arrays.items():
        target = Path(out) / "features" / name / f"{Path(path).stem}.npy"
        with open(f"{target}.tmp", "wb") as file:
            np.save(file, array)
        os.replace(f"{target}.tmp", target)
    return seconds, damaged


def extract_all(films, streams, out, workers, devices, weights, precision):
    """Yields (id, what extract returns or its error) of films {id: path}, as they end.

    Each process that decodes is a pool of its own, so that it is known which film it died at.
    After an unexpected error it is replaced, and the film tried once more.
    """
    cnns = [name for name in streams if name in model.CNNS]
    networks = {}   # device: the process of its CNNs, and their functions
    waiting = deque(films)
    running = {}   # future: id of the film, pool, device
    failed = set()   # ids of films that are tried once more
    pools = []

    def begin(device):
        pools.append(ProcessPoolExecutor(1, initializer=start_worker))
        begin_next(pools[-1], device)

    def begin_next(pool, device):
        if waiting:
            video = waiting.popleft()
            functions = networks[device][1] if device else {}
            future = pool.submit(extract, films[video], streams, out, functions)
            running[future] = video, pool, device

    try:
        for device in devices[:workers]:
            networks[device] = start_networks(cnns, weights, device, precision)
        for device in islice(cycle(devices or [None]), workers):
            begin(device)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                video, pool, device = running.pop(future)
                error = future.exception()
                if error is None or isinstance(error, VideoError):
                    begin_next(pool, device)
                    yield video, error or future.result()
                    continue
                if device:
                    process, functions = networks[device]
                    try:
                        try_out(functions)
                    except Exception:   # it is dead, or an error of CUDA's lasts
                        process.shutdown()
                        networks[device] = start_networks(cnns, weights, device, precision)
                if video in failed:
                    yield video, error
                else:
                    failed.add(video)
                    waiting.append(video)
                begin(device)
    finally:
        for process, _ in networks.values():
            process.shutdown()
        for process in multiprocessing.active_children():   # nothing is lost: the film begins anew
            process.kill()
        for pool in pools:   # its thread ends before Python does
            pool.shutdown()


def read_stream(folder, made_by):
    """{"rate", "width", "frames_seen" or 1} of a feature folder, anyone's, from its stream.json.
    Raises UserError that says what to write."""
    path = Path(folder) / "stream.json"
    if path.exists():
        with suppress(TypeError):   # no object, or none of numbers
            stream = {"frames_seen": 1, **read_json(path, made_by)}
            if stream.get("rate", 0) > 0 and stream.get("width", 0) > 0:
                return stream
    raise UserError(f'{path} must hold {{"rate": steps a second, "width": D}} of arrays [T, D] '
                    f"named ID.npy; `{made_by}` writes it for its own streams")


def open_streams(streams, out, tag, weights, precision):
    """Makes the feature folders with their stream.json. tag: that of the shard. Raises UserError
    on other weights, or where features were made otherwise."""
    for name in streams:
        folder = out / "features" / name
        facts = {key: getattr(STREAMS[name], key) for key in ("rate", "width", "frames_seen")}
        if name in model.CNNS:
            model.load_cnn(name, weights)   # what is wrong with them is said before the work
            facts["precision"] = precision
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "stream.json"
        if path.exists() and read_json(path, "") != facts:
            raise UserError(f"{path} says that features were made otherwise, now {facts}: choose "
                            "another --out or --precision")
        # a shard's own name first: many may start in one second
        write_json(folder / f"stream{tag}.json", facts)
        os.replace(folder / f"stream{tag}.json", path)


def parse_shard(text):
    """'3/64' -> (3, 64)."""
    k, n = map(int, text.split("/"))
    if not 1 <= k <= n:
        raise ValueError
    return k, n


def in_shard(video, shard):
    """By the hash of the film's id, so that new films move no other. shard: (k, n)."""
    k, n = shard
    return int(hashlib.sha256(video.encode()).hexdigest(), 16) % n == k - 1


def missing_shards(out):
    """The shards that lack their features/left_out.K-of-N.tsv, as ["2/3", ...].

    One that was begun has a lock.K-of-N at least; where none was: [].
    """
    folder = Path(out) / "features"
    missing = []
    for n in {path.name.split("-of-")[1] for path in folder.glob("lock.*-of-*")}:
        for k in range(1, int(n) + 1):
            if not (folder / f"left_out.{k}-of-{n}.tsv").exists():
                missing.append(f"{k}/{n}")
    return missing


def extract_features(films, streams, out, workers=None, shard=None, weights="data/weights",
                     device="auto", precision="auto"):
    """Writes OUT/features/STREAM/ID.npy of films {id: path}, where they are missing.

    All workers decode; a process for each device runs the CNNs. shard (k, n): only that part.
    What cannot be used is listed (id, reason) in features/left_out.tsv, a shard's in
    left_out.K-of-N.tsv. Returns how many films met an error that is not their own. Raises
    UserError where the settings or shards of `out` are others.
    """
    out = Path(out)
    if not shard and missing_shards(out):
        raise UserError(f"{out}: shards {', '.join(missing_shards(out))} are not complete: run "
                        f"them first, or delete {out}/features/*-of-* to extract all here")
    devices = []
    if model.CNNS.keys() & set(streams):
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if precision == "auto" and device == "cpu":
            precision = "fp32"   # whatever the CPU could
        precision, _ = settle_precision(precision, usable_device(device))
        devices = [device]
        if device == "cuda":
            devices = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
        print(f"the CNNs run on {device} in {precision}")
    tag = f".{shard[0]}-of-{shard[1]}" if shard else ""
    open_streams(streams, out, tag, weights, precision)
    lock(out / "features", f"lock{tag}")
    done = set.intersection(*[set(os.listdir(out / "features" / name)) for name in streams])
    todo = {}
    for video, path in films.items():
        if f"{video}.npy" not in done and (shard is None or in_shard(video, shard)):
            todo[video] = path
    workers = min(workers or os.cpu_count(), len(todo))
    print(f"{len(todo):,} videos, {workers} processes that decode")
    record = out / "features" / f"left_out{tag}.tsv"
    untried = {}   # reasons of films that an earlier run tried, and this one does not
    if record.exists():
        lines = record.read_text(encoding="utf-8").splitlines()
        reasons = dict(line.split("\t", 1) for line in lines)
        untried = {video: reasons[video] for video in reasons.keys() - todo}
    if todo:
        record.unlink(missing_ok=True)   # killed from here on, it is not complete

    started = time.time()
    left_out = {}   # id: reason
    counts = Counter()
    outcomes = extract_all(todo, streams, out, workers, devices, weights, precision)
    with closing(outcomes):   # no process outlives it
        for video, outcome in tqdm(outcomes, total=len(todo), unit="video", desc="features"):
            if not isinstance(outcome, Exception):
                counts.update(seconds=outcome[0], damaged=outcome[1])
                continue
            left_out[video] = " ".join(str(outcome).split())   # one line
            if not isinstance(outcome, VideoError):
                left_out[video] = f"{type(outcome).__name__}: {left_out[video]}"
                counts["unexpected"] += 1
                tqdm.write(f"{video}: {left_out[video]}")
    listed = sorted({**untried, **left_out}.items())
    write_text(record, "".join(f"{video}\t{reason}\n" for video, reason in listed))
    rate = counts["seconds"] / (time.time() - started)
    print(f"{len(todo) - len(left_out):,} videos, {counts['seconds']:,.0f} seconds of film, "
          f"{rate:,.1f} a second; {counts['damaged']} damaged packets skipped; left out: "
          f"{len(left_out)}, listed in {record}")
    return counts["unexpected"]


def video_command(args):
    """`data.py video`: features of every film of a folder; with --vocab, the captions, too."""
    films = film_files(args.videos)
    others = [path.suffix for path in Path(args.videos).glob("[!.]*") if not is_film(path)]
    if others:
        print(f"{args.videos}: no films, by their endings: {dict(Counter(others))}")
    if args.only:
        only = listed_videos(args.only)
        films = {video: films[video] for video in films if video in only}
    if not films:
        raise UserError(f"no film in {args.videos} (of --only, if given); films end in "
                        f"{' '.join(sorted(FILM_ENDINGS))}")
    with_captions = args.vocab and not args.shard
    if with_captions:   # what is malformed is said before the work
        load_tokenizer(args.vocab)
        source = args.captions or args.videos
        captioned = {video for video, _ in read_captions(source, films)}
        if not captioned.intersection(films):
            raise UserError(f"{source}: no captions of any of the {len(films)} films")
    unexpected = extract_features(films, args.streams, args.out, args.workers, args.shard,
                                  args.weights, args.device, args.precision)
    if with_captions:
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
# index.json with the sorted ids, the rows of spans.

CAPTION_ARRAYS = ("tokens", "bounds", "times", "spans")
FLASH = 0.05   # seconds; a caption shown for less is a rest of rolling ones
PAIR = re.compile(r'\s*([{,])\s*("(?:[^"\\]|\\.)*")\s*:\s*')   # of JSON: a mark, a key
CLOCK = r"((?:\d+:)?[0-5]?\d:[0-5]?\d(?:[.,]\d{1,3})?)"
TIMES = re.compile(rf"\s*{CLOCK}\s*-->\s*{CLOCK}(?:\s.*)?")
BAD_TIMES = re.compile(r"\s*-?\d+(?:[\d:., ]*-->|: *\d+[:.,] *\d)")   # an arrow, or a clock
MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|<[\d:.]+>|\{\\[^}]*\}")   # <c>, <00:00:01.000>, {\an8}


def json_captions(path, piece=1 << 22):
    """Yields (video, captions) of HowTo100M's JSON {video: captions}, with `piece` letters and one
    entry in memory."""
    decoder = json.JSONDecoder()
    buffer = ""
    video = None
    mark = "{"
    # a byte that is not UTF-8 becomes half of a surrogate pair, which check_captions refuses
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        while read := file.read(piece):
            buffer += read
            place = 0
            while (pair := PAIR.match(buffer, place)) and pair[1] == mark:
                try:
                    found = decoder.raw_decode(buffer, pair.end())
                    video, (entry, place) = json.loads(pair[2]), found
                except json.JSONDecodeError:   # wrong, or cut by the buffer's end
                    break
                yield video, check_captions(entry, video, path)
                mark = ","
            buffer = buffer[place:]
    if "".join(buffer.split()) != ("{}" if video is None else "}"):
        raise UserError(f"{path}, after video {video!r}: not JSON of videos: {buffer[:60]!r}")


def check_captions(entry, video, path):
    """The captions with times as floats and "" for None and NaN, a table's marks of an empty cell.
    Raises UserError where they are not {"text": [], "start": [], "end": []}."""
    checked = {"text": [], "start": [], "end": []}
    try:
        for text, start, end in zip(entry["text"], entry["start"], entry["end"], strict=True):
            if text is None or text != text:
                text = ""
            text.encode()   # fails at half of a surrogate pair, which JSON can spell
            checked["text"].append(text)
            checked["start"].append(float(start))
            checked["end"].append(float(end))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: video {video!r}, caption {len(checked['end'])}: needs text, "
                        f"start, end: a text in UTF-8, two numbers, as many of each") from None
    return checked


def subtitles(path):
    """The captions of an .srt or .vtt file, without markup, a cue's lines joined; or of a .csv with
    columns text, start, end."""
    if path.suffix.lower() == ".csv":
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            table = csv.DictReader(file)
            try:
                rows = list(table)
            except csv.Error as error:   # mostly a quote that is never closed
                raise UserError(f"{path}, after line {table.line_num}: {error}") from None
        columns = {name: [row.get(name) for row in rows] for name in ("text", "start", "end")}
        return check_captions(columns, path.stem, path)
    entry = {"text": [], "start": [], "end": []}
    for start, end, text in cues(path):
        entry["start"].append(start)
        entry["end"].append(end)
        entry["text"].append(" ".join(html.unescape(MARKUP.sub("", text)).split()))
    return entry


def cues(path):
    """Yields (start, end, text) as a player shows them; of what none would show times are NaN."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        yield math.nan, math.nan, f"not UTF-8 at byte {error.start}"
        return
    blocks = [content]
    webvtt = content.startswith("WEBVTT")
    if webvtt:   # an empty line ends a cue there; YouTube's lines of one blank do not
        blocks = re.split("\n\n+", content.strip())
    for block in blocks:
        if webvtt and re.match(r"(NOTE|STYLE|REGION)(\s|$)", block):
            continue
        lines = block.split("\n")
        places = []   # of lines of times
        for place, line in enumerate(lines):
            # text may hold an arrow, too: bad times follow an empty line or a cue's number
            begins = place == 0 or re.fullmatch(r"\s*\d*\s*", lines[place - 1])
            if TIMES.fullmatch(line) or (begins and BAD_TIMES.match(line)):
                places.append(place)
        if webvtt and not places and block != blocks[0]:
            yield math.nan, math.nan, block
        numbered = any(line.strip().isdecimal() for line in lines[:places[0]]) if places else False
        for place, following in zip(places, [*places[1:], None]):
            text = "\n".join(lines[place + 1:following])
            if following and (numbered or re.search(r"\n\s*\n\s*\d+\s*$", text)):
                text = re.sub(r"(^|\n)\s*\d+\s*$", "", text)
            times = TIMES.fullmatch(lines[place])
            if times:
                yield clock_seconds(times[1]), clock_seconds(times[2]), text
            else:
                yield math.nan, math.nan, f"{lines[place]} {text}"


def clock_seconds(clock):
    """Seconds of [hours:]minutes:seconds."""
    seconds = 0.0
    for part in clock.replace(",", ".").split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def subtitle_files(folder, ids):
    """{id: path} of ID.srt, ID.vtt, ID.LANGUAGE.srt, ID.LANGUAGE.KIND.srt, one for each of the ids
    that has some: without a language before English, English before others; ID.csv comes last."""
    ranked = {}   # {id: [(rank, path)]}
    for path in folder.iterdir():
        video = path.stem
        while video not in ids and Path(video).suffix:
            video = Path(video).stem
        kind = path.suffix.lower()
        if video in ids and kind in (".srt", ".vtt", ".csv") and path.is_file():
            language = path.stem.removeprefix(video)
            rank = (kind == ".csv", language != "", not language.startswith(".en"), path.name)
            ranked.setdefault(video, []).append((rank, path))
    return {video: min(ranked[video])[1] for video in sorted(ranked)}


def read_captions(source, ids):
    """Iterates over (video, {"text": [], "start": [], "end": []}) of HowTo100M's JSON, or of the
    subtitles in a folder."""
    source = Path(source)
    if source.is_dir():
        files = subtitle_files(source, ids)
        entries = ((video, subtitles(path)) for video, path in files.items())
    elif source.is_file() and source.suffix == ".json":
        entries = json_captions(source)
    else:
        raise UserError(f"{source}: captions are a .json file, or a folder of .srt, .vtt, .csv")
    return tqdm(entries, desc="captions", unit=" videos", total=len(ids))


def overlap(previous, following, inside):
    """How many first tokens of `following` repeat the last ones of `previous`. Nothing is cut in
    front of a token `inside` a word: "bake" does not roll into "baking"."""
    for count in range(min(len(previous), len(following)), 0, -1):   # the longest first
        if previous[-count:] == following[:count]:
            if count == len(following) or following[count] not in inside:
                return count
    return 0


def unroll(entry, pieces, seconds, inside):
    """A video's usable captions [(token ids, start, end)] and the others [(number, reason)].

    pieces: token ids of each caption. The part that repeats the end of the caption before is
    removed. New text that is shown for a moment only, as converters of rolling captions leave it,
    takes the time of the caption before.
    """
    timed = []
    left_out = []
    for number, (start, end) in enumerate(zip(entry["start"], entry["end"])):
        if 0 <= start < min(end, seconds):   # not where one is NaN
            timed.append((start, end, pieces[number]))
        else:
            reason = f"{start} to {end} s is no part of the video's {seconds} s"
            if math.isnan(start + end):
                reason = "no times that can be read"
            left_out.append((number, f"{reason}: {entry['text'][number]!r}"))
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
    """Tokenises the captions of the videos in `seconds` ({id: length}) into out/captions/, where
    left_out.tsv lists what cannot be used (video, caption number, reason).

    Returns the sorted ids that have a usable caption, and {id: why it has none} of the others.
    """
    folder = Path(out) / "captions"
    lock(folder)
    kind = np.min_scalar_type(tokenizer.get_vocab_size() - 1)   # holds every id
    inside = {index for piece, index in tokenizer.get_vocab().items() if piece.startswith("##")}
    counts = {"read": 0, "kept": 0, "tokens": 0}
    spans = {}   # {video: (first, last + 1) of its captions}
    left_out = dict.fromkeys(seconds, "no captions")
    with (open(folder / "tokens.bin.tmp", "wb") as tokens,
          open(folder / "bounds.bin.tmp", "wb") as bounds,
          open(folder / "times.bin.tmp", "wb") as times,
          open(folder / "left_out.tsv.tmp", "w", encoding="utf-8") as listed):
        bounds.write(np.int64(0).tobytes())
        for video, entry in read_captions(source, seconds):
            if video not in seconds:
                continue
            encoded = tokenizer.encode_batch_fast(entry["text"], add_special_tokens=False)
            ids = [encoding.ids for encoding in encoded]
            used, unusable = unroll(entry, ids, seconds[video], inside)
            for number, reason in unusable:
                listed.write(f"{video}\t{number}\t{reason}\n")
            counts["read"] += len(ids)
            if not used:
                left_out[video] = f"none of its {len(ids)} captions can be used"
                continue
            left_out.pop(video, None)
            spans[video] = (counts["kept"], counts["kept"] + len(used))
            for ids, start, end in used:
                tokens.write(np.array(ids, kind).tobytes())
                times.write(np.array([start, end], np.float32).tobytes())
                counts["tokens"] += len(ids)
                bounds.write(np.int64(counts["tokens"]).tobytes())
            counts["kept"] += len(used)
    ordered = sorted(spans)
    np.array([spans[video] for video in ordered], np.int64).tofile(folder / "spans.bin.tmp")
    # index.json vouches for the arrays: it goes before them, comes after them
    (folder / "index.json").unlink(missing_ok=True)
    hashes = {}
    for name in CAPTION_ARRAYS:
        os.replace(folder / f"{name}.bin.tmp", folder / f"{name}.bin")
        hashes[name] = file_hash(folder / f"{name}.bin")
    os.replace(folder / "left_out.tsv.tmp", folder / "left_out.tsv")
    write_json(folder / "index.json",
               {"counts": counts, "dtype": kind.name, "ids": ordered, "sha256": hashes})
    print(f"{folder}: {counts['kept']:,} of {counts['read']:,} captions; the others say nothing "
          "new or are in left_out.tsv")
    return ordered, left_out


def hold_out(ids, count, folder):
    """The held-out videos as a set: those of folder/valid_ids.json, else the `count` (None: a
    fiftieth, at most the paper's 10,000) whose id has the smallest sha256, so that adding videos
    moves few others."""
    listed = Path(folder) / "valid_ids.json"
    if listed.exists():
        return set(read_json(listed, "python data.py mini")).intersection(ids)
    if count is None:
        count = min(10000, max(1, len(ids) // 50), len(ids) - 1)
    if not 0 <= count < len(ids):
        raise UserError(f"--held-out {count} of {len(ids)} videos leaves none to train on")
    ordered = sorted(ids, key=lambda video: hashlib.sha256(video.encode()).digest())
    return set(ordered[:count])


def listed_videos(path):
    """The ids of a CSV such as HowTo100M_v1.csv (column video_id)."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if "video_id" not in (table.fieldnames or []):
                raise UserError(f"{path}: no column video_id in its first line")
            return {row["video_id"] for row in table}
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV in UTF-8 ({error})") from None


def feature_seconds(out):
    """{id: seconds, of its longest stream} of the videos that every folder of out/features has."""
    made_by = f"python data.py video --out {out}"
    streams = list(out.glob("features/*/stream.json"))
    if not streams:
        raise UserError(f"no features in {out}/features; `{made_by}` makes them")
    lengths = {}   # {id: [seconds of each stream]}
    for described in streams:
        rate = read_stream(described.parent, made_by)["rate"]
        for path in described.parent.glob("[!.]*.npy"):
            lengths.setdefault(path.stem, []).append(len(mapped(path, made_by)) / rate)
    return {video: max(each) for video, each in lengths.items() if len(each) == len(streams)}


def captions_command(args):
    """`data.py captions`: writes OUT/captions/ of all videos that have features, tokenizer.json,
    left_out.tsv (video, reason) and, last, splits.json."""
    out = Path(args.out)
    tokenizer = load_tokenizer(args.vocab)
    missing = missing_shards(out)
    if missing:
        raise UserError(f"{out}: shards {', '.join(missing)} are not complete: run them first")
    left_out = dict.fromkeys(film_files(args.videos), "no features")
    for path in sorted(out.glob("features/left_out*.tsv")):
        lines = path.read_text(encoding="utf-8").splitlines()
        reasons = dict(line.split("\t", 1) for line in lines)
        left_out |= {video: reasons[video] for video in reasons.keys() & left_out}
    seconds = feature_seconds(out)
    (out / "splits.json").unlink(missing_ok=True)   # where it is, all is
    usable, uncaptioned = pack_captions(args.captions or args.videos, seconds, tokenizer, out)
    left_out |= uncaptioned
    rows = [f"{video}\t{left_out[video]}\n" for video in sorted(set(left_out).difference(usable))]
    write_text(out / "left_out.tsv", "".join(rows))
    if not usable:
        raise UserError(f"not one usable video in {args.videos}; the reasons are in "
                        f"{out}/left_out.tsv and {out}/captions/left_out.tsv")
    keep_tokenizer(tokenizer, out)
    valid = hold_out(usable, args.held_out, out)
    train = sorted(set(usable) - valid)
    splits = {"train": train, "valid": sorted(valid), "videos": str(args.videos)}
    write_json(out / "splits.json", splits)
    print(f"{len(train):,} videos to train on, {len(valid):,} held out; {len(rows):,} left out, "
          f"listed in {out}/left_out.tsv")


# --------------------------------------------------------------------------------------------------
# Data sets


class TextBlocks:
    """Packed text cut into blocks of block - 2 consecutive tokens, each between [CLS] and [SEP]."""

    def __init__(self, folder, name, tokenizer, block):
        made_by = f"python data.py text --out {folder}"
        path = Path(folder) / f"{name}.bin"
        packed = read_json(path.with_suffix(".json"), made_by, "dtype", "tokens")
        tokens = mapped(path, made_by, packed["dtype"], packed["tokens"])
        self.ids = special_ids(tokenizer)
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
        tokens[:, 0] = self.ids["cls"]
        tokens[:, 1:-1] = self.blocks[indices]
        tokens[:, -1] = self.ids["sep"]
        return torch.from_numpy(tokens)


CACHE = 2 ** 28   # bytes of features that a data set keeps in memory, in each process


class Clips:
    """Captions with the features of the stretch of video they were spoken over.

    An example starts at a random caption of its video (the authors': at the first); following
    captions join it until the block is full; the clip ends with the last of them.
    """

    def __init__(self, folder, split, streams, tokenizer, block, max_steps, frames=None,
                 limit=None):
        """limit: only so many videos, the first."""
        self.folder = Path(folder)
        self.streams = streams
        self.block = block
        self.max_steps = max_steps
        self.frames = frames
        self.special = special_ids(tokenizer)
        self.cache = {}   # {(stream, video): [T, D]}
        self.cached = 0   # bytes

        made_by = f"python data.py captions --out {folder}"
        self.ids = read_json(self.folder / "splits.json", made_by, split)[split][:limit]
        if not self.ids:
            raise UserError(f"{folder}: the {split} split holds no video")
        index = read_json(self.folder / "captions" / "index.json", made_by,
                          "sha256", "counts", "dtype", "ids")
        self.sha256 = index["sha256"]   # of the captions, for a run's list of its inputs

        def array(name, kind, shape):   # mapped, so that all processes share it
            path = self.folder / "captions" / f"{name}.bin"
            return np.asarray(mapped(path, made_by, kind, shape))   # sliced faster than a memmap

        counts = index["counts"]
        self.tokens = array("tokens", index["dtype"], counts["tokens"])
        self.bounds = array("bounds", np.int64, counts["kept"] + 1)
        self.times = array("times", np.float32, (counts["kept"], 2))   # [captions, 2], seconds
        spans = array("spans", np.int64, (len(index["ids"]), 2))
        row_of = {video: row for row, video in enumerate(index["ids"])}
        strangers = sorted(set(self.ids) - row_of.keys())
        if strangers:
            raise UserError(f"{folder}/splits.json names {strangers[0]}, captions/ does not; "
                            f"`{made_by}` makes both")
        rows = [row_of[video] for video in self.ids]
        self.spans = spans[rows]   # [videos, 2]: first caption, last + 1

        self.made_by = f"python data.py video --out {folder}"   # the features
        self.rates = {}   # steps a second of each stream
        self.stream_dims = {}
        self.frames_seen = {}
        for name in streams:
            described = read_stream(self.folder / "features" / name, self.made_by)
            self.rates[name] = described["rate"]
            self.stream_dims[name] = described["width"]
            self.frames_seen[name] = described["frames_seen"]

    def __len__(self):
        return len(self.ids)

    def _load(self, name, video):
        """One stream of one video, [T, D]: kept in memory while CACHE bytes last, else mapped."""
        if (name, video) in self.cache:
            return self.cache[name, video]
        path = self.folder / "features" / name / f"{video}.npy"
        array = mapped(path, f"{self.made_by} --streams {name}")
        width = self.stream_dims[name]
        if array.shape[1:] != (width,) or len(array) == 0:
            raise UserError(f"{path}: expected [T > 0, {width}], found {list(array.shape)}")
        if self.cached + array.nbytes <= CACHE:
            array = self.cache[name, video] = np.array(array)
            self.cached += array.nbytes
        return array

    def clip(self, video, start, end):
        """Features [T, D] float16 of seconds start..end, all streams side by side.

        T steps of the first stream, those whose interval meets [start, end); more than max_steps or
        `frames` are thinned evenly. Other streams are resampled to these steps.
        """
        columns = []
        for name in self.streams:
            array = self._load(name, video)
            rate = self.rates[name]
            if not columns:
                low = min(int(np.floor(start * rate + 1e-4)), len(array) - 1)
                high = max(low + 1, min(int(np.ceil(end * rate - 1e-4)), len(array)))
                T = min(high - low, self.max_steps, self.frames or self.max_steps)
                # centres of T equal parts, so that one step is the middle one
                picked = low + ((np.arange(T) + 0.5) * (high - low) / T).astype(int)
                middles = (picked + 0.5) / rate   # [T], seconds
            else:   # the step that is on at those moments
                picked = np.minimum((middles * rate + 1e-4).astype(int), len(array) - 1)
            with np.errstate(over="ignore"):   # what float16 cannot hold is refused
                columns.append(array[picked].astype(np.float16))   # [T, D of the stream]
            if not np.isfinite(columns[-1]).all():
                raise UserError(f"{self.folder}/features/{name}/{video}.npy holds a NaN or an "
                                f"infinity; delete it, and `{self.made_by}` makes it again")
        return np.concatenate(columns, 1)

    def stretch(self, index, caption):
        """(token ids [n], start, end in seconds) of the captions that fill a block from one on."""
        first = self.bounds[caption]
        last = self.spans[index, 1]
        used = np.searchsorted(self.bounds[caption:last + 1], first + self.block - 2)
        after = min(caption + used, last)   # one past the last caption used
        tokens = self.tokens[first:self.bounds[after]][:self.block - 2].astype(np.int64)
        return tokens, float(self.times[caption, 0]), float(self.times[caption:after, 1].max())

    def example(self, index, generator=None):
        """(token ids [n], features [T, D]) from a caption by lot, without a generator the first."""
        caption, last = self.spans[index].tolist()
        if generator is not None:
            caption = int(generator.integers(caption, last))
        tokens, start, end = self.stretch(index, caption)
        tokens = np.concatenate([[self.special["cls"]], tokens, [self.special["sep"]]])
        return tokens, self.clip(self.ids[index], start, end)

    def collate(self, examples):
        """Pads examples: tokens [B, block], mask; features [B, T, D], mask. True = real."""
        clips = [torch.from_numpy(clip) for _, clip in examples]
        features = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)   # [B, T, D]
        step_mask = torch.zeros(features.shape[:2], dtype=torch.bool)
        tokens = torch.full((len(examples), self.block), self.special["pad"])
        token_mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, (ids, clip) in enumerate(examples):
            tokens[row, :len(ids)] = torch.from_numpy(ids)
            token_mask[row, :len(ids)] = True
            step_mask[row, :len(clip)] = True
        return tokens, token_mask, features, step_mask


def bank_row(clips, index, caption, tokenizer):
    """{"video", "start", "end" (seconds), "text"} of the clip that starts at a caption.

    The text becomes the example's tokens again: clean-up would make "do not" to "don't".
    """
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
    """`data.py bank`: writes `count` rows of bank_row, drawn as the teacher's examples are."""
    if block < 3:
        raise UserError(f"--block {block} leaves no room for a word between [CLS] and [SEP]")
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


def read_bank(path):
    """The rows of a clip bank, as make_bank writes them. Raises UserError on another file."""
    rows = read_json(path, "python data.py bank")
    row = rows[0] if rows and isinstance(rows, list) else None
    if not isinstance(row, dict) or not {"video", "text"} <= row.keys():
        raise UserError(f"{path} is no clip bank; `python data.py bank` makes one")
    return rows


def bank_batch(rows, clips, tokenizer):
    """Rows of a clip bank as a batch: what Clips.collate returns."""
    encoded = tokenizer.encode_batch([row["text"] for row in rows], add_special_tokens=False)
    special = clips.special
    examples = []
    for row, encoding in zip(rows, encoded):
        tokens = np.array([special["cls"], *encoding.ids[:clips.block - 2], special["sep"]])
        examples.append((tokens, clips.clip(row["video"], row["start"], row["end"])))
    return clips.collate(examples)


# --------------------------------------------------------------------------------------------------
# Masking


def special_mask(tokens, ids):
    """bool, True at [PAD], [CLS] and [SEP]: never masked, never contrasted, never an anchor."""
    return (tokens == ids["pad"]) | (tokens == ids["cls"]) | (tokens == ids["sep"])


MASKED = 0.15   # share of the tokens that are to be predicted


def mask_tokens(tokens, special_mask, generator, mask_id, vocab_size, rows=slice(None), batch=None):
    """BERT's masking: 15 % of the tokens; 80 % of these become [MASK], 10 % a random id.

    tokens: int [b, L]; special_mask: bool [b, L], True = leave alone. The random numbers are drawn
    for `batch` sequences of which these are `rows` (a slice; default: these are all). Returns
    (inputs [b, L], labels [b, L]); labels are -100 where nothing is to be predicted.
    """
    b, L = tokens.shape
    batch = batch or b
    choose, how = torch.rand(2, batch, L, generator=generator)[:, rows]   # each [b, L]
    random_ids = torch.randint(vocab_size, (batch, L), generator=generator)[rows]
    chosen = (choose < MASKED) & ~special_mask   # True = predict it
    labels = tokens.masked_fill(~chosen, -100)
    inputs = tokens.masked_fill(chosen & (how < 0.8), mask_id)
    inputs = torch.where(chosen & (how >= 0.9), random_ids, inputs)
    return inputs, labels


def predicted(labels):
    """Labels [b, L] -> (positions int [n] in the flattened batch, their labels int [n]).

    n follows from b L alone, so that shapes never change: the tokens that mask_tokens chooses on
    average and six standard deviations more. What fills the list up has position 0, label -100.
    """
    labels = labels.flatten()
    positions = (labels != -100).nonzero()[:, 0]
    expected = MASKED * len(labels)
    n = math.ceil(expected + 6 * math.sqrt((1 - MASKED) * expected))
    padding = max(0, min(n, len(labels)) - len(positions))
    return F.pad(positions, (0, padding)), F.pad(labels[positions], (0, padding), value=-100)

# ==================================================================================================
# The mini world: a generated world in which only video tells what a noun does
#
# A test of transfer, not of common sense: every noun gets its properties by lot. Captions and text
# name nouns, never their properties; clips show them. tests/test_mini.py checks that nothing leaks.

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
# those the tasks train on, settings are chosen on, are judged by; and the control
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
DYNAMIC = {name: action for name, (action, _) in PROPERTIES.items() if action}
STATIC = [name for name in PROPERTIES if name not in DYNAMIC]
ACTIONS = list(DYNAMIC.values())   # a video has a clip of each
COLOURS = {
    "red": (210, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 215), "yellow": (225, 200, 40),
}
CLIP_FRAMES = 16
CLIP_SECONDS = CLIP_FRAMES / FPS
VIDEOS_A_NOUN = 8   # for training; one more is held out

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


def two_of(values, generator):
    return generator.choice(values, 2, replace=False).tolist()


def fill(template, generator, **given):
    """Fills a template; what is not given is drawn."""
    p, q = two_of(PEOPLE, generator)
    drawn = {"p": p, "q": q, "w": generator.choice(PLACES)}
    drawn["m"] = generator.choice(list(MOODS))
    drawn["a"] = generator.choice(ACTIONS)
    return template.format(**drawn | given)


# --- pictures


def draw_path(properties, action, generator):
    """Frame by frame: x, y in pixels, phase of growth 0..1, angle; each [F, 1, 1].

    The two behaviours of an action visit the same frames in opposite order or at another pace, from
    a random phase of a cycle: the picture wraps round, sizes run through a saw-tooth.
    """
    name = list(DYNAMIC)[ACTIONS.index(action)]
    sign = 1 if properties[name] == PROPERTIES[name][1][0] else -1
    frames = np.arange(CLIP_FRAMES)
    x, y = generator.uniform(0, SIDE, 2)
    phase = np.full(CLIP_FRAMES, generator.uniform())
    angle = np.full(CLIP_FRAMES, generator.uniform(0, 2 * np.pi))
    if action == "drop":   # image rows count downwards
        y = y - sign * 1.6 * frames
    elif action == "heat":
        phase = (phase + sign * frames / CLIP_FRAMES) % 1
    elif action == "push":   # 0.3 to 3 pixels a frame or the reverse, to either side
        speed = np.linspace(0.3, 3.0, CLIP_FRAMES)[::sign]
        x = x + generator.choice([-1, 1]) * np.cumsum(speed)
    else:   # a falling angle turns left, as rows count downwards
        angle = angle - sign * 0.2 * frames
    x = x + generator.normal(0, 0.15, CLIP_FRAMES)
    y = y + generator.normal(0, 0.15, CLIP_FRAMES)
    return [values.astype(np.float32)[:, None, None] for values in (x, y, phase, angle)]


def offsets(x, y):
    """How far each column and row is from (x, y) [F, 1, 1], where the picture wraps round.

    Returns dx [F, 1, S], dy [F, S, 1].
    """
    places = np.arange(SIDE, dtype=np.float32)
    dx = (places[None, None] - x + SIDE / 2) % SIDE - SIDE / 2
    dy = (places[None, :, None] - y + SIDE / 2) % SIDE - SIDE / 2
    return dx, dy


def draw_clip(properties, action, generator):
    """One clip, uint8 [F, S, S, 3]; specks, noise and jitter are there to be ignored."""
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

    grey = generator.uniform(150, 235)
    picture = np.full((CLIP_FRAMES, SIDE, SIDE, 1), grey, np.float32)
    for _ in range(generator.integers(0, 3)):
        place = generator.uniform(0, SIDE, 2)
        drift = generator.normal(0, 0.5, 2)
        path = place[:, None] + drift[:, None] * np.arange(CLIP_FRAMES)     # [2, F]
        speck_dx, speck_dy = offsets(*path.astype(np.float32)[:, :, None, None])
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
        stream = container.add_stream(
            "libx264", FPS, {"preset": "ultrafast", "crf": "21"}, width=SIDE, height=SIDE,
            pix_fmt="yuv420p", thread_count=1)   # one thread: the same bytes on every machine
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    os.replace(temporary, path)


def make_video(seed, video, noun, properties, folder):
    """Films one noun: every action once, in random order. Returns what is shown and spoken.

    Two in five captions repeat the last words of the one before, as rolling captions do.
    """
    generator = numpy_generator(seed, "video", video)
    actions = generator.permutation(ACTIONS).tolist()
    clips = [draw_clip(properties, action, generator) for action in actions]
    path = Path(folder) / f"{video}.mp4"
    if not path.exists():
        write_video(path, np.concatenate(clips))
    film = {"noun": noun, "actions": actions, "words": [], "repeated": [], "start": [], "end": []}
    for index, action in enumerate(actions):
        film["words"].append(generator.choice(SPOKEN).format(a=action, n=noun).split())
        repeated = 0
        if index > 0 and generator.uniform() < 0.4:
            repeated = int(generator.integers(2, 5))
        film["repeated"].append(repeated)
        start = index * CLIP_SECONDS + generator.uniform(-0.2, 0.2)
        end = (index + 1) * CLIP_SECONDS + generator.uniform(-0.2, 0.2)
        film["start"].append(round(max(0.0, start), 2))
        film["end"].append(round(min(len(actions) * CLIP_SECONDS, end), 2))
    return film


def join_captions(films, training, generator):
    """Captions in HowTo100M's form {video: {"text": [], "start": [], "end": []}}.

    One caption in twelve is spoken over another video's clip: words change places among the
    `training` videos, so that counts of nouns and actions stay exactly equal.
    """
    slots = []
    for video in training:
        slots += [(video, index) for index in range(len(films[video]["words"]))]
    slots = [slot for slot in slots if generator.uniform() < 1 / 12]
    moved = [films[video]["words"][index] for video, index in slots]
    for (video, index), words in zip(slots, moved[1:] + moved[:1]):
        films[video]["words"][index] = words
    captions = {}
    for video, film in films.items():
        texts = []
        before = []
        for words, repeated in zip(film["words"], film["repeated"]):
            texts.append(" ".join(before[len(before) - repeated:] + words))
            before = words
        captions[video] = {"text": texts, "start": film["start"], "end": film["end"]}
    return captions


def retrieval_pool(world, films, generator):
    """A clip of each of these films: its text, where it is, what it shows."""
    rows = []
    for video, name in zip(films, balanced(list(DYNAMIC), len(films), generator)):
        noun = films[video]["noun"]
        properties = world[noun]
        shown = {key: properties[key] for key in STATIC}
        shown["behaviour"] = properties[name]
        start = CLIP_SECONDS * films[video]["actions"].index(DYNAMIC[name])
        rows.append({
            "video": video, "start": start, "end": start + CLIP_SECONDS,
            "text": SPOKEN[0].format(a=DYNAMIC[name], n=noun), "noun": noun,
            "group": properties["group"], "shown": shown,
        })
    return rows


# --- text


def noun_article(noun, generator):
    """Five sentences about one noun; no word of a property."""
    article = []
    for _ in range(5):
        if generator.uniform() < 0.6:
            template = generator.choice(SPOKEN) + " ."
        else:
            template = generator.choice(WRITTEN)
        article.append(fill(template, generator, n=noun))
    return article


def property_article(values_left, generator):
    """Three sentences about one property, two plain; no noun of the world."""
    name = generator.choice(list(PROPERTIES))
    templates = DYNAMIC_SENTENCES if name in DYNAMIC else STATIC_SENTENCES
    article = []
    for _ in range(3):
        value = next(values_left[name])
        given = {"v": value, "k": name, "g": MEANINGS[value], "a": DYNAMIC.get(name)}
        article.append(fill(generator.choice(templates), generator, **given))
    for _ in range(2):
        article.append(fill(generator.choice(PLAIN_SENTENCES), generator))
    return article


def make_text(world, seed, documents):
    """Lines of text, a short article each: three in four about one noun, all nouns equally often.

    The rest holds the property words, every value as often as its rivals.
    """
    generator = numpy_generator(seed, "text", documents)
    nouns = balanced(list(world), documents * 3 // 4, generator)
    nouns += [None] * (documents - len(nouns))
    values_left = {}
    for name, (_, values) in PROPERTIES.items():
        values_left[name] = iter(balanced(values, 3 * documents, generator))
    lines = []
    for index in generator.permutation(documents):
        if nouns[index]:
            article = noun_article(nouns[index], generator)
        else:
            article = property_article(values_left, generator)
        order = generator.permutation(len(article))
        lines.append(" ".join(article[place] for place in order))
    return lines


# --- tasks

# A task's function yields (label, noun, property, text of each column). Grounded rows, about a
# noun, ask what only video tells; ungrounded ones word order, negation or copying.

# split: (its groups of nouns, how many ungrounded rows)
SPLITS = {
    "train": (["train"], 300),
    "dev": (["validation"], 120),
    "test": (["test", "unfilmed"], 360),
}


def having(world, nouns, name, value):
    return [noun for noun in nouns if world[noun][name] == value]


def facts(world, nouns, names, generator):
    """(noun, property, value, is it true): each noun and property once true, once false.

    Every value is as often true as false in a group: colours move by one common shift.
    """
    shift = int(generator.integers(1, 4))
    for noun, name in product(nouns, names):
        values = PROPERTIES[name][1]
        step = shift if len(values) > 2 else 1
        right = world[noun][name]
        yield noun, name, right, True
        yield noun, name, values[(values.index(right) + step) % len(values)], False


def pairs(world, nouns, generator):
    """(noun, with a property's first value, rival, with the second, property); each noun in one."""
    rows = []
    for name in DYNAMIC:
        first, second = PROPERTIES[name][1]
        rivals = generator.permutation(having(world, nouns, name, second)).tolist()
        members = generator.permutation(having(world, nouns, name, first)).tolist()
        rows += [(noun, rival, name) for noun, rival in zip(members, rivals)]
    return rows


def choices(world, nouns, generator):
    """(one, two, right, property): each noun is right as often as not, first as often as second."""
    drawn = pairs(world, nouns, generator)
    swaps = {}
    for key in product(DYNAMIC, (0, 1)):
        swaps[key] = iter(balanced([False, True], len(drawn) // len(DYNAMIC), generator))
    rows = []
    for noun, rival, name in drawn:
        for side, (right, wrong) in enumerate(((noun, rival), (rival, noun))):
            swap = next(swaps[name, side])
            one, two = (wrong, right) if swap else (right, wrong)
            rows.append((one, two, right, name))
    return rows


def two_places(generator):
    """(p, q, where p is, where q is, the sentence that says so)"""
    p, q = two_of(PEOPLE, generator)
    place, other = two_of(PLACES, generator)
    return p, q, place, other, f"{p} is in the {place} and {q} is in the {other} ."


def behaviour_question(noun, name):
    return f"what does the {noun} do when you {DYNAMIC[name]} it ?"


def sst2(world, nouns, plain, generator):
    """One sentence, 1 = true. Ungrounded: is the mood a good one (negation)."""
    for noun, name, value, truth in facts(world, nouns, DYNAMIC, generator):
        yield int(truth), noun, name, f"when you {DYNAMIC[name]} the {noun} it {value} ."
    for index in range(plain):
        good, bad = list(MOODS.items())[index // 4 % 4]
        mood = [good, f"not {bad}", f"not {good}", bad][index % 4]
        sentence = f"{generator.choice(PEOPLE)} in the {generator.choice(PLACES)} is {mood} ."
        yield int(index % 4 < 2), None, "negation", sentence


def qnli(world, nouns, plain, generator):
    """Does the sentence answer the question with yes? Ungrounded: negation."""
    labels = ["not_entailment", "entailment"]
    for noun, name, value, truth in facts(world, nouns, DYNAMIC, generator):
        yield labels[truth], noun, name, behaviour_question(noun, name), f"it {value} ."
    for index in range(plain):
        person = generator.choice(PEOPLE)
        mood = generator.choice(list(MOODS))
        answer = [f"{person} is {mood} .", f"{person} is not {mood} ."][index % 2]
        yield labels[1 - index % 2], None, "negation", f"is {person} {mood} ?", answer


def qqp(world, nouns, plain, generator):
    """Have two questions the same answer? Ungrounded: active and passive."""
    for name, order in product(DYNAMIC, (1, -1)):
        value, other = PROPERTIES[name][1][::order]
        members = having(world, nouns, name, value)
        alike = np.roll(members, int(generator.integers(1, len(members)))).tolist()
        unlike = generator.permutation(having(world, nouns, name, other)).tolist()
        for noun, same, different in zip(members, alike, unlike):
            question = behaviour_question(noun, name)
            yield 1, noun, name, question, behaviour_question(same, name)
            yield 0, noun, name, question, behaviour_question(different, name)
    for index in range(plain):
        p, q = two_of(PEOPLE, generator)
        passive = [f"is {q} seen by {p} ?", f"is {p} seen by {q} ?"][index % 2]
        yield 1 - index % 2, None, "order", f"does {p} see {q} ?", passive


NLI_LABELS = ["entailment", "contradiction", "neutral"]


def mnli(world, nouns, plain, generator):
    """Does it follow from the premise? Ungrounded: where people are (copying).

    A neutral hypothesis shows by itself that it is neutral, so no grounded row is.
    """
    for noun, name, value, truth in facts(world, nouns, STATIC, generator):
        premise = f"{generator.choice(PEOPLE)} knows the {noun} ."
        yield NLI_LABELS[1 - truth], noun, name, premise, f"it is {value} ."
    for index in range(plain):
        p, q, place, other, premise = two_places(generator)
        mood = generator.choice(list(MOODS))
        hypotheses = [f"{p} is in the {place} .", f"{p} is in the {other} .", f"{p} is {mood} ."]
        yield NLI_LABELS[index % 3], None, "copying", premise, hypotheses[index % 3]


# GLUE-diagnostics' columns, and the fine category that stands in each
CATEGORIES = {
    "Lexical Semantics": "Lexical entailment", "Predicate-Argument Structure": "Active/Passive",
    "Logic": "Negation", "Knowledge": "World knowledge",
}


def diagnostic(category, label, noun, name, premise, hypothesis):
    cells = dict.fromkeys(CATEGORIES, "")
    cells[category] = CATEGORIES[category]
    return label, noun, name, *cells.values(), premise, hypothesis


def diagnostics(world, nouns, plain, generator):
    """MNLI's rows, the grounded ones as Knowledge, and rows of negation and word order."""
    for label, noun, *rest in mnli(world, nouns, plain, generator):
        category = "Knowledge" if noun else "Lexical Semantics"
        yield diagnostic(category, label, noun, *rest)
    for index in range(plain):
        p, q = two_of(PEOPLE, generator)
        mood = generator.choice(list(MOODS))
        label = NLI_LABELS[index % 3]
        premise = f"{p} is not {mood} but {q} is {mood} ."
        hypotheses = [f"{p} is not {mood} .", f"{p} is {mood} .", f"{p} is in the hall ."]
        yield diagnostic("Logic", label, None, "negation", premise, hypotheses[index % 3])
        premise = f"{p} sees {q} and {q} does not see {p} ."
        hypotheses = [f"{q} is seen by {p} .", f"{p} is seen by {q} .", f"{p} is {mood} ."]
        category = "Predicate-Argument Structure"
        yield diagnostic(category, label, None, "order", premise, hypotheses[index % 3])


def piqa(world, nouns, plain, generator):
    """Which of two things does it? Ungrounded: where to go (copying)."""
    for one, two, right, name in choices(world, nouns, generator):
        goal = f"{generator.choice(PEOPLE)} wants something that {world[right][name]} ."
        action = DYNAMIC[name]
        yield int(right == two), right, name, goal, f"{action} the {one} .", f"{action} the {two} ."
    for index in range(plain):
        p, _, place, other, sentence = two_places(generator)
        one, two = [(place, other), (other, place)][index % 2]
        solutions = [f"go to the {one} .", f"go to the {two} ."]
        yield index % 2, None, "copying", f"{sentence} find {p} .", *solutions


def swag(world, nouns, plain, generator):
    """Which of four endings follows? Two actions, two behaviours each. Ungrounded: who has it."""
    two_properties = list(combinations(DYNAMIC, 2))
    labels = balanced([0, 1, 2, 3], len(two_properties) * len(nouns), generator)
    labels = iter(labels + balanced([0, 1, 2, 3], plain, generator))

    def row(context, start, right, wrong, noun, name):
        label = next(labels)
        endings = generator.permutation(wrong).tolist()
        endings.insert(label, right)
        return label, noun, name, context, start, *endings

    for noun, (one, two) in product(nouns, two_properties):
        context = f"you {DYNAMIC[one]} the {noun} and then you {DYNAMIC[two]} it ."
        endings = []
        for first, second in product(PROPERTIES[one][1], PROPERTIES[two][1]):
            endings.append(f"{first} and then it {second} .")
        right = f"{world[noun][one]} and then it {world[noun][two]} ."
        endings.remove(right)
        yield row(context, "it", right, endings, noun, f"{one}+{two}")
    for _ in range(plain):
        p, q = two_of(PEOPLE, generator)
        wrong = [f"{p} has it .", f"{p} sees {q} .", f"{q} gives it to {p} ."]
        yield row(f"{p} gives it to {q} .", "so now", f"{q} has it .", wrong, None, "order")


def squad2(world, nouns, plain, generator):
    """Which of two things does it? Where two are alike, neither. Ungrounded: who is where."""
    drawn = choices(world, nouns, generator)
    for one, two, right, name in drawn:
        context = f"you {DYNAMIC[name]} the {one} and the {two} ."
        yield right, right, name, context, f"which of them {world[right][name]} ?"
    for name, order in product(DYNAMIC, (1, -1)):
        value, asked = PROPERTIES[name][1][::order]
        asked_of = [right for _, _, right, kind in drawn if kind == name]
        alike = having(world, asked_of, name, value)
        for noun, twin in zip(alike, alike[1:] + alike[:1]):
            context = f"you {DYNAMIC[name]} the {noun} and the {twin} ."
            yield "", noun, name, context, f"which of them {asked} ?"
    for _ in range(plain):
        p, q, place, other, context = two_places(generator)
        answer, where = [(p, place), (q, other)][generator.integers(2)]
        yield answer, None, "copying", context, f"who is in the {where} ?"


def squad1(world, nouns, plain, generator):
    """SQuAD2's rows but for those without an answer."""
    return [row for row in squad2(world, nouns, plain, generator) if row[0]]


# what the first value of each property leads to
LEADS_TO = {
    "lift": "reaches the top", "growth": "fills the hall", "pace": "gets there",
    "spin": "faces the west",
}
RELATIONS = ["starts before", "starts after", "ends before", "ends after"]


def tracie(world, nouns, plain, generator):
    """Implicit order of events: what rises is at the top before what sinks. Ungrounded: as told."""
    labels = ["negative", "positive"]
    for noun, rival, name in pairs(world, nouns, generator):
        action = DYNAMIC[name]
        for one, two in ((noun, rival), (rival, noun)):
            story = f"sam and kim meet . they {action} the {one} . they {action} the {two} . " \
                    f"they wait . they go ."
            for relation in RELATIONS:
                query = f"the {one} {LEADS_TO[name]} {relation} the {two}"
                holds = (one == noun) == relation.endswith("before")
                yield labels[holds], one, name, query, story
    for index in range(plain):
        p, q = two_of(PEOPLE, generator)
        relation = RELATIONS[index % 4]
        story = f"{p} and {q} meet . {p} eats . then {q} sleeps . they wait . they go ."
        label = labels[relation.endswith("before")]
        yield label, None, "order", f"{p} eats {relation} {q} sleeps", story


class Row(NamedTuple):
    fields: dict         # {column: text}
    label: str | int     # of SQuAD the answer, "" where there is none
    noun: str | None
    property: str


def write_table(path, rows, label_column):
    """TSV or CSV, as the name says."""
    columns = [*rows[0].fields]
    if label_column:
        columns.append(label_column)
    delimiter = "," if path.suffix == ".csv" else "\t"
    with open(path, "w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", delimiter=delimiter,
                                lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({**row.fields, label_column: row.label})


def write_json_lines(path, rows):
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_piqa(path, rows, label_column):
    write_json_lines(path, [row.fields for row in rows])
    if label_column:
        write_json_lines(path.with_name(f"{path.stem}-labels.lst"), [row.label for row in rows])


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


# task: (its rows, their columns, their writer, the label's column, files of train, dev and test)
TSV = "train.tsv dev.tsv test.tsv"
TASKS = {
    "SST-2": (sst2, ["sentence"], write_table, "label", TSV),
    "QNLI": (qnli, ["question", "sentence"], write_table, "label", TSV),
    "QQP": (qqp, ["question1", "question2"], write_table, "is_duplicate", TSV),
    "MNLI": (mnli, ["sentence1", "sentence2"], write_table, "gold_label",
             "train.tsv dev_matched.tsv test_matched.tsv"),
    "diagnostics": (diagnostics, [*CATEGORIES, "Premise", "Hypothesis"], write_table, "Label",
                    "- - diagnostic-full.tsv"),
    "SWAG": (swag, "sent1 sent2 ending0 ending1 ending2 ending3".split(), write_table, "label",
             "train.csv val.csv test.csv"),
    "PIQA": (piqa, ["goal", "sol1", "sol2"], write_piqa, "labels",
             "train.jsonl valid.jsonl tests.jsonl"),
    "TRACIE": (tracie, ["query", "story"], write_tracie, "",
               "tracie_train.txt tracie_dev.txt tracie_test.txt"),
    "SQuAD1": (squad1, ["context", "question"], write_squad, "",
               "train-v1.1.json dev-v1.1.json test-v1.1.json"),
    "SQuAD2": (squad2, ["context", "question"], write_squad, "",
               "train-v2.0.json dev-v2.0.json test-v2.0.json"),
}


def task_rows(world, seed, task, split):
    """The rows of one split of a task; in test those of unfilmed nouns come last."""
    groups, plain = SPLITS[split]
    make_rows, columns, *_ = TASKS[task]
    rows = []
    for group in groups:
        generator = numpy_generator(seed, "task", task, split, group)
        nouns = having(world, world, "group", group)
        for label, noun, name, *texts in make_rows(world, nouns, plain, generator):
            rows.append(Row(dict(zip(columns, texts)), label, noun, name))
        plain = 0
    if split == "train":
        order = numpy_generator(seed, "task order", task).permutation(len(rows))
        rows = [rows[index] for index in order]
    return rows


def make_tasks(world, seed, out):
    """Writes every task in its published format under out/TASK. Returns the training rows' texts.

    Test files have no labels, as the published ones. SPLIT.meta.jsonl has them, and by what rows
    are scored apart: part, noun, its group, property.
    """
    texts = []
    for task, (_, _, write, label_column, files) in TASKS.items():
        folder = Path(out) / task
        folder.mkdir(parents=True, exist_ok=True)
        for split, file in zip(SPLITS, files.split()):
            if file == "-":
                continue
            rows = task_rows(world, seed, task, split)
            labelled = split != "test" or task == "diagnostics"
            write(folder / file, rows, label_column if labelled else "")
            meta = []
            for row in rows:
                meta.append({
                    "label": row.label,
                    "part": "grounded" if row.noun else "ungrounded",
                    "noun": row.noun,
                    "group": world[row.noun]["group"] if row.noun else None,
                    "property": row.property,
                })
            write_json_lines(folder / f"{split}.meta.jsonl", meta)
            if split == "train":
                texts += [" ".join(row.fields.values()) for row in rows]
    return texts


# --- the whole world


def film_world(world, seed, videos_a_noun, folder, workers):
    """Writes the videos. Returns {video: film}, each noun's held-out one last."""
    nouns = {}
    for take, (index, noun) in product(range(videos_a_noun + 1), enumerate(filmed_nouns(world))):
        nouns[f"v{take:02d}_{index:03d}"] = noun
    properties = [world[noun] for noun in nouns.values()]
    make = partial(make_video, seed, folder=folder)
    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        films = pool.map(make, nouns, nouns.values(), properties, chunksize=16)
        return dict(zip(nouns, tqdm(films, total=len(nouns), unit="video", desc="videos")))


def begin_world(out, made_from):
    """Is there something to do? Raises UserError for a folder that is not this world's.

    world.json.part says whose the folder is, world.json that it is whole.
    """
    whole = out / "world.json"
    part = out / "world.json.part"
    if not whole.exists() and not part.exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty, and no mini world: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(part, {"made_from": made_from})
    there = read_json(whole if whole.exists() else part, "data.py mini").get("made_from", {})
    for key in made_from:
        if there.get(key) != made_from[key]:
            raise UserError(f"{out} holds a world with another {key}: delete it or choose another "
                            "--out")
    return not whole.exists()


def make_mini(seed, out, videos_a_noun=VIDEOS_A_NOUN, documents=10000, workers=1):
    """`data.py mini`: writes one world into a folder (videos, captions, text, tokenizer, tasks).

    A run that was killed goes on with the videos that are there. Nothing is ever deleted.
    """
    out = Path(out)
    section = Path(__file__).read_text(encoding="utf-8").split("\n# " + "=" * 98 + "\n")[1]
    made_from = {"seed": seed, "videos_a_noun": videos_a_noun, "documents": documents,
                 "generator": hashlib.sha256(section.encode()).hexdigest()}
    if not begin_world(out, made_from):
        print(f"{out / 'world.json'}: up to date")
        return
    lock(out)
    for name in ("videos", "text"):
        (out / name).mkdir(exist_ok=True)
    world = make_world(seed)

    films = film_world(world, seed, videos_a_noun, out / "videos", workers)
    training = list(films)[:-len(filmed_nouns(world))]
    held_out = {video: films[video] for video in films if video not in training}
    generator = numpy_generator(seed, "pool")
    write_json(out / "retrieval.json", retrieval_pool(world, held_out, generator))
    write_json(out / "valid_ids.json", list(held_out))
    captions = join_captions(films, training, generator)
    write_json(out / "caption.json", captions)

    for split, count in (("train", documents), ("valid", max(50, documents // 30))):
        lines = make_text(world, seed, count)
        write_text(out / "text" / f"{split}.txt", "\n".join(lines) + "\n")
    texts = make_tasks(world, seed, out / "tasks")

    # every word of text, captions and training rows becomes a token
    for entry in captions.values():
        texts += entry["text"]
    words = out / "words.tmp"
    write_text(words, "\n".join(texts) + "\n")
    train_tokenizer([out / "text" / "train.txt", words], 2048, out)
    words.unlink()
    # the whole file under the .part name, so that one rename says that all is there
    contents = {"made_from": made_from, "properties": PROPERTIES, "nouns": world}
    write_json(out / "world.json.part", contents)
    os.replace(out / "world.json.part", out / "world.json")
    print(f"mini world {seed}: {len(world)} nouns, {len(films):,} videos of {len(ACTIONS)} "
          f"clips, {len(TASKS)} tasks, in {out}")


# ==================================================================================================
# The command line


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    mini = commands.add_parser("mini", help="generate a mini world")
    mini.add_argument("--seed", type=count, default=0, help="redraws everything")
    mini.add_argument("--out", default="data/mini")
    mini.add_argument("--videos-a-noun", type=positive, default=VIDEOS_A_NOUN, help="to train on")
    mini.add_argument("--documents", type=positive, default=10000, help="articles of text")
    mini.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes")

    text = commands.add_parser("text", help="text -> packed tokens")
    text.add_argument("--train", nargs="+", required=True, help="files or folders of them")
    held_out = text.add_mutually_exclusive_group(required=True)
    held_out.add_argument("--valid", nargs="+", help="text to validate on")
    held_out.add_argument("--valid-lines", type=count, default=0, help="or --train's last lines")
    text.add_argument("--min-words", type=int, default=MIN_WORDS,
                      help="drop shorter lines; 1 suits languages without spaces")

    video = commands.add_parser("video", help="films -> features; with --vocab captions, too")
    video.add_argument("--streams", nargs="+", choices=STREAMS, default=["frame", "motion"])
    video.add_argument("--shard", type=parse_shard, help="K/N, K = 1..N: only that part of films")
    video.add_argument("--weights", default="data/weights", help="folder of the CNNs' checkpoints")
    video.add_argument("--device", default="auto",
                       help="for the CNNs: auto, cpu, cuda (all GPUs) or cuda:N")
    video.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"],
                       help="of the CNNs; auto: bf16 on a GPU that computes in it, else fp32")
    video.add_argument("--workers", type=positive,
                       help="processes that decode (default: one a core)")
    video.add_argument("--only", help="CSV with a column video_id: use no other films")

    captions = commands.add_parser("captions", help="captions of films with features -> tokens")
    for command in (video, captions):
        command.add_argument("--videos", required=True, help="folder of films, ID.mp4, ID.mkv, ...")
        command.add_argument("--captions", help="JSON {id: {text: [], start: [], end: []}}, or a "
                             "folder of ID.srt, ID.vtt, ID.LANGUAGE.vtt, ID.csv (default: that of "
                             "the films)")
        command.add_argument("--held-out", type=count, help="films to validate on (default: a "
                             "fiftieth, at most 10,000)")

    bank = commands.add_parser("bank", help="clips of a data folder, for vokens and retrieval")
    bank.add_argument("--data", required=True, help="a folder that `data.py captions` wrote")
    bank.add_argument("--split", default="train", choices=list(BANKS),
                      help="train: for vokens; valid: for retrieval")
    bank.add_argument("--clips", type=positive, default=30000, help="how many")
    bank.add_argument("--seed", type=count, default=0)
    bank.add_argument("--block", type=int, default=128, help="tokens of a text (mini: 32)")
    bank.add_argument("--out", help="default: DATA/bank.json, DATA/bank-valid.json")

    for command in (text, video, captions):
        command.add_argument("--vocab", required=command is not video,
                             help="a vocab.txt, a tokenizer.json or the folder of one")
        command.add_argument("--out", required=True, help="folder")

    args = parser.parse_args()
    if args.command == "mini":
        make_mini(args.seed, args.out, args.videos_a_noun, args.documents, args.workers)
    elif args.command == "text":
        pack_text(args.train, args.vocab, args.out, "train", args.min_words, args.valid_lines)
        if args.valid:
            pack_text(args.valid, args.vocab, args.out, "valid", args.min_words)
    elif args.command == "video":
        video_command(args)
    elif args.command == "captions":
        captions_command(args)
    else:
        make_bank(args.data, args.split, args.clips, args.seed, args.block, args.out)


if __name__ == "__main__":
    model.command(main)
