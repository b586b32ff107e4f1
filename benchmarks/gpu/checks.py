"""Checks of a GPU against the CPU and the definition: each gives a figure and whether it is as it should be."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.bench import ALL_NEGATIVES, Bench, distance, gradients
from benchmarks.gpu.processes import shared_gradients
from lib.checkpoint import load_model, read_checkpoint
from lib.core.fragments import Fragments, Prepared
from lib.core.precision import set_precision
from lib.datasets.inputs import open_inputs
from lib.distributed.runner import Runner
from lib.evaluation.metrics import retrieval_metrics
from lib.inference.input_spec import input_spec
from lib.inference.scoring import score_split
from lib.similarity import HEADS
from lib.similarity.alignment import Backend, alignment_scores, gpu_kernel, plain
from lib.training.losses import HingeTriplet
from lib.training.resuming import resume
from lib.training.run import Run

Result = tuple[str, bool]
ROUNDING = 1e-4  # of float32, relative to the largest score
# images, captions, regions, words, whether regions are missing, tau
PROBLEMS = [
    (70, 20, 36, 20, False, 14.3), (70, 20, 36, 20, True, 14.3), (33, 9, 10, 1, True, 14.3),
    (33, 9, 1, 12, False, 14.3), (20, 7, 256, 20, True, 14.3), (20, 7, 36, 70, True, 14.3),
    (40, 11, 36, 20, True, 90.0), (1, 1, 1, 1, False, 14.3), (129, 31, 49, 17, True, 30.0),
]  # fmt: skip


def problem(images: int, captions: int, regions: int, words: int, missing: bool, seed: int) -> tuple:
    """Random prepared images and captions, in float64 on the CPU."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    kept = rng.random((images, regions)) < (0.7 if missing else 1.1)
    kept[:, 0] = True
    lengths = rng.integers(1, words + 1, captions)
    lengths[0] = words
    x = torch.randn(images, regions, 24, generator=generator, dtype=torch.float64)
    y = torch.randn(captions, words, 24, generator=generator, dtype=torch.float64)
    return Prepared(x, kept), Prepared(y, np.arange(words) < lengths[:, None])


def scores_equal_the_definition(bench: Bench) -> Result:
    """scores against the definition in float64"""
    set_precision("float32")
    worst = 0.0
    for seed, (*shape, tau) in enumerate(PROBLEMS):
        images, captions = problem(*shape, seed)
        expected = plain.alignment_scores(images, captions, tau)
        given = [side.to(bench.device, torch.float32) for side in (images, captions)]
        for kernels in ("auto", "torch"):
            found = alignment_scores(*given, torch.tensor(tau, device=bench.device), Backend(kernels))
            worst = max(worst, _difference(found, expected))
    return f"{worst:.1e}", worst <= ROUNDING


def fused_kernel_equals_the_definition(bench: Bench) -> Result | None:
    """fused kernel against the definition in float64, S in float32, bfloat16 and float16"""
    if bench.device.type != "cuda":
        return None
    worst = 0.0
    for (seed, (*shape, tau)), dtype in itertools.product(
        enumerate(PROBLEMS), (torch.float32, torch.bfloat16, torch.float16)
    ):
        images, captions = problem(*shape, seed)
        S = plain.word_region_similarity(images, captions).to(dtype)  # (B, C, W, R)
        expected = plain.instance_similarity(S.double(), images.mask, captions.mask, tau)
        lengths = torch.from_numpy(captions.lengths.astype(np.int32)).to(bench.device)
        regions = images.mask.T.to(bench.device)
        found = gpu_kernel.pair_scores(S.permute(1, 2, 3, 0).contiguous().to(bench.device), tau, lengths, regions)
        worst = max(worst, _difference(found.T, expected))
    runs = gpu_kernel.available(bench.device)
    return f"{worst:.1e}{'' if runs else ', but it is not used here'}", worst <= ROUNDING and runs


def gradients_of_heads_equal_the_cpus(bench: Bench) -> Result:
    """gradients of every head against the CPU"""
    set_precision("float32")
    worst, found = 0.0, {}
    for name in HEADS:
        images, captions = problem(40, 40, 36, 20, True, 1)
        torch.manual_seed(0)
        head, loss = HEADS[name].make(256), HingeTriplet()
        mixed = torch.randn(24, 256, dtype=torch.float64)
        sides = [Fragments((side.units @ mixed).float(), side.real) for side in (images, captions)]
        for device in (torch.device("cpu"), bench.device):
            head = head.to(device)
            head.zero_grad(set_to_none=True)
            inputs = [Fragments(side.features.to(device, copy=True).requires_grad_(), side.real) for side in sides]
            loss(head(*inputs), hardest=False).backward()
            found[device] = gradients(head) | {str(n): x.features.grad.double().cpu() for n, x in enumerate(inputs)}
        worst = max(worst, distance(found[bench.device], found[torch.device("cpu")]))
    return f"{worst:.1e}", worst <= 1e-3


def encoders_equal_the_cpus(bench: Bench) -> Result:
    """BERT and grid encoders against the CPU"""
    set_precision("float32")
    worst = 0.0
    for backbone in (None, bench.sizes.backbones[0]):
        model, batch = (
            bench.model(backbone=backbone).eval(),
            bench.batch(8, bench.sizes.grid_pixels if backbone else None),
        )
        encoded = []
        with torch.no_grad():
            for device in (torch.device("cpu"), bench.device):
                runner = Runner(model, [device])
                parts = runner.encode_images(batch.images.to(device)), runner.encode_captions(batch.captions.to(device))
                encoded.append([part.features.double().cpu() for part in parts])
        worst = max(worst, *(_difference(found, expected) for expected, found in zip(*encoded, strict=True)))
    return f"{worst:.1e}", worst <= 1e-3


def bf16_trains_as_float32(bench: Bench) -> Result:
    """loss of 20 steps in bf16 against float32, mean difference"""
    curves = []
    for precision in ("float32", "bf16"):
        trainer = bench.trainer(bench.model(), precision)
        slow = ALL_NEGATIVES._replace(learning_rate=0.1)  # or the losses of random data jump
        losses = [trainer.step(bench.batch(seed=step % 4), slow)[0] for step in range(20)]
        curves.append(torch.stack(losses).double().cpu())
    exact, rough = curves
    apart = float((rough - exact).abs().mean() / exact.mean())
    return f"{apart:.3f} (the loss goes from {exact[0]:.0f} to {exact[-1]:.0f})", apart <= 0.1 and bool(
        exact[-1] < exact[0]
    )


def a_resumed_run_goes_on(bench: Bench) -> Result:
    """weights after a resumed step against an unbroken one"""
    trainer = bench.trainer(bench.model())
    trainer.step(bench.batch(seed=0), ALL_NEGATIVES)
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        run = Run(Path(folder), {}, step=1)
        run.save(trainer, improved=False)
        checkpoint = read_checkpoint(Path(folder) / "checkpoint.pth")
        again = bench.trainer(load_model(checkpoint))
        resume(run, again, checkpoint)
    for each in (trainer, again):
        each.step(bench.batch(seed=1), ALL_NEGATIVES)
    weights = [
        {n: p.detach().double().cpu() for n, p in each.runner.model.named_parameters()} for each in (again, trainer)
    ]
    apart = distance(*weights)
    return f"{apart:.1e}", apart <= 1e-6


def accumulation_gives_the_same_gradients(bench: Bench) -> Result:
    """gradients of a batch in four chunks against the whole batch"""
    found = []
    for chunks in (1, 4):
        trainer = bench.trainer(bench.model(), grad_clip=0.0, accumulate=chunks)
        trainer.step(bench.batch(), ALL_NEGATIVES)
        found.append(gradients(trainer.runner.model))
    apart = distance(found[1], found[0])
    return f"{apart:.1e}", apart <= 1e-3


def a_step_fits_its_memory(bench: Bench) -> Result | None:
    """memory of a head's step at this batch, in copies of S"""
    if bench.device.type != "cuda":
        return None
    batch, head = bench.batch(), bench.model().similarity.to(bench.device)
    size = bench.sizes.embed_size
    images = Fragments(torch.randn(batch.images.count, 36, size, device=bench.device), batch.images.real)
    captions = Fragments(torch.randn(batch.captions.count, 20, size, device=bench.device), batch.captions.real)
    leaves = [x.features.requires_grad_() for x in (images, captions)]
    torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_allocated(bench.device)
    HingeTriplet()(head(images, captions), hardest=False).backward()
    peak = torch.cuda.max_memory_allocated(bench.device) - before
    S = 4 * int(batch.captions.lengths.sum()) * images.count * 36
    del leaves
    return f"{peak / S:.1f} ({peak / 2**20:.0f} MiB)", peak <= 12 * S


def recalls_hold_in_every_precision(bench: Bench) -> Result:
    """largest change of a recall from float32, trained models of the sample data"""
    changes = {}
    for similarity in ("esl_a", "esl_h"):
        model = bench.trained(similarity)
        paths = {"bert_path": bench.sample / "bert"}
        inputs = open_inputs(bench.sample / "coco", "coco", "testall", input_spec(model.config, paths))
        results = {}
        for precision in ("float32", "tf32", "bf16"):
            set_precision(precision)
            matrix = score_split(Runner(model, [bench.device], precision), inputs).matrix
            result = retrieval_metrics(matrix, inputs.split.image_of_caption)
            results[precision] = np.array([result.i2t.r1, result.i2t.r5, result.i2t.r10,
                                           result.t2i.r1, result.t2i.r5, result.t2i.r10])  # fmt: skip
        for precision in ("tf32", "bf16"):
            change = float(np.abs(results[precision] - results["float32"]).max())
            changes[precision] = max(change, changes.get(precision, 0.0))
    allowed = max(0.1, 100 / inputs.split.n_images) + 1e-9  # one image
    return ", ".join(f"{name} {change:.2f}" for name, change in changes.items()), max(changes.values()) <= allowed


def two_gpus_give_the_numbers_of_one(bench: Bench) -> Result | None:
    """gradients of a step on two GPUs in one process against one"""
    if torch.cuda.device_count() < 2 or bench.device.type != "cuda":
        return None
    found = []
    for devices in ([torch.device("cuda", 0)], [torch.device("cuda", 0), torch.device("cuda", 1)]):
        trainer = bench.trainer(bench.model(), grad_clip=0.0)
        trainer.runner = Runner(trainer.runner.model, devices)
        trainer.step(bench.batch(), ALL_NEGATIVES)
        found.append(gradients(trainer.runner.model))
    apart = distance(found[1], found[0])
    return f"{apart:.1e}", apart <= 1e-3


def torchrun_gives_the_numbers_of_one_process(bench: Bench) -> Result | None:
    """gradients of a step that two processes of torchrun share against one"""
    if bench.device.type == "cuda" and torch.cuda.device_count() < 2:
        return None
    trainer = bench.trainer(bench.model(), grad_clip=0.0)
    trainer.step(bench.batch(), ALL_NEGATIVES)
    apart = distance(shared_gradients(bench), gradients(trainer.runner.model))
    return f"{apart:.1e}", apart <= 1e-3


CHECKS = (
    scores_equal_the_definition,
    fused_kernel_equals_the_definition,
    gradients_of_heads_equal_the_cpus,
    encoders_equal_the_cpus,
    accumulation_gives_the_same_gradients,
    a_resumed_run_goes_on,
    bf16_trains_as_float32,
    a_step_fits_its_memory,
    recalls_hold_in_every_precision,
    two_gpus_give_the_numbers_of_one,
    torchrun_gives_the_numbers_of_one_process,
)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double().cpu() - expected).abs().max() / expected.abs().max())
