"""NST and CRD against slow loops written from their equations.

    python -m pytest -q tests/test_distill.py
"""

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
