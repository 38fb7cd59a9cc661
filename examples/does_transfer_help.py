"""Does transfer help, and is the cheap guess right? Ask before training, then measure.

    python3 examples/does_transfer_help.py

The embedded source model knows drawn characters; the target is handwritten digits, five labelled
images a class. Scores that need no training rank it against a copy of itself that ends early and
against random weights; then the same three are trained under one budget.
"""

import jaxtransfer as jt


def main() -> jt.Comparison:
    """Advise and rank on fifty images, then compare over three seeds."""
    source = jt.load("checkpoints/glyphs")  # in earnest: jt.load("resnet50")
    digits = jt.load_digits()  # in earnest: jt.image_folder("photos", "train")
    few = digits.take(jt.few_shot(digits.labels, 5, seed=0))
    early = jt.truncate(source, "layer1")

    print(jt.advise(source, few, folds=3, random_networks=1))
    ranking = jt.rank({"whole": source, "early": early}, few, scores=("logme", "knn"), resamples=20)
    print(*(" | ".join(row) for row in ranking.table()), sep="\n")

    comparison = jt.compare(
        source,
        digits,
        arms={
            "naive": "naive",
            "scratch": "scratch",
            "whole": "full",
            "early": jt.Arm("full", source=early),
        },
        budget=jt.Budget(per_class=5, steps=60, batch_size=16, learning_rates=(3e-3,)),
    )
    for name, arm in comparison.arms.items():
        low, high = (100 * bound for bound in arm.asymptote[1:])
        print(f"{name}: ends at {100 * arm.asymptote.mean:.1f} % ({low:.1f} to {high:.1f})")
    print(comparison.verdict)
    print(f"The scores took {ranking.best!r} for the best source.")
    return comparison


if __name__ == "__main__":
    main()
