"""Data: the split is what it says; the order of batches depends on (seed, epoch)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpfree import data
from bpfree.data import augment, digits
from bpfree.training import steps


@pytest.fixture(scope="module")
def loaded():
    return digits.load(shift=0.5, pixel_noise=0.1)


def test_split_is_disjoint_and_covers_everything(loaded):
    assert data.sizes(loaded) == {"train": 1085, "validation": 357, "test": 355}
    rows = np.concatenate(
        [p["x"] for p in (loaded.train, loaded.validation, loaded.test)]
    )
    assert len(np.unique(rows, axis=0)) == len(rows) == 1797


def test_parts_have_the_classes_in_equal_shares(loaded):
    for part in (loaded.train, loaded.validation, loaded.test):
        counts = np.bincount(part["label"], minlength=10)
        assert counts.min() > 0.9 * counts.max()


def test_types_and_range(loaded):
    assert loaded.train["x"].dtype == np.float32
    assert loaded.train["label"].dtype == np.int32
    assert loaded.train["x"].min() == 0 and loaded.train["x"].max() == 1


def test_rank_in_class():
    ranks = data.rank_in_class(np.array([3, 1, 3, 3, 1]))
    np.testing.assert_array_equal(ranks, [0, 0, 1, 2, 1])


def test_other_data_are_refused(monkeypatch):
    monkeypatch.setattr(digits, "_SHA256", "0")
    with pytest.raises(ValueError, match="SHA-256"):
        digits.load()


def test_whole_pixel_moves_are_exact(loaded):
    image = loaded.train["x"][0]
    moved = digits._move(jnp.asarray(image), jnp.array([1.0, -2.0], jnp.float32))
    expected = np.zeros((8, 8), np.float32)
    expected[1:, :-2] = image.reshape(8, 8)[:-1, 2:]
    np.testing.assert_allclose(moved.reshape(8, 8), expected, atol=1e-6)


def test_half_a_pixel_is_the_mean_of_two_neighbours(loaded):
    image = loaded.train["x"][0].reshape(8, 8)
    moved = digits._move(jnp.asarray(image.ravel()), jnp.array([0.5, 0.0], jnp.float32))
    expected = (image[1:] + image[:-1]) / 2
    np.testing.assert_allclose(moved.reshape(8, 8)[1:], expected, atol=1e-6)


def test_augmentation_changes_pixels_only(loaded):
    batch = {k: jnp.asarray(v[:4]) for k, v in loaded.train.items()}
    new = loaded.augment(jax.random.key(0), batch)
    assert new["x"].shape == batch["x"].shape and new["x"].dtype == jnp.float32
    assert not np.allclose(new["x"], batch["x"])
    np.testing.assert_array_equal(new["label"], batch["label"])
    assert digits.load().augment is None


# ------------------------------------------------------------------- order of batches


def order(start, length, seed=0):
    start = jnp.int32(start)
    return np.asarray(steps.batch_order(jax.random.key(seed), start, length, 23, 5))


def test_an_epoch_visits_examples_once():
    epoch = order(0, 4)
    assert epoch.shape == (4, 5) and epoch.dtype == np.int32
    assert len(np.unique(epoch)) == 20 and epoch.max() < 23


def test_order_does_not_depend_on_the_cut_into_blocks():
    whole = order(0, 13)
    parts = [order(0, 3), order(3, 6), order(9, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_epochs_and_seeds_differ():
    assert (order(0, 4) != order(4, 4)).any()
    assert (order(0, 4) != order(0, 4, seed=1)).any()


# ------------------------------------------------------------------------ flip and crop


def images(rows=64):
    x = np.random.default_rng(0).random((rows, 5, 6, 3), np.float32) + 1
    return {"x": jnp.asarray(x), "label": jnp.arange(rows)}


def test_flips_mirror_half_of_the_images():
    batch = images()
    new = augment.flip_and_crop(flip=True, crop=0)(jax.random.key(0), batch)
    x, y = np.asarray(batch["x"]), np.asarray(new["x"])
    mirrored = (y == x[:, :, ::-1]).all((1, 2, 3))
    assert ((y == x).all((1, 2, 3)) ^ mirrored).all()
    assert 16 < mirrored.sum() < 48  # 4 standard deviations
    np.testing.assert_array_equal(new["label"], batch["label"])


def test_crops_move_by_every_whole_number_of_pixels_and_let_black_in():
    batch = images(rows=200)
    new = augment.flip_and_crop(flip=False, crop=1)(jax.random.key(0), batch)
    moves = set()
    for image, moved in zip(*(np.asarray(b["x"]) for b in (batch, new)), strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        (found,) = [
            (i, j)
            for i in range(3)
            for j in range(3)
            if (padded[i : i + 5, j : j + 6] == moved).all()
        ]
        moves.add(found)
    assert len(moves) == 9


def test_nothing_to_do_and_mistakes():
    assert augment.flip_and_crop(flip=False, crop=0) is None
    with pytest.raises(ValueError, match="crop=-1"):
        augment.flip_and_crop(flip=False, crop=-1)
