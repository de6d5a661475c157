"""Your own pictures and captions -> a folder of `Pairs` with features, made once.

    python data_scripts/encode.py my.csv out/ --image timm:vit_small_patch14_dinov2.lvd142m
    alignkit reproduce structure --pairs out/

`my.csv` has columns image,caption (several rows may name one picture); a folder of
pictures with a .txt file each does too. Encoders: see `alignkit.load`.
"""

import argparse
from pathlib import Path

from alignkit import Pairs, add_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="CSV table or folder")
    parser.add_argument("out", type=Path, help="folder to be made")
    parser.add_argument("--image", default="image:efficientnet-lite0")
    parser.add_argument("--text", default="text:minilm")
    parser.add_argument("--layers", default="last", choices=("last", "all"))
    args = parser.parse_args()

    if args.source.is_dir():
        pairs = Pairs.from_folder(args.source)
    else:
        pairs = Pairs.from_table(args.source)
    layers = "all" if args.layers == "all" else (-1,)
    for column, encoder in (("image", args.image), ("text", args.text)):
        pairs = add_features(pairs, column, encoder, layers=layers)
    pairs.save(args.out)
    print(pairs.describe())


if __name__ == "__main__":
    main()
