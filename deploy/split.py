"""Cut an experiment's data into clients' folders: `python deploy/split.py experiment=quickstart out=data/clients`."""

from fedpara.deployment.split import main

if __name__ == "__main__":
    main()
