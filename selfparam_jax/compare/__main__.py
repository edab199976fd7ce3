"""`python -m selfparam_jax.compare A B`: see `commands.compare`."""

from selfparam_jax.commands.compare import main

if __name__ == "__main__":
    main()
