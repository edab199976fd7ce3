"""Checkpoints: what was saved comes back, and a damaged one gives way to the one before it."""

import gc
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfparam_jax.training.checkpoints import Checkpoints
from selfparam_jax.training.optimizer import TrainConfig, make_optimizer, set_learning_rate

NOISE = np.random.default_rng(0).standard_normal((2, 2, 30, 10), np.float32)
LORA = {"layers": {"q_proj": {"a": jnp.asarray(NOISE[0]), "b": jnp.asarray(NOISE[1]).swapaxes(1, 2)}}}
OPTIMIZER = make_optimizer(TrainConfig(), 10)


def at(step):
    """Adapter and optimizer state of a step: other values in every leaf."""
    lora = jax.tree.map(lambda leaf: leaf + step, LORA)
    state = OPTIMIZER.init(lora)
    for _ in range(step):
        state = OPTIMIZER.update(lora, state, lora)[1]
    return lora, set_learning_rate(state, 0.5 / step)


def save(directory, *steps):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, *at(step), {"steps": step, "fill": 0.5})


def assert_holds(directory, step):
    lora, state = at(step)
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest() == step
        assert checkpoints.read_record(step) == {"steps": step, "fill": 0.5}
        found = checkpoints.restore(step, lora=LORA, optimizer=OPTIMIZER.init(LORA))
    assert jax.tree.structure(found["optimizer"]) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, (found["lora"], found["optimizer"]), (lora, state))


@pytest.fixture
def three(tmp_path):
    save(tmp_path / "checkpoints", 3, 6, 9)
    return tmp_path / "checkpoints"


def test_none_yet(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() is None


def test_the_newest_two_are_kept_and_come_back(three):
    assert sorted(path.name for path in three.iterdir()) == ["6", "9"]
    assert_holds(three, 9)


def test_one_of_eight_devices_is_read_on_one(tmp_path):
    """A run may be resumed on other devices: what is checked and read is not tied to those of the writing."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, *jax.device_put(at(3), everywhere), {"steps": 3, "fill": 0.5})
    assert_holds(tmp_path, 3)


def test_an_empty_directory_does_not_count(three, caplog):
    (three / "12").mkdir()
    with caplog.at_level(logging.WARNING, "absl"):
        assert_holds(three, 9)
    assert f"checkpoint {three / '12'} is damaged and skipped: the directory is empty" in caplog.text


def test_only_an_empty_directory_is_a_start_from_nothing(tmp_path):
    (tmp_path / "9").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None


def largest_file(directory):
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate_arrays(item):
    def damage(checkpoint):
        path = largest_file(checkpoint / item / "ocdbt.process_0" / "d")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def truncate(name):
    def damage(checkpoint):
        path = checkpoint / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def flip(item):
    """One bit in the middle of an item's arrays; Orbax reads other numbers then, and says nothing."""

    def damage(checkpoint):
        path = largest_file(checkpoint / item / "ocdbt.process_0" / "d")
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 16
        path.write_bytes(whole)

    return damage


def another_record(checkpoint):
    path = checkpoint / "record" / "metadata"
    text = path.read_text()
    assert '"fill": 0.5' in text
    path.write_text(text.replace('"fill": 0.5', '"fill": 0.7'))


DAMAGE = {
    "a bit of the adapter": flip("lora"),
    "a bit of the optimizer": flip("optimizer"),
    "a number of the record": another_record,
    "half of the adapter": truncate_arrays("lora"),
    "half of the optimizer": truncate_arrays("optimizer"),
    "half of the metadata": truncate("lora/_METADATA"),
    "half of the shapes": truncate("optimizer/array_metadatas/process_0"),
    "half of the manifest": truncate("lora/manifest.ocdbt"),
    "half of the record": truncate("record/metadata"),
    "no record": lambda checkpoint: shutil.rmtree(checkpoint / "record"),
    "no adapter": lambda checkpoint: shutil.rmtree(checkpoint / "lora"),
    "no optimizer": lambda checkpoint: shutil.rmtree(checkpoint / "optimizer"),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # what is left behind is no traceback
def test_a_damaged_one_gives_way_to_the_one_before_it(three, caplog, capfd, kind):
    DAMAGE[kind](three / "9")
    with caplog.at_level(logging.WARNING):
        assert_holds(three, 6)
        gc.collect()
    assert f"checkpoint {three / '9'} is damaged and skipped: " in caplog.text
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    assert (three / "9").exists(), "reading removes nothing"


@pytest.mark.parametrize("damage", [DAMAGE["half of the adapter"], lambda path: (shutil.rmtree(path), path.mkdir())])
def test_the_same_step_is_saved_again_and_the_damaged_one_stays(three, damage):
    damage(three / "9")
    before = sorted(path.relative_to(three / "9") for path in (three / "9").rglob("*"))
    with Checkpoints(three) as checkpoints:
        assert checkpoints.latest() == 6
        checkpoints.save(9, *at(9), {"steps": 9, "fill": 0.5})
    assert sorted(path.name for path in three.iterdir()) == ["6", "9", "damaged-9"]
    aside = three / "damaged-9"
    assert sorted(path.relative_to(aside) for path in aside.rglob("*")) == before
    assert_holds(three, 9)
    save(three, 12)
    assert sorted(path.name for path in three.iterdir()) == ["12", "9", "damaged-9"]


def test_damage_is_found_by_saving_too(three):
    """A caller who never asked for the latest one: the damaged one does not stand in for a good one."""
    DAMAGE["no record"](three / "9")
    save(three, 9)
    assert_holds(three, 9)
    assert (three / "damaged-9").is_dir()


def test_if_none_can_be_read_the_directory_is_named(three):
    for step in (6, 9):
        DAMAGE["no record"](three / str(step))
    message = (
        rf"^{three}: none of the checkpoints can be read \(steps 9, 6; .*\)\. Restore one from a copy, or remove"
    )
    with Checkpoints(three) as checkpoints:
        for call in (checkpoints.latest, lambda: checkpoints.save(9, *at(9), {})):
            with pytest.raises(ValueError, match=message):
                call()
    assert sorted(path.name for path in three.iterdir()) == ["6", "9"]
