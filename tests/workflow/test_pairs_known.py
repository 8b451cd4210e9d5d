"""What follows from a list of pairs, against a literal closure; objectives of known pairs, against those of labels."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_oracles import assert_same_value_and_gradient, draw

from modulewise import losses
from modulewise.errors import DataError, MethodError
from modulewise.workflow import Pairs, balanced, drawn_pairs, read_pairs

Y = torch.tensor([0, 1, 0, 2, 1, 0])
OBJECTIVES = sorted(losses.PAIRWISE_OBJECTIVES)
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
only_negatives = pytest.mark.parametrize("negatives_only", [False, True], ids=["all", "negatives"])


def of_labels(y):
    """What is known where all is: 1 within a class, -1 across."""
    return (2 * (y[:, None] == y[None, :]).int() - 1).to(torch.int8)


def listed(rows, samples):
    first, second, same = zip(*rows, strict=True)
    return Pairs(torch.tensor(first), torch.tensor(second), torch.tensor(same), samples)


def closure(rows, samples):
    """Everything that follows, by adding what two known pairs give until nothing is new; None where it contradicts."""
    known = {(i, i): True for i in range(samples)}
    for a, b, same in rows:
        for pair in ((a, b), (b, a)):
            if known.setdefault(pair, same) != same:
                return None
    while True:
        new = {}
        for (a, b), (c, d) in itertools.product(known, known):
            if b == c and (known[a, b] or known[c, d]):
                same = known[a, b] and known[c, d]
                if known.get((a, d), same) != same:
                    return None
                if (a, d) not in known:
                    new[a, d] = same
        if not new:
            return known
        known |= new


pair_lists = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=9)


@given(pair_lists)
@settings(max_examples=150, deadline=None, database=None)
def test_relations_are_the_transitive_closure_and_contradictions_are_refused(rows):
    """On every pair of six samples, and refused exactly where the closure contradicts itself."""
    known = closure(rows, 6)
    if known is None:
        with pytest.raises(DataError, match="contradicts"):
            listed(rows, 6)
        return
    expected = [[{None: 0, True: 1, False: -1}[known.get((i, j))] for j in range(6)] for i in range(6)]
    assert listed(rows, 6).relation(torch.arange(6)).tolist() == expected


def test_a_relation_follows_the_order_of_the_indices_and_repeats():
    pairs = listed([(0, 1, True), (1, 3, False)], 5)
    assert pairs.relation(torch.tensor([3, 0, 0, 4])).tolist() == [
        [1, -1, -1, 0],
        [-1, 1, 1, 0],
        [-1, 1, 1, 0],
        [0, 0, 0, 1],
    ]


def test_a_direct_contradiction_is_named():
    with pytest.raises(DataError) as caught:
        listed([(4, 2, True), (2, 4, False)], 5)
    assert str(caught.value) == (
        "pair 1 says that samples 2 and 4 are of two classes, which contradicts the pair of one class (2, 4); correct "
        "or remove one of these pairs"
    )


def test_a_contradiction_by_a_chain_is_named_with_the_shortest_chain():
    """The samples between are said, one line however long the chain is."""
    with pytest.raises(DataError) as caught:
        listed([(0, 1, True), (1, 2, True), (2, 3, True), (1, 3, True), (3, 0, False)], 5)
    assert "samples 3 and 0 are of two classes" in str(caught.value)
    assert "pairs of one class (3, 1), (1, 0);" in str(caught.value)
    long = [(i, i + 1, True) for i in range(30)]
    with pytest.raises(DataError, match=r"\(0, 1\), .*, \.\.\., \(29, 30\);") as caught:
        listed([*long, (0, 30, False)], 31)
    assert "\n" not in str(caught.value)


def test_a_sample_unlike_itself_is_refused():
    with pytest.raises(DataError, match=r"samples 1 and 1 are of two classes, .* like itself"):
        listed([(1, 1, False)], 3)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0], [5], [True]), "pair 0 is of samples 0 and 5, expected indices .* 0 to 4"),
        (([0, 1], [2, -1], [True, True]), "pair 1"),
        (([0], [1], [1]), "same .* bool"),
        (([0.0], [1.0], [True]), "int64"),
        (([0, 1], [1], [True]), "shapes"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, message):
    with pytest.raises(DataError, match=message):
        Pairs(*(torch.tensor(column) for column in columns), samples=5)


@every_objective
@only_negatives
def test_objectives_of_known_pairs_are_those_of_labels_where_all_pairs_are_known(name, negatives_only):
    """Values and gradients, bit for bit: full labels are the case in which nothing is unknown."""
    objective = losses.PAIRWISE_OBJECTIVES[name]
    options = {"minimum": -1.0, "maximum": 1.0, "negatives_only": negatives_only}
    made = []
    for y in (Y, of_labels(Y)):
        h = draw(6, 4).requires_grad_()
        value = objective(losses.TANH.gram(h), y, **options)
        value.backward()
        made.append((value.detach(), h.grad))
    assert torch.equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1], made[1][1])
    assert made[0][1].abs().max() > 0


def literal(name, gram, known, *, negatives_only):
    """A double loop over the pairs that are known, kernel values in [-1, 1]."""
    n = len(known)
    count = signed = positive = everything = cross = left = right = distance = 0.0
    power = {"srs-1": 1, "srs-2": 2, "nmse": 2}.get(name)
    for i, j in itertools.product(range(n), range(n)):
        diagonal = power is not None or name == "alignment"
        skipped = known[i, j] == 0 or (negatives_only and known[i, j] > 0) or (i == j and not diagonal)
        if skipped or (name == "upper-triangle-alignment" and j <= i):
            continue
        k, ideal = gram[i, j], float(known[i, j])
        count, signed = count + 1, signed + k * ideal
        everything = everything + k.exp()
        positive = positive + (k.exp() if ideal > 0 else 0.0)
        cross, left, right = cross + k * ideal, left + k**2, right + ideal**2
        distance = distance + ((ideal - k).abs() ** power if power else 0.0)
    if power:
        return -distance / count
    if name == "raw":
        return signed / count
    if "alignment" in name:
        return cross / (left**0.5 * right**0.5)
    share = -everything / count if negatives_only else positive / everything
    if name == "contrastive":
        return share
    return -(everything / count).log() if negatives_only else share.log()


@every_objective
@only_negatives
def test_objectives_of_some_pairs_are_the_formula_over_the_pairs_that_are_known(name, negatives_only):
    known = of_labels(Y)
    for i, j in ((0, 1), (0, 5), (2, 4), (3, 5)):
        known[i, j] = known[j, i] = 0
    objective = losses.PAIRWISE_OBJECTIVES[name]
    assert_same_value_and_gradient(
        lambda h: objective(losses.TANH.gram(h), known, minimum=-1.0, maximum=1.0, negatives_only=negatives_only),
        lambda h: literal(name, losses.TANH.gram(h), known, negatives_only=negatives_only),
        draw(6, 3),
    )


@every_objective
def test_a_batch_without_a_pair_of_two_classes_is_refused(name):
    """Unknown pairs are none of two classes; with them alone all samples may look the same."""
    known = torch.eye(4, dtype=torch.int8)
    known[0, 1] = known[1, 0] = 1
    with pytest.raises(MethodError, match="needs two or more"):
        losses.PAIRWISE_OBJECTIVES[name](torch.eye(4), known, minimum=0.0, maximum=1.0)


def test_a_matrix_that_is_not_int8_is_no_knowledge():
    """Labels of tokens (N, T) with T = N must not be taken for it."""
    with pytest.raises(MethodError, match="one integer class per sample"):
        losses.raw(torch.eye(4), torch.zeros(4, 4, dtype=torch.int64))


def test_drawn_pairs_say_what_the_labels_say():
    """Of two different samples each, all samples in reach, the same for a seed; generators stay where they are."""
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    pairs = drawn_pairs(Y, count=400, seed=3)
    assert torch.equal(torch.rand(2), expected)
    assert bool((pairs.first != pairs.second).all())
    assert torch.equal(pairs.same, Y[pairs.first] == Y[pairs.second])
    seen = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(seen) == 6 * 5
    assert torch.equal(pairs.first, drawn_pairs(Y, count=400, seed=3).first)
    assert not torch.equal(pairs.first, drawn_pairs(Y, count=400, seed=4).first)


def test_balanced_draws_hold_n_of_every_class_without_repetition():
    """Every sample can be drawn, and a seed gives the same."""
    y = torch.tensor([0] * 5 + [1] * 3 + [2] * 4)[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    seen = set()
    for seed in range(40):
        chosen = balanced(y, per_class=2, classes=3, seed=seed)
        assert torch.bincount(y[chosen]).tolist() == [2, 2, 2]
        assert len(set(chosen.tolist())) == 6
        seen |= set(chosen.tolist())
    assert seen == set(range(12))
    assert torch.equal(balanced(y, per_class=2, classes=3, seed=1), balanced(y, per_class=2, classes=3, seed=1))
    assert sorted(balanced(y, per_class=3, classes=3, seed=0)[3:6].tolist()) == (y == 1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("n", "message"), [(4, "class 1 has 3; expected 1 to 3"), (0, "0 examples")])
def test_more_examples_than_the_class_has_are_refused(n, message):
    y = torch.tensor([0] * 5 + [1] * 3 + [2] * 4)
    with pytest.raises(DataError, match=message):
        balanced(y, per_class=n, classes=3, seed=0)


def test_a_class_without_examples_is_refused():
    with pytest.raises(DataError, match="class 2 has 0"):
        balanced(torch.tensor([0, 1]), per_class=1, classes=3, seed=0)


class TestFiles:
    """pairs.parquet."""

    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def written(self, folder, **columns):
        self.parquet.write_table(self.arrow.table(columns), folder / "pairs.parquet")
        return folder / "pairs.parquet"

    def test_any_order_and_width_of_columns_is_read(self, tmp_path):
        indices = self.arrow.array([2, 3], self.arrow.int32())
        path = self.written(tmp_path, same=[True, False], note=["a", "b"], second=indices, first=[0, 1])
        pairs = read_pairs(path, samples=4)
        assert (pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist()) == ([0, 1], [2, 3], [True, False])

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"first": [0], "second": [1]}, "no column same among first, second"),
            ({"first": [0], "second": [1], "same": [None]}, "gaps"),
            ({"first": ["a"], "second": [1], "same": [True]}, "cannot be read as pairs"),
            ({"first": [0], "second": [9], "same": [True]}, "0 to 3"),
            ({"first": [0, 1], "second": [1, 0], "same": [True, False]}, "contradicts"),
        ],
    )
    def test_files_that_are_no_pairs_are_refused_in_one_line(self, tmp_path, columns, message):
        with pytest.raises(DataError, match=message) as caught:
            read_pairs(self.written(tmp_path, **columns), samples=4)
        assert "\n" not in str(caught.value)

    def test_a_missing_and_a_broken_file_are_refused(self, tmp_path):
        (tmp_path / "broken.parquet").write_text("no parquet")
        for name in ("broken.parquet", "missing.parquet"):
            with pytest.raises(DataError, match=f"{name} cannot be read as pairs"):
                read_pairs(tmp_path / name, samples=4)
