"""Train a federation: `python src/train.py experiment=fedpara_cifar100`; the program is `fedpara.app.cli`."""

from fedpara.app.cli import main

if __name__ == "__main__":
    main()
