"""Stage 2: distillation on plain text (paper section 3.3): the frozen teacher's language encoder -> a text-only BERT.

    python distill.py                                                   # runs/teacher, its size, its text; NST + CRD
    python distill.py --objective none --out runs/text-only             # the baseline: the same student, MLM alone
    torchrun --nproc_per_node=8 distill.py --text data/wiki             # paper scale
    python distill.py --init runs/teacher/model --objective none        # two-stage pretraining
    python distill.py --objective nst regression --gradient-ratio 1     # any sum of OBJECTIVES; each pulls like MLM
    python distill.py --objective voken --bank data/mini/bank.json      # clips as labels; `data.py bank` drew them

Loss = MLM + sum of (weight x objective). The teacher sees the student's own masked tokens (for vokens: the unmasked
ones), in evaluation mode, without gradients. Writes runs/NAME/{args.json, log.jsonl, checkpoint.pt, model/,
model/distill_heads.pt}; goes on from checkpoint.pt when started again.
Axes: B text blocks of the global batch, L tokens, H width (Hs student's, Ht teacher's), K queue. Masks: True = real.
"""
import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import data
import model

# ---------------------------------------------------------------------------------------------------------------------
# Objectives


def nst_loss(student, teacher, mask):
    """Neuron Selectivity Transfer (paper section 3.3; Huang & Wang 2017) with the kernel k(x, y) = (x.y)^2.

    A neuron is one hidden unit; its sample is what it did at each of the L tokens of a sequence, made a unit vector in
    R^L: that is why the normalisation runs over tokens (users asked). The loss is the squared maximum mean
    discrepancy between the student's Hs neurons s_i and the teacher's Ht neurons t_j:

        mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) - 2 mean_ij k(s_i, t_j)

    With unit columns, S~ [L, Hs] and G_S = S~ S~' [L, L], this is exactly || G_S / Hs - G_T / Ht ||_F^2: L x L instead
    of H x H products, no H x H x L tensor (the authors build two), and Hs may differ from Ht. It sees neurons as a set:
    permuting or flipping the teacher's changes nothing, so NST alone gives the student no coordinates in video space.
    student: [B, L, Hs], teacher: [B, L, Ht]; mask: bool [B, L], True = real. Returns the mean over sequences.
    """
    def gram(hidden):
        hidden = hidden.float() * mask[:, :, None]               # a padded token is no sample   [B, L, H]
        neurons = F.normalize(hidden, dim=1)                     # unit columns
        return neurons @ neurons.transpose(1, 2) / hidden.shape[2]   # fp32: sums of H products of about 1 / L [B, L, L]
    return (gram(student) - gram(teacher)).pow(2).sum((1, 2)).mean()


class CRD(nn.Module):
    """Contrastive Representation Distillation (paper section 3.3; Tian, Krishnan & Isola 2020), token by token.

    e_s = unit(W_s student), e_t = unit(W_t teacher). Each of the two is an anchor in turn: its positive is the other
    model's vector of the same token, its K negatives are the other model's vectors of earlier tokens, from a first-in
    first-out queue. With s a cosine, tau the temperature and z = s / tau - log(K c),

        loss = sum over both sides, mean over anchors, of softplus(-z+) + sum over the queue of softplus(z-),

    which is Tian's binary loss -log p / (p + K/n) - sum log (K/n) / (p + K/n) with p = exp(s / tau) / Z: their constant
    Z = n c, so the data size n cancels. c is the mean of exp(s / tau) over the first global batch, a side each, then
    frozen. Why queues and not their memory (users asked): a row per token of 2.8 B tokens would not fit anywhere; why
    two: each side is scored against the other. Rejected: their momentum, of no use to a vector that is written once.
    """

    def __init__(self, student_width, teacher_width, width=128, queue=4096, temperature=0.07):
        super().__init__()
        self.temperature = temperature
        self.student_embed = nn.Linear(student_width, width)
        self.teacher_embed = nn.Linear(teacher_width, width)
        self.register_buffer("student_queue", F.normalize(torch.randn(queue, width), dim=1))
        self.register_buffer("teacher_queue", F.normalize(torch.randn(queue, width), dim=1))
        self.register_buffer("student_constant", torch.zeros(()))   # log c; of student anchors, of teacher anchors
        self.register_buffer("teacher_constant", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))   # next slot of both queues

    def side(self, anchor, positive, queue, log_constant):
        """One side's loss: anchor, positive: unit [N, width]; queue: unit [K, width]. Mean over the N anchors."""
        shift = math.log(len(queue)) + log_constant                          # log(K c)
        right = (anchor * positive).sum(1) / self.temperature - shift        # [N]
        wrong = anchor @ queue.T / self.temperature - shift                  # [N, K]
        return (F.softplus(-right) + F.softplus(wrong).sum(1)).mean()

    def forward(self, student, teacher, processes=None):
        """student: [N, Hs], teacher: [N, Ht], the same N tokens in the same order. Returns the loss of these N anchors.

        In training mode it also settles c in the first call and pushes the N tokens (of all processes, in rank order)
        into the queues, after scoring.
        """
        e_s = F.normalize(self.student_embed(student.float()), dim=1)        # [N, width]
        e_t = F.normalize(self.teacher_embed(teacher.float()), dim=1)
        if self.training and not self.started:
            for constant, anchor, positive, queue in ((self.student_constant, e_s, e_t, self.teacher_queue),
                                                      (self.teacher_constant, e_t, e_s, self.student_queue)):
                with torch.no_grad():
                    scores = torch.cat([(anchor * positive).sum(1, keepdim=True), anchor @ queue.T], 1)   # [N, 1 + K]
                    wide = scores if scores.device.type == "mps" else scores.double()   # MPS has no float64
                    mean = (wide / self.temperature).exp().mean()
                    if processes is not None:
                        mean = processes.sum(mean) / processes.world
                    constant.copy_(mean.log())
            self.started.fill_(True)
        # The queues change in place below, so the graph keeps copies of what was scored.
        loss = (self.side(e_s, e_t, self.teacher_queue.clone(), self.student_constant) +
                self.side(e_t, e_s, self.student_queue.clone(), self.teacher_constant))
        if self.training:
            with torch.no_grad():
                for queue, new in ((self.student_queue, e_s), (self.teacher_queue, e_t)):
                    new = new.detach() if processes is None else processes.gather(new.detach())
                    new = new[-len(queue):]                                  # more than fit: the latest stay
                    slots = (self.position + torch.arange(len(new), device=new.device)) % len(queue)
                    queue[slots] = new
                self.position.copy_((self.position + len(new)) % len(self.student_queue))
        return loss


def sample_tokens(special, count, generator, rows, batch):
    """`count` random non-special positions of each sequence, without repetition, drawn for the global batch.

    special: bool [b, L], True = [CLS], [SEP] or padding. Returns int [b, count]; ValueError if a text is shorter.
    """
    ordinary = (~special).sum(1)
    if int(ordinary.min()) < count:
        raise ValueError(f"CRD samples {count} tokens a sequence, but one has only {int(ordinary.min())} ordinary "
                         f"ones; lower --crd-tokens")
    draw = torch.rand(batch, special.shape[1], generator=generator)[rows]
    return draw.masked_fill(special, -1.0).topk(count, dim=1).indices


def ntxent_loss(student, teacher, temperature, rows=slice(None)):
    """The authors' loss in place of CRD: NT-Xent (Chen et al. 2020) over the batch, at each token position by itself.

    At position l, z = the 2B unit vectors [student_1l .. student_Bl, teacher_1l .. teacher_Bl], and i' is the other
    model's vector of i's sequence:

        mean over l and over i in 1..2B of -log( exp(z_i.z_i' / tau) / sum over j != i of exp(z_i.z_j / tau) )

    The rivals include vectors of the same model. Unrelated vectors score about log(2B - 1). The authors divide this
    mean by 2B once more, so that it weighs less the larger the batch. They loop over l; here it is a batch dimension.
    student, teacher: [B, L, H], the whole global batch, full blocks; rows: the sequences whose two anchors a position
    are counted. The means are global, so the sum over processes is the loss.
    """
    B, L, _ = student.shape
    z = F.normalize(torch.cat([student, teacher]).float(), dim=-1).transpose(0, 1)       # [L, 2B, H]
    each = torch.arange(2 * B, device=z.device)
    anchors = torch.cat([each[:B][rows], each[B:][rows]])                                # [2b]
    scores = z[:, anchors] @ z.transpose(1, 2) / temperature                             # [L, 2b, 2B]
    scores = scores.masked_fill(anchors[:, None] == each, -math.inf)                     # True = the anchor itself
    partner = ((anchors + B) % (2 * B)).expand(L, -1)                                    # [L, 2b]
    return F.cross_entropy(scores.flatten(0, 1), partner.flatten(), reduction="sum") / (2 * B * L)


def regression_loss(student, teacher, mask):
    """mean over real tokens of || unit(student) - unit(teacher) ||^2 = 2 - 2 cos (stands commented out in their code).

    student, teacher: [B, L, H]; mask: bool [B, L], True = real. It asks for the teacher's very coordinates.
    """
    distance = (F.normalize(student.float(), dim=-1) - F.normalize(teacher.float(), dim=-1)).pow(2).sum(-1)   # [B, L]
    return (distance * mask).sum() / mask.sum()


def soft_label_loss(student_logits, teacher_logits, temperature, count=None):
    """Soft labels (Hinton et al. 2015): tau^2 KL(p_teacher || p_student), p = softmax(logits / tau); mean over tokens.

    student_logits, teacher_logits: [N, V] of the MLM heads; count: what to divide by (None: N; with several processes
    all processes' N). Called at the masked positions only: elsewhere both models see the token they are asked for, and
    logits are the largest product of a step. The authors' code (in its history) took all positions at tau = 1
    and the mean over B x L x V times 1,000: 0.03 of this mean at their 30,522 words. An older variant of theirs asked a
    head of its own for the teacher's likeliest word at masked positions.
    """
    told, said = [F.log_softmax(logits.float() / temperature, dim=1) for logits in (teacher_logits, student_logits)]
    total = F.kl_div(said, told, reduction="sum", log_target=True)
    return temperature ** 2 * total / max(1, len(said) if count is None else count)


VOKEN_LABELS = ("nearest", "random", "shuffled", "reversed", "token")


def voken_labels(kind, tokens, vectors, bank, generator, rows, batch):
    """Vokens (Tan & Bansal 2020) with clips for images: what a classifier over a clip bank is to say at each token.

        nearest   argmax over clips c of t_l . v_c
        random    a clip by lot, anew each time the block comes
        shuffled  the block's nearest clips in another order, by lot
        reversed  the block's nearest clips from last to first
        token     no clip but the token itself

    tokens: int [b, L], unmasked blocks; vectors t: unit [b, L, Ht], the teacher's for them; bank v: unit [C, Ht] of its
    video encoder. Returns int [b, L], -100 at [CLS] and [SEP]; drawn for `batch` sequences of which these are `rows`.
    Their loss is cross-entropy over all real tokens, masked or not. Vokenization reads sentence by sentence; here the
    teacher reads the block whole: blocks, not sentences, are what its captions filled in training.
    """
    inner = tokens[:, 1:-1]                                                              # [b, L - 2]
    if kind == "token":
        labels = inner
    elif kind == "random":
        labels = torch.randint(len(bank), (batch, inner.shape[1]), generator=generator)[rows]
    else:   # one sequence at a time: a row of C scores for every token of a batch would be the step's largest tensor
        labels = torch.stack([(each @ bank.T).argmax(1) for each in vectors[:, 1:-1]])
    if kind == "shuffled":
        order = torch.rand(batch, inner.shape[1], generator=generator)[rows].argsort(1)
        labels = labels.gather(1, order.to(labels.device))
    if kind == "reversed":
        labels = labels.flip(1)
    return F.pad(labels, (1, 1), value=-100)


@torch.no_grad()
def bank_vectors(args, tokenizer, device, progress):
    """Unit vectors [C, Ht] of the clips of --bank by the teacher's video encoder; their features lie in --data.

    Made at every start rather than kept: it is the same each time. Raises ValueError if the teacher never trained its
    video encoder.
    """
    encoder, settings = model.load_video_encoder(Path(args.teacher) / "model" / "video_encoder.pt")
    if not settings["trained"]:
        raise ValueError(f"{args.teacher} is a text-only teacher: its video encoder is untrained, and gives no vokens")
    encoder.to(device).eval()
    clips = data.Clips(args.data, "train", settings["streams"], tokenizer, encoder.config.block,
                       settings["max_steps_clip"], settings["frames"])
    bank, vectors = data.read_bank(args.bank), []
    for low in tqdm(range(0, len(bank), 64), desc="bank", unit=" x 64 clips", disable=not progress):
        _, _, features, step_mask = data.bank_batch(bank[low:low + 64], clips, tokenizer)
        vectors.append(F.normalize(encoder(features.to(device), step_mask.to(device)), dim=-1))
    return torch.cat(vectors)


# ---------------------------------------------------------------------------------------------------------------------
# Settings

DEFAULTS = {
    # Sources: (a) the authors' scripts, (p) Tian et al., (o) ours.
    "mini": {
        "batch": 64, "steps": 1000, "epochs": None,                         # (o) what 100 s a core allow
        "lr": 1e-3, "warmup": 100, "weight_decay": 0.01, "dropout": 0.0,    # (o)
        "crd_queue": 1024, "crd_tokens": 8,                                 # (o) a quarter of the step's cost
        "nst_weight": 10.0, "precision": "auto",                            # (o) at 1 it pulls a 200th of CRD
        "log_every": 100, "valid_every": 600, "save_every": 300},
    "small": {
        "batch": 256, "steps": None, "epochs": 40,                          # (a) on Wiki103
        "lr": 2e-4, "warmup": 10000, "weight_decay": 0.01, "dropout": 0.1,  # (a)
        "crd_queue": 4096, "crd_tokens": 16,                                # (o) the paper's sampling is not known
        "nst_weight": 1.0, "precision": "auto",                             # (a) equal weights
        "log_every": 100, "valid_every": 5000, "save_every": 2000},         # (o)
    "base": {
        "batch": 256, "steps": 500000, "epochs": None,                      # (a) on Wikipedia; their baseline: 220,000
        "lr": 2e-4, "warmup": 5000, "weight_decay": 0.01, "dropout": 0.1,   # (a)
        "crd_queue": 4096, "crd_tokens": 16,                                # (o)
        "nst_weight": 1.0, "precision": "auto",                             # (a)
        "log_every": 100, "valid_every": 5000, "save_every": 2000},         # (o)
}
OBJECTIVES = ("none", "nst", "crd", "ntxent", "soft-label", "regression", "voken")
MEASURED = 8   # --gradient-ratio: the last steps of warm-up, over which gradient norms are averaged


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="runs/teacher", help="the teacher's run folder")
    parser.add_argument("--data", help="folder that `data.py video` wrote (default: the teacher's)")
    parser.add_argument("--text", help="folder that `data.py text` wrote (default: --data + /text)")
    parser.add_argument("--out", default="runs/student", help="run folder")
    parser.add_argument("--size", help="mini, small, base (default: the teacher's)")
    parser.add_argument("--init", help="start the student from this BERT folder in Hugging Face form")
    parser.add_argument("--objective", nargs="+", default=["nst", "crd"], help=f"any of: {', '.join(OBJECTIVES)}")
    for name in OBJECTIVES[1:]:
        parser.add_argument(f"--{name}-weight", type=float)
    parser.add_argument("--gradient-ratio", type=float, help="sets the weights: each objective's encoder gradient "
                        "becomes this times MLM's, in norm, measured at step 0 and, for good, at the end of warm-up")
    parser.add_argument("--crd-queue", type=int, help="negatives a side")
    parser.add_argument("--crd-tokens", type=int, help="anchors a sequence")
    parser.add_argument("--crd-temperature", type=float, default=0.07, help="(p)")
    parser.add_argument("--ntxent-temperature", type=float, default=1.0, help="(a)")
    parser.add_argument("--soft-label-temperature", type=float, default=1.0, help="(a); Tian et al.: 4")
    parser.add_argument("--bank", help="clip bank that `data.py bank` wrote, for voken (default: --data + /bank.json)")
    parser.add_argument("--voken-labels", choices=VOKEN_LABELS, default="nearest", help="all but nearest are ablations")
    parser.add_argument("--head", choices=["mlp", "none"], default="mlp", help="what stands between student and "
                        "objective (soft-label uses the MLM head, voken always has one of its own)")
    parser.add_argument("--batch", type=int, help="global batch, in blocks of text")
    parser.add_argument("--steps", type=int, help="optimiser steps; overrides --epochs")
    parser.add_argument("--epochs", type=float, help="passes over the text")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--warmup", type=int, help="steps")
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--clip", type=float, default=1.0, help="gradient norm limit")
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int)
    parser.add_argument("--valid-every", type=int)
    parser.add_argument("--dry-run", action="store_true", help="time three steps, print what the run would take, stop")
    parser.add_argument("--save-every", type=int)
    args = parser.parse_args(argv)
    recorded = Path(args.teacher) / "args.json"
    if args.size is None or args.text is None or "voken" in args.objective:
        told = data.read_json(recorded, "make teacher")["arguments"]
        args.size, args.data = args.size or told["size"], args.data or told["data"]
        args.text = args.text or str(Path(args.data) / "text")
        args.bank = args.bank or str(Path(args.data) / "bank.json")
    if args.size not in DEFAULTS:
        raise ValueError(f"unknown size {args.size!r}; known: {', '.join(DEFAULTS)}")
    unknown = [name for name in args.objective if name not in OBJECTIVES]
    if unknown:
        raise ValueError(f"unknown objective {', '.join(unknown)}; known: {', '.join(OBJECTIVES)}")
    args.objective = sorted(set(args.objective) - {"none"})
    ones = {f"{name.replace('-', '_')}_weight": 1.0 for name in OBJECTIVES[1:]}
    if args.gradient_ratio is not None:
        if args.gradient_ratio <= 0 or any(getattr(args, key) is not None for key in ones):
            raise ValueError(f"--gradient-ratio {args.gradient_ratio}: above 0, and it takes the place of the weights")
    for key, value in {**ones, **DEFAULTS[args.size]}.items():
        # of --steps and --epochs, the one that is given decides
        if getattr(args, key) is None and not {"steps": args.epochs, "epochs": args.steps}.get(key):
            setattr(args, key, value)
    return args


# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def validate(text, student, mlm_head, ids, device, limit=512):
    """MLM loss (nats a masked token) on up to `limit` held-out blocks with fixed masks."""
    student.eval(), mlm_head.eval()
    total, count = 0.0, 0
    for start in range(0, min(limit, len(text)), 64):
        tokens = text.batch(range(start, min(start + 64, limit, len(text))))
        inputs, labels = data.mask_tokens(tokens, data.special_mask(tokens, ids),
                                          data.torch_generator(0, "validation", start), ids["mask"],
                                          student.config.vocab_size)
        masked = int((labels != -100).sum())
        total += float(model.mlm_loss(mlm_head, student(inputs.to(device)), labels.to(device))) * masked
        count += masked
    return {"valid_mlm": total / max(1, count)}


def retrieval_maps(model_folder):
    """(how, text_map, video_map)"""
    kept = model.load_checkpoint(Path(model_folder) / "distill_heads.pt")
    if kept is None:
        return "mean of h against v", lambda hidden: hidden, lambda video: video
    config = model.BertConfig.from_dict(kept["student"])

    def part(name, module):
        state = {key[len(name) + 1:]: value for key, value in kept["weights"].items() if key.startswith(name + ".")}
        module.load_state_dict(state)
        return module.eval()

    def head(name, width):
        return part(name, torch.nn.Identity() if kept["head"] == "none" else model.DistillHead(config, width))

    def unit(vectors):
        return F.normalize(vectors.float(), dim=-1)
    if "crd" in kept["objective"]:
        before = head("crd_head", config.hidden_size)
        width = len(kept["weights"]["crd.student_embed.bias"])
        e_s = part("crd.student_embed", torch.nn.Linear(config.hidden_size, width))
        e_t = part("crd.teacher_embed", torch.nn.Linear(kept["teacher_width"], width))
        return "mean of e_s(token) against e_t(v)", lambda h: unit(e_s(before(h))), lambda v: unit(e_t(v))
    if "regression" in kept["objective"]:
        mapped = head("regression_head", kept["teacher_width"])
        return "mean of head(h) against v", lambda h: unit(mapped(h)), lambda v: v
    return "not defined", None, None


def main(argv=None):
    # --- setup
    args = parse_args(argv)
    processes = data.Processes(args.device)
    device, rank = processes.device, processes.rank
    precision, autocast_type = data.settle_precision(args.precision, device)
    run = Path(args.out)
    rows = processes.rows(args.batch)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")

    # --- data
    tokenizer = data.load_tokenizer(args.text)
    ids = data.special_ids(tokenizer)
    config = dataclasses.replace(model.SIZES[args.size], vocab_size=tokenizer.get_vocab_size(),
                                 hidden_dropout_prob=args.dropout, attention_probs_dropout_prob=args.dropout)
    train = data.TextBlocks(args.text, "train", tokenizer, config.block)
    valid = data.TextBlocks(args.text, "valid", tokenizer, config.block)
    steps = args.steps or max(1, round(args.epochs * len(train) / args.batch))
    if not args.dry_run:
        taught = Path(args.teacher) / "model" / "pytorch_model.bin"
        inputs = [data.file_hash(Path(args.text) / "train.json"),
                  data.file_hash(taught) if args.objective and taught.exists() else None]
        if args.init:
            inputs += [data.file_hash(path) for path in sorted(Path(args.init).glob("*.bin")) +
                       sorted(Path(args.init).glob("*.safetensors"))]
        if "voken" in args.objective:
            inputs += [data.file_hash(path) for path in (args.bank, taught.with_name("video_encoder.pt"))
                       if Path(path).exists()]   # a missing one is said where it is read
        data.open_run(run, {**vars(args), "inputs": inputs}, processes, precision)

    # --- models: student, its heads, frozen teacher
    if args.init:
        config, student, mlm_head = model.load_hf(args.init)
        if config.max_position_embeddings < train.inner + 2:
            raise ValueError(f"--init {args.init} has {config.max_position_embeddings} positions, blocks hold "
                             f"{train.inner + 2} tokens")
        config.block = train.inner + 2
        model.set_dropout(config, student, args.dropout)
        if data.tokenizer_hash(data.load_tokenizer(args.init)) != data.tokenizer_hash(tokenizer):
            raise ValueError(f"--init {args.init} splits text into other tokens than {args.text} was")
    else:
        student = model.Bert(config)
        mlm_head = model.MLMHead(config, student.tokens)
    heads = nn.ModuleDict()   # an MLP head an objective and, for CRD, the two embeddings; all trained with the student
    teacher = None
    if args.objective:
        teacher_config, teacher, teacher_mlm_head = model.load_hf(Path(args.teacher) / "model")
        if data.tokenizer_hash(data.load_tokenizer(Path(args.teacher) / "model")) != data.tokenizer_hash(tokenizer):
            raise ValueError(f"the teacher {args.teacher} and the text {args.text} have different vocabularies, or one "
                             f"is cased; run `python data.py text --vocab {args.teacher}/model/vocab.txt ...`")
        if config.block > teacher_config.block:
            raise ValueError(f"blocks of {config.block} tokens, but the teacher never saw a text longer than "
                             f"{teacher_config.block}: its later positions are untrained")
        for module in (teacher, teacher_mlm_head):
            module.to(device).eval().requires_grad_(False)
        Hs, Ht = config.hidden_size, teacher_config.hidden_size
        widths = {"nst": Hs, "crd": Hs, "ntxent": Ht, "regression": Ht}   # the last two compare like coordinates
        if "voken" in args.objective:
            bank = bank_vectors(args, tokenizer, device, processes.master)                # [C, Ht]
            widths["voken"] = config.vocab_size if args.voken_labels == "token" else len(bank)
        for name in [name for name in args.objective if name in widths]:
            bare = args.head == "none" and name != "voken"
            if bare and widths[name] != Hs:
                raise ValueError(f"--head none: {name} needs a student as wide as its teacher, not {Hs} against {Ht}")
            heads[name + "_head"] = nn.Identity() if bare else model.DistillHead(config, widths[name])
        if "crd" in args.objective:
            heads["crd"] = CRD(Hs, Ht, queue=args.crd_queue, temperature=args.crd_temperature)
    modules = [student, mlm_head, heads]
    for module in modules:
        module.to(device)

    # --- optimizer
    optimizer = model.optimizer_for(modules, args.lr, args.weight_decay)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    encoder_parameters = list(student.parameters())
    weights = {name: getattr(args, f"{name.replace('-', '_')}_weight") for name in args.objective}
    norms = {}   # of --gradient-ratio: sums of encoder-gradient norms, by loss

    # --- resume
    state, first_step = None if args.dry_run else model.load_checkpoint(run / "checkpoint.pt"), 0
    if state:
        first_step = state["step"]
        if first_step > steps:
            raise ValueError(f"{run}/checkpoint.pt is at step {first_step}, past the {steps} of this run: its data "
                             f"changed; choose another --out")
        student.load_state_dict(state["student"]), mlm_head.load_state_dict(state["mlm_head"])
        heads.load_state_dict(state["heads"]), optimizer.load_state_dict(state["optimizer"])
        weights, norms = state["weights"], state["norms"]
        if first_step == steps and (run / "model" / "distill_heads.pt").exists():
            if processes.master:
                print(f"{run}: complete after {steps} steps, nothing to do")
            return processes.close()
    if processes.master:
        queue = f"; CRD queues 2 x {heads['crd'].student_queue.nbytes / 2 ** 20:.1f} MB" if "crd" in heads else ""
        print(f"student {args.size}: {sum(p.numel() for p in encoder_parameters) / 1e6:.1f} M parameters; objective "
              f"{' + '.join(['mlm'] + args.objective)}; {len(train):,} blocks of {config.block}; batch {args.batch} = "
              f"{processes.world} x {args.batch // processes.world}; {steps} steps{queue}; {device.type}, {precision}; "
              f"from step {first_step}", flush=True)
    log = data.Log(run / "log.jsonl", processes.master and not args.dry_run, first_step)

    def make_batch(step):
        return train.batch(data.batch_indices(len(train), args.batch, args.seed, step)[rows])

    # --- loop: runs steps + 1 times, so that the last validation and save are the same lines as all others
    batches = data.prefetch(make_batch, first_step, max(steps, 4) if args.dry_run else steps)
    for step in range(first_step, (max(steps, 4) if args.dry_run else steps) + 1):
        last = step == steps
        if args.dry_run and step == 1:   # the first step also warms up
            started = time.time()
        if args.dry_run and step == 4:
            data.print_plan(processes, modules, (time.time() - started) / 3, steps)
            return processes.close()
        if processes.master and not args.dry_run and step > first_step and (step % args.valid_every == 0 or last):
            log(step, steps, **validate(valid, student, mlm_head, ids, device))
        if processes.master and not args.dry_run and step > first_step and (step % args.save_every == 0 or last):
            model.save_checkpoint(run / "checkpoint.pt", step=step, student=student.state_dict(),
                                  mlm_head=mlm_head.state_dict(), heads=heads.state_dict(),
                                  optimizer=optimizer.state_dict(), weights=weights, norms=norms)
        if last and not args.dry_run:
            break
        for group in optimizer.param_groups:
            group["lr"] = model.lr_at(step, args.lr, args.warmup, steps)
        for module in modules:
            module.train()
        data.seed_dropout(args.seed, step, rank)

        tokens = next(batches)
        special = data.special_mask(tokens, ids)   # True = [CLS], [SEP]
        inputs, labels = data.mask_tokens(tokens, special, data.torch_generator(args.seed, "mask", step), ids["mask"],
                                          config.vocab_size, rows=rows, batch=args.batch)
        label_count = int(processes.sum((labels != -100).sum().item()))
        inputs, labels, real = inputs.to(device), labels.to(device), (tokens != ids["pad"]).to(device)

        losses, chosen = {}, labels != -100   # True = masked
        with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
            hidden = student(inputs)                                                # [b, L, Hs]
            losses["mlm"] = model.mlm_loss(mlm_head, hidden, labels, label_count)
            with torch.no_grad():
                if set(args.objective) - {"voken"}:
                    seen = teacher(inputs)                                          # [b, L, Ht]
                    target = F.normalize(seen.float(), dim=-1)                      # unit vector a token
                if "voken" in args.objective:
                    clean = F.normalize(teacher(tokens.to(device)).float(), dim=-1)
            if "soft-label" in args.objective:
                losses["soft-label"] = soft_label_loss(mlm_head(hidden[chosen]), teacher_mlm_head(seen[chosen]),
                                                       args.soft_label_temperature, label_count)
            mapped = {name: heads[name + "_head"](hidden).float() for name in ("nst", "ntxent", "regression", "voken")
                      if name in args.objective}
        # the objectives themselves in fp32, outside autocast; equal rows a process, so a mean divides by the world
        if "nst" in args.objective:
            losses["nst"] = nst_loss(F.normalize(mapped["nst"], dim=-1), target, real) / processes.world
        if "crd" in args.objective:
            drawn = sample_tokens(special, args.crd_tokens, data.torch_generator(args.seed, "crd", step), rows,
                                  args.batch).to(device)                            # [b, crd_tokens]
            pick = lambda vectors: vectors.gather(1, drawn[:, :, None].expand(-1, -1, vectors.shape[2])).flatten(0, 1)
            losses["crd"] = heads["crd"](heads["crd_head"](pick(hidden).float()), pick(target), processes)
            losses["crd"] = losses["crd"] / processes.world
        if "ntxent" in args.objective:   # every process sees all sequences, and counts its own
            losses["ntxent"] = ntxent_loss(processes.gather(mapped["ntxent"]), processes.gather(target),
                                           args.ntxent_temperature, rows)
        if "regression" in args.objective:
            losses["regression"] = regression_loss(mapped["regression"], target, real) / processes.world
        if "voken" in args.objective:
            vokens = voken_labels(args.voken_labels, tokens, clean, bank,
                                  data.torch_generator(args.seed, "voken", step), rows, args.batch).to(device)
            losses["voken"] = F.cross_entropy(mapped["voken"].flatten(0, 1), vokens.flatten()) / processes.world

        # how hard each loss pulls on the encoder is logged; with --gradient-ratio it sets the weights
        logged = step % args.log_every == 0 or step + 1 == steps
        measured = args.gradient_ratio and (step == 0 or args.warmup - MEASURED <= step < args.warmup)
        pulls = {}
        if logged or measured:
            pulls = {name: model.gradient_norm(value, encoder_parameters, processes.sum)
                     for name, value in losses.items()}
        if measured:
            begun = {} if step in (0, args.warmup - MEASURED) else norms
            norms = {name: begun.get(name, 0.0) + pull for name, pull in pulls.items()}
            weights |= {name: args.gradient_ratio * norms["mlm"] / norms[name] for name in weights if norms[name] > 0}
        loss = losses["mlm"] + sum(weight * losses[name] for name, weight in weights.items())
        if not torch.isfinite(loss):
            parts = {name: value.item() for name, value in losses.items()}
            raise FloatingPointError(f"loss is {loss.item()} at step {step} ({parts}); the last good state is "
                                     f"{run / 'checkpoint.pt'}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, args.clip)
        if not torch.isfinite(norm):   # before the step, which would write it into every weight and the next checkpoint
            raise FloatingPointError(f"gradient norm is {norm.item()} at step {step}; the last good state is "
                                     f"{run / 'checkpoint.pt'}")
        optimizer.step()

        if logged:
            shown = {name: processes.sum(value.detach().clone()).item() for name, value in losses.items()}
            log(step + 1, steps, **shown, lr=optimizer.param_groups[0]["lr"], grad_norm=float(norm),
                **{f"{name}_grad": pull for name, pull in pulls.items()},
                **({f"{name}_weight": weight for name, weight in weights.items()} if args.gradient_ratio else {}))

    # --- last save
    if processes.master:
        model.save_hf(run / "model", config, student, mlm_head, tokenizer)
        model.save_checkpoint(run / "model" / "distill_heads.pt", weights=heads.cpu().state_dict(),
                              objective=args.objective, head=args.head, student=dataclasses.asdict(config),
                              teacher_width=teacher.config.hidden_size if teacher is not None else None,
                              crd={"queue": args.crd_queue, "temperature": args.crd_temperature},
                              voken={"bank": args.bank, "labels": args.voken_labels})
        if args.objective and (Path(args.teacher) / "model" / "video_encoder.pt").exists():
            if model.load_video_encoder(Path(args.teacher) / "model" / "video_encoder.pt")[1]["trained"]:
                import shutil
                shutil.copy(Path(args.teacher) / "model" / "video_encoder.pt", run / "model")
        print(f"{run}: complete after {steps} steps")

    # --- cleanup
    processes.close()


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError, FloatingPointError) as error:
        sys.exit(f"distill.py: {error}")
