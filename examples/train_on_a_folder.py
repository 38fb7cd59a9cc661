"""Train a classifier on a folder of images, `class/name.jpg`, one folder a class.

    python3 examples/train_on_a_folder.py [FOLDER [RUN]]

Without a folder it draws a small one, of crosses and rings. In RUN are checkpoints, from which a
run that was cut off goes on, the steps as a table, and in the end the model.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import jaxtransfer as jt


def draw(folder: Path, each: int = 40) -> None:
    """Write rings and crosses of random places, sizes and colours as PNG files."""
    rng = np.random.default_rng(0)
    for shape in ("cross", "ring"):
        (folder / shape).mkdir(parents=True)
        for number in range(each):
            dark, light = (tuple(int(v) for v in rng.integers(lo, lo + 90, 3)) for lo in (0, 160))
            image = Image.new("RGB", (24, 24), dark)
            pen = ImageDraw.Draw(image)
            x, y, r = (int(v) for v in rng.integers((9, 9, 5), (16, 16, 8)))
            if shape == "ring":
                pen.ellipse((x - r, y - r, x + r, y + r), outline=light, width=2)
            else:
                pen.line((x - r, y, x + r, y), fill=light, width=2)
                pen.line((x, y - r, x, y + r), fill=light, width=2)
            image.save(folder / shape / f"{number:03}.png")


def confusion(model: jt.Model, data: jt.StoredData) -> np.ndarray:
    """How often each class (row) was taken for each other (column)."""
    found = jt.predict(model, data.load().images).argmax(axis=-1)
    table = np.zeros((len(data.classes),) * 2, int)
    np.add.at(table, (data.labels, found), 1)
    return table


def main(folder: str, run: str) -> np.ndarray:
    """Choose a rate, train the head, then everything; show what was taken for what."""
    train = jt.image_folder(folder, "train[:75%]")
    test = jt.image_folder(folder, "train[75%:]")
    model = jt.load("checkpoints/glyphs")  # in earnest: jt.load("resnet50")
    model = jt.replace_head(model, classes=train.classes)
    size = model.spec.input_size or (224, 224)
    rates = jt.find_lr(model, train, "probe", lo=1e-4, hi=1.0, steps=30, batch_size=16)
    print(rates)
    result = jt.finetune(
        model,
        train,
        plan="lp_ft",
        validation=test,
        steps=60,
        batch_size=16,
        learning_rate=rates.suggestion,
        augment=jt.augment.standard_augment(size),
        callbacks=[jt.early_stopping("accuracy", patience=4), jt.csv_writer(f"{run}/history.csv")],
        checkpoint_folder=f"{run}/checkpoints",
        resume=True,
    )
    result.model.save(f"{run}/model")
    table = confusion(result.model, test)
    for name, row in zip(test.classes, table, strict=True):
        counts = (f"{other} {count}" for other, count in zip(test.classes, row, strict=True))
        print(f"{name} was taken for: {', '.join(counts)}")
    return table


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        folder, run = (*sys.argv[1:], *[f"{scratch}/images", f"{scratch}/run"][len(sys.argv) - 1 :])
        if len(sys.argv) == 1:
            draw(Path(folder))
        main(folder, run)
