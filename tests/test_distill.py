"""The distillation objectives against slow loops written from their equations.

    python -m pytest -q tests/test_distill.py
"""

import math

import pytest
import torch
import torch.nn.functional as F

import data
import distill


def slow_nst(student, teacher, mask):
    """mean k(s,s) + mean k(t,t) - 2 mean k(s,t) over pairs of neurons, k = (x.y)^2, one sequence and pair at a time."""
    total = 0
    for b in range(len(student)):
        kept = [l for l in range(mask.shape[1]) if mask[b, l]]
        neurons = []
        for hidden in (student, teacher):
            columns = [torch.stack([hidden[b, l, d] for l in kept]) for d in range(hidden.shape[2])]
            neurons.append([column / column.norm() for column in columns])
        mean = lambda xs, ys: sum((x @ y) ** 2 for x in xs for y in ys) / (len(xs) * len(ys))
        s, t = neurons
        total = total + mean(s, s) + mean(t, t) - 2 * mean(s, t)
    return total / len(student)


@pytest.mark.parametrize("teacher_width", [6, 9])
def test_nst_equals_the_pairwise_kernel_form(teacher_width):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 5, 6, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 5, teacher_width, generator=generator)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    fast, slow = distill.nst_loss(student, teacher, mask), slow_nst(student, teacher, mask)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5) and fast.item() > 1e-3
    ours, theirs = [torch.autograd.grad(loss, student)[0] for loss in (fast, slow)]
    assert theirs.abs().max() > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert ours[1, 3:].abs().max() == 0   # a pad pulls on nothing


def test_nst_is_blind_to_permuted_and_flipped_neurons():
    teacher = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(1))
    order, sign = torch.randperm(10), torch.randint(2, (10,)) * 2.0 - 1
    mask = torch.ones(2, 7, dtype=torch.bool)
    assert distill.nst_loss((teacher * sign)[:, :, order], teacher, mask).item() < 1e-10
    assert distill.nst_loss(torch.randn(2, 7, 10), teacher, mask).item() > 1e-4


def tian(anchor, positive, queue, temperature, mean, data_size, negatives):
    """Tian et al.'s loss of one side by loops: p = exp(s/T) / Z with Z = mean x n, Pn = 1 / n."""
    total = 0
    for a, p in zip(anchor, positive):
        z = mean * data_size
        right = torch.exp(a @ p / temperature) / z
        total = total - torch.log(right / (right + negatives / data_size))
        for q in queue:
            wrong = torch.exp(a @ q / temperature) / z
            total = total - torch.log((negatives / data_size) / (wrong + negatives / data_size))
    return total / len(anchor)


@pytest.mark.parametrize("data_size", [50, 1_000_000])
def test_crd_equals_tians_form(data_size):
    torch.manual_seed(0)
    crd = distill.CRD(6, 9, width=5, queue=7).double()
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 9, dtype=torch.float64)
    # float() inside casts to fp32 for training; the oracle is compared through the same embeddings
    e_s = F.normalize(crd.student_embed(student), dim=1)
    e_t = F.normalize(crd.teacher_embed(teacher), dim=1)
    queues = crd.student_queue.clone(), crd.teacher_queue.clone()
    sides = []
    for anchor, positive, queue in ((e_s, e_t, queues[1]), (e_t, e_s, queues[0])):
        scores = [torch.exp(a @ x / 0.07) for a, p in zip(anchor, positive) for x in [p, *queue]]
        sides.append(tian(anchor, positive, queue, 0.07, (sum(scores) / len(scores)).detach(), data_size, 7))
    slow = sum(sides)
    crd.float()
    student32 = student.detach().float().requires_grad_(True)
    fast = crd(student32, teacher.float())
    assert fast.item() == pytest.approx(slow.item(), rel=1e-4)
    ours, theirs = torch.autograd.grad(fast, student32)[0], torch.autograd.grad(slow, student)[0]
    assert theirs.abs().max() > 1e-2
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-3, atol=2e-4)


def test_crd_constant_is_settled_once_and_evaluation_changes_nothing():
    torch.manual_seed(1)
    crd = distill.CRD(4, 4, width=3, queue=6)
    student, teacher = torch.randn(2, 4), torch.randn(2, 4)
    crd(student, teacher)
    constants = crd.student_constant.clone(), crd.teacher_constant.clone()
    assert bool(crd.started) and all(constant != 0 for constant in constants)
    crd(torch.randn(2, 4), torch.randn(2, 4))
    assert crd.student_constant == constants[0] and crd.teacher_constant == constants[1]
    before = {key: value.clone() for key, value in crd.state_dict().items()}
    crd.eval()
    crd(torch.randn(2, 4), torch.randn(2, 4))
    assert all(torch.equal(before[key], value) for key, value in crd.state_dict().items())


def test_crd_queue_is_first_in_first_out_after_scoring():
    torch.manual_seed(2)
    crd = distill.CRD(4, 4, width=3, queue=5)
    start = crd.teacher_queue.clone()
    seen = []
    for _ in range(2):
        teacher = torch.randn(3, 4)
        seen.append(F.normalize(crd.teacher_embed(teacher), dim=1).detach())
        crd(torch.randn(3, 4), teacher)
    torch.testing.assert_close(crd.teacher_queue[3:], seen[1][:2])      # slots 3, 4, then round to 0
    torch.testing.assert_close(crd.teacher_queue[0], seen[1][2])
    torch.testing.assert_close(crd.teacher_queue[1:3], seen[0][1:])
    assert int(crd.position) == 1 and not torch.equal(start[3:], crd.teacher_queue[3:])
    many = torch.randn(12, 4)   # more than fit: the latest stay
    crd(torch.randn(12, 4), many)
    latest = F.normalize(crd.teacher_embed(many), dim=1)[-5:]
    assert all(any(torch.allclose(row, slot) for slot in crd.teacher_queue) for row in latest)


def test_both_embeddings_are_trained():
    crd = distill.CRD(4, 4, width=3, queue=5)
    crd(torch.randn(3, 4), torch.randn(3, 4)).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in crd.parameters())


def test_sample_tokens():
    special = torch.zeros(6, 10, dtype=torch.bool)
    special[:, [0, 9]] = True
    drawn = distill.sample_tokens(special, 5, data.torch_generator(1), slice(0, 6), 6)
    assert all(len(set(row.tolist())) == 5 and not {0, 9} & set(row.tolist()) for row in drawn)
    half = distill.sample_tokens(special[3:], 5, data.torch_generator(1), slice(3, 6), 6)
    assert torch.equal(half, drawn[3:])
    assert not torch.equal(drawn, distill.sample_tokens(special, 5, data.torch_generator(2), slice(0, 6), 6))
    with pytest.raises(ValueError, match="lower --crd-tokens"):
        distill.sample_tokens(special, 9, data.torch_generator(1), slice(0, 6), 6)


def slow_ntxent(student, teacher, temperature):
    """-log softmax of the partner among the 2B - 1 others, one position and one anchor at a time; mean over all."""
    B, L, _ = student.shape
    terms = []
    for l in range(L):
        z = [vector / vector.norm() for vector in [*student[:, l], *teacher[:, l]]]
        for i in range(2 * B):
            partner = i + B if i < B else i - B
            rivals = sum(torch.exp(z[i] @ z[j] / temperature) for j in range(2 * B) if j != i)
            terms.append(-torch.log(torch.exp(z[i] @ z[partner] / temperature) / rivals))
    return sum(terms) / len(terms)


def slow_regression(student, teacher, mask):
    """Squared distances of unit vectors, a token at a time."""
    tokens = [(student[b, l], teacher[b, l]) for b in range(len(student)) for l in range(mask.shape[1]) if mask[b, l]]
    terms = [sum((x / s.norm() - y / t.norm()) ** 2 for x, y in zip(s, t)) for s, t in tokens]
    return sum(terms) / len(terms)


def slow_soft_label(student, teacher, temperature):
    """tau^2 sum_v p log(p / q), a token at a time, without any log-softmax."""
    terms = []
    for s, t in zip(student, teacher):
        q, p = [torch.exp(logits / temperature) / torch.exp(logits / temperature).sum() for logits in (s, t)]
        terms.append(temperature ** 2 * sum(a * torch.log(a / b) for a, b in zip(p, q)))
    return sum(terms) / len(terms)


MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])


@pytest.mark.parametrize("fast, slow, shape", [
    (lambda s, t: distill.ntxent_loss(s, t, 0.5), lambda s, t: slow_ntxent(s, t, 0.5), (3, 5, 6)),
    (lambda s, t: distill.regression_loss(s, t, MASK), lambda s, t: slow_regression(s, t, MASK), (3, 5, 6)),
    (lambda s, t: distill.soft_label_loss(s, t, 2.0), lambda s, t: slow_soft_label(s, t, 2.0), (4, 9)),
], ids=["ntxent", "regression", "soft-label"])
def test_objective_equals_its_slow_loop(fast, slow, shape):
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, *shape, generator=generator).unbind()
    student.requires_grad_(True)
    fast, slow = fast(student, teacher), slow(student, teacher)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5) and fast.item() > 0.1
    ours, theirs = [torch.autograd.grad(loss, student)[0] for loss in (fast, slow)]
    assert theirs.abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_least_values_and_shares_of_the_objectives():
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 4, 5, 6, generator=generator)
    mask = torch.ones(4, 5, dtype=torch.bool)
    assert distill.regression_loss(3 * teacher, teacher, mask).item() < 1e-10
    assert distill.regression_loss(-teacher, teacher, mask).item() == pytest.approx(4)
    assert distill.soft_label_loss(teacher[0] + 7, teacher[0], 2.0).item() == pytest.approx(0, abs=1e-6)
    same = torch.ones(4, 5, 6)   # nothing tells partners from rivals
    assert distill.ntxent_loss(same, same, 1.0).item() == pytest.approx(math.log(7))
    # processes count their own sequences, and together the whole
    shares = [distill.ntxent_loss(student, teacher, 0.5, rows).item() for rows in (slice(0, 1), slice(1, 4))]
    assert sum(shares) == pytest.approx(distill.ntxent_loss(student, teacher, 0.5).item(), rel=1e-6)
    halves = [distill.soft_label_loss(student[0, some], teacher[0, some], 2.0, 5).item()
              for some in ([0, 1], [2, 3, 4])]
    assert sum(halves) == pytest.approx(distill.soft_label_loss(student[0], teacher[0], 2.0).item(), rel=1e-6)
    assert distill.soft_label_loss(student[0, :0], teacher[0, :0], 2.0).item() == 0   # chance masked nothing


def labels_of(kind, rows=slice(0, 4), step=0):
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(9, 50, (4, 12), generator=generator)
    vectors, bank = [F.normalize(torch.randn(*shape, generator=generator), dim=-1) for shape in ((4, 12, 6), (7, 6))]
    lot = data.torch_generator(0, "voken", step)
    labels = distill.voken_labels(kind, tokens[rows], vectors[rows], bank, lot, rows, 4)
    return labels, tokens[rows], vectors[rows], bank


@pytest.mark.parametrize("kind", distill.VOKEN_LABELS)
def test_voken_labels(kind):
    labels, tokens, vectors, bank = labels_of(kind)
    assert (labels[:, [0, -1]] == -100).all()
    nearest = [[max(range(7), key=lambda c: float(vectors[b, l] @ bank[c])) for l in range(1, 11)] for b in range(4)]
    assert len({tuple(row) for row in nearest}) == 4 and all(len(set(row)) > 2 for row in nearest)
    found = labels[:, 1:-1].tolist()
    if kind == "nearest":
        assert found == nearest
    if kind == "reversed":
        assert found == [row[::-1] for row in nearest]
    if kind == "token":
        assert found == tokens[:, 1:-1].tolist()
    if kind == "shuffled":   # within each block
        assert found != nearest and [sorted(row) for row in found] == [sorted(row) for row in nearest]
    if kind == "random":
        assert set(sum(found, [])) == set(range(7))
    assert torch.equal(labels_of(kind, slice(2, 4))[0], labels[2:])   # whatever process takes a sequence
    assert torch.equal(labels_of(kind, step=1)[0], labels) == (kind not in ("random", "shuffled"))
