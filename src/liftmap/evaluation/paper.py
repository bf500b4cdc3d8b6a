"""The paper's tables as declarations: who is compared with whom, and what was published.

Liu, Zhou & Weinberger 2024, Tables 1 to 4, the two pairs of section 3.2 and the inpainters of
section 3.4.5; AUROC over full test splits. Of the methods that came later Heng et al. 2024,
"Out-of-distribution detection with a single unconditional diffusion model", give four pairs.
`liftmap reproduce` runs a table on the models and data at hand and sets each value beside the
published one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from liftmap.baselines.inpainters import FourierInpainting, MAEInpainting
from liftmap.evaluation.entrants import ENTRANTS, PRETRAINED, Entrant, inpainting, lmd, lmd_by_each
from liftmap.stages.masks import MaskSettings
from liftmap.stages.method import Method, find_method

Pair = tuple[str, str]

C10, C100, SVHN = "CIFAR10", "CIFAR100", "SVHN"
MNIST, KMNIST, FASHION = "MNIST", "KMNIST", "FashionMNIST"
PAIRS: tuple[Pair, ...] = (
    (C10, C100), (C10, SVHN), (C100, C10), (C100, SVHN), (SVHN, C10), (SVHN, C100),
    (MNIST, KMNIST), (MNIST, FASHION), (KMNIST, MNIST), (KMNIST, FASHION),
    (FASHION, MNIST), (FASHION, KMNIST),
)  # fmt: skip
NO_GREY_PAIR = (None,) * 6  # published for the first six, the colour pairs, alone
CELEBA, IMAGENET, BEDROOM, CLASSROOM = "CelebA-HQ", "ImageNet", "LSUN-bedroom", "LSUN-classroom"
LARGE_PAIRS: tuple[Pair, ...] = ((CELEBA, IMAGENET), (BEDROOM, CLASSROOM))  # at 256x256
# what a data set's model is called, below the folder of models
MODELS = {
    C10: "cifar10", C100: "cifar100", SVHN: "svhn",
    MNIST: "mnist", KMNIST: "kmnist", FASHION: "fashion-mnist",
    CELEBA: "celeba-hq", BEDROOM: "lsun-bedroom",
}  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """A table of the paper.

    published: AUROC by the name of the column, one value a pair of `pairs`; None where there is
        none.
    entrants: from the base method, what fills each column; columns that we can't fill are left out.
    """

    title: str
    pairs: tuple[Pair, ...]
    published: dict[str, tuple[float | None, ...]]
    entrants: Callable[[Method], dict[str, Entrant]]


def _by_lpips(base: Method) -> Method:
    """The base method as the paper's ablations have it: LPIPS, all attempts."""
    return replace(base, distance="lpips", norms=False, early_stop=None)


def _methods(base: Method) -> dict[str, Entrant]:
    """The paper's eight, then what came after it."""
    return {
        "Likelihood": ENTRANTS["likelihood"],
        "IC": ENTRANTS["input-complexity"],
        "LR": ENTRANTS["likelihood-regret"],
        "Pretrained": ENTRANTS["mahalanobis-efficientnet"],
        "AE-MSE": ENTRANTS["ae-mse"],
        "AE-MH": ENTRANTS["ae-mh"],
        "AnoGAN": ENTRANTS["anogan"],
        "LMD": lmd(replace(base, norms=False)),
        "combined": ENTRANTS["combined"],
        "AlexNet": ENTRANTS["mahalanobis"],
        "MSMA": ENTRANTS["msma"],
        "DDPM-OOD": ENTRANTS["ddpm-ood"],
        "DiffPath": ENTRANTS["diffpath"],
        "Projection Regret": ENTRANTS["projection-regret"],
    }


def _lmd_alone(base: Method) -> dict[str, Entrant]:
    return {"LMD": lmd(replace(base, norms=False))}


PAPER_MASKS = {
    "checkerboard 4x4": MaskSettings("checkerboard", cells=4),
    "checkerboard 8x8": MaskSettings("checkerboard", cells=8),
    "checkerboard 16x16": MaskSettings("checkerboard", cells=16),
    "fixed checkerboard 8x8": MaskSettings("fixed-checkerboard", cells=8),
    "centre": MaskSettings("centre"),
    "random patches": MaskSettings("random-patches"),
}


def _masks(base: Method) -> dict[str, Entrant]:
    return {name: lmd(replace(_by_lpips(base), mask=m)) for name, m in PAPER_MASKS.items()}


DEEP = "cosine:pypi:efficientnet-lite0"


def _distances(base: Method) -> dict[str, Entrant]:
    """Each by the same redraws, made once; the deep features only where they are installed."""
    kinds = {"MSE": "mse", "SSIM": "ssim", "LPIPS": "lpips"}
    plain = _by_lpips(base)
    deep = replace(lmd(replace(plain, distance=DEEP)), extra=PRETRAINED)
    if deep.installed:
        kinds["deep features"] = DEEP
    together = replace(plain, distance="+".join(kinds.values()))
    found = dict(zip(kinds, lmd_by_each(together), strict=True))
    return found if deep.installed else found | {"deep features": deep}


def _lifts(base: Method) -> dict[str, Entrant]:
    starts = {"denoising t=250": 0.25, "denoising t=500": 0.5, "denoising t=750": 0.75}
    plain = _by_lpips(base)
    lifted = {name: lmd(replace(plain, noised_to=start)) for name, start in starts.items()}
    return lifted | {"inpainting": lmd(plain)}


SHOWN_MASKS = ("checkerboard 8x8", "checkerboard 4x4", "centre")


def _inpainters(base: Method) -> dict[str, Entrant]:
    """The diffusion model, a masked autoencoder and our stand-in for LaMa, mask by mask."""
    found = {}
    for name in SHOWN_MASKS:
        mask = PAPER_MASKS[name]
        found[f"LMD, {name}"] = lmd(replace(_by_lpips(base), mask=mask))
        found[f"MAE, {name}"] = inpainting(MAEInpainting, mask)
        found[f"Fourier, {name}"] = inpainting(FourierInpainting, mask)
    return found


ARTEFACTS: dict[str, Artefact] = {
    "table1": Artefact(
        "LMD and the baselines",
        PAIRS,
        {
            "Likelihood": (
                0.520, 0.180, 0.495, 0.193, 0.974, 0.970, 0.948, 0.997, 0.152, 0.833, 0.172, 0.542,
            ),
            "IC": (
                0.568, 0.870, 0.468, 0.792, 0.973, 0.976, 0.903, 1.000, 0.951, 0.999, 0.912, 0.584,
            ),
            "LR": (
                0.546, 0.904, 0.484, 0.896, 0.805, 0.821, 0.999, 0.999, 0.431, 0.557, 0.971, 0.994,
            ),
            "Pretrained": (
                0.806, 0.888, 0.543, 0.776, 0.999, 0.999, 0.887, 0.999, 0.582, 0.993, 0.647, 0.730,
            ),
            "AE-MSE": (
                0.510, 0.025, 0.509, 0.027, 0.981, 0.980, 0.999, 1.000, 0.102, 0.896, 0.804, 0.976,
            ),
            "AE-MH": (
                0.488, 0.073, 0.486, 0.122, 0.966, 0.966, 1.000, 1.000, 0.217, 0.868, 0.969, 0.996,
            ),
            "AnoGAN": (
                0.518, 0.120, 0.510, 0.131, 0.967, 0.962, 0.933, 0.992, 0.317, 0.701, 0.835, 0.912,
            ),
            "LMD": (
                0.607, 0.992, 0.568, 0.985, 0.914, 0.876, 0.984, 0.999, 0.978, 0.993, 0.992, 0.990,
            ),
            "MSMA": (0.615, 0.957, None, None, 0.976, 0.980, *NO_GREY_PAIR),
            "DDPM-OOD": (0.536, 0.390, None, None, 0.951, 0.945, *NO_GREY_PAIR),
            "DiffPath": (0.590, 0.910, None, None, 0.939, 0.953, *NO_GREY_PAIR),
        },
        _methods,
    ),
    "table2": Artefact(
        "masks",
        ((C10, C100), (C10, SVHN), (MNIST, KMNIST)),
        {
            "checkerboard 4x4": (0.594, 0.987, 0.923),
            "checkerboard 8x8": (0.607, 0.992, 0.984),
            "checkerboard 16x16": (0.597, 0.981, 0.997),
            "fixed checkerboard 8x8": (0.601, 0.990, 0.974),
            "centre": (0.570, 0.978, 0.479),
            "random patches": (0.591, 0.990, 0.912),
        },
        _masks,
    ),
    "table3": Artefact(
        "reconstruction distances",
        PAIRS,
        {
            "MSE": (
                0.548, 0.155, 0.549, 0.157, 0.987, 0.979, 0.998, 0.995, 0.835, 0.802, 0.993, 0.998,
            ),
            "SSIM": (
                0.624, 0.329, 0.551, 0.258, 0.998, 0.995, 0.997, 0.999, 0.922, 0.979, 0.960, 0.988,
            ),
            "LPIPS": (
                0.607, 0.992, 0.568, 0.985, 0.914, 0.876, 0.984, 0.999, 0.978, 0.993, 0.992, 0.990,
            ),
            "deep features": (  # the paper's are SimCLRv2's, ours EfficientNet-Lite0's
                0.713, 0.970, 0.523, 0.924, 0.933, 0.928, 0.983, 0.999, 0.920, 0.995, 0.961, 0.977,
            ),
        },
        _distances,
    ),
    "table4": Artefact(
        "diffusion and denoising against masking and inpainting",
        PAIRS,
        {
            "denoising t=250": (
                0.583, 0.967, 0.568, 0.949, 0.861, 0.847, 0.956, 0.998, 0.645, 0.998, 0.428, 0.567,
            ),
            "denoising t=500": (
                0.600, 0.976, 0.524, 0.957, 0.966, 0.949, 0.993, 0.998, 0.972, 0.994, 0.941, 0.943,
            ),
            "denoising t=750": (
                0.589, 0.954, 0.436, 0.904, 0.957, 0.957, 0.715, 0.927, 0.721, 0.943, 0.876, 0.862,
            ),
            "inpainting": (
                0.607, 0.992, 0.568, 0.985, 0.914, 0.876, 0.984, 0.999, 0.978, 0.993, 0.992, 0.990,
            ),
        },
        _lifts,
    ),
    "inpainters": Artefact(
        "other inpainters (section 3.4.5)",
        ((C10, SVHN),),
        {
            "LMD, checkerboard 8x8": (0.992,),
            "LMD, checkerboard 4x4": (0.987,),
            "LMD, centre": (0.978,),
            "MAE, checkerboard 8x8": (0.065,),
            "MAE, checkerboard 4x4": (0.178,),
            "MAE, centre": (0.403,),
        },
        _inpainters,
    ),
    "table256": Artefact(
        "the pairs at 256x256 (section 3.2)", LARGE_PAIRS, {"LMD": (0.993, 0.927)}, _lmd_alone
    ),
}  # fmt: skip


def entrants_of(artefact: Artefact, method: str) -> dict[str, Entrant]:
    """What fills each column, on the named base method."""
    return artefact.entrants(find_method(method))


def published(artefact: Artefact, column: str, pair: Pair) -> float | None:
    """The published AUROC, if there is one."""
    values = artefact.published.get(column)
    return None if values is None else values[artefact.pairs.index(pair)]
