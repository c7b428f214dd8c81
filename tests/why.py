"""What lies behind the README's words on claims 4 and 6. A command, not a test:

    make claims SEEDS="11 12 13 14 15" CLAIMS=4                     # worlds, their clip banks, their teachers
    python tests/why.py --seeds 11 12 13 14 15                      # seconds a world

It prints, of each world's teacher on the plain text that students learn from:

    noun      of the clips nearest to an article's noun (distill.voken_labels, "nearest"), how many show that noun, and
              how many something with its colour, its size, ...
    others    the same of the clips nearest to the article's other words: they are compared with its noun, too
    mlm       the teacher's MLM loss on held-out text (nats a masked token), where guessing by lot costs log(vocabulary)

Articles are the blocks that name one filmed noun, once or more. A clip shows what its video's narration names most
often.
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


@torch.no_grad()
def nearest_clips(folder, run, bank_file, limit=2048):
    """Of a mini world's folder, a teacher's run and a clip bank: how often the nearest clip agrees with the article's
    noun in {"noun" or a property: share 0..1}, at the noun and at its other words; the teacher's MLM loss, nats; the
    loss by lot. `limit` blocks of training text are read. Raises FileNotFoundError naming the command that is missing.
    """
    world = data.read_json(folder / "world.json", "make claims CLAIMS=4")
    tokenizer = data.load_tokenizer(run / "model")
    config, teacher, mlm_head = model.load_hf(run / "model")
    teacher.eval()
    text = {split: data.TextBlocks(folder / "text", split, tokenizer, config.block) for split in ("train", "valid")}
    bank = distill.bank_vectors(SimpleNamespace(teacher=run, data=folder, bank=bank_file), tokenizer,
                                torch.device("cpu"), False)                                  # [C, H]
    spoken = data.read_json(folder / "caption.json", "python data.py mini")
    shown = [Counter(word for line in spoken[row["video"]]["text"] for word in line.split() if word in world["nouns"])
             .most_common(1)[0][0] for row in data.read_bank(bank_file)]
    nouns = list(world["nouns"])
    number = {tokenizer.token_to_id(noun): row for row, noun in enumerate(nouns)}   # token id -> row of `agree`
    filmed = {row for row, noun in enumerate(nouns) if world["nouns"][noun]["group"] != "unfilmed"}
    known = {"noun": {noun: noun for noun in nouns},
             **{name: {noun: world["nouns"][noun][name] for noun in nouns} for name in world["properties"]}}
    # does clip c show noun n; then: something with noun n's colour, ...                                 [N, C]
    agree = {name: torch.tensor([[of[noun] == of[other] for other in shown] for noun in nouns])
             for name, of in known.items()}

    found = {"noun": {name: [] for name in agree}, "others": {name: [] for name in agree}}
    for low in range(0, min(limit, len(text["train"])), 64):
        tokens = text["train"].batch(range(low, min(low + 64, len(text["train"]))))          # [64, L]
        vectors = F.normalize(teacher(tokens), dim=-1)
        labels = distill.voken_labels("nearest", tokens, vectors, bank, None, None, None)
        for row, label in zip(tokens, labels):
            here = torch.tensor([token in number for token in row.tolist()])                 # True = a noun
            named = set(row[here].tolist())
            if len(named) != 1 or number[min(named)] not in filmed:
                continue
            noun = number[named.pop()]
            for place, at in (("noun", here), ("others", ~here & (label >= 0))):
                for name, table in agree.items():
                    found[place][name].append(table[noun, label[at]])
    shares = {place: {name: torch.cat(hits).float().mean().item() for name, hits in parts.items()}
              for place, parts in found.items()}
    mlm = distill.validate(text["valid"], teacher, mlm_head, data.special_ids(tokenizer), torch.device("cpu"))
    return shares["noun"], shares["others"], mlm["valid_mlm"], math.log(config.vocab_size)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"), help="holds world-SEED/teacher")
    parser.add_argument("--data", default="data/mini-", help="folders of the worlds, without the seed")
    args = parser.parse_args()
    head = ["noun", *data.PROPERTIES]
    print("nearest clips, % that agree with the article's noun in\nworld         " + "".join(f"{n:>8}" for n in head))
    for seed in args.seeds:
        folder = Path(f"{args.data}{seed}")
        *places, mlm, lot = nearest_clips(folder, args.runs / f"world-{seed}" / "teacher", folder / "bank.json")
        for place, shares in zip(("noun", "others"), places):
            print(f"{seed:<7}{place:<7}" + "".join(f"{100 * shares[name]:8.1f}" for name in head))
        print(f"{seed:<7}teacher's MLM on plain text {mlm:.2f} nats, by lot {lot:.2f}")


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"why.py: {error}")
