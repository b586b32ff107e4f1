"""Saved matrices that are used together: what they are of, said by JSON files, flags or names that must agree."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.datasets import data_set
from lib.evaluation.matrices.stored import save_results
from lib.evaluation.matrices.together import Setting, check_protocols, open_items, open_saved

SCORES = np.random.default_rng(0).standard_normal((4, 20)).astype(np.float32)


def save(path, scores=SCORES, **info):
    """A matrix, with a JSON file beside it if that has anything to say."""
    save_results(path, scores, info)
    if not info:
        path.with_suffix(".json").unlink()
    return path


def refusal(*arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        open_saved(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- What the files say -----------------------------------------------------------------------------------------------


def test_matrices_come_in_their_order_with_what_their_files_agree_on(tmp_path):
    info = {"dataset": "coco", "split": "dev", "limit": 4, "image_of_caption": [0, 1, 2, 3] * 5}
    paths = [save(tmp_path / "b.npy", SCORES + 1, **info), save(tmp_path / "a.npy", **info, checkpoint="a.pth")]
    saved, setting = open_saved(paths)
    assert [each.path for each in saved] == paths and [each.shapes for each in saved] == [[(4, 20)]] * 2
    np.testing.assert_array_equal(saved[0].folds[0], SCORES + 1)
    assert saved[1].info["checkpoint"] == "a.pth"
    assert setting[:3] == ("coco", "dev", 4) and setting.split_name == "dev"
    np.testing.assert_array_equal(setting.image_of_caption, [0, 1, 2, 3] * 5)


@pytest.mark.parametrize("dataset", ["coco", "f30k", "birds"])
def test_without_a_split_it_is_the_one_that_is_evaluated(tmp_path, dataset):
    _, setting = open_saved([save(tmp_path / "a.npy", dataset=dataset)])
    assert setting.split is None and setting.split_name == data_set(dataset).evaluated


def test_a_matrix_of_others_joins_one_whose_file_says_what_it_is_of(tmp_path):
    np.savetxt(tmp_path / "other.txt", SCORES)
    _, setting = open_saved([tmp_path / "other.txt", save(tmp_path / "a.npy", dataset="f30k", split="test")])
    assert setting[:2] == ("f30k", "test")
    _, setting = open_saved([tmp_path / "other.txt"], "birds", "dev")
    assert setting[:2] == ("birds", "dev")


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("results_coco.npy", "coco"), ("F30K.final.npy", "f30k"), ("coconuts.npy", None), ("coco_f30k.npy", None)],
)
def test_a_name_tells_the_data_set_only_where_it_holds_one_as_a_word(tmp_path, name, dataset):
    path = save(tmp_path / name)
    if dataset:
        assert open_saved([path])[1].dataset == dataset
    else:
        assert f"{path}: no JSON file beside it says which dataset this is; give --dataset" in refusal([path])


def test_a_folder_of_five_folds_is_cocos_and_has_no_whole_matrix(tmp_path):
    for fold in range(5):
        np.savetxt(tmp_path / f"{fold}sim_best.txt", SCORES[:, 5 * (fold % 2) :])
    [saved], setting = open_saved([tmp_path])
    assert setting.dataset == "coco" and saved.shapes == [(4, 20), (4, 15), (4, 20), (4, 15), (4, 20)]
    message = refusal([tmp_path, save(tmp_path / "a.npy", dataset="coco")])
    assert f"a.npy is 4 x 20, but {tmp_path} is 5 folds of 4 x 20, 4 x 15; only matrices of the same" in message


# --- What contradicts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [{"dataset": "f30k"}, {"split": "dev"}, {"split": None}, {"limit": 20}, {"image_of_caption": [0] * 20}]
)
def test_files_that_contradict_each_other_are_named_with_what_differs(tmp_path, other):
    info = {"dataset": "coco", "split": "testall", "limit": None}
    first, second = save(tmp_path / "a.npy", **info), save(tmp_path / "c.npy", **info | other)
    [key] = other
    if other == {"split": None}:  # says nothing
        assert open_saved([first, second])[1].split == "testall"
    else:
        assert f"{second} and {first} differ in {key}" in refusal([first, second])


@pytest.mark.parametrize("flag", ["dataset", "split"])
def test_a_flag_that_contradicts_a_file_is_named(tmp_path, flag):
    path = save(tmp_path / "a.npy", dataset="coco", split="testall")
    assert f"{path} and --{flag} differ in {flag} (" in refusal([path], **{flag: "test"})


@pytest.mark.parametrize(
    ("key", "value"), [("dataset", 5), ("dataset", ["coco"]), ("split", ["testall"]), ("split", {"a": 1})]
)
def test_a_data_set_or_a_split_that_is_no_name_is_refused(tmp_path, key, value):
    path = save(tmp_path / "c.npy", **{"dataset": "coco"} | {key: value})
    assert refusal([path]).startswith(f"{tmp_path / 'c.json'}: {key} is {value}, expected a name")


@pytest.mark.parametrize("shape", [(3, 20), (4, 16)])
def test_matrices_of_other_sizes_are_refused(tmp_path, shape):
    paths = save(tmp_path / "a.npy", dataset="coco"), save(tmp_path / "b.npy", np.ones(shape), dataset="coco")
    message = f"{paths[1]} is {shape[0]} x {shape[1]}, but {paths[0]} is 4 x 20; only matrices of the same images"
    assert refusal(paths).startswith(message)


# --- What the data says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", [True, False])
def test_the_items_of_a_matrix_are_those_of_its_split_with_files_where_they_are_known(sample, tmp_path, mapping):
    data = tmp_path / "f30k"
    data.mkdir()
    (data / "precomp").symlink_to(sample / "f30k" / "precomp")
    if mapping:
        (data / "id_mapping.json").symlink_to(sample / "f30k" / "id_mapping.json")
    split, items = open_items(data, Setting("f30k", "dev"), [(10, 50)])
    assert (split.n_images, split.n_captions, len(items.captions)) == (10, 50, 50)
    names = json.loads((sample / "f30k" / "id_mapping.json").read_text())
    assert items.files == [names[str(number)] if mapping else None for number in items.image_ids]
    assert items.image_of_caption.tolist() == np.repeat(np.arange(10), 5).tolist()


def test_folds_together_are_as_large_as_their_split_and_a_limit_cuts_it(sample):
    _, items = open_items(sample / "coco", Setting("coco"), [(5, 25)] * 5)
    assert len(items.image_ids) == 25
    _, items = open_items(sample / "coco", Setting("coco", None, 7), [(7, 35)])
    assert len(items.image_ids) == 7


def test_a_matrix_of_other_data_is_refused(sample):
    with pytest.raises(InputError) as caught:
        open_items(sample / "f30k", Setting("f30k"), [(9, 50)])
    assert str(caught.value).startswith("the matrix is 9 x 50, but test in ")
    assert "has 10 images and 50 captions; name the data that it was made from with --data_path" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "fits"),
    [
        (Setting("coco"), True),
        (Setting("coco", "testall"), True),
        (Setting("coco", "test"), False),
        (Setting("coco", None, 10), False),
        (Setting("f30k"), False),
        (Setting("birds", "testall"), False),
    ],
)
def test_cxc_is_for_the_whole_testall_of_coco_alone(setting, fits):
    check_protocols([], setting)
    if fits:
        check_protocols(["cxc"], setting)
    else:
        with pytest.raises(InputError, match="--evaluate_cxc is for the whole testall split of coco; drop --split and"):
            check_protocols(["cxc"], setting)
