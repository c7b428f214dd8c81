"""The contrastive losses against slow loops written from their equations.

    python -m pytest -q tests/test_teacher.py
"""
import math

import pytest
import torch

import data
import teacher

B, L, H = 5, 6, 8


@pytest.fixture
def batch():
    """text [B, L, H], video [B, H], mask [B, L] (True = takes part), negatives [B]."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(B, L, H, generator=generator, dtype=torch.float64, requires_grad=True)
    video = torch.randn(B, H, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(L) < torch.tensor([6, 4, 5, 2, 6])[:, None]
    mask[0, 2] = False   # a hole, as a special token in the middle makes
    return text, video, mask, torch.from_numpy(data.derangement(B, data.numpy_generator(1)))


def unit(vector):
    return vector / vector.norm()


def cosine(text, video, i, l, j):
    return unit(text[i, l]) @ unit(video[j])


def mean(terms):
    return sum(terms) / len(terms)


def slow_hinge(text, video, mask, pairs, margin):
    """pairs: (i, its rival)."""
    first = []
    second = []
    for i, rival in pairs:
        for l in range(L):
            if mask[i, l]:
                own = cosine(text, video, i, l, i)
                first.append(torch.relu(margin - own + cosine(text, video, i, l, rival)))
                if mask[rival, l]:
                    second.append(torch.relu(margin - own + cosine(text, video, rival, l, i)))
    return mean(first) + mean(second)


def slow_nce_token(text, video, mask, temperature):
    terms = []
    for i in range(B):
        for l in range(L):
            if mask[i, l]:
                row = [torch.exp(cosine(text, video, i, l, j) / temperature) for j in range(B)]
                terms.append(-torch.log(row[i] / sum(row)))
    return mean(terms)


def slow_nce_sentence(text, video, mask, temperature):
    means = [unit(sum(text[i, l] for l in range(L) if mask[i, l])) for i in range(B)]
    terms = []
    for i in range(B):
        row = [torch.exp(means[i] @ unit(video[j]) / temperature) for j in range(B)]
        column = [torch.exp(means[j] @ unit(video[i]) / temperature) for j in range(B)]
        terms.append(-torch.log(row[i] / sum(row)))
        terms.append(-torch.log(column[i] / sum(column)))
    return mean(terms)


def fast(name, text, video, mask, negatives, rows=slice(None)):
    flags = ["--contrastive", name.split("-token")[0].split("-sentence")[0], "--margin", "0.6",
             "--temperature", "0.3", "--pool", "sentence" if "sentence" in name else "token"]
    return teacher.contrastive_loss(teacher.parse_args(flags), text, video, mask, negatives, rows)


def slow(name, text, video, mask, negatives):
    if name == "hinge":
        return slow_hinge(text, video, mask, list(enumerate(negatives.tolist())), 0.6)
    if name == "hinge-all":
        pairs = [divmod(place, B) for place in range(B * B) if place % (B + 1)]
        return slow_hinge(text, video, mask, pairs, 0.6)
    if name == "nce-token":
        return slow_nce_token(text, video, mask, 0.3)
    return slow_nce_sentence(text, video, mask, 0.3)


LOSSES = ("hinge", "hinge-all", "nce-token", "nce-sentence")


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_loops(name, batch):
    ours = fast(name, *batch)
    expected = slow(name, *batch)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-10)
    gradients = torch.autograd.grad(ours, batch[:2])
    for one, other in zip(gradients, torch.autograd.grad(expected, batch[:2])):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_of_two_processes_add_up(name, batch):
    first = fast(name, *batch, rows=slice(0, 2)).item()
    second = fast(name, *batch, rows=slice(2, B)).item()
    assert first > 0
    assert first + second == pytest.approx(fast(name, *batch).item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_padded_token_changes_nothing(name, batch):
    text, *rest = batch
    moved = torch.where(batch[2][:, :, None], text, text + 7)
    assert fast(name, moved, *rest).item() == pytest.approx(fast(name, *batch).item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_collapse_values(name, batch):
    text, video, mask, negatives = batch
    loss = fast(name, torch.ones_like(text), torch.ones_like(video), mask, negatives)
    assert loss.item() == pytest.approx(1.2 if "hinge" in name else math.log(B))
    flags = ["--contrastive", name.split("-")[0], "--margin", "0.6", "--batch", str(B)]
    assert loss.item() == pytest.approx(teacher.collapse_value(teacher.parse_args(flags)))
