"""`prepare cxc`: the official CSV files to the annotation files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lib.evaluation.eccv import package_metrics
from lib.files.reading import read_ids
from lib.tools.prepare.__main__ import main
from tests.evaluation.cxc.cxc_files import caption_name, image_name
from tests.helpers import error_line

SIS = [
    "image1,image2,agg_score,sampling_method",
    f"{image_name(100)},{image_name(101)},2.5,i2i_csim",
    f"{image_name(101)},{image_name(100)},2.4,i2i_csim",
    f"{image_name(101)},{image_name(900)},1.0,i2i_csim",
]
STS = [
    "caption1,caption2,agg_score,sampling_method",
    f"{caption_name(1)},{caption_name(11)},3.0,c2c_isim",
    f"{caption_name(1)},{caption_name(2)},4.5,c2c_cocaption",
]
SITS = [
    "caption,image,agg_score,sampling_method",
    f"{caption_name(1)},{image_name(100)},4.75,c2i_original",
    f"{caption_name(11)},{image_name(101)},2.0,c2i_original",
    f"{caption_name(1)},{image_name(101)},3.0,c2i_intrasim",
    f"{caption_name(2)},{image_name(101)},2.99,c2i_intrasim",
    f"{caption_name(12)},{image_name(900)},5.0,c2i_intrasim",
]


@pytest.fixture
def folders(tmp_path):
    """The CSV folder and a COCO folder whose `testall` has images 100, 101 and captions 1, 2 and 11, 12."""
    csvs, data = tmp_path / "csv", tmp_path / "coco"
    csvs.mkdir()
    (data / "precomp").mkdir(parents=True)
    for kind, rows in (("sis", SIS), ("sts", STS), ("sits", SITS)):
        (csvs / f"{kind}_test.csv").write_text("\n".join(rows) + "\n")
    (data / "precomp" / "testall_ids.txt").write_text("100\n100\n101\n101\n")
    (data / "precomp" / "testall_capids.txt").write_text("1\n2\n11\n12\n")
    return csvs, data


def run(folders, *more):
    csvs, data = folders
    return main(["cxc", "--csv", str(csvs), "--data_path", str(data), *more])


def failure(capsys, folders) -> str:
    csvs, data = folders
    return error_line(main, ["cxc", "--csv", csvs, "--data_path", data], capsys)


def annotations(folders, file):
    return json.loads((folders[1] / "cxc_annots" / file).read_text())


def test_image_text_positives_are_rated_3_or_original(folders):
    assert run(folders) == 0
    assert annotations(folders, "cxc_it.json") == {
        "t2i": {"1": [[100, 4.75], [101, 3.0]], "2": [[100, 5.0]], "11": [[101, 2.0]], "12": [[101, 5.0], [900, 5.0]]},
        "i2t": {"100": [[1, 4.75], [2, 5.0]], "101": [[11, 2.0], [12, 5.0], [1, 3.0]], "900": [[12, 5.0]]},
    }


def test_ratings_within_a_modality_are_listed_from_both_ends_without_a_threshold(folders):
    run(folders)
    assert annotations(folders, "cxc_i2i.json") == {
        "100": [[101, 2.5], [101, 2.4]],
        "101": [[100, 2.5], [100, 2.4], [900, 1.0]],
        "900": [[101, 1.0]],
    }
    assert annotations(folders, "cxc_t2t.json") == {
        "1": [[11, 3.0], [2, 4.5]],
        "2": [[1, 4.5]],
        "11": [[1, 3.0]],
        "12": [],
    }


def test_ids_are_written_once_per_caption(folders):
    for ids in ("100\n101\n", "100\n100\n101\n101\n"):
        (folders[1] / "precomp" / "testall_ids.txt").write_text(ids)
        run(folders, "--overwrite")
        assert (folders[1] / "cxc_annots" / "testall_ids.txt").read_text() == "100\n100\n101\n101\n"
        assert (folders[1] / "cxc_annots" / "testall_capids.txt").read_text() == "1\n2\n11\n12\n"


def test_other_annotations_are_not_replaced_silently(folders, capsys):
    run(folders)
    run(folders)
    assert "wrote 0 files" in capsys.readouterr().out
    path = folders[1] / "cxc_annots" / "cxc_i2i.json"
    path.write_text("{}")
    assert "cxc_i2i.json: " in failure(capsys, folders)
    assert path.read_text() == "{}"
    assert run(folders, "--overwrite") == 0
    assert len(annotations(folders, "cxc_i2i.json")) == 3


def test_ids_that_pair_captions_otherwise_than_cxc_are_refused(folders, capsys):
    (folders[1] / "precomp" / "testall_ids.txt").write_text("101\n101\n100\n100\n")
    assert "caption 1 belongs to image 100, in testall to image 101" in failure(capsys, folders)
    assert not (folders[1] / "cxc_annots").exists()


def test_csvs_of_another_set_are_refused(folders, capsys):
    (folders[1] / "precomp" / "testall_capids.txt").write_text("51\n52\n53\n54\n")
    assert "rates none of the 4 captions of testall" in failure(capsys, folders)


def test_missing_files_are_named_with_where_to_get_them(folders, capsys):
    (folders[0] / "sts_test.csv").unlink()
    assert "sts_test.csv missing; get it from the official repository google-research" in failure(capsys, folders)
    (folders[1] / "precomp" / "testall_capids.txt").unlink()
    message = failure(capsys, folders)  # these images are none of COCO's
    assert "in the order of eccv-caption: not those of the split's" in message and "prepare captions" in message


def test_without_caption_ids_those_of_the_package_are_written_where_the_images_are_its_own(folders, capsys):
    csvs, data = folders
    metrics = package_metrics()
    image_ids = np.array([metrics.coco_gts["t2i"][caption][0] for caption in metrics.coco_ids.tolist()])
    (data / "precomp" / "testall_capids.txt").unlink()
    (data / "precomp" / "testall_ids.txt").write_text("".join(f"{image}\n" for image in image_ids))
    image, caption = image_ids[0], metrics.coco_ids[0]
    (csvs / "sits_test.csv").write_text(f"{SITS[0]}\n{caption_name(caption)},{image_name(image)},5.0,c2i_original\n")
    run(folders)
    np.testing.assert_array_equal(read_ids(data / "cxc_annots/testall_capids.txt"), metrics.coco_ids)
    np.testing.assert_array_equal(read_ids(data / "cxc_annots/testall_ids.txt"), image_ids)
