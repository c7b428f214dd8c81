"""Speed against references, on this machine, in one run. A command, not a test: `make bench`.

    python tests/bench.py                                    # every row, some 6 minutes on two quiet cores
    python tests/bench.py --only mlm nst --repeats 15        # some rows
    REAL_DATA=/folder/of/real/files python tests/bench.py    # real text and a real clip for `tokens` and `video`
    python tests/bench.py --small                            # tiny sizes: shows that it runs, says nothing of speed

A row builds a reference and ours, compares their numbers where they compute the same thing, warms both up, and times
them in turn, so that whatever else the machine does hits both. Times are medians; ratio is the median, and in brackets
the quartiles, of reference / ours over neighbouring runs. A missing oracle is said, and the other rows run.
Axes: B sequences, L tokens, H width, D = H neurons. Masks: True = real.
"""
import argparse
import contextlib
import copy
import dataclasses
import functools
import io
import itertools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, NamedTuple

import av
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data
import distill
import finetune
import model

IDS = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}
BATCH = 8   # sequences of every pretraining row


class Row(NamedTuple):
    """What a row times, and what is asked of it."""
    what: str
    reference: str          # what the reference is
    theirs: Callable
    ours: dict              # {variant: callable}; the target is the last one's
    target: float | None    # theirs / ours is to be at least this
    cost: bool = False      # rather ours / theirs, and at most
    scale: float = 1.0      # the reference does only 1 / scale of the work, so its time counts this many times
    cpu: bool = False       # judged by CPU seconds, too: what a job of one process a core pays


class NotRun(Exception):
    """Why a row cannot be measured here; printed in its place."""


def same(what, theirs, ours, tolerance=1e-4):
    """Raises ValueError unless two numbers agree within the relative tolerance: else the times are of two things."""
    theirs, ours = (float(torch.as_tensor(value).detach()) for value in (theirs, ours))
    if not abs(theirs - ours) <= tolerance * abs(theirs):
        raise ValueError(f"{what}: the reference gives {theirs:.6g}, ours {ours:.6g}; there is nothing to time")


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining steps


def networks(args, size, objectives, batch=BATCH):
    """What distill.py trains, at random weights that are the same at every call, and a batch of random tokens."""
    settings = distill.DEFAULTS[size]
    config = dataclasses.replace(model.SIZES[size], hidden_dropout_prob=settings["dropout"],
                                 attention_probs_dropout_prob=settings["dropout"])
    torch.manual_seed(0)
    student, teacher, heads = model.Bert(config), model.Bert(config), nn.ModuleDict()
    mlm_head = model.MLMHead(config, student.tokens)
    for name in objectives:
        heads[name + "_head"] = model.DistillHead(config, config.hidden_size)
    if "crd" in objectives:
        heads["crd"] = distill.CRD(config.hidden_size, config.hidden_size, queue=settings["crd_queue"])
    tokens = torch.randint(len(IDS), config.vocab_size, (batch, config.block))
    tokens[:, 0], tokens[:, -1] = IDS["cls"], IDS["sep"]
    modules = [module.to(args.processes.device) for module in (student, mlm_head, heads)]
    return SimpleNamespace(config=config, settings=settings, tokens=tokens, student=student, mlm_head=mlm_head,
                           heads=heads, modules=modules, objectives=objectives,
                           teacher=teacher.to(args.processes.device).eval().requires_grad_(False))


def masked(nets, step):
    """What both sides see: special [B, L] (True = [CLS] or [SEP]), inputs [B, L], labels [B, L], on the CPU."""
    special = data.special_mask(nets.tokens, IDS)
    return special, *data.mask_tokens(nets.tokens, special, data.torch_generator(0, "mask", step), IDS["mask"],
                                      nets.config.vocab_size)


def our_losses(args, nets, autocast_type, step):
    """The losses of one step, as in distill.py's loop with objective none or nst + crd."""
    processes, device, losses = args.processes, args.processes.device, {}
    special, inputs, labels = masked(nets, step)
    label_count = int(processes.sum((labels != -100).sum().item()))
    inputs, labels, real = inputs.to(device), labels.to(device), (nets.tokens != IDS["pad"]).to(device)
    with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
        hidden = nets.student(inputs)                                               # [B, L, H]
        losses["mlm"] = model.mlm_loss(nets.mlm_head, hidden, labels, label_count)
        if nets.objectives:
            with torch.no_grad():
                target = F.normalize(nets.teacher(inputs).float(), dim=-1)          # [B, L, H]
            mapped = nets.heads["nst_head"](hidden).float()
    if nets.objectives:
        losses["nst"] = distill.nst_loss(F.normalize(mapped, dim=-1), target, real)
        drawn = distill.sample_tokens(special, nets.settings["crd_tokens"], data.torch_generator(0, "crd", step),
                                      slice(None), len(inputs)).to(device)
        pick = lambda vectors: vectors.gather(1, drawn[:, :, None].expand(-1, -1, vectors.shape[2])).flatten(0, 1)
        losses["crd"] = nets.heads["crd"](nets.heads["crd_head"](pick(hidden).float()), pick(target), processes)
    return losses


def stepper(modules, optimizer, losses_of):
    """One optimiser step as every stage does it, as a function of nothing; losses_of: step -> {name: loss}.

    Not in it: the gradient norms that one step in a hundred measures for the log.
    """
    parameters, count = [p for group in optimizer.param_groups for p in group["params"]], itertools.count()

    def step():
        number = next(count)
        for group in optimizer.param_groups:
            group["lr"] = model.lr_at(number, 1e-4, 1000, 10000)
        for module in modules:
            module.train()
        data.seed_dropout(0, number, 0)
        loss = sum(losses_of(number).values())
        assert torch.isfinite(loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        assert torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        optimizer.step()
    return step


def our_step(args, size, objectives, autocast_type, batch=BATCH):
    nets = networks(args, size, objectives, batch)
    return stepper(nets.modules, model.optimizer_for(nets.modules, 1e-4, nets.settings["weight_decay"]),
                   partial(our_losses, args, nets, autocast_type))


def transformers_bert(nets, bert):
    """BertForMaskedLM of transformers with these weights, on their device, in evaluation mode."""
    sys.modules.setdefault("torchvision", None)   # not needed, and one made for another torch would stop the import
    try:
        import transformers
    except ImportError as error:
        raise NotRun(f"transformers is not installed ({error})") from None
    shape = {key: value for key, value in dataclasses.asdict(nets.config).items() if key != "block"}
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**shape))
    theirs.load_state_dict(model.to_hf(bert, nets.mlm_head))
    return theirs.to(bert.tokens.weight.device).eval()


def pull(loss, modules):
    """Norm of a loss's gradient over all parameters: one number that hardly two different networks share."""
    loss.backward()
    return nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], float("inf"))


def pretraining(objectives, what, reference, target, args):
    """A step on transformers in fp32, logits at all positions, labels -100 where nothing is masked, for `objectives` in
    the authors' form (NST, and NT-Xent for what the paper calls CRD), against ours. The teacher gives no logits."""
    nets = networks(args, args.size, objectives)
    theirs, teacher = [transformers_bert(nets, bert) for bert in (nets.student, nets.teacher)]
    heads = nn.ModuleList([copy.deepcopy(nets.heads["nst_head"]) for _ in objectives])
    teacher.requires_grad_(False)

    def losses_of(step):
        _, inputs, labels = [tensor.to(theirs.device) for tensor in masked(nets, step)]
        out = theirs(input_ids=inputs, labels=labels, output_hidden_states=bool(objectives))
        losses = {"mlm": out.loss}
        if objectives:
            with torch.no_grad():
                goal = F.normalize(teacher.bert(inputs).last_hidden_state, dim=-1)  # [B, L, H]
            first, second = [F.normalize(head(out.hidden_states[-1]), dim=-1) for head in heads]
            losses |= {"nst": authors_nst(first, goal), "ntxent": authors_ntxent(second, goal)}
        return losses

    for module in nets.modules:
        module.eval()
    a, b, c = losses_of(0), *[our_losses(args, nets, kind, 0) for kind in (None, args.autocast_type)]
    same("MLM loss", a["mlm"], b["mlm"])
    same(f"MLM loss, {args.precision}", a["mlm"], c["mlm"], 1e-2)
    if objectives:
        goal = F.normalize(nets.teacher(masked(nets, 0)[1].to(theirs.device)), dim=-1)
        same("NST loss", ours_of_nst(a["nst"], goal), b["nst"], 1e-3)   # what is left of larger terms
    same("MLM gradient", pull(a["mlm"], [theirs]), pull(b["mlm"], nets.modules), 1e-3)
    optimizer = torch.optim.AdamW([*theirs.parameters(), *heads.parameters()], 1e-4, weight_decay=0.01)
    return Row(f"{what}, {args.size}, {BATCH} x {nets.config.block}", reference,
               stepper([theirs, heads], optimizer, losses_of),
               {name: our_step(args, args.size, objectives, kind)
                for name, kind in {"fp32": None, args.precision: args.autocast_type}.items()}, target)


def cost(args):
    """What distilling costs: our step with NST + CRD, as a multiple of our MLM step of the same student."""
    mlm, both = [our_step(args, args.size, objectives, args.autocast_type) for objectives in ((), ("nst", "crd"))]
    return Row("distillation step over MLM step", f"our MLM step, {args.precision}", mlm, {args.precision: both}, 1.45,
               cost=True)


def share(args):
    """Our MLM step against square products: how much of the machine's own matmul rate it reaches.

    Its work: 6 x weights of the layers' matrices a token, the two products of attention, the MLM head at the 15 % of
    positions that are masked. On a GPU: size base and 64 sequences, since 8 short ones leave it idle.
    """
    gpu = args.processes.device.type == "cuda"
    size, batch, n, target = ("base", 64, 8192, 0.5) if gpu else (args.size, BATCH, 2048, 0.6)
    config = model.SIZES[size]
    H, V, layers, tokens = config.hidden_size, config.vocab_size, config.num_hidden_layers, batch * config.block
    work = 6 * tokens * layers * (4 * H * H + 2 * H * config.intermediate_size) + \
        12 * tokens * layers * config.block * H + 6 * 0.15 * batch * (config.block - 2) * H * (H + V)
    a, b = torch.randn(2, n, n, device=args.processes.device, dtype=args.autocast_type or torch.float32)
    product = torch.empty_like(a)
    return Row(f"share of the matmul rate, MLM step, {size}", f"its {work / 1e9:.0f} GFLOP as {n} x {n} products",
               partial(torch.mm, a, b, out=product),
               {args.precision: our_step(args, size, (), args.autocast_type, batch)}, target, scale=work / (2 * n ** 3))


# ---------------------------------------------------------------------------------------------------------------------
# Objectives in the authors' form, as their code computes them


def authors_nst(student, teacher):
    """Sequence by sequence, every kernel by way of D x D x L products; no teacher term; the sum divided by L.

    student, teacher: [B, L, D].
    """
    def kernel(x, y):
        return (x[:, None] * y[None]).sum(-1).pow(2)                                # [D, D, L] -> [D, D]
    total = 0.0
    for one, other in zip(student, teacher):
        s, t = F.normalize(one.T, dim=1), F.normalize(other.T, dim=1)               # [D, L], unit rows
        total = total + kernel(s, s).mean() - 2 * kernel(s, t).mean()
    return total / student.shape[1]


def ours_of_nst(value, teacher):
    """Their value -> ours: the mean over sequences, and the teacher's own term, which no gradient sees, added."""
    t = F.normalize(teacher, dim=1)                                                 # [B, L, D], unit columns
    return value * teacher.shape[1] / len(teacher) + (t.transpose(1, 2) @ t).pow(2).mean()


def authors_ntxent(student, teacher):
    """Position by position: cosines by way of 2B x 2B x D numbers, a new mask of the rivals, and the mean of
    cross-entropy (temperature 1) divided by 2B once more. student, teacher: [B, L, D]."""
    B, L, _ = student.shape
    total = 0.0
    for l in range(L):
        z = torch.cat([student[:, l], teacher[:, l]])                               # [2B, D]
        scores = F.cosine_similarity(z[:, None], z[None], dim=-1)                   # [2B, 2B]
        itself = torch.eye(2 * B, dtype=torch.bool, device=z.device)
        rival = ~(itself | itself.roll(B, 1))                                       # neither the anchor nor its partner
        partner = torch.cat([scores.diagonal(B), scores.diagonal(-B)])[:, None]     # [2B, 1]
        logits = torch.cat([partner, scores[rival].view(2 * B, -1)], 1)             # [2B, 2B - 1]
        total = total + F.cross_entropy(logits, torch.zeros(2 * B, dtype=torch.long, device=z.device)) / (2 * B)
    return total / L


def objective(what, theirs, ours, ours_of, args):
    """One objective, forward and backward. theirs, ours: functions of (student, teacher), [B, L, H] with unit rows;
    ours_of: (their value, teacher) -> what ours should be."""
    config, device = model.SIZES[args.size], args.processes.device
    torch.manual_seed(0)
    student, teacher = F.normalize(torch.randn(2, BATCH, config.block, config.hidden_size), dim=-1).to(device)
    student.requires_grad_(True)
    a, b = ours_of(theirs(student, teacher), teacher), ours(student, teacher)
    same(f"{what} loss", a, b)
    slope_a, slope_b = [torch.autograd.grad(value, student)[0].flatten() for value in (a, b)]
    same(f"{what} gradient", slope_a.norm(), slope_b.norm(), 1e-3)
    same(f"{what} gradients' cosine", 1.0, F.cosine_similarity(slope_a, slope_b, dim=0), 1e-3)
    return Row(f"{what}, forward + backward, {BATCH} x {config.block} x {config.hidden_size}", "authors' form, fp32",
               lambda: torch.autograd.grad(theirs(student, teacher), student),
               {"fp32": lambda: torch.autograd.grad(ours(student, teacher), student)}, None)


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning, video, text


@functools.lru_cache
def corpus(folder, small):
    """(a text of some MB, a vocabulary, their name): REAL_DATA's Wikipedia, or the mini world's text."""
    text, vocab, name = folder / "text.txt", folder / "vocab.txt", "the mini world's"
    if "REAL_DATA" in os.environ:
        real, name = Path(os.environ["REAL_DATA"]), "Wikipedia"
        lines, vocab = (real / "corpus/wiki.valid.raw").read_text(), real / "vocab/bert-base-uncased-vocab.txt"
    else:
        lines = "\n".join(data.make_text(data.make_world(0), 0, 1000)) + "\n"
        data.write_text(text, lines)
        data.train_tokenizer([text], 2048, vocab)
    data.write_text(text, lines * (1 if small else -(-8_000_000 // len(lines))))
    return text, vocab, name


def finetuning(args):
    """One batch in five of an epoch, across its lengths: batches as finetune.py makes them, padded to their longest
    row, against the same rows padded to the maximum. Lengths as GLUE's: lognormal, mean about 40."""
    settings, device = finetune.DEFAULTS["base"], args.processes.device
    tokenizer = data.load_tokenizer(corpus(args.folder, args.small)[1])
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha())
    generator, longest = data.numpy_generator(0, "bench"), settings["max_length"]
    batch, every = (4, 10) if args.small else (settings["batch"], 5)
    lengths = generator.lognormal(np.log(40) - 0.18, 0.6, 50 * batch).clip(5, longest).astype(int)
    rows = finetune.Rows([finetune.Example([(" ".join(generator.choice(words, n - 2)), None)], "0", "0", "bench")
                          for n in lengths], generator.integers(2, size=len(lengths)), tokenizer, longest)
    batches = finetune.length_sorted_batches(rows.lengths, batch, 0, 0)
    batches = sorted(batches, key=lambda chosen: rows.lengths[chosen].sum())[every // 2::every]
    config = dataclasses.replace(model.SIZES[args.size], hidden_dropout_prob=settings["dropout"],
                                 attention_probs_dropout_prob=settings["dropout"])
    config.vocab_size = max(config.vocab_size, tokenizer.get_vocab_size())
    torch.manual_seed(0)
    modules = bert, head = model.Bert(config).to(device), model.SequenceHead(config, 2).to(device)
    optimizer = model.optimizer_for(modules, settings["lr"], settings["weight_decay"], settings["eps"])

    def losses_of(pad, autocast_type, step):
        chosen = batches[step % len(batches)]
        targets = torch.from_numpy(rows.targets[chosen]).to(device)
        inputs = rows.batch(chosen)                                                 # tokens, mask, segments: [B, L]
        if pad:
            room = longest - inputs[0].shape[1]
            inputs = [F.pad(tensor, (0, room), value=fill) for tensor, fill in zip(inputs, (rows.pad, False, 0))]
        with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
            scores = finetune.scores_of("classification", bert, head, [tensor.to(device) for tensor in inputs], 1)
        return {"task": finetune.loss_of("classification", scores, targets) / len(chosen)}

    def epoch(pad):
        step = stepper(modules, optimizer, partial(losses_of, pad, args.autocast_type))
        return lambda: [step() for _ in batches]
    bert.eval(), head.eval()
    same("task loss", *[losses_of(pad, None, 0)["task"] for pad in (True, False)])
    width = np.mean([rows.lengths[chosen].max() for chosen in batches])
    return Row(f"fine-tuning, {len(batches)} x {batch} rows of {rows.lengths.mean():.0f} tokens in {width:.0f}",
               f"padded to {longest}, {args.precision}", epoch(True), {args.precision: epoch(False)}, 3.0)


def video(args):
    """The pictures of both CNN streams of a clip: two passes of the ffmpeg command, against one decode for both."""
    if shutil.which("ffmpeg") is None:
        raise NotRun("the ffmpeg command is not installed")
    path, ffmpeg = args.folder / "clip.mp4", ["ffmpeg", "-v", "error"]
    if "REAL_DATA" in os.environ:
        path = Path(os.environ["REAL_DATA"]) / "video" / "nasa_13013.mp4"
    else:
        picture = f"testsrc2=size=480x360:rate=30:duration={1 if args.small else 15}"
        subprocess.run([*ffmpeg, "-f", "lavfi", "-i", picture, "-pix_fmt", "yuv420p", path], check=True)
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        w, h, seconds = stream.width, stream.height, float(stream.duration * stream.time_base)
    makers = [data.STREAMS[name].view for name in ("resnet152", "resnext101")]

    def theirs():
        pictures = []
        for view in (make() for make in makers):
            width, height = int(w * view.size / h), view.size                       # both clips are landscape
            filters = f"fps={view.fps},scale={width}:{height}"
            if view.crop:
                filters, width = f"{filters},crop={view.size}:{view.size}:{(width - view.size) // 2}:0", view.size
            made = subprocess.run([*ffmpeg, "-i", path, "-vf", filters, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                                  capture_output=True, check=True)
            pictures.append(np.frombuffer(made.stdout, np.uint8).reshape(-1, height, width, 3))
        return pictures

    def ours():
        views = [make() for make in makers]
        pictures = {view: [] for view in views}
        for view, some, _ in data.decode(path, views):
            pictures[view] += some
        return [np.stack(some) for some in pictures.values()]
    for a, b in zip(theirs(), ours()):
        if abs(len(a) - len(b)) > 1:   # versions of ffmpeg differ by one at the end
            raise ValueError(f"video: ffmpeg shows {len(a)} pictures, ours {len(b)}; there is nothing to time")
        same("pictures", a[:len(b)].mean(), b[:len(a)].mean(), 1e-3)
    return Row(f"both views of a video, {seconds:.0f} s of {w} x {h}", "two ffmpeg passes", theirs, {"": ours}, 1.8,
               cpu=True)


def tokens(args):
    """Text to packed tokens on disk, against the tokenizers library alone, which finds its lines in memory."""
    text, vocab, name = corpus(args.folder, args.small)
    tokenizer, lines, runs = data.load_tokenizer(vocab), list(data.text_lines(text)), itertools.count()

    def theirs():
        return sum(len(encoding) for start in range(0, len(lines), 1000)
                   for encoding in tokenizer.encode_batch_fast(lines[start:start + 1000], add_special_tokens=False))

    def ours():
        out = args.folder / f"packed{next(runs)}"   # a new one: pack_text leaves alone what is up to date
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            data.pack_text([text], vocab, out, "train", os.cpu_count())   # processes: the command's default
        return data.read_json(out / "train.json", "")["tokens"]
    same("tokens", theirs(), ours(), 0)
    return Row(f"tokenising {text.stat().st_size / 1e6:.1f} MB, {name}", "tokenizers alone, nothing written", theirs,
               {"": ours}, 0.9)


# ---------------------------------------------------------------------------------------------------------------------
# Timing

ROWS = {   # name: (row, repeats)
    "mlm": (partial(pretraining, (), "MLM step", "transformers + AdamW, fp32", 2.5), 9),
    "nst": (partial(objective, "NST", authors_nst, lambda s, t: distill.nst_loss(
        s, t, torch.ones_like(s[:, :, 0], dtype=torch.bool)), ours_of_nst), 5),
    "ntxent": (partial(objective, "NT-Xent", authors_ntxent, lambda s, t: distill.ntxent_loss(s, t, 1.0),
                       lambda value, teacher: value * 2 * len(teacher)), 15),
    "distill": (partial(pretraining, ("nst", "crd"), "distillation step", "authors' form, fp32", 8.0), 5),
    "cost": (cost, 15),
    "finetune": (finetuning, 3),
    "video": (video, 7),
    "tokens": (tokens, 7),
    "share": (share, 15),
}


def cpu_seconds():
    """CPU seconds of this process and of the children that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(row, repeats, device):
    """Seconds a call [2, callables, repeats]: wall and CPU, the reference first; in turn, after one warm-up each, which
    also says how many calls make 0.1 s: a run is as many, since shorter ones are mostly chance."""
    callables = [row.theirs, *row.ours.values()]
    seconds, calls = np.zeros((2, len(callables), 1 + repeats)), [1] * len(callables)   # run 0 is the warm-up
    for run in tqdm(range(1 + repeats), desc=row.what, leave=False, disable=None):
        for k, timed in enumerate(callables):
            wall, cpu = time.perf_counter(), cpu_seconds()
            for _ in range(calls[k]):
                timed()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[:, k, run] = np.array([time.perf_counter() - wall, cpu_seconds() - cpu]) / calls[k]
            calls[k] = 1 + int(0.1 / seconds[0, k, 0])
    seconds[:, 0] *= row.scale
    return seconds[:, :, 1:]


def judge(row, seconds):
    """One dict a line of the table: medians in milliseconds, their ratio and its spread, the target and whether met."""
    lines = []
    for measured, (theirs, *ours) in zip(("", ", CPU time"), seconds[:2 if row.cpu else 1]):
        for variant, our in zip(row.ours, ours):
            over, under = (our, theirs) if row.cost else (theirs, our)
            low, ratio, high = np.percentile(over / under, (25, 50, 75))
            target = row.target if our is ours[-1] else None
            met = None if target is None else bool(ratio <= target if row.cost else ratio >= target)
            lines.append({"what": f"{row.what} {variant}".strip() + measured, "reference": row.reference,
                          "reference_ms": 1000 * np.median(theirs), "ours_ms": 1000 * np.median(our), "ratio": ratio,
                          "quartiles": [low, high], "target": target,
                          "at_most": row.cost, "met": met})
    return lines


def show(*cells):
    widths = 62, 36, 10, 10, 22, 7, 3
    print("| " + " | ".join(f"{cell:{width}}" for cell, width in zip(cells, widths)) + " |", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, help="of every row (default: each row's own)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: only shows that it runs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--json", help="also write the lines, with hardware and versions, to this file")
    args = parser.parse_args(argv)
    args.processes, args.size = data.Processes(args.device), "mini" if args.small else "small"
    args.precision, args.autocast_type = data.settle_precision("auto", args.processes.device)
    told, load = data.provenance(args.processes.device), os.getloadavg()[0] / os.cpu_count()
    changed = " and uncommitted changes" if told["uncommitted changes"] else ""
    print(f"{told['hardware']}, {told['threads']} threads, torch {told['torch']}, tokenizers {told['tokenizers']}, "
          f"commit {str(told['commit'])[:12]}{changed}, {args.precision}, load {load:.2f} a core")
    if load > 0.5 or args.small:
        print("Not to be quoted:", "the sizes are tiny." if args.small else "the machine is busy with other work.")
    show("what", "reference", "its ms", "our ms", "ratio [quartiles]", "target", "met")
    show(*["---"] * 7)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        for name in args.only:
            make, repeats = ROWS[name]
            try:
                row = make(args)
                row = row._replace(target=None) if args.small else row
            except NotRun as why:
                lines.append({"row": name, "not run": str(why)})
                show(name, f"not run: {why}", *[""] * 5)
                continue
            torch.set_float32_matmul_precision("high")   # as in the stages, for both; numbers are compared without it
            found = judge(row, measure(row, args.repeats or repeats, args.processes.device))
            torch.set_float32_matmul_precision("highest")
            lines += [{"row": name, **line} for line in found]
            for line in found:
                low, high = line["quartiles"]
                show(line["what"], line["reference"], f"{line['reference_ms']:,.1f}", f"{line['ours_ms']:,.1f}",
                     f"{line['ratio']:.2f} [{low:.2f}, {high:.2f}]",
                     f"{'<=' if line['at_most'] else '>='} {line['target']}" if line["target"] else "",
                     {None: "", True: "yes", False: "NO"}[line["met"]])
    if args.json:
        data.write_json(args.json, {**told, "precision": args.precision, "load": load, "small": args.small,
                                    "lines": lines})


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"bench.py: {error}")
