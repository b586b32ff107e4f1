"""Slow, obvious versions of what lib/ computes fast: loops over images, captions, words, regions and levels.

Everything is differentiable torch and follows the dtype of its inputs, so that float64 runs give reference values and
reference gradients. Items come one by one, as their real fragments alone: there is no padding and no mask in this file.
Parameters are dicts keyed by the released names without `module.` and without `sim_vec.`, `img_enc.` or `gpool.`.

Letters: B images, C captions, R regions, W words, L fragments of one item, D embedding size, d_k size of level k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVELS = 9
EPS = 1e-8


def l2norm(x: Tensor, dim: int = -1) -> Tensor:
    """x / (sqrt(sum x²) + 1e-8) along `dim`; value and gradient are finite where x is all zeros."""
    square = (x * x).sum(dim, keepdim=True)
    zero = square == 0
    norm = torch.where(zero, torch.zeros_like(square), torch.where(zero, torch.ones_like(square), square).sqrt())
    return x / (norm + EPS)


# ----------------------------------------------------------------------------------------------------- measure-units


def sparse_rows(mask: Tensor) -> Tensor:
    """Rows of P_k (d_k, d_{k-1}) l2-normalised; entries below the second largest signed value of their row become 0."""
    rows = l2norm(mask)
    kept = []
    for row in rows:
        second = row.detach().sort(descending=True).values[min(1, len(row) - 1)]
        kept.append(torch.where(row.detach() >= second, row, torch.zeros_like(row)))
    return torch.stack(kept)  # (d_k, d_{k-1})


def aggregate_adaptive(z: Tensor, mask: Tensor) -> Tensor:
    """One adaptive measure-unit: z (L, d_{k-1}) -> (L, d_k)."""
    return z @ sparse_rows(mask).T  # (L, d_k)


def aggregate_heuristic(z: Tensor, kernel: Tensor) -> Tensor:
    """One heuristic measure-unit with its kernel (4, 1, s): z (L, d_{k-1}) -> (L, d_k), a leftover tail is dropped."""
    size = kernel.shape[-1]
    taps = kernel[0, 0] + kernel[1, 0] + kernel[2, 0] + kernel[3, 0]  # (s,)
    columns = []
    for j in range(z.shape[1] // size):
        columns.append(sum(taps[t] * z[:, size * j + t] for t in range(size)))
    return torch.stack(columns, dim=1)  # (L, d_k)


def _levels(x0: Tensor, units: list[Tensor], aggregate, image_side: bool) -> list[Tensor]:
    levels, z = [x0], x0
    for unit in units:
        z = aggregate(z, unit)
        levels.append(l2norm(z))
        if image_side:
            z = levels[-1]  # images go on from the normalised level, captions from the un-normalised one
    return levels


def adaptive_levels(x0: Tensor, masks: list[Tensor], image_side: bool) -> list[Tensor]:
    """Levels 0..len(masks) of one item, x0 (L, D) as it is, mask k of shape (d_k, d_{k-1}); level k is (L, d_k)."""
    return _levels(x0, masks, aggregate_adaptive, image_side)


def heuristic_levels(x0: Tensor, kernels: list[Tensor], image_side: bool) -> list[Tensor]:
    """Levels 0..len(kernels) of one item, x0 (L, D) as it is, kernel k of shape (4, 1, s); level k is (L, d_k)."""
    return _levels(x0, kernels, aggregate_heuristic, image_side)


# ---------------------------------------------------------------------------------- correspondence and contributions


def contributions_adaptive(p: Tensor) -> Tensor:
    """Contribution degrees of ESL-A: p (9,) itself."""
    return p


def contributions_heuristic(p: Tensor, sigma: Tensor, log_lambda: Tensor) -> Tensor:
    """Contribution degrees of ESL-H from p (9,): small |p| are damped, large ones amplified, around a threshold."""
    size = p.abs()
    threshold = size.amin() + sigma.reshape(()) * (size.amax() - size.amin())
    return torch.stack([p[k] * torch.exp((size[k] - threshold) * log_lambda.reshape(()).exp()) for k in range(len(p))])


def correspondence(matrix: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the whole of M_k (d_k, d_k): one mean, one (biased) variance, eps 1e-8."""
    centred = matrix - matrix.sum() / matrix.numel()
    variance = (centred * centred).sum() / matrix.numel()
    return centred / torch.sqrt(variance + EPS) * weight + bias


# -------------------------------------------------------------------------------------------------------- ESL scores


def esl_levels(x: Tensor, parameters: dict[str, Tensor], kind: str, image_side: bool, normalise: bool = True):
    """The nine levels of one item's fragments x (L, D); kind 'a' (adaptive) or 'h' (heuristic)."""
    assert kind in ("a", "h"), kind
    side = "image" if image_side else "text"
    unit = "masks" if kind == "a" else ("kernel_img" if image_side else "kernel_txt")
    prefix = f"plus_encoder.encoders_1.{side}_levels.{unit}"
    units = [parameters[f"{prefix}_{k}.weight"] for k in range(1, LEVELS)]
    levels = adaptive_levels if kind == "a" else heuristic_levels
    return levels(l2norm(x) if normalise else x, units, image_side)


def esl_correspondences(parameters: dict[str, Tensor], kind: str) -> list[Tensor]:
    """c_k LN(M_k) of every level."""
    own = {name.removeprefix("sims.calculator_1."): value for name, value in parameters.items()}
    p = own["sim_eval.weight"].reshape(LEVELS)  # (9,)
    if kind == "a":
        degrees = contributions_adaptive(p)
    else:
        degrees = contributions_heuristic(p, own["temp_scale_1.weight"], own["temp_scale_2.weight"])
    return [
        degrees[k] * correspondence(own[f"masks_{k}.weight"], own[f"lynorm_{k}.weight"], own[f"lynorm_{k}.bias"])
        for k in range(LEVELS)
    ]


def word_region_similarity(image: list[Tensor], caption: list[Tensor], correspondences: list[Tensor]) -> Tensor:
    """S of one pair, from the levels of the image (R, d_k) and of the caption (W, d_k)."""
    similarity = caption[0].new_zeros(len(caption[0]), len(image[0]))  # (W, R)
    for regions, words, matrix in zip(image, caption, correspondences, strict=True):
        similarity = similarity + words @ matrix @ regions.T
    return similarity


def instance_similarity(similarity: Tensor, temperature: Tensor) -> Tensor:
    """Score of one pair from its S (W, R): text-to-image plus image-to-text; temperature is τ itself, not its log."""
    words, regions = similarity.shape
    squashed = torch.tanh(similarity)
    gated = torch.where(squashed > 0, squashed, 0.1 * squashed)

    by_region = torch.stack([l2norm(gated[:, r]) for r in range(regions)], dim=1)  # (W, R), norm over the words
    text_to_image = similarity.new_zeros(())
    for w in range(words):
        attention = torch.softmax(temperature * by_region[w], dim=0)  # (R,)
        text_to_image = text_to_image + (similarity[w] * attention).sum() / words

    by_word = torch.stack([l2norm(gated[w]) for w in range(words)])  # (W, R), norm over the regions
    image_to_text = similarity.new_zeros(())
    for r in range(regions):
        attention = torch.softmax(temperature * by_word[:, r], dim=0)  # (W,)
        image_to_text = image_to_text + (similarity[:, r] * attention).sum() / regions

    return text_to_image + image_to_text


def esl_score(
    image: Tensor, caption: Tensor, parameters: dict[str, Tensor], kind: str, normalise: bool = True
) -> tuple[Tensor, Tensor]:
    """Score () and S (W, R) of one image (R, D) and one caption (W, D), kind 'a' or 'h'.

    normalise=True l2-normalises both sides first; for one side alone pass l2norm(that side) and normalise=False.
    """
    image_levels = esl_levels(image, parameters, kind, True, normalise)
    caption_levels = esl_levels(caption, parameters, kind, False, normalise)
    similarity = word_region_similarity(image_levels, caption_levels, esl_correspondences(parameters, kind))
    temperature = parameters["sims.calculator_1.temp_scale.weight"].reshape(()).exp()
    return instance_similarity(similarity, temperature), similarity


def esl_scores(
    images: list[Tensor], captions: list[Tensor], parameters: dict[str, Tensor], kind: str, normalise: bool = True
) -> Tensor:
    """Scores (B, C) of images [(R_i, D)] against captions [(W_j, D)]; esl_score of each pair, levels made once."""
    image_levels = [esl_levels(image, parameters, kind, True, normalise) for image in images]
    caption_levels = [esl_levels(caption, parameters, kind, False, normalise) for caption in captions]
    matrices = esl_correspondences(parameters, kind)
    temperature = parameters["sims.calculator_1.temp_scale.weight"].reshape(()).exp()
    rows = []
    for image in image_levels:
        row = [instance_similarity(word_region_similarity(image, c, matrices), temperature) for c in caption_levels]
        rows.append(torch.stack(row))
    return torch.stack(rows)  # (B, C)


def level_sizes(embed_size: int, kernel_size: int = 2) -> list[int]:
    """d_0 … d_8."""
    return [embed_size // kernel_size**k for k in range(LEVELS)]


def random_esl_parameters(
    kind: str, embed_size: int, seed: int, dtype: torch.dtype = torch.float64, kernel_size: int = 2
) -> dict[str, Tensor]:
    """All parameters of an ESL head under their released names, each away from its initial value.

    Some entries of p are negative, so that |p| and p differ. embed_size >= kernel_size ** 8.
    """
    assert kind in ("a", "h") and embed_size >= kernel_size**8, (kind, embed_size)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = level_sizes(embed_size, kernel_size)
    parameters = {}
    for side, short in (("text", "txt"), ("image", "img")):
        for k in range(1, LEVELS):
            prefix = f"plus_encoder.encoders_1.{side}_levels"
            if kind == "a":
                parameters[f"{prefix}.masks_{k}.weight"] = normal(sizes[k], sizes[k - 1])
            else:
                parameters[f"{prefix}.kernel_{short}_{k}.weight"] = 0.2 + 0.4 * normal(4, 1, kernel_size)
    head = "sims.calculator_1"
    p = 0.06 + 0.25 * torch.rand(1, LEVELS, generator=generator, dtype=torch.float64)
    p[0, 2::4] *= -1
    parameters[f"{head}.sim_eval.weight"] = p
    parameters[f"{head}.temp_scale.weight"] = torch.full((1, 1), 2.3, dtype=torch.float64) + 0.1 * normal(1, 1)
    parameters[f"{head}.temp_scale_1.weight"] = torch.full((1, 1), 0.37, dtype=torch.float64) + 0.02 * normal(1, 1)
    parameters[f"{head}.temp_scale_2.weight"] = torch.full((1, 1), 1.25, dtype=torch.float64) + 0.1 * normal(1, 1)
    for k, size in enumerate(sizes):
        parameters[f"{head}.masks_{k}.weight"] = normal(size, size)
        parameters[f"{head}.lynorm_{k}.weight"] = 1 + 0.2 * normal(size, size)
        parameters[f"{head}.lynorm_{k}.bias"] = 0.2 * normal(size, size)
    return {name: value.to(dtype) for name, value in parameters.items()}


# ------------------------------------------------------------------------------------------------------- pooled head


def positional_encoding(n: int, size: int = 32, dtype: torch.dtype = torch.float64) -> Tensor:
    """Sines (even entries) and cosines (odd entries) of positions 0 … n-1, base 10000: (n, size)."""
    rows = []
    for position in range(n):
        angles = [position / 10000 ** (2 * (i // 2) / size) for i in range(size)]
        rows.append([math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)])
    return torch.tensor(rows, dtype=dtype).reshape(n, size)


def gru_direction(inputs: Tensor, parameters: dict[str, Tensor], suffix: str) -> Tensor:
    """Hidden states (n, H) of one GRU direction that reads inputs (n, I) in the order given, from a zero state."""
    w_ih, w_hh = parameters[f"gru.weight_ih_{suffix}"], parameters[f"gru.weight_hh_{suffix}"]
    b_ih, b_hh = parameters[f"gru.bias_ih_{suffix}"], parameters[f"gru.bias_hh_{suffix}"]
    hidden = inputs.new_zeros(w_hh.shape[1])  # (H,)
    states = []
    for x in inputs:
        x_reset, x_update, x_new = (w_ih @ x + b_ih).chunk(3)
        h_reset, h_update, h_new = (w_hh @ hidden + b_hh).chunk(3)
        reset = torch.sigmoid(x_reset + h_reset)
        update = torch.sigmoid(x_update + h_update)
        new = torch.tanh(x_new + reset * h_new)
        hidden = (1 - update) * new + update * hidden
        states.append(hidden)
    return torch.stack(states)  # (n, H)


def gpo_weights(n: int, parameters: dict[str, Tensor]) -> Tensor:
    """Pooling coefficients θ (n,) of a GPO for n valid fragments; keys `gru.*`, `linear.weight`."""
    size = parameters["gru.weight_ih_l0"].shape[1]
    encoding = positional_encoding(n, size, parameters["gru.weight_ih_l0"].dtype)  # (n, 32)
    forward = gru_direction(encoding, parameters, "l0")
    backward = gru_direction(encoding.flip(0), parameters, "l0_reverse").flip(0)
    logits = ((forward + backward) / 2) @ parameters["linear.weight"][0]  # (n,)
    return torch.softmax(logits / 0.1, dim=0)


def gpo_pool(features: Tensor, n: int, parameters: dict[str, Tensor]) -> Tensor:
    """Pooled vector (D,), not normalised, of the first n rows of one item's features (L, D)."""
    theta = gpo_weights(n, parameters)
    columns = []
    for d in range(features.shape[1]):
        descending = features[:n, d].sort(descending=True).values
        columns.append((theta * descending).sum())
    return torch.stack(columns)  # (D,)


def pooled_scores(
    images: list[Tensor],
    captions: list[Tensor],
    gpo_image: dict[str, Tensor],
    gpo_text: dict[str, Tensor],
    normalise: bool = True,
) -> Tensor:
    """Scores (B, C) of the pooled head for un-normalised fragments [(R_i, D)] and [(W_j, D)]."""
    v = [gpo_pool(image, len(image), gpo_image) for image in images]
    t = [gpo_pool(caption, len(caption), gpo_text) for caption in captions]
    if normalise:
        v, t = [l2norm(x) for x in v], [l2norm(x) for x in t]
    return torch.stack([torch.stack([(x * y).sum() for y in t]) for x in v])  # (B, C)


# ----------------------------------------------------------------------------------------------------------- encoder


def region_encoder(x: Tensor, parameters: dict[str, Tensor], training: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """fc(x) + mlp(x), not normalised, of real regions x (..., img_dim), and the BatchNorm statistics afterwards.

    While training the statistics are those of all rows of x, so pass the real regions of the whole batch together.
    """
    rows = x.reshape(-1, x.shape[-1])  # (N, img_dim)
    linear = rows @ parameters["fc.weight"].T + parameters["fc.bias"]  # (N, D)
    hidden = rows @ parameters["mlp.layers.0.weight"].T + parameters["mlp.layers.0.bias"]  # (N, D/2)

    names = [f"mlp.bns.0.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
    statistics = {name: parameters[name] for name in names if name in parameters}
    mean, variance = parameters[names[0]], parameters[names[1]]
    if training:
        count = len(rows)
        mean = hidden.sum(0) / count
        variance = ((hidden - mean) ** 2).sum(0) / count
        unbiased = variance.detach() * count / (count - 1)
        statistics = {
            names[0]: 0.9 * parameters[names[0]] + 0.1 * mean.detach(),
            names[1]: 0.9 * parameters[names[1]] + 0.1 * unbiased,
        }
        if names[2] in parameters:
            statistics[names[2]] = parameters[names[2]] + 1
    hidden = (hidden - mean) / torch.sqrt(variance + 1e-5)
    hidden = torch.relu(hidden * parameters["mlp.bns.0.weight"] + parameters["mlp.bns.0.bias"])
    output = linear + hidden @ parameters["mlp.layers.1.weight"].T + parameters["mlp.layers.1.bias"]  # (N, D)
    return output.reshape(*x.shape[:-1], output.shape[-1]), statistics


def bigru_encoder(ids: list[int], parameters: dict[str, Tensor]) -> Tensor:
    """Fragments (W, D), not normalised, of one caption's ids (W): a loop over time steps, forwards and backwards."""
    words = torch.stack([parameters["embed.weight"][number] for number in ids])  # (W, word_dim)
    gru = {key.replace("rnn.", "gru."): value for key, value in parameters.items() if key.startswith("rnn.")}
    forward = gru_direction(words, gru, "l0")  # (W, D)
    backward = gru_direction(words.flip(0), gru, "l0_reverse").flip(0)  # (W, D)
    return (forward + backward) / 2


# -------------------------------------------------------------------------------------------------- loss and ranking


def hinge_triplet_loss(scores: Tensor, margin: float, hardest: bool) -> Tensor:
    """Sum of the hinge costs of scores (B, B), diagonal positive; hardest=True: of the worst in each row and column."""
    count = len(scores)
    zero = scores.new_zeros(())
    cost_caption = [[zero] * count for _ in range(count)]
    cost_image = [[zero] * count for _ in range(count)]
    for i in range(count):
        for j in range(count):
            if i != j:
                cost_caption[i][j] = (margin + scores[i, j] - scores[i, i]).clamp(min=0)
                cost_image[i][j] = (margin + scores[i, j] - scores[j, j]).clamp(min=0)
    total = zero
    for i in range(count):
        captions_of_image = torch.stack(cost_caption[i])  # (B,)
        images_of_caption = torch.stack([cost_image[j][i] for j in range(count)])  # (B,)
        if hardest:
            total = total + captions_of_image.max() + images_of_caption.max()
        else:
            total = total + captions_of_image.sum() + images_of_caption.sum()
    return total


def ranks(scores, image_of_caption) -> tuple[list[int], list[int]]:
    """Ranks (0 = first) of scores (B, C): image-to-text of every image and text-to-image of every caption.

    image_of_caption[j] is the row of caption j's image. A wrong item with an equal score ranks before the right one.
    """
    scores, owner = scores.tolist(), [int(i) for i in image_of_caption]
    assert not any(math.isnan(s) for row in scores for s in row), "a score is NaN"
    image_ranks = []
    for i, row in enumerate(scores):
        best = max(s for j, s in enumerate(row) if owner[j] == i)
        image_ranks.append(sum(1 for j, s in enumerate(row) if owner[j] != i and s >= best))
    caption_ranks = []
    for j, own in enumerate(owner):
        caption_ranks.append(sum(1 for i, row in enumerate(scores) if i != own and row[j] >= scores[own][j]))
    return image_ranks, caption_ranks
