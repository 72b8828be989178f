"""Ridge regression of boxes: the closed form, and equality with R-CNN's released code."""

import numpy as np
import torch

from segdet.training.ridge import BoxRidge, norm_scale, ridge


def test_both_forms_of_the_system_have_the_minimum() -> None:
    random = np.random.default_rng(0)
    for rows in (30, 8):
        x, y = random.normal(size=(rows, 12)), random.normal(size=(rows, 4))
        # Least squares with additional rows of sqrt(penalty).
        stacked = np.concatenate([x, np.sqrt(7.0) * np.eye(12)]), np.concatenate([y, np.zeros((12, 4))])
        expected = np.linalg.lstsq(*stacked, rcond=None)[0]
        np.testing.assert_allclose(ridge(x, y, 7.0), expected, atol=1e-10)


def test_whitening_the_offsets_changes_nothing() -> None:
    """The released code regresses (Y - mean) T, where T' T is the inverse covariance, and inverts T in testing."""
    random = np.random.default_rng(1)
    x = random.normal(size=(60, 10)).astype(np.float32)
    y = (random.normal(size=(60, 4)) @ random.normal(size=(4, 4)) + [0.1, 0, -0.2, 0.3]).astype(np.float32)
    ours = BoxRidge(2, 10)
    ours.scale.fill_(1.5)
    ours.fit(2, x, y, 50.0)
    with_one = np.concatenate([1.5 * x, np.ones((60, 1))], 1)
    mean = y.mean(0)
    values, vectors = np.linalg.eigh((y - mean).T @ (y - mean) / 60)
    whiten = vectors @ np.diag((values + 0.001) ** -0.5) @ vectors.T
    theirs = with_one @ ridge(with_one, (y - mean) @ whiten, 50.0) @ np.linalg.inv(whiten) + mean
    found = ours(torch.from_numpy(x))
    np.testing.assert_allclose(found[:, 1].numpy(), theirs, atol=1e-5)
    assert not found[:, 0].any()  # a class without examples has zero offsets


def test_offsets_are_float32_under_autocast() -> None:
    random = np.random.default_rng(2)
    x, y = random.normal(size=(60, 10)).astype(np.float32), random.normal(size=(60, 4)).astype(np.float32)
    ridges = BoxRidge(2, 10)
    ridges.fit(1, x, y, 5.0)
    ridges.fit(2, x[:30], y[:30], 5.0)
    features = torch.from_numpy(x)
    expected = ridges(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = ridges(features)
        of_half = ridges(features.bfloat16())
    assert found.dtype == of_half.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(of_half, ridges(features.bfloat16().float()))


def test_features_get_the_norm_of_the_paper() -> None:
    assert norm_scale(5.0) == 4.0
    assert norm_scale(0.0) == 1.0
