"""What the suite measures, as a table: who against whom, by what figure, and what is asked."""

from __future__ import annotations

from benchmarks.suite import OURS, Case, Figure, Runner

NETWORKS = {
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "mobilenet_v2": "MobileNetV2",
    "convnext_tiny": "ConvNeXt-T",
    "vit_b16": "ViT-B/16",
}
KERAS_HAS = ("resnet50", "vgg16", "mobilenet_v2", "convnext_tiny")
PLANS = {
    "full": "everything trains",
    "last_stage": "the last stage trains",
    "probe": "frozen backbone, new head",
}
OPTIONS = {
    "clip_norm": "clipping",
    "ema_decay": "moving average",
    "accumulate": "two micro-batches",
    "all": "all three",
}
# Networks without BatchNorm, whose gradients are the same in parts.
IN_PARTS = ("convnext_tiny", "vit_b16")
VISION = ("torch", "torchvision")
SECONDS = Figure("seconds", "a step", "s", 1.0)
MEMORY = (
    Figure("process_mebibytes", "memory until the first step", "MiB", 1.0, decimals=0),
    Figure("steps_mebibytes", "memory in steps", "MiB", 1.0, decimals=0),
    Figure("device_mebibytes", "memory of the device", "MiB", 1.0, decimals=0),
    Figure("compiler_mebibytes", "memory by the compiler's analysis", "MiB", decimals=0),
)


def step_case(network: str, plan: str, steps: int) -> Case:
    """A training step against PyTorch's, eager and compiled, and Keras on JAX where all trains."""
    arguments = (network, "--plan", plan, "--steps", str(steps))
    peers = [
        Runner("PyTorch eager", "torch_step", arguments, VISION),
        Runner("torch.compile", "torch_step", (*arguments, "--compile"), VISION),
    ]
    if plan == "full" and network in KERAS_HAS:
        rest = (network, "--steps", str(steps))
        peers.append(Runner("Keras on JAX", "keras_step", rest, ("keras", "jax")))
    return Case(
        f"step/{network}/{plan}",
        f"{NETWORKS[network]}, {PLANS[plan]}",
        Runner(OURS, "training_step", arguments),
        tuple(peers),
        (SECONDS, *MEMORY),
    )


def accelerated_case(network: str, steps: int) -> Case:
    """A training step of a large batch in bfloat16, against PyTorch at its fastest on GPUs."""
    arguments = (network, "--batch-size", "128", "--bfloat16", "--steps", str(steps))
    peer = Runner(
        "torch.compile", "torch_step", (*arguments, "--compile", "--channels-last"), VISION
    )
    return Case(
        f"bfloat16/{network}",
        f"{NETWORKS[network]}, {PLANS['full']}, 128 images in bfloat16",
        Runner(OURS, "training_step", arguments),
        (peer,),
        (SECONDS, *MEMORY),
        needs_accelerator=True,
    )


def import_case(name: str, title: str, *modules: str) -> Case:
    """Importing the package against importing what it stands on."""
    stands_on = ("jax", "flax.linen", "optax")
    return Case(
        name,
        title,
        Runner(OURS, "importing", modules),
        (Runner(", ".join(stands_on), "importing", stands_on),),
        (Figure("seconds", "time", "s", 1.1),),
    )


def first_step_case(network: str) -> Case:
    """The time until the first step has ended, with what is compiled in a folder and without."""
    arguments = (network, "--steps", "1", "--compilation-cache", "{pair}")
    return Case(
        f"first_step/{network}",
        f"{NETWORKS[network]}, all until the first step has ended, from a warm cache",
        Runner(f"{OURS}, warm", "training_step", arguments),
        (Runner(f"{OURS}, cold", "training_step", arguments),),
        (Figure("first_step_seconds", "time", "s", 1 / 3),),
        peers_first=True,
    )


def option_case(name: str, title: str, *arguments: str) -> Case:
    """What an option of a step costs: the ratio of the two is measured within each process."""
    return Case(
        f"option/{name}",
        title,
        Runner(OURS, "step_options", arguments),
        (),
        (
            Figure("overhead", "a step to a plain one", "times", 1.05, own_ratio=True),
            Figure("mebibytes", "memory between arguments and results", "MiB", decimals=0),
            Figure("plain_mebibytes", "the same of the plain step", "MiB", decimals=0),
        ),
    )


def all_cases(steps: int = 4) -> dict[str, Case]:
    """The cases by their names.

    Args:
        steps: that are timed in each process, where steps are.
    """
    cases = [
        import_case("import", "import jaxtransfer", "jaxtransfer"),
        import_case(
            "import/used",
            "import jaxtransfer, until load and finetune are there",
            "jaxtransfer:load",
            "jaxtransfer:finetune",
        ),
        *(first_step_case(network) for network in ("resnet50", "vit_b16")),
        *(step_case(network, plan, steps) for plan in PLANS for network in NETWORKS),
        *(accelerated_case(network, steps) for network in ("resnet50", "vit_b16")),
        Case(
            "cached_probe",
            "ResNet-50, a probe of 20 epochs on 2,000 images",
            Runner(OURS, "cached_probe", ("{case}",)),
            (Runner("PyTorch", "torch_probe", ("{case}",), VISION),),
            (Figure("seconds", "time", "s", 1 / 12, decimals=1),),
            prepare=(
                Runner("inputs", "probe_inputs", ("{case}",)),
                Runner("weights", "torch_probe", ("{case}", "--write"), VISION),
            ),
        ),
        *(option_case(option, f"ResNet-50, {text}", option) for option, text in OPTIONS.items()),
        *(
            option_case(
                f"parts/{network}",
                f"{NETWORKS[network]}, four micro-batches",
                *("accumulate_4", "--network", network),
            )
            for network in IN_PARTS
        ),
        Case(
            "probe_memory",
            "Vision Transformers of 3 to 24 blocks",
            Runner(OURS, "probe_memory"),
            (),
            (
                Figure(
                    "probe_growth",
                    "memory of a probe, 24 to 3",
                    "times",
                    1.1,
                    own_ratio=True,
                ),
                Figure("full_growth", "the same where all trains", "times"),
            ),
        ),
        Case(
            "input_pipeline",
            "augmented batches of a folder of JPEGs",
            Runner(OURS, "input_pipeline", ("{case}",)),
            (Runner("torchvision", "torchvision_pipeline", ("{case}",), VISION),),
            (Figure("rate", "rate", "images/s", 1.0, more_is_better=True, decimals=0),),
            prepare=(Runner("photos", "photos", ("{case}", "300")),),
        ),
    ]
    return {case.name: case for case in cases}
