"""What lies behind the README's words on claims 4 and 6. A command, not a test:

    make claims CLAIMS=4        # worlds, their clip banks, their teachers
    python tests/why.py         # seconds a world

It prints, of each world's teacher on the plain text that students learn from:

    noun      of the clips nearest to an article's noun (distill.voken_labels, "nearest"): how many
              show that noun, and how many something of its colour, its size, ...
    others    the same of the clips nearest to the article's other words
    mlm       the teacher's MLM loss on held-out text (nats a masked token), and guessing by lot's

Articles are the blocks that name one filmed noun. A clip shows what its video's narration names
most often. Axes: N nouns, C clips, H width.
"""
import argparse
import math
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
import distill
import model

DEVICE = torch.device("cpu")
BLOCKS = 2048   # of training text


def agreement(world, folder, bank_file):
    """{"noun" or a property: bool [N, C]}: does clip c show noun n, or something alike in it?"""
    nouns = {noun: {**world["nouns"][noun], "noun": noun} for noun in world["nouns"]}
    spoken = data.read_json(folder / "caption.json", "python data.py mini")
    shown = []   # the noun of each clip
    for row in data.read_bank(bank_file):
        words = " ".join(spoken[row["video"]]["text"]).split()
        shown.append(Counter(word for word in words if word in nouns).most_common(1)[0][0])
    tables = {}
    for name in ["noun", *world["properties"]]:
        numbers = {}
        for noun in nouns.values():
            numbers.setdefault(noun[name], len(numbers))
        ours = torch.tensor([numbers[noun[name]] for noun in nouns.values()])        # [N]
        theirs = torch.tensor([numbers[nouns[noun][name]] for noun in shown])        # [C]
        tables[name] = ours[:, None] == theirs
    return tables


@torch.no_grad()
def nearest_clips(folder, run, bank_file):
    """A mini world's folder, a teacher's run, a clip bank -> how often the nearest clip agrees with
    the article's noun, {"noun": {name: share}, "others": {name: share}}."""
    world = data.read_json(folder / "world.json", "make claims CLAIMS=4")
    tokenizer = data.load_tokenizer(run / "model")
    config, teacher, _ = model.load_hf(run / "model")
    teacher.eval()
    text = data.TextBlocks(folder / "text", "train", tokenizer, config.block)
    bank = distill.bank_vectors(SimpleNamespace(teacher=run, data=folder, bank=bank_file),
                                tokenizer, DEVICE, False)                           # [C, H]
    groups = [properties["group"] for properties in world["nouns"].values()]
    row_of = {tokenizer.token_to_id(noun): row for row, noun in enumerate(world["nouns"])}
    tables = agreement(world, folder, bank_file)
    hits = {"noun": {name: [] for name in tables}, "others": {name: [] for name in tables}}
    for low in range(0, min(BLOCKS, len(text)), 64):
        tokens = text.batch(range(low, min(low + 64, len(text))))                   # [64, L]
        vectors = F.normalize(teacher(tokens), dim=-1)
        labels = distill.voken_labels("nearest", vectors, bank, None)
        for block, label in zip(tokens, labels):
            is_noun = torch.tensor([token in row_of for token in block.tolist()])
            rows = {row_of[token] for token in block[is_noun].tolist()}
            if len(rows) != 1 or groups[min(rows)] == "unfilmed":
                continue
            for place, chosen in (("noun", is_noun), ("others", ~is_noun & (label >= 0))):
                for name, table in tables.items():
                    hits[place][name].append(table[min(rows), label[chosen]])
    shares = {"noun": {}, "others": {}}
    for place, by_name in hits.items():
        for name, agrees in by_name.items():
            shares[place][name] = torch.cat(agrees).float().mean().item()
    return shares


@torch.no_grad()
def mlm_on_text(folder, run):
    """The teacher's MLM loss on held-out text, and that of guessing by lot, in nats."""
    tokenizer = data.load_tokenizer(run / "model")
    config, teacher, mlm_head = model.load_hf(run / "model")
    text = data.TextBlocks(folder / "text", "valid", tokenizer, config.block)
    loss = distill.validate(text, teacher, mlm_head, tokenizer, DEVICE)
    return loss, math.log(config.vocab_size)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(21, 29))
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"))
    args = parser.parse_args()
    print("nearest clips, % that agree with the article's noun in")
    names = ["noun", *data.PROPERTIES]
    print(f"{'world':14}" + "".join(f"{name:>8}" for name in names))
    for seed in args.seeds:
        folder = Path(f"data/mini-{seed}")
        run = args.runs / f"world-{seed}" / "teacher"
        for place, shares in nearest_clips(folder, run, folder / "bank.json").items():
            cells = [f"{100 * shares[name]:8.1f}" for name in names]
            print(f"{seed:<7}{place:<7}" + "".join(cells))
        mlm, by_lot = mlm_on_text(folder, run)
        print(f"{seed:<7}teacher's MLM on plain text {mlm:.2f} nats, by lot {by_lot:.2f}")


if __name__ == "__main__":
    model.command(main)
