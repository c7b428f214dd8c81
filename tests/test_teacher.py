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
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(B, L, H, generator=generator, dtype=torch.float64, requires_grad=True)
    video = torch.randn(B, H, generator=generator, dtype=torch.float64, requires_grad=True)
    lengths = [6, 4, 5, 2, 6]
    mask = torch.tensor([[position < length for position in range(L)] for length in lengths])
    mask[0, 2] = False   # a hole, as a special token in the middle makes
    return text, video, mask, torch.from_numpy(data.derangement(B, data.numpy_generator(1)))


def unit(vector):
    return vector / vector.norm()


def cosines(text, video):
    """scores[i][l][j] by loops."""
    return [[[unit(text[i, l]) @ unit(video[j]) for j in range(B)] for l in range(L)] for i in range(B)]


def slow_hinge(text, video, mask, negatives, margin):
    scores, first, second = cosines(text, video), [], []
    for i in range(B):
        n = int(negatives[i])
        for l in range(L):
            if mask[i, l]:
                first.append(torch.clamp(margin - scores[i][l][i] + scores[i][l][n], min=0))
                if mask[n, l]:
                    second.append(torch.clamp(margin - scores[i][l][i] + scores[n][l][i], min=0))
    return sum(first) / len(first) + sum(second) / len(second)


def slow_hinge_all(text, video, mask, margin):
    scores, first, second = cosines(text, video), [], []
    for i in range(B):
        for l in range(L):
            for j in range(B):
                if j != i and mask[i, l]:
                    first.append(torch.clamp(margin - scores[i][l][i] + scores[i][l][j], min=0))
                    if mask[j, l]:
                        second.append(torch.clamp(margin - scores[i][l][i] + scores[j][l][i], min=0))
    return sum(first) / len(first) + sum(second) / len(second)


def slow_nce_token(text, video, mask, temperature):
    scores, terms = cosines(text, video), []
    for i in range(B):
        for l in range(L):
            if mask[i, l]:
                row = [torch.exp(score / temperature) for score in scores[i][l]]
                terms.append(-torch.log(row[i] / sum(row)))
    return sum(terms) / len(terms)


def slow_nce_sentence(text, video, mask, temperature):
    means = [unit(sum(text[i, l] for l in range(L) if mask[i, l])) for i in range(B)]
    scores = [[torch.exp(means[i] @ unit(video[j]) / temperature) for j in range(B)] for i in range(B)]
    forth = [-torch.log(scores[i][i] / sum(scores[i])) for i in range(B)]
    back = [-torch.log(scores[i][i] / sum(scores[j][i] for j in range(B))) for i in range(B)]
    return (sum(forth) + sum(back)) / (2 * B)


LOSSES = {
    "hinge": (lambda t, v, m, n, **k: teacher.hinge_loss(t, v, m, n, 0.6, **k), lambda t, v, m, n: slow_hinge(t, v, m, n, 0.6)),
    "hinge-all": (lambda t, v, m, n, **k: teacher.hinge_all_loss(t, v, m, 0.6, **k), lambda t, v, m, n: slow_hinge_all(t, v, m, 0.6)),
    "nce-token": (lambda t, v, m, n, **k: teacher.nce_loss(t, v, m, 0.3, "token", **k), lambda t, v, m, n: slow_nce_token(t, v, m, 0.3)),
    "nce-sentence": (lambda t, v, m, n, **k: teacher.nce_loss(t, v, m, 0.3, "sentence", **k),
                     lambda t, v, m, n: slow_nce_sentence(t, v, m, 0.3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_loops(name, batch):
    text, video, mask, negatives = batch
    fast, slow = [form(text, video, mask, negatives) for form in LOSSES[name]]
    assert fast.item() == pytest.approx(slow.item(), rel=1e-10)
    for ours, theirs in zip(torch.autograd.grad(fast, (text, video)), torch.autograd.grad(slow, (text, video))):
        assert ours.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_of_two_processes_add_up(name, batch):
    form = LOSSES[name][0]
    parts = [form(*batch, rows=slice(0, 2)), form(*batch, rows=slice(2, B))]
    assert parts[0].item() > 0 and sum(parts).item() == pytest.approx(form(*batch).item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_padded_token_changes_nothing(name, batch):
    text, video, mask, negatives = batch
    moved = torch.where(mask[:, :, None], text, text + 7)
    form = LOSSES[name][0]
    assert form(moved, video, mask, negatives).item() == pytest.approx(form(text, video, mask, negatives).item(), rel=1e-12)


def test_collapse_values(batch):
    text, video, mask, negatives = batch
    same_text, same_video = torch.ones_like(text), torch.ones_like(video)
    assert teacher.hinge_loss(same_text, same_video, mask, negatives, 0.6).item() == pytest.approx(1.2)
    assert teacher.hinge_all_loss(same_text, same_video, mask, 0.6).item() == pytest.approx(1.2)
    for pool in ("token", "sentence"):
        assert teacher.nce_loss(same_text, same_video, mask, 0.3, pool).item() == pytest.approx(math.log(B))


def test_unknown_pool_is_named(batch):
    with pytest.raises(ValueError, match="known: token, sentence"):
        teacher.nce_loss(*batch[:3], 0.3, "word")
