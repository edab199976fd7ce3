"""`python -m selfparam_jax.main --config=configs/batch.py [--workdir=DIR]`: runs a job; see `commands.run`."""

from selfparam_jax.commands.run import main

if __name__ == "__main__":
    main()
