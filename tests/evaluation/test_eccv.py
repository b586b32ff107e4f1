"""ECCV Caption: figures are those of the package fed by hand with whole rankings; captions are matched by their ids."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.datasets import data_set
from lib.evaluation.eccv import coco_test_gallery, eccv_tables, evaluate_eccv, package_metrics, read_eccv
from lib.evaluation.report import evaluate_matrix
from lib.evaluation.tables import printed
from lib.files.reading import read_ids
from lib.tools.sample import writing

N = 25


@pytest.fixture(scope="module")
def whole():
    """The package with all its data."""
    return package_metrics()


@pytest.fixture(scope="module")
def metrics(whole):
    """The package with 25 of COCO's test images, ones with many positives, and their captions alone."""
    images, small = set(), copy.copy(whole)
    for caption, positives in sorted(whole.eccv_gts["t2i"].items(), key=lambda entry: -len(entry[1])):
        if len(images | {*positives}) <= N:
            images |= {*positives, whole.coco_gts["t2i"][caption][0]}
        if len(images) >= N:
            break
    images = set(sorted(images)[:N])
    own = np.array([whole.coco_gts["t2i"][caption][0] for caption in whole.coco_ids.tolist()])
    small.coco_ids = whole.coco_ids[np.isin(own, list(images))]
    captions = set(small.coco_ids.tolist())
    for name in ("coco_gts", "cxc_gts", "eccv_gts"):
        cut = {}
        for way, queries, items in (("i2t", images, captions), ("t2i", captions, images)):
            pairs = getattr(whole, name)[way].items()
            cut[way] = {q: [i for i in found if i in items] for q, found in pairs if q in queries}
            cut[way] = {q: found for q, found in cut[way].items() if found}
        setattr(small, name, cut)
    assert len(images) == N and len(captions) == 5 * N
    return small


@pytest.fixture
def image_ids(metrics) -> np.ndarray:
    return np.array([metrics.coco_gts["t2i"][caption][0] for caption in metrics.coco_ids.tolist()])[::5]


def by_hand(metrics, scores, image_ids, caption_ids) -> dict:
    """The package's figures of whole rankings."""
    i2t = {image: caption_ids[np.argsort(-row)].tolist() for image, row in zip(image_ids.tolist(), scores, strict=True)}
    t2i = {c: image_ids[np.argsort(-row)].tolist() for c, row in zip(caption_ids.tolist(), scores.T, strict=True)}
    ranked = {"i2t": i2t, "t2i": t2i}
    found = {
        name: {f"R@{k}": getattr(metrics, f"{name}_recalls")(ranked, "all", K=k) for k in (1, 5, 10)}
        for name in ("coco_1k", "coco_5k", "cxc")
    }
    eccv = metrics.eccv_metrics(ranked, "all")
    names = (("eccv_map_at_r", "mAP@R"), ("eccv_rprecision", "R-P"), ("eccv_r1", "R@1"))
    return found | {"eccv": {name: eccv[key] for key, name in names}}


def flat(figures, name: str = "") -> dict[str, float]:
    """Figures of nested dicts by the path of their names."""
    if not isinstance(figures, dict):
        return {name: figures}
    return {path: value for key, part in figures.items() for path, value in flat(part, f"{name}/{key}").items()}


@pytest.mark.parametrize("strength", [0, 2, 50])
def test_random_and_planted_matrices_get_the_figures_of_the_package_fed_by_hand(metrics, image_ids, strength):
    scores = np.random.default_rng(0).standard_normal((N, 5 * N)) + strength * np.repeat(np.eye(N), 5, 1)
    found = evaluate_eccv(scores, read_eccv([], image_ids, metrics))["eccv_caption"]
    expected = by_hand(metrics, scores, image_ids, metrics.coco_ids)
    assert flat(found) == pytest.approx({path: 100 * value for path, value in flat(expected).items()})
    *_, mean, whole = (row.result for row in evaluate_matrix(data_set("coco"), scores))  # COCO's own positives are ours
    assert found["coco_5k"]["R@5"] == pytest.approx({"i2t": whole.i2t.r5, "t2i": whole.t2i.r5})
    assert found["coco_1k"]["R@1"] == pytest.approx({"i2t": mean.i2t.r1, "t2i": mean.t2i.r1})
    assert strength < 50 or found["coco_5k"]["R@1"] == {"i2t": 100, "t2i": 100}


def test_a_matrix_whose_best_items_are_all_positives_of_eccv_caption_is_perfect(metrics, image_ids):
    scores = np.random.default_rng(0).random((N, 5 * N))
    rows, columns = ({key: n for n, key in enumerate(ids.tolist())} for ids in (image_ids, metrics.coco_ids))
    for image, captions in metrics.eccv_gts["i2t"].items():
        for caption in captions:
            scores[rows[image], columns[caption]] += 1
    found = evaluate_eccv(scores, read_eccv([], image_ids, metrics))["eccv_caption"]["eccv"]
    assert [figures["i2t"] for figures in found.values()] == [100, 100, 100]


def test_captions_in_another_order_are_told_by_the_file_of_their_ids(metrics, image_ids, tmp_path):
    scores = np.random.default_rng(0).standard_normal((N, 5 * N)) + np.repeat(np.eye(N), 5, 1)
    straight = evaluate_eccv(scores, read_eccv([], image_ids, metrics))
    order = np.random.default_rng(1).permutation(N)
    columns = (5 * order[:, None] + np.arange(5)[::-1]).ravel()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "testall_capids.txt").write_text("".join(f"{i}\n" for i in metrics.coco_ids[columns]))
    reference = read_eccv([tmp_path / "a", tmp_path / "b"], image_ids[order], metrics)
    turned = evaluate_eccv(np.ascontiguousarray(scores[order][:, columns]), reference)
    assert flat(turned) == pytest.approx(flat(straight))
    with pytest.raises(InputError, match="testall_capids.txt: not those of the split's 25 images in their order"):
        read_eccv([tmp_path / "b"], image_ids, metrics)


def test_images_that_are_not_those_of_the_package_are_refused(metrics, whole, image_ids, tmp_path):
    with pytest.raises(InputError, match=r"in the order of eccv-caption: not those .* prepare captions"):
        read_eccv([], image_ids[::-1], metrics)
    with pytest.raises(InputError, match="judges COCO's 5000 test images"):
        read_eccv([], image_ids, whole)
    (tmp_path / "testall_capids.txt").write_text("17\n")
    with pytest.raises(InputError, match=r"1 captions \(17 first\) are none of COCO's"):
        read_eccv([tmp_path], image_ids, metrics)
    with pytest.raises(InputError, match="expected"):
        evaluate_eccv(np.ones((3, 15)), read_eccv([], image_ids, metrics))


def test_the_package_lists_five_successive_captions_of_each_of_5000_images(whole):
    own = np.array([whole.coco_gts["t2i"][caption][0] for caption in whole.coco_ids.tolist()]).reshape(5000, 5)
    assert (own == own[:, :1]).all() and len(np.unique(own[:, 0])) == 5000
    assert len(read_eccv([], own[:, 0], whole).gallery.caption_ids) == 25000


def test_tables_name_whose_positives_they_count(metrics, image_ids):
    scores = np.random.default_rng(0).standard_normal((N, 5 * N))
    figures = evaluate_eccv(scores, read_eccv([], image_ids, metrics))
    text = printed(eccv_tables([("mine", figures)]))
    rows = {line[4:].strip()[:7].strip(): line for line in text.splitlines() if line.startswith("mine")}
    assert list(rows) == ["ECCV Ca", "COCO 1K", "COCO 5K", "CxC"]
    found = figures["eccv_caption"]
    assert (
        f"{found['eccv']['mAP@R']['i2t']:.1f}" in rows["ECCV Ca"] and f"{found['cxc']['R@1']['i2t']:.1f}" in rows["CxC"]
    )


def test_sample_data_with_the_ids_of_cocos_test_can_be_judged(metrics, image_ids, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "COCO_TEST_IMAGES", N)
    monkeypatch.setattr(writing, "coco_test_gallery", lambda: coco_test_gallery(metrics))
    config = writing.SampleConfig(3, 3, testall_images=N, img_dim=8, coco_test_ids=True, one_row_per_image=True)
    writing.write_sample(tmp_path, config, ["coco"])
    drawn = read_ids(tmp_path / "coco/precomp/testall_ids.txt")
    np.testing.assert_array_equal(drawn, image_ids)
    gallery = read_eccv([tmp_path / "coco/cxc_annots"], drawn, metrics).gallery
    np.testing.assert_array_equal(gallery.caption_ids, metrics.coco_ids)
    others = {*read_ids(tmp_path / "coco/precomp/train_ids.txt"), *read_ids(tmp_path / "coco/precomp/dev_ids.txt")}
    assert len(others) == 6 and not others & {*drawn}
    with pytest.raises(InputError, match=f"--coco_test_ids needs --testall_images {N}"):
        writing.SampleConfig(testall_images=N + 5, coco_test_ids=True)
