"""Does the embedded model draw the person in the photo, and what the prompt asks for? Measured on unseen people.

    python -m benchmarks.embedded_identity draw --model-dir DIR --out DIR [--device cuda --dtype bfloat16]
    python -m benchmarks.embedded_identity judge --drawn DIR --classifier FILE --out FILE --sheets DIR

``draw`` makes the pictures through the engine, with references prepared by the service's own face stage from unseen
people whom it renders (package ``moderngl``); ``judge`` looks at them with networks that took no part in training: the
service's detector and identity network (extra ``identity``), and a small classifier of attributes trained on drawn
people (``python -m embedded.train.run --stage attributes``). The two halves may run on different machines: what lies
between them is a few tar files of JPEG pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded_identity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("--data-seed", type=int, default=1, help="of the training data; people are its unseen ones")
    drawing.add_argument("--model-dir", type=Path, required=True)
    drawing.add_argument("--profile", default="embedded")
    drawing.add_argument("--out", type=Path, required=True)
    drawing.add_argument("--people", type=int, default=64)
    drawing.add_argument("--photos", type=Path, nargs="*", default=[])
    drawing.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    drawing.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    drawing.add_argument("--batch", type=int, default=8)
    judging = commands.add_parser("judge")
    judging.add_argument("--drawn", type=Path, required=True)
    judging.add_argument("--classifier", type=Path, required=True)
    judging.add_argument("--out", type=Path, required=True)
    judging.add_argument("--sheets", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "draw":  # each imports what its machine must have
        from benchmarks.embedded_identity.draw import draw

        draw(arguments)
    else:
        from benchmarks.embedded_identity.judge import judge

        judge(arguments)


if __name__ == "__main__":
    main()
