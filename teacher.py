"""Stage 1: the video-text teacher (paper section 3.2), a contrastive loss of tokens and MLM.

    python teacher.py                                                         # data/mini, minutes
    torchrun --nproc_per_node=8 teacher.py --data data/howto100m --size base  # paper scale
    python teacher.py --out runs/image --frames 1 --streams frame             # an image teacher
    python teacher.py --out runs/captions --contrastive none                  # a text-only teacher
    python teacher.py --out runs/shuffled --shuffle-pairs                     # control: wrong clips

Writes runs/NAME/{args.json, log.jsonl, checkpoint.pt, model/}; started again, it goes on.
Axes: B clips of the global batch, b of this process, L tokens, T video steps, H width.
"""
import hashlib
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import data
import model

# --------------------------------------------------------------------------------------------------
# Losses. All take the whole global batch, gathered; `rows` are the anchors that this process
# counts. Every mean divides by global counts, so the sum over processes is the one-process loss,
# and so are its gradients.


def hinge_loss(text, video, mask, negatives, margin, rows=slice(None)):
    """Token-level contrastive loss with one negative each way (paper section 3.2):

        mean over tokens (i,l) of max(0, margin - h_il.v_i + h_il.v_n(i))          a negative video
      + mean over tokens (i,l) of max(0, margin - h_il.v_i + h_n(i)l.v_i)          a negative text

    The second counts positions l that are real in both texts.
    text: [B, L, H]; video: [B, H] (both made unit vectors here); mask: bool [B, L], True = takes
    part; negatives: int [B], n(i) != i; margin in cosine. Encoders that give every input the same
    vector score 2 x margin. The authors' code has the first term only. Returns a scalar.
    """
    text = F.normalize(text, dim=-1)
    video = F.normalize(video, dim=-1)
    positive = torch.einsum("blh,bh->bl", text, video)                      # [B, L]
    other_video = torch.einsum("blh,bh->bl", text, video[negatives])        # [B, L]
    other_text = torch.einsum("blh,bh->bl", text[negatives], video)         # [B, L]
    both = mask & mask[negatives]                                           # True = real in both
    by_video = F.relu(margin - positive + other_video) * mask
    by_text = F.relu(margin - positive + other_text) * both
    return (by_video[rows].sum() / mask.sum().clamp(min=1)
            + by_text[rows].sum() / both.sum().clamp(min=1))


def hinge_all_loss(text, video, mask, margin, rows=slice(None)):
    """The hinge against all rivals of the batch: hinge_loss, whose means run over every token (i,l)
    and rival j != i instead of one n(i). Shapes as there. Returns a scalar.
    """
    text = F.normalize(text, dim=-1)
    video = F.normalize(video, dim=-1)
    B = len(text)
    scores = torch.einsum("ilh,jh->ilj", text, video)                       # token (i,l), video j
    positive = scores.diagonal(dim1=0, dim2=2).T[:, :, None]                # [B, L, 1]
    swapped = scores.permute(2, 1, 0)                                       # token (j,l), video i
    rival = ~torch.eye(B, dtype=torch.bool, device=text.device)             # True = another clip
    one = mask[:, :, None] & rival[:, None, :]                              # True = (i,l) is real
    both = one & mask.T[None]                                               # True = and so is (j,l)
    by_video = F.relu(margin - positive + scores) * one                     # [B, L, B]
    by_text = F.relu(margin - positive + swapped) * both                    # [B, L, B]
    return (by_video[rows].sum() / one.sum().clamp(min=1)
            + by_text[rows].sum() / both.sum().clamp(min=1))


def nce_loss(text, video, mask, temperature, pool, rows=slice(None)):
    """Softmax over all pairs of the batch (InfoNCE), in nats. Collapsed encoders score log B.

    pool "token": mean over tokens (i,l) of    -log softmax over j of (h_il.v_j / temperature), at i
    pool "sentence", t_i the mean of text i's tokens: mean over i of the average of
                    -log softmax over j of (t_i.v_j / temperature), at i          a text's video
                and -log softmax over j of (t_j.v_i / temperature), at i          a video's text

    text: [B, L, H]; video: [B, H]; mask: bool [B, L], True = takes part. v, t and, for "token", h
    are made unit vectors here; t is the mean of h as they are. Returns a scalar.
    """
    video = F.normalize(video, dim=-1)
    own = torch.arange(len(text), device=text.device)
    if pool == "token":
        text = F.normalize(text, dim=-1)
        logits = torch.einsum("ilh,jh->ijl", text, video) / temperature     # [B, B, L]
        own = own[:, None].expand(mask.shape)                               # [B, L]
        each = F.cross_entropy(logits, own, reduction="none") * mask        # [B, L]
        return each[rows].sum() / mask.sum().clamp(min=1)
    logits = model.sentence_vectors(text, mask) @ video.T / temperature     # [B, B]
    forth = F.cross_entropy(logits, own, reduction="none")                  # [B]
    back = F.cross_entropy(logits.T, own, reduction="none")
    return (forth + back)[rows].sum() / (2 * len(text))


def contrastive_loss(args, text, video, mask, negatives, rows=slice(None)):
    """The loss that --contrastive names, as above; negatives, int [B], are hinge's alone."""
    if args.contrastive == "hinge":
        return hinge_loss(text, video, mask, negatives, args.margin, rows)
    if args.contrastive == "hinge-all":
        return hinge_all_loss(text, video, mask, args.margin, rows)
    return nce_loss(text, video, mask, args.temperature, args.pool, rows)


def collapse_value(args):
    """The loss of encoders that give every input the same vector."""
    return math.log(args.batch) if args.contrastive == "nce" else 2 * args.margin


# --------------------------------------------------------------------------------------------------
# Settings

DEFAULTS = {   # sources: (a) the authors' scripts, (o) ours
    "mini": {
        "contrastive": "nce", "pool": "sentence",  # (o) the hinge learns far more slowly here
        "margin": 0.2,  # (o) for --contrastive hinge
        "temperature": 0.04,  # (o) at 0.07 the hurrying and braking is half learnt
        "batch": 256,  # (o) colour tells most of 64 clips apart; among 256, motion must be learnt
        "steps": 600,  # (o) what 150 s allow
        "lr": 2e-3, "warmup": 100, "weight_decay": 0.01,  # (o)
        "dropout": 0.0,  # (o) too few steps to overfit
        "max_steps_clip": 48, "log_every": 50, "valid_every": 400, "save_every": 400,  # (o)
        "compile": "off",  # (o) on a GPU it would take longer than the steps
    },
    "small": {
        "contrastive": "hinge", "pool": "token", "margin": 1.0, "batch": 128,  # (a)
        "temperature": 0.07,  # (o) the usual one, for --contrastive nce
        "epochs": 20, "decay_epochs": 200,  # (a) checkpoint 19 of 200 epochs
        "lr": 5e-5, "warmup": 0, "weight_decay": 0.01, "dropout": 0.1,  # (a)
        "max_steps_clip": 384,  # (a)
        "log_every": 50, "valid_every": 2000, "save_every": 2000, "compile": "auto",  # (o)
    },
}
DEFAULTS["base"] = DEFAULTS["small"] | {"batch": 64}  # (a)


def parse_args(argv=None):
    """Flags, filled up from the column of DEFAULTS that --size names."""
    parser = data.stage_parser(__doc__)
    flag = parser.add_argument
    flag("--data", default="data/mini", help="folder that `data.py captions` wrote")
    # not --run: torchrun would take that for its own --run-path, even behind the script's name
    flag("--out", default="runs/teacher", help="run folder")
    flag("--size", choices=DEFAULTS, default="mini", help="column of defaults, and shape")
    flag("--streams", nargs="+", help="feature streams (default: all in the data folder)")
    flag("--frames", type=data.positive, help="steps that stand for a clip; 1: an image teacher")
    flag("--contrastive", choices=["hinge", "hinge-all", "nce", "none"], help="none: MLM alone")
    flag("--pool", choices=["token", "sentence"], help="for nce")
    flag("--margin", type=data.above_zero, help="for the hinges, in cosine")
    flag("--temperature", type=data.above_zero, help="for nce, divides cosines")
    flag("--shuffle-pairs", nargs="?", type=float, const=1.0, default=0.0, metavar="SHARE",
         help="control: this share of the captions (default: all) meets another video's clip")
    flag("--train-limit", type=data.positive, help="train on the first videos alone")
    flag("--mlm-weight", type=float, default=1.0, help="loss = contrastive + this x MLM")
    flag("--decay-epochs", type=float, help="epochs until the rate is 0, no fewer than are run")
    flag("--max-steps-clip", type=data.positive, help="longer clips are thinned to so many steps")
    args = parser.parse_args(argv)
    if not 0 <= args.shuffle_pairs <= 1:
        raise model.UserError("--shuffle-pairs takes a share, 0 to 1")
    data.fill_in(args, DEFAULTS[args.size])
    return args


# --------------------------------------------------------------------------------------------------
# Examples and validation


def partners(args, clips, split):
    """Whose clip each video's captions meet: its own, or (a control) one other's. int [videos]."""
    own = np.arange(len(clips))
    if not args.shuffle_pairs:
        return own
    generator = data.numpy_generator(args.seed, "pairs", split)
    other = data.derangement(len(clips), generator)
    return np.where(generator.random(len(clips)) < args.shuffle_pairs, other, own)


def pair(clips, index, partner, generator=None):
    """One example: (token ids [n] of video `index`, features [T, D] of video `partner`)."""
    tokens, features = clips.example(index, generator)
    if partner != index:
        _, features = clips.example(partner, generator)
    return tokens, features


class Batches:
    """The rows of global batch `step` that this process takes: one part, tensors by name."""

    def __init__(self, args, clips, tokenizer, rows):
        self.args = args
        self.clips = clips
        self.ids = data.special_ids(tokenizer)
        self.words = tokenizer.get_vocab_size()
        self.rows = rows
        self.other = partners(args, clips, "train")

    def __getitem__(self, key):
        """key: (step, indices of the videos, int [b])."""
        step, indices = key
        args = self.args
        examples = []
        for row, index in enumerate(indices.tolist(), self.rows.start):
            generator = data.numpy_generator(args.seed, "start", step, row)
            examples.append(pair(self.clips, index, self.other[index], generator))
        tokens, token_mask, features, step_mask = self.clips.collate(examples)
        special = data.special_mask(tokens, self.ids)   # True = [CLS], [SEP], [PAD]: left alone
        generator = data.torch_generator(args.seed, "mask", step)
        inputs, labels = data.mask_tokens(tokens, special, generator, self.ids["mask"], self.words,
                                          rows=self.rows, batch=args.batch)
        positions, labels = data.predicted(labels)
        generator = data.numpy_generator(args.seed, "negatives", step)
        negatives = torch.from_numpy(data.derangement(args.batch, generator))   # [B]
        return [{"inputs": inputs, "token_mask": token_mask, "ordinary": ~special,
                 "positions": positions, "labels": labels, "features": features,
                 "step_mask": step_mask, "negatives": negatives}]


def forward(networks, batch, autocast_type):
    """A batch -> hidden states [b, L, H], MLM loss as a sum, video vectors [b, H] or None."""
    device = batch["inputs"].device
    with torch.autocast(device.type, autocast_type, enabled=autocast_type is not None):
        hidden = networks["bert"](batch["inputs"], batch["token_mask"])
        mlm = model.mlm_loss(networks["mlm_head"], hidden, batch["positions"], batch["labels"])
        video = None
        if "video_encoder" in networks:
            video = networks["video_encoder"](batch["features"], batch["step_mask"]).float()
    return hidden.float(), mlm, video


@torch.no_grad()
def validate(args, clips, bert, mlm_head, video_encoder, tokenizer, device, limit=256):
    """Losses and text-to-video retrieval on up to `limit` held-out clips, with fixed masks."""
    for module in (bert, mlm_head, video_encoder):
        module.eval()
    size = min(limit, len(clips))
    other = partners(args, clips, "valid")
    examples = [pair(clips, row, other[row]) for row in range(size)]
    tokens, token_mask, features, step_mask = clips.collate(examples)
    ids = data.special_ids(tokenizer)
    special = data.special_mask(tokens, ids)
    inputs, labels = data.mask_tokens(tokens, special, data.torch_generator(0, "validation"),
                                      ids["mask"], tokenizer.get_vocab_size())
    positions, labels = data.predicted(labels)
    count = int((labels != -100).sum())
    token_mask = token_mask.to(device)
    ordinary = ~special.to(device)
    hidden = bert(inputs.to(device), token_mask)
    mlm = model.mlm_loss(mlm_head, hidden, positions.to(device), labels.to(device))
    values = {"valid_mlm": float(mlm) / max(1, count)}
    if args.contrastive == "none":
        return values
    video = video_encoder(features.to(device), step_mask.to(device))
    negatives = torch.arange(size, device=device).roll(1)
    loss = contrastive_loss(args, hidden, video, ordinary, negatives)
    # rank of each text's own clip among all; ties count against the text, and so does a NaN
    clean = bert(tokens.to(device), token_mask)
    scores = model.sentence_vectors(clean, ordinary) @ F.normalize(video, dim=-1).T    # [N, N]
    ranks = (~(scores < scores.diagonal()[:, None])).sum(1).float()
    return {**values, "valid_contrastive": float(loss),
            "valid_r1": float((ranks == 1).float().mean()),
            "valid_median_rank": float(ranks.quantile(0.5)), "valid_pool": size}


# --------------------------------------------------------------------------------------------------
# The stage


def main(argv=None):
    # --- setup
    args = parse_args(argv)
    processes = data.Processes(args.device)
    device = processes.device
    precision, autocast_type = data.settle_precision(args.precision, device)
    run = Path(args.out)
    rows = processes.rows(args.batch)
    writes = processes.master and not args.dry_run
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")

    # --- data and text encoder, which limits the length of texts and clips
    described = sorted(Path(args.data).glob("features/*/stream.json"))
    args.streams = args.streams or [path.parent.name for path in described]
    args.streams = list(dict.fromkeys(args.streams))   # each once
    if not args.streams:
        raise model.UserError(f"no features in {args.data}; `python data.py video --out "
                              f"{args.data}` makes them")
    tokenizer = data.load_tokenizer(args.data)
    config, bert, mlm_head = data.make_encoder(args, tokenizer, args.data)
    steps_a_clip = min(args.max_steps_clip, config.max_position_embeddings)
    frames = 1 if args.contrastive == "none" else args.frames   # then no loss looks at clips
    train, valid = [data.Clips(args.data, split, args.streams, tokenizer, config.block,
                               steps_a_clip, frames, limit)
                    for split, limit in (("train", args.train_limit), ("valid", None))]
    moving = [name for name in args.streams if train.frames_seen[name] > 1]
    if args.frames == 1 and moving:
        raise model.UserError(f"--frames 1 asks for an image teacher, but one step of "
                              f"{', '.join(moving)} sees several frames; choose other --streams")
    steps = args.steps or max(1, round(args.epochs * len(train) / args.batch))
    decay_steps = max(steps, round((args.decay_epochs or 0) * len(train) / args.batch))

    # --- models: the video encoder has the shape of the text encoder
    video_encoder = model.VideoEncoder(config, train.stream_dims)
    sample = data.numpy_generator(args.seed, "scale").permutation(len(train))[:500]
    features = [train.example(int(index))[1] for index in sample]
    video_encoder.fit_scale(torch.from_numpy(np.concatenate(features)))
    networks = nn.ModuleDict({"bert": bert, "mlm_head": mlm_head})
    with_video = args.contrastive != "none"
    if with_video:
        networks["video_encoder"] = video_encoder
    networks.to(device)

    # --- optimizer
    optimizer = model.optimizer_for([networks], args.lr, args.weight_decay)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    gradients = data.GradientSum(networks.parameters(), processes.world)
    gradients.on = True   # every backward pass is of a whole batch

    # --- resume
    inputs = {}
    if not args.dry_run:
        videos = "\n".join(train.ids + ["valid"] + valid.ids)
        inputs = {"captions": train.sha256, "tokenizer": data.tokenizer_hash(tokenizer),
                  "videos": hashlib.sha256(videos.encode()).hexdigest()}
        for name in args.streams:
            inputs[name] = data.file_hash(f"{args.data}/features/{name}/stream.json")
        if args.init:
            inputs["init"] = data.weights_hash(args.init)
    if writes:
        data.open_run(run, vars(args), processes, precision, inputs)
    paths = run / "checkpoint.pt", run / "checkpoint-before.pt"
    state = None if args.dry_run else model.load_checkpoint(*paths, processes.print)
    first_step = state["step"] if state else 0
    if state:
        networks.load_state_dict(state["networks"])
        optimizer.load_state_dict(state["optimizer"])
    facts = {**vars(args), **inputs, "step": first_step, "precision": precision}
    processes.check_equal(run, facts, networks)
    if first_step == steps and (run / "model" / "video_encoder.pt").exists():
        processes.print(f"{run}: complete after {steps} steps, nothing to do")
        return processes.close()
    size = sum(each.numel() for each in parameters) / 1e6
    processes.print(f"teacher {args.size}: {size:.1f} M parameters; {len(train):,} videos; "
                    f"batch {args.batch} = {processes.world} x {args.batch // processes.world}; "
                    f"{steps} steps; streams {train.stream_dims}; {device.type}, {precision}; "
                    f"from step {first_step}")
    repeats = args.batch - len(train)
    if repeats > 0 and with_video:
        processes.print(f"  warning: only {len(train)} videos, so {repeats} of a batch's "
                        f"{args.batch} clips are repeats of a video, yet its negatives; try "
                        f"--batch {len(train)}")
    log = data.Log(run / "log.jsonl", writes, first_step)

    forward_fast = model.compiled(forward, args.compile, device, processes.print)
    contrast = model.compiled(contrastive_loss, args.compile, device, processes.print)
    tracker = data.Tracker(["contrastive", "mlm"], device)

    # --- loop: steps + 1 times, so that the last validation and save are the lines of all others
    processes.note_signals()
    feed = data.Feed(Batches(args, train, tokenizer, rows), len(train), args, rows, first_step,
                     processes)
    last_step = first_step + data.DRY_STEPS + feed.ahead if args.dry_run else steps
    advice = f"the last good state, if one was saved, is {paths[0]}; try a lower --lr"
    for step in range(first_step, last_step + 1):
        last = step == last_step
        noted = processes.noted(step)
        if writes and step > first_step and (step % args.valid_every == 0 or last):
            log(step, steps, **validate(args, valid, bert, mlm_head, video_encoder, tokenizer,
                                        device))
        if step > first_step and (step % args.save_every == 0 or last or noted):
            tracker.read(processes, advice, parameters)   # stops where one is not finite
            if writes:
                model.save_checkpoint(*paths, step=step, networks=networks.state_dict(),
                                      optimizer=optimizer.state_dict())
        if args.dry_run and step == first_step + feed.ahead:   # compiled, warm, nothing made ahead
            tracker.read(processes, advice)
            feed.waited = 0.0
            started = time.time()
        if last or noted:
            break
        for group in optimizer.param_groups:
            group["lr"] = model.lr_at(step, args.lr, args.warmup, decay_steps)
        networks.train()
        data.seed_dropout(args.seed, step, processes.rank)

        batch, = next(feed)
        label_count = processes.sum((batch["labels"] != -100).sum())
        if with_video and forward_fast is not forward:   # clips differ in length: compiled once
            T = batch["features"].shape[1]   # to multiples of 8: each alignment is compiled
            more = 0, min(-T % 8, config.max_position_embeddings - T)
            batch["features"] = F.pad(batch["features"], (0, 0, *more))
            batch["step_mask"] = F.pad(batch["step_mask"], more)
            torch._dynamo.maybe_mark_dynamic(batch["features"], 1)
            torch._dynamo.maybe_mark_dynamic(batch["step_mask"], 1)
        hidden, mlm, video = forward_fast(networks, batch, autocast_type)
        mlm = mlm / label_count.clamp(min=1)
        contrastive = torch.zeros((), device=device)
        if with_video:
            # every process sees all texts and videos, and counts the loss of its own
            contrastive = contrast(args, processes.gather(hidden), processes.gather(video),
                                   processes.gather(batch["ordinary"]), batch["negatives"], rows)
        loss = contrastive + args.mlm_weight * mlm
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients.finish()
        logged = step % args.log_every == 0 or step + 1 == steps
        if logged and with_video:   # before clipping, as grad_norm
            video_norm = nn.utils.get_total_norm([each.grad for each in video_encoder.parameters()])
        norm = nn.utils.clip_grad_norm_(parameters, args.clip)
        tracker.add(step, torch.stack([contrastive, mlm]).detach(), norm)
        optimizer.step()

        if logged:
            values = tracker.read(processes, advice)
            values |= {"lr": optimizer.param_groups[0]["lr"], "waited": round(feed.waited, 2)}
            if with_video:
                values["video_grad_norm"] = float(video_norm)
                ratio = values["contrastive"] / collapse_value(args)
                if step > max(200, args.warmup) and abs(ratio - 1) < 0.02:
                    values["collapsed"] = ("as if every input had the same vector; try a lower "
                                           "--lr, a smaller --margin or --contrastive nce")
            log(step + 1, steps, **values)
    if noted and not last:
        processes.stop(noted, f"{run}, step {step}")
    if args.dry_run:
        tracker.read(processes, advice)
        seconds = (time.time() - started) / data.DRY_STEPS
        data.print_plan(processes, parameters, seconds, feed.waited / data.DRY_STEPS, steps)
        return processes.close()

    # --- last save
    if processes.master:
        model.save_hf(run / "model", config, bert, mlm_head, tokenizer)
        settings = {"streams": args.streams, "frames": args.frames, "max_steps_clip": steps_a_clip,
                    "trained": with_video}
        model.save_video_encoder(run / "model" / "video_encoder.pt", video_encoder, settings)
        print(f"{run}: complete after {steps} steps")

    # --- cleanup
    processes.close()


if __name__ == "__main__":
    model.command(main)
