"""Every score against its formula written out in float64, or against scikit-learn and scipy where they have it."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from score_cases import by_class, clusters, mean, probabilities
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier

from modulewise import losses, methods, scores
from modulewise.objective import Context, Site
from modulewise.partition import Boundary
from modulewise.scores.discriminant import discriminant_logits

SEEDS = range(3)


def close(a, b, tolerance=1e-9):
    assert math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance), (a, b)


def relu_kernel(u, v):
    u, v = [max(a, 0.0) for a in u], [max(a, 0.0) for a in v]
    norm = math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))
    return sum(a * b for a, b in zip(u, v, strict=True)) / norm if norm else 0.0


def literal_proxy(name, x, y):
    rows, n = x.tolist(), len(y)
    k = [[relu_kernel(u, v) for v in rows] for u in rows]
    same = [[int(a) == int(b) for b in y] for a in y]
    every = [(i, j) for i in range(n) for j in range(n)]
    apart = [(i, j) for i, j in every if i != j]
    upper = [(i, j) for i, j in every if i < j]
    if name in ("alignment", "upper-triangle-alignment"):
        pairs = every if name == "alignment" else upper
        top = sum(k[i][j] * same[i][j] for i, j in pairs)
        return top / math.sqrt(sum(k[i][j] ** 2 for i, j in pairs) * sum(same[i][j] for i, j in pairs))
    if name == "nmse":
        return -sum((same[i][j] - k[i][j]) ** 2 for i, j in every) / n**2
    if name == "srs-1":
        return -sum(abs(same[i][j] - k[i][j]) for i, j in every) / n**2
    if name == "raw":
        return sum(k[i][j] * (1 if same[i][j] else -1) for i, j in apart) / len(apart)
    share = sum(math.exp(k[i][j]) for i, j in apart if same[i][j]) / sum(math.exp(k[i][j]) for i, j in apart)
    return share if name == "contrastive" else math.log(share)


@pytest.mark.parametrize(
    "name", ["alignment", "upper-triangle-alignment", "contrastive", "log-contrastive", "nmse", "srs-1", "raw"]
)
def test_proxies_are_their_sums_over_pairs(name):
    for seed in SEEDS:
        x, y = clusters(seed=seed)
        close(scores.SCORES[name](x, y), literal_proxy(name, x, y))


def test_a_proxy_score_is_minus_the_loss_that_the_method_minimises():
    """The part's own objective and the score of its features are one number."""
    x, y = clusters(seed=4)
    site = Site(0, 2, None, Boundary("fc", (24, 5)), loss=losses.classification)
    context = Context(h_in=None, h_out=x, x=None, y=y, views=1, part=0, step=0)
    for objective, score in ((losses.alignment, scores.Alignment()), (losses.nmse, scores.NMSE())):
        loss = methods.KernelProxy(maximise=objective).objective(site)(context).loss
        close(score(x, y), -float(loss), 1e-12)


def test_h_score_is_the_trace_of_two_covariances():
    """Plain with a pseudo-inverse, shrunk with scikit-learn's Ledoit-Wolf covariance; numpy's covariances otherwise."""
    for seed in SEEDS:
        x, y = clusters(seed=seed)
        rows = x.numpy()
        means = np.array([mean(group) for group in by_class(x, y)])[y.numpy()]
        between = np.cov(means.T, bias=True)
        close(scores.h_score(x, y, shrunk=False), np.trace(np.linalg.pinv(np.cov(rows.T, bias=True)) @ between))
        fitted = LedoitWolf().fit(rows)
        assert 0 < fitted.shrinkage_ < 1
        close(scores.h_score(x, y), (1 - fitted.shrinkage_) * np.trace(np.linalg.inv(fitted.covariance_) @ between))


def test_plain_h_score_of_features_that_are_the_labels_is_classes_less_one():
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    close(scores.h_score(torch.eye(3).double()[y], y, shrunk=False), 2.0)


def test_nce_is_minus_the_conditional_entropy_of_counts():
    for seed in SEEDS:
        theta, (_, y) = probabilities(seed=seed), clusters(seed=seed)
        z = [max(range(4), key=row.__getitem__) for row in theta.tolist()]
        pairs = list(zip(y.tolist(), z, strict=True))
        literal = sum(math.log(pairs.count((a, b)) / z.count(b)) for a, b in pairs) / len(pairs)
        close(scores.nce(theta, y), literal)


def literal_leep(theta, y, *, log=True):
    n, z_count, classes = len(y), theta.shape[1], int(y.max()) + 1
    rows, labels = theta.tolist(), y.tolist()
    joint = [[sum(rows[i][z] for i in range(n) if labels[i] == c) / n for z in range(z_count)] for c in range(classes)]
    marginal = [sum(joint[c][z] for c in range(classes)) for z in range(z_count)]
    predicted = [
        sum(joint[labels[i]][z] / marginal[z] * rows[i][z] for z in range(z_count) if marginal[z]) for i in range(n)
    ]
    return sum(math.log(p) if log else p for p in predicted) / n


def test_leep_is_the_mean_logarithm_not_the_mean():
    """Some public code leaves the log out: that is another number, and not the one given here."""
    for seed in SEEDS:
        theta, (_, y) = probabilities(seed=seed), clusters(seed=seed)
        close(scores.leep(theta, y), literal_leep(theta, y))
        assert abs(scores.leep(theta, y) - literal_leep(theta, y, log=False)) > 0.5
        assert scores.leep(theta, y) < 0


def test_leep_of_certain_sources_is_nce():
    theta = torch.eye(4).double()[probabilities().argmax(1)]
    _, y = clusters()
    close(scores.leep(theta, y), scores.nce(theta, y))


def test_a_source_class_that_never_occurs_changes_nothing():
    theta, (_, y) = probabilities(), clusters()
    wider = torch.cat([theta, torch.zeros(24, 1, dtype=torch.float64)], 1)
    close(scores.leep(wider, y), scores.leep(theta, y))


def test_n_leep_is_leep_of_the_mixture_with_the_logarithm():
    """The posterior is scikit-learn's mixture on numpy's principal components of 80 % of the variance."""
    x, y = clusters(samples=60, seed=1, apart=4.0)
    rows = (x / x.std(correction=0)).numpy()
    rows = rows - rows.mean(0)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    count = int(np.searchsorted(np.cumsum(singular**2) / (singular**2).sum(), 0.8) + 1)
    reduced = left[:, :count] * singular[:count]
    log_density = GaussianMixture(6, random_state=0).fit(reduced).predict_proba(reduced)
    theta = torch.from_numpy(log_density)
    value = scores.NLEEP(ratio=2)(x, y)
    close(value, literal_leep(theta, y), 1e-6)
    assert abs(value - literal_leep(theta, y, log=False)) > 0.1


def test_log_evidence_is_that_of_a_normal_distribution():
    """log N(y; 0, F F^T / alpha + I / beta), by scipy, at the precisions found; also with D above N."""
    for samples, features in ((24, 5), (12, 30)):
        x, _ = clusters(samples=samples, features=features)
        targets = clusters(samples=samples, features=2, seed=9)[0]
        found = scores.log_evidence(x, targets)
        for k in range(2):
            alpha, beta = float(found.alpha[k]), float(found.beta[k])
            covariance = (x @ x.T / alpha + torch.eye(samples).double() / beta).numpy()
            literal = stats.multivariate_normal(np.zeros(samples), covariance).logpdf(targets[:, k].numpy())
            close(float(found.log_evidence[k]), literal / samples, 1e-6)


def test_logme_ends_at_its_fixed_point_which_is_a_maximum():
    """alpha = gamma / ||m||^2, beta = (N - gamma) / ||F m - y||^2, with dense inverses; and no neighbour is better."""
    x, y = clusters(seed=2)
    targets = torch.nn.functional.one_hot(y).double()
    found = scores.log_evidence(x, targets)
    for k in range(3):
        alpha, beta, t = float(found.alpha[k]), float(found.beta[k]), targets[:, k]
        a = alpha * torch.eye(5).double() + beta * x.T @ x
        m = beta * torch.linalg.solve(a, x.T @ t)
        gamma = float(beta * (torch.linalg.inv(a) @ x.T @ x).trace())
        close(alpha, gamma / float(m @ m), 1e-6)
        close(beta, (24 - gamma) / float((x @ m - t).square().sum()), 1e-6)

        def density(alpha, beta, t=t):
            covariance = x @ x.T / alpha + torch.eye(24).double() / beta
            return stats.multivariate_normal(np.zeros(24), covariance.numpy()).logpdf(t.numpy())

        best = density(alpha, beta)
        for one, other in itertools.product((0.8, 1.0, 1.25), repeat=2):
            assert density(alpha * one, beta * other) <= best + 1e-9
    close(scores.LogME()(x, y), float(found.log_evidence.mean()))


def test_transrate_is_the_difference_of_log_determinants():
    for seed in SEEDS:
        x, y = clusters(seed=seed)
        centred = x.numpy() - x.numpy().mean(0)

        def rate(rows, epsilon):
            return 0.5 * np.log(np.linalg.det(np.eye(5) + rows.T @ rows / (len(rows) * epsilon)))

        own = [centred[y.numpy() == c] for c in range(3)]
        literal = rate(centred, 0.01) - sum(len(group) / 24 * rate(group, 0.01) for group in own)
        close(scores.trans_rate(x, y, epsilon=0.01), literal)
        size = math.sqrt((centred**2).sum() / 24)
        close(scores.trans_rate(x, y, epsilon=0.01, scaled=True), scores.trans_rate(x / size, y, epsilon=0.01))


def test_coding_rate_is_the_same_from_either_side():
    """With more features than samples the smaller Gram matrix is taken."""
    x, _ = clusters(samples=8, features=20)
    literal = 0.5 * np.linalg.slogdet(np.eye(20) + (x.T @ x / (8 * 0.1)).numpy())[1]
    close(scores.coding_rate(x, epsilon=0.1), literal)


def test_parc_is_spearman_of_distances_between_pairs():
    """scipy's rank correlation of numpy's correlations, one pair at a time."""
    for seed in SEEDS:
        x, y = clusters(seed=seed)
        onehot = np.eye(3)[y.numpy()]
        pairs = list(itertools.combinations(range(24), 2))
        features = [1 - np.corrcoef(x[i].numpy(), x[j].numpy())[0, 1] for i, j in pairs]
        labels = [round(1 - np.corrcoef(onehot[i], onehot[j])[0, 1], 9) for i, j in pairs]
        close(scores.parc(x, y), stats.spearmanr(features, labels).statistic)


def test_cka_is_the_normalised_dependence_of_gram_matrices():
    for samples, features in ((24, 5), (10, 30)):
        x, y = clusters(samples=samples, features=features)
        onehot = torch.nn.functional.one_hot(y).double()
        close(scores.cka(x, y), float(losses.normalized_hsic(x @ x.T, onehot @ onehot.T)))


def test_discriminant_probabilities_are_those_of_scikit_learn():
    for shrinkage in (0.0, 0.3, 1.0):
        x, y = clusters(seed=5)
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x.numpy(), y.numpy())
        ours = discriminant_logits(x, y, shrinkage=shrinkage).softmax(1)
        assert np.allclose(ours.numpy(), theirs.predict_proba(x.numpy()), atol=1e-9)


def literal_sfda(x, y, *, log=True):
    rows, n, classes = x.numpy(), len(y), int(y.max()) + 1
    labels = y.numpy()
    within = sum((labels == c).mean() * np.cov(rows[labels == c].T, bias=True) for c in range(classes))
    shrinkage = max(math.exp(-5 * np.linalg.eigvalsh(within).max()), 1e-10)
    fit = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    p = fit.fit(rows, labels).predict_proba(rows)
    soft = np.exp(p) / np.exp(p).sum(1, keepdims=True)
    means = np.array([rows[labels == c].mean(0) for c in range(classes)])
    mixed = np.empty_like(rows)
    for i in range(n):
        other = np.mean([means[c] for c in range(classes) if c != labels[i]], axis=0)
        q = soft[i, labels[i]]
        mixed[i] = q * rows[i] + (1 - q) * other
    final = fit.fit(mixed, labels).predict_proba(mixed)[np.arange(n), labels]
    return np.log(final).mean() if log else final.mean()


def test_sfda_is_refitted_discriminant_analysis_with_the_logarithm():
    """The authors' code takes the mean of p and edits the features; the paper has log p, and features stay."""
    for seed in SEEDS:
        x, y = clusters(seed=seed, apart=2.0)
        x = 0.4 * x  # so that the shrinkage, exp(-5 s), is not at its floor
        kept = x.clone()
        value = scores.sfda(x, y)
        assert torch.equal(x, kept)
        close(value, literal_sfda(x, y), 1e-7)
        assert abs(value - literal_sfda(x, y, log=False)) > 0.1
        assert scores.sfda_shrinkage(x, y) > 1e-3


def literal_bhattacharyya(mu, nu, v, w):
    s, t = np.diag(v), np.diag(w)
    m = (s + t) / 2
    apart = (mu - nu) @ np.linalg.inv(m) @ (mu - nu) / 8
    return apart + 0.5 * np.log(np.linalg.det(m) / math.sqrt(np.linalg.det(s) * np.linalg.det(t)))


@pytest.mark.parametrize("spread", scores.Spread)
def test_gbc_is_the_overlap_of_gaussians(spread):
    """Distances with full covariance matrices and determinants, on all principal components and on the first two."""
    for seed in SEEDS:
        x, y = clusters(seed=seed)
        for components in (64, 2):
            centred = x.numpy() - x.numpy().mean(0)
            z = centred @ np.linalg.svd(centred, full_matrices=False)[2][:components].T
            own = [z[y.numpy() == c] for c in range(3)]
            spreads = [group.var(0) for group in own]
            if spread is scores.Spread.SPHERICAL:
                spreads = [np.full_like(v, v.mean()) for v in spreads]
            spreads = [np.maximum(v, 1e-4) for v in spreads]
            literal = -sum(
                math.exp(-literal_bhattacharyya(own[i].mean(0), own[j].mean(0), spreads[i], spreads[j]))
                for i, j in itertools.permutations(range(3), 2)
            )
            close(scores.gbc(x, y, spread=spread, components=components), literal, 1e-8)


def test_ncti_terms_are_those_of_scikit_learns_discriminant_analysis():
    """Posterior and discriminant space by the eigenvalue solver; nuclear norms by numpy."""
    for seed, scale in ((0, 0.2), (1, 0.3), (2, 5.0)):
        x, y = clusters(seed=seed)
        x = scale * x
        rows, labels = x.numpy(), y.numpy()
        shrinkage = max(math.exp(-rows.var(0).sum()), 1e-10)
        shrinkage = 0.0 if shrinkage == 1e-10 else shrinkage
        fit = LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage).fit(rows, labels)
        p = fit.predict_proba(rows)
        terms = scores.collapse_terms(x, y)
        close(terms.centre, p[np.arange(24), labels].mean(), 1e-7)
        close(terms.variability, sum(np.linalg.norm(p[labels == c], "nuc") for c in range(3)), 1e-7)
        # The leading directions of S_B v = l S_W v with v^T S_W v = 1; scikit-learn's where it shrinks nothing.
        own = [rows[labels == c] for c in range(3)]
        within = sum(len(group) / 24 * np.cov(group.T, bias=True) for group in own)
        shrunk = (1 - shrinkage) * within + shrinkage * np.trace(within) / 5 * np.eye(5)
        apart = [group.mean(0) - rows.mean(0) for group in own]
        between = sum(len(group) / 24 * np.outer(d, d) for group, d in zip(own, apart, strict=True))
        space = (rows - rows.mean(0)) @ linalg.eigh(between, shrunk)[1][:, -2:]
        close(terms.geometry, np.linalg.norm(space, "nuc"), 1e-6)
        if not shrinkage:
            theirs = fit.transform(rows)
            close(terms.geometry, np.linalg.norm(theirs - theirs.mean(0), "nuc"), 1e-6)
        literal = math.log(terms.geometry) + math.log(terms.centre) - math.log(terms.variability)
        close(scores.NCTI()(x, y), literal)


def test_ncti_among_normalises_every_term_over_the_parts():
    terms = [
        scores.CollapseTerms(1.0, 0.5, 8.0),
        scores.CollapseTerms(3.0, 0.6, 4.0),
        scores.CollapseTerms(2.0, 1.0, 2.0),
    ]
    middle = (math.log(4.0) - math.log(2.0)) / (math.log(8.0) - math.log(2.0))
    expected = [0 + 0 - 1, 1 + 0.2 - middle, 0.5 + 1 - 0]
    for value, literal in zip(scores.ncti_among(terms), expected, strict=True):
        close(value, literal)


def test_the_linear_probe_is_ridge_fitted_without_each_sample():
    """One fit of scikit-learn's a sample: same accuracy, and at a penalty where it is not perfect."""
    for samples, features, apart in ((40, 5, 0.7), (20, 30, 0.2)):
        x, y = clusters(samples=samples, features=features, seed=3, apart=apart)
        penalty = 0.1
        alpha = penalty * float((x - x.mean(0)).square().sum()) / features
        onehot = np.eye(3)[y.numpy()]
        right = 0
        for i in range(samples):
            rest = [j for j in range(samples) if j != i]
            fit = Ridge(alpha=alpha).fit(x[rest].numpy(), onehot[rest])
            right += int(fit.predict(x[i : i + 1].numpy()).argmax()) == int(y[i])
        assert 0.1 < right / samples < 1
        close(scores.linear_probe(x, y, penalty=penalty), right / samples)


def test_neighbours_vote_as_in_scikit_learn():
    """Two classes and odd k, so that there are no ties; every sample is left out of its own vote."""
    for k in (1, 3, 5):
        x, y = clusters(samples=30, classes=2, seed=k, apart=0.7)
        right = 0
        for i in range(30):
            rest = [j for j in range(30) if j != i]
            fit = KNeighborsClassifier(k).fit(x[rest].numpy(), y[rest].numpy())
            right += int(fit.predict(x[i : i + 1].numpy())[0]) == int(y[i])
        close(scores.nearest_neighbours(x, y, k=k), right / 30)


def test_of_classes_with_as_many_votes_the_nearest_wins():
    x = torch.tensor([[0.0], [0.1], [-0.3], [9.0]]).double()
    assert scores.nearest_neighbours(x[:3], torch.tensor([1, 1, 0]), k=2) == 2 / 3
